"""What the Analyze tab does, free of any web framework: one forward pass, and what it says."""

import hashlib
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data import dicom
from dermlens.data.decoding import as_array, check_memory, open_header
from dermlens.data.images import fit_image, open_rgb
from dermlens.errors import DataError, UsageError
from dermlens.explainers.nearest_cases import NearestCases, finder_of
from dermlens.explainers.output import Logit
from dermlens.explainers.target import PREDICTED, resolve_targets
from dermlens.files import plain
from dermlens.lesion.outline import find_outline
from dermlens.model.bundle import Bundle
from dermlens.report.cases_view import CasePictures
from dermlens.report.comparer import no_activation_maps
from dermlens.report.facts import NO_BREAK, Answer, answer_of, of_skin, words
from dermlens.report.figures import UNSIGNED_MAP
from dermlens.report.html import NOTICE
from dermlens.report.layers import WHOLE
from dermlens.serve.usability import Usability, seen_box, seen_remarks, usability

MAX_BYTES = 20 * 2**20
"""Of one file."""
MAX_PIXELS = 50_000_000
"""Of one image; the cameras of phones reach about as many."""
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "HEIF")
"""Of ``decoding.FORMATS``; a GIF is no photograph. And DICOM, beside them."""
_KINDS = "JPEG, PNG, TIFF, BMP, WebP, HEIC or DICOM"

NO_CASES = (
    "This model has no index of known cases. 'dermlens cases BUNDLE --build DATA' makes one, DATA "
    "being what it learned from."
)
_LARGEST_SHOWN = 1280
"""Longer side, in pixels, of the photograph that is shown."""
_MOST_MAPS = 32
"""Classes up to which the maps of all are kept."""


def read_upload(path: Path) -> tuple[Any, bytes]:
    """Return an uploaded image as an upright RGB PIL image, and the bytes of the file.

    Messages never hold a path, and the file's name is not used at all.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise DataError(
            "The upload is no longer here: uploads are deleted after 15 minutes. Upload it again."
        ) from None
    if size == 0:
        raise DataError("The file is empty (0 bytes). Choose another one.")
    if size > MAX_BYTES:
        raise DataError(
            f"The file has {size / 2**20:.0f} MB; up to {MAX_BYTES // 2**20} MB are taken. Scale "
            "the image down first."
        )
    uploaded = path.read_bytes()
    content = _picture_of_dicom(path) if dicom.is_dicom(uploaded) else uploaded
    try:
        _check_header(content)
        return open_rgb(content, "The file"), uploaded
    except UsageError:
        raise DataError("HEIC is not read here. Save the photograph as JPEG.") from None
    except DataError as error:
        if str(error).startswith("The file cannot be decoded as an image ("):
            raise DataError(
                "The file cannot be decoded: it is damaged or cut off. Save the image again."
            ) from None
        raise


def _picture_of_dicom(path: Path) -> bytes:
    try:
        return dicom.picture_bytes(path)
    except UsageError:
        raise DataError("DICOM is not read here. Save the photograph as JPEG.") from None
    except DataError:
        raise DataError(
            "The DICOM file holds no single picture that can be read. Save the one that is meant "
            "as a file of its own."
        ) from None


def _check_header(content: bytes) -> None:
    """Read format, pixel counts and the memory that decoding takes, which needs no decoding."""
    from PIL import Image

    try:
        header = open_header(content)
    except Image.DecompressionBombError:
        raise DataError(_too_many("far more")) from None
    except UsageError:
        raise
    except Exception:
        header = None
    if header is None or header.format not in FORMATS:
        raise DataError(f"The file cannot be decoded as an image. Choose a {_KINDS} file.")
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise DataError(_too_many(f"{width} x {height} pixels, more"))
    check_memory(header, content, "The file")


def _too_many(found: str) -> str:
    return (
        f"The image has {found} than the {MAX_PIXELS // 10**6} million pixels that are taken. "
        "Scale it down first."
    )


@dataclass(frozen=True)
class Analysis(Answer):
    """Everything one forward pass says about an image.

    Attributes:
        image: What the model saw, uint8 (H, W, 3).
        display: The whole photograph at a size for screens, uint8 (h, w, 3).
        maps: Grad-CAM of every class, float32 (C, H, W), or (0, H, W) where one pass does not give
            it.
        box: (left, top, right, bottom) of ``image``, in shares of the photograph.
        outline: Where a lesion was found by color, bool, of the whole photograph; or None.
        sha256: Of the file.
        usability: What was measured of the photograph.
        ood_score: Distance from the training images.
        features: Pooled feature maps, float32 (K,); None where one pass does not give them.
        reasons: Why the model abstains; empty if it does not.
        remarks: Doubts.
    """

    image: np.ndarray
    display: np.ndarray
    maps: np.ndarray
    box: tuple[float, float, float, float] = WHOLE
    outline: np.ndarray | None = None
    sha256: str = ""
    usability: Usability | None = None
    ood_score: float | None = None
    features: np.ndarray | None = None
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def abstains(self) -> bool:
        """Whether the model gives no answer for this image."""
        return bool(self.reasons)


@dataclass(frozen=True)
class Wish:
    """How a visitor wants to see things.

    Attributes:
        color_map: Of drawn maps.
        outline: ``"none"``, ``"automatic"`` or ``"drawn"``.
        anyway: Whether a class may be named where the model abstains.
    """

    color_map: str = UNSIGNED_MAP
    outline: str = "none"
    anyway: bool = False


AS_IT_IS = Wish()


class Actions:
    """Analyzes images with one model that is loaded and traced once; ``pictures`` are of cases."""

    def __init__(self, bundle: Bundle, pictures: CasePictures | None = None) -> None:
        from dermlens.explainers.grad_cam import GradCAM

        self._finder, self.pictures = finder_of(bundle), pictures or CasePictures()
        self.bundle, self.words = bundle, words(bundle.labels)
        self.pass_seconds = float("nan")
        self._predictor, self._lock = bundle.predictor(1), threading.Lock()
        self.without_maps = no_activation_maps(bundle)
        self._cam = None if self.without_maps else GradCAM(bundle)
        closed = self._cam is not None and self._cam.closed(Logit())
        self._forward = self._all_maps() if closed and len(bundle.classes) <= _MOST_MAPS else None

    def _all_maps(self) -> Any:
        import tensorflow as tf

        from dermlens.serve.export_graph import ClassifierGraph

        graph = ClassifierGraph(self.bundle)
        pixels = tf.TensorSpec((1, *self.bundle.input_size, 3), tf.uint8)
        return tf.function(
            lambda images: graph.all_maps_and_features(tf.cast(images, tf.float32)),
            autograph=False,
            input_signature=[pixels],
        )

    def warm_up(self) -> None:
        """Trace the network, so that the first image does not wait for it, and time a pass."""
        blank = np.zeros((*self.bundle.input_size, 3), np.uint8)
        self._pass(blank)
        start = time.perf_counter()
        self._pass(blank)
        self.pass_seconds = time.perf_counter() - start

    def _pass(
        self, image: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float | None, np.ndarray | None]:
        """Return logits (1, C), the maps and features with them, and out-of-distribution score."""
        detector, scores, pooled = self.bundle.ood_detector, None, None
        maps = np.zeros((0, *self.bundle.input_size), np.float32)
        if self._forward is not None:
            logits, drawn, features = (tensor.numpy() for tensor in self._forward(image[None]))
            maps, scores = drawn[0], None if detector is None else detector.scores(features)
            pooled = features[0]
        elif detector is None:
            logits = self._predictor.logits(image[None])
        else:
            logits, scores = self.bundle.logits_and_ood_scores(image[None], batch_size=1)
        return logits, maps, None if scores is None else float(scores[0]), pooled

    def analyze(self, path: Path) -> Analysis:
        """Classify an image file and draw the Grad-CAM of every class: one forward pass."""
        picture, content = read_upload(path)
        size = self.bundle.input_size
        image = fit_image(picture, size)
        found = replace(
            self.analyze_image(image),
            display=_display(picture),
            box=seen_box(picture, size),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        # What is asked of a photograph there is about skin lesions.
        if not of_skin(self.bundle.labels):
            return replace(found, remarks=seen_remarks(picture, size))
        outline = find_outline(picture)
        checked = usability(picture, image, size, outline)
        return replace(
            found,
            outline=outline,
            usability=checked,
            reasons=(*checked.problems, *found.reasons),
            remarks=checked.remarks,
        )

    def analyze_image(self, image: np.ndarray) -> Analysis:
        """Classify what the model sees; the photograph itself is not judged."""
        logits, maps, score, features = self._pass(image)
        return Analysis(
            **vars(answer_of(self.bundle, logits[0])),
            image=image,
            display=image,
            maps=maps,
            ood_score=score,
            features=features,
            reasons=self._unlike(score),
        )

    def cases(self, analysis: Analysis) -> tuple[NearestCases, dict[str, np.ndarray]]:
        """Return the known cases most like an analyzed image, and pictures by image id.

        Raises:
            UsageError: If the model has no index of cases.
        """
        if self._finder is None:
            raise UsageError(NO_CASES)
        if analysis.features is None:
            found = self._finder.find(analysis.image, photograph=analysis.display)
        else:
            found = self._finder.of_features(
                analysis.probabilities, analysis.features, analysis.display
            )
        return found, self.pictures.of(found)

    def map_of(self, analysis: Analysis, target: int) -> np.ndarray | None:
        """Return the Grad-CAM of one class, float32 (H, W); None if the model has none."""
        if target < len(analysis.maps):
            found: np.ndarray = analysis.maps[target]
            return found
        if self._cam is None:
            return None
        with self._lock:
            return self._cam.attribute(analysis.image[None], target).maps[0]

    def target(self, analysis: Analysis, target: str) -> int:
        """Return the class position that a choice of target stands for."""
        return int(resolve_targets(target, analysis.logits[None], self.bundle.labels)[0])

    def target_choices(self, first: str = "", value: str = PREDICTED) -> list[tuple[str, str]]:
        """Return (text, value) of the classes that can be explained, after the first choice."""
        named = [(one.name, one.code) for one in self.bundle.labels.labels]
        return [(first or f"The most probable {self.words.one}", value), *named]

    def facts(self, analysis: Analysis, *, anyway: bool = False) -> dict[str, Any]:
        """Return an analysis as JSON types.

        Where the model abstains, the answer is left out unless it is to be there ``anyway``.
        """
        bundle, checked, detector = self.bundle, analysis.usability, self.bundle.ood_detector
        answer = {
            "name": bundle.labels.labels[analysis.predicted].name,
            **analysis.to_json(bundle.classes),
        }
        return {
            "abstain": analysis.abstains,
            "reasons": list(analysis.reasons),
            **(dict.fromkeys(answer) if analysis.abstains and not anyway else answer),
            "ood_score": analysis.ood_score,
            "ood_threshold": None if detector is None else detector.threshold,
            "usability": None if checked is None else plain(vars(checked)),
            "remarks": list(analysis.remarks),
            "synthetic_model": bundle.synthetic,
            "note": NOTICE,
        }

    def _unlike(self, score: float | None) -> tuple[str, ...]:
        detector = self.bundle.ood_detector
        if detector is None or score is None or not score > detector.threshold:
            return ()
        ordinary = 100 * (1 - detector.false_rejects)
        return (
            f"Unlike the training images: its distance from them is {score:.2f}, and "
            f"{ordinary:.0f}{NO_BREAK}% of ordinary images lie below "
            f"{detector.threshold:.2f}. Perhaps it is no {self.words.image}, or of something "
            "the model has never seen.",
        )


def _display(picture: Any) -> np.ndarray:
    scale = min(1.0, _LARGEST_SHOWN / max(picture.size))
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return as_array(picture.resize(size, reducing_gap=2.0) if scale < 1 else picture)

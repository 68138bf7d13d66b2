"""What the Analyze tab does, free of any web framework: one forward pass, and what it says."""

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.decoding import check_memory, open_header
from dermlens.data.images import fit_image, open_rgb, read_bytes
from dermlens.errors import DataError
from dermlens.explainers.output import Logit
from dermlens.explainers.target import PREDICTED, resolve_targets
from dermlens.files import plain
from dermlens.model.bundle import Bundle
from dermlens.report.comparer import no_activation_maps
from dermlens.report.facts import NO_BREAK, Answer, answer_of, of_skin, words
from dermlens.report.html import NOTICE
from dermlens.serve.usability import Usability, usability

MAX_BYTES = 20 * 2**20
"""Of one file."""
MAX_PIXELS = 50_000_000
"""Of one image; the cameras of phones reach about as many."""
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""Of ``decoding.FORMATS``; a GIF is no photograph."""
_KINDS = "JPEG, PNG, TIFF, BMP or WebP"

_DISPLAY_WIDTH = 640
_MOST_MAPS = 32
"""Classes up to which the maps of all are kept."""


def read_upload(path: Path) -> Any:
    """Return an uploaded image as an upright RGB PIL image.

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
    content = read_bytes(path)
    _check_header(content)
    try:
        return open_rgb(content, "The file")
    except DataError:
        raise DataError(
            "The file cannot be decoded: it is damaged or cut off. Save the image again."
        ) from None


def _check_header(content: bytes) -> None:
    """Read format, pixel counts and the memory that decoding takes, which needs no decoding."""
    from PIL import Image

    try:
        header = open_header(content)
    except Image.DecompressionBombError:
        raise DataError(_too_many("far more")) from None
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

    ``image`` is what the model saw, uint8 (H, W, 3); ``display`` the same part of the photograph at
    a size for screens; ``maps`` Grad-CAM of every class, float32 (C, H, W), or (0, H, W) where one
    pass does not give it. With ``reasons`` the model abstains; ``remarks`` are doubts.
    """

    image: np.ndarray
    display: np.ndarray
    maps: np.ndarray
    usability: Usability | None = None
    ood_score: float | None = None
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def abstains(self) -> bool:
        """Whether the model gives no answer for this image."""
        return bool(self.reasons)


class Actions:
    """Analyzes images with one model that is loaded and traced once."""

    def __init__(self, bundle: Bundle) -> None:
        from dermlens.explainers.grad_cam import GradCAM

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

    def _pass(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, float | None]:
        """Return logits (1, C), the maps that come with them, and the out-of-distribution score."""
        detector, scores = self.bundle.ood_detector, None
        maps = np.zeros((0, *self.bundle.input_size), np.float32)
        if self._forward is not None:
            logits, drawn, features = (tensor.numpy() for tensor in self._forward(image[None]))
            maps, scores = drawn[0], None if detector is None else detector.scores(features)
        elif detector is None:
            logits = self._predictor.logits(image[None])
        else:
            logits, scores = self.bundle.logits_and_ood_scores(image[None], batch_size=1)
        return logits, maps, None if scores is None else float(scores[0])

    def analyze(self, path: Path) -> Analysis:
        """Classify an image file and draw the Grad-CAM of every class: one forward pass."""
        picture = read_upload(path)
        image = fit_image(picture, self.bundle.input_size)
        found = replace(self.analyze_image(image), display=self._display(picture))
        # What is asked of a photograph there is about skin lesions.
        checked = usability(picture, image) if of_skin(self.bundle.labels) else None
        problems = () if checked is None else checked.problems
        return replace(
            found,
            usability=checked,
            reasons=(*problems, *found.reasons),
            remarks=() if problems else self._remarks(picture),
        )

    def analyze_image(self, image: np.ndarray) -> Analysis:
        """Classify what the model sees; the photograph itself is not judged."""
        logits, maps, score = self._pass(image)
        return Analysis(
            **vars(answer_of(self.bundle, logits[0])),
            image=image,
            display=image,
            maps=maps,
            ood_score=score,
            reasons=self._unlike(score),
        )

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
        labels = self.bundle.labels.labels
        named = [
            (one.name if one.name == one.code else f"{one.name} ({one.code})", one.code)
            for one in labels
        ]
        return [(first or f"The most probable {self.words.one}", value), *named]

    def facts(self, analysis: Analysis) -> dict[str, Any]:
        """Return an analysis as JSON types."""
        bundle, checked, detector = self.bundle, analysis.usability, self.bundle.ood_detector
        return {
            "abstain": analysis.abstains,
            "reasons": list(analysis.reasons),
            "name": bundle.labels.labels[analysis.predicted].name,
            **analysis.to_json(bundle.classes),
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

    def _display(self, picture: Any) -> np.ndarray:
        height, width = self.bundle.input_size
        wide = max(width, min(_DISPLAY_WIDTH, picture.width))
        return fit_image(picture, (round(wide * height / width), wide))

    def _remarks(self, picture: Any) -> tuple[str, ...]:
        height, width = self.bundle.input_size
        if picture.height >= height and picture.width >= width:
            return ()
        return (
            f"The image has only {picture.width} x {picture.height} pixels; the model looks at "
            f"{width} x {height}. Fine structures are missing.",
        )

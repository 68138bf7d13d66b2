"""What the Analyze tab does, free of any web framework: one forward pass, and what it says."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.images import fit_image
from dermlens.diagnoses import by_code
from dermlens.explain.target import PREDICTED, resolve_targets
from dermlens.model.bundle import Bundle
from dermlens.serve.app_reading import read_upload
from dermlens.serve.usability import Usability, usability

NOTE = "Research and education only, not a medical device."
_DISPLAY_WIDTH = 640


@dataclass(frozen=True)
class Analysis:
    """Everything one forward pass says about an image.

    Attributes:
        image: What the model saw, uint8 (H, W, 3).
        display: The same part of the photograph at a size for screens, uint8 (h, w, 3).
        logits: float32 (C,).
        probabilities: Calibrated, float64 (C,).
        predicted: Position of the most probable class.
        prediction_set: Class positions that cannot be excluded, most probable first; None where
            the bundle carries no sets.
        flags: Operating points by name: whether the image lies above the threshold.
        maps: Grad-CAM of every class, float32 (C, H, W).
        usability: What was measured on the photograph; None where it was not.
        outlier_score: Distance from the training images; None where the bundle has no detector.
        reasons: Sentences on why the model abstains; empty if it answers.
        remarks: Sentences on what makes the image doubtful.
    """

    image: np.ndarray
    display: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    predicted: int
    prediction_set: tuple[int, ...] | None
    flags: dict[str, bool]
    maps: np.ndarray
    usability: Usability | None = None
    outlier_score: float | None = None
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def abstains(self) -> bool:
        """Whether the model gives no answer for this image."""
        return bool(self.reasons)


class Actions:
    """Analyzes images with one model that is loaded and traced once.

    Args:
        bundle: Trained model.

    Attributes:
        bundle: Trained model.
        pass_seconds: Time of one forward pass of one image, measured by ``warm_up``.
    """

    def __init__(self, bundle: Bundle) -> None:
        import tensorflow as tf

        from dermlens.serve.export_graph import ClassifierGraph

        self.bundle = bundle
        self.pass_seconds = float("nan")
        graph = ClassifierGraph(bundle)
        pixels = tf.TensorSpec((1, *bundle.input_size, 3), tf.uint8)
        self._forward = tf.function(
            lambda images: graph.all_maps_and_features(tf.cast(images, tf.float32)),
            input_signature=[pixels],
        )

    def warm_up(self) -> None:
        """Trace the network, so that the first image does not wait for it, and time a pass."""
        blank = np.zeros((1, *self.bundle.input_size, 3), np.uint8)
        self._forward(blank)
        start = time.perf_counter()
        self._forward(blank)
        self.pass_seconds = time.perf_counter() - start

    def analyze(self, path: Path) -> Analysis:
        """Classify an image file and draw the Grad-CAM of every class: one forward pass.

        Raises:
            DataError: If the file is too large or cannot be decoded.
        """
        picture = read_upload(path)
        found = self.analyze_image(fit_image(picture, self.bundle.input_size))
        checked = usability(picture)
        return replace(
            found,
            display=self._display(picture),
            usability=checked,
            reasons=(*checked.problems, *found.reasons),
            remarks=() if checked.problems else self._remarks(picture),
        )

    def analyze_image(self, image: np.ndarray) -> Analysis:
        """Classify what the model sees; the photograph itself is not judged.

        Args:
            image: uint8 (H, W, 3) at the model's input size.
        """
        logits, maps, features = (tensor.numpy() for tensor in self._forward(image[None]))
        calibration, detector = self.bundle.calibration, self.bundle.outlier
        probabilities = calibration.probabilities(logits)
        flags = {name: bool(up[0]) for name, up in calibration.flags(probabilities).items()}
        score = None if detector is None else float(detector.scores(features)[0])
        return Analysis(
            image=image,
            display=image,
            logits=logits[0],
            probabilities=probabilities[0],
            predicted=int(resolve_targets(None, logits, self.bundle.labels)[0]),
            prediction_set=calibration.set_of(probabilities[0]),
            flags=flags,
            maps=maps[0],
            outlier_score=score,
            reasons=self._unlike(score),
        )

    def target(self, analysis: Analysis, target: str) -> int:
        """Return the class position that a choice of target stands for."""
        return int(resolve_targets(target, analysis.logits[None], self.bundle.labels)[0])

    def target_choices(
        self, first: tuple[str, str] = ("The most probable diagnosis", PREDICTED)
    ) -> list[tuple[str, str]]:
        """Return (text, value) of the diagnoses that can be explained."""
        named = [(f"{by_code(code).name} ({code})", code) for code in self.bundle.classes]
        return [first, *named]

    def facts(self, analysis: Analysis) -> dict[str, Any]:
        """Return an analysis as JSON types."""
        bundle, checked = self.bundle, analysis.usability
        detector = bundle.outlier
        return {
            "abstain": analysis.abstains,
            "reasons": list(analysis.reasons),
            "predicted": bundle.classes[analysis.predicted],
            "name": by_code(bundle.classes[analysis.predicted]).name,
            "prediction_set": set_codes(bundle, analysis),
            "probabilities": by_class(bundle, analysis.probabilities),
            "logits": by_class(bundle, analysis.logits),
            "flags": analysis.flags,
            "outlier_score": analysis.outlier_score,
            "outlier_threshold": None if detector is None else detector.threshold,
            "usability": None if checked is None else _measured(checked),
            "remarks": list(analysis.remarks),
            "synthetic_model": bundle.synthetic,
            "note": NOTE,
        }

    def _unlike(self, score: float | None) -> tuple[str, ...]:
        detector = self.bundle.outlier
        if detector is None or score is None or not score > detector.threshold:
            return ()
        ordinary = 100 * (1 - detector.false_rejects)
        return (
            f"Unlike the training images: its distance from them is {score:.2f}, and "
            f"{ordinary:.0f}\N{NO-BREAK SPACE}% of ordinary images lie below "
            f"{detector.threshold:.2f}. Perhaps it is no dermatoscopic image, or of something the "
            "model has never seen.",
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


def set_codes(bundle: Bundle, analysis: Analysis) -> list[str] | None:
    """Return the codes that cannot be excluded, most probable first; None if not known."""
    if analysis.prediction_set is None:
        return None
    return [bundle.classes[k] for k in analysis.prediction_set]


def by_class(bundle: Bundle, values: np.ndarray) -> dict[str, float]:
    """Return one number per diagnosis by its code."""
    return {code: float(value) for code, value in zip(bundle.classes, values, strict=True)}


def _measured(checked: Usability) -> dict[str, Any]:
    return {**vars(checked), "problems": list(checked.problems)}

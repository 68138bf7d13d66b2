"""What the web interface does, free of any web framework: analyze and explain one image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.images import fit_image, open_rgb, read_bytes
from dermlens.diagnoses import by_code, class_index
from dermlens.errors import DataError, UsageError
from dermlens.explain.base import Attribution, Explainer
from dermlens.explain.registry import METHODS, create, method
from dermlens.model.bundle import Bundle
from dermlens.report.explanation import describe

DECISION = "decision"
"""Stands for the diagnosis that the stored rule decides on, where a target is asked for."""
MAX_BYTES = 20 * 2**20
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
        decision: Class position chosen by the stored rule.
        flags: Operating points by name: whether the image lies above the threshold.
        maps: Grad-CAM of every class, float32 (C, H, W).
        remarks: Sentences on what makes the image doubtful.
    """

    image: np.ndarray
    display: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    decision: int
    flags: dict[str, bool]
    maps: np.ndarray
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """State of a running explanation: what is finished and what comes next.

    Attributes:
        results: Finished methods by name, in the order asked for.
        target: Class position explained.
        running: Name of the method that runs now; None at the end.
        total: How many methods were asked for.
    """

    results: dict[str, Attribution]
    target: int
    running: str | None
    total: int


class Actions:
    """Analyzes and explains images with one model that is loaded and traced once.

    Args:
        bundle: Trained model.
    """

    def __init__(self, bundle: Bundle) -> None:
        import tensorflow as tf

        from dermlens.serve.export_graph import ClassifierGraph

        self.bundle = bundle
        graph = ClassifierGraph(bundle)
        pixels = tf.TensorSpec((1, *bundle.input_size, 3), tf.uint8)
        self._forward = tf.function(
            lambda images: graph.all_maps(tf.cast(images, tf.float32)), input_signature=[pixels]
        )
        self._explainers: dict[str, Explainer] = {}

    def warm_up(self) -> None:
        """Trace the network, so that the first image does not wait for it."""
        self._forward(np.zeros((1, *self.bundle.input_size, 3), np.uint8))

    def analyze(self, path: Path) -> Analysis:
        """Classify an image file and draw the Grad-CAM of every class: one forward pass.

        Raises:
            DataError: If the file is too large or cannot be decoded.
        """
        picture = self._read(path)
        image = fit_image(picture, self.bundle.input_size)
        logits, maps = (tensor.numpy()[0] for tensor in self._forward(image[None]))
        calibration = self.bundle.calibration
        probabilities = calibration.probabilities(logits[None])
        flags = {
            name: bool(point.score(probabilities, self.bundle.classes)[0] >= point.threshold)
            for name, point in calibration.operating_points.items()
        }
        return Analysis(
            image=image,
            display=self._display(picture),
            logits=logits,
            probabilities=probabilities[0],
            decision=int(calibration.decide(logits[None])[0]),
            flags=flags,
            maps=maps,
            remarks=self._remarks(picture),
        )

    def explain(
        self, path: Path, methods: Sequence[str], target: str = DECISION, seed: int = 0
    ) -> Iterator[tuple[Analysis, Step]]:
        """Explain an image file by several methods, one after the other.

        Args:
            path: Image file.
            methods: Names in the registry.
            target: Code of the diagnosis to explain, or ``DECISION``.
            seed: Sets everything random.

        Yields:
            The analysis and the state before each method and after the last.

        Raises:
            DataError: If the file cannot be read.
            UsageError: If no method is given, or a name or the target is unknown.
        """
        names = [method(name).name for name in dict.fromkeys(methods)]
        if not names:
            raise UsageError("No method is chosen. Tick at least one.")
        wanted = None if target == DECISION else class_index(target, self.bundle.classes)
        analysis = self.analyze(path)
        goal = analysis.decision if wanted is None else wanted
        results: dict[str, Attribution] = {}
        for name in names:
            yield analysis, Step(dict(results), goal, name, len(names))
            results[name] = self._explainer(name).attribute(analysis.image[None], goal, seed=seed)
        yield analysis, Step(results, goal, None, len(names))

    def target(self, analysis: Analysis, target: str) -> int:
        """Return the class position that a choice of target stands for."""
        if target == DECISION:
            return analysis.decision
        return class_index(target, self.bundle.classes)

    def target_choices(self) -> list[tuple[str, str]]:
        """Return (text, value) of the diagnoses that can be explained."""
        named = [(f"{by_code(code).name} ({code})", code) for code in self.bundle.classes]
        return [("The model's decision", DECISION), *named]

    def method_choices(self) -> list[tuple[str, str]]:
        """Return (text, value) of the registered methods."""
        return [(entry.title, name) for name, entry in METHODS.items()]

    def facts(self, analysis: Analysis) -> dict[str, Any]:
        """Return an analysis as JSON types."""
        bundle = self.bundle
        return {
            "decision": bundle.classes[analysis.decision],
            "name": by_code(bundle.classes[analysis.decision]).name,
            "probabilities": _by_class(bundle, analysis.probabilities),
            "logits": _by_class(bundle, analysis.logits),
            "flags": analysis.flags,
            "decision_rule": bundle.calibration.rule,
            "remarks": list(analysis.remarks),
            "synthetic_model": bundle.synthetic,
            "note": NOTE,
        }

    def explained_facts(self, step: Step) -> dict[str, Any]:
        """Return what is known about the finished methods as JSON types."""
        return {
            "target": self.bundle.classes[step.target],
            "running": step.running,
            "methods": {name: _plain(describe(result)) for name, result in step.results.items()},
            "note": NOTE,
        }

    def _explainer(self, name: str) -> Explainer:
        if name not in self._explainers:
            self._explainers[name] = create(name, self.bundle.model, classes=self.bundle.classes)
        return self._explainers[name]

    def _read(self, path: Path) -> Any:
        content = read_bytes(path)
        if len(content) > MAX_BYTES:
            raise DataError(
                f"The file has {len(content) / 2**20:.0f} MB; up to {MAX_BYTES // 2**20} MB are "
                "taken. Scale the image down first."
            )
        return open_rgb(content, "The file")

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


def _by_class(bundle: Bundle, values: np.ndarray) -> dict[str, float]:
    return {code: float(value) for code, value in zip(bundle.classes, values, strict=True)}


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """Turn numpy scalars into JSON types; what is not finite becomes null."""
    values = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in facts.items()
    }
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in values.items()
    }

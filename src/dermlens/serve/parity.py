"""Does an exported artifact say what the Keras model says? Measured before it is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.images import fit_image
from dermlens.data.synthetic import draw
from dermlens.errors import ModelError
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.integrated_gradients import IntegratedGradients
from dermlens.explainers.target import resolve_targets
from dermlens.extras import optional
from dermlens.labels import HAM10000
from dermlens.model.bundle import Bundle
from dermlens.quality.agreement import pearson
from dermlens.report.comparer import no_activation_maps
from dermlens.report.html import markdown_table

TITLES = {
    "saved_model": "SavedModel",
    "float32": "LiteRT float32",
    "float16": "LiteRT float16",
    "dynamic": "LiteRT int8, dynamic ranges",
    "int8": "LiteRT int8, fixed ranges",
}
DRAWN_IMAGES = 35
_DRAWN_SIZE = (300, 400)
_MAP_FIGURES = ("mean_map_correlation", "min_map_correlation", "max_map_difference")
_INTEGRATED = 8
"""Images whose Integrated Gradients are compared: each takes 18 forward passes."""


@dataclass(frozen=True)
class Outputs:
    """What an artifact says about N images, as far as it has it; maps (N, H, W)."""

    probabilities: np.ndarray
    maps: np.ndarray | None
    prediction_sets: np.ndarray | None
    flags: dict[str, np.ndarray]


Runner = Callable[[np.ndarray, np.ndarray], Outputs]
"""Runs an artifact on uint8 images (N, H, W, 3), with targets (N,) for the maps."""


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact may be from the Keras model: largest differences, least agreement.

    ``mean_probability`` counts where classes are not known, ``balanced_accuracy`` where they are.
    """

    probability: float = 1.0
    mean_probability: float = 1.0
    balanced_accuracy: float = 1.0
    map_correlation: float = 0.0
    same_answer: float = 0.0


TOLERANCES: dict[str, Tolerance] = {
    "saved_model": Tolerance(probability=1e-4, map_correlation=0.999, same_answer=0.99),
    "float32": Tolerance(probability=1e-4, map_correlation=0.999, same_answer=0.99),
    "float16": Tolerance(probability=1e-2, map_correlation=0.999),
    "dynamic": Tolerance(mean_probability=0.02, balanced_accuracy=0.02, map_correlation=0.9),
    "int8": Tolerance(mean_probability=0.02, balanced_accuracy=0.02, map_correlation=0.9),
}


def drawn_images(count: int = DRAWN_IMAGES, seed: int = 0) -> list[np.ndarray]:
    """Draw lesions of all kinds in turn to compare on, uint8 (300, 400, 3)."""
    return [
        draw(HAM10000.codes[number % 7], seed=seed + number, size=_DRAWN_SIZE)[0]
        for number in range(count)
    ]


class Reference:
    """What the Keras model says about the images that artifacts are compared on."""

    def __init__(
        self, bundle: Bundle, originals: Sequence[np.ndarray], labels: np.ndarray | None = None
    ) -> None:
        from PIL import Image

        self.bundle, self.originals, self.labels = bundle, originals, labels
        size = bundle.input_size
        self.fitted = np.stack([fit_image(Image.fromarray(o), size) for o in originals])

        self.logits = bundle.logits(self.fitted, batch_size=8)
        self.probabilities = bundle.probabilities(self.logits)
        self.predicted = resolve_targets(None, self.logits, bundle.labels)

    @cached_property
    def maps(self) -> np.ndarray | None:
        """Grad-CAM of the most probable classes, float32 (N, H, W); None where there is none."""
        if no_activation_maps(self.bundle):
            return None
        return GradCAM(self.bundle).attribute(self.fitted, self.predicted, batch_size=8).maps

    @cached_property
    def mobile(self) -> Any:
        """What LiteRT files are made of, frozen once for all of them."""
        from dermlens.serve.export_graph import frozen_mobile_function

        return frozen_mobile_function(self.bundle)

    @cached_property
    def integrated(self) -> np.ndarray:
        """Integrated Gradients of the first images, float32 (n, H, W)."""
        explainer = IntegratedGradients(self.bundle, tolerance=None)
        return explainer.attribute(self.fitted[:_INTEGRATED], self.predicted[:_INTEGRATED]).maps

    def balanced_accuracy(self, probabilities: np.ndarray) -> float | None:
        """Return the mean recall of the balanced rule, or None without labels."""
        if self.labels is None:
            return None
        from scipy.special import logit

        calibration = self.bundle.calibration
        shares = np.clip(probabilities, 1e-30, 1.0)
        softmax = self.bundle.link == "softmax"
        scaled = np.log(shares) if softmax else logit(shares.clip(0, 1 - 1e-15))
        right = calibration.balanced(scaled * calibration.temperature) == self.labels
        return float(np.mean([right[self.labels == c].mean() for c in np.unique(self.labels)]))


def measure(
    reference: Reference,
    run: Runner,
    path: Path,
    kind: str,
    *,
    integrate: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Compare an artifact, a file or folder, with the Keras model.

    Returns:
        What ``parity.json`` holds of it. Shares are of images; ``*_own_fit`` is where the artifact
        scales the original image itself; a map's difference is relative to its largest value;
        None stands for what the artifact, the bundle or the images do not have.

    Raises:
        ModelError: If a value of the artifact is not finite, or it disagrees beyond the
            tolerance.
    """
    outputs = run(reference.fitted, reference.predicted)
    found, maps, exact = outputs.probabilities, outputs.maps, reference.maps
    if not (np.isfinite(found).all() and (maps is None or np.isfinite(maps).all())):
        raise ModelError(
            f"The exported {path.name} gives values that are not finite, so it was not kept. "
            "Check that the bundle itself predicts (dermlens predict)."
        )
    difference = np.abs(found - reference.probabilities)
    drawn: dict[str, Any] = dict.fromkeys(_MAP_FIGURES)
    if maps is not None and exact is not None:
        correlations = list(map(correlation, exact, maps))
        largest = np.maximum(exact.max(axis=(1, 2)), 1e-6)
        apart = float((np.abs(exact - maps).max(axis=(1, 2)) / largest).max())
        figures = (float(np.mean(correlations)), min(correlations), apart)
        drawn = dict(zip(_MAP_FIGURES, figures, strict=True))
    accuracy = reference.balanced_accuracy(found)
    known = reference.balanced_accuracy(reference.probabilities)
    parity = {
        "images": len(found),
        "max_probability_difference": float(difference.max()),
        "mean_probability_difference": float(difference.mean()),
        "top1_agreement": float((found.argmax(1) == reference.probabilities.argmax(1)).mean()),
        **_same_answers(reference, outputs),
        "balanced_accuracy": accuracy,
        "balanced_accuracy_change": None if accuracy is None or known is None else accuracy - known,
        **drawn,
        "max_probability_difference_own_fit": _own_fit(reference, run, kind),
        "min_integrated_gradients_correlation": _integrated(reference, integrate),
        "bytes": size_on_disk(path),
    }
    allowed = TOLERANCES[kind]
    clear = _same_answers(reference, outputs, margin=allowed.probability)
    if wrong := _disagreements({**parity, **clear}, allowed):
        raise ModelError(
            f"The exported {path.name} differs from the Keras model ({'; '.join(wrong)}), so it "
            "was not kept. Use another format."
        )
    return parity


def _same_answers(reference: Reference, outputs: Outputs, margin: float = 0.0) -> dict[str, Any]:
    """Return the shares of images with the same prediction set and with the same flags.

    Probabilities within ``margin`` of a threshold or of the largest count as undecided, where
    either answer is the same.
    """
    calibration, exact = reference.bundle.calibration, reference.probabilities
    sets, share = calibration.prediction_sets, None
    if sets is not None and outputs.prediction_sets is not None:
        least, most = (sets.contain(exact + sign * margin) for sign in (-1, 1))
        open_ = (least != most) | (exact > exact.max(axis=1, keepdims=True) - 2 * margin)
        same_sets = (outputs.prediction_sets == sets.contain(exact)) | (open_ & (margin > 0))
        share = float(same_sets.all(axis=1).mean())
    same = np.ones(len(exact), bool)
    for name, point in calibration.operating_points.items():
        score = point.score(exact, calibration.classes)
        open_ = np.abs(score - point.threshold) < margin * len(point.codes)
        same &= (outputs.flags[name] == (score >= point.threshold)) | open_
    return {"same_prediction_sets": share, "same_flags": float(same.mean())}


def _own_fit(reference: Reference, run: Runner, kind: str) -> float | None:
    if kind != "saved_model":
        return None
    goals = reference.predicted
    whole = [
        run(o[None], goals[i : i + 1]).probabilities for i, o in enumerate(reference.originals)
    ]
    return float(np.abs(np.concatenate(whole) - reference.probabilities).max())


def _integrated(
    reference: Reference, integrate: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
) -> float | None:
    if integrate is None:
        return None
    count = len(reference.integrated)
    found = integrate(reference.fitted[:count], reference.predicted[:count])
    return min(map(correlation, reference.integrated, found))


def _disagreements(parity: dict[str, Any], allowed: Tolerance) -> list[str]:
    """Say in which figures an artifact is beyond what is allowed."""
    wrong = []
    if (most := parity["max_probability_difference"]) > allowed.probability:
        wrong.append(f"probabilities by up to {most:.2g}, allowed {allowed.probability:.0e}")
    mean, change = parity["mean_probability_difference"], parity["balanced_accuracy_change"]
    if change is None and mean > allowed.mean_probability:
        wrong.append(
            f"probabilities by {mean:.2g} in the mean, allowed {allowed.mean_probability:g}"
        )
    if change is not None and -change > allowed.balanced_accuracy:
        wrong.append(f"balanced accuracy by {change:.3f}, allowed -{allowed.balanced_accuracy:g}")
    for key, what in (
        ("mean_map_correlation", "map correlation"),
        ("min_integrated_gradients_correlation", "correlation of Integrated Gradients"),
    ):
        if parity[key] is not None and parity[key] < allowed.map_correlation:
            wrong.append(f"{what} {parity[key]:.4f}, at least {allowed.map_correlation}")
    for key, what in (("same_prediction_sets", "prediction set"), ("same_flags", "flags")):
        if parity[key] is not None and parity[key] < allowed.same_answer:
            wrong.append(
                f"{what} of {100 * (1 - parity[key]):.1f} % of the images, allowed "
                f"{100 * (1 - allowed.same_answer):.0f} %"
            )
    return wrong


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Pearson correlation of two maps; constant maps agree where they are equal.

    Example:
        >>> correlation(np.eye(2), 3 * np.eye(2) + 1), correlation(np.ones(4), np.ones(4))
        (1.0, 1.0)
    """
    if np.allclose(first, second, atol=1e-5):
        return 1.0
    constant = min(np.ptp(first), np.ptp(second)) == 0
    return 0.0 if constant else round(float(pearson(first[None], second[None])[0]), 9)


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def saved_model_runner(path: Path) -> tuple[Runner, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Return a runner of an exported SavedModel, and one of its Integrated Gradients."""
    import tensorflow as tf

    signatures = tf.saved_model.load(str(path)).signatures

    def call(name: str, images: np.ndarray, **more: Any) -> Any:
        return signatures[name](images=tf.constant(images), **more)

    def run(images: np.ndarray, targets: np.ndarray) -> Outputs:
        parts = []
        for start in range(0, len(images), 16):
            part, goals = images[start : start + 16], tf.constant(targets[start : start + 16])
            parts.append(dict(call("serving_default", part)))
            if "explain_grad_cam" in signatures:
                parts[-1]["maps"] = call("explain_grad_cam", part, targets=goals)["maps"]
        return _joined([{k: v.numpy() for k, v in part.items()} for part in parts])

    def integrate(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        goals = tf.constant(targets)
        return call("explain_integrated_gradients", images, targets=goals)["maps"].numpy()

    return run, integrate


def tflite_runner(path: Path) -> Runner:
    """Return a runner of an exported LiteRT file."""
    runner = (
        optional("ai_edge_litert.interpreter")
        .Interpreter(model_path=str(path), num_threads=2)
        .get_signature_runner()
    )

    def run(images: np.ndarray, targets: np.ndarray) -> Outputs:
        parts = []
        for image, goal in zip(images, targets, strict=True):
            out = runner(image=image[None].astype(np.float32))
            part = {k: (v[:, goal] if k == "maps" else v).copy() for k, v in out.items()}
            parts.append(part)
        return _joined(parts)

    return run


def _joined(parts: Sequence[dict[str, np.ndarray]]) -> Outputs:
    """Put the named outputs of several batches together."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    flags = {k[len("flag_") :]: v.astype(bool) for k, v in whole.items() if k.startswith("flag_")}
    sets, maps = whole.get("prediction_set"), whole.get("maps")
    return Outputs(whole["probabilities"], maps, sets, flags)


def parity_markdown(report: dict[str, Any]) -> str:
    """Return what was measured of each artifact as Markdown."""
    rows = [_row(name, found) for name, found in report["artifacts"].items()]
    known = report["balanced_accuracy"]
    accuracy = "" if known is None else f" Balanced accuracy of the Keras model: {known:.4f}."
    return (
        f"Compared on {report['compared_on']}.{accuracy}\n\n{markdown_table(pd.DataFrame(rows))}\n"
    )


def _row(name: str, found: dict[str, Any]) -> dict[str, str]:
    change = found["balanced_accuracy_change"]
    return {
        "artifact": TITLES[name],
        "size": f"{found['bytes'] / 1e6:.1f} MB",
        "probabilities, max (mean) difference": f"{found['max_probability_difference']:.1e} "
        f"({found['mean_probability_difference']:.1e})",
        "same top class": f"{100 * found['top1_agreement']:.1f} %",
        "same prediction set": _share(found["same_prediction_sets"]),
        "same flags": _share(found["same_flags"]),
        "balanced accuracy": "–" if change is None else f"{change:+.4f}",
        "Grad-CAM correlation, mean (least)": "–"
        if found["mean_map_correlation"] is None
        else f"{found['mean_map_correlation']:.6f} ({found['min_map_correlation']:.4f})",
    }


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"

"""Does an exported artifact say what the Keras model says? Measured before it is kept."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.images import fit_image
from dermlens.data.synthetic import draw
from dermlens.errors import ModelError
from dermlens.explain.grad_cam import GradCAM
from dermlens.model.bundle import Bundle

TOLERANCE = 1e-4
"""Largest difference of a probability that a float32 artifact may show."""
MIN_MAP_CORRELATION = 0.999
DRAWN_IMAGES = 35
_DRAWN_SIZE = (300, 400)

Runner = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From uint8 images (N, H, W, 3) and targets (N,) to probabilities (N, C) and maps (N, h, w)."""


@dataclass(frozen=True)
class Parity:
    """Agreement of an artifact with the Keras model.

    Attributes:
        images: How many images were compared.
        max_probability_difference: Largest, over images and classes, on the same pixels.
        mean_probability_difference: Mean of the same.
        top1_agreement: Share of images whose most probable class is the same.
        min_map_correlation: Smallest Pearson correlation of the Grad-CAM maps of an image.
        max_map_difference: Largest, relative to the map's largest value.
        max_probability_difference_own_fit: As the first, where the artifact scales the original
            image itself; None where it does not scale.
        bytes: Size on disk.
    """

    images: int
    max_probability_difference: float
    mean_probability_difference: float
    top1_agreement: float
    min_map_correlation: float
    max_map_difference: float
    max_probability_difference_own_fit: float | None
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def drawn_images(count: int = DRAWN_IMAGES, seed: int = 0) -> list[np.ndarray]:
    """Draw images of all classes to compare on, uint8 (300, 400, 3)."""
    from dermlens.diagnoses import CODES

    return [
        draw(CODES[number % len(CODES)], seed=seed + number, size=_DRAWN_SIZE)[0]
        for number in range(count)
    ]


def measure(
    bundle: Bundle,
    originals: Sequence[np.ndarray],
    run: Runner,
    path: Path,
    *,
    fits_itself: bool,
) -> Parity:
    """Compare an artifact with the Keras model on images.

    Args:
        bundle: What was exported.
        originals: uint8 (H, W, 3) each, any size.
        run: Runs the artifact.
        path: File or folder of the artifact.
        fits_itself: Whether it also takes images of other sizes.

    Raises:
        ModelError: If a value of the artifact is not finite, or it disagrees beyond the
            tolerance.
    """
    from PIL import Image

    fitted = np.stack([fit_image(Image.fromarray(o), bundle.input_size) for o in originals])
    logits = bundle.logits(fitted, batch_size=8)
    decisions = bundle.calibration.decide(logits).astype(np.int32)
    expected = bundle.calibration.probabilities(logits)
    explainer = GradCAM(bundle.model, classes=bundle.classes)
    maps = explainer.attribute(fitted, decisions, batch_size=8).maps
    found, found_maps = run(fitted, decisions)
    if not (np.isfinite(found).all() and np.isfinite(found_maps).all()):
        raise ModelError(
            f"The exported {path.name} gives values that are not finite, so it was not kept. "
            "Check that the bundle itself predicts (dermlens predict)."
        )
    own_fit = None
    if fits_itself:
        whole = np.concatenate(
            [run(o[None], decisions[i : i + 1])[0] for i, o in enumerate(originals)]
        )
        own_fit = float(np.abs(whole - expected).max())
    difference = np.abs(found - expected)
    largest = np.maximum(maps.max(axis=(1, 2)), 1e-6)
    parity = Parity(
        images=len(originals),
        max_probability_difference=float(difference.max()),
        mean_probability_difference=float(difference.mean()),
        top1_agreement=float((found.argmax(1) == expected.argmax(1)).mean()),
        min_map_correlation=min(map(correlation, maps, found_maps)),
        max_map_difference=float((np.abs(maps - found_maps).max(axis=(1, 2)) / largest).max()),
        max_probability_difference_own_fit=own_fit,
        bytes=size_on_disk(path),
    )
    _refuse_difference(parity, path)
    return parity


def _refuse_difference(parity: Parity, path: Path) -> None:
    if (
        parity.max_probability_difference > TOLERANCE
        or parity.min_map_correlation < MIN_MAP_CORRELATION
    ):
        raise ModelError(
            f"The exported {path.name} differs from the Keras model (probabilities by up to "
            f"{parity.max_probability_difference:.2g}, allowed {TOLERANCE:.0e}; map correlation "
            f"{parity.min_map_correlation:.4f}, at least {MIN_MAP_CORRELATION}), so it was not "
            "kept. Use another format."
        )


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Pearson correlation of two maps; constant maps agree where they are equal.

    Example:
        >>> correlation(np.eye(2), 3 * np.eye(2) + 1), correlation(np.ones(4), np.ones(4))
        (1.0, 1.0)
    """
    first, second = first.ravel().astype(np.float64), second.ravel().astype(np.float64)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 1.0 if np.allclose(first, second, atol=1e-5) else 0.0
    return float(round(np.corrcoef(first, second)[0, 1], 9))


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def saved_model_runner(path: Path) -> Runner:
    """Return a runner of an exported SavedModel."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    predict = loaded.signatures["serving_default"]
    explain = loaded.signatures["explain_grad_cam"]

    def run(images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = tf.constant(images)
        maps = explain(images=pixels, targets=tf.constant(targets))["maps"]
        return predict(images=pixels)["probabilities"].numpy(), maps.numpy()

    return run


def tflite_runner(path: Path) -> Runner:
    """Return a runner of an exported LiteRT file."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path), num_threads=2).get_signature_runner()

    def run(images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = [runner(image=image[None].astype(np.float32)) for image in images]
        maps = [out["maps"][0, goal].copy() for out, goal in zip(outputs, targets, strict=True)]
        return np.concatenate([out["probabilities"] for out in outputs]), np.stack(maps)

    return run

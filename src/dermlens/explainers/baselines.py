"""Baselines: what stands in for pixels that are taken away, and where paths begin."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.model.image_classifier import ImageClassifier

BASELINES: tuple[str, ...] = ("border", "blur", "black")
DARK = 40.0
"""Border pixels up to this mean of RGB are dark corners, as lenses leave them, not background."""
BORDER_RING = 0.1
"""Width, as a share of the shorter side, of the border ring whose color stands for nothing."""
_BLUR_SHARE = 0.12

Baseline = str | float | tuple[float, float, float] | np.ndarray
"""A name of ``BASELINES``, one gray value, one color RGB, or a whole image (H, W, 3)."""


def baseline_image(image: np.ndarray, baseline: Baseline) -> np.ndarray:
    """Return the replacement for an image's pixels.

    Args:
        image: uint8 or float RGB 0..255, (H, W, 3).
        baseline: ``"border"``: the median color of the border ring; ``"blur"``: the image blurred
            until no structure is left; ``"black"``; a gray value or a color RGB, 0..255; or an
            image of the same size.

    Returns:
        float32 (H, W, 3), 0..255.

    Raises:
        UsageError: If the name is unknown or the sizes differ.

    Example:
        >>> baseline_image(np.full((4, 6, 3), 200, np.uint8), "border")[0, 0].tolist()
        [200.0, 200.0, 200.0]
    """
    image = np.asarray(image, dtype=np.float32)
    if isinstance(baseline, str):
        _check_name(baseline)
        if baseline == "blur":
            from scipy.ndimage import gaussian_filter

            sigma = _BLUR_SHARE * min(image.shape[:2])
            return gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
        baseline = border_color(image) if baseline == "border" else 0.0
    value = np.asarray(baseline, dtype=np.float32)
    if value.shape not in ((), (3,), image.shape):
        raise UsageError(
            f"A baseline of shape {value.shape} does not fit an image of {image.shape}. Give a "
            "gray value, a color (three numbers) or an image of the same size."
        )
    return np.ascontiguousarray(np.broadcast_to(value, image.shape))


def _check_name(name: str) -> None:
    if name not in BASELINES:
        raise UsageError(
            f"Unknown baseline {name!r}. Use one of: {', '.join(BASELINES)}; or a color."
        )


def own_baseline(baseline: Any, classifier: ImageClassifier) -> Baseline:
    """Return a baseline that a user gave as ``baseline_image`` takes it, or raise UsageError.

    A name stays; a gray value, a color or an image is a photograph where it is uint8, else in the
    classifier's range of values.
    """
    if isinstance(baseline, str):
        _check_name(baseline)
        return baseline
    values = np.asarray(baseline)
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise UsageError(
            f"A baseline is a name ({', '.join(BASELINES)}) or finite numbers, not {baseline!r}."
        )
    if values.dtype == np.uint8:
        return values.astype(np.float32)
    low, high = classifier.value_range
    return ((values.astype(np.float64) - low) * (255.0 / (high - low))).astype(np.float32)


def own_baselines(baseline: Any, classifier: ImageClassifier) -> list[Baseline]:
    """Return one baseline or several, as ``own_baseline`` does; three plain numbers are a color."""
    several = isinstance(baseline, Sequence) and not isinstance(baseline, str)
    color = several and len(baseline) == 3 and all(np.isscalar(v) for v in baseline)
    if not several or (color and not any(isinstance(v, str) for v in baseline)):
        return [own_baseline(baseline, classifier)]
    if not len(baseline):
        raise UsageError("At least one baseline is needed.")
    return [own_baseline(one, classifier) for one in baseline]


def border_color(image: np.ndarray) -> np.ndarray:
    """Return the median color of the border ring, a tenth of the shorter side wide: (3,).

    Dark corners are left out, unless the whole ring is dark.
    """
    pixels = np.asarray(image, np.float32)[border_ring(image.shape[:2])]
    bright = pixels[pixels.mean(axis=1) > DARK]
    return np.median(bright if len(bright) > len(pixels) // 10 else pixels, axis=0)


def border_color_in_graph(image: Any, size: tuple[int, int]) -> Any:
    """Return what ``border_color`` does of a float32 tensor (H, W, 3), in TensorFlow operations."""
    import tensorflow as tf

    ring = border_ring(size)
    pixels = tf.gather(tf.reshape(image, (-1, 3)), np.flatnonzero(ring.ravel()))
    bright = tf.reduce_mean(pixels, axis=1) > DARK
    kept = tf.reduce_sum(tf.cast(bright, tf.int32))
    used = bright | (kept <= int(ring.sum()) // 10)
    count = tf.reduce_sum(tf.cast(used, tf.int32))
    ranked = tf.sort(tf.where(used[:, None], pixels, np.inf), axis=0)
    return (ranked[(count - 1) // 2] + ranked[count // 2]) / 2.0


def border_ring(size: tuple[int, ...], share: float = BORDER_RING) -> np.ndarray:
    """Return the ring along the border of an image of (height, width): bool (H, W).

    It is a share of the shorter side wide, and at least one pixel.

    Example:
        >>> border_ring((3, 4)).astype(int).tolist()
        [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    """
    width = max(1, round(share * min(size)))
    ring = np.ones(size, bool)
    ring[width:-width, width:-width] = False
    return ring

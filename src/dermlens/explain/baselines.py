"""What stands in for pixels that are taken away: baselines of a path, baselines of a patch."""

import numpy as np

from dermlens.errors import UsageError

BASELINES: tuple[str, ...] = ("border", "blur", "black")
DARK = 40.0
"""Border pixels up to this mean of RGB are the dark corners of a dermatoscope, not skin."""
BORDER_RING = 0.1
"""Width, as a share of the shorter side, of the border ring whose color stands for skin."""
_BLUR_SHARE = 0.12

Baseline = str | tuple[float, float, float] | np.ndarray
"""A name of ``BASELINES``, one color RGB 0..255, or a whole image (H, W, 3)."""


def baseline_image(image: np.ndarray, baseline: Baseline) -> np.ndarray:
    """Return the replacement for an image's pixels.

    Args:
        image: uint8 or float RGB 0..255, (H, W, 3).
        baseline: ``"border"``: the median color of the border ring, which is skin in nearly every
            photograph; ``"blur"``: the image blurred until no structure is left; ``"black"``; a
            color RGB 0..255; or an image of the same size.

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
        return _named(image, baseline)
    value = np.asarray(baseline, dtype=np.float32)
    if value.shape not in ((3,), image.shape):
        raise UsageError(
            f"A baseline of shape {value.shape} does not fit an image of {image.shape}. Give a color "
            "(three numbers 0..255) or an image of the same size."
        )
    return np.ascontiguousarray(np.broadcast_to(value, image.shape))


def _named(image: np.ndarray, name: str) -> np.ndarray:
    if name == "black":
        return np.zeros_like(image)
    if name == "border":
        return np.ascontiguousarray(np.broadcast_to(border_color(image), image.shape))
    if name == "blur":
        from scipy.ndimage import gaussian_filter

        sigma = _BLUR_SHARE * min(image.shape[:2])
        return gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    raise UsageError(f"Unknown baseline {name!r}. Use one of: {', '.join(BASELINES)}; or a color.")


def border_color(image: np.ndarray) -> np.ndarray:
    """Return the median color of the border ring, a tenth of the shorter side wide: (3,).

    Dark corners of the dermatoscope are left out, unless the whole ring is dark.
    """
    pixels = np.asarray(image, np.float32)[border_ring(image.shape[:2])]
    bright = pixels[pixels.mean(axis=1) > DARK]
    return np.median(bright if len(bright) > len(pixels) // 10 else pixels, axis=0)


def border_ring(size: tuple[int, ...], share: float = BORDER_RING) -> np.ndarray:
    """Return the ring along the image's border: bool (H, W).

    Args:
        size: (H, W).
        share: Width as a share of the shorter side; at least one pixel.

    Example:
        >>> border_ring((3, 4)).astype(int).tolist()
        [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    """
    width = max(1, round(share * min(size)))
    ring = np.ones(size, bool)
    ring[width:-width, width:-width] = False
    return ring

"""Outlines of lesions as files: shapes in 0/1, 0/127 or 0/255, in palettes, colors or alpha."""

from typing import Any

import numpy as np

from dermlens.data.decoding import to_rgb

EMPTY, FULL, CORNERS, OTHER_SHAPE = "empty", "full", "corners are lesion", "another shape"
FLAWS: tuple[str, ...] = (EMPTY, FULL, CORNERS, OTHER_SHAPE)
"""What can be wrong with an outline; see ``flaw_of``."""
UNUSABLE: tuple[str, ...] = (EMPTY, OTHER_SHAPE)
"""Flaws of outlines that are as good as none."""
_LOSSY = ("JPEG", "MPO", "WEBP")
_LEAST_CONTRAST = 32
_SHAPE_TOLERANCE = 0.02


def mask_of(image: Any, kind: str | None = None) -> Any:
    """Turn a decoded picture of an outline into gray values 0..255, lesion bright.

    The range in use counts, so that 0/1 and 0/127 are as good as 0/255. Of palettes the colors
    count, not their numbers: a part of HAM10000's outlines in circulation has them swapped. Where
    transparency varies and what can be seen is of one color, the transparency is the shape.

    Args:
        image: PIL image of any mode.
        kind: Format of the file, such as ``"JPEG"``, whose noise around one value is no range.

    Returns:
        PIL image, mode L; its lesion is what is 128 or brighter.
    """
    gray, alpha = _gray(image), _alpha(image)
    if alpha is not None:
        opaque = alpha.point([0] * 128 + [255] * 128)
        low, high = gray_range(gray, opaque)
        if high - low < _LEAST_CONTRAST:
            gray = alpha
        else:
            from PIL import Image

            gray = Image.composite(gray, Image.new("L", gray.size, 0), alpha)
    low, high = gray.getextrema()
    if high - low < (_LEAST_CONTRAST if kind in _LOSSY else 1):
        full = high >= 128 if kind in _LOSSY else high > 0
        return gray.point([255 if full else 0] * 256)
    values = (np.arange(256) - low) * 255 / (high - low)
    return gray.point(np.clip(np.round(values), 0, 255).astype(int).tolist())


def gray_range(gray: Any, where: Any) -> tuple[int, int]:
    """Return the darkest and the brightest value where a mask is not zero; 0, 0 if nowhere."""
    used = np.flatnonzero(gray.histogram(where))
    return (int(used[0]), int(used[-1])) if len(used) else (0, 0)


def _gray(image: Any) -> Any:
    if image.mode in ("RGBA", "LA", "PA"):
        return image.convert("RGB").convert("L")
    if "transparency" in image.info:
        return image.convert("RGBA").convert("RGB").convert("L")
    return to_rgb(image).convert("L")


def _alpha(image: Any) -> Any:
    """Return the alpha channel, or None where there is none or all is opaque."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else alpha


def flaw_of(mask: np.ndarray, image_size: tuple[int, int] | None = None) -> str | None:
    """Say what is wrong with an outline.

    Args:
        mask: bool (H, W).
        image_size: (height, width) of its image.

    Returns:
        ``EMPTY``: no lesion. ``FULL``: nothing but lesion. ``CORNERS``: all four corners are lesion
        but not all is, as where inside and outside are swapped. ``OTHER_SHAPE``: its sides have
        another ratio than the image's. None if nothing is wrong.
    """
    if image_size is not None:
        ratio = (mask.shape[0] / mask.shape[1]) / (image_size[0] / image_size[1])
        if abs(ratio - 1) > _SHAPE_TOLERANCE:
            return OTHER_SHAPE
    if not mask.any():
        return EMPTY
    if mask.all():
        return FULL
    return CORNERS if mask[[0, 0, -1, -1], [0, -1, 0, -1]].all() else None

"""What every metric asks of maps and masks, whoever made them."""

from typing import Any

import numpy as np

from dermlens.errors import UsageError


def unit_scale(values: np.ndarray) -> np.ndarray:
    """Return values (N, n), 0 or more, over the largest of each row; 1 in a row of zeros.

    What divides by sums afterwards loses nothing to rounding where maps are tiny.
    """
    largest = values.max(axis=1, keepdims=True)
    return np.where(largest > 0, values / np.where(largest > 0, largest, 1.0), 1.0)


def checked_maps(maps: Any) -> np.ndarray:
    """Return maps as numbers (N, H, W), neither empty nor with NaN, or raise UsageError."""
    maps = np.asarray(maps)
    if maps.ndim != 3 or maps.size == 0 or maps.dtype.kind not in "fiub":
        raise UsageError(
            f"Maps must be numbers (N, H, W) and not empty, not {maps.dtype} of shape {maps.shape}."
        )
    if not np.isfinite(maps).all():
        raise UsageError(
            "A map holds a value that is not finite (NaN or infinity). Leave it out, or look at "
            "what made it."
        )
    return maps


def checked_masks(masks: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return masks as bool of the shape of their maps, or raise UsageError.

    Numbers may have two values, of which the higher is inside, so no soft mask and no JPEG; a
    single one is inside unless it is 0.
    """
    masks = np.asarray(masks)
    if masks.shape != shape or len(shape) != 3:
        raise UsageError(
            f"Maps {shape} and masks {masks.shape} must both be (N, H, W) of the same size."
        )
    if masks.dtype == bool:
        return masks
    values = np.unique(masks)
    if len(values) > 2 or masks.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise UsageError(
            f"A mask holds {len(values)} values ({values[0]} to {values[-1]}), so it does not say "
            "what is inside. Threshold it first, such as masks > 127 for 0..255 or masks > 0.5."
        )
    inside: np.ndarray = masks > (values[0] if len(values) == 2 else 0)
    return inside

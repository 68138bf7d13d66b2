"""Measurable criteria of a lesion: asymmetry, border, colors and size, from outline and pixels.

The words are those of the ABCD rule (Stolz et al., European Journal of Dermatology 1994). The
numbers are proxies: geometry and colors of one photograph, not a dermatologist's judgment, and not
validated against one. What criteria such as the 7-point checklist (Argenziano et al., Archives of
Dermatology 1998) ask for, a pigment network, streaks or a blue-whitish veil, needs labels of
structures, which HAM10000 does not have.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.lesion.relevance import (
    COLOR_SHARE,
    color_asymmetry,
    color_shares,
    lab_colors,
    lesion_traits,
)

SIDE = 192
"""Pixels of the shorter side at which criteria are measured: outlines depend on it a little."""


@dataclass(frozen=True)
class Criterion:
    """A criterion: its name for people, what is measured, and the digits worth showing."""

    name: str
    meaning: str
    digits: int = 2


CRITERIA: dict[str, Criterion] = {
    "asymmetry": Criterion(
        "asymmetry of shape",
        "share of the lesion without a counterpart in its mirror image, mean of both main axes",
    ),
    "color_asymmetry": Criterion(
        "asymmetry of color",
        "mean distance in CIELAB between places and their mirror images, mean of both main axes",
        1,
    ),
    "irregularity": Criterion(
        "irregular border", "1 - 4 pi area / perimeter², 0 for a circle; long shapes count, too"
    ),
    "notches": Criterion("notched border", "share of the convex hull that is not lesion"),
    "color_spread": Criterion("spread of color", "standard deviation of the colors in CIELAB", 1),
    "colors": Criterion(
        "number of colors",
        "of white, red, light brown, dark brown, blue-gray and black, those that cover 2 % or more",
        0,
    ),
    "dark": Criterion("dark share", "share of the lesion nearest to dark brown or black"),
    "blue_white": Criterion(
        "blue-white share", "share of the lesion nearest to blue-gray or white"
    ),
    "red": Criterion("red share", "share of the lesion nearest to red"),
    "size": Criterion("size in the frame", "share of the picture; says nothing of millimeters"),
}
"""What is measured, by key."""
_SUMS = {
    "dark": ("dark_brown", "black"),
    "blue_white": ("blue_gray", "white"),
    "red": ("red",),
}


@dataclass(frozen=True)
class Measured:
    """Criteria of one lesion.

    Attributes:
        values: By key of ``CRITERIA``.
        colors: Names of the colors that are present, the largest share first.
        cut_off: Share of the picture's border that is lesion: what lies beyond is not measured.
    """

    values: dict[str, float]
    colors: tuple[str, ...]
    cut_off: float


def measure_criteria(image: np.ndarray, mask: np.ndarray) -> Measured:
    """Measure a lesion.

    Args:
        image: uint8 or float RGB 0..255, (H, W, 3). Larger ones are measured at ``SIDE`` pixels.
        mask: Outline, bool (H, W).

    Raises:
        UsageError: If sizes differ or the outline is empty.

    Example:
        >>> rows, columns = np.indices((60, 80))
        >>> disk = np.hypot(rows - 30, columns - 40) < 15
        >>> image = np.where(disk[..., None], (100, 60, 45), (230, 190, 170))
        >>> found = measure_criteria(image, disk)
        >>> found.values["asymmetry"], found.values["dark"], found.colors
        (0.0, 1.0, ('dark_brown',))
    """
    from skimage.morphology import convex_hull_image

    image, mask = _fitted(np.asarray(image), np.asarray(mask, bool))
    traits = lesion_traits(image, mask)
    shares = color_shares(lab_colors(image)[mask])
    hull = convex_hull_image(mask) if mask.sum() > 3 else mask
    values = {
        "asymmetry": traits.asymmetry,
        "color_asymmetry": color_asymmetry(image, mask),
        "irregularity": traits.irregularity,
        "notches": float(1.0 - mask.sum() / hull.sum()),
        "color_spread": traits.color_spread,
        "colors": traits.colors,
        **{key: float(sum(shares[name] for name in names)) for key, names in _SUMS.items()},
        "size": traits.area,
    }
    present = sorted((n for n in shares if shares[n] >= COLOR_SHARE), key=lambda n: -shares[n])
    edge = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return Measured(values, tuple(present), float(edge.mean()))


def _fitted(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring image and outline to ``SIDE`` pixels where they are larger."""
    if image.ndim != 3 or image.shape[-1] != 3 or image.shape[:2] != mask.shape:
        raise UsageError(
            f"An image {image.shape} and an outline {mask.shape} must be (H, W, 3) and (H, W) of "
            "the same size."
        )
    if min(mask.shape) > SIDE:
        image, mask = _smaller(image, mask)
    if not mask.any():
        raise UsageError("The outline is empty: there is no lesion to measure. Draw one.")
    return image, mask


def _smaller(image: np.ndarray, mask: np.ndarray) -> tuple[Any, np.ndarray]:
    from PIL import Image

    scale = SIDE / min(mask.shape)
    size = tuple(max(1, round(side * scale)) for side in mask.shape[::-1])
    pixels = Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
    outline = Image.fromarray(mask.astype(np.uint8) * 255)
    small = np.asarray(outline.resize(size, Image.Resampling.BILINEAR)) >= 128
    return np.asarray(pixels.resize(size, Image.Resampling.BICUBIC)), small

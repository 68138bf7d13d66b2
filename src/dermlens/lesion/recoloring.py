"""The colors of a lesion brought to those of another diagnosis.

Mean and spread of the colors inside the outline, in CIELAB, are exchanged for those of the average
lesion of a class (Reinhard et al., "Color transfer between images", IEEE Computer Graphics and
Applications 2001). Shape, structure and the skin around stay, so this is a picture of no lesion
that exists.
"""

from dataclasses import dataclass

import numpy as np

from dermlens.lesion.relevance import equivalent_radius, lab_colors

_EDGE_SHARE = 0.08
"""Width of the soft edge, as a share of the lesion's radius."""
_MOST_STRETCH = 2.0
"""Spread of color is changed by this factor at most: more would only amplify noise."""


@dataclass(frozen=True)
class LesionColors:
    """Mean and standard deviation of the colors of lesions, CIELAB, each (3,)."""

    mean: tuple[float, float, float]
    spread: tuple[float, float, float]


def lesion_colors(image: np.ndarray, mask: np.ndarray) -> LesionColors:
    """Return the colors of one lesion, RGB 0..255 (H, W, 3), inside its outline (H, W)."""
    lab = lab_colors(image)[np.asarray(mask, bool)]
    mean, spread = ([float(v) for v in values] for values in (lab.mean(axis=0), lab.std(axis=0)))
    return LesionColors((mean[0], mean[1], mean[2]), (spread[0], spread[1], spread[2]))


def recolored(
    image: np.ndarray, mask: np.ndarray, goal: LesionColors, strength: float = 1.0
) -> np.ndarray:
    """Return the image with the colors inside the outline brought to a goal.

    Args:
        image: uint8 or float RGB 0..255, (H, W, 3).
        mask: Outline, bool (H, W), not empty.
        goal: Colors to bring them to.
        strength: 0 leaves the image as it is, 1 reaches the goal.

    Returns:
        float32 (H, W, 3), 0..255.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.color import lab2rgb

    image, mask = np.asarray(image, np.float32), np.asarray(mask, bool)
    own = lesion_colors(image, mask)
    lab = lab_colors(image)
    stretch = np.array(goal.spread) / np.maximum(own.spread, 1e-6)
    stretch = np.clip(stretch, 1 / _MOST_STRETCH, _MOST_STRETCH)
    moved = (lab - own.mean) * stretch + goal.mean
    sigma = max(1.0, _EDGE_SHARE * equivalent_radius(mask))
    # Soft inside of the outline only, so that the skin keeps its color.
    soft = np.clip(2 * gaussian_filter(mask.astype(np.float64), sigma) - 1, 0, 1)
    weight = strength * np.where(mask, np.maximum(soft, 0), 0)[..., None]
    import warnings

    with warnings.catch_warnings():
        # Colors outside of RGB are cut off, which the library mentions for every picture.
        warnings.simplefilter("ignore")
        mixed = lab2rgb(lab + weight * (moved - lab)) * 255.0
    return np.where(weight > 0, np.clip(mixed, 0, 255), image).astype(np.float32)

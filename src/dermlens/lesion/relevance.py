"""Where in the lesion does the attribution lie, and does it follow what dermatologists look at?

Automated proxies, computed from the outline and the pixels, not validated by clinicians: they
describe where an explanation looks in the words of the ABCD rule (Stolz et al., European Journal of
Dermatology 1994: asymmetry, border, color), and say nothing about whether that is the right place.
"""

from dataclasses import dataclass

import numpy as np

from dermlens.lesion.zones import lesion_zones, zone_shares
from dermlens.quality.agreement import spearman

COLOR_SHARE = 0.02
"""From which share of a lesion on a color counts as present."""
_LOCAL_SHARE = 0.03

_COLORS: dict[str, tuple[int, int, int]] = {
    "white": (235, 225, 220),
    "red": (190, 75, 75),
    "light_brown": (185, 130, 95),
    "dark_brown": (100, 60, 45),
    "blue_gray": (105, 110, 130),
    "black": (35, 28, 28),
}


def equivalent_radius(mask: np.ndarray) -> float:
    """Return the radius, in pixels, of the disk that has the mask's area."""
    return float(np.sqrt(np.asarray(mask, bool).sum() / np.pi))


def zone_profile(maps: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the share of positive attribution in each zone of a lesion, float64 (N, 4).

    An empty mask gives NaN: without a lesion there are no zones.
    """
    shares = zone_shares(maps, lesion_zones(mask))
    return shares if np.asarray(mask, bool).any() else np.full_like(shares, np.nan)


@dataclass(frozen=True)
class Traits:
    """What the outline and the pixels say about a lesion; NaN for an empty mask.

    Attributes:
        asymmetry: 0..1: share of the lesion that has no counterpart in its mirror image, mean over
            its two principal axes.
        irregularity: 0..1: 1 - 4 pi area / perimeter² of the outline; 0 is a circle.
        color_spread: Standard deviation of the colors in the lesion, in CIELAB units.
        colors: How many of white, red, light brown, dark brown, blue-gray and black cover at
            least 2 % of the lesion.
        area: Share of the image.
    """

    asymmetry: float
    irregularity: float
    color_spread: float
    colors: float
    area: float


def lesion_traits(image: np.ndarray, mask: np.ndarray) -> Traits:
    """Measure asymmetry, border irregularity and color variety of a lesion."""
    from skimage.measure import perimeter

    mask = np.asarray(mask, bool)
    if not mask.any():
        missing = float("nan")
        return Traits(missing, missing, missing, missing, 0.0)
    area = float(mask.sum())
    flipped = [mirrored(mask[..., None].astype(np.float32), mask, k)[..., 0] > 0.5 for k in (0, 1)]
    asymmetry = float(np.mean([float((mask & ~other).sum()) / area for other in flipped]))
    around = float(perimeter(np.pad(mask, 1)))
    roundness = 4 * np.pi * area / around**2 if around > 0 else 1.0
    irregularity = float(np.clip(1 - roundness, 0, 1))
    lab = lab_colors(image)[mask]
    colors = sum(share >= COLOR_SHARE for share in color_shares(lab).values())
    spread = float(np.sqrt(lab.var(axis=0).sum()))
    return Traits(asymmetry, irregularity, spread, float(colors), area / mask.size)


def lab_colors(image: np.ndarray) -> np.ndarray:
    """Return the CIELAB colors of pixels RGB 0..255, (..., 3), float64."""
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(np.clip(np.asarray(image, np.float64), 0, 255) / 255))


def color_shares(lab: np.ndarray) -> dict[str, float]:
    """Return which share of pixels, CIELAB (n, 3), n > 0, is nearest to each of the six colors."""
    named = lab_colors(np.array([list(_COLORS.values())]))[0]
    nearest = ((lab[:, None] - named[None]) ** 2).sum(axis=2).argmin(axis=1)
    shares = np.bincount(nearest, minlength=len(_COLORS)) / len(lab)
    return dict(zip(_COLORS, map(float, shares), strict=True))


def mirrored(pictures: np.ndarray, mask: np.ndarray, axis: int) -> np.ndarray:
    """Mirror a picture (H, W, C) at a lesion's principal axis (0 the longer); outside stays 0."""
    from scipy.ndimage import map_coordinates

    points = np.argwhere(mask).astype(np.float64)
    center = points.mean(axis=0)
    axes = np.linalg.eigh((points - center).T @ (points - center))[1].T[::-1]
    normal = axes[1 - axis]
    grid = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), axis=-1) - center
    places = grid - 2 * (grid @ normal)[..., None] * normal + center
    channels = [
        map_coordinates(pictures[..., k], np.moveaxis(places, -1, 0), order=1, cval=0.0)
        for k in range(pictures.shape[-1])
    ]
    return np.stack(channels, axis=-1)


def asymmetry_map(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return how far each pixel of a lesion differs from its mirror images, float64 (H, W).

    Mean over both axes of the distance in CIELAB; a pixel whose counterpart lies outside the lesion
    differs by as much as the lesion's most different pixel. Outside the lesion 0.
    """
    mask = np.asarray(mask, bool)
    if not mask.any():
        return np.zeros(mask.shape)
    total = np.zeros(mask.shape)
    for both, distance in _mirror_distances(image, mask):
        largest = distance[both].max() if both.any() else 1.0
        total += np.where(both, distance, largest)
    return np.where(mask, total / 2, 0.0)


def color_asymmetry(image: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean distance in CIELAB of a lesion's pixels to their mirror images.

    Mean over both axes, of pixels whose counterpart lies in the lesion; NaN if there is none.
    """
    pairs = _mirror_distances(image, np.asarray(mask, bool)) if np.any(mask) else []
    means = [float(distance[both].mean()) for both, distance in pairs if both.any()]
    return float(np.mean(means)) if means else float("nan")


def _mirror_distances(image: np.ndarray, mask: np.ndarray) -> "list[tuple[np.ndarray, np.ndarray]]":
    """Return, for each axis, where both mirror images are lesion, and how far colors differ."""
    lab, pairs = lab_colors(image), []
    for axis in (0, 1):
        counterpart = mirrored(mask[..., None].astype(np.float64), mask, axis)[..., 0] > 0.5
        distance = np.sqrt(((lab - mirrored(lab, mask, axis)) ** 2).sum(axis=-1))
        pairs.append((mask & counterpart, distance))
    return pairs


def color_variety_map(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the local standard deviation of color in CIELAB inside the lesion, float64 (H, W).

    Only pixels of the lesion count, so that its border to the skin is not variety.
    """
    from scipy.ndimage import gaussian_filter

    mask = np.asarray(mask, bool)
    sigma = max(1.0, _LOCAL_SHARE * min(mask.shape))
    inside = mask.astype(np.float64)[..., None]
    share = np.maximum(gaussian_filter(inside, (sigma, sigma, 0)), 1e-9)
    lab = lab_colors(image)
    mean = gaussian_filter(lab * inside, (sigma, sigma, 0)) / share
    square = gaussian_filter(lab**2 * inside, (sigma, sigma, 0)) / share
    variance = np.maximum(square - mean**2, 0).sum(axis=-1)
    return np.where(mask, np.sqrt(variance), 0.0)


def relation_inside(map_: np.ndarray, feature: np.ndarray, mask: np.ndarray) -> float:
    """Return Spearman's correlation of a map with a feature over the pixels of the lesion.

    Constant in the lesion, either has no relation (0); NaN for fewer than three pixels.
    """
    mask = np.asarray(mask, bool)
    if mask.sum() < 3:
        return float("nan")
    first, second = (np.asarray(values)[mask][None, None] for values in (map_, feature))
    if first.min() == first.max() or second.min() == second.max():
        return 0.0
    return float(spearman(first, second)[0])

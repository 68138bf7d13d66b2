"""Where on a lesion does an explanation look: core, border band, surrounding skin, image border?

A dermatologist reads a lesion by zones: structures in its core, how abruptly it ends at its border,
and the skin around. Evidence on the image's own border ring is none of these: dark corners, rulers
and gel lie there. An automated proxy; it was not validated by clinicians.
"""

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.baselines import border_ring

ZONES: tuple[str, ...] = ("core", "border", "skin", "ring")
"""Names by label: lesion core, band along its outline, surrounding skin, image border ring."""
CORE, BORDER, SKIN, RING = range(len(ZONES))

BAND_SHARE = 0.1
"""Half width of the border band, as a share of the diameter of a disk of the lesion's area."""
RING_SHARE = 0.05
"""Width of the image border ring, as a share of the image's shorter side."""


def lesion_zones(mask: np.ndarray) -> np.ndarray:
    """Return the zone of every pixel of a mask (H, W): int8, a position in ``ZONES``.

    The band lies on both sides of the outline; where the image cuts the lesion off, the edge of
    the image is no outline. The ring holds only what belongs to neither lesion nor band. A full
    mask is all core; an empty one all skin and ring.

    Raises:
        UsageError: If the mask is not two-dimensional or has no pixel.

    Example:
        >>> mask = np.zeros((60, 80), bool)
        >>> mask[20:40, 20:60] = True
        >>> zones = lesion_zones(mask)
        >>> [ZONES[zones[at]] for at in ((30, 40), (20, 40), (10, 10), (0, 0))]
        ['core', 'border', 'skin', 'ring']
    """
    from scipy.ndimage import distance_transform_edt

    mask = np.asarray(mask, bool)
    if mask.ndim != 2 or mask.size == 0:
        raise UsageError(f"A lesion mask must be (H, W), not of shape {mask.shape}.")
    zones = np.where(border_ring(mask.shape, RING_SHARE), RING, SKIN).astype(np.int8)
    zones[mask] = CORE
    if mask.any() and not mask.all():
        half_width = max(1.0, BAND_SHARE * 2 * np.sqrt(mask.sum() / np.pi))
        distance = np.where(mask, distance_transform_edt(mask), distance_transform_edt(~mask))
        zones[distance <= half_width] = BORDER
    return zones


def zone_shares(maps: np.ndarray, zones: np.ndarray) -> np.ndarray:
    """Return the share of positive attribution in each zone: float64 (..., 4), summing to 1.

    A map without positive attribution gets what a map without preference would: area shares.
    Maps are (..., H, W), zones (H, W) as ``lesion_zones`` returns them.

    Raises:
        UsageError: If sizes differ.
    """
    maps, zones = np.asarray(maps, np.float64), np.asarray(zones)
    if maps.shape[-2:] != zones.shape:
        raise UsageError(f"Maps of {maps.shape[-2:]} do not fit zones of {zones.shape}.")
    positive = np.maximum(maps, 0.0)
    positive = np.where(positive.any(axis=(-2, -1), keepdims=True), positive, 1.0)
    # Divided by the largest first, so that tiny maps lose nothing to rounding.
    positive = positive / positive.max(axis=(-2, -1), keepdims=True)
    sums = [(positive * (zones == zone)).sum(axis=(-2, -1)) for zone in range(len(ZONES))]
    shares = np.stack(sums, axis=-1)
    return np.divide(shares, shares.sum(axis=-1, keepdims=True))


def zone_areas(zones: np.ndarray) -> np.ndarray:
    """Return the share of the image in each zone: float64 (4,), summing to 1."""
    return zone_shares(np.ones(np.shape(zones)), zones)

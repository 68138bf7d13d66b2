"""Zones of a lesion that was drawn to know them."""

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.baselines import border_ring
from dermlens.lesion.zones import (
    BORDER,
    CORE,
    RING,
    RING_SHARE,
    SKIN,
    lesion_zones,
    zone_areas,
    zone_shares,
)


def disk(size: tuple[int, int], center: tuple[float, float], radius: float) -> np.ndarray:
    row, column = np.indices(size)
    return (row - center[0]) ** 2 + (column - center[1]) ** 2 <= radius**2


def test_zones_of_a_disk() -> None:
    mask = disk((100, 140), (50, 70), 30)
    zones = lesion_zones(mask)
    # Equal area: diameter 60, so the band reaches 6 pixels to both sides.
    along = zones[50, 70:]
    assert (along[:24] == CORE).all()
    assert (along[26:36] == BORDER).all()
    assert (along[38:65] == SKIN).all()
    assert (along[65:] == RING).all()
    assert (zones[:5] == RING).all() and (zones[:, :5] == RING).all()
    assert zones.dtype == np.int8


def test_the_edge_of_the_image_is_no_outline() -> None:
    mask = np.zeros((60, 80), bool)
    mask[:, :40] = True
    zones = lesion_zones(mask)
    assert zones[0, 0] == zones[30, 0] == CORE
    assert zones[30, 39] == zones[30, 40] == BORDER
    assert zones[30, 79] == RING


def test_empty_and_full_and_one_pixel() -> None:
    empty = lesion_zones(np.zeros((40, 50), bool))
    assert set(np.unique(empty)) == {SKIN, RING}
    assert (lesion_zones(np.ones((40, 50), bool)) == CORE).all()
    assert lesion_zones(np.zeros((1, 1), bool)).tolist() == [[RING]]


def test_shares_by_hand_and_one_map_at_a_time() -> None:
    zones = np.array([[0, 1, 2, 3]])
    maps = np.array([[[4.0, 3.0, 2.0, 1.0]], [[-4.0, 0.0, 5.0, 0.0]], [[-1.0, -1.0, -1.0, -1.0]]])
    shares = zone_shares(maps, zones)
    assert shares[0] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert shares[1] == pytest.approx([0, 0, 1, 0])
    assert shares[2] == pytest.approx([0.25] * 4)
    assert zone_shares(maps[0] * 1e-30, zones) == pytest.approx(shares[0])


def test_areas() -> None:
    zones = lesion_zones(disk((100, 140), (50, 70), 30))
    assert zone_areas(zones) == pytest.approx([(zones == k).mean() for k in range(4)])
    assert border_ring((100, 140), RING_SHARE).mean() == pytest.approx(1 - 90 * 130 / 14000)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="do not fit"):
        zone_shares(np.ones((3, 4)), np.zeros((4, 3), int))
    with pytest.raises(UsageError, match=r"\(H, W\)"):
        lesion_zones(np.ones((2, 3, 4), bool))

"""Traits of drawn lesions and how attribution relates to them."""

import numpy as np
import pytest

from dermlens.lesion.relevance import (
    asymmetry_map,
    color_variety_map,
    lesion_traits,
    mirrored,
    relation_inside,
    zone_profile,
)

SIZE = (60, 80)
ROWS, COLUMNS = np.indices(SIZE)


def ellipse(tilt: float = 0.4) -> np.ndarray:
    x, y = COLUMNS - 40, ROWS - 30
    u, v = np.cos(tilt) * x + np.sin(tilt) * y, -np.sin(tilt) * x + np.cos(tilt) * y
    return (u / 24) ** 2 + (v / 14) ** 2 < 1


def plain(mask: np.ndarray) -> np.ndarray:
    image = np.full((*SIZE, 3), 200.0)
    image[mask] = (120, 80, 60)
    return image


def test_symmetric_and_asymmetric_outlines() -> None:
    symmetric = ellipse()
    cut = symmetric & ~((COLUMNS > 40) & (ROWS > 30))
    traits, other = lesion_traits(plain(symmetric), symmetric), lesion_traits(plain(cut), cut)
    assert traits.asymmetry < 0.03 and other.asymmetry > 0.15
    assert traits.irregularity < other.irregularity
    assert traits.area == symmetric.mean()


def test_irregular_border_and_color_variety() -> None:
    angle = np.arctan2(ROWS - 30, COLUMNS - 40)
    radius = np.hypot(ROWS - 30, COLUMNS - 40)
    disk, star = radius < 20, radius < 20 + 6 * np.sin(9 * angle)
    smooth, ragged = lesion_traits(plain(disk), disk), lesion_traits(plain(star), star)
    assert smooth.irregularity < 0.12 and ragged.irregularity > 0.35
    assert smooth.colors == 1 and smooth.color_spread == pytest.approx(0, abs=1e-6)
    varied = plain(disk)
    varied[disk & (COLUMNS > 40)] = (35, 28, 28)
    varied[disk & (ROWS > 35)] = (190, 75, 75)
    assert lesion_traits(varied, disk).colors == 3
    assert lesion_traits(varied, disk).color_spread > 10


def test_mirroring_at_a_principal_axis() -> None:
    mask = ellipse(0.0)
    picture = np.where(COLUMNS < 40, 1.0, 0.0)[..., None] * np.ones((1, 1, 2))
    across = [mirrored(picture, mask, axis)[..., 0] for axis in (0, 1)]
    # At the long axis, which is horizontal, left stays left; at the short one sides change.
    assert across[0][30, 20] == 1.0 and across[0][30, 60] == 0.0
    assert across[1][30, 20] == 0.0 and across[1][30, 60] == 1.0


def test_attribution_on_the_asymmetric_part_has_a_relation() -> None:
    mask = ellipse(0.0)
    image = plain(mask)
    spot = mask & (np.hypot(ROWS - 30, COLUMNS - 52) < 5)
    image[spot] = (35, 28, 28)
    feature = asymmetry_map(image, mask)
    assert feature[spot].mean() > 3 * feature[mask & ~spot].mean()
    assert (feature[~mask] == 0).all()
    assert relation_inside(feature, feature, mask) == pytest.approx(1.0)
    assert relation_inside(-feature, feature, mask) == pytest.approx(-1.0)
    assert relation_inside(np.ones(SIZE), feature, mask) == 0.0
    variety = color_variety_map(image, mask)
    rim = mask & (np.abs(np.hypot(ROWS - 30, COLUMNS - 52) - 5) < 1)
    assert variety[rim].mean() > 5 * np.median(variety[mask])


def test_empty_full_and_one_pixel_masks() -> None:
    empty, full = np.zeros(SIZE, bool), np.ones(SIZE, bool)
    image = plain(empty)
    traits = lesion_traits(image, empty)
    assert np.isnan([traits.asymmetry, traits.irregularity, traits.colors]).all()
    assert traits.area == 0 and (asymmetry_map(image, empty) == 0).all()
    assert np.isnan(relation_inside(ROWS, COLUMNS, empty))
    assert np.isfinite(list(vars(lesion_traits(image, full)).values())).all()
    one = np.ones((1, 1), bool)
    assert np.isfinite(list(vars(lesion_traits(np.full((1, 1, 3), 90), one)).values())).all()
    maps = np.stack([np.ones(SIZE), ROWS])
    assert np.isnan(zone_profile(maps, empty)).all()
    np.testing.assert_allclose(zone_profile(maps, ellipse()).sum(axis=1), 1.0)
    np.testing.assert_allclose(zone_profile(maps, full), [[1, 0, 0, 0]] * 2)

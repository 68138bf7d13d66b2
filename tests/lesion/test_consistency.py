"""Two photographs of one lesion, brought into one frame."""

import numpy as np
import pytest
from scipy.ndimage import affine_transform, gaussian_filter

from dermlens.lesion.consistency import (
    Framed,
    aligned_agreement,
    best_turn,
    frame,
    photo_consistency,
    turned,
    zone_consistency,
)

SIZE = (64, 84)


def lesion(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture, its outline, and a map: a blob inside the lesion, off its center."""
    generator = np.random.default_rng(seed)
    rows, columns = np.indices(SIZE)
    mask = np.hypot(rows - 32, (columns - 42) * 0.8) < 17
    texture = gaussian_filter(generator.normal(size=SIZE), 3)
    gray = 190 - 90 * gaussian_filter(mask.astype(float), 1) + 60 * texture / texture.std() * mask
    spot = generator.uniform(-9, 9, 2)
    map_ = np.exp(-((rows - 32 - spot[0]) ** 2 + (columns - 42 - spot[1]) ** 2) / 50)
    return np.repeat(gray[..., None], 3, axis=2), mask, map_


def photographed(
    parts: tuple[np.ndarray, np.ndarray, np.ndarray], degrees: float, zoom: float, shift: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same lesion, turned, zoomed and moved."""
    image, mask, map_ = parts
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    center = np.array([32.0, 42.0])
    offset = center - turn @ (center + shift)

    def moved(picture: np.ndarray) -> np.ndarray:
        return affine_transform(picture, turn, offset, order=1, mode="nearest")

    gray = moved(image[..., 0])
    return np.repeat(gray[..., None], 3, axis=2), moved(mask.astype(float)) > 0.5, moved(map_)


def framed(parts: tuple[np.ndarray, np.ndarray, np.ndarray], extra: int = 0) -> Framed:
    image, mask, map_ = parts
    noise = np.random.default_rng(extra).random(SIZE)
    return frame(image, mask, np.stack([map_, np.ones(SIZE), noise]))


def test_turned_zoomed_and_moved_photographs_agree() -> None:
    parts = lesion(0)
    first = framed(parts)
    second = framed(photographed(parts, 75, 0.8, 3.0), 1)
    found = aligned_agreement(first, second)
    assert found[0] > 0.9, "the map that sticks to the lesion"
    assert found[1] == pytest.approx(1.0) and abs(found[2]) < 0.3
    # Without turning, the maps do not agree: alignment is what made them.
    assert abs(best_turn(first, second)[0] - np.deg2rad(75)) % (2 * np.pi) < 0.2 or (
        abs(best_turn(first, second)[0] - np.deg2rad(285)) < 0.2
    )


def test_rotation_is_chosen_by_pictures_not_by_maps() -> None:
    parts, other = lesion(0), lesion(0)
    # The second map was turned away on the lesion: no rotation of the pictures hides that.
    wrong = (other[0], other[1], other[2][::-1, ::-1].copy())
    assert aligned_agreement(framed(parts), framed(wrong, 1))[0] < 0.6


def test_mirror_images_are_tried_only_if_asked_for() -> None:
    parts = lesion(3)
    mirror = tuple(np.ascontiguousarray(p[:, ::-1]) for p in parts)
    first, second = framed(parts), framed((mirror[0], mirror[1], mirror[2]), 1)
    assert best_turn(first, second, mirrors=True)[1]
    assert not best_turn(first, second)[1]
    with_, without = (aligned_agreement(first, second, mirrors=m)[0] for m in (True, False))
    assert with_ > 0.9 > without


def test_consistency_is_agreement_beyond_that_of_other_lesions() -> None:
    pairs = []
    for seed in range(4):
        parts = lesion(seed)
        pairs.append((framed(parts, seed), framed(photographed(parts, 30, 0.9, -2.0), 50 + seed)))
    found = photo_consistency(pairs)
    assert found.shape == (4, 3)
    assert found[:, 0].mean() > 0.25, "a map that follows the lesion"
    np.testing.assert_allclose(found[:, 1], 0.0, atol=1e-12)
    assert abs(found[:, 2].mean()) < 0.15
    assert np.isnan(photo_consistency(pairs[:1])).all(), "one lesion has no control"


def test_turning_four_times_by_a_quarter_is_nothing() -> None:
    picture = np.random.default_rng(0).random((1, 12, 12))
    np.testing.assert_allclose(turned(picture, np.pi / 2, False), np.rot90(picture, -1, (1, 2)))
    np.testing.assert_allclose(turned(picture, 0, True)[0], picture[0, :, ::-1])


def test_zone_profiles() -> None:
    first = np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4])
    second = np.array([[0, 0, 0, 1.0], [0.5, 0.25, 0.25, 0], [0.25] * 4])
    np.testing.assert_allclose(zone_consistency(first, second), [0.0, 0.75, 1.0])


def test_one_pixel_lesion() -> None:
    mask = np.zeros(SIZE, bool)
    mask[5, 6] = True
    made = frame(np.full((*SIZE, 3), 90.0), mask, np.ones((1, *SIZE)))
    assert np.isfinite(made.picture).all() and np.isfinite(made.maps).all()


def test_empty_masks_have_no_value_and_are_no_control() -> None:
    image, _, map_ = lesion(0)
    empty = frame(image, np.zeros(SIZE, bool), map_[None])
    assert not empty.valid.any() and empty.maps.shape == (1, 48, 48)
    whole = [frame(*lesion(k)[:2], lesion(k)[2][None]) for k in range(3)]
    pairs = [(whole[0], whole[0]), (empty, empty), (whole[1], whole[1]), (whole[2], empty)]
    found = photo_consistency(pairs, others=1)[:, 0]
    # The second lesion has no frame; the first's and third's only controls are empty.
    assert np.isnan(found).all()
    assert np.isfinite(photo_consistency(pairs, others=2)[[0, 2], 0]).all()

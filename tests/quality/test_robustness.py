"""Sensitivity and equivariance of explanations that change in known ways."""

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.quality.robustness import (
    equivariance,
    relative_changes,
    sensitivity,
    symmetries,
    two_sided_noise,
)
from explain_networks import smooth_images

SIZE = (8, 12)


def image(size: tuple[int, int] = SIZE) -> np.ndarray:
    return smooth_images(1, size)[0].astype(np.float32)


def red(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """A map that turns with the image and changes with it."""
    return images[..., 0]


def test_noise_is_two_sided_bounded_and_shared() -> None:
    noise = two_sided_noise(image(), 5.0, 6, seed=1)
    np.testing.assert_array_equal(noise[:3], -noise[3:])
    assert np.abs(noise).max() <= 5 and noise.min() < -4.5 and noise.max() > 4.5
    np.testing.assert_array_equal(noise, two_sided_noise(image(), 5.0, 6, seed=1))
    assert not np.array_equal(noise, two_sided_noise(image(), 5.0, 6, seed=2))
    for draws, radius in ((3, 5.0), (0, 5.0), (2, 0.0)):
        with pytest.raises(UsageError, match="even number"):
            two_sided_noise(image(), radius, draws, seed=0)


def test_sensitivity_of_a_map_that_is_the_image_is_that_of_the_noise() -> None:
    noise = two_sided_noise(image(), 5.0, 4, seed=3)[..., 0]
    ratios = np.linalg.norm(noise.reshape(4, -1), axis=1) / np.linalg.norm(image()[..., 0])
    largest, mean = sensitivity(red, image(), 0, image()[..., 0], seed=3)
    assert largest == pytest.approx(ratios.max(), rel=1e-3)
    assert mean == pytest.approx(ratios.mean(), rel=1e-3)


def test_bright_pixels_get_noise_of_both_signs() -> None:
    white = np.full((*SIZE, 3), 255, np.float32)
    seen = []

    def watch(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        seen.append(images)
        assert targets.tolist() == [2, 2, 2, 2]
        return images[..., 0]

    sensitivity(watch, white, 2, white[..., 0])
    assert seen[0].max() > 255 and seen[0].min() < 255


def test_constant_and_empty_maps() -> None:
    def nothing(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.zeros(images.shape[:3])

    assert sensitivity(nothing, image(), 0, np.zeros(SIZE)) == (0.0, 0.0)
    assert np.isnan(sensitivity(red, image(), 0, np.zeros(SIZE))).all()
    changes = relative_changes(np.array([[[3.0, 4.0]], [[0.0, 0.0]]]), np.array([[0.0, 0.0]]))
    np.testing.assert_array_equal(changes, [np.nan, 0.0])
    assert relative_changes(np.array([[[3.0, 8.0]]]), np.array([[3.0, 4.0]]))[0] == 0.8


def test_group_of_rectangles_and_squares() -> None:
    picture = np.arange(12.0).reshape(1, 3, 4)
    moved = {name: move(picture)[0] for name, move in symmetries(3, 4).items()}
    np.testing.assert_array_equal(moved["mirrored_left_right"], picture[0, :, ::-1])
    np.testing.assert_array_equal(moved["mirrored_up_down"], picture[0, ::-1])
    np.testing.assert_array_equal(moved["half_turn"], picture[0, ::-1, ::-1])
    square = np.random.default_rng(0).random((1, 4, 4))
    turned = {name: move(square)[0] for name, move in symmetries(4, 4).items()}
    assert len({m.tobytes() for m in [*turned.values(), square[0]]}) == 8
    np.testing.assert_array_equal(turned["transposed"], square[0].T)
    np.testing.assert_array_equal(turned["anti_transposed"], square[0].T[::-1, ::-1])
    np.testing.assert_array_equal(turned["quarter_turn"], np.rot90(square[0]))
    np.testing.assert_array_equal(turned["three_quarter_turn"], np.rot90(square[0], 3))


@pytest.mark.parametrize("size", [SIZE, (9, 9), (1, 1)])
def test_equivariance_of_maps_that_do_and_do_not_turn(size: tuple[int, int]) -> None:
    picture = image(size)
    assert equivariance(red, picture, 0, picture[..., 0]) == pytest.approx(1.0)
    if size == (1, 1):
        return
    fixed = np.random.default_rng(0).random(size)

    def stuck(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.repeat(fixed[None], len(images), axis=0)

    assert abs(equivariance(stuck, picture, 0, fixed)) < 0.35
    assert equivariance(stuck, picture, 0, np.ones(size)) == 0.0

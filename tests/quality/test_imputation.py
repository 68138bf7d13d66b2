"""Noisy linear imputation."""

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.quality.imputation import impute


def solved_densely(image: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The same equations, one pixel at a time and with a dense solver."""
    height, width = gone.shape
    places = [tuple(p) for p in np.argwhere(gone)]
    matrix, known = np.zeros((len(places),) * 2), np.zeros((len(places), 3))
    for i, (row, column) in enumerate(places):
        neighbors = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                r, c = row + down, column + right
                if (down or right) and 0 <= r < height and 0 <= c < width:
                    neighbors.append((r, c, 1 / 6 if down == 0 or right == 0 else 1 / 12))
        total = sum(w for *_, w in neighbors)
        matrix[i, i] = 1.0
        for r, c, w in neighbors:
            if gone[r, c]:
                matrix[i, places.index((r, c))] -= w / total
            else:
                known[i] += w / total * image[r, c]
    result = image.astype(float)
    result[gone] = np.linalg.solve(matrix, known)
    return result


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_equations_of_the_paper_on_color_images(dtype: type) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, 6, 9, 3)).astype(dtype)
    removed = generator.random((2, 6, 9)) < 0.6
    removed[:, 0, 0] = True
    made = impute(images, removed, noise=0.0)
    for image, gone, result in zip(images, removed, made, strict=True):
        np.testing.assert_allclose(result, solved_densely(image, gone), atol=1e-3)
        np.testing.assert_array_equal(result[~gone], image[~gone])
    assert made.dtype == np.float32


def test_constant_image_stays_constant_and_noise_is_centered() -> None:
    image = np.full((1, 40, 60, 3), 120, np.uint8)
    removed = np.random.default_rng(0).random((1, 40, 60)) < 0.7
    np.testing.assert_allclose(impute(image, removed, noise=0.0), 120.0, atol=1e-3)
    noisy = impute(image, removed, seed=1)[removed] - 120.0
    assert abs(noisy.mean()) < 0.15 and noisy.std() == pytest.approx(2.55, rel=0.05)


def test_batch_of_n_is_n_batches_of_one_and_edges_are_defined() -> None:
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (4, 8, 10, 3)).astype(np.uint8)
    removed = generator.random((4, 8, 10)) < 0.5
    removed[1], removed[2] = False, True
    together = impute(images, removed, seed=5)
    for i in range(4):
        alone = impute(images[i : i + 1], removed[i : i + 1], seed=5)[0]
        np.testing.assert_array_equal(together[i], alone)
    np.testing.assert_array_equal(together[1], images[1])
    assert np.isfinite(together).all() and together[2].std() < 20
    with pytest.raises(UsageError, match="same size"):
        impute(images, removed[:, :4])

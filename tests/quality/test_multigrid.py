"""The fast solver of the imputation against a direct solution."""

import numpy as np
import pytest

from dermlens.quality.imputation import _coarser, _finest, neighbor_sum, solve_removed


def solved_directly(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Every removed pixel is the weighted mean of its neighbors: a sparse system, factorized."""
    from scipy.sparse import lil_matrix
    from scipy.sparse.linalg import spsolve

    height, width = removed.shape
    number = {place: k for k, place in enumerate(zip(*np.nonzero(removed), strict=True))}
    matrix, known = lil_matrix((len(number), len(number))), np.zeros((len(number), 3))
    for (row, column), k in number.items():
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                r, c = row + down, column + right
                if (down or right) and 0 <= r < height and 0 <= c < width:
                    weight = 1 / 6 if 0 in (down, right) else 1 / 12
                    matrix[k, k] += weight
                    if removed[r, c]:
                        matrix[k, number[r, c]] -= weight
                    else:
                        known[k] += weight * image[r, c]
    result = image.astype(float)
    result[removed] = spsolve(matrix.tocsc(), known).reshape(len(number), 3)
    return result


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["noise", "blob", "edge"])
def test_agrees_with_the_direct_solution(share: float, kind: str) -> None:
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(0)
    size = (33, 46)
    image = generator.uniform(0, 255, (*size, 3)).astype(np.float32)
    rows, columns = np.indices(size)
    order = {
        "noise": generator.random(size),
        "blob": gaussian_filter(generator.normal(size=size), 5),
        "edge": rows + 0.01 * columns,
    }[kind]
    removed = order < np.quantile(order, share)
    found = solve_removed(image, removed)
    # A hundredth of a gray level, while the noise laid over it is 2.55 wide.
    np.testing.assert_allclose(found, solved_directly(image, removed), atol=0.02)
    np.testing.assert_array_equal(found[~removed], image[~removed])
    assert found.dtype == np.float32


@pytest.mark.parametrize("size", [(1, 9), (7, 1), (2, 2), (5, 3)])
def test_thin_and_tiny_images(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    image = generator.uniform(0, 255, (*size, 3)).astype(np.float32)
    removed = np.ones(size, bool)
    removed[0, 0] = removed[-1, -1] = False
    expected = solved_directly(image, removed)
    np.testing.assert_allclose(solve_removed(image, removed), expected, atol=0.01)


def test_neighbor_sum_counts_every_neighbor_once() -> None:
    values = np.zeros((5, 6))
    values[2, 3] = 12.0
    expected = np.zeros((5, 6))
    expected[1:4, 2:5] = [[1, 2, 1], [2, 0, 2], [1, 2, 1]]
    np.testing.assert_allclose(neighbor_sum(values), expected)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_coarser_grids_join_exactly_the_edges_between_blocks(size: tuple[int, int]) -> None:
    removed = np.random.default_rng(2).random(size) < 0.8
    edges, excess, inside = _finest(removed)
    joined, coarse_excess, nodes = _coarser(edges, excess, inside)
    steps = ((0, 1), (1, 0), (1, 1), (1, -1))
    expected = np.zeros_like(joined)
    for row, column in np.argwhere(removed):
        for down, right in steps:
            r, c = row + down, column + right
            if not (r < size[0] and 0 <= c < size[1] and removed[r, c]):
                continue
            weight = 1 / 6 if 0 in (down, right) else 1 / 12
            move = (r // 2 - row // 2, c // 2 - column // 2)
            if move == (0, -1):
                # The same edge, seen from the block on the left.
                expected[0, r // 2, c // 2] += weight / 2
            elif move != (0, 0):
                expected[steps.index(move), row // 2, column // 2] += weight / 2
    np.testing.assert_allclose(joined, expected, atol=1e-6)
    assert coarse_excess.sum() == pytest.approx(excess.sum(), rel=1e-5)
    assert nodes.shape == ((size[0] + 1) // 2, (size[1] + 1) // 2)

"""Removing pixels without leaving a trace of where they were.

Noisy linear imputation: Rong et al., "A consistent and efficient evaluation strategy for
attribution methods" (ROAD), ICML 2022. A removed pixel becomes the weighted mean of its eight
neighbors (1/6 for the four sides, 1/12 for the diagonals), themselves removed or not: a sparse
linear system. A little noise hides that the result is smooth.

The equations are a weighted graph: removed pixels are its nodes, and known pixels hold the
borders. Its matrix is symmetric and positive definite, so conjugate gradients (Hestenes & Stiefel,
1952) solve it, and about ten steps suffice when every step first solves the same equations roughly
on ever coarser grids (aggregation multigrid; Trottenberg, Oosterlee & Schüller, "Multigrid", 2001).
All color channels are solved at once, with array operations alone.
"""

from dataclasses import dataclass

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.base import image_generator
from dermlens.explainers.baselines import border_color

SIDE_WEIGHT = 1 / 6
CORNER_WEIGHT = 1 / 12
_DAMPING = 0.8
_COARSEST_PIXELS = 24
_COARSEST_SWEEPS = 12
# Piecewise constant corrections are twice too steep for grids twice as coarse (Braess, 1995).
_COARSE_STIFFNESS = 0.5
_MOST_STEPS = 100
_TOLERANCE = 3e-4
"""Largest error allowed in any single equation, in gray levels."""

# Edges to the right, down, down right, down left: (rows, columns) of the nearer end, of the other.
_FIRST, _LAST, _ALL = slice(None, -1), slice(1, None), slice(None)
_ENDS = (
    ((_ALL, _FIRST), (_ALL, _LAST)),
    ((_FIRST, _ALL), (_LAST, _ALL)),
    ((_FIRST, _FIRST), (_LAST, _LAST)),
    ((_FIRST, _LAST), (_LAST, _FIRST)),
)
_EDGE_WEIGHTS = (SIDE_WEIGHT, SIDE_WEIGHT, CORNER_WEIGHT, CORNER_WEIGHT)


def impute(
    images: np.ndarray, removed: np.ndarray, *, noise: float = 0.01, seed: int = 0
) -> np.ndarray:
    """Replace removed pixels (N, H, W) of images, RGB 0..255, by what their surroundings suggest.

    ``noise`` is its standard deviation as a share of the range 0..255; an image's noise does not
    depend on its neighbors in the batch. float32; pixels that were not removed are unchanged.

    Raises:
        UsageError: If the shapes do not fit.
    """
    images = np.asarray(images)
    removed = np.asarray(removed, bool)
    if images.ndim != 4 or removed.shape != images.shape[:3]:
        raise UsageError(
            f"Images {images.shape} and removed pixels {removed.shape} must be (N, H, W, 3) and "
            "(N, H, W) of the same size."
        )
    pairs = zip(images.astype(np.float32), removed, strict=True)
    return np.stack([_impute_one(image, gone, noise, seed) for image, gone in pairs])


def _impute_one(image: np.ndarray, gone: np.ndarray, noise: float, seed: int) -> np.ndarray:
    result = image.copy()
    if not gone.any():
        return result
    if gone.all():
        filled = np.broadcast_to(border_color(image), (int(gone.sum()), 3))
    else:
        filled = solve_removed(image, gone)[gone]
    generator = image_generator(seed, image)
    jitter = generator.normal(0.0, noise * 255.0, filled.shape)
    result[gone] = np.clip(filled + jitter, 0, 255)
    return result


def neighbor_sum(values: np.ndarray) -> np.ndarray:
    """Return the weighted sum of the eight neighbors of every pixel, (..., H, W).

    1/6 for the four sides, 1/12 for the diagonals; nothing lies outside the image.
    """
    tall = 2 * values
    tall[..., 1:, :] += values[..., :-1, :]
    tall[..., :-1, :] += values[..., 1:, :]
    wide = 2 * tall
    wide[..., 1:] += tall[..., :-1]
    wide[..., :-1] += tall[..., 1:]
    wide -= 4 * values
    wide *= CORNER_WEIGHT
    return wide


@dataclass
class _Grid:
    """One grid: float32 weights of edges (4, h, w), of the rest and which are nodes (h, w)."""

    edges: np.ndarray
    excess: np.ndarray
    inside: np.ndarray
    finest: bool = False

    def __post_init__(self) -> None:
        self.diagonal = self.excess + _degree(self.edges)
        inverse = np.where(self.inside > 0, _DAMPING / np.maximum(self.diagonal, 1e-20), 0.0)
        self.inverse = inverse.astype(np.float32)

    def times(self, values: np.ndarray) -> np.ndarray:
        """Multiply the grid's matrix with values (channels, h, w)."""
        result: np.ndarray = self.diagonal * values
        if self.finest:
            result -= self.inside * neighbor_sum(values)
            return result
        for (near, far), edge in zip(_ENDS, self.edges, strict=True):
            weight = edge[near]
            result[(..., *near)] -= weight * values[(..., *far)]
            result[(..., *far)] -= weight * values[(..., *near)]
        return result


def _degree(edges: np.ndarray) -> np.ndarray:
    """Return the sum of the weights of each node's edges, (h, w)."""
    total = np.zeros(edges.shape[1:], np.float32)
    for (near, far), edge in zip(_ENDS, edges, strict=True):
        total[near] += edge[near]
        total[far] += edge[near]
    return total


def _finest(removed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return edges, weight towards known pixels, and which pixels are nodes."""
    inside = removed.astype(np.float32)
    edges = np.zeros((4, *inside.shape), np.float32)
    for (near, far), edge, weight in zip(_ENDS, edges, _EDGE_WEIGHTS, strict=True):
        edge[near] = weight * inside[near] * inside[far]
    excess = inside * np.maximum(neighbor_sum(np.ones_like(inside)) - _degree(edges), 0.0)
    return edges, excess, inside


def _coarser(
    edges: np.ndarray, excess: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join blocks of 2x2 nodes: edges between blocks add up, edges inside them vanish."""
    right, down, falling, rising = _even(edges)
    joined = np.zeros((4, right.shape[0] // 2, right.shape[1] // 2), np.float32)
    joined[0] = right[::2, 1::2] + right[1::2, 1::2] + falling[::2, 1::2]
    joined[0][:, :-1] += rising[::2, ::2][:, 1:]
    joined[1] = down[1::2, ::2] + down[1::2, 1::2] + falling[1::2, ::2] + rising[1::2, 1::2]
    joined[2] = falling[1::2, 1::2]
    joined[3] = rising[1::2, ::2]
    nodes = (_blocks(inside) > 0).astype(np.float32)
    return joined * np.float32(_COARSE_STIFFNESS), _blocks(excess), nodes


def _even(values: np.ndarray) -> np.ndarray:
    """Add a row or column of zeros where a side is odd."""
    height, width = values.shape[-2:]
    if height % 2 == 0 and width % 2 == 0:
        return values
    wider = [(0, 0)] * (values.ndim - 2) + [(0, height % 2), (0, width % 2)]
    return np.pad(values, wider)


def _blocks(values: np.ndarray) -> np.ndarray:
    """Sum blocks of 2x2, (..., h, w) to (..., h / 2, w / 2)."""
    values = _even(values)
    rows = values[..., ::2, :] + values[..., 1::2, :]
    return np.add(rows[..., ::2], rows[..., 1::2])


def _spread(values: np.ndarray, grid: _Grid) -> np.ndarray:
    """Give every node of a grid the value of its block."""
    height, width = grid.inside.shape
    wide = np.repeat(np.repeat(values, 2, axis=-2), 2, axis=-1)
    return wide[..., :height, :width] * grid.inside


def _grids(removed: np.ndarray) -> list[_Grid]:
    parts = _finest(removed)
    grids = [_Grid(*parts, finest=True)]
    while parts[2].size > _COARSEST_PIXELS and min(parts[2].shape) > 1:
        parts = _coarser(*parts)
        grids.append(_Grid(*parts))
    return grids


def _cycle(grids: list[_Grid], level: int, known: np.ndarray) -> np.ndarray:
    """Solve roughly: smooth, correct from the coarser grid, smooth; symmetric by construction."""
    grid = grids[level]
    values = grid.inverse * known
    if level == len(grids) - 1:
        for _ in range(_COARSEST_SWEEPS):
            values += grid.inverse * (known - grid.times(values))
        return values
    rest = known - grid.times(values)
    values += _spread(_cycle(grids, level + 1, _blocks(rest)), grid)
    values += grid.inverse * (known - grid.times(values))
    return values


def solve_removed(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Return a float32 image whose removed pixels are the weighted means of their neighbors.

    ``removed`` is neither empty nor full. Values err more than equations
    (``_TOLERANCE``), by about ten times; measured at most 0.005 gray levels.
    """
    channels = np.ascontiguousarray(np.moveaxis(image, -1, 0), np.float32)
    middle = channels[:, ~removed].mean(axis=1)[:, None, None]
    inside = removed.astype(np.float32)
    known = inside * neighbor_sum((channels - middle) * (1 - inside))
    grids = _grids(removed)
    values = _cycle(grids, 0, known)
    rest = known - grids[0].times(values)
    direction, length = np.zeros_like(values), np.ones(len(values), np.float32)
    for _ in range(_MOST_STEPS):
        if np.abs(rest).max() <= _TOLERANCE:
            break
        step = _cycle(grids, 0, rest)
        new_length = np.einsum("chw,chw->c", rest, step)
        direction = step + _ratio(new_length, length) * direction
        length = new_length
        moved = grids[0].times(direction)
        pace = _ratio(length, np.einsum("chw,chw->c", direction, moved))
        values += pace * direction
        rest -= pace * moved
    return np.where(removed[..., None], np.moveaxis(values + middle, 0, -1), image)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide per channel; a channel that is solved already divides zero by zero, which is zero."""
    quotient = np.where(below > 0, above / np.where(below > 0, below, 1.0), 0.0)
    return quotient[:, None, None].astype(np.float32)

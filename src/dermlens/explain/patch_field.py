"""Effects of all patches from those of a few: where to measure next, and how far off the rest is.

Effects of covering patches are taken for a Gaussian process over the places of the patches
(Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006), Matérn 5/2, mean zero:
most of an image does not matter. Two things are known beforehand. Patches that overlap share
pixels, so their effects are alike over about the size of a patch. And where the image already
shows what the patch would show, covering it can change nothing, so the expected size of an effect
follows how much the patch changes. How closely it follows and over which distance are chosen by
the likelihood of what was measured.

The next patch is the one that lowers the expected squared error of the *map* most, errors counting
more where effects are strong.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.errors import UsageError

MOST_PATCHES = 3000
"""Memory and time grow with the square of the number of patches: 72 MB per matrix here."""
_EXPONENTS = (0.0, 0.5, 1.0)
_LENGTHS = (0.5, 0.75, 1.0, 1.5, 2.5)
_PRIOR = (0.5, 0.75)
"""Exponent and length, in patches, before anything is measured."""
_NEIGHBORHOOD = 0.75
_NOISE = 1e-3
_TINY = 1e-12


@dataclass(frozen=True)
class FieldFit:
    """What is known about all P patches after some were measured, for T targets.

    Attributes:
        effects: float64 (T, P): measured where measured, expected elsewhere.
        covariance: float64 (P, P): of the expected effects, up to ``scale``.
        scale: float64 (T,).
        error: float64 (T,): expected root mean square error of the map over that of the map.
    """

    effects: np.ndarray
    covariance: np.ndarray
    scale: np.ndarray
    error: np.ndarray


class PatchField:
    """A Gaussian process over the patches of one image.

    Args:
        boxes: int (P, 4): top, left, bottom, right of every patch.
        change: float (H, W): how much covering changes each pixel, 0 or more.

    Raises:
        UsageError: If there are more than ``MOST_PATCHES`` patches.
    """

    def __init__(self, boxes: np.ndarray, change: np.ndarray) -> None:
        if len(boxes) > MOST_PATCHES:
            raise UsageError(
                f"{len(boxes):,} patches are too many to choose from; at most {MOST_PATCHES:,} "
                "are possible. Use a larger stride, or leave passes and tolerance out."
            )
        boxes = np.asarray(boxes, np.int64)
        sides = boxes[0, 2:] - boxes[0, :2]
        places = (boxes[:, :2] + boxes[:, 2:]) / 2 / sides
        self._distance = np.sqrt(((places[:, None] - places[None]) ** 2).sum(axis=-1))
        mean = _means_over(boxes, np.asarray(change, np.float64))
        # A floor, since a patch that changes little may still matter to the network.
        self._change = mean + 0.1 * mean.mean() + _TINY
        self._spread = _spread_products(boxes)
        near = np.exp(-0.5 * (self._distance / _NEIGHBORHOOD) ** 2)
        self._near = near / near.sum(axis=1, keepdims=True)

    def first(self, count: int) -> list[int]:
        """Return the patches to measure first, by what is known beforehand."""
        kernel = _kernel(self._distance, _PRIOR[1], self._amplitude(_PRIOR[0]))
        return self._most_useful(kernel, [], count)

    def fit(self, measured: list[int], effects: np.ndarray) -> FieldFit:
        """Return what measured effects say about all patches.

        Args:
            measured: Positions of n patches.
            effects: float (T, n).
        """
        from scipy.linalg import solve_triangular

        effects = np.asarray(effects, np.float64)
        candidates = [(a, length) for a in _EXPONENTS for length in _LENGTHS]
        exponent, length = max(candidates, key=lambda one: self._likelihood(one, measured, effects))
        amplitude = self._amplitude(exponent)
        kernel = _kernel(self._distance, length, amplitude)
        root = np.linalg.cholesky(self._observed(length, amplitude, measured))
        # With the covariance of the measured as R R', all that follows needs R alone.
        toward = solve_triangular(root, kernel[measured], lower=True)
        whitened = solve_triangular(root, effects.T, lower=True)
        expected = whitened.T @ toward
        expected[:, measured] = effects
        covariance = kernel - toward.T @ toward
        covariance[measured] = covariance[:, measured] = 0.0
        scale = (whitened**2).mean(axis=0)
        missing = scale * max(float(self._spread.multiply(covariance).sum()), 0.0)
        found = (expected * (self._spread @ expected.T).T).sum(axis=1)
        error = np.sqrt(missing / np.maximum(found, _TINY))
        return FieldFit(expected, covariance, scale, np.where(missing > 0, error, 0.0))

    def following(self, fit: FieldFit, measured: list[int], count: int) -> list[int]:
        """Return the patches to measure next, at most ``count``."""
        power = fit.effects**2 @ self._near.T
        mean = power.mean(axis=1, keepdims=True)
        # Every target counts alike, whatever the size of its effects.
        strength = np.sqrt(np.where(mean > 0, power / np.maximum(mean, _TINY), 1.0).mean(axis=0))
        root = np.sqrt(strength)
        return self._most_useful(root[:, None] * fit.covariance * root, measured, count)

    def _amplitude(self, exponent: float) -> np.ndarray:
        return (self._change / self._change.mean()) ** exponent

    def _observed(self, length: float, amplitude: np.ndarray, measured: list[int]) -> np.ndarray:
        between = self._distance[np.ix_(measured, measured)]
        kernel = _kernel(between, length, amplitude[measured])
        return kernel + np.diag(_NOISE * amplitude[measured] ** 2)

    def _likelihood(
        self, shape: tuple[float, float], measured: list[int], effects: np.ndarray
    ) -> float:
        """Return the log likelihood of the measured effects, each target's scale at its best."""
        from scipy.linalg import solve_triangular

        amplitude = self._amplitude(shape[0])
        root = np.linalg.cholesky(self._observed(shape[1], amplitude, measured))
        scale = (solve_triangular(root, effects.T, lower=True) ** 2).mean(axis=0)
        fitted = len(measured) * np.log(np.maximum(scale, _TINY**2)).sum()
        return float(-0.5 * fitted - len(effects) * np.log(np.diag(root)).sum())

    def _most_useful(self, covariance: np.ndarray, taken: list[int], count: int) -> list[int]:
        """Choose patches one by one, each by how much it would lower the error of the map."""
        covariance = covariance.copy()
        weighted = self._spread @ covariance
        floor = _TINY * max(float(np.diag(covariance).max()), _TINY)
        chosen: list[int] = []
        free = np.ones(len(covariance), bool)
        free[taken] = False
        while len(chosen) < count and free.any():
            variance = np.maximum(np.diag(covariance), floor)
            gain = (covariance * weighted).sum(axis=0) / variance
            best = int(np.argmax(np.where(free, gain, -np.inf)))
            chosen.append(best)
            free[best] = False
            column, turned = covariance[:, best].copy(), weighted[:, best].copy()
            share = column / max(float(column[best]), floor)
            covariance -= np.outer(column, share)
            weighted -= np.outer(turned, share)
        return chosen


def _kernel(distance: np.ndarray, length: float, amplitude: np.ndarray) -> np.ndarray:
    """Return the Matérn 5/2 covariance of places at distances (n, n), in patches."""
    scaled = np.sqrt(5.0) * distance / length
    matern = (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)
    return amplitude[:, None] * matern * amplitude


def _means_over(boxes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean of values (H, W) inside each box."""
    total = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    top, left, bottom, right = boxes.T
    inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return np.maximum(inside, 0.0) / ((bottom - top) * (right - left))


def _spread_products(boxes: np.ndarray) -> Any:
    """Return M'M (P, P), sparse, M being the map's dependence on the patches' effects.

    Pixels between the same edges of patches have the same value, so cells stand for them.
    """
    from scipy.sparse import csr_matrix, diags

    row_edges = np.unique(boxes[:, [0, 2]])
    column_edges = np.unique(boxes[:, [1, 3]])
    area = np.outer(np.diff(row_edges), np.diff(column_edges)).ravel()
    columns = len(column_edges) - 1
    cells: list[np.ndarray] = []
    for top, left, bottom, right in boxes:
        rows = np.arange(*np.searchsorted(row_edges, (top, bottom)))
        across = np.arange(*np.searchsorted(column_edges, (left, right)))
        cells.append((rows[:, None] * columns + across[None]).ravel())
    patch = np.repeat(np.arange(len(boxes)), [len(one) for one in cells])
    cell = np.concatenate(cells)
    coverage = np.bincount(cell, minlength=len(area))
    share = np.sqrt(area[cell]) / coverage[cell]
    spread = csr_matrix((share, (cell, patch)), shape=(len(area), len(boxes)))
    products = spread.T @ spread
    return diags(np.full(products.shape[0], 1.0 / area.sum())) @ products

"""Intervals and tests for values measured on images, where images of one lesion belong together.

* Bootstrap over clusters: Davison & Hinkley, "Bootstrap methods and their application", 1997.
* Paired test: signs of whole lesions are flipped at random (Fisher's randomization test).
* Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
  Statistics 1979.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dermlens.errors import UsageError
from dermlens.model.metrics import interval, lesion_resamples

RESAMPLES = 2000
FLIPS = 10000
_EXACT_CLUSTERS = 13
_ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, NaN if there is none; images with a value, and without."""

    mean: float
    low: float
    high: float
    count: int
    excluded: int


def _cluster_sums(
    values: np.ndarray, clusters: Sequence[object] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return sum and number of the finite values of each cluster, both (L, K)."""
    values = np.asarray(values, np.float64)
    names = np.asarray([str(cluster) for cluster in clusters])
    if values.ndim != 2 or len(values) != len(names):
        raise UsageError(
            f"Values {values.shape} must be (N, K) with one cluster for each of the N rows, not "
            f"{len(names)} clusters."
        )
    number = np.unique(names, return_inverse=True)[1]
    finite = np.isfinite(values)
    sums = np.zeros((number.max(initial=-1) + 1, values.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, number, np.where(finite, values, 0.0))
    np.add.at(counts, number, finite.astype(np.float64))
    return sums, counts


def cluster_intervals(
    values: np.ndarray,
    clusters: Sequence[object] | np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Return mean and 95 % interval of each column, resampling whole clusters.

    Args:
        values: float (N, K), one row per image, NaN where a value is missing.
        clusters: (N,), such as lesion ids.
        resamples: Bootstrap resamples.
        seed: Sets the resamples; all columns share them.

    Returns:
        K intervals. With fewer than two clusters low and high are NaN.

    Raises:
        UsageError: If shapes do not fit or ``resamples`` is below 1.
    """
    if resamples < 1:
        raise UsageError(f"The bootstrap takes at least 1 resample, not {resamples}.")
    sums, counts = _cluster_sums(values, clusters)
    names = np.unique([str(cluster) for cluster in clusters])
    weights = lesion_resamples(names, resamples, seed) if len(sums) else np.ones((1, 0))
    drawn = _divided(weights @ sums, weights @ counts)
    results = []
    for column in range(sums.shape[1]):
        total, count = sums[:, column].sum(), int(counts[:, column].sum())
        enough = (counts[:, column] > 0).sum() > 1
        low, high = interval(drawn[:, column]) if enough else (np.nan, np.nan)
        mean = float(_divided(total, np.array(count)))
        results.append(Interval(mean, float(low), float(high), count, len(values) - count))
    return results


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def paired_tests(
    differences: np.ndarray,
    clusters: Sequence[object] | np.ndarray,
    *,
    flips: int = FLIPS,
    seed: int = 0,
) -> np.ndarray:
    """Return two-sided p-values that means of paired differences are zero, float64 (K,).

    If neither method were better, swapping the two on a whole lesion would change nothing: the
    observed mean is compared with those after random swaps (all of them up to 13 lesions), which
    all columns (N, K) share. The smallest p-value is 1 / (flips + 1); 1 where all differences are
    zero, NaN where there is none.
    """
    sums, counts = _cluster_sums(differences, clusters)
    known = (counts > 0).any(axis=0)
    sums = sums[(counts > 0).any(axis=1)]
    observed = np.abs(sums.sum(axis=0))
    # Sums of the same numbers in another order differ by rounding.
    least = observed - 1e-12 * np.abs(sums).sum(axis=0)
    if len(sums) <= _EXACT_CLUSTERS:
        bits = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        shares = (np.abs((1.0 - 2.0 * bits) @ sums) >= least).mean(axis=0)
        return np.where(known, shares, np.nan)
    generator = np.random.default_rng(seed)
    reached = np.ones(sums.shape[1])
    for start in range(0, flips, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, flips - start)
        signs = generator.integers(0, 2, (rows, len(sums))) * 2.0 - 1.0
        reached += (np.abs(signs @ sums) >= least).sum(axis=0)
    return np.where(known, reached / (flips + 1), np.nan)


def wilcoxon_test(differences: np.ndarray) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test (Biometrics Bulletin 1945).

    Each row counts as independent: pass the means of lesions, not images. Zero differences are
    split between both signs (Pratt). p = 1 if all are zero, NaN without any.
    """
    from scipy.stats import wilcoxon

    kept = np.asarray(differences, np.float64)
    kept = kept[np.isfinite(kept)]
    if len(kept) == 0:
        return float("nan")
    if not kept.any():
        return 1.0
    return float(wilcoxon(kept, zero_method="zsplit").pvalue)


def cluster_means(values: np.ndarray, clusters: Sequence[object] | np.ndarray) -> np.ndarray:
    """Return the mean of each cluster's finite values, (L,), NaN where it has none."""
    sums, counts = _cluster_sums(np.asarray(values)[:, None], clusters)
    return _divided(sums, counts)[:, 0]


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return p-values corrected for testing all of them, in the same order; NaN stays NaN.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, np.float64)
    corrected = np.full(len(values), np.nan)
    order = np.argsort(values)
    order = order[np.isfinite(values[order])]
    highest = 0.0
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, values[index] * (len(order) - position)))
        corrected[index] = highest
    return corrected

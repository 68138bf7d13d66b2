"""Shapley values from few evaluations: a Gaussian process over coalitions.

The least squares of Kernel SHAP take everything that a sum over pieces does not explain for noise,
and for images that is most of what they see. Here it is a Gaussian process: coalitions that differ
in few pieces have similar worth, covariance rho^(number of pieces in which two coalitions differ).
Under this covariance the Shapley values of the posterior mean, and how uncertain they are, have
closed forms, so nothing is sampled a second time (Bayesian quadrature: O'Hagan, Journal of
Statistical Planning and Inference 1991). On images the squared error is several times smaller than
that of the regression from as many evaluations (docs/performance.md).

A coalition and its complement are used together: the Shapley values of a game are those of its odd
part, (v(S) - v(complement of S)) / 2, so the even part needs no model. The sum over pieces that
Kernel SHAP fits is the trend, without any penalty: a game that is such a sum is solved exactly.
How similar, and how much is noise, is chosen by the restricted likelihood (Patterson & Thompson,
Biometrika 1971; Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006).

The closed form: with u the chance that each other piece is already there, a piece's Shapley value
is its expected effect, averaged over u from 0 to 1. For one coalition T of t pieces among M and
the game S -> rho^|S differs from T| that is, for a piece of T,

    (1 - rho) * integral of (u + (1 - u) rho)^(t - 1) * (u rho + 1 - u)^(M - t) du,

a polynomial that Gauss-Legendre integrates exactly; for a piece outside it has the other sign and
t, M - t - 1 as powers.
"""

from typing import NamedTuple

import numpy as np

from dermlens.explainers.coalitions import Coalitions

LENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""rho = exp(-1 / length); a length is a number of pieces."""
NOISES = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)
"""Of what neither trend nor process explains, relative to the variance of the process."""
_UNKNOWN = (8.0, 0.01)
"""Length and noise where there are no more couples than pieces to choose them by."""
_EXACT = 1e-9
_TINY = 1e-300


class ProcessFit(NamedTuple):
    """Shapley values (T, M) of T games and their posterior standard deviations (T, M).

    ``explained`` (T,) is the share of the variance of the odd part that is predicted where it was
    left out, at most 1: low or negative where the values deserve no trust, NaN where there are
    too few masks to say.
    """

    values: np.ndarray
    deviation: np.ndarray
    explained: np.ndarray


def coalition_shapley(pieces: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the Shapley values of the game S -> rho^|S differs from T|, by the size of T.

    float64 (M + 1,) each: of a piece in T (NaN for size 0) and of a piece outside (NaN for M).
    """
    nodes, weights = np.polynomial.legendre.leggauss(pieces // 2 + 1)
    u = (nodes + 1) / 2
    same, other = u + (1 - u) * rho, u * rho + 1 - u
    sizes = np.arange(pieces)[:, None]
    share = (1 - rho) * (same**sizes * other ** (pieces - 1 - sizes)) @ (weights / 2)
    # Inside, t - 1 others match when present and M - t when absent; outside, t and M - t - 1.
    return np.append(np.nan, share), np.append(-share, np.nan)


def odd_parts(masks: Coalitions, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one coalition of each couple, bool (K, M), and the odd part of the worth there (K, T).

    The first keeps all. A mask whose complement is missing is left out.
    """
    everything = masks.masks
    first: dict[bytes, int] = {}
    for position, mask in enumerate(everything):
        first.setdefault(mask.tobytes(), position)
    couples = [(at, first.get((~everything[at]).tobytes(), -1)) for at in first.values()]
    rows = [at for at, other in couples if at < other]
    others = [other for at, other in couples if at < other]
    return everything[rows], (values[rows] - values[others]) / 2


def process_values(masks: Coalitions, values: np.ndarray) -> ProcessFit:
    """Return the values of T games from their worth (n, T) for some coalitions.

    At least M + 1 couples of a coalition and its complement are needed.
    """
    kept, odd = odd_parts(masks, np.asarray(values, np.float64))
    signs = kept - 0.5
    chosen = _most_likely(signs, odd)
    results = [
        _posterior(kept, signs, odd[:, target], length, noise)
        for target, (length, noise) in enumerate(chosen)
    ]
    shapley, deviation, explained = (np.stack(part) for part in zip(*results, strict=True))
    # Up to rounding they add up already, since the worth of all and of none is known exactly.
    missing = 2 * odd[0] - shapley.sum(axis=1)
    return ProcessFit(shapley + missing[:, None] / kept.shape[1], deviation, explained)


def _covariance(signs: np.ndarray, rho: float) -> np.ndarray:
    """Return the covariance of the odd part between coalitions given as -0.5 and 0.5: (K, K)."""
    pieces = signs.shape[1]
    apart = pieces / 2 - 2 * signs @ signs.T
    return (rho**apart - rho ** (pieces - apart)) / 2


def _most_likely(signs: np.ndarray, odd: np.ndarray) -> list[tuple[float, float]]:
    """Return the length and the noise with the highest restricted likelihood for each game."""
    left, sizes, _ = np.linalg.svd(signs, full_matrices=True)
    rank = int((sizes > sizes[0] * 1e-10).sum())
    free = left[:, rank:]
    count, scale = free.shape[1], np.maximum((odd**2).mean(axis=0), _TINY)
    best = np.full(odd.shape[1], -np.inf)
    chosen = [_UNKNOWN] * odd.shape[1]
    if count == 0:
        return chosen
    for length in LENGTHS:
        spread, turn = np.linalg.eigh(free.T @ _covariance(signs, np.exp(-1 / length)) @ free)
        power = (turn.T @ (free.T @ odd)) ** 2 / scale
        for noise in NOISES:
            variance = np.maximum(spread, 0)[:, None] + noise
            fitted = np.maximum((power / variance).mean(axis=0), 1e-30)
            likelihood = -0.5 * (count * np.log(fitted) + np.log(variance).sum())
            for target in np.flatnonzero(likelihood > best):
                best[target], chosen[target] = likelihood[target], (length, noise)
    return chosen


def _posterior(
    kept: np.ndarray, signs: np.ndarray, odd: np.ndarray, length: float, noise: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return values (M,), standard deviations (M,) and the explained share of one game."""
    couples, pieces = kept.shape
    rho = float(np.exp(-1 / length))
    nugget = np.full(couples, noise)
    # All pieces and none are known, not sampled.
    nugget[0] = _EXACT
    inverse = np.linalg.inv(_covariance(signs, rho) + np.diag(nugget))
    weighed = inverse @ signs
    spread = np.linalg.pinv(signs.T @ weighed, hermitian=True)
    # Removes the trend and whitens: the process sees what no sum over pieces explains.
    projected = inverse - weighed @ spread @ weighed.T
    pull = projected @ odd
    inside, outside = coalition_shapley(pieces, rho)
    size = kept.sum(axis=1)
    reach = np.where(kept, inside[size][:, None], outside[size][:, None])
    values = spread @ (weighed.T @ odd) + reach.T @ pull
    scale = max(float(odd @ pull), 0.0) / max(couples - pieces, 1)
    prior = float((inside[1:] - outside[:-1]).mean())
    unknown = np.eye(pieces) - weighed.T @ reach
    variance = (
        prior
        - np.einsum("km,kl,lm->m", reach, inverse, reach, optimize=True)
        + np.einsum("pm,pq,qm->m", unknown, spread, unknown, optimize=True)
    )
    explained = _explained(pull, np.diag(projected), odd) if couples > pieces else float("nan")
    return values, np.sqrt(scale * np.maximum(variance, 0.0)), explained


def _explained(pull: np.ndarray, precision: np.ndarray, odd: np.ndarray) -> float:
    """Return the share of the variance that is predicted where it was left out, in closed form."""
    around = float((odd[1:] ** 2).sum())
    left_out = pull[1:] / np.maximum(precision[1:], _TINY)
    return 1.0 - float((left_out**2).sum()) / around if around > 0 else 1.0

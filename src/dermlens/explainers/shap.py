"""Shapley values of superpixels: Kernel SHAP, and the same values from fewer masks.

The Shapley values of the game v(S) = output of the image with only the superpixels in S (Lundberg
& Lee, NIPS 2017). Where all 2^M masks fit the budget, they are exact. Otherwise masks come in pairs
with their complements (Covert & Lee, AISTATS 2021). That the values sum to output(image) -
output(all replaced) is a constraint of the solution, not a hope.

* ``KernelSHAP``: least squares under the Shapley kernel, as published.
* ``GaussianProcessSHAP``: a sum over pieces plus a Gaussian process (``shapley_process``); from
  fewer than four masks per superpixel, which are too few to know that process, antithetic
  permutation sampling (Mitchell et al., JMLR 2022).
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from math import factorial

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.attribution import PER_CLASS, PER_IMAGE
from dermlens.explainers.coalitions import Coalitions, shapley_mass
from dermlens.explainers.shapley_process import process_values
from dermlens.explainers.superpixel_explainer import (
    NORMAL_95,
    Fit,
    SuperpixelAttribution,
    SuperpixelExplainer,
    sampling_variance,
)


def shapley_values(values: np.ndarray) -> np.ndarray:
    """Return exact Shapley values (T, M) of a game by its definition.

    Args:
        values: (2^M, T): worth of every coalition; bit i of the position says whether i is in.
    """
    values = np.asarray(values, np.float64)
    players = len(values).bit_length() - 1
    codes = np.arange(len(values))
    sizes = ((codes[:, None] >> np.arange(players)) & 1).sum(axis=1)
    ways = [factorial(s) * factorial(players - s - 1) for s in range(players)]
    chance = np.array([count / factorial(players) for count in ways])
    result = np.zeros((values.shape[1], players))
    for player in range(players):
        without = codes[(codes >> player) & 1 == 0]
        gain = values[without | (1 << player)] - values[without]
        result[:, player] = chance[sizes[without]] @ gain
    return result


@dataclass(kw_only=True)
class ShapleyAttribution(SuperpixelAttribution):
    """What Shapley values know more.

    Attributes:
        baseline_output: float64 (N,) or (N, C): output with all superpixels switched off.
        additivity_gap: float64 (N,) or (N, C): |sum of values - (output - baseline output)|.
        explained: float64 (N,) or (N, C): with the process, share of the variance of the outputs
            that it predicts where they were left out: low where more samples are needed; with
            least squares, share of the weighted variance that they fit; 1 for exact values; NaN
            where nothing can be said.
        estimator: str (N,): ``"exact"``, ``"gaussian_process"``, ``"permutations"`` or
            ``"least_squares"``.
    """

    baseline_output: np.ndarray = field(metadata=PER_CLASS)
    additivity_gap: np.ndarray = field(metadata=PER_CLASS)
    explained: np.ndarray = field(metadata=PER_CLASS)
    estimator: np.ndarray = field(metadata=PER_IMAGE)


class ShapleyExplainer(SuperpixelExplainer[ShapleyAttribution]):
    """What the estimators of Shapley values share."""

    kind = ShapleyAttribution

    def _fit(self, masks: Coalitions, values: np.ndarray) -> Fit:
        if masks.exhaustive:
            name, weights = "exact", exact_values(masks, values)
            half_width, found = np.zeros_like(weights), np.ones(len(weights))
        elif masks.orders is None and len(masks.masks) < 2 * masks.pieces + 2:
            raise UsageError(
                f"{len(masks.masks)} samples are too few for the Shapley values of "
                f"{masks.pieces} superpixels. Use at least {2 * masks.pieces + 2} samples, or "
                "fewer superpixels."
            )
        else:
            name, weights, half_width, found = self._estimated(masks, values)
        gap = np.abs(weights.sum(axis=1) - (values[0] - values[1]))
        facts = {"baseline_output": values[1], "additivity_gap": gap, "explained": found}
        return Fit(weights, half_width, facts, {"estimator": np.array([name])})

    @abstractmethod
    def _estimated(
        self, masks: Coalitions, values: np.ndarray
    ) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        """Return the estimator's name, values and half widths (T, M), and the explained share."""


class KernelSHAP(ShapleyExplainer):
    """Kernel SHAP: least squares under the Shapley kernel.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        **options: superpixels, n_samples, baseline, bank, scorer; see ``SuperpixelExplainer``.

    Returns results of the kind ``ShapleyAttribution``.
    """

    name = "kernel_shap"
    design = "shap"

    def _estimated(
        self, masks: Coalitions, values: np.ndarray
    ) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        weights, half_width = constrained_values(masks, values)
        share = masks.weights(shapley_mass(masks.pieces))[:, None]
        left = values - values[1] - masks.masks @ weights.T
        around = values - (share * values).sum(axis=0) / share.sum()
        spread = (share * around**2).sum(axis=0)
        missing = (share * left**2).sum(axis=0) / np.where(spread > 0, spread, 1.0)
        return "least_squares", weights, half_width, 1.0 - missing


class GaussianProcessSHAP(ShapleyExplainer):
    """Shapley values from a Gaussian process over coalitions.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        **options: superpixels, n_samples, baseline, bank, scorer; see ``SuperpixelExplainer``.

    Returns results of the kind ``ShapleyAttribution``.
    """

    name = "gp_shap"
    design = "even"

    def _estimated(
        self, masks: Coalitions, values: np.ndarray
    ) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        if masks.orders is not None:
            weights, half_width = permutation_values(masks, values)
            return "permutations", weights, half_width, np.full(len(weights), np.nan)
        weights, deviation, found = process_values(masks, values)
        return "gaussian_process", weights, NORMAL_95 * deviation, found


def exact_values(masks: Coalitions, values: np.ndarray) -> np.ndarray:
    """Return Shapley values (T, M) from the outputs (2^M, T) of all masks in any order."""
    ordered = np.empty_like(values)
    ordered[masks.masks @ (1 << np.arange(masks.pieces))] = values
    return shapley_values(ordered)


def permutation_values(masks: Coalitions, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Shapley values and half widths at 95 %, (T, M) each, from ``masks.orders``.

    The mean over permutations of what each piece adds to those before it; a permutation and its
    reverse are drawn together, and make their mean vary less than the interval, which takes them
    for independent, allows for.
    """
    from scipy.stats import t

    assert masks.orders is not None
    place = {mask.tobytes(): position for position, mask in enumerate(masks.masks)}
    gains = np.zeros((len(masks.orders), values.shape[1], masks.pieces))
    for row, order in enumerate(masks.orders):
        kept = np.arange(masks.pieces)[:, None] >= np.argsort(order)[None]
        worth = values[[1, *(place[mask.tobytes()] for mask in kept)]]
        gains[row][:, order] = np.diff(worth, axis=0).T
    error = gains.std(axis=0, ddof=1) / np.sqrt(len(gains))
    return gains.mean(axis=0), t.ppf(0.975, len(gains) - 1) * error


def constrained_values(masks: Coalitions, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares whose solution sums to the whole change of output, exactly."""
    weights = masks.weights(shapley_mass(masks.pieces))
    kept = masks.masks.astype(np.float64)
    worth = values - values[1]
    change = worth[0]
    normal = kept.T @ (weights[:, None] * kept)
    inverse = np.linalg.pinv(normal, hermitian=True)
    free = inverse @ (kept.T @ (weights[:, None] * worth))
    direction = inverse.sum(axis=1)
    step = direction / direction.sum()
    fitted = free + step[:, None] * (change - free.sum(axis=0))
    # The constraint also removes from the errors whatever would change the sum.
    projected = inverse - np.outer(step, direction)
    error = worth - kept @ fitted
    influence = (weights[:, None] * error).T[:, :, None] * kept[None]
    variance = sampling_variance(projected, influence, masks, masks.pieces)
    return fitted.T, NORMAL_95 * np.sqrt(variance)

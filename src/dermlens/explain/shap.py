"""Kernel SHAP on superpixels (Lundberg & Lee, NIPS 2017), and the same values from fewer masks.

The Shapley values of the game v(S) = output of the image with only the superpixels in S. Where all
2^M masks fit the budget, they are exact. Otherwise masks come in pairs with their complements
(Covert & Lee, AISTATS 2021), and there are two estimators:

* ``"process"``, the default: a sum over pieces plus a Gaussian process (``shapley_process``);
* ``"regression"``: Kernel SHAP as published, least squares under the Shapley kernel.

Both estimate the same values. That they sum to output(image) - output(all replaced) is a constraint
of the solution, not a hope.
"""

from abc import abstractmethod
from math import factorial

import numpy as np

from dermlens.errors import UsageError
from dermlens.explain.coalitions import Coalitions, shapley_mass
from dermlens.explain.shapley_process import process_values
from dermlens.explain.superpixel_explainer import (
    NORMAL_95,
    Fit,
    SuperpixelExplainer,
    sampling_variance,
)


def shapley_values(values: np.ndarray) -> np.ndarray:
    """Return exact Shapley values of a game by its definition.

    Args:
        values: (2^M, T): worth of every coalition; bit i of the position says whether i is in.

    Returns:
        float64 (T, M).

    Example:
        >>> shapley_values(np.array([[0.0], [1.0], [2.0], [6.0]])).tolist()
        [[2.5, 3.5]]
    """
    values = np.asarray(values, np.float64)
    players = len(values).bit_length() - 1
    codes = np.arange(len(values))
    sizes = sum((codes >> i) & 1 for i in range(players))
    chance = np.array(
        [factorial(s) * factorial(players - s - 1) / factorial(players) for s in range(players)]
    )
    result = np.zeros((values.shape[1], players))
    for player in range(players):
        without = codes[(codes >> player) & 1 == 0]
        gain = values[without | (1 << player)] - values[without]
        result[:, player] = chance[np.asarray(sizes)[without]] @ gain
    return result


class ShapleyExplainer(SuperpixelExplainer):
    """What the estimators of the Shapley values of superpixels share."""

    def _least(self, masks: Coalitions) -> int:
        # K masks with their complements span K + 1 dimensions.
        return min(len(masks.masks), max(masks.enumerated + 2, 2 * masks.pieces + 4))

    def _fit(self, masks: Coalitions, values: np.ndarray) -> Fit:
        if masks.exhaustive:
            weights, half_width = self._exact(masks, values)
            found = np.ones(len(weights))
        else:
            self._enough(masks)
            weights, half_width, found = self._estimated(masks, values)
        facts = {"baseline_output": values[1], "explained": found}
        facts["additivity_gap"] = np.abs(weights.sum(axis=1) - (values[0] - values[1]))
        return Fit(weights, half_width, facts)

    @abstractmethod
    def _estimated(
        self, masks: Coalitions, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return values and half widths (T, M), and how much is explained (T,)."""

    def _enough(self, masks: Coalitions) -> None:
        if len(masks.masks) < 2 * masks.pieces + 2:
            raise UsageError(
                f"{len(masks.masks)} samples are too few for the Shapley values of "
                f"{masks.pieces} superpixels. Use at least {2 * masks.pieces + 2} samples, or "
                "fewer superpixels."
            )

    @staticmethod
    def _exact(masks: Coalitions, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = masks.masks @ (1 << np.arange(masks.pieces))
        ordered = np.empty_like(values)
        ordered[codes] = values
        weights = shapley_values(ordered)
        return weights, np.zeros_like(weights)


class KernelSHAP(ShapleyExplainer):
    """Kernel SHAP: least squares under the Shapley kernel.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        **options: Those of ``SuperpixelExplainer``.
    """

    name = "kernel_shap"
    design = "shap"

    def _estimated(
        self, masks: Coalitions, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return *constrained_values(masks, values), np.full(values.shape[1], np.nan)


class GaussianProcessSHAP(ShapleyExplainer):
    """Shapley values of superpixels from a Gaussian process over coalitions.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        **options: Those of ``SuperpixelExplainer``.

    Example:
        >>> from dermlens.model.classifier import Architecture, build_classifier
        >>> model = build_classifier(Architecture("mobilenetv3small", (32, 48)))
        >>> images = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
        >>> explainer = GaussianProcessSHAP(model, superpixels=6, n_samples=64)
        >>> result = explainer.attribute(images, targets="class 4")
        >>> result.maps.shape, bool(result.details["additivity_gap"][0] < 1e-5)
        ((1, 32, 48), True)
    """

    name = "gp_shap"
    design = "even"

    def _estimated(
        self, masks: Coalitions, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        fit = process_values(masks, values)
        return fit.values, NORMAL_95 * fit.deviation, fit.explained


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

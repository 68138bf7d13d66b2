"""Kernel SHAP on superpixels (Lundberg & Lee, NIPS 2017).

The Shapley values of the game v(S) = score of the image with only the superpixels in S, found by
least squares under the Shapley kernel. That the values sum to score(image) - score(all replaced)
is a constraint of the solution, not a hope. Masks come in pairs with their complements (Covert &
Lee, AISTATS 2021); where all 2^M masks fit the budget, the values are exact.
"""

from math import factorial

import numpy as np

from dermlens.errors import UsageError
from dermlens.explain.coalitions import Coalitions, shapley_mass
from dermlens.explain.segment_explainer import (
    NORMAL_95,
    Fit,
    SegmentExplainer,
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


class KernelSHAP(SegmentExplainer):
    """Kernel SHAP on superpixels.

    Args:
        model: Keras model from raw RGB 0..255 (N, H, W, 3) to logits (N, C).
        segments: About how many superpixels, or labels (H, W), or a function that makes labels.
        samples: Masks per image; where 2^M is no more, the values are exact.
        fill: What stands for superpixels that are switched off.
        stable_top: Stop when the order of this many strongest superpixels no longer changes;
            0 evaluates all samples.
        bank: Evaluations to share with LIME; replaces segments, samples, fill and scorer.
        scorer: Evaluates the masked images in place of the model.
        classes: Codes in the order of the logits.

    Result details: those of ``SegmentExplainer``, ``baseline_score`` (N,) and ``additivity_gap``
    (N,): |sum of values - (score - baseline score)|.

    Example:
        >>> from dermlens.model.classifier import Architecture, build_classifier
        >>> model = build_classifier(Architecture("mobilenetv3small", (32, 48)))
        >>> images = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
        >>> result = KernelSHAP(model, segments=6, samples=64).attribute(images, targets="mel")
        >>> result.maps.shape, bool(result.details["additivity_gap"][0] < 1e-5)
        ((1, 32, 48), True)
    """

    name = "shap"
    design = "shap"

    def _least(self, masks: Coalitions) -> int:
        # K masks with their complements span K + 1 dimensions.
        return min(len(masks.masks), max(masks.enumerated + 2, 2 * masks.pieces + 2))

    def _fit(self, masks: Coalitions, values: np.ndarray) -> Fit:
        if masks.exhaustive:
            weights, half_width = self._exact(masks, values)
        else:
            self._enough(masks)
            weights, half_width = _constrained(masks, values)
        gap = np.abs(weights.sum(axis=1) - (values[0] - values[1]))
        return Fit(weights, half_width, {"baseline_score": values[1], "additivity_gap": gap})

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


def _constrained(masks: Coalitions, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares whose solution sums to the whole change of score, exactly."""
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

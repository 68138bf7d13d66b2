"""What LIME and Kernel SHAP share: superpixels, evaluations, stopping, intervals."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explain.baselines import Baseline
from dermlens.explain.coalitions import Coalitions
from dermlens.explain.output import Output
from dermlens.explain.perturbation import (
    Choose,
    Explained,
    MaskedModel,
    PerturbationExplainer,
    Scorer,
    output_values,
)
from dermlens.explain.superpixel_bank import (
    DEFAULT_SAMPLES,
    DEFAULT_SUPERPIXELS,
    Evaluations,
    SuperpixelBank,
    Superpixels,
)
from dermlens.explain.superpixels import painted

UNCHANGED_CHECKS = 2
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Fit:
    """A linear model of the output in the superpixels, for T targets.

    Attributes:
        weights: float64 (T, M).
        half_width: float64 (T, M), of the 95 % interval over other draws of masks.
        facts: More by name, arrays (T,).
    """

    weights: np.ndarray
    half_width: np.ndarray
    facts: dict[str, np.ndarray] = field(default_factory=dict)


class SuperpixelExplainer(PerturbationExplainer):
    """Fits the outputs of images with superpixels switched off.

    Result details: ``segments`` int32 (N, H, W); ``weights`` and ``interval`` (half width
    at 95 %, over other random masks), (N, M), or (N, C, M) for all classes, NaN where an image has
    fewer superpixels; ``samples`` (N,): masks evaluated.
    """

    design = ""

    def __init__(
        self,
        model: Any,
        *,
        superpixels: Superpixels = DEFAULT_SUPERPIXELS,
        n_samples: int = DEFAULT_SAMPLES,
        baseline: Baseline = "border",
        stable_top: int = 0,
        bank: SuperpixelBank | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(model)
        if stable_top < 0:
            raise UsageError(f"stable_top must be 0 (never stop early) or more, not {stable_top}.")
        self.stable_top = stable_top
        self.bank = bank or SuperpixelBank(
            self.classifier,
            superpixels=superpixels,
            n_samples=n_samples,
            baseline=baseline,
            design=self.design,
            scorer=scorer,
        )
        self.scorer = self.bank.scorer

    @property
    def traces(self) -> int:
        """How often the masked model was traced."""
        return self.bank.traces

    @abstractmethod
    def _fit(self, masks: Coalitions, values: np.ndarray) -> Fit:
        """Fit outputs, float64 (n, T), of evaluated masks."""

    def _least(self, masks: Coalitions) -> int:
        """Return how many masks a fit needs at least."""
        return masks.enumerated + 2

    def _one(
        self, image: np.ndarray, choose: Choose, output: Output, batch_size: int, seed: int
    ) -> Explained:
        masked = self.bank.masked_model(batch_size, self.network.cost)
        evaluations = self.bank.evaluations(image, seed)
        if not self.stable_top:
            count = len(evaluations.coalitions.masks)
            logits = evaluations.up_to(count, masked)
            goals = choose(logits[:1])
            values = output_values(output, logits)[:, goals]
            fit = self._fit(evaluations.coalitions, values)
        else:
            fit, goals, values = self._until_stable(evaluations, choose, output, masked)
        return Explained(
            painted(fit.weights, evaluations.labels),
            goals,
            values[0].astype(np.float32),
            {"weights": fit.weights, "interval": fit.half_width, **fit.facts},
            {"superpixels": evaluations.labels, "n_samples": len(values)},
        )

    def _until_stable(
        self, evaluations: Evaluations, choose: Choose, output: Output, masked: MaskedModel
    ) -> tuple[Fit, np.ndarray, np.ndarray]:
        """Evaluate in rounds until the strongest superpixels keep their order."""
        everything = evaluations.coalitions
        total, step = len(everything.masks), max(2 * everything.pieces, masked.batch_size)
        count = min(total, max(self._least(everything), step))
        last, unchanged = None, 0
        while True:
            logits = evaluations.up_to(count, masked)
            goals = choose(logits[:1])
            values = output_values(output, logits)[:, goals]
            fit = self._fit(everything.first(count), values)
            order = ranking(fit.weights)[:, : self.stable_top]
            unchanged = unchanged + 1 if last is not None and np.array_equal(order, last) else 0
            if unchanged >= UNCHANGED_CHECKS or count >= total:
                return fit, goals, values
            last, count = order, min(total, count + step)


def ranking(weights: np.ndarray) -> np.ndarray:
    """Return superpixels by falling size of their weight: int (..., M); NaN comes last.

    Example:
        >>> ranking(np.array([0.1, -3.0, 2.0])).tolist()
        [1, 2, 0]
    """
    return np.argsort(-np.nan_to_num(np.abs(weights), nan=-1.0), axis=-1, kind="stable")


def sampling_variance(
    inverse: np.ndarray, influence: np.ndarray, masks: Coalitions, parameters: int
) -> np.ndarray:
    """Return the variance of fitted weights over other draws of masks: float64 (T, M).

    The sandwich estimator with a mask and its complement as one draw; masks that were not drawn
    vary nothing (White, Econometrica 1980; Liang & Zeger, Biometrika 1986).

    Args:
        inverse: (M, M), maps influences to weights.
        influence: (T, n, M): weight times residual times regressor of each mask.
        masks: The masks.
        parameters: Number of fitted values, for the small-sample correction.
    """
    drawn = masks.pairs >= 0
    count = int(drawn.sum())
    targets, _, pieces = influence.shape
    if count == 0:
        return np.zeros((targets, pieces))
    if len(masks.masks) <= parameters:
        return np.full((targets, pieces), np.nan)
    pair = np.unique(masks.pairs[drawn], return_inverse=True)[1]
    sums = np.zeros((pair.max() + 1, targets, pieces))
    np.add.at(sums, pair, influence[:, drawn].transpose(1, 0, 2))
    moved = sums @ inverse
    correction = len(masks.masks) / (len(masks.masks) - parameters)
    return (moved**2).sum(axis=0) * correction

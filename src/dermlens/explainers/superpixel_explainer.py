"""What LIME and the Shapley values share: superpixels, masked evaluations, intervals."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from dermlens.explainers.attribution import PER_CLASS, PER_IMAGE, Attribution
from dermlens.explainers.base import Request
from dermlens.explainers.baselines import Baseline
from dermlens.explainers.coalitions import Coalitions
from dermlens.explainers.perturbation import PerturbationExplainer, Scorer, output_values
from dermlens.explainers.superpixel_bank import (
    DEFAULT_SAMPLES,
    DEFAULT_SUPERPIXELS,
    SuperpixelBank,
    Superpixels,
    superpixel_masks,
)
from dermlens.explainers.superpixels import painted

NORMAL_95 = 1.959964
_STRONGEST = 5


@dataclass(kw_only=True)
class SuperpixelAttribution(Attribution):
    """What methods on superpixels know more.

    Attributes:
        superpixels: int32 (N, H, W): superpixel of each pixel.
        weights: float64 (N, M), or (N, C, M) for all classes: weight of each superpixel; NaN where
            an image has fewer.
        interval: Likewise: half width at 95 %, over other random masks.
        n_samples: int (N,): masks evaluated.
        scorer: Name of what evaluated the masked images.
    """

    superpixels: np.ndarray = field(metadata=PER_IMAGE)
    weights: np.ndarray = field(metadata=PER_CLASS)
    interval: np.ndarray = field(metadata=PER_CLASS)
    n_samples: np.ndarray = field(metadata=PER_IMAGE)
    scorer: str

    def facts(self, position: int = 0) -> dict[str, Any]:
        """Return what ``Attribution.facts`` does, and the strongest superpixels of one class."""
        found = super().facts(position)
        if self.weights.ndim == 2:
            weights, half = self.weights[position], self.interval[position]
            strongest = ranking(weights)[:_STRONGEST].tolist()
            rows = zip(
                strongest, weights[strongest].tolist(), half[strongest].tolist(), strict=True
            )
            names = ("superpixel", "weight", "interval_half_width")
            found["strongest_superpixels"] = [dict(zip(names, row, strict=True)) for row in rows]
        return found


Pieces = TypeVar("Pieces", bound=SuperpixelAttribution)


@dataclass(frozen=True)
class Fit:
    """A linear model of the output in the superpixels, for T targets.

    Attributes:
        weights: float64 (T, M).
        half_width: float64 (T, M), of the 95 % interval over other draws of masks.
        facts: More, (T,) by the name of the field of the result.
        shared: What is known whatever the class, (1,) likewise.
    """

    weights: np.ndarray
    half_width: np.ndarray
    facts: dict[str, np.ndarray]
    shared: dict[str, np.ndarray] = field(default_factory=dict)


class SuperpixelExplainer(PerturbationExplainer[Pieces]):
    """Fits the outputs of images with superpixels switched off.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        superpixels: About how many superpixels, or labels (H, W), or a function that makes labels.
        n_samples: Masks per image; about ten per superpixel.
        baseline: What stands for superpixels that are switched off: ``"border"``, ``"blur"``,
            ``"black"``, a gray value, a color or an image in the classifier's range of values.
        bank: Evaluations to share with other methods; replaces all of the above.
        scorer: Evaluates the masked images in place of the model.
    """

    design = ""

    def __init__(
        self,
        model: Any,
        *,
        superpixels: Superpixels = DEFAULT_SUPERPIXELS,
        n_samples: int = DEFAULT_SAMPLES,
        baseline: Baseline = "border",
        bank: SuperpixelBank | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        if bank is None:
            bank = SuperpixelBank(
                model,
                superpixels=superpixels,
                n_samples=n_samples,
                baseline=baseline,
                design=self.design,
                scorer=scorer,
            )
        super().__init__(model, superpixel_masks, bank.scorer)
        self.bank, self.masked = bank, bank.masked

    @abstractmethod
    def _fit(self, masks: Coalitions, values: np.ndarray) -> Fit:
        """Fit outputs, float64 (n, T), of evaluated masks."""

    def _one(self, image: np.ndarray, asked: Request) -> Pieces:
        made = self.bank.evaluations(image, asked.seed, asked.batch_size)
        goals = asked.goals(made.logits[:1])[0]
        values = output_values(asked.output, made.logits)[:, goals]
        fit = self._fit(made.coalitions, values)
        facts: dict[str, Any] = {name: value[None] for name, value in fit.facts.items()}
        facts |= {"superpixels": made.labels[None], "n_samples": np.array([len(values)])}
        facts |= {"weights": fit.weights[None], "interval": fit.half_width[None]}
        maps = painted(fit.weights, made.labels)
        return self._scored(asked, made.logits, goals, maps, **facts, **fit.shared)


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

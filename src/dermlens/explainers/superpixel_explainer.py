"""What LIME and the Shapley values share: superpixels, masked evaluations, intervals."""

import zlib
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from dermlens.errors import ExplanationError
from dermlens.explainers.attribution import PER_CLASS, PER_IMAGE, Attribution, Cost
from dermlens.explainers.base import Request, even_batch, image_generator, whole_number
from dermlens.explainers.baselines import Baseline, baseline_image, own_baseline
from dermlens.explainers.coalitions import Coalitions, coalitions
from dermlens.explainers.perturbation import (
    MaskedModel,
    PerturbationExplainer,
    Scorer,
    output_values,
)
from dermlens.explainers.superpixels import painted, superpixels
from dermlens.model.image_classifier import as_classifier
from dermlens.model.lite import weights_checksum

NORMAL_95 = 1.959964
_STRONGEST = 5

Superpixels = int | np.integer | np.ndarray | Callable[[np.ndarray], np.ndarray]
"""About how many superpixels; or labels int (H, W); or a function from image to labels."""

DEFAULT_SUPERPIXELS = 50
DEFAULT_SAMPLES = 500


@dataclass(frozen=True)
class Evaluations:
    """One image under n masks: superpixel of each pixel (H, W), masks, and logits (n, C)."""

    labels: np.ndarray
    coalitions: Coalitions
    logits: np.ndarray


class SuperpixelBank:
    """Masked evaluations of images, for every method on superpixels and all classes.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        superpixels: About how many superpixels, labels (H, W), or a function that makes labels.
        n_samples: Largest number of masks per image.
        baseline: What stands for superpixels that are switched off.
        design: Which masks: ``"lime"``, ``"shap"``, or ``"both"`` to serve both methods.
        scorer: Evaluates the masked images in place of the model.
        keep: How many images to remember, about 1.3 MB each at 192x256.

    Example:
        Both methods for the price of one::

            bank = SuperpixelBank(model)
            lime, shap = LIME(model, bank=bank), GaussianProcessSHAP(model, bank=bank)
    """

    def __init__(
        self,
        model: Any,
        *,
        superpixels: Superpixels = DEFAULT_SUPERPIXELS,
        n_samples: int = DEFAULT_SAMPLES,
        baseline: Baseline = "border",
        design: str = "both",
        scorer: Scorer | None = None,
        keep: int = 32,
    ) -> None:
        self.n_samples = whole_number(n_samples, "The number of samples", 4)
        coalitions(2, self.n_samples, design, np.random.default_rng(0))
        classifier = as_classifier(model)
        self.model, self.design, self.keep = classifier.model, design, keep
        self.baseline = own_baseline(baseline, classifier)
        plain = not callable(superpixels) and np.ndim(superpixels) == 0
        self.superpixels: Any = (
            whole_number(superpixels, "The number of superpixels", 2) if plain else superpixels
        )
        self.scorer = scorer
        self.masked = MaskedModel(self.model, superpixel_masks, Cost(), scorer)
        self._kept: OrderedDict[tuple[int, int, int], Evaluations] = OrderedDict()

    def evaluations(self, image: np.ndarray, seed: int, batch_size: int) -> Evaluations:
        """Return the evaluations of a float32 image (H, W, 3), made if they are not there."""
        # The weights are part of the key: after training or randomization nothing stale is used.
        key = (seed, weights_checksum(self.model), zlib.crc32(np.ascontiguousarray(image).data))
        if key not in self._kept:
            self._kept[key] = self._evaluated(image, seed, batch_size)
            if len(self._kept) > self.keep:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _evaluated(self, image: np.ndarray, seed: int, batch_size: int) -> Evaluations:
        labels = self._labels(image)
        generator = image_generator(seed, image)
        masks = coalitions(int(labels.max()) + 1, self.n_samples, self.design, generator)
        background, jobs = baseline_image(image, self.baseline), masks.masks.astype(np.float32)
        batch = even_batch(self.n_samples, batch_size)
        logits = self.masked.logits(image, background, labels, jobs, batch)
        return Evaluations(labels, masks, logits)

    def _labels(self, image: np.ndarray) -> np.ndarray:
        given = self.superpixels
        if isinstance(given, int):
            return superpixels(image, given)
        labels = np.asarray(given(image) if callable(given) else given)
        if labels.shape != image.shape[:2]:
            raise ExplanationError(
                f"Superpixel labels of shape {labels.shape} do not fit an image of "
                f"{image.shape[:2]}."
            )
        return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def superpixel_masks(labels: Any, kept: Any) -> Any:
    """Return masks (B, H, W) from labels (H, W) and kept pieces (B, M)."""
    import tensorflow as tf

    return tf.gather(kept, labels, axis=1)


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
            weights, half = self.weights[position].tolist(), self.interval[position].tolist()
            found["strongest_superpixels"] = [
                {"superpixel": i, "weight": weights[i], "interval_half_width": half[i]}
                for i in ranking(self.weights[position])[:_STRONGEST].tolist()
            ]
        return found


Pieces = TypeVar("Pieces", bound=SuperpixelAttribution)


@dataclass(frozen=True)
class Fit:
    """A linear model of the output in the superpixels, for T targets.

    Weights and half widths of their 95 % intervals over other draws of masks, float64 (T, M); and
    by the name of the field of the result, more for each target (T,), and for all of them (1,).
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
    """Return superpixels by falling size of their weight: int (..., M); NaN comes last."""
    return np.argsort(-np.nan_to_num(np.abs(weights), nan=-1.0), axis=-1, kind="stable")


def sampling_variance(
    inverse: np.ndarray, influence: np.ndarray, masks: Coalitions, parameters: int
) -> np.ndarray:
    """Return the variance of fitted weights over other draws of masks: float64 (T, M).

    The sandwich estimator with a mask and its complement as one draw; masks that were not drawn
    vary nothing (White, Econometrica 1980; Liang & Zeger, Biometrika 1986). ``inverse`` (M, M)
    maps influences to weights; ``influence`` (T, n, M) is weight times residual times regressor
    of each mask; the number of fitted ``parameters`` is for the small-sample correction.
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

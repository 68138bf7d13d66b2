"""One set of masked evaluations of an image, for every method on superpixels and all classes."""

import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.errors import ExplanationError
from dermlens.explainers.attribution import Cost
from dermlens.explainers.base import even_batch, image_generator, whole_number
from dermlens.explainers.baselines import Baseline, baseline_image, own_baseline
from dermlens.explainers.coalitions import Coalitions, coalitions
from dermlens.explainers.perturbation import MaskedModel, Scorer
from dermlens.explainers.superpixels import superpixels
from dermlens.model.image_classifier import as_classifier
from dermlens.model.lite import weights_checksum

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
    """Makes evaluations and keeps those of the last images, so that methods can share them.

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
            while len(self._kept) > self.keep:
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

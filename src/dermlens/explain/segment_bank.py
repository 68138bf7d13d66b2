"""One set of masked evaluations of an image, for LIME, Kernel SHAP and all classes."""

import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from dermlens.errors import ExplanationError, UsageError
from dermlens.explain.base import Cost, image_generator
from dermlens.explain.coalitions import Coalitions, coalitions
from dermlens.explain.fills import Fill, fill_image
from dermlens.explain.gradients import even_batch
from dermlens.explain.perturbation import MaskedModel, Scorer
from dermlens.explain.superpixels import superpixels
from dermlens.model.lite import weights_checksum
from dermlens.model.image_classifier import as_classifier

Segmentation = int | np.ndarray | Callable[[np.ndarray], np.ndarray]
"""About how many superpixels; or labels int (H, W); or a function from image to labels."""

DEFAULT_SEGMENTS = 50
DEFAULT_SAMPLES = 500


class Evaluations:
    """Logits of one image under many masks, computed as far as they are asked for.

    Args:
        image: float32 RGB 0..255, (H, W, 3).
        labels: int32 (H, W): superpixel of each pixel.
        masks: Which superpixels each evaluation keeps.
        fill: What stands for superpixels that are switched off, like ``image``.
    """

    def __init__(
        self, image: np.ndarray, labels: np.ndarray, masks: Coalitions, fill: np.ndarray
    ) -> None:
        self.image, self.labels, self.coalitions, self.fill = image, labels, masks, fill
        self._logits: list[np.ndarray] = []
        self._count = 0

    def up_to(self, count: int, masked: MaskedModel) -> np.ndarray:
        """Return logits of the first ``count`` masks, float32 (count, C)."""
        count = min(count, len(self.coalitions.masks))
        if count > self._count:
            jobs = self.coalitions.masks[self._count : count].astype(np.float32)
            self._logits.append(masked.logits(self.image, self.fill, self.labels, jobs))
            self._count = count
        return np.concatenate(self._logits)[:count]


class SegmentBank:
    """Makes evaluations and keeps those of the last images, so that methods can share them.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        segments: About how many superpixels, labels (H, W), or a function that makes labels.
        samples: Largest number of masks per image.
        fill: What stands for superpixels that are switched off.
        design: Which masks: ``"lime"``, ``"shap"``, or ``"both"`` to serve both methods.
        scorer: Evaluates the masked images in place of the model.
        keep: How many images to remember, about 1.3 MB each at 192x256.

    Example:
        Both methods for the price of one::

            bank = SegmentBank(model)
            lime, shap = LIME(model, bank=bank), KernelSHAP(model, bank=bank)
    """

    def __init__(
        self,
        model: Any,
        *,
        segments: Segmentation = DEFAULT_SEGMENTS,
        samples: int = DEFAULT_SAMPLES,
        fill: Fill = "mean_skin",
        design: str = "both",
        scorer: Scorer | None = None,
        keep: int = 32,
    ) -> None:
        coalitions(2, max(samples, 4), design, np.random.default_rng(0))
        if samples < 4:
            raise UsageError(f"At least 4 samples are needed, not {samples}.")
        self.model, self.segments, self.samples = as_classifier(model).model, segments, samples
        self.fill, self.design, self.keep = fill, design, keep
        self.scorer = scorer
        self._kept: OrderedDict[tuple[int, int, int], Evaluations] = OrderedDict()
        self._models: dict[int, MaskedModel] = {}

    @property
    def traces(self) -> int:
        """How often the masked model was traced."""
        return sum(masked.traces for masked in self._models.values())

    def masked_model(self, batch_size: int, cost: Cost) -> MaskedModel:
        """Return the masked model for a batch size, made once, counting into ``cost``."""
        batch = even_batch(self.samples, batch_size)
        if batch not in self._models:
            self._models[batch] = MaskedModel(
                self.model, segment_masks, batch, cost, scorer=self.scorer
            )
        self._models[batch].cost = cost
        return self._models[batch]

    def evaluations(self, image: np.ndarray, seed: int) -> Evaluations:
        """Return the evaluations of a float32 image (H, W, 3), begun if they are not there."""
        # The weights are part of the key: after training or randomization nothing stale is used.
        key = (seed, weights_checksum(self.model), zlib.crc32(np.ascontiguousarray(image).data))
        if key not in self._kept:
            labels = self._labels(image)
            generator = image_generator(seed, image)
            masks = coalitions(int(labels.max()) + 1, self.samples, self.design, generator)
            self._kept[key] = Evaluations(image, labels, masks, fill_image(image, self.fill))
            while len(self._kept) > self.keep:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _labels(self, image: np.ndarray) -> np.ndarray:
        if isinstance(self.segments, int):
            return superpixels(image, self.segments)
        made = self.segments(image) if callable(self.segments) else self.segments
        labels = np.asarray(made)
        if labels.shape != image.shape[:2]:
            raise ExplanationError(
                f"Superpixel labels of shape {labels.shape} do not fit an image of "
                f"{image.shape[:2]}."
            )
        return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def segment_masks(labels: Any, kept: Any) -> Any:
    """Return masks (B, H, W) from labels (H, W) and kept pieces (B, M)."""
    import tensorflow as tf

    return tf.gather(kept, labels, axis=1)

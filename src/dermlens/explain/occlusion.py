"""Occlusion sensitivity (Zeiler & Fergus, ECCV 2014): what does covering a patch cost?

effect(patch) = score(image) - score(image with the patch replaced); the value of a pixel is the
mean effect of the patches that cover it, so pixels under many patches do not count more.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.diagnoses import CODES
from dermlens.errors import UsageError
from dermlens.explain.fills import Fill, fill_image
from dermlens.explain.gradients import even_batch
from dermlens.explain.perturbation import (
    Choose,
    Explained,
    MaskedModel,
    PerturbationExplainer,
    Scorer,
    score_values,
)
from dermlens.explain.score import Score

_PATCHES_PER_SHORT_SIDE = 6


def patch_starts(length: int, patch: int, stride: int) -> np.ndarray:
    """Return where patches start along one side; the last ends at the border: int32 (P,).

    Example:
        >>> patch_starts(10, 4, 3).tolist(), patch_starts(11, 4, 3).tolist()
        ([0, 3, 6], [0, 3, 6, 7])
    """
    patch = min(patch, length)
    starts = np.arange(0, length - patch + 1, stride)
    if starts[-1] != length - patch:
        starts = np.append(starts, length - patch)
    return starts.astype(np.int32)


def patch_boxes(
    size: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]
) -> np.ndarray:
    """Return top, left, bottom, right of all patches, int32 (P, 4), that cover every pixel."""
    rows = patch_starts(size[0], patch[0], stride[0])
    columns = patch_starts(size[1], patch[1], stride[1])
    top, left = (a.ravel() for a in np.meshgrid(rows, columns, indexing="ij"))
    bottom, right = top + min(patch[0], size[0]), left + min(patch[1], size[1])
    return np.stack([top, left, bottom, right], axis=1).astype(np.int32)


def spread_over_boxes(effects: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the mean effect of the patches that cover each pixel.

    Args:
        effects: float (T, P).
        boxes: int (P, 4): top, left, bottom, right.
        size: (H, W).

    Returns:
        float32 (T, H, W).
    """
    total = np.zeros((len(effects), *size))
    coverage = np.zeros(size)
    for position, (top, left, bottom, right) in enumerate(boxes):
        total[:, top:bottom, left:right] += effects[:, position, None, None]
        coverage[top:bottom, left:right] += 1
    return (total / coverage).astype(np.float32)


def _pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    rows, columns = (value, value) if isinstance(value, int) else value
    if rows < 1 or columns < 1:
        raise UsageError(f"The {name} of an occlusion must be at least 1 pixel, not {value}.")
    return rows, columns


class Occlusion(PerturbationExplainer):
    """Occlusion: a patch slides over the image, and the loss of score is noted.

    Args:
        model: Keras model from raw RGB 0..255 (N, H, W, 3) to logits (N, C).
        patch: Side or (height, width) of the patch in pixels; default a sixth of the image's
            shorter side.
        stride: Step in pixels, at most the patch; default half the patch.
        fill: What the patch shows: ``"mean_skin"``, ``"blur"``, ``"black"``, a color or an image.
        scorer: Evaluates the covered images in place of the model.
        classes: Codes in the order of the logits.

    Result details: ``boxes`` int32 (P, 4) and ``effects`` (N, P), or (N, C, P) for all classes.

    Example:
        >>> from dermlens.model.classifier import Architecture, build_classifier
        >>> model = build_classifier(Architecture("mobilenetv3small", (32, 48)))
        >>> result = Occlusion(model, patch=16, stride=16).attribute(np.zeros((1, 32, 48, 3)))
        >>> result.maps.shape, result.cost.forward
        ((1, 32, 48), 7)
    """

    name = "occlusion"

    def __init__(
        self,
        model: Any,
        *,
        patch: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        fill: Fill = "mean_skin",
        scorer: Scorer | None = None,
        classes: Sequence[str] = CODES,
    ) -> None:
        super().__init__(model, classes=classes)
        self.patch = None if patch is None else _pair(patch, "patch")
        self.stride = None if stride is None else _pair(stride, "stride")
        self.fill, self.scorer = fill, scorer
        self._models: dict[int, MaskedModel] = {}

    @property
    def traces(self) -> int:
        """How often the masked model was traced."""
        return sum(masked.traces for masked in self._models.values())

    def boxes(self, size: tuple[int, int]) -> np.ndarray:
        """Return the patches used on images of a size, int32 (P, 4).

        Raises:
            UsageError: If the stride is larger than the patch, which would leave gaps.
        """
        side = max(1, min(size) // _PATCHES_PER_SHORT_SIDE)
        patch = self.patch or (side, side)
        stride = self.stride or (max(1, patch[0] // 2), max(1, patch[1] // 2))
        if stride[0] > patch[0] or stride[1] > patch[1]:
            raise UsageError(
                f"A stride of {stride} leaves gaps between patches of {patch}. Use at most the "
                "size of the patch."
            )
        return patch_boxes(size, patch, stride)

    def _one(
        self, image: np.ndarray, choose: Choose, score: Score, batch_size: int, seed: int
    ) -> Explained:
        size = (image.shape[0], image.shape[1])
        boxes = self.boxes(size)
        jobs = np.concatenate([np.zeros((1, 4), np.int32), boxes])
        batch = even_batch(len(jobs), batch_size)
        if batch not in self._models:
            self._models[batch] = MaskedModel(
                self.model, _outside, batch, self.network.cost, scorer=self.scorer
            )
        logits = self._models[batch].logits(
            image, fill_image(image, self.fill), np.array(size, np.int32), jobs
        )
        goals = choose(logits[:1])
        values = score_values(score, logits)[:, goals].T
        effects = values[:, :1] - values[:, 1:]
        return Explained(
            spread_over_boxes(effects, boxes, size),
            goals,
            values[:, 0].astype(np.float32),
            {"effects": effects.astype(np.float32)},
            {"boxes": boxes},
        )


def _outside(size: Any, boxes: Any) -> Any:
    """Return masks (B, H, W) that are 0 inside each box, 1 outside."""
    import tensorflow as tf

    row, column = tf.range(size[0])[None], tf.range(size[1])[None]
    in_rows = (row >= boxes[:, 0:1]) & (row < boxes[:, 2:3])
    in_columns = (column >= boxes[:, 1:2]) & (column < boxes[:, 3:4])
    return 1.0 - tf.cast(in_rows[:, :, None] & in_columns[:, None, :], tf.float32)

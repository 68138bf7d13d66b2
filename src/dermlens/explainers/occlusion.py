"""Occlusion sensitivity (Zeiler & Fergus, ECCV 2014): what does covering a patch cost?

effect(patch) = output(image) - output(image with the patch replaced); the value of a pixel is the
mean effect of the patches that cover it, so pixels under many patches do not count more.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.attribution import PER_CLASS, Attribution
from dermlens.explainers.base import Request, even_batch, whole_number
from dermlens.explainers.baselines import Baseline, baseline_image, own_baseline
from dermlens.explainers.perturbation import PerturbationExplainer, Scorer, output_values

_PATCHES_PER_SHORT_SIDE = 6
_NOWHERE = np.zeros(4, np.int32)


def patch_starts(length: int, patch: int, stride: int) -> np.ndarray:
    """Return where patches start along one side; the last ends at the border: int32 (P,)."""
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
    """Return the mean effect (T, P) of the patches that cover each pixel: float32 (T, H, W)."""
    total = np.zeros((len(effects), *size))
    coverage = np.zeros(size)
    for position, (top, left, bottom, right) in enumerate(boxes):
        total[:, top:bottom, left:right] += effects[:, position, None, None]
        coverage[top:bottom, left:right] += 1
    return (total / coverage).astype(np.float32)


def _pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    rows, columns = value if isinstance(value, tuple | list) else (value, value)
    what = f"The {name} of an occlusion"
    return whole_number(rows, what), whole_number(columns, what)


@dataclass(kw_only=True)
class OcclusionAttribution(Attribution):
    """What occlusion knows more.

    Attributes:
        effects: float32 (N, P) or (N, C, P): loss of output with each patch covered.
        boxes: int32 (P, 4): top, left, bottom, right of each patch.
        scorer: Name of what evaluated the covered images.
    """

    effects: np.ndarray = field(metadata=PER_CLASS)
    boxes: np.ndarray
    scorer: str


class Occlusion(PerturbationExplainer[OcclusionAttribution]):
    """Occlusion: a patch slides over the image, and the loss of output is noted.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        patch_size: Side or (height, width) of the patch in pixels; default a sixth of the image's
            shorter side.
        stride: Step in pixels, at most the patch; default half the patch.
        baseline: What the patch shows: ``"border"``, ``"blur"``, ``"black"``, a gray value, a color
            or an image in the classifier's range of values.
        scorer: Evaluates the covered images in place of the model.

    Returns results of the kind ``OcclusionAttribution``.
    """

    name = "occlusion"
    kind = OcclusionAttribution

    def __init__(
        self,
        model: Any,
        *,
        patch_size: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        baseline: Baseline = "border",
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(model, _outside, scorer)
        self.patch_size = None if patch_size is None else _pair(patch_size, "patch_size")
        self.stride = None if stride is None else _pair(stride, "stride")
        self.baseline = own_baseline(baseline, self.classifier)

    def boxes(self, size: tuple[int, int]) -> np.ndarray:
        """Return the patches used on images of a size, int32 (P, 4).

        Raises:
            UsageError: If the stride is larger than the patch, which would leave gaps.
        """
        side = max(1, min(size) // _PATCHES_PER_SHORT_SIDE)
        patch = self.patch_size or (side, side)
        stride = self.stride or (max(1, patch[0] // 2), max(1, patch[1] // 2))
        if stride[0] > patch[0] or stride[1] > patch[1]:
            raise UsageError(
                f"A stride of {stride} leaves gaps between patches of {patch}. Use at most the "
                "size of the patch."
            )
        return patch_boxes(size, patch, stride)

    def _one(self, image: np.ndarray, asked: Request) -> OcclusionAttribution:
        size = (image.shape[0], image.shape[1])
        boxes = self.boxes(size)
        background, extent = baseline_image(image, self.baseline), np.array(size, np.int32)
        jobs = np.concatenate([_NOWHERE[None], boxes])
        batch = even_batch(len(jobs), asked.batch_size)
        logits = self.masked.logits(image, background, extent, jobs, batch)
        goals = asked.goals(logits[:1])[0]
        values = output_values(asked.output, logits)[:, goals].T
        effects = values[:, :1] - values[:, 1:]
        maps = spread_over_boxes(effects, boxes, size)
        effects = effects[None].astype(np.float32)
        return self._scored(asked, logits, goals, maps, effects=effects, boxes=boxes)


def _outside(size: Any, boxes: Any) -> Any:
    """Return masks (B, H, W) that are 0 inside each box, 1 outside."""
    import tensorflow as tf

    row, column = tf.range(size[0])[None], tf.range(size[1])[None]
    in_rows = (row >= boxes[:, 0:1]) & (row < boxes[:, 2:3])
    in_columns = (column >= boxes[:, 1:2]) & (column < boxes[:, 3:4])
    return 1.0 - tf.cast(in_rows[:, :, None] & in_columns[:, None, :], tf.float32)

"""Occlusion sensitivity (Zeiler & Fergus, ECCV 2014): what does covering a patch cost?

effect(patch) = output(image) - output(image with the patch replaced); the value of a pixel is the
mean effect of the patches that cover it, so pixels under many patches do not count more.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.attribution import PER_CLASS, Attribution, of_unit_size
from dermlens.explainers.base import Request, even_batch, whole_number
from dermlens.explainers.baselines import Baseline, baseline_image, own_baseline
from dermlens.explainers.perturbation import PerturbationExplainer, Scorer, output_values

_PATCHES_PER_SHORT_SIDE = 6
_LEVELS = (("border", 1 / 3, 0.5), ("blur", 1 / 4, 0.5), ("border", 1 / 6, 1.0))
"""Fill, side as a share of the shorter side, and step as a share of the patch."""
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


@dataclass(kw_only=True)
class ScoredAttribution(Attribution):
    """What several patch sizes and fills tell beside their map.

    Attributes:
        scorer: Name of what evaluated the covered images.
    """

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


class MultiOcclusion(PerturbationExplainer[ScoredAttribution]):
    """Occlusion averaged over patch sizes and fills, for no more passes than one size takes.

    map = mean over (size, fill) of O / rms(O), with O the occlusion map of that patch and fill. A
    large patch finds what lies in several places, a small one where it ends; a fill that happens to
    speak for or against the class (border color or blur) is not taken for evidence alone. On
    several patch sizes: Zeiler & Fergus, ECCV 2014; on fills: Sturmfels, Lundberg & Lee,
    "Visualizing the impact of feature attribution baselines", Distill 2020.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        scorer: Evaluates the covered images in place of the model.
    """

    name = "multi_occlusion"
    kind = ScoredAttribution

    def __init__(self, model: Any, *, scorer: Scorer | None = None) -> None:
        super().__init__(model, _outside, scorer)

    def levels(self, size: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
        """Return fill and patches, int32 (P, 4), of every level for images of a size."""
        found = []
        for fill, share, step in _LEVELS:
            side = max(1, int(min(size) * share + 1e-6))
            stride = max(1, int(side * step))
            found.append((fill, patch_boxes(size, (side, side), (stride, stride))))
        return found

    def _one(self, image: np.ndarray, asked: Request) -> ScoredAttribution:
        size = (image.shape[0], image.shape[1])
        levels, extent = self.levels(size), np.array(size, np.int32)
        # One batch size for all levels, so that one traced function serves them.
        batch = even_batch(1 + sum(len(boxes) for _, boxes in levels), asked.batch_size)
        parts, jobs = [], _NOWHERE[None]
        for fill, boxes in levels:
            background = baseline_image(image, fill)
            jobs = np.concatenate([jobs, boxes])
            parts.append(self.masked.logits(image, background, extent, jobs, batch))
            jobs = np.zeros((0, 4), np.int32)
        logits = np.concatenate(parts)
        goals = asked.goals(logits[:1])[0]
        values = output_values(asked.output, logits)[:, goals].T
        effects = np.split(
            values[:, :1] - values[:, 1:], np.cumsum([len(b) for _, b in levels])[:-1], axis=1
        )
        drawn = zip(effects, levels, strict=True)
        maps = [spread_over_boxes(effect, boxes, size) for effect, (_, boxes) in drawn]
        mean = np.mean([[of_unit_size(one) for one in level] for level in maps], axis=0)
        return self._scored(asked, logits, goals, mean)


def _outside(size: Any, boxes: Any) -> Any:
    """Return masks (B, H, W) that are 0 inside each box, 1 outside."""
    import tensorflow as tf

    row, column = tf.range(size[0])[None], tf.range(size[1])[None]
    in_rows = (row >= boxes[:, 0:1]) & (row < boxes[:, 2:3])
    in_columns = (column >= boxes[:, 1:2]) & (column < boxes[:, 3:4])
    return 1.0 - tf.cast(in_rows[:, :, None] & in_columns[:, None, :], tf.float32)

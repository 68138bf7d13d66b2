"""Occlusion sensitivity (Zeiler & Fergus, ECCV 2014): what does covering a patch cost?

effect(patch) = output(image) - output(image with the patch replaced); the value of a pixel is the
mean effect of the patches that cover it, so pixels under many patches do not count more.

With fewer passes than patches, patches are measured where the effect is, and the effects of the
others are estimated (``patch_field``).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explain.baselines import Baseline, baseline_image
from dermlens.explain.gradients import even_batch
from dermlens.explain.output import Output
from dermlens.explain.patch_field import PatchField
from dermlens.explain.perturbation import (
    Choose,
    Explained,
    MaskedModel,
    PerturbationExplainer,
    Scorer,
    output_values,
)

_PATCHES_PER_SHORT_SIDE = 6
_FIRST = 16
"""Evaluations before effects are looked at, the unchanged image included."""
_ROUND = 8
"""Evaluations between two looks; a constant, so that maps do not depend on the batch size."""


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
    """Occlusion: a patch slides over the image, and the loss of output is noted.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        patch_size: Side or (height, width) of the patch in pixels; default a sixth of the image's
            shorter side.
        stride: Step in pixels, at most the patch; default half the patch.
        baseline: What the patch shows: ``"border"``, ``"blur"``, ``"black"``, a color or an image.
        passes: Evaluations per image at most, 16 or more, the unchanged image included; default
            one for every patch.
        tolerance: Stop when ``expected_error`` is at most so much; 0 never stops early.
        scorer: Evaluates the covered images in place of the model.

    Result details: ``boxes`` int32 (P, 4) and ``effects`` (N, P), or (N, C, P) for all classes.
    With ``passes`` or ``tolerance``, effects are estimates where ``evaluated`` (N, P) is False, and
    ``expected_error`` (N,), or (N, C), is the expected root mean square error of the map relative
    to the map; a map of relative error e correlates with the complete one by about sqrt(1 - e²).

    Example:
        >>> from dermlens.model.classifier import Architecture, build_classifier
        >>> model = build_classifier(Architecture("mobilenetv3small", (32, 48)))
        >>> result = Occlusion(model, patch_size=16, stride=16).attribute(np.zeros((1, 32, 48, 3)))
        >>> result.maps.shape, result.cost.forward
        ((1, 32, 48), 7)
    """

    name = "occlusion"

    def __init__(
        self,
        model: Any,
        *,
        patch_size: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        baseline: Baseline = "border",
        passes: int | None = None,
        tolerance: float = 0.0,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(model)
        self.patch_size = None if patch_size is None else _pair(patch_size, "patch_size")
        self.stride = None if stride is None else _pair(stride, "stride")
        if passes is not None and passes < _FIRST:
            raise UsageError(
                f"Occlusion needs {_FIRST} passes or more to know where the effect is, not "
                f"{passes}."
            )
        if not 0 <= tolerance < 1:
            raise UsageError(f"The tolerance of an occlusion is 0..1, not {tolerance}.")
        self.passes, self.tolerance = passes, tolerance
        self.baseline, self.scorer = baseline, scorer
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
        patch = self.patch_size or (side, side)
        stride = self.stride or (max(1, patch[0] // 2), max(1, patch[1] // 2))
        if stride[0] > patch[0] or stride[1] > patch[1]:
            raise UsageError(
                f"A stride of {stride} leaves gaps between patches of {patch}. Use at most the "
                "size of the patch."
            )
        return patch_boxes(size, patch, stride)

    def _one(
        self, image: np.ndarray, choose: Choose, output: Output, batch_size: int, seed: int
    ) -> Explained:
        boxes = self.boxes((image.shape[0], image.shape[1]))
        budget = len(boxes) + 1 if self.passes is None else self.passes
        if budget <= len(boxes) or self.tolerance > 0:
            return self._coarse_to_fine(image, boxes, budget, choose, output, batch_size)
        batch = even_batch(len(boxes) + 1, batch_size)
        logits = self._logits(image, [_NOWHERE, *boxes], batch)
        goals = choose(logits[:1])
        values = output_values(output, logits)[:, goals].T
        effects = values[:, :1] - values[:, 1:]
        return _explained(image, boxes, goals, values[:, 0], effects)

    def _logits(self, image: np.ndarray, boxes: Sequence[np.ndarray], batch: int) -> np.ndarray:
        """Return logits (n, C) of an image with each box covered."""
        if batch not in self._models:
            self._models[batch] = MaskedModel(
                self.model, _outside, batch, self.network.cost, scorer=self.scorer
            )
        extent = np.array(image.shape[:2], np.int32)
        jobs = np.stack(boxes).astype(np.int32)
        return self._models[batch].logits(image, baseline_image(image, self.baseline), extent, jobs)

    def _coarse_to_fine(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        budget: int,
        choose: Choose,
        output: Output,
        batch_size: int,
    ) -> Explained:
        """Measure patches in rounds, each where the last ones say that it helps most."""
        change = np.sqrt(((image - baseline_image(image, self.baseline)) ** 2).mean(axis=-1))
        field, batch = PatchField(boxes, change), even_batch(_ROUND, batch_size)
        most = min(budget - 1, len(boxes))
        measured = field.first(min(_FIRST - 1, most))
        logits = self._logits(image, [_NOWHERE, *boxes[measured]], batch)
        goals = choose(logits[:1])
        while True:
            values = output_values(output, logits)[:, goals].T
            fit = field.fit(measured, values[:, :1] - values[:, 1:])
            left = most - len(measured)
            if left <= 0 or (fit.error <= self.tolerance).all():
                break
            added = field.following(fit, measured, min(_ROUND, left))
            logits = np.concatenate([logits, self._logits(image, list(boxes[added]), batch)])
            measured = measured + added
        result = _explained(image, boxes, goals, values[:, 0], fit.effects)
        result.facts["expected_error"] = fit.error.astype(np.float32)
        result.once["evaluated"] = np.isin(np.arange(len(boxes)), measured)
        return result


_NOWHERE = np.zeros(4, np.int32)


def _explained(
    image: np.ndarray,
    boxes: np.ndarray,
    goals: np.ndarray,
    values: np.ndarray,
    effects: np.ndarray,
) -> Explained:
    return Explained(
        spread_over_boxes(effects, boxes, (image.shape[0], image.shape[1])),
        goals,
        values.astype(np.float32),
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

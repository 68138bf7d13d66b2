"""One image explained at several scales, and what holds at all of them.

* **Depth**: Layer-CAM at every stage of the network, from fine and local to coarse and decisive.
* **Patch**: occlusion with large, middle and small patches.
* **Superpixels**: Shapley values of few, some and many pieces, which always sum to the same
  change of output, so granularities can be compared; those of LIME have no common sum.

The fused map is the mean over the three kinds of the mean over their scales, each map first
divided by its root mean square, so that neither a kind with more scales nor a method with larger
units decides.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.attribution import Attribution, Cost, counted, of_unit_size
from dermlens.explainers.occlusion import (
    Occlusion,
    OcclusionAttribution,
    patch_boxes,
    spread_over_boxes,
)
from dermlens.explainers.output import Output
from dermlens.explainers.shap import GaussianProcessSHAP
from dermlens.explainers.stages import StageCAM
from dermlens.explainers.superpixel_explainer import DEFAULT_SUPERPIXELS, SuperpixelBank
from dermlens.model.image_classifier import as_classifier

KINDS = ("depth", "patch", "superpixels")
PATCH_SHARES = (1 / 3, 1 / 6, 1 / 12)
"""Patch sides as shares of the image's shorter side; the middle one is Occlusion's default."""
FINEST_OVERLAPPING = 1 / 6
"""Patches below this share are laid side by side: half steps would cost four times as much."""
GRANULARITIES = (12, 25, DEFAULT_SUPERPIXELS)
SAMPLES_PER_SUPERPIXEL = 10


@dataclass(frozen=True)
class ScaleMap:
    """One map (H, W) of one scale.

    Attributes:
        label: For people, such as ``"patch 32 px"``.
        pixels: About how many pixels wide the smallest thing is that this scale can show.
    """

    kind: str
    label: str
    pixels: float
    values: np.ndarray
    signed: bool


@dataclass(frozen=True)
class MultiScaleResult:
    """All scales of one image.

    Attributes:
        maps: Coarse to fine within each kind, kinds in the order of ``KINDS``.
        fused: float32 (H, W), -1..1, the largest absolute value being 1 (or all 0).
        cost: What was paid here; maps that were handed in cost nothing.
    """

    maps: tuple[ScaleMap, ...]
    fused: np.ndarray
    cost: Cost

    def of_kind(self, kind: str) -> tuple[ScaleMap, ...]:
        return tuple(one for one in self.maps if one.kind == kind)


class PatchPyramid(Occlusion):
    """Occlusion with patches of several sizes in one go: one traced function for all of them."""

    def __init__(self, model: Any, shares: Sequence[float] = PATCH_SHARES) -> None:
        super().__init__(model)
        if not shares or not all(0 < share <= 1 for share in shares):
            raise UsageError(f"Patch sizes are shares of the shorter side, 0..1, not {shares}.")
        self.shares = tuple(shares)

    def sides(self, size: tuple[int, int]) -> list[int]:
        """Return the side of each patch size in pixels."""
        # The small addition makes a sixth of 192 the 32 that Occlusion's default also uses.
        return [max(1, int(min(size) * share + 1e-6)) for share in self.shares]

    def levels(self, size: tuple[int, int]) -> list[np.ndarray]:
        """Return the patches of each size, int32 (P, 4): top, left, bottom, right."""
        found = []
        for side, share in zip(self.sides(size), self.shares, strict=True):
            step = side if share < FINEST_OVERLAPPING - 1e-6 else max(1, side // 2)
            found.append(patch_boxes(size, (side, side), (step, step)))
        return found

    def boxes(self, size: tuple[int, int]) -> np.ndarray:
        return np.concatenate(self.levels(size))

    def split(self, result: OcclusionAttribution) -> list[np.ndarray]:
        """Return the map of each patch size, float32 (N, H, W), from a result for one class."""
        size = (result.maps.shape[-2], result.maps.shape[-1])
        levels = self.levels(size)
        ends = np.cumsum([len(boxes) for boxes in levels])[:-1]
        pairs = zip(np.split(result.effects, ends, axis=-1), levels, strict=True)
        return [spread_over_boxes(effects, boxes, size) for effects, boxes in pairs]


class MultiScale:
    """Explains images at several scales; everything is traced once and serves any image.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        patches: Patch sides as shares of the shorter side, coarse to fine.
        granularities: Numbers of superpixels, coarse to fine.
        bank: Evaluations to share with LIME or Shapley values; used for the granularity equal to
            its number of superpixels, which then costs nothing more.

    Raises:
        ExplanationError: If the model has no feature maps.
        UsageError: If a scale is out of range.
    """

    def __init__(
        self,
        model: Any,
        patches: Sequence[float] = PATCH_SHARES,
        granularities: Sequence[int] = GRANULARITIES,
        bank: SuperpixelBank | None = None,
    ) -> None:
        self.classifier = as_classifier(model)
        self.model, self.classes = self.classifier.model, self.classifier.classes
        self.cam = StageCAM(self.classifier)
        self.patches, self._pyramids = tuple(patches), dict[tuple[float, ...], PatchPyramid]()
        self._pyramid(self.patches)
        self.shap = {
            pieces: self._shap(pieces, bank) for pieces in sorted(dict.fromkeys(granularities))
        }

    def explain(
        self,
        image: np.ndarray,
        target: int,
        output: Output | None = None,
        known: Attribution | None = None,
        batch_size: int = 16,
        seed: int = 0,
    ) -> MultiScaleResult:
        """Explain one image, uint8 RGB (H, W, 3) at the model's input size, at all scales.

        Args:
            image: The image.
            target: Class position.
            output: What is explained; default the logit.
            known: Occlusion with default settings of this image, target and output, if it was
                computed before: its patch size is then not paid again.
            batch_size: Images per pass; bounds memory.
            seed: Sets everything random.
        """
        how: dict[str, Any] = {"output": output, "batch_size": batch_size, "seed": seed}
        with counted() as cost:
            maps = (
                *self._depths(image, target, output),
                *self._occluded(image, target, known, **how),
                *self._pieces(image, target, **how),
            )
        return MultiScaleResult(maps, fused_map(maps), cost)

    def _depths(self, image: np.ndarray, target: int, output: Output | None) -> Iterator[ScaleMap]:
        drawn = self.cam.maps(image[None], np.array([target]), output=output)
        for stage, values in reversed(list(zip(self.cam.stages, drawn, strict=True))):
            (height, width), pixels = stage.size, image.shape[0] / stage.size[0]
            yield ScaleMap("depth", f"depth {height} x {width}", pixels, values[0], False)

    def _occluded(
        self, image: np.ndarray, target: int, known: Attribution | None, **how: Any
    ) -> Iterator[ScaleMap]:
        size = (image.shape[0], image.shape[1])
        middle, sides = max(1, min(size) // 6), self._pyramid(self.patches).sides(size)
        maps: dict[int, np.ndarray] = {}
        if known is not None and middle in sides:
            maps[middle] = known.maps[0]
        left = tuple(s for s, side in zip(self.patches, sides, strict=True) if side not in maps)
        if left:
            pyramid = self._pyramid(left)
            drawn = pyramid.split(pyramid.attribute(image[None], target, **how))
            maps |= {s: m[0] for s, m in zip(pyramid.sides(size), drawn, strict=True)}
        for side in sorted(maps, reverse=True):
            yield ScaleMap("patch", f"patch {side} px", float(side), maps[side], True)

    def _pieces(self, image: np.ndarray, target: int, **how: Any) -> Iterator[ScaleMap]:
        for explainer in self.shap.values():
            result = explainer.attribute(image[None], target, **how)
            pieces = int(result.superpixels.max()) + 1
            width = float(np.sqrt(image.shape[0] * image.shape[1] / pieces))
            label = f"{pieces} superpixels"
            yield ScaleMap("superpixels", label, width, result.maps[0], True)

    def _pyramid(self, shares: tuple[float, ...]) -> PatchPyramid:
        if shares not in self._pyramids:
            self._pyramids[shares] = PatchPyramid(self.classifier, shares)
        return self._pyramids[shares]

    def _shap(self, pieces: int, bank: SuperpixelBank | None) -> GaussianProcessSHAP:
        if bank is None or bank.superpixels != pieces:
            samples = max(2 * pieces + 2, SAMPLES_PER_SUPERPIXEL * pieces)
            bank = SuperpixelBank(
                self.classifier, superpixels=pieces, n_samples=samples, design="shap"
            )
        return GaussianProcessSHAP(self.classifier, bank=bank)


def fuse(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of maps (H, W), each divided by its root mean square, largest size 1.

    Raises:
        UsageError: If there is no map, or sizes differ.
    """
    if len({np.shape(one) for one in maps}) != 1:
        raise UsageError("Fusion needs at least one map, and all maps of the same size.")
    mean = np.mean([of_unit_size(one) for one in maps], axis=0)
    largest = np.abs(mean).max(initial=0.0)
    return (mean / (largest if largest > 0 else 1.0)).astype(np.float32)


def fused_map(maps: Sequence[ScaleMap]) -> np.ndarray:
    """Return the fusion of all scales, every kind counting alike: float32 (H, W), -1..1."""
    kinds = dict.fromkeys(one.kind for one in maps)
    parts = ([of_unit_size(one.values) for one in maps if one.kind == kind] for kind in kinds)
    return fuse([np.mean(part, axis=0) for part in parts])

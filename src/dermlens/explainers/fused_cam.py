"""Class activation maps of several stages made one, and of one class set against those like it.

* Fusing the maps of several layers: Jiang et al., "LayerCAM", IEEE TIP 2021, section III-C.
* A finer map gated by the coarser, surer one: in the manner of Poly-CAM, Englebert, Cornu & De
  Vleeschouwer, "Backward recursive class activation map refinement", ICPR 2022.
* Finer-CAM: Zhang et al., "Finer-CAM: Spotting the difference reveals finer details for visual
  explanation", CVPR 2025, arXiv:2501.11309.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.attribution import Attribution, of_unit_size
from dermlens.explainers.base import Explainer, Request, whole_number
from dermlens.explainers.contrast import SignedCAM
from dermlens.explainers.stages import StageCAM

FUSED_STAGES = 4
"""Stages from the last one backwards; the first of a network sees edges, and of any class."""


class _StageExplainer(Explainer[Attribution]):
    """Combines the Layer-CAM maps of a network's stages, all from one backward pass."""

    signed = False

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.cam = StageCAM(self.classifier)

    @property
    def traces(self) -> int:
        """How often the maps were traced."""
        return self.cam.traces

    @abstractmethod
    def combined(self, stages: Sequence[np.ndarray]) -> np.ndarray:
        """Return one map (H, W) of those of all stages, shallow to deep, 0 or more."""

    def _parts(self, asked: Request) -> Iterator[Attribution]:
        for batch in asked.batches():
            logits = np.asarray(self.network.logits(batch.images))
            goals = batch.goals(logits)
            values = np.take_along_axis(np.asarray(asked.output.values(logits)), goals, axis=1)
            drawn = np.empty((*goals.shape, *batch.images.shape[1:3]), np.float32)
            for place, goal in enumerate(goals.T):
                stages = self.cam.maps(
                    batch.images, goal, output=asked.output, batch_size=asked.batch_size
                )
                for row, maps in enumerate(zip(*stages, strict=True)):
                    drawn[row, place] = self.combined(maps)
            asked.finished(len(goals))
            yield self._part(asked, drawn, goals, values)


class FusedCAM(_StageExplainer):
    """Scale-fused CAM: the mean of the Layer-CAM maps of the last stages, each of unit size.

    map = mean over stages s of M_s / rms(M_s), with M_s the Layer-CAM of stage s. What is found at
    every depth adds up; the coarsest map says which object, finer ones where it ends. Costs two
    forward passes and one backward pass.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        stages: How many, from the last one backwards.
    """

    name = "fused_cam"

    def __init__(self, model: Any, *, stages: int = FUSED_STAGES) -> None:
        super().__init__(model)
        self.stages = whole_number(stages, "The number of stages")

    def combined(self, stages: Sequence[np.ndarray]) -> np.ndarray:
        return np.mean([of_unit_size(one) for one in stages[-self.stages :]], axis=0)


class GatedCAM(_StageExplainer):
    """Gated CAM: Layer-CAM of the stage before the last, let through where the last sees the class.

    map = M_(last-1) * sqrt(M_last / max M_last). Sharper than the last map and seldom outside of
    what it marks. Costs two forward passes and one backward pass.
    """

    name = "gated_cam"

    def combined(self, stages: Sequence[np.ndarray]) -> np.ndarray:
        last = stages[-1]
        finer = stages[-2] if len(stages) > 1 else np.ones_like(last)
        return finer * np.sqrt(last / (last.max() or 1.0))


class FinerCAM(Explainer[Attribution]):
    """Finer-CAM: Grad-CAM of a class less the classes that the network finds most like it.

    map = relu(M_c - strength * mean over similar classes d of M_d), with M the maps of Grad-CAM
    before rectification, which are linear in the output. What all of them share, such as that
    there is a lesion at all, cancels; what tells the class apart stays. Costs one forward pass
    where the head is pooling and one Dense layer, else one forward and backward pass per class.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        strength: 0 for Grad-CAM, 1 for all that is shared to cancel; the paper's 0.6.
        similar: Classes to compare with, those of the highest output beside the class itself.

    Raises:
        ExplanationError: If the model has no feature maps.
        UsageError: If the strength is not within 0..1, or ``similar`` no whole number above 0.
    """

    name = "finer_cam"
    signed = False

    def __init__(self, model: Any, *, strength: float = 0.6, similar: int = 3) -> None:
        super().__init__(model)
        if not 0 <= strength <= 1:
            raise UsageError(f"The strength of a Finer-CAM is within 0 to 1, not {strength}.")
        self.strength, self.similar = strength, whole_number(similar, "The number of classes")
        self.cam = SignedCAM(self.classifier)

    @property
    def traces(self) -> int:
        """How often the maps were traced."""
        return self.cam.traces

    def _parts(self, asked: Request) -> Iterator[Attribution]:
        for batch in asked.batches():
            goals = batch.goals(self._answers(batch))
            (every,) = self.cam._parts(replace(batch, targets="all", progress=None))
            known = zip(every.maps, every.values, goals, strict=True)
            drawn = np.stack([self._finer(maps, values, goal) for maps, values, goal in known])
            asked.finished(len(goals))
            yield self._part(asked, drawn, goals, np.take_along_axis(every.values, goals, axis=1))

    def _finer(self, maps: np.ndarray, values: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Return maps (T, H, W) for classes (T,) from those of all classes (C, H, W)."""
        order = np.argsort(-values, kind="stable")
        rivals = [order[order != goal][: self.similar] for goal in goals]
        shared = np.stack([maps[ones].mean(axis=0) for ones in rivals])
        finer: np.ndarray = np.maximum(maps[goals] - self.strength * shared, 0.0)
        return finer

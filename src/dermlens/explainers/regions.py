"""Pixel attributions read by regions: smoothed, and pooled over superpixels of several sizes.

Integrated Gradients gives neighboring pixels values of either sign, since edges do. Which sign a
pixel has says little; how much of the answer passes through a region says more. So what is pooled
here is the size of values, averaged over several baselines, smoothed and then averaged within
superpixels of several sizes, in the manner of XRAI (Kapishnikov et al., "XRAI: Better attributions
through regions", ICCV 2019). The consensus adds what the feature maps say (explanations of
different families averaged: Rieger & Hansen, 2020, arXiv:1903.00519).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.attribution import Attribution, of_unit_size
from dermlens.explainers.base import Explainer, Request, whole_number
from dermlens.explainers.baselines import Baseline
from dermlens.explainers.fused_cam import FusedCAM
from dermlens.explainers.integrated_gradients import IntegratedGradients
from dermlens.explainers.superpixels import superpixels

REGIONS = (25, 50, 100, 200)
SMOOTHING = 0.04
"""Deviation of the Gaussian as a share of the shorter side: 8 pixels of 192."""
STEPS = 20
"""Per path; two paths and 20 steps stay below 100 passes."""


def pooled(map_: np.ndarray, image: np.ndarray, counts: Sequence[int] = REGIONS) -> np.ndarray:
    """Return the mean over superpixel sizes of a map's mean in each superpixel.

    Args:
        map_: (H, W).
        image: RGB 0..255, (H, W, 3).
        counts: Superpixels per image, for every size.

    Returns:
        float32 (H, W).

    Raises:
        UsageError: If no count is given, or one is below 2.
    """
    if not counts:
        raise UsageError("Pooling over superpixels needs at least one number of them.")
    total = np.zeros(np.shape(map_))
    for count in counts:
        labels = superpixels(image, count)
        sums = np.bincount(labels.ravel(), np.asarray(map_, np.float64).ravel())
        total += (sums / np.bincount(labels.ravel()))[labels]
    return (total / len(counts)).astype(np.float32)


class RegionGradients(Explainer[Attribution]):
    """Integrated Gradients by region: where, and over what area, the answer is made up.

    map = pooled(smooth(mean over baselines of |IG_b|)). It tells where evidence is, for or against.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        n_steps: Evaluations per path; one path per baseline.
        baselines: As ``IntegratedGradients`` takes them.
        smoothing: Deviation of the Gaussian, as a share of the shorter side; 0 for none.
        regions: Superpixels per image, for every size.

    Raises:
        UsageError: If the smoothing is below 0, or no baseline is given.
    """

    name = "region_gradients"
    signed = False

    def __init__(
        self,
        model: Any,
        *,
        n_steps: int = STEPS,
        baselines: Sequence[Baseline] = ("border", "blur"),
        smoothing: float = SMOOTHING,
        regions: Sequence[int] = REGIONS,
    ) -> None:
        super().__init__(model)
        if not list(baselines) or smoothing < 0:
            raise UsageError("Give at least one baseline, and a smoothing of 0 or more.")
        self.smoothing, self.regions = smoothing, tuple(regions)
        steps = whole_number(n_steps, "The number of steps")
        self.paths = [
            IntegratedGradients(self.classifier, n_steps=steps, baseline=one, tolerance=None)
            for one in baselines
        ]
        for path in self.paths[1:]:
            # Baselines are given when a function is called: what is traced serves all of them.
            path.network, path._engines = self.paths[0].network, self.paths[0]._engines

    @property
    def traces(self) -> int:
        """How often the gradient function was traced."""
        return self.paths[0].traces

    def _parts(self, asked: Request) -> Iterator[Attribution]:
        for batch in asked.batches(1):
            sizes, goals, values = self._smoothed(batch)
            drawn = [self._drawn(batch, one, place, goals) for place, one in enumerate(sizes)]
            asked.finished()
            yield self._part(asked, np.stack(drawn)[None], goals, values)

    def _drawn(
        self, batch: Request, size: np.ndarray, place: int, goals: np.ndarray
    ) -> np.ndarray:  # fmt: skip
        """Return the map (H, W) for one of the classes (1, T) from its smoothed sizes."""
        return pooled(size, batch.images[0], self.regions)

    def _smoothed(self, batch: Request) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return sizes (T, H, W), classes (1, T) and outputs (1, T) of one image."""
        from scipy.ndimage import gaussian_filter

        quiet = replace(batch, progress=None)
        found = [next(iter(path._parts(quiet))) for path in self.paths]
        size = np.asarray(np.mean([np.abs(one.maps[0]) for one in found], axis=0), np.float64)
        sigma = self.smoothing * min(size.shape[1:])
        smooth = gaussian_filter(size, (0, sigma, sigma), mode="nearest")
        goals = np.arange(len(size))[None] if batch.every else found[0].targets[:, None]
        return smooth, goals.astype(np.int32), found[0].values


class Consensus(RegionGradients):
    """Consensus of feature maps and gradients, by region.

    map = pooled(F / rms(F) + G / rms(G)), with F the scale-fused CAM and G the smoothed sizes of
    Integrated Gradients: two families that err in different ways. Feature maps say where the class
    is seen, gradients how far the evidence reaches, superpixels where the border runs.
    """

    name = "consensus"

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model, **options)
        self.cam = FusedCAM(self.classifier)

    def _drawn(
        self, batch: Request, size: np.ndarray, place: int, goals: np.ndarray
    ) -> np.ndarray:  # fmt: skip
        one = replace(batch, targets=goals[:, place], progress=None)
        (fused,) = self.cam._parts(one)
        both = of_unit_size(fused.maps[0, 0]) + of_unit_size(size)
        return pooled(both, batch.images[0], self.regions)

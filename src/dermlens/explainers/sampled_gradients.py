"""Gradient methods that average over random draws: SmoothGrad and GradientSHAP.

* SmoothGrad: Smilkov et al., 2017, arXiv:1706.03825.
* GradientSHAP: Lundberg & Lee, NIPS 2017 (``GradientExplainer``); Erion et al., "Improving
  performance of deep learning models with axiomatic attribution priors and expected gradients",
  Nature Machine Intelligence 2021.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.explainers.attribution import Attribution
from dermlens.explainers.base import batches, image_generator, whole_number
from dermlens.explainers.baselines import Baseline, baseline_image, own_baselines
from dermlens.explainers.gradients import GradientEngine, GradientExplainer


class _SampledGradients(GradientExplainer[Attribution]):
    """Averages something made of gradients at randomly drawn points."""

    baselines: Sequence[Baseline] = ()

    def __init__(self, model: Any, *, n_samples: int) -> None:
        self.n_samples = whole_number(n_samples, "The number of samples")
        super().__init__(model, self.n_samples)

    @abstractmethod
    def _draw(
        self, image: np.ndarray, baselines: Sequence[np.ndarray], generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
        """Return start, end (H, W, 3), position 0..1, and the factor for the gradient there."""

    @abstractmethod
    def _channels(self, mean: np.ndarray) -> np.ndarray:
        """Turn the mean of factor times gradient, (H, W, 3), into a map (H, W)."""

    def _one(
        self,
        image: np.ndarray,
        goals: np.ndarray,
        values: np.ndarray,
        engine: GradientEngine,
        seed: int,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return np.stack([self._map(image, goal, engine, seed) for goal in goals]), {}

    def _map(self, image: np.ndarray, goal: int, engine: GradientEngine, seed: int) -> np.ndarray:
        """Explain one image; draws come one by one, so that batches change nothing."""
        generator = image_generator(seed, image)
        baselines = [baseline_image(image, baseline) for baseline in self.baselines]
        total = np.zeros(image.shape, np.float64)
        for part in batches(self.n_samples, engine.batch_size):
            drawn = [self._draw(image, baselines, generator) for _ in range(part.stop - part.start)]
            starts, ends, places, factors = (np.stack(part) for part in zip(*drawn, strict=True))
            gradients = engine.at(starts, ends, places, np.full(len(drawn), goal, np.int32))
            total += (gradients * factors).sum(axis=0, dtype=np.float64)
        return self._channels((total / self.n_samples).astype(np.float32))


class SmoothGrad(_SampledGradients):
    """SmoothGrad: the gradient averaged over noisy copies; the size per pixel is shown.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        n_samples: Noisy copies per image.
        noise: Standard deviation of the noise as a share of the image's range of values.
    """

    name = "smooth_grad"
    signed = False

    def __init__(self, model: Any, *, n_samples: int = 25, noise: float = 0.1) -> None:
        super().__init__(model, n_samples=n_samples)
        self.noise = noise

    def _draw(
        self, image: np.ndarray, baselines: Sequence[np.ndarray], generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
        spread = np.float32(self.noise * float(image.max() - image.min()))
        point = image + generator.standard_normal(image.shape, dtype=np.float32) * spread
        return point, point, 0.0, np.ones((1, 1, 1), np.float32)

    def _channels(self, mean: np.ndarray) -> np.ndarray:
        return np.abs(mean).max(axis=-1)


class GradientSHAP(_SampledGradients):
    """GradientSHAP: expected gradients at random places between noisy baselines and the image.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        n_samples: Draws per image.
        baseline: Background, one or a list, as ``IntegratedGradients`` takes it.
        noise: Standard deviation of the noise on the image, in pixel values of 0..255.
    """

    name = "gradient_shap"

    def __init__(
        self,
        model: Any,
        *,
        n_samples: int = 50,
        baseline: Baseline | Sequence[Baseline] = ("border", "blur", "black"),
        noise: float = 5.0,
    ) -> None:
        super().__init__(model, n_samples=n_samples)
        self.baselines, self.noise = own_baselines(baseline, self.classifier), noise

    def _draw(
        self, image: np.ndarray, baselines: Sequence[np.ndarray], generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
        start = baselines[int(generator.integers(len(baselines)))]
        position = float(generator.random())
        noise = generator.standard_normal(image.shape, dtype=np.float32) * np.float32(self.noise)
        end = image + noise
        return start, end, position, end - start

    def _channels(self, mean: np.ndarray) -> np.ndarray:
        return mean.sum(axis=-1)

"""Integrated Gradients (Sundararajan, Taly & Yan, ICML 2017) and Expected Gradients.

attribution_i = (x_i - b_i) * integral over t in 0..1 of d output(b + t (x - b)) / d x_i

The attributions of all pixels and channels sum to output(x) - output(b): the completeness axiom.
What is missing from that, relative to the difference, is reported per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dermlens.explainers.attribution import PER_CLASS, Attribution
from dermlens.explainers.base import batches, whole_number
from dermlens.explainers.baselines import Baseline, baseline_image, own_baselines
from dermlens.explainers.gradients import GradientEngine, GradientExplainer

MAX_STEPS = 256
LEAST_CHANGE = 1e-6
"""Of an output; smaller changes are taken for this one where something is divided by them."""


def quadrature(n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and weights of Gauss-Legendre on 0..1, float64 (n_steps,).

    Exact for polynomials up to degree 2 * n_steps - 1; no point at the ends.

    Example:
        >>> positions, weights = quadrature(2)
        >>> positions.round(4).tolist(), weights.tolist()
        ([0.2113, 0.7887], [0.5, 0.5])
    """
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    return (nodes + 1) / 2, weights / 2


def path_sum(image: Any, baseline: Any, slopes: Any) -> Any:
    """Return attributions (..., H, W): (image - baseline) times slopes, summed over channels.

    Args:
        image: Array or tensor (..., H, W, 3).
        baseline: Likewise.
        slopes: Gradients averaged along the path, likewise.
    """
    product = (image - baseline) * slopes
    # Both libraries have this sum under names of their own.
    return product[..., 0] + product[..., 1] + product[..., 2]


@dataclass(kw_only=True)
class PathAttribution(Attribution):
    """What path methods know more.

    Attributes:
        convergence_delta: float32 (N,) or (N, C): |sum of the map - change| / |change| of the
            output between baseline and image; 0 if every change is accounted for.
        baseline_output: float32 (N,) or (N, C): output of the baseline, the mean over several.
        n_steps: int (N,) or (N, C): evaluations in use at the end; the cost counts those that
            were replaced too.
    """

    convergence_delta: np.ndarray = field(metadata=PER_CLASS)
    baseline_output: np.ndarray = field(metadata=PER_CLASS)
    n_steps: np.ndarray = field(metadata=PER_CLASS)


class IntegratedGradients(GradientExplainer[PathAttribution]):
    """Integrated Gradients from one or several baselines.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        n_steps: Evaluations per path, at first.
        baseline: One or a list of: ``"border"``, ``"blur"``, ``"black"``, a gray value, a color or
            an image (H, W, 3) in the classifier's range of values. With several, attributions are
            averaged (Expected Gradients).
        tolerance: Convergence delta to reach, by halving the part of the path where the
            attribution is farthest from the change of output (up to 256 evaluations in use), or
            None to use ``n_steps`` as they are. With all classes at once, relative to the largest
            change of output among them.

    Returns results of the kind ``PathAttribution``.

    Example:
        >>> from dermlens.model.classifier import Architecture, build_classifier
        >>> model = build_classifier(Architecture("mobilenetv3small", (32, 48)))
        >>> images = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
        >>> explainer = IntegratedGradients(model, n_steps=8, tolerance=None)
        >>> result = explainer.attribute(images, targets=4)
        >>> result.maps.shape, result.cost.backward
        ((1, 32, 48), 8)
    """

    name = "integrated_gradients"
    kind = PathAttribution

    def __init__(
        self,
        model: Any,
        *,
        n_steps: int = 16,
        baseline: Baseline | Sequence[Baseline] = "border",
        tolerance: float | None = 0.01,
    ) -> None:
        self.n_steps = whole_number(n_steps, "The number of steps")
        super().__init__(model, self.n_steps)
        self.tolerance = tolerance
        self.baselines = own_baselines(baseline, self.classifier)

    def _one(
        self,
        image: np.ndarray,
        goals: np.ndarray,
        values: np.ndarray,
        engine: GradientEngine,
        seed: int,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        starts = np.stack([baseline_image(image, baseline) for baseline in self.baselines])
        lowest = self._along(starts, goals, engine)
        ends = np.repeat(image[None], len(starts), axis=0)
        highest = np.repeat(values[None], len(starts), axis=0)
        whole = _Stretch(starts, ends, lowest, highest)
        stretches = self._integrated([whole], goals, engine, self.n_steps)
        n_steps, half = self.n_steps, -(-self.n_steps // 2)
        lowest = lowest.mean(axis=0)
        drawn, delta = _summed(stretches, values, lowest)
        while self._too_far(delta, values - lowest):
            worst = max(stretches, key=lambda stretch: stretch.error)
            if n_steps + 2 * half - worst.n_steps > MAX_STEPS:
                break
            n_steps += 2 * half - worst.n_steps
            stretches = [stretch for stretch in stretches if stretch is not worst]
            middle = (worst.starts + worst.ends) / 2
            between = self._along(middle, goals, engine)
            halves = [
                _Stretch(worst.starts, middle, worst.at_start, between),
                _Stretch(middle, worst.ends, between, worst.at_end),
            ]
            stretches += self._integrated(halves, goals, engine, half)
            drawn, delta = _summed(stretches, values, lowest)
        used = np.full(len(goals), n_steps)
        return drawn, {"convergence_delta": delta, "baseline_output": lowest, "n_steps": used}

    def _too_far(self, delta: np.ndarray, change: np.ndarray) -> bool:
        """Tell whether what is missing for some target (T,) is over the tolerance."""
        if self.tolerance is None:
            return False
        # Relative to the largest change of output: a class whose output hardly changes would
        # otherwise cost the most passes to be told apart from nothing.
        missing = delta * np.maximum(np.abs(change), LEAST_CHANGE)
        return bool(missing.max() > self.tolerance * max(np.abs(change).max(), LEAST_CHANGE))

    def _along(self, pixels: np.ndarray, goals: np.ndarray, engine: GradientEngine) -> np.ndarray:
        """Return the outputs of images (F, H, W, 3) for targets (T,): (F, T)."""
        parts = batches(len(pixels), engine.batch_size)
        found = [self._outputs(pixels[part], engine.output)[0] for part in parts]
        return np.concatenate(found)[:, goals]

    def _integrated(
        self,
        stretches: "Sequence[_Stretch]",
        goals: np.ndarray,
        engine: GradientEngine,
        n_steps: int,
    ) -> "list[_Stretch]":
        """Return the stretches with the attribution along each, all in the same passes."""
        targets = len(goals)
        starts = np.concatenate([np.repeat(one.starts, targets, axis=0) for one in stretches])
        ends = np.concatenate([np.repeat(one.ends, targets, axis=0) for one in stretches])
        paths = np.tile(goals, len(starts) // targets).astype(np.int32)
        slopes = engine.integrate(starts, ends, paths, *quadrature(n_steps))
        parts = np.split(path_sum(ends, starts, slopes), len(stretches))
        return [
            replace(one, maps=part.reshape(-1, targets, *part.shape[1:]), n_steps=n_steps)
            for one, part in zip(stretches, parts, strict=True)
        ]


@dataclass(frozen=True)
class _Stretch:
    """A part of the paths from F baselines to an image, for T targets.

    Images (F, H, W, 3) and outputs (F, T) at both ends, the attribution along it (F, T, H, W), and
    evaluations along it.
    """

    starts: np.ndarray
    ends: np.ndarray
    at_start: np.ndarray
    at_end: np.ndarray
    maps: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0)))
    n_steps: int = 0

    @property
    def error(self) -> float:
        """How far the attribution is from the change of output, of the worst target."""
        change = self.at_end - self.at_start
        missing = self.maps.astype(np.float64).sum(axis=(2, 3)) - change
        return float(np.abs(missing.mean(axis=0)).max())


def _summed(
    stretches: Sequence[_Stretch], values: np.ndarray, lowest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return maps (T, H, W), averaged over baselines, and convergence deltas (T,)."""
    drawn = np.sum([stretch.maps for stretch in stretches], axis=0).mean(axis=0)
    return drawn, convergence_delta(drawn, values, lowest)


def convergence_delta(maps: np.ndarray, values: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """Return what maps (T, H, W) miss of the change of outputs (T,), relative to it: (T,)."""
    change = (values - lowest).astype(np.float64)
    missing = np.abs(maps.astype(np.float64).sum(axis=(1, 2)) - change)
    scale = np.maximum(np.abs(change), LEAST_CHANGE)
    return (missing / scale).astype(np.float32)

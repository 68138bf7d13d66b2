"""Integrated Gradients (Sundararajan, Taly & Yan, ICML 2017) and Expected Gradients.

attribution_i = (x_i - b_i) * integral over t in 0..1 of d output(b + t (x - b)) / d x_i

The attributions of all pixels and channels sum to output(x) - output(b): the completeness axiom.
What is missing from that, relative to the difference, is reported per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explain.base import Attribution, Explainer, Progress, batches
from dermlens.explain.baselines import Baseline, baseline_image
from dermlens.explain.gradients import GradientEngine, even_batch
from dermlens.explain.output import Output
from dermlens.explain.target import Targets, is_all

RULES = ("gauss_legendre", "trapezoid")
MAX_STEPS = 256
LEAST_CHANGE = 1e-6
"""Of a output; smaller changes are taken for this one where something is divided by them."""
_LEAST = {"gauss_legendre": 1, "trapezoid": 2}


def quadrature(n_steps: int, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and weights, float64 (n_steps,), of a rule on 0..1.

    Args:
        n_steps: Number of evaluations.
        rule: ``"gauss_legendre"`` (exact for polynomials up to degree 2 * n_steps - 1; no point at
            the ends) or ``"trapezoid"`` (ends included).

    Raises:
        UsageError: If the rule is unknown or there are too few points for it.

    Example:
        >>> positions, weights = quadrature(3, "trapezoid")
        >>> positions.tolist(), weights.tolist()
        ([0.0, 0.5, 1.0], [0.25, 0.5, 0.25])
    """
    if rule not in RULES:
        raise UsageError(f"Unknown rule {rule!r}. Use one of: {', '.join(RULES)}.")
    if n_steps < _LEAST[rule]:
        raise UsageError(f"The {rule} rule needs at least {_LEAST[rule]} n_steps, not {n_steps}.")
    if rule == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(n_steps)
        return (nodes + 1) / 2, weights / 2
    weights = np.full(n_steps, 1.0 / (n_steps - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n_steps), weights


class IntegratedGradients(Explainer):
    """Integrated Gradients from one or several baselines.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        n_steps: Evaluations per path, at first.
        rule: ``"gauss_legendre"`` or ``"trapezoid"``.
        baseline: One or several of: ``"border"``, ``"blur"``, ``"black"``, a color, an image
            (H, W, 3). With several, attributions are averaged (Expected Gradients).
        tolerance: Relative completeness gap to reach, by halving the part of the path where the
            attribution is farthest from the change of output (up to 256 points in use), or None
            to use ``n_steps`` as they are. With all classes at once, relative to the largest
            change of output among them.

    Result details: ``convergence_delta`` (relative, per image), ``baseline_output``, ``n_steps`` (in
    use at the end; the cost counts those that were replaced too).

    Example:
        >>> from dermlens.model.classifier import Architecture, build_classifier
        >>> model = build_classifier(Architecture("mobilenetv3small", (32, 48)))
        >>> images = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
        >>> explainer = IntegratedGradients(model, n_steps=8, tolerance=None)
        >>> result = explainer.attribute(images, targets="mel")
        >>> result.maps.shape, result.cost.backward
        ((1, 32, 48), 8)
    """

    name = "integrated_gradients"

    def __init__(
        self,
        model: Any,
        *,
        n_steps: int = 16,
        rule: str = "gauss_legendre",
        baseline: Baseline | Sequence[Baseline] = "border",
        tolerance: float | None = 0.01,
    ) -> None:
        super().__init__(model)
        quadrature(n_steps, rule)
        self.n_steps, self.rule, self.tolerance = n_steps, rule, tolerance
        several = isinstance(baseline, list) or (
            isinstance(baseline, tuple) and not _is_color(baseline)
        )
        self.baselines: list[Any] = list(baseline) if several else [baseline]
        if not self.baselines:
            raise UsageError("Integrated gradients need at least one baseline.")
        self._engines: dict[tuple[str, int], GradientEngine] = {}

    def engine(self, output: Output, batch_size: int) -> GradientEngine:
        """Return the engine for a output and batch size, made once."""
        key = (repr(output), batch_size)
        if key not in self._engines:
            self._engines[key] = GradientEngine(self.model, output, batch_size, self.network.cost)
        return self._engines[key]

    @property
    def traces(self) -> int:
        """How often the gradient function was traced."""
        return sum(engine.traces for engine in self._engines.values())

    def _attribute(
        self,
        images: np.ndarray,
        targets: Targets,
        output: Output,
        batch_size: int,
        seed: int,
        progress: Progress | None,
    ) -> Attribution:
        every = is_all(targets)
        engine = self.engine(output, even_batch(self.n_steps, batch_size))
        maps, chosen, outputs = [], [], []
        details: dict[str, list[Any]] = {
            "convergence_delta": [],
            "baseline_output": [],
            "n_steps": [],
        }
        for part in batches(len(images), batch_size):
            pixels = images[part].astype(np.float32)
            values, logits = self._scores(pixels, output)
            count = len(pixels)
            goals = (
                np.tile(np.arange(len(self.classes)), (count, 1))
                if every
                else self.resolve(targets, logits, part.start)[:, None]
            )
            taken = np.take_along_axis(values, goals, axis=1)
            for row in range(count):
                drawn, facts = self._one(pixels[row], goals[row], taken[row], engine, batch_size)
                maps.append(drawn[None] if every else drawn)
                for name, value in facts.items():
                    details[name].append(value if every else value[0])
                if progress is not None:
                    progress(1)
            outputs.append(taken if every else taken[:, 0])
            if not every:
                chosen.append(goals[:, 0].astype(np.int32))
        arrays = {name: np.array(value) for name, value in details.items()}
        return self.result(maps, chosen, outputs, output, rule=self.rule, **arrays)

    def _scores(self, pixels: np.ndarray, output: Output) -> tuple[np.ndarray, np.ndarray]:
        logits = self.network.logits(pixels)
        return np.asarray(output.values(logits)), np.asarray(logits)

    def _one(
        self,
        image: np.ndarray,
        goals: np.ndarray,
        values: np.ndarray,
        engine: GradientEngine,
        batch_size: int,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Explain one image for several targets: maps (T, H, W) and facts (T,)."""
        baselines = np.stack([baseline_image(image, baseline) for baseline in self.baselines])
        lowest = self._along(baselines, goals, engine.output, batch_size)
        ends = np.repeat(image[None], len(baselines), axis=0)
        highest = np.repeat(values[None], len(baselines), axis=0)
        whole = _Stretch(baselines, ends, lowest, highest)
        stretches = self._integrated([whole], goals, engine, self.n_steps)
        n_steps = self.n_steps
        half = max(-(-self.n_steps // 2), _LEAST[self.rule])
        drawn, gap = self._summed(stretches, values, lowest)
        while self._too_far(gap, values - lowest.mean(axis=0)):
            worst = max(stretches, key=lambda stretch: stretch.error)
            n_steps += 2 * half - worst.n_steps
            if n_steps > MAX_STEPS:
                n_steps -= 2 * half - worst.n_steps
                break
            stretches = [stretch for stretch in stretches if stretch is not worst]
            middle = (worst.starts + worst.ends) / 2
            between = self._along(middle, goals, engine.output, batch_size)
            halves = [
                _Stretch(worst.starts, middle, worst.at_start, between),
                _Stretch(middle, worst.ends, between, worst.at_end),
            ]
            stretches += self._integrated(halves, goals, engine, half)
            drawn, gap = self._summed(stretches, values, lowest)
        facts = {
            "convergence_delta": gap,
            "baseline_output": lowest.mean(axis=0),
            "n_steps": np.full(len(goals), n_steps),
        }
        return drawn, facts

    def _too_far(self, gap: np.ndarray, change: np.ndarray) -> bool:
        """Tell whether the gap of some target (T,) is over the tolerance.

        Relative to the largest change of output: a class whose output hardly changes would
        otherwise cost the most passes to be told apart from nothing.
        """
        if self.tolerance is None:
            return False
        missing = gap * np.maximum(np.abs(change), LEAST_CHANGE)
        return bool(missing.max() > self.tolerance * max(np.abs(change).max(), LEAST_CHANGE))

    def _along(
        self, pixels: np.ndarray, goals: np.ndarray, output: Output, batch_size: int
    ) -> np.ndarray:
        """Return the outputs of images (F, H, W, 3) for targets (T,): (F, T)."""
        parts = batches(len(pixels), batch_size)
        return np.concatenate([self._scores(pixels[part], output)[0] for part in parts])[:, goals]

    def _integrated(
        self,
        stretches: "Sequence[_Stretch]",
        goals: np.ndarray,
        engine: GradientEngine,
        n_steps: int,
    ) -> "list[_Stretch]":
        """Return the stretches with the attribution along each, all in the same passes."""
        positions, weights = quadrature(n_steps, self.rule)
        targets = len(goals)
        starts = np.concatenate([np.repeat(one.starts, targets, axis=0) for one in stretches])
        ends = np.concatenate([np.repeat(one.ends, targets, axis=0) for one in stretches])
        paths = np.tile(goals, len(starts) // targets).astype(np.int32)
        slopes = engine.integrate(starts, ends, paths, positions, weights)
        pixelwise = ((ends - starts) * slopes).sum(axis=-1)
        parts = np.split(pixelwise, len(stretches))
        return [
            replace(one, maps=part.reshape(-1, targets, *part.shape[1:]), n_steps=n_steps)
            for one, part in zip(stretches, parts, strict=True)
        ]

    def _summed(
        self, stretches: "Sequence[_Stretch]", values: np.ndarray, lowest: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return maps (T, H, W), averaged over baselines, and gaps (T,)."""
        drawn = np.sum([stretch.maps for stretch in stretches], axis=0).mean(axis=0)
        return drawn, convergence_delta(drawn, values, lowest.mean(axis=0))


@dataclass(frozen=True)
class _Stretch:
    """A part of the paths from F baselines to an image, for T targets.

    Attributes:
        starts: float32 (F, H, W, 3).
        ends: float32 (F, H, W, 3).
        at_start: Scores there, (F, T).
        at_end: Scores there, (F, T).
        maps: Attribution along it, float32 (F, T, H, W).
        n_steps: Evaluations along it.
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


def _is_color(value: tuple[Any, ...]) -> bool:
    return len(value) == 3 and all(isinstance(v, int | float) for v in value)


def convergence_delta(maps: np.ndarray, values: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """Return |sum of map - (output - baseline output)| / |output - baseline output|, (T,).

    Args:
        maps: (T, H, W).
        values: Scores of the image, (T,).
        lowest: Scores of the baseline, (T,).
    """
    change = (values - lowest).astype(np.float64)
    missing = np.abs(maps.astype(np.float64).sum(axis=(1, 2)) - change)
    scale = np.maximum(np.abs(change), LEAST_CHANGE)
    return (missing / scale).astype(np.float32)

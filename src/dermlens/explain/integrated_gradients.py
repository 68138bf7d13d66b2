"""Integrated Gradients (Sundararajan, Taly & Yan, ICML 2017) and Expected Gradients.

attribution_i = (x_i - b_i) * integral over t in 0..1 of d score(b + t (x - b)) / d x_i

The attributions of all pixels and channels sum to score(x) - score(b): the completeness axiom.
What is missing from that, relative to the difference, is reported per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explain.base import Attribution, Explainer, Progress, batches
from dermlens.explain.fills import Fill, fill_image
from dermlens.explain.gradients import GradientEngine, even_batch
from dermlens.explain.score import Score
from dermlens.explain.target import Targets, is_all

RULES = ("gauss_legendre", "trapezoid")
MAX_POINTS = 256
LEAST_CHANGE = 1e-6
"""Of a score; smaller changes are taken for this one where something is divided by them."""
_LEAST = {"gauss_legendre": 1, "trapezoid": 2}


def quadrature(points: int, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and weights, float64 (points,), of a rule on 0..1.

    Args:
        points: Number of evaluations.
        rule: ``"gauss_legendre"`` (exact for polynomials up to degree 2 * points - 1; no point at
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
    if points < _LEAST[rule]:
        raise UsageError(f"The {rule} rule needs at least {_LEAST[rule]} points, not {points}.")
    if rule == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(points)
        return (nodes + 1) / 2, weights / 2
    weights = np.full(points, 1.0 / (points - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, points), weights


class IntegratedGradients(Explainer):
    """Integrated Gradients from one or several baselines.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        points: Evaluations per path, at first.
        rule: ``"gauss_legendre"`` or ``"trapezoid"``.
        baselines: One or several of: ``"mean_skin"``, ``"blur"``, ``"black"``, a color, an image
            (H, W, 3). With several, attributions are averaged (Expected Gradients).
        tolerance: Relative completeness gap to reach, by halving the part of the path where the
            attribution is farthest from the change of score (up to 256 points in use), or None
            to use ``points`` as they are. With all classes at once, relative to the largest
            change of score among them.

    Result details: ``completeness_gap`` (relative, per image), ``baseline_score``, ``points`` (in
    use at the end; the cost counts those that were replaced too).

    Example:
        >>> from dermlens.model.classifier import Architecture, build_classifier
        >>> model = build_classifier(Architecture("mobilenetv3small", (32, 48)))
        >>> images = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
        >>> explainer = IntegratedGradients(model, points=8, tolerance=None)
        >>> result = explainer.attribute(images, targets="mel")
        >>> result.maps.shape, result.cost.backward
        ((1, 32, 48), 8)
    """

    name = "integrated_gradients"

    def __init__(
        self,
        model: Any,
        *,
        points: int = 16,
        rule: str = "gauss_legendre",
        baselines: Fill | Sequence[Fill] = "mean_skin",
        tolerance: float | None = 0.01,
    ) -> None:
        super().__init__(model)
        quadrature(points, rule)
        self.points, self.rule, self.tolerance = points, rule, tolerance
        several = isinstance(baselines, list) or (
            isinstance(baselines, tuple) and not _is_color(baselines)
        )
        self.baselines: list[Any] = list(baselines) if several else [baselines]
        if not self.baselines:
            raise UsageError("Integrated gradients need at least one baseline.")
        self._engines: dict[tuple[str, int], GradientEngine] = {}

    def engine(self, score: Score, batch_size: int) -> GradientEngine:
        """Return the engine for a score and batch size, made once."""
        key = (repr(score), batch_size)
        if key not in self._engines:
            self._engines[key] = GradientEngine(self.model, score, batch_size, self.network.cost)
        return self._engines[key]

    @property
    def traces(self) -> int:
        """How often the gradient function was traced."""
        return sum(engine.traces for engine in self._engines.values())

    def _attribute(
        self,
        images: np.ndarray,
        targets: Targets,
        score: Score,
        batch_size: int,
        seed: int,
        progress: Progress | None,
    ) -> Attribution:
        every = is_all(targets)
        engine = self.engine(score, even_batch(self.points, batch_size))
        maps, chosen, scores = [], [], []
        details: dict[str, list[Any]] = {"completeness_gap": [], "baseline_score": [], "points": []}
        for part in batches(len(images), batch_size):
            pixels = images[part].astype(np.float32)
            values, logits = self._scores(pixels, score)
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
            scores.append(taken if every else taken[:, 0])
            if not every:
                chosen.append(goals[:, 0].astype(np.int32))
        arrays = {name: np.array(value) for name, value in details.items()}
        return self.result(maps, chosen, scores, score, rule=self.rule, **arrays)

    def _scores(self, pixels: np.ndarray, score: Score) -> tuple[np.ndarray, np.ndarray]:
        logits = self.network.logits(pixels)
        return np.asarray(score.values(logits)), np.asarray(logits)

    def _one(
        self,
        image: np.ndarray,
        goals: np.ndarray,
        values: np.ndarray,
        engine: GradientEngine,
        batch_size: int,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Explain one image for several targets: maps (T, H, W) and facts (T,)."""
        fills = np.stack([fill_image(image, baseline) for baseline in self.baselines])
        lowest = self._along(fills, goals, engine.score, batch_size)
        ends = np.repeat(image[None], len(fills), axis=0)
        highest = np.repeat(values[None], len(fills), axis=0)
        whole = _Stretch(fills, ends, lowest, highest)
        stretches = self._integrated([whole], goals, engine, self.points)
        points = self.points
        half = max(-(-self.points // 2), _LEAST[self.rule])
        drawn, gap = self._summed(stretches, values, lowest)
        while self._too_far(gap, values - lowest.mean(axis=0)):
            worst = max(stretches, key=lambda stretch: stretch.error)
            points += 2 * half - worst.points
            if points > MAX_POINTS:
                points -= 2 * half - worst.points
                break
            stretches = [stretch for stretch in stretches if stretch is not worst]
            middle = (worst.starts + worst.ends) / 2
            between = self._along(middle, goals, engine.score, batch_size)
            halves = [
                _Stretch(worst.starts, middle, worst.at_start, between),
                _Stretch(middle, worst.ends, between, worst.at_end),
            ]
            stretches += self._integrated(halves, goals, engine, half)
            drawn, gap = self._summed(stretches, values, lowest)
        facts = {
            "completeness_gap": gap,
            "baseline_score": lowest.mean(axis=0),
            "points": np.full(len(goals), points),
        }
        return drawn, facts

    def _too_far(self, gap: np.ndarray, change: np.ndarray) -> bool:
        """Tell whether the gap of some target (T,) is over the tolerance.

        Relative to the largest change of score: a class whose score hardly changes would
        otherwise cost the most passes to be told apart from nothing.
        """
        if self.tolerance is None:
            return False
        missing = gap * np.maximum(np.abs(change), LEAST_CHANGE)
        return bool(missing.max() > self.tolerance * max(np.abs(change).max(), LEAST_CHANGE))

    def _along(
        self, pixels: np.ndarray, goals: np.ndarray, score: Score, batch_size: int
    ) -> np.ndarray:
        """Return the scores of images (F, H, W, 3) for targets (T,): (F, T)."""
        parts = batches(len(pixels), batch_size)
        return np.concatenate([self._scores(pixels[part], score)[0] for part in parts])[:, goals]

    def _integrated(
        self,
        stretches: "Sequence[_Stretch]",
        goals: np.ndarray,
        engine: GradientEngine,
        points: int,
    ) -> "list[_Stretch]":
        """Return the stretches with the attribution along each, all in the same passes."""
        positions, weights = quadrature(points, self.rule)
        targets = len(goals)
        starts = np.concatenate([np.repeat(one.starts, targets, axis=0) for one in stretches])
        ends = np.concatenate([np.repeat(one.ends, targets, axis=0) for one in stretches])
        paths = np.tile(goals, len(starts) // targets).astype(np.int32)
        slopes = engine.integrate(starts, ends, paths, positions, weights)
        pixelwise = ((ends - starts) * slopes).sum(axis=-1)
        parts = np.split(pixelwise, len(stretches))
        return [
            replace(one, maps=part.reshape(-1, targets, *part.shape[1:]), points=points)
            for one, part in zip(stretches, parts, strict=True)
        ]

    def _summed(
        self, stretches: "Sequence[_Stretch]", values: np.ndarray, lowest: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return maps (T, H, W), averaged over baselines, and gaps (T,)."""
        drawn = np.sum([stretch.maps for stretch in stretches], axis=0).mean(axis=0)
        return drawn, completeness_gap(drawn, values, lowest.mean(axis=0))


@dataclass(frozen=True)
class _Stretch:
    """A part of the paths from F baselines to an image, for T targets.

    Attributes:
        starts: float32 (F, H, W, 3).
        ends: float32 (F, H, W, 3).
        at_start: Scores there, (F, T).
        at_end: Scores there, (F, T).
        maps: Attribution along it, float32 (F, T, H, W).
        points: Evaluations along it.
    """

    starts: np.ndarray
    ends: np.ndarray
    at_start: np.ndarray
    at_end: np.ndarray
    maps: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0)))
    points: int = 0

    @property
    def error(self) -> float:
        """How far the attribution is from the change of score, of the worst target."""
        change = self.at_end - self.at_start
        missing = self.maps.astype(np.float64).sum(axis=(2, 3)) - change
        return float(np.abs(missing.mean(axis=0)).max())


def _is_color(value: tuple[Any, ...]) -> bool:
    return len(value) == 3 and all(isinstance(v, int | float) for v in value)


def completeness_gap(maps: np.ndarray, values: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """Return |sum of map - (score - baseline score)| / |score - baseline score|, (T,).

    Args:
        maps: (T, H, W).
        values: Scores of the image, (T,).
        lowest: Scores of the baseline, (T,).
    """
    change = (values - lowest).astype(np.float64)
    missing = np.abs(maps.astype(np.float64).sum(axis=(1, 2)) - change)
    scale = np.maximum(np.abs(change), LEAST_CHANGE)
    return (missing / scale).astype(np.float32)

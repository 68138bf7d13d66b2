"""Integrated Gradients (Sundararajan, Taly & Yan, ICML 2017) and Expected Gradients.

attribution_i = (x_i - b_i) * integral over t in 0..1 of d score(b + t (x - b)) / d x_i

The attributions of all pixels and channels sum to score(x) - score(b): the completeness axiom.
What is missing from that, relative to the difference, is reported per image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.diagnoses import CODES
from dermlens.errors import UsageError
from dermlens.explain.base import Attribution, Explainer, Progress, Targets, batches, is_all
from dermlens.explain.fills import Fill, fill_image
from dermlens.explain.gradients import GradientEngine, even_batch
from dermlens.explain.score import Score

RULES = ("gauss_legendre", "trapezoid")
MAX_POINTS = 512


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
    least = 1 if rule == "gauss_legendre" else 2
    if points < least:
        raise UsageError(f"The {rule} rule needs at least {least} points, not {points}.")
    if rule == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(points)
        return (nodes + 1) / 2, weights / 2
    weights = np.full(points, 1.0 / (points - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, points), weights


class IntegratedGradients(Explainer):
    """Integrated Gradients from one or several baselines.

    Args:
        model: Keras model from raw RGB 0..255 (N, H, W, 3) to logits (N, C).
        points: Evaluations per path.
        rule: ``"gauss_legendre"`` or ``"trapezoid"``.
        baselines: One or several of: ``"mean_skin"``, ``"blur"``, ``"black"``, a color, an image
            (H, W, 3). With several, attributions are averaged (Expected Gradients).
        tolerance: Relative completeness gap to reach by doubling the points (up to 512), or None
            to use ``points`` as they are.
        classes: Codes in the order of the logits.

    Result details: ``completeness_gap`` (relative, per image), ``baseline_score``, ``points``.

    Example:
        >>> from dermlens.model.classifier import Architecture, build_classifier
        >>> model = build_classifier(Architecture("mobilenetv3small", (32, 48)))
        >>> images = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
        >>> result = IntegratedGradients(model, points=8).attribute(images, targets="mel")
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
        tolerance: float | None = None,
        classes: Sequence[str] = CODES,
    ) -> None:
        super().__init__(model, classes=classes)
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
        parts = batches(len(fills), batch_size)
        reference = np.concatenate([self._scores(fills[part], engine.score)[0] for part in parts])
        starts = np.repeat(fills, len(goals), axis=0)
        ends = np.repeat(image[None], len(starts), axis=0)
        path_goals = np.tile(goals, len(fills)).astype(np.int32)
        lowest = reference[:, goals].mean(axis=0)
        points = self.points
        while True:
            positions, weights = quadrature(points, self.rule)
            slopes = engine.integrate(starts, ends, path_goals, positions, weights)
            pixelwise = ((ends - starts) * slopes).sum(axis=-1)
            drawn = pixelwise.reshape(len(fills), len(goals), *image.shape[:2]).mean(axis=0)
            gap = completeness_gap(drawn, values, lowest)
            if self.tolerance is None or gap.max() <= self.tolerance or points * 2 > MAX_POINTS:
                break
            points *= 2
        facts = {
            "completeness_gap": gap,
            "baseline_score": lowest,
            "points": np.full(len(goals), points),
        }
        return drawn, facts


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
    scale = np.maximum(np.abs(change), 1e-6)
    return (missing / scale).astype(np.float32)

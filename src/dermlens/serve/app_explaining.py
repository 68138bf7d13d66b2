"""What the Explain and Compare tabs do, free of any web framework.

All methods share one set of traced functions and one set of masks, so they run one at a time,
whoever asked for them.
"""

import copy
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.base import Attribution
from dermlens.explainers.perturbation import Scorer
from dermlens.explainers.registry import METHODS, method
from dermlens.explainers.target import PREDICTED, RUNNER_UP
from dermlens.files import plain
from dermlens.quality.agreement import smoothed, spearman
from dermlens.report.comparer import Comparer, available, no_activation_maps
from dermlens.report.comparison import Comparison, Reading, agreement_with_others, facts_of
from dermlens.report.explanation import describe
from dermlens.report.facts import answer_of
from dermlens.report.html import NOTICE
from dermlens.report.summary import summarize
from dermlens.serve.app_actions import Actions, Analysis

BACKWARD = 2.0
"""Forward passes that a gradient costs, about."""
_PARTS = {"scales": 620, "discrimination": 60}
"""Forward passes of the parts of a comparison that no method states, about."""


@dataclass(frozen=True)
class Work:
    """How far a job is; seconds are expected ones, NaN where not known.

    ``running`` is None at the end; ``agreement`` holds the mean rank correlation of each explained
    map with the others.
    """

    running: str | None
    done: int
    total: int
    seconds: float
    remaining: float
    comparison: Comparison
    agreement: Mapping[str, float] = field(default_factory=dict)


class Explaining:
    """Explains and compares images that were analyzed."""

    def __init__(self, actions: Actions, scorers: Mapping[str, Scorer] | None = None) -> None:
        self.actions, self.bundle, self._scorers = actions, actions.bundle, scorers
        self.methods = available(self.bundle, list(METHODS))
        self.without = no_activation_maps(self.bundle)
        self._running = threading.Lock()
        self._took: dict[str, float] = {}

    @cached_property
    def _comparer(self) -> Comparer:
        return Comparer(
            self.bundle, self.methods, scorers=self._scorers, pictures=self.actions.pictures
        )

    def explain(
        self,
        analysis: Analysis,
        methods: Sequence[str],
        target: str = PREDICTED,
        lesion: np.ndarray | None = None,
    ) -> Iterator[Work]:
        """Explain an image by several methods: the state before each and after the last.

        ``lesion`` is the outline in what the model saw, bool (H, W).
        """
        names = self._names(methods)
        goal = self.actions.target(analysis, target)
        said = vars(answer_of(self.bundle, analysis.logits))
        reading = Reading(**said, image=analysis.image, lesion=lesion, target=goal)
        state = Comparison(self.bundle.labels, reading, model=self.bundle.identity)
        yield self._work(names, 0, state)
        for done, name in enumerate(names, start=1):
            with self._running:
                attribute = self._comparer.explainers[name].attribute
                result = self._timed(name, attribute, analysis.image[None], goal)
            state = replace(state, combined={**state.combined, name: result})
            yield self._work(names, done, state, _agreement(state.combined))

    def compare(
        self,
        analysis: Analysis,
        methods: Sequence[str],
        target: str = PREDICTED,
        against: str = RUNNER_UP,
        lesion: np.ndarray | None = None,
        *,
        scales: bool = True,
    ) -> Iterator[Work]:
        """Run the four experiments on an image: the state after each finished piece.

        ``against`` is the code of a class to contrast the target with beside the most probable
        other one that cannot be excluded, or ``runner_up`` for that one alone.
        """
        names = self._names(methods)
        other = None if against == RUNNER_UP else against
        with self._running:
            comparer = copy.copy(self._comparer)
        comparer.methods, comparer.with_scales = names, scales
        steps = comparer.steps(
            analysis.image,
            target=target,
            against=other,
            lesion=lesion,
            photograph=analysis.display,
        )
        for done, name in enumerate(comparer.pieces, start=1):
            with self._running:
                state = self._timed(name, next, steps)
            yield self._work(comparer.pieces, done, state)

    def _work(self, pieces: Sequence[str], done: int, *state: Any) -> Work:
        waiting = [self.expected(name) for name in pieces[done:]]
        running = pieces[done] if waiting else None
        seconds = waiting[0] if waiting else float("nan")
        return Work(running, done, len(pieces), seconds, sum(waiting), *state)

    def expected(self, name: str) -> float:
        """Return about how many seconds a method or a part will take.

        What it took last time, else its passes times the duration of one; the first time it is
        slower, since the network is traced.
        """
        if name in self._took:
            return self._took[name]
        if name in METHODS:
            entry = method(name)
            passes = entry.forward + BACKWARD * entry.backward
        else:
            passes = _PARTS.get(name, 1)
        return passes * self.actions.pass_seconds

    def facts(self, work: Work) -> dict[str, Any]:
        """Return what is known about the finished methods as JSON types."""
        return {
            "target": work.comparison.target,
            "running": work.running,
            "seconds_left": plain(round(work.remaining, 1)) if work.running else 0.0,
            "methods": {
                name: {**plain(describe(result)), "agreement_with_others": work.agreement.get(name)}
                for name, result in work.comparison.combined.items()
            },
            "note": NOTICE,
        }

    def _timed(self, name: str, work: Any, *arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        found = work(*arguments, **options)
        self._took[name] = time.perf_counter() - start
        return found

    def _names(self, methods: Sequence[str]) -> tuple[str, ...]:
        names = tuple(method(name).name for name in dict.fromkeys(methods))
        if not names:
            raise UsageError("No method is chosen. Tick at least one.")
        if not set(names) <= set(self.methods):
            raise UsageError(self.without)
        return names


def with_outline(work: Work, lesion: np.ndarray | None, *, synthetic: bool) -> Work:
    """Return work with another outline, and what was measured by it measured anew."""
    state = work.comparison
    state = replace(state, reading=replace(state.reading, lesion=lesion))
    if state.summary is not None:
        state = replace(state, summary=summarize(facts_of(state, synthetic=synthetic)))
    return replace(work, comparison=state)


def _agreement(results: Mapping[str, Attribution]) -> dict[str, float]:
    """Return each map's mean rank correlation with the others; empty for fewer than two."""
    maps = smoothed(np.stack([result.maps[0] for result in results.values()]))
    rows, columns = np.triu_indices(len(maps), k=1)
    matrix = np.eye(len(maps))
    if len(rows):
        matrix[rows, columns] = matrix[columns, rows] = spearman(maps[rows], maps[columns])
    return agreement_with_others(list(results), matrix)

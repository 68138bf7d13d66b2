"""One desk behind all tabs: the model, who is being served, and what was computed for whom.

What was computed is kept in memory alone, for few sessions and for short.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermlens.errors import UsageError
from dermlens.explainers.perturbation import Scorer
from dermlens.explainers.target import PREDICTED, RUNNER_UP
from dermlens.model.bundle import Bundle
from dermlens.serve.app_actions import Actions, Analysis
from dermlens.serve.app_batch import Row, analyze_many
from dermlens.serve.app_explaining import Explaining, Work
from dermlens.serve.app_jobs import Jobs
from dermlens.serve.app_uploads import SECONDS_KEPT, Uploads

NO_IMAGE = "There is no image yet. Upload one or click an example."
SESSIONS_KEPT = 16


class Results:
    """What was computed for the visitors of the last minutes, in memory."""

    def __init__(self, sessions: int = SESSIONS_KEPT, seconds: float = SECONDS_KEPT) -> None:
        self._sessions, self._seconds = sessions, seconds
        self._kept: OrderedDict[str, dict[str, tuple[float, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, session: str | None, name: str, value: Any) -> None:
        """Keep a value under a name."""
        if session is None:
            return
        with self._lock:
            self._expire()
            self._kept.setdefault(session, {})[name] = (time.monotonic(), value)
            self._kept.move_to_end(session)
            while len(self._kept) > self._sessions:
                self._kept.popitem(last=False)

    def get(self, session: str | None, name: str) -> Any:
        """Return a kept value, or None."""
        with self._lock:
            self._expire()
            return self._kept.get(session or "", {}).get(name, (0.0, None))[1]

    def forget(self, session: str | None) -> None:
        """Drop everything of a session."""
        with self._lock:
            self._kept.pop(session or "", None)

    def _expire(self) -> None:
        oldest = time.monotonic() - self._seconds
        fresh = (
            (session, {name: one for name, one in held.items() if one[0] >= oldest})
            for session, held in self._kept.items()
        )
        self._kept = OrderedDict((session, held) for session, held in fresh if held)


@dataclass(frozen=True)
class Shown:
    """What a visitor looks at: an upload and its analysis."""

    path: str
    analysis: Analysis


@dataclass(frozen=True)
class Job(Shown):
    """And how far the job on it is."""

    work: Work


class Desk:
    """Serves visitors, told apart by their session, and remembers what they look at."""

    def __init__(
        self,
        bundle: Bundle,
        uploads: Uploads | None = None,
        jobs: Jobs | None = None,
        scorers: Mapping[str, Scorer] | None = None,
    ) -> None:
        self.bundle, self.uploads, self.results = bundle, uploads, Results()
        self.jobs = jobs or Jobs()
        self.actions = Actions(bundle)
        self.actions.warm_up()
        self.explaining = Explaining(self.actions, scorers)

    def analyze(self, session: str | None, path: str) -> Analysis:
        """Analyze an upload and remember it."""
        self.note(session, [path])
        found = self.actions.analyze(Path(path))
        self.results.put(session, "analysis", Shown(path, found))
        return found

    def explain(
        self, session: str | None, path: str | None, methods: Sequence[str], target: str
    ) -> Iterator[Job]:
        """Explain an upload step by step; see ``Explaining.explain``."""
        return self._kept(
            session,
            path,
            "explanation",
            lambda found: self.explaining.explain(found, methods, target),
        )

    def compare(
        self,
        session: str | None,
        path: str | None,
        methods: Sequence[str],
        target: str = PREDICTED,
        against: str = RUNNER_UP,
    ) -> Iterator[Job]:
        """Compare the methods on an upload part by part; see ``Explaining.compare``."""
        return self._kept(
            session,
            path,
            "comparison",
            lambda found: self.explaining.compare(found, methods, target, against),
        )

    def batch(self, session: str | None, files: Sequence[tuple[str, str]]) -> Iterator[list[Row]]:
        """Analyze many uploads, given by name and path."""
        self.note(session, [path for _, path in files])
        yield from analyze_many(self.actions, [(name, Path(path)) for name, path in files])

    def shown(self, session: str | None, name: str) -> Any:
        """Return the ``analysis`` (``Shown``), or the ``explanation`` or ``comparison`` (``Job``).

        None where a visitor looks at none.
        """
        return self.results.get(session, name)

    def note(self, session: str | None, paths: Sequence[str]) -> None:
        """Remember that a session uses uploads."""
        if self.uploads is not None:
            self.uploads.record(session, paths)

    def forget(self, session: str | None) -> None:
        """Delete a session's uploads and results."""
        self.results.forget(session)
        if self.uploads is not None:
            self.uploads.forget(session)

    def _kept(
        self,
        session: str | None,
        path: str | None,
        name: str,
        steps: Callable[[Analysis], Iterator[Work]],
    ) -> Iterator[Job]:
        """Run a job on an upload, analyzing it first if need be, and remember each state."""
        if path is None:
            raise UsageError(NO_IMAGE)
        held = self.shown(session, "analysis")
        found = held.analysis if held and held.path == path else self.analyze(session, path)
        for work in steps(found):
            job = Job(path, found, work)
            self.results.put(session, name, job)
            yield job

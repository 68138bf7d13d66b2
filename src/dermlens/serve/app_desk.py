"""One desk behind all tabs: the model, who is being served, and what was computed for whom."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dermlens.errors import UsageError
from dermlens.explainers.perturbation import Scorer
from dermlens.explainers.target import PREDICTED, RUNNER_UP
from dermlens.model.bundle import Bundle
from dermlens.serve.app_actions import Actions, Analysis
from dermlens.serve.app_batch import Row, analyze_many
from dermlens.serve.app_explaining import Explaining, Progress, Step
from dermlens.serve.app_jobs import Jobs
from dermlens.serve.app_results import Results
from dermlens.serve.app_uploads import Uploads

NO_IMAGE = "There is no image yet. Upload one or click an example."


@dataclass(frozen=True)
class Shown:
    """What a visitor looks at."""

    path: str
    analysis: Analysis
    step: Step | None = None
    progress: Progress | None = None


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
    ) -> Iterator[Shown]:
        """Explain an upload step by step; see ``Explaining.explain``."""
        path, found = self._analyzed(session, path)
        for step in self.explaining.explain(found, methods, target):
            shown = Shown(path, found, step=step)
            self.results.put(session, "explanation", shown)
            yield shown

    def compare(
        self,
        session: str | None,
        path: str | None,
        methods: Sequence[str],
        target: str = PREDICTED,
        against: str = RUNNER_UP,
    ) -> Iterator[Shown]:
        """Compare the methods on an upload part by part; see ``Explaining.compare``."""
        path, found = self._analyzed(session, path)
        for progress in self.explaining.compare(found, methods, target, against):
            shown = Shown(path, found, progress=progress)
            self.results.put(session, "comparison", shown)
            yield shown

    def batch(self, session: str | None, files: Sequence[tuple[str, str]]) -> Iterator[list[Row]]:
        """Analyze many uploads, given by name and path."""
        self.note(session, [path for _, path in files])
        yield from analyze_many(self.actions, [(name, Path(path)) for name, path in files])

    def shown(self, session: str | None, name: str) -> Shown | None:
        """Return the ``analysis``, ``explanation`` or ``comparison`` a visitor looks at."""
        found: Shown | None = self.results.get(session, name)
        return found

    def note(self, session: str | None, paths: Sequence[str]) -> None:
        """Remember that a session uses uploads."""
        if self.uploads is not None:
            self.uploads.record(session, paths)

    def forget(self, session: str | None) -> None:
        """Delete a session's uploads and results."""
        self.results.forget(session)
        if self.uploads is not None:
            self.uploads.forget(session)

    def _analyzed(self, session: str | None, path: str | None) -> tuple[str, Analysis]:
        if path is None:
            raise UsageError(NO_IMAGE)
        held = self.shown(session, "analysis")
        if held is not None and held.path == path:
            return path, held.analysis
        return path, self.analyze(session, path)

"""One desk behind all tabs: the model, who is being served, and what was computed for whom.

What was computed is kept in memory alone, for few sessions and for short.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.nearest_cases import NearestCases
from dermlens.explainers.perturbation import Scorer
from dermlens.explainers.target import PREDICTED, RUNNER_UP
from dermlens.lesion.outline import fit_outline, outline_of_points
from dermlens.model.bundle import Bundle
from dermlens.report.cases_view import CasePictures
from dermlens.report.comparison_view import Part
from dermlens.report.evidence_files import EvidenceMaker, Lesion, lesion_in
from dermlens.serve.app_actions import AS_IT_IS, Actions, Analysis, Wish
from dermlens.serve.app_batch import Row, analyze_many, read_truths
from dermlens.serve.app_explaining import Explaining, Work
from dermlens.serve.app_jobs import Jobs
from dermlens.serve.app_uploads import SECONDS_KEPT, Uploads

NO_IMAGE = "There is no image yet. Upload one."
ABSTAINS = (
    "The model abstains on this image, so there is no {one} to explain. Tick 'Show it anyway' to "
    "see what it would have said."
)
OUTLINES = ("none", "automatic", "drawn")
_OUTLINE = 384
"""Pixels of the longer side at which a drawn outline is kept."""
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

    def drop(self, session: str | None, name: str) -> None:
        """Drop one value."""
        with self._lock:
            self._kept.get(session or "", {}).pop(name, None)

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
        truths: Mapping[str, str] | None = None,
        pictures: CasePictures | None = None,
    ) -> None:
        self.bundle, self.uploads, self.results = bundle, uploads, Results()
        self.jobs, self.truths = jobs or Jobs(), truths or {}
        self.actions = Actions(bundle, pictures)
        self.actions.warm_up()
        self.explaining = Explaining(self.actions, scorers)
        self.evidence = EvidenceMaker(bundle, (scorers or {}).get("occlusion"))

    def analyze(self, session: str | None, path: str) -> Analysis:
        """Analyze an upload and remember it."""
        self.note(session, [path])
        found = self.actions.analyze(Path(path))
        self.results.put(session, "analysis", Shown(path, found))
        return found

    def explain(
        self,
        session: str | None,
        path: str | None,
        methods: Sequence[str],
        target: str = PREDICTED,
        wish: Wish = AS_IT_IS,
    ) -> Iterator[Job]:
        """Explain an upload step by step; see ``Explaining.explain``."""
        shown = self._looked_at(session, path, wish)
        lesion = self.outline(session, shown, wish)
        steps = self.explaining.explain(shown.analysis, methods, target, lesion)
        return self._kept(session, shown, "explanation", steps)

    def compare(
        self,
        session: str | None,
        path: str | None,
        methods: Sequence[str],
        target: str = PREDICTED,
        against: str = RUNNER_UP,
        wish: Wish = AS_IT_IS,
        *,
        scales: bool = True,
    ) -> Iterator[Job]:
        """Compare the methods on an upload part by part; see ``Explaining.compare``."""
        shown = self._looked_at(session, path, wish)
        lesion = self.outline(session, shown, wish)
        steps = self.explaining.compare(
            shown.analysis, methods, target, against, lesion, scales=scales
        )
        return self._kept(session, shown, "comparison", steps)

    def cases(
        self, session: str | None, path: str | None, wish: Wish = AS_IT_IS
    ) -> tuple[NearestCases, dict[str, np.ndarray]]:
        """Find known cases like an upload; see ``Actions.cases``."""
        return self.actions.cases(self._looked_at(session, path, wish).analysis)

    def criteria(
        self, session: str | None, path: str | None, wish: Wish = AS_IT_IS
    ) -> tuple[Part, dict[str, float]]:
        """Measure the criteria of an upload's lesion, by the outline drawn or found."""
        return self.evidence.criteria(self._lesion(session, self._looked_at(session, path, wish)))

    def changes(
        self, session: str | None, path: str | None, wish: Wish = AS_IT_IS
    ) -> tuple[Part, dict[str, Any]]:
        """Look for changes of an upload's picture that change the answer."""
        shown = self._looked_at(session, path, wish)
        return self.evidence.changes(shown.analysis.image, self._lesion(session, shown))

    def _lesion(self, session: str | None, shown: Shown) -> Lesion:
        """Return the lesion of an upload: as a visitor has drawn it, else found where sure."""
        from PIL import Image

        path, drawn = self.results.get(session, "outline") or ("", None)
        picture = Image.fromarray(shown.analysis.display)
        return lesion_in(picture, drawn if path == shown.path else None)

    def batch(
        self,
        session: str | None,
        files: Sequence[tuple[str, str]],
        labels: Sequence[tuple[str, str]] | None = None,
    ) -> Iterator[list[Row]]:
        """Analyze many uploads, and remember the rows; files are given by name and path.

        ``labels`` is at most one file, a table of their true classes.
        """
        self.note(session, [path for _, path in (*files, *(labels or ()))])
        truths = read_truths(self.bundle, Path(labels[0][1]) if labels else None)
        given = [(name, Path(path)) for name, path in files]
        for rows in analyze_many(self.actions, given, truths):
            self.results.put(session, "batch", rows)
            yield rows

    def draw_outline(self, session: str | None, points: Sequence[Sequence[float]]) -> None:
        """Remember the outline that a visitor has drawn on the picture of the last analysis."""
        shown = self.shown(session, "analysis")
        if shown is None:
            raise UsageError(NO_IMAGE)
        # As large as anything is measured by it, and no larger.
        height, width = shown.analysis.display.shape[:2]
        size = (
            max(8, round(_OUTLINE * height / max(height, width))),
            max(8, round(_OUTLINE * width / max(height, width))),
        )
        found = outline_of_points(points, size)
        self.results.put(session, "outline", (shown.path, found))

    def outline(self, session: str | None, shown: Shown, wish: Wish) -> np.ndarray | None:
        """Return the outline that is wanted, in what the network saw, bool (H, W); or None."""
        if wish.outline not in OUTLINES:
            raise UsageError(f"Unknown outline. Use one of: {', '.join(OUTLINES)}.")
        path, drawn = self.results.get(session, "outline") or ("", None)
        found = {
            "none": None,
            "automatic": shown.analysis.outline,
            "drawn": drawn if path == shown.path else None,
        }[wish.outline]
        return None if found is None else fit_outline(found, self.bundle.input_size)

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

    def _looked_at(self, session: str | None, path: str | None, wish: Wish) -> Shown:
        """Return the analysis of an upload, made now if need be; refuse where it abstains."""
        if path is None:
            raise UsageError(NO_IMAGE)
        held = self.shown(session, "analysis")
        if held is None or held.path != path:
            held = Shown(path, self.analyze(session, path))
        if held.analysis.abstains and not wish.anyway:
            raise UsageError(ABSTAINS.format(one=self.actions.words.one))
        return held

    def _kept(
        self, session: str | None, shown: Shown, name: str, steps: Iterator[Work]
    ) -> Iterator[Job]:
        """Run a job on an analyzed upload, and remember each state."""
        for work in steps:
            job = Job(shown.path, shown.analysis, work)
            self.results.put(session, name, job)
            yield job

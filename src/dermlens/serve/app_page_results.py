"""Explain and Compare as HTML: what is finished, what runs, and how far the work is."""

from html import escape

import numpy as np

from dermlens.explainers.registry import METHODS, method
from dermlens.progress import duration
from dermlens.report.comparison_view import caption, grid, method_cards, parts
from dermlens.report.figures import UNSIGNED_MAP
from dermlens.report.layers import Canvas, checked_color_map
from dermlens.serve.app_desk import Job
from dermlens.serve.app_explaining import Work

EMPTY_EXPLANATION = """
<div class="dl-empty">Choose methods and press <em>Explain</em>. Each map appears as soon as it is
ready.</div>
"""
EMPTY_COMPARISON = """
<div class="dl-empty">All methods side by side, how far they agree, this {one} against another,
and several scales. Press <em>Compare</em>; each part appears as soon as it is ready.</div>
"""
_PARTS = {
    "reading": "reading the image",
    "agreement": "agreement of the methods",
    "scales": "several scales",
    "discrimination": "this class against others",
}


def cards(shown: Job, color_map: str = UNSIGNED_MAP, *, stopped: bool = False) -> str:
    """Return the finished methods side by side, and what runs now unless it was stopped."""
    work, running = shown.work, ""
    name = work.comparison.labels.of(work.comparison.target).name
    if work.running is not None:
        entry = method(work.running)
        running = f"{entry.title} for {name}; passes: {entry.cost}."
    complete = f"Explained: {name}, by {work.total} of {work.total} methods."
    canvas = Canvas(shown.analysis.display, checked_color_map(color_map))
    drawn = grid(method_cards(canvas, work.comparison.combined, name, work.agreement))
    return _status(work, running, complete, "methods", stopped) + drawn


def comparison(shown: Job, color_map: str = UNSIGNED_MAP, *, stopped: bool = False) -> str:
    """Return what is ready of a comparison, and what runs now unless it was stopped."""
    work, name = shown.work, shown.work.running or ""
    running = f"{METHODS[name].title if name in METHODS else _PARTS.get(name)}."
    complete = "Complete. The report and the raw maps can be downloaded below."
    canvas = Canvas(shown.analysis.display, checked_color_map(color_map))
    drawn = (
        f'<section class="dl-part"><h3>{escape(part.title)}</h3>{caption(part.text)}'
        f"{part.content}</section>"
        for part in parts(canvas, work.comparison)
    )
    return _status(work, running, complete, "parts", stopped) + "".join(drawn)


def _status(work: Work, running: str, complete: str, unit: str, stopped: bool) -> str:
    if work.running is None:
        return finished(complete)
    if stopped:
        return finished(f"Stopped after {work.done} of {work.total} {unit}.")
    text = f"{work.done + 1} of {work.total}: {running}"
    return busy(text, work.done, work.total, work.seconds, work.remaining)


def finished(text: str) -> str:
    """Return a line that says what is done."""
    return f'<div class="dl-status" role="status">{escape(text)}</div>'


def busy(text: str, done: int, total: int, seconds: float, remaining: float) -> str:
    """Return what runs, how long about, and a bar that grows for as long."""
    expected = f" About {about(remaining)} left." if np.isfinite(remaining) else ""
    pace = max(seconds, 0.5) if np.isfinite(seconds) else 5.0
    start, end = 100 * done / total, 100 * (done + 0.95) / total
    return (
        f'<div class="dl-status" role="status">{escape(text)}<span class="dl-eta">{expected}'
        f'</span><div class="dl-progress" aria-hidden="true"><div style="--dl-from:{start:.0f}%;'
        f'--dl-to:{end:.0f}%;--dl-seconds:{pace:.1f}s"></div></div></div>'
    )


def about(seconds: float) -> str:
    """Write an estimate no more precisely than it is known.

    Example:
        >>> about(0.4), about(17.2), about(130)
        ('a second', '15 s', '2 min 10 s')
    """
    if seconds < 1.5:
        return "a second"
    step = 1 if seconds < 10 else 5 if seconds < 60 else 10
    return duration(step * max(1, round(seconds / step)))

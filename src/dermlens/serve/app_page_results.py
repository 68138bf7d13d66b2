"""Explain and Compare as HTML: what is finished, what runs, and how far the work is."""

from html import escape

import numpy as np

from dermlens.explainers.registry import METHODS, method
from dermlens.report.comparison_view import Part, grid, method_cards, parts
from dermlens.report.facts import counted
from dermlens.report.layers import Canvas, smaller
from dermlens.report.verdict import caption
from dermlens.serve.app_actions import AS_IT_IS, Wish
from dermlens.serve.app_desk import Job
from dermlens.serve.app_explaining import Work
from dermlens.serve.app_page import canvas_of

EMPTY_EXPLANATION = """
<div class="dl-empty">Choose methods and press <em>Explain</em>. Each map appears as soon as it is
ready.</div>
"""
EMPTY_COMPARISON = """
<div class="dl-empty">All methods side by side, how far they agree, and this {one} against another.
Press <em>Compare</em>; each part appears as soon as it is ready.</div>
"""
_PARTS = {
    "reading": "reading the image",
    "agreement": "agreement of the methods",
    "scales": "several scales",
    "discrimination": "this class against others",
}


def cards(shown: Job, wish: Wish = AS_IT_IS, *, stopped: bool = False) -> str:
    """Return the finished methods side by side, and what runs now unless it was stopped."""
    work = shown.work
    name = work.comparison.labels.of(work.comparison.target).name
    running = "" if work.running is None else f"{method(work.running).title} for {name}"
    complete = f"Explained: {name}, by {counted(work.total, 'method')}."
    drawn = grid(method_cards(_canvas(shown, wish), work.comparison.combined, name, work.agreement))
    return _status(work, running, complete, "method", stopped) + drawn


def comparison(shown: Job, wish: Wish = AS_IT_IS, *, stopped: bool = False) -> str:
    """Return what is ready of a comparison, and what runs now unless it was stopped."""
    work, name = shown.work, shown.work.running or ""
    running = METHODS[name].title if name in METHODS else _PARTS.get(name, "")
    canvas = _canvas(shown, wish)
    drawn = "".join(map(section, parts(canvas, work.comparison)))
    return _status(work, running, "Complete.", "part", stopped) + drawn


def section(part: Part) -> str:
    """Return one part of a result as HTML: its heading, a paragraph, and what it holds."""
    heading = f"<h3>{escape(part.title)}</h3>{caption(part.text)}"
    return f'<section class="dl-part">{heading}{part.content}</section>'


def _canvas(shown: Job, wish: Wish) -> Canvas:
    return smaller(canvas_of(shown.analysis, wish, shown.work.comparison.reading.lesion))


def _status(work: Work, running: str, complete: str, unit: str, stopped: bool) -> str:
    if work.running is None:
        return finished(complete)
    if stopped:
        return finished(f"Stopped after {work.done} of {counted(work.total, unit)}.")
    text = f"{work.done + 1} of {work.total}: {running}."
    return busy(text, work.done, work.total, work.seconds, work.remaining)


def finished(text: str) -> str:
    """Return a line that says what is done."""
    return f'<div class="dl-status" role="status">{escape(text)}</div>'


WAITING = finished("Waiting for the computer to be free …")


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
        >>> about(0.4), about(17.2), about(50), about(130)
        ('a second', '15 seconds', 'a minute', '2 minutes')
    """
    if seconds < 1.5:
        return "a second"
    if seconds < 45:
        step = 1 if seconds < 10 else 5
        return f"{step * round(seconds / step)} seconds"
    minutes = round(seconds / 60)
    return "a minute" if minutes <= 1 else f"{minutes} minutes"

"""The parts of the Explain tab as HTML: one card per method, and how far the work is."""

from collections.abc import Mapping
from html import escape

import numpy as np

from dermlens.diagnoses import by_code
from dermlens.explain.base import Attribution
from dermlens.explain.registry import METHODS, method
from dermlens.model.bundle import Bundle
from dermlens.progress import duration
from dermlens.report.figures import UNSIGNED_MAP
from dermlens.report.trust import LARGE_COMPLETENESS_GAP, LOW_AGREEMENT, LOW_R2
from dermlens.serve.app_actions import Analysis
from dermlens.serve.app_explaining import Step
from dermlens.serve.app_layers import layers

EMPTY_EXPLANATION = """
<div class="dl-empty">Choose methods and press <em>Explain</em>. Each map appears as soon as it is
ready.</div>
"""


def cards(
    bundle: Bundle,
    analysis: Analysis,
    step: Step,
    color_map: str = UNSIGNED_MAP,
    *,
    stopped: bool = False,
) -> str:
    """Return the finished methods side by side, and what runs now unless it was stopped."""
    name = by_code(bundle.classes[step.target]).name
    if stopped and step.running is not None:
        status = finished(f"Stopped after {len(step.results)} of {step.total} methods.")
    elif step.running is None:
        status = finished(f"Explained: {name}, by {step.total} of {step.total} methods.")
    else:
        done, entry = len(step.results), method(step.running)
        text = f"{done + 1} of {step.total}: {entry.title} for {name}; passes: {entry.cost}."
        status = busy(text, done, step.total, step.seconds, step.remaining)
    drawn = method_cards(analysis.display, step.results, name, step.agreement, color_map)
    return f'{status}<div class="dl-cards">{drawn}</div>'


def finished(text: str) -> str:
    """Return a line that says what is done."""
    return f'<div class="dl-status" role="status">{escape(text)}</div>'


def busy(text: str, done: int, total: int, seconds: float, remaining: float) -> str:
    """Return what runs, how long about, and a bar that grows for as long.

    Args:
        text: What runs.
        done: Finished pieces of work.
        total: All pieces.
        seconds: Expected duration of the running one; NaN if not known.
        remaining: Expected seconds until the end; NaN if not known.
    """
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


def method_cards(
    display: np.ndarray,
    results: Mapping[str, Attribution],
    name: str,
    agreement: Mapping[str, float],
    color_map: str,
) -> str:
    """Return one card per finished method.

    Args:
        display: The image, uint8 RGB (h, w, 3).
        results: By method, each of the same single image.
        name: Of the explained diagnosis.
        agreement: Mean rank correlation with the other maps, where there are others.
        color_map: For unsigned maps.
    """
    drawn = []
    for key, result in results.items():
        entry = method(key)
        picture = layers(
            display,
            result.maps[0],
            signed=result.signed,
            text=f"{entry.title} map for {name}",
            color_map=color_map,
        )
        drawn.append(
            f'<article class="dl-card"><h3>{escape(entry.title)}</h3>'
            f'<p class="dl-question">{escape(entry.question)}</p>{picture}'
            f"{_checks(result, agreement.get(key))}"
            f'<p class="dl-caption">{escape(_cost(result))}</p></article>'
        )
    return "".join(drawn)


def _cost(result: Attribution) -> str:
    forward, backward = result.cost.forward, result.cost.backward
    passes = f"{forward:,} forward" + (f" and {backward:,} backward" if backward else "")
    unit = "pass" if forward + backward == 1 else "passes"
    network = "network" if result.facts().get("scorer") != "int8" else "network's int8 copy"
    if forward + backward == 0:
        # LIME and Kernel SHAP share their masks; so does an image that is explained again.
        seconds = f"{result.cost.seconds:.1f} s"
        return f"No new pass: what the {network} had answered before served again, {seconds}."
    return f"It took {passes} {unit} of the {network}, {result.cost.seconds:.1f} s."


def _checks(result: Attribution, agreement: float | None) -> str:
    """Return the numbers that say how far a map can be trusted, marked where they are bad."""
    found: list[tuple[str, bool]] = []
    gap, fit = (_detail(result, key) for key in ("convergence_delta", "r2"))
    if gap is not None:
        found.append((f"completeness gap {_number(gap)}", not gap <= LARGE_COMPLETENESS_GAP))
    if fit is not None:
        found.append((f"R² {_number(fit)}", not fit >= LOW_R2))
    if agreement is not None:
        text = f"agreement with others {_number(agreement)}"
        found.append((text, not agreement >= LOW_AGREEMENT))
    if not found:
        return ""
    items = "".join(
        f'<li class="dl-bad">{escape(text)}: doubtful</li>' if bad else f"<li>{escape(text)}</li>"
        for text, bad in found
    )
    return f'<ul class="dl-checks" aria-label="Checks">{items}</ul>'


def _detail(result: Attribution, key: str) -> float | None:
    value = result.facts().get(key)
    return None if value is None else float(value)


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "unknown"


def title_of(name: str) -> str:
    """Return the name of a method, or of a part of a comparison, for people."""
    parts = {
        "reading": "reading the image",
        "agreement": "agreement of the methods",
        "scales": "several scales",
        "discrimination": "this diagnosis against others",
    }
    return METHODS[name].title if name in METHODS else parts.get(name, name)

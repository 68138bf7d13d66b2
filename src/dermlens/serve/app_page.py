"""The parts of the web page as HTML: title, banner, the verdict and its probabilities."""

from html import escape

import numpy as np

from dermlens.diagnoses import by_code
from dermlens.explain.registry import method
from dermlens.model.bundle import Bundle
from dermlens.report.figures import UNSIGNED_MAP
from dermlens.serve.app_actions import NOTE, Analysis
from dermlens.serve.app_layers import layers

TITLE = "dermlens"

BANNER = f"""
<div class="dl-banner" role="note"><strong>{NOTE}</strong>
Never decide about a skin lesion with this page; see a doctor.</div>
"""

EMPTY = """
<div class="dl-empty">Upload, paste or photograph a dermatoscopic image, or click a drawn example.
The result appears here.</div>
"""


def header(bundle: Bundle) -> str:
    """Return the title, and a warning where the model has seen drawings only."""
    warning = ""
    if bundle.synthetic:
        warning = (
            '<div class="dl-flag"><strong>This model was trained on drawn images only.</strong> '
            "Use the drawn examples: what it says about a photograph means nothing.</div>"
        )
    return (
        f'<div class="dl-head"><h1>{TITLE}</h1><p>What does the network see in a dermatoscopic '
        f"image, and where does it look?</p></div>{warning}"
    )


def verdict(bundle: Bundle, analysis: Analysis) -> str:
    """Return the answer with flags and probabilities, or that the model abstains and why."""
    remarks = "".join(
        f'<div class="dl-flag dl-calm">{escape(text)}</div>' for text in analysis.remarks
    )
    if not analysis.abstains:
        return (
            f'<div class="dl-verdict">{_answer(bundle, analysis, "h2")}'
            f"{_flags(bundle, analysis)}{remarks}{_numbers(bundle, analysis)}</div>"
        )
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in analysis.reasons)
    return (
        '<div class="dl-verdict"><h2>The model abstains</h2>'
        '<p class="dl-plain">It gives no diagnosis for this image.</p>'
        f'<div class="dl-flag dl-doubt"><strong>Why</strong><ul>{reasons}</ul></div>'
        '<div class="dl-flag dl-calm">That excludes nothing: show a lesion that worries you to a '
        f"doctor.</div>{remarks}"
        '<details class="dl-second"><summary>What it would have said, not to be relied on'
        f"</summary><div>{_answer(bundle, analysis, 'h3')}{_flags(bundle, analysis)}"
        f"{_numbers(bundle, analysis)}</div></details></div>"
    )


def _answer(bundle: Bundle, analysis: Analysis, heading: str) -> str:
    diagnosis = by_code(bundle.classes[analysis.predicted])
    chance = percent(analysis.probabilities[analysis.predicted])
    return (
        f"<{heading}>Most probable: {escape(diagnosis.name)}, {chance}</{heading}>"
        f'<p class="dl-plain">{escape(diagnosis.plain)}</p>'
        f'<p class="dl-plain"><strong>{_not_excluded(bundle, analysis)}</strong></p>'
    )


def _not_excluded(bundle: Bundle, analysis: Analysis) -> str:
    if analysis.prediction_set is None:
        return "What else cannot be excluded is not known: this model carries no prediction sets."
    others = [
        f"{by_code(bundle.classes[k]).name}, {percent(analysis.probabilities[k])}"
        for k in analysis.prediction_set
        if k != analysis.predicted
    ]
    return escape(f"Cannot be excluded: {'; '.join(others) or 'nothing else'}.")


def _numbers(bundle: Bundle, analysis: Analysis) -> str:
    sets = bundle.calibration.prediction_sets
    promise = (
        ""
        if sets is None
        else " A diagnosis is excluded only where at least "
        f"{percent(sets.level)} of its validation images got a higher probability for it."
    )
    return (
        f"{_bars(bundle, analysis)}"
        '<p class="dl-caption">Probabilities are calibrated on validation images and compare '
        "these seven diagnoses only; anything else on the skin is forced into one of them."
        f"{promise}</p>"
    )


def _flags(bundle: Bundle, analysis: Analysis) -> str:
    return f"{_malignant(bundle, analysis)}{_melanoma(bundle, analysis)}"


def _malignant(bundle: Bundle, analysis: Analysis) -> str:
    point = bundle.calibration.operating_points.get("malignant")
    if point is None:
        return ""
    chance = percent(float(point.score(analysis.probabilities[None], bundle.classes)[0]))
    if analysis.flags["malignant"]:
        return (
            f'<div class="dl-flag"><strong>Flagged as possibly malignant</strong> ({chance} for '
            "all malignant diagnoses together).</div>"
        )
    return (
        '<div class="dl-flag dl-calm"><strong>Below the threshold for malignancy</strong> '
        f"({chance} for all malignant diagnoses together). That excludes nothing.</div>"
    )


def _melanoma(bundle: Bundle, analysis: Analysis) -> str:
    point = bundle.calibration.operating_points.get("melanoma")
    if point is None:
        return ""
    chance = analysis.probabilities[bundle.classes.index("mel")]
    basis = (
        f"On validation images this threshold ({percent(point.threshold)}) flagged "
        f"{percent(point.sensitivity)} of {point.positives} melanomas, and did not flag "
        f"{percent(point.specificity)} of {point.negatives} other lesions."
    )
    if analysis.flags["melanoma"] and bundle.classes[analysis.predicted] == "mel":
        return f'<div class="dl-flag"><strong>Melanoma suspected.</strong> {basis}</div>'
    if analysis.flags["melanoma"]:
        return (
            f'<div class="dl-flag"><strong>Melanoma not excluded</strong> ({percent(chance)}). '
            f"{basis}</div>"
        )
    return (
        '<div class="dl-flag dl-calm"><strong>Below the melanoma threshold</strong> '
        f"({percent(chance)}). That excludes nothing. {basis}</div>"
    )


def _bars(bundle: Bundle, analysis: Analysis) -> str:
    rows = []
    for position in np.argsort(-analysis.probabilities, kind="stable"):
        diagnosis = by_code(bundle.classes[position])
        value = float(analysis.probabilities[position])
        kinds = ["dl-malignant"] if diagnosis.malignant else []
        kinds += ["dl-chosen"] if position == analysis.predicted else []
        mark = '<span class="dl-mark">malignant</span>' if diagnosis.malignant else ""
        rows.append(
            f'<tr class="{" ".join(kinds)}"><th scope="row">{escape(diagnosis.name)}{mark}</th>'
            f'<td class="dl-space"><div class="dl-track"><div class="dl-fill" style="width:'
            f'{100 * value:.1f}%"></div></div></td><td class="dl-number">{percent(value)}</td></tr>'
        )
    return f'<table class="dl-bars" aria-label="Probabilities">{"".join(rows)}</table>'


def percent(value: float) -> str:
    """Write a share for people; never a bare 0 % or 100 % for what is neither.

    Example:
        >>> [percent(v).replace(chr(160), " ") for v in (0.834, 0.0001, 0.9999, float("nan"))]
        ['83 %', '< 1 %', '> 99 %', 'unknown']
    """
    if not np.isfinite(value):
        return "unknown"
    if 0 < value < 0.01:
        return "<\N{NO-BREAK SPACE}1\N{NO-BREAK SPACE}%"
    if 0.99 < value < 1:
        return ">\N{NO-BREAK SPACE}99\N{NO-BREAK SPACE}%"
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def grad_cam(bundle: Bundle, analysis: Analysis, target: int, color_map: str = UNSIGNED_MAP) -> str:
    """Return the Grad-CAM of one class over the image."""
    name = by_code(bundle.classes[target]).name
    values = analysis.maps[target]
    drawn = layers(
        analysis.display,
        values,
        signed=False,
        text=f"Grad-CAM heat map for {name}",
        color_map=color_map,
    )
    empty = values.max() <= 0
    caption = (
        f"Nothing in the image raises the score of {name}: the map is empty."
        if empty
        else f"Grad-CAM: {method('grad_cam').question} Here: {name}. It says where the network "
        "found evidence, not what it is, nor whether it is right."
    )
    return f'{drawn}<p class="dl-caption">{escape(caption)}</p>'

"""The parts of the web page as HTML: title, banner, the verdict and its probabilities."""

from html import escape

import numpy as np

from dermlens.explainers.registry import method
from dermlens.labels import MALIGNANT
from dermlens.model.bundle import Bundle
from dermlens.model.calibration import OperatingPoint
from dermlens.report.comparison_view import caption
from dermlens.report.facts import NOT_CALIBRATED, of_skin, percent, title, words
from dermlens.report.figures import UNSIGNED_MAP
from dermlens.report.html import NOTICE
from dermlens.report.layers import Canvas, checked_color_map, layers
from dermlens.serve.app_actions import Actions, Analysis

TITLE = "dermlens"
_MOST_BARS = 20


def banner(bundle: Bundle) -> str:
    """Return what stands above everything."""
    advice = "Never decide about a skin lesion with this page; see a doctor."
    more = advice if of_skin(bundle.labels) else ""
    return f'<div class="dl-banner" role="note"><strong>{NOTICE}</strong> {more}</div>'


def empty(bundle: Bundle) -> str:
    """Return what stands where the verdict is going to be."""
    example = ", or click a drawn example" if of_skin(bundle.labels) else ""
    return (
        f'<div class="dl-empty">Upload, paste or photograph {_an(words(bundle.labels).image)}'
        f"{example}. The result appears here.</div>"
    )


def _an(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def header(bundle: Bundle) -> str:
    """Return the title, and a warning where the model has seen drawings only."""
    warning = ""
    if bundle.synthetic:
        warning = (
            '<div class="dl-flag"><strong>This model was trained on drawn images only.</strong> '
            "Use the drawn examples: what it says about a photograph means nothing.</div>"
        )
    return (
        f'<div class="dl-head"><h1>{TITLE}</h1><p>What does the network see in '
        f"{_an(words(bundle.labels).image)}, and where does it look?</p></div>{warning}"
    )


def verdict(bundle: Bundle, analysis: Analysis) -> str:
    """Return the answer with flags and probabilities, or that the model abstains and why."""
    remarks = "".join(_flag("", text, "dl-calm") for text in analysis.remarks)
    flags = "".join(
        _point(bundle, analysis, point) for point in bundle.calibration.operating_points.values()
    )
    numbers = f"{_bars(bundle, analysis)}{caption(_about_numbers(bundle))}"
    if not analysis.abstains:
        answer = _answer(bundle, analysis, "h2")
        return f'<div class="dl-verdict">{answer}{flags}{remarks}{numbers}</div>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in analysis.reasons)
    doctor = "That excludes nothing: show a lesion that worries you to a doctor."
    advice = _flag("", doctor, "dl-calm") if of_skin(bundle.labels) else ""
    return (
        '<div class="dl-verdict"><h2>The model abstains</h2>'
        f'<p class="dl-plain">It gives no {words(bundle.labels).one} for this image.</p>'
        f'<div class="dl-flag dl-doubt"><strong>Why</strong><ul>{reasons}</ul></div>'
        f"{advice}{remarks}"
        '<details class="dl-second"><summary>What it would have said, not to be relied on'
        f"</summary><div>{_answer(bundle, analysis, 'h3')}{flags}{numbers}</div></details></div>"
    )


def _flag(strong: str, text: str, kind: str = "") -> str:
    said = f"<strong>{escape(strong)}</strong> " if strong else ""
    return f'<div class="dl-flag {kind}">{said}{escape(text)}</div>'


def _answer(bundle: Bundle, analysis: Analysis, heading: str) -> str:
    label = bundle.labels.labels[analysis.predicted]
    chance = percent(analysis.probabilities[analysis.predicted])
    note = "" if bundle.calibrated else f" ({NOT_CALIBRATED})"
    return (
        f"<{heading}>Most probable: {escape(label.name)}, {chance}{note}</{heading}>"
        f'<p class="dl-plain">{escape(label.plain)}</p>'
        f'<p class="dl-plain"><strong>{escape(_not_excluded(bundle, analysis))}</strong></p>'
    )


def _not_excluded(bundle: Bundle, analysis: Analysis) -> str:
    if analysis.prediction_set is None:
        return "What else cannot be excluded is not known: this model carries no prediction sets."
    others = [
        f"{bundle.labels.labels[k].name}, {percent(analysis.probabilities[k])}"
        for k in analysis.prediction_set
        if k != analysis.predicted
    ]
    return f"Cannot be excluded: {'; '.join(others) or 'nothing else'}."


def _about_numbers(bundle: Bundle) -> str:
    called, count = words(bundle.labels), len(bundle.labels)
    if bundle.calibrated:
        text = "Probabilities are calibrated on validation images. "
    else:
        text = f"Probabilities are {NOT_CALIBRATED}: they are the model's own, and may be far off. "
    if bundle.link == "sigmoid":
        text += f"Each {called.one} is judged for itself, so they need not sum to 100 %."
    else:
        text += (
            f"They compare these {count} {called.several} only; anything else is forced into one "
            "of them."
        )
    sets = bundle.calibration.prediction_sets
    if sets is None:
        return text
    return (
        f"{text} A {called.one} is excluded only where at least {percent(sets.level)} of its "
        "validation images got a higher probability for it."
    )


def raised(bundle: Bundle, analysis: Analysis, point: OperatingPoint) -> str:
    """Return what a flag that is raised says, such as "Melanoma not excluded"; else nothing."""
    if not analysis.flags[point.name]:
        return ""
    if point.name == MALIGNANT:
        return "Possibly malignant"
    name = title(point.name)
    if len(point.codes) == 1:
        name = bundle.labels.of(point.codes[0]).name
    suspected = bundle.classes[analysis.predicted] in point.codes
    return f"{name} {'suspected' if suspected else 'not excluded'}"


def _point(bundle: Bundle, analysis: Analysis, point: OperatingPoint) -> str:
    """Return whether an operating point is reached, and what it reached on validation."""
    chance = percent(float(point.score(analysis.probabilities[None], bundle.classes)[0]))
    called, said = words(bundle.labels), raised(bundle, analysis, point)
    if point.name == MALIGNANT:
        together = f"({chance} for all malignant {called.several} together)."
        if said:
            return _flag(f"Flagged as {said[0].lower()}{said[1:]}", together)
        strong = "Below the threshold for malignancy"
        return _flag(strong, f"{together} That excludes nothing.", "dl-calm")
    basis = (
        f"On validation images this threshold ({percent(point.threshold)}) flagged "
        f"{percent(point.sensitivity)} of {point.positives} with {', '.join(point.codes)}, and did "
        f"not flag {percent(point.specificity)} of {point.negatives} others."
    )
    if said:
        return _flag(said, f"({chance}). {basis}")
    strong = f"Below the {point.name} threshold"
    return _flag(strong, f"({chance}). That excludes nothing. {basis}", "dl-calm")


def _bars(bundle: Bundle, analysis: Analysis) -> str:
    rows = []
    order = np.argsort(-analysis.probabilities, kind="stable")
    for position in order[:_MOST_BARS]:
        label, value = bundle.labels.labels[position], float(analysis.probabilities[position])
        kinds = ["dl-malignant"] if label.malignant else []
        kinds += ["dl-chosen"] if position == analysis.predicted else []
        mark = '<span class="dl-mark">malignant</span>' if label.malignant else ""
        rows.append(
            f'<tr class="{" ".join(kinds)}"><th scope="row">{escape(label.name)}{mark}</th>'
            f'<td class="dl-space"><div class="dl-track"><div class="dl-fill" style="width:'
            f'{100 * value:.1f}%"></div></div></td><td class="dl-number">{percent(value)}</td></tr>'
        )
    left = len(order) - len(rows)
    more = caption(f"{left} less probable ones are left out here.") if left else ""
    return f'<table class="dl-bars" aria-label="Probabilities">{"".join(rows)}</table>{more}'


def grad_cam(
    actions: Actions, analysis: Analysis, target: int, color_map: str = UNSIGNED_MAP
) -> str:
    """Return the Grad-CAM of one class over the image, or why there is none."""
    name = actions.bundle.labels.labels[target].name
    values = actions.map_of(analysis, target)
    if values is None:
        return caption(f"There is no Grad-CAM of this model. {actions.without_maps}")
    canvas = Canvas(analysis.display, checked_color_map(color_map))
    drawn = layers(canvas, values, signed=False, text=f"Grad-CAM heat map for {name}")
    if values.max() <= 0:
        return drawn + caption(
            f"Nothing in the image raises the score of {name}: the map is empty."
        )
    return drawn + caption(
        f"Grad-CAM: {method('grad_cam').question} Here: {name}. It says where the network found "
        "evidence, not what it is, nor whether it is right."
    )

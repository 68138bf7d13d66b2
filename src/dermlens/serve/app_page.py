"""The parts of the web page as HTML: title, banner, the verdict, and where its evidence lies."""

from functools import lru_cache
from html import escape

import numpy as np

from dermlens.explainers.registry import method
from dermlens.files import read_json
from dermlens.labels import MALIGNANT
from dermlens.model.bundle import Bundle
from dermlens.model.bundle_choice import SHIPPED
from dermlens.model.calibration import OperatingPoint
from dermlens.report.comparison_view import caption
from dermlens.report.facts import NOT_CALIBRATED, class_name, of_skin, percent, title, words
from dermlens.report.figures import strongest
from dermlens.report.html import CLINICAL, NOTICE
from dermlens.report.layers import Canvas, checked_color_map, layers, outlined, smaller
from dermlens.report.trust import NEAR_TIE_ODDS
from dermlens.serve.app_actions import AS_IT_IS, Actions, Analysis, Wish

TITLE = "dermlens"
_MOST_BARS = 20
_BESIDE = 3
"""Classes shown beside the one asked for, if each is probable or cannot be excluded."""


def banner(bundle: Bundle) -> str:
    """Return what stands above everything."""
    more = f" {CLINICAL}" if of_skin(bundle.labels) else ""
    return f'<div class="dl-banner" role="note"><strong>{NOTICE}</strong>{more}</div>'


def empty(bundle: Bundle) -> str:
    """Return what stands where the verdict is going to be."""
    return (
        f'<div class="dl-empty">Upload, paste or photograph {_an(words(bundle.labels).image)}. '
        "The result appears here.</div>"
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


def verdict(bundle: Bundle, analysis: Analysis, *, anyway: bool = False, truth: str = "") -> str:
    """Return the answer with alerts and probabilities, or that the model abstains and why.

    No class is named where it abstains, unless it is to be ``anyway``.
    """
    remarks = "".join(_note(text) for text in analysis.remarks)
    known = _note(f"True {words(bundle.labels).one} of this example: {truth}.") if truth else ""
    answer = f"{_answer(bundle, analysis)}{_alerts(bundle, analysis)}"
    numbers = f"{_bars(bundle, analysis)}{caption(_about_numbers(bundle))}"
    if not analysis.abstains:
        return f'<div class="dl-verdict">{answer}{known}{remarks}{numbers}</div>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in analysis.reasons)
    advice = _note("That excludes nothing: the lesion may be anything.")
    shown = (
        '<div class="dl-second"><p class="dl-plain">What it would have said, not to be relied '
        f"on:</p>{answer}{numbers}</div>"
    )
    return (
        '<div class="dl-verdict"><h2>The model abstains</h2>'
        f'<p class="dl-plain">It gives no {words(bundle.labels).one} for this image.</p>'
        f'<div class="dl-flag dl-doubt"><strong>Why</strong><ul>{reasons}</ul></div>'
        f"{known}{remarks}{advice if of_skin(bundle.labels) else ''}{shown * anyway}</div>"
    )


def _note(text: str) -> str:
    return f'<div class="dl-flag dl-calm">{escape(text)}</div>'


def _answer(bundle: Bundle, analysis: Analysis) -> str:
    label = bundle.labels.labels[analysis.predicted]
    note = "" if bundle.calibrated else f" ({NOT_CALIBRATED})"
    chance = percent(analysis.probabilities[analysis.predicted])
    tie = near_tie(bundle, analysis)
    return (
        f"<h2>Most probable: {escape(label.name)}, {chance}{note}</h2>"
        f'<p class="dl-plain">{escape(label.plain)}</p>'
        + (f'<p class="dl-tie"><strong>{escape(tie)}</strong></p>' if tie else "")
        + f'<p class="dl-set">{escape(_not_excluded(bundle, analysis))}</p>'
    )


def near_tie(bundle: Bundle, analysis: Analysis) -> str:
    """Return that another class is nearly as probable, if one is."""
    first, second = np.argsort(-analysis.probabilities, kind="stable")[:2]
    odds = analysis.probabilities[first] / max(analysis.probabilities[second], 1e-12)
    if not odds < NEAR_TIE_ODDS:
        return ""
    name = class_name(bundle.labels, bundle.classes[second])
    return f"Near tie: {name} is nearly as probable, {percent(analysis.probabilities[second])}."


def _not_excluded(bundle: Bundle, analysis: Analysis) -> str:
    if analysis.prediction_set is None:
        return "What else cannot be excluded is not known: this model carries no prediction sets."
    others = [
        f"{class_name(bundle.labels, bundle.classes[k])}, {percent(analysis.probabilities[k])}"
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
    """Return what a flag that is up says, such as "Melanoma not excluded"; else nothing."""
    if not analysis.flags[point.name]:
        return ""
    suspected = bundle.classes[analysis.predicted] in point.codes
    if point.name == MALIGNANT:
        return "Malignancy suspected" if suspected else "Possibly malignant"
    return f"{_point_name(bundle, point)} {'suspected' if suspected else 'not excluded'}"


def _point_name(bundle: Bundle, point: OperatingPoint) -> str:
    if len(point.codes) == 1:
        return bundle.labels.of(point.codes[0]).name
    return "Malignancy" if point.name == MALIGNANT else title(point.name)


def _alerts(bundle: Bundle, analysis: Analysis) -> str:
    """Return every alert, red if it is up and gray if not, with what its threshold reaches."""
    drawn = ""
    for point in bundle.calibration.operating_points.values():
        chance = percent(float(point.score(analysis.probabilities[None], bundle.classes)[0]))
        said = raised(bundle, analysis, point)
        text = said or f"{_point_name(bundle, point)}: below the threshold"
        excludes = "" if said else " That excludes nothing."
        drawn += (
            f'<li class="dl-alert{" dl-up" * bool(said)}"><strong>{escape(text)}</strong> '
            f"({chance}).{excludes}<details><summary aria-label="
            f'"What the threshold for {escape(point.name, quote=True)} reaches">?</summary>'
            f"<p>{escape(_reached(bundle, point))}</p></details></li>"
        )
    return f'<ul class="dl-alerts" aria-label="Alerts">{drawn}</ul>' if drawn else ""


def _reached(bundle: Bundle, point: OperatingPoint) -> str:
    tested = _tested(bundle.identity["fingerprint"]).get(point.name)
    name = _point_name(bundle, point).lower()
    sensitivity, specificity = point.sensitivity, point.specificity
    counts, which = (point.positives, point.negatives), "validation"
    if tested is not None:
        sensitivity, specificity = tested["sensitivity"], tested["specificity"]
        counts, which = (int(tested["positives"]), int(tested["negatives"])), "test"
    several = [class_name(bundle.labels, code) for code in point.codes]
    of = f" ({', '.join(several)})" if len(several) > 1 else ""
    return (
        f"Up from a probability of {percent(point.threshold)}. On {which} images it was up for "
        f"{percent(sensitivity)} of {counts[0]:,} with {name}{of}, and for "
        f"{percent(1 - specificity)} of {counts[1]:,} without."
    )


@lru_cache(maxsize=4)
def _tested(fingerprint: str) -> dict[str, dict[str, float]]:
    """Return what the operating points of a model reached on test images, as far as is known."""
    known = read_json(SHIPPED.parent / "test_figures.json")
    found: dict[str, dict[str, float]] = known["operating_points"]
    return found if known["fingerprint"] == fingerprint else {}


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


def canvas_of(analysis: Analysis, wish: Wish, lesion: np.ndarray | None = None) -> Canvas:
    """Return what maps of an analysis are drawn over."""
    return Canvas(analysis.display, checked_color_map(wish.color_map), lesion, analysis.box)


def evidence(
    actions: Actions,
    analysis: Analysis,
    target: int,
    wish: Wish = AS_IT_IS,
    lesion: np.ndarray | None = None,
) -> str:
    """Return the Grad-CAM of a class and of those it competes with, on one scale.

    The photograph alone where the model abstains, unless a class is to be named anyway; and with
    the reason where the model has no Grad-CAM.
    """
    canvas = canvas_of(analysis, wish, lesion)
    if analysis.abstains and not wish.anyway:
        return outlined(canvas)
    values = actions.map_of(analysis, target)
    if values is None:
        return outlined(canvas) + caption(
            f"There is no Grad-CAM of this model. {actions.without_maps}"
        )
    maps = {target: values}
    if len(analysis.maps):
        order = np.argsort(-analysis.probabilities, kind="stable").tolist()
        likely = [k for k in order if k in order[:2] or k in (analysis.prediction_set or ())]
        maps |= {k: analysis.maps[k] for k in likely[: 1 + _BESIDE] if k != target}
    top = max(map(strongest, maps.values()))
    small, drawn = smaller(canvas), ""
    for position, one in maps.items():
        name = actions.bundle.labels.labels[position].name
        chance, score = percent(analysis.probabilities[position]), analysis.logits[position]
        note = f"Probability {chance}, score {score:.1f}. {method('grad_cam').question}"
        if one.max() <= 0:
            note = f"Nothing in the image raises the score of {name}: the map is empty."
        drawn += layers(
            canvas if position == target else small,
            one,
            signed=False,
            text=f"Grad-CAM heat map for {name}",
            limits=(0.0, top) if top > 0 else None,
            name=f"Grad-CAM: {name}",
            note=note,
        )
    return drawn

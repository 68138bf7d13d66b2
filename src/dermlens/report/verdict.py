"""The verdict as HTML, the same on the web page and in reports: answer, alerts, probabilities."""

from collections.abc import Sequence
from functools import lru_cache
from html import escape

import numpy as np

from dermlens.files import read_json
from dermlens.labels import MALIGNANT
from dermlens.model.bundle_choice import SHIPPED
from dermlens.model.calibration import OperatingPoint
from dermlens.model.image_classifier import ImageClassifier
from dermlens.report.facts import (
    NOT_CALIBRATED,
    Answer,
    class_name,
    of_skin,
    percent,
    title,
    words,
)
from dermlens.report.trust import NEAR_TIE_ODDS

_MOST_BARS = 20


def caption(text: str) -> str:
    """Return small text; nothing for none."""
    return f'<p class="dl-caption">{escape(text)}</p>' if text else ""


def verdict(
    classifier: ImageClassifier,
    answer: Answer,
    *,
    reasons: Sequence[str] = (),
    remarks: Sequence[str] = (),
    anyway: bool = False,
    truth: str = "",
) -> str:
    """Return the answer with alerts and probabilities, or that the model abstains and why.

    With ``reasons`` it abstains, and no class is named unless it is to be ``anyway``.
    """
    called = words(classifier.labels)
    noted = "".join(map(_note, remarks))
    known = _note(f"True {called.one} of this example: {truth}.") if truth else ""
    said = f"{_answer(classifier, answer)}{_alerts(classifier, answer)}"
    bars, about = _bars(classifier, answer), caption(_about_numbers(classifier))
    if not reasons:
        return f'<div class="dl-verdict">{said}{known}{bars}{noted}{about}</div>'
    listed = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    advice = _note("That excludes nothing: the lesion may be anything.")
    shown = (
        '<div class="dl-second"><p class="dl-plain">What it would have said, not to be relied '
        f"on:</p>{said}{bars}{about}</div>"
    )
    return (
        '<div class="dl-verdict"><h2>The model abstains</h2>'
        f'<p class="dl-plain">It gives no {called.one} for this image.</p>'
        f'<div class="dl-flag dl-doubt"><strong>Why</strong><ul>{listed}</ul></div>'
        f"{known}{noted}{advice * of_skin(classifier.labels)}{shown * anyway}</div>"
    )


def _note(text: str) -> str:
    return f'<div class="dl-flag dl-calm">{escape(text)}</div>'


def _answer(classifier: ImageClassifier, answer: Answer) -> str:
    label = classifier.labels.labels[answer.predicted]
    note = "" if classifier.calibrated else f" ({NOT_CALIBRATED})"
    chance = percent(answer.probabilities[answer.predicted])
    tie = near_tie(classifier, answer)
    return (
        f"<h2>Most probable: {escape(label.name)}, {chance}{note}</h2>"
        f'<p class="dl-plain">{escape(label.plain)}</p>'
        + (f'<p class="dl-tie"><strong>{escape(tie)}</strong></p>' if tie else "")
        + f'<p class="dl-set">{escape(_not_excluded(classifier, answer))}</p>'
    )


def near_tie(classifier: ImageClassifier, answer: Answer) -> str:
    """Return that another class is nearly as probable, if one is."""
    first, second = np.argsort(-answer.probabilities, kind="stable")[:2]
    odds = answer.probabilities[first] / max(answer.probabilities[second], 1e-12)
    if not odds < NEAR_TIE_ODDS:
        return ""
    name = class_name(classifier.labels, classifier.classes[second])
    return f"Near tie: {name} is nearly as probable, {percent(answer.probabilities[second])}."


def _not_excluded(classifier: ImageClassifier, answer: Answer) -> str:
    if answer.prediction_set is None:
        return "What else cannot be excluded is not known: this model carries no prediction sets."
    named = [class_name(classifier.labels, code) for code in classifier.classes]
    others = [
        f"{named[k]}, {percent(answer.probabilities[k])}"
        for k in answer.prediction_set
        if k != answer.predicted
    ]
    return f"Cannot be excluded: {'; '.join(others) or 'nothing else'}."


def _about_numbers(classifier: ImageClassifier) -> str:
    called, count = words(classifier.labels), len(classifier.labels)
    if classifier.calibrated:
        text = "Probabilities are calibrated on validation images. "
    else:
        text = f"Probabilities are {NOT_CALIBRATED}: they are the model's own, and may be far off. "
    if classifier.link == "sigmoid":
        text += f"Each {called.one} is judged for itself, so they need not sum to 100 %."
    else:
        text += (
            f"They compare these {count} {called.several} only; anything else is forced into one "
            "of them."
        )
    sets = classifier.calibration.prediction_sets
    if sets is None:
        return text
    return (
        f"{text} A {called.one} is excluded only where at least {percent(sets.level)} of its "
        "validation images got a higher probability for it."
    )


def raised(classifier: ImageClassifier, answer: Answer, point: OperatingPoint) -> str:
    """Return what a flag that is up says, such as "Melanoma not excluded"; else nothing."""
    if not answer.flags[point.name]:
        return ""
    suspected = classifier.classes[answer.predicted] in point.codes
    if point.name == MALIGNANT:
        return "Malignancy suspected" if suspected else "Possibly malignant"
    return f"{_point_name(classifier, point)} {'suspected' if suspected else 'not excluded'}"


def _point_name(classifier: ImageClassifier, point: OperatingPoint) -> str:
    if len(point.codes) == 1:
        return classifier.labels.of(point.codes[0]).name
    return "Malignancy" if point.name == MALIGNANT else title(point.name)


def _alerts(classifier: ImageClassifier, answer: Answer) -> str:
    """Return every alert, red if it is up and gray if not, with what its threshold reaches."""
    drawn = ""
    for point in classifier.calibration.operating_points.values():
        chance = percent(float(point.score(answer.probabilities[None], classifier.classes)[0]))
        said = raised(classifier, answer, point)
        text = said or f"{_point_name(classifier, point)}: below the threshold"
        excludes = "" if said else " That excludes nothing."
        drawn += (
            f'<li class="dl-alert{" dl-up" * bool(said)}"><strong>{escape(text)}</strong> '
            f"({chance}).{excludes}<details><summary aria-label="
            f'"What the threshold for {escape(point.name, quote=True)} reaches">?</summary>'
            f"<p>{escape(_reached(classifier, point))}</p></details></li>"
        )
    return f'<ul class="dl-alerts" aria-label="Alerts">{drawn}</ul>' if drawn else ""


def _reached(classifier: ImageClassifier, point: OperatingPoint) -> str:
    tested = _tested(classifier.identity["fingerprint"]).get(point.name)
    name = _point_name(classifier, point).lower()
    sensitivity, specificity = point.sensitivity, point.specificity
    counts, which = (point.positives, point.negatives), "validation"
    if tested is not None:
        sensitivity, specificity = tested["sensitivity"], tested["specificity"]
        counts, which = (int(tested["positives"]), int(tested["negatives"])), "test"
    several = [class_name(classifier.labels, code) for code in point.codes]
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


def _bars(classifier: ImageClassifier, answer: Answer) -> str:
    rows = []
    order = np.argsort(-answer.probabilities, kind="stable")
    for position in order[:_MOST_BARS]:
        label, value = classifier.labels.labels[position], float(answer.probabilities[position])
        kinds = ["dl-malignant"] if label.malignant else []
        kinds += ["dl-chosen"] if position == answer.predicted else []
        mark = '<span class="dl-mark">malignant</span>' if label.malignant else ""
        rows.append(
            f'<tr class="{" ".join(kinds)}"><th scope="row">{escape(label.name)}{mark}</th>'
            f'<td class="dl-space"><div class="dl-track"><div class="dl-fill" style="width:'
            f'{100 * value:.1f}%"></div></div></td><td class="dl-number">{percent(value)}</td></tr>'
        )
    left = len(order) - len(rows)
    more = caption(f"{left} less probable ones are left out here.") if left else ""
    return f'<table class="dl-bars" aria-label="Probabilities">{"".join(rows)}</table>{more}'

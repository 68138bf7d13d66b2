"""What would change the answer, and the measurable criteria, as HTML: on the page and in reports.

Plain data in (``lesion.counterfactuals.Changes``, rows of ``lesion.criteria_reference``), one part
of a page out.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from dermlens.explainers.perturbation import FLOAT32
from dermlens.labels import LabelSet
from dermlens.lesion.counterfactuals import (
    COLOR,
    ERASED,
    NECESSARY,
    SUFFICIENT,
    Change,
    Changes,
)
from dermlens.lesion.criteria import Measured
from dermlens.report.comparison_view import Part, grid
from dermlens.report.facts import class_name, counted, percent, title
from dermlens.report.layers import Canvas, outlined
from dermlens.report.verdict import caption

_SIDE_BY_SIDE = "display:grid;grid-template-columns:1fr 1fr;gap:0.6rem"
TITLES: dict[str, str] = {
    ERASED: "The lesion erased",
    NECESSARY: "Necessary: the smallest region found whose erasure changes the answer",
    SUFFICIENT: "Sufficient: the smallest region found that keeps the answer alone",
    COLOR: "The lesion in the average colors of the runner-up",
}
BRIEF: dict[str, str] = {
    ERASED: "lesion erased",
    NECESSARY: "necessary region",
    SUFFICIENT: "sufficient region",
    COLOR: "colors of the runner-up",
}
_CHANGES = (
    "The picture is changed and shown to the network again. These are changes of the picture, not "
    "of the skin: no such lesion exists, and nothing here says what a lesion would have to become. "
    "Erased places are filled with plain skin. Regions are the smallest that were found, not the "
    "smallest there are."
)
_CRITERIA = (
    "Measured from outline and pixels. They are stand-ins for what is taught, not what a "
    "dermatologist sees: a pigment network, streaks or a veil cannot be measured here, since no "
    "labels of structures exist for this data, so no 7-point score is given. A percentile says "
    "which share of training images has less of it."
)


def changes_part(labels: LabelSet, changes: Changes) -> Part:
    """Return the changes of one picture: pairs with probabilities, area and passes."""
    cards = "".join(_pair(labels, changes, change) for change in changes.found.values())
    notes = [f"{TITLES[kind]}: left out, {why}." for kind, why in changes.missing.items()]
    spent = f"{counted(changes.passes, 'pass', 'passes')} through the network altogether"
    copied = "" if changes.scorer == FLOAT32 else (
        f"; regions were searched with its {changes.scorer} copy, and what is shown was confirmed "
        "by the network itself"
    )  # fmt: skip
    plain = int(changes.plain.argmax())
    notes.append(
        f"With everything erased the network answers {_class(labels, plain)} "
        f"({percent(float(changes.plain[plain]))}): plain skin has an answer, too. {spent}{copied}."
    )
    return Part("What would change the answer", _CHANGES, grid(cards) + caption(" ".join(notes)))


def change_lines(labels: LabelSet, changes: Changes) -> list[str]:
    """Return one sentence for each change, as the command line says it."""
    lines = [
        f"{TITLES[kind]}: {_sentence(labels, changes, change)}"
        for kind, change in changes.found.items()
    ]
    return lines + [f"{TITLES[kind]}: left out, {why}." for kind, why in changes.missing.items()]


def _class(labels: LabelSet, position: int) -> str:
    return class_name(labels, labels.codes[position])


def _sentence(labels: LabelSet, changes: Changes, change: Change) -> str:
    if change.probabilities is None:
        return change.note
    before = float(changes.probabilities[changes.answer])
    after = float(change.probabilities[changes.answer])
    now = int(change.probabilities.argmax())
    name = title(_class(labels, changes.answer))
    said = f"{name} {percent(before)} before, {percent(after)} after"
    if change.changed:
        other = float(change.probabilities[now])
        said += f"; the answer is now {_class(labels, now)} ({percent(other)})"
    else:
        said += "; the answer stays"
    said += f". {_size(labels, changes, change)}"
    return f"{said} {change.note}".strip()


def _size(labels: LabelSet, changes: Changes, change: Change) -> str:
    inside = changes.inside(change.kind)
    where = "" if not np.isfinite(inside) else f", {percent(inside)} of it inside the outline"
    passes = counted(change.passes, "pass", "passes")
    if change.kind == SUFFICIENT:
        said = f"Kept: {percent(change.area)} of the picture{where}, {passes}."
    elif change.kind == COLOR:
        goal = _class(labels, changes.runner_up)
        said = f"Colors moved {percent(change.strength)} of the way to {goal}, {passes}."
    else:
        said = f"Changed: {percent(change.area)} of the picture{where}, {passes}."
    searched = change.kind in (NECESSARY, SUFFICIENT) and change.where.any()
    if searched and not change.irreducible:
        said += " Passes did not last to see whether a part of it can be left out."
    return said


def _pair(labels: LabelSet, changes: Changes, change: Change) -> str:
    heading, said = escape(TITLES[change.kind]), escape(_sentence(labels, changes, change))
    if change.image is None:
        return f'<article class="dl-card"><h4>{heading}</h4><p>{said}</p></article>'
    after = np.clip(np.rint(change.image), 0, 255).astype(np.uint8)
    marked = change.where if change.where.any() and not change.where.all() else None
    before = outlined(Canvas(changes.image, lesion=marked))
    pictures = (
        f'<div style="{_SIDE_BY_SIDE}"><div>{before}{caption("Before")}</div>'
        f"<div>{outlined(Canvas(after))}{caption('After')}</div></div>"
    )
    return f'<article class="dl-card"><h4>{heading}</h4>{pictures}<p>{said}</p></article>'


def criteria_part(
    labels: LabelSet,
    measured: Measured,
    rows: Sequence[Mapping[str, Any]],
    *,
    source: str,
    outline: str,
    watched: str = "mel",
) -> Part:
    """Return the criteria of one lesion as a table.

    Args:
        labels: Classes of the network.
        measured: The criteria.
        rows: From ``criteria_rows``.
        source: Where percentiles come from.
        outline: Where the outline comes from, a sentence.
        watched: Class that stands beside the benign ones.
    """
    name = class_name(labels, watched) if watched in labels.codes else watched
    heads = (
        "criterion",
        "value",
        "percentile among benign",
        f"percentile among {name}",
        "the network's answer",
    )
    head = "".join(f'<th scope="col">{escape(title(text))}</th>' for text in heads)
    body = "".join(_row(row, name) for row in rows)
    colors = _colors(measured)
    notes = [outline, f"Colors present: {colors}.", f"Percentiles: {source}."]
    if measured.cut_off > 0:
        notes.append(
            f"The lesion reaches the edge of the picture ({percent(measured.cut_off)} of it): what "
            "lies beyond is not measured."
        )
    if any(row["follows"] for row in rows):
        notes.append(
            "The network's answer: partial rank correlation of the log-odds with the criterion on "
            "test images, given diagnosis and size, with its 95 % interval; it says what goes "
            "along with the answer, not why."
        )
    else:
        notes.append("What this network makes of the criteria was not measured.")
    table = (
        f'<div class="dl-scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
    return Part("Measurable criteria", _CRITERIA, table + caption(" ".join(notes)))


def _row(row: Mapping[str, Any], name: str) -> str:
    told = "<br>".join(
        escape(f"{name if output != 'malignant' else 'malignant'}: {follow_text(one)}")
        for output, one in row["follows"].items()
    )
    cells = (
        f'<th scope="row" title="{escape(row["meaning"], quote=True)}">'
        f"{escape(title(row['name']))}</th><td>{escape(row['text'])}</td>"
        f"<td>{_percentile(row['benign'])}</td><td>{_percentile(row['watched'])}</td>"
        f"<td>{told or '–'}</td>"
    )
    return f"<tr>{cells}</tr>"


def follow_text(one: Mapping[str, Any]) -> str:
    """Return what a network does with a criterion, with its number.

    Example:
        >>> numbers = {"correlation": 0.21, "low": 0.15, "high": 0.27}
        >>> follow_text({**numbers, "sentence": "rises with it"})
        'rises with it (0.21; 0.15 to 0.27)'
    """
    return f"{one['sentence']} ({one['correlation']:.2f}; {one['low']:.2f} to {one['high']:.2f})"


def _colors(measured: Measured) -> str:
    named = [name.replace("blue_gray", "blue-gray").replace("_", " ") for name in measured.colors]
    return ", ".join(named) or "none"


def _percentile(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "–"


def criteria_lines(rows: Sequence[Mapping[str, Any]], measured: Measured, name: str) -> list[str]:
    """Return one line for each criterion, as the command line says it."""
    lines = [f"{'criterion':<22}{'value':>8}{'benign':>8}{name:>11}  the network's answer"]
    for row in rows:
        told = "; ".join(
            f"{'malignant' if output == 'malignant' else name} {follow_text(one)}"
            for output, one in row["follows"].items()
        )
        lines.append(
            f"{row['name']:<22}{row['text']:>8}{_percentile(row['benign']):>8}"
            f"{_percentile(row['watched']):>11}  {told or 'not measured for this model'}"
        )
    colors = _colors(measured)
    return [*lines, f"colors present: {colors}"]

"""What the Batch tab does, free of any web framework: many files, one row each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.label_table import read_labels
from dermlens.errors import DataError, UsageError
from dermlens.files import without_formula
from dermlens.model.bundle import Bundle
from dermlens.model.bundle_description import model_label
from dermlens.report.facts import NOT_CALIBRATED, counted, percent, title, words
from dermlens.report.html import Page
from dermlens.report.layers import Canvas, photograph, smaller
from dermlens.report.verdict import raised
from dermlens.serve.app_actions import Actions, Analysis

MAX_FILES = 100
MAX_BATCH_BYTES = 250 * 2**20
_THUMBNAIL = 96
"""Pixels of its width."""


@dataclass(frozen=True)
class Row:
    """One file of a batch: where it lies, a small picture of it, and what was found."""

    name: str
    path: Path
    analysis: Analysis | None
    error: str = ""
    thumbnail: str = ""
    truth: str = ""


def file_name(name: str | None) -> str:
    """Return the last part of whatever a visitor calls a file, printable.

    Example:
        >>> file_name("../../etc/passwd"), file_name("C:\\\\photos\\\\a.jpg"), file_name("..")
        ('passwd', 'a.jpg', 'file')
    """
    last = PureWindowsPath(name or "").name
    kept = "".join(letter for letter in last if letter.isprintable())[:120]
    return kept if kept.strip(". ") else "file"


def read_truths(bundle: Bundle, table: Path | None) -> dict[str, str]:
    """Return the true class of each image, by its name without ending, from a table of labels."""
    if table is None:
        return {}
    try:
        known = read_labels(table, bundle.labels)
    except DataError as error:
        raise DataError(str(error).replace(str(table), "The table of labels")) from None
    return dict(zip(known.image_id, known.dx, strict=True))


def analyze_many(
    actions: Actions,
    files: Sequence[tuple[str, Path]],
    truths: Mapping[str, str] | None = None,
) -> Iterator[list[Row]]:
    """Analyze files one after the other; what cannot be read gets a row that says why."""
    if not files:
        raise UsageError("There are no files yet. Choose some images.")
    if len(files) > MAX_FILES:
        raise UsageError(
            f"{len(files)} files were given; up to {MAX_FILES} are taken at once. For more, use "
            "'dermlens predict'."
        )
    size = sum(path.stat().st_size for _, path in files if path.is_file())
    if size > MAX_BATCH_BYTES:
        raise UsageError(
            f"The files have {size / 2**20:.0f} MB together; up to {MAX_BATCH_BYTES // 2**20} MB "
            "are taken at once. For more, use 'dermlens predict'."
        )
    rows: list[Row] = []
    for name, path in files:
        shown = file_name(name)
        truth = (truths or {}).get(Path(shown).stem, "")
        rows.append(replace(_row(actions, shown, path), truth=truth))
        yield list(rows)


def _row(actions: Actions, name: str, path: Path) -> Row:
    try:
        found = actions.analyze(path)
    except DataError as error:
        return Row(name, path, None, str(error))
    small = photograph(smaller(Canvas(found.display), _THUMBNAIL).image)
    # A hundred pictures and their maps would be kept for nothing.
    nothing = np.zeros((0, 0), np.float32)
    found = replace(found, image=nothing, display=nothing, maps=nothing, outline=None)
    return Row(name, path, found, thumbnail=small)


def columns(bundle: Bundle) -> dict[str, str]:
    """Return the columns of the table on the page and their types."""
    note = "" if bundle.calibrated else f" ({NOT_CALIBRATED})"
    return {
        "No.": "number",
        "Picture": "html",
        **dict.fromkeys(("File", "Verdict", "Most probable"), "str"),
        f"Probability{note}": "number",
        **dict.fromkeys(("Cannot be excluded", "Alerts"), "str"),
        **{title(name): "number" for name in bundle.calibration.operating_points},
        f"True {words(bundle.labels).one}": "str",
        "Remarks": "str",
    }


def shown_table(actions: Actions, rows: Sequence[Row], *, anyway: bool = False) -> pd.DataFrame:
    """Return the table of the page, with the columns ``columns``.

    No class is named where the model abstains, unless it is to be ``anyway``.
    """
    bundle, shown = actions.bundle, list[tuple[Any, ...]]()
    points = bundle.calibration.operating_points
    for number, row in enumerate(rows, start=1):
        found, truth = row.analysis, bundle.labels.of(row.truth).name if row.truth else ""
        said: tuple[Any, ...] = ("", None, "", "", *[None] * len(points))
        verdict = "not read" if found is None else "abstains" if found.abstains else "answers"
        if found is not None and (anyway or not found.abstains):
            shares, inside = found.probabilities, found.prediction_set or ()
            names = [bundle.labels.labels[k].name for k in inside if k != found.predicted]
            flags = [raised(bundle, found, point) for point in points.values()]
            scores = [one.score(shares[None], bundle.classes)[0] for one in points.values()]
            said = (
                bundle.labels.labels[found.predicted].name,
                round(float(shares[found.predicted]), 3),
                ", ".join(names) or "nothing else",
                ", ".join(filter(None, flags)) or "none",
                *(round(float(score), 3) for score in scores),
            )
        told = row.error if found is None else " ".join(found.reasons or found.remarks)
        picture = f'<img src="{row.thumbnail}" alt="{escape(row.name, quote=True)}">'
        start = (number, picture if row.thumbnail else "", row.name, verdict)
        shown.append((*start, *said, truth, told))
    return pd.DataFrame(shown, columns=list(columns(bundle)))


def measured(actions: Actions, rows: Sequence[Row]) -> list[str]:
    """Return in sentences how right the answers are, where the truth of some is known."""
    bundle, called = actions.bundle, words(actions.bundle.labels)
    known = [
        (bundle.labels.position(row.truth), row.analysis)
        for row in rows
        if row.truth and row.analysis is not None and not row.analysis.abstains
    ]
    if not known:
        return []
    right = np.array([found.predicted == truth for truth, found in known])
    truths = np.array([truth for truth, _ in known])
    recalls = [right[truths == one].mean() for one in np.unique(truths)]
    told = [
        f"The truth of {counted(len(known), 'answered image')} is known: the most probable "
        f"{called.one} is right for {percent(right.mean())}; mean over "
        f"{counted(len(recalls), called.one, called.several)} {percent(float(np.mean(recalls)))}."
    ]
    if bundle.calibration.prediction_sets is not None:
        inside = [truth in (found.prediction_set or ()) for truth, found in known]
        told.append(
            f"What cannot be excluded holds the truth for {percent(float(np.mean(inside)))}."
        )
    for point in bundle.calibration.operating_points.values():
        up = np.array([found.flags[point.name] for _, found in known])
        ill = np.isin(truths, [bundle.labels.position(code) for code in point.codes])
        told.append(
            f"The {point.name} alert is up for {int(up[ill].sum())} of {int(ill.sum())} with it, "
            f"and for {int(up[~ill].sum())} of {int((~ill).sum())} without."
        )
    return told


def as_data(actions: Actions, rows: Sequence[Row], *, anyway: bool = False) -> list[dict[str, Any]]:
    """Return everything known of each file as JSON types."""
    return [
        {
            "file": row.name,
            "error": row.error or None,
            "truth": row.truth or None,
            **({} if row.analysis is None else actions.facts(row.analysis, anyway=anyway)),
        }
        for row in rows
    ]


def as_csv(actions: Actions, rows: Sequence[Row], *, anyway: bool = False) -> str:
    """Return one line per file: verdict, probabilities, logits, flags, reasons, errors."""
    bundle, lines = actions.bundle, []
    for facts in as_data(actions, rows, anyway=anyway):
        line = {**facts, "file": without_formula(facts["file"])}
        line["prediction_set"] = " ".join(facts.get("prediction_set") or ())
        line["reasons"] = " ".join(facts.get("reasons") or ())
        line |= {f"flag_{name}": up for name, up in (facts.get("flags") or {}).items()}
        for kind, name in (("probability", "probabilities"), ("logit", "logits")):
            line |= {f"{kind}_{code}": value for code, value in (facts.get(name) or {}).items()}
        lines.append(line)
    wanted = ["file", "truth", "predicted", "prediction_set", "abstain", "reasons", "ood_score"]
    wanted += ["calibrated", *(f"flag_{name}" for name in bundle.calibration.operating_points)]
    wanted += [f"{kind}_{code}" for kind in ("probability", "logit") for code in bundle.classes]
    table = pd.DataFrame(lines).reindex(columns=[*wanted, "error"])
    return table.to_csv(index=False, float_format="%.6g")


def summary_page(actions: Actions, rows: Sequence[Row], *, anyway: bool = False) -> str:
    """Return a batch as one HTML page that opens anywhere and can be printed."""
    table = shown_table(actions, rows, anyway=anyway)
    table = table.loc[:, [(table[name].astype(str) != "").any() for name in table.columns]]
    page = Page(f"{counted(len(rows), 'image')}", f"Model: {model_label(actions.bundle.identity)}.")
    page.section("In short", told(actions, rows))
    for text in measured(actions, rows):
        page.paragraph(text)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(name, row[name])}</td>" for name in table.columns) + "</tr>"
        for row in table.to_dict("records")
    )
    page.section("Image by image").markup(
        '<div class="scroll" tabindex="0" role="region" aria-label="Images"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    return page.html()


def _cell(name: str, value: Any) -> str:
    if name == "Picture":
        return str(value)
    if isinstance(value, float):
        return "" if np.isnan(value) else percent(value)
    return escape("" if value is None else str(value))


def told(actions: Actions, rows: Sequence[Row]) -> str:
    """Return in a sentence what was found in a batch."""
    read = [row.analysis for row in rows if row.analysis is not None]
    answered = [found for found in read if not found.abstains]
    parts = [f"the model abstains on {len(read) - len(answered)}"]
    for name in actions.bundle.calibration.operating_points:
        parts.append(f"the {name} alert is up on {sum(found.flags[name] for found in answered)}")
    parts.append(f"{len(rows) - len(read)} could not be read")
    return f"{counted(len(rows), 'file')}: {', '.join(parts)}."

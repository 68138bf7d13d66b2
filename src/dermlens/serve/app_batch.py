"""What the Batch tab does, free of any web framework: many files, one row each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd

from dermlens.errors import DataError, UsageError
from dermlens.labels import MALIGNANT
from dermlens.model.bundle import Bundle
from dermlens.model.calibration import OperatingPoint
from dermlens.report.facts import NOT_CALIBRATED, title
from dermlens.serve.app_actions import Actions, Analysis
from dermlens.serve.app_page import raised

MAX_FILES = 100
MAX_BATCH_BYTES = 250 * 2**20
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Row:
    """One file of a batch."""

    name: str
    analysis: Analysis | None
    error: str = ""


def file_name(name: str | None) -> str:
    """Return the last part of whatever a visitor calls a file, printable.

    Example:
        >>> file_name("../../etc/passwd"), file_name("C:\\\\photos\\\\a.jpg"), file_name("..")
        ('passwd', 'a.jpg', 'file')
    """
    last = PureWindowsPath(name or "").name
    kept = "".join(letter for letter in last if letter.isprintable())[:120]
    return kept if kept.strip(". ") else "file"


def analyze_many(actions: Actions, files: Sequence[tuple[str, Path]]) -> Iterator[list[Row]]:
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
        rows.append(_row(actions, file_name(name), path))
        yield list(rows)


def _row(actions: Actions, name: str, path: Path) -> Row:
    try:
        found = actions.analyze(path)
    except DataError as error:
        return Row(name, None, str(error))
    # A hundred pictures and their maps would be kept for nothing.
    nothing = np.zeros((0, 0), np.float32)
    return Row(name, replace(found, image=nothing, display=nothing, maps=nothing))


def alerts(bundle: Bundle) -> list[OperatingPoint]:
    """Return the operating points of single concerns, such as melanoma."""
    points = bundle.calibration.operating_points
    return [point for name, point in points.items() if name != MALIGNANT]


def columns(bundle: Bundle) -> dict[str, str]:
    """Return the columns of the table on the page and their types."""
    note = "" if bundle.calibrated else f" ({NOT_CALIBRATED})"
    return {
        **dict.fromkeys(("File", "Verdict", "Most probable", "Code"), "str"),
        f"Probability{note}": "number",
        **{title(point.name): "number" for point in alerts(bundle)},
        **dict.fromkeys(("Cannot be excluded", "Flags", "Reason"), "str"),
    }


def shown_table(actions: Actions, rows: Sequence[Row]) -> pd.DataFrame:
    """Return the table of the page, with the columns ``columns``."""
    bundle, shown = actions.bundle, list[tuple[Any, ...]]()
    points = bundle.calibration.operating_points
    for row in rows:
        found = row.analysis
        if found is None:
            unknown = [None] * (1 + len(alerts(bundle)))
            shown.append((row.name, "not read", "", "", *unknown, "", "", row.error))
            continue
        best, shares = found.predicted, found.probabilities
        label = bundle.labels.labels[best]
        scores = [point.score(shares[None], bundle.classes)[0] for point in alerts(bundle)]
        flags = [raised(bundle, found, point) for point in points.values()]
        shown.append(
            (
                row.name,
                "abstains" if found.abstains else "answers",
                label.name,
                label.code,
                *(round(float(score), 3) for score in (shares[best], *scores)),
                ", ".join(bundle.classes[k] for k in found.prediction_set or () if k != best),
                ", ".join(flag.lower() for flag in flags if flag),
                " ".join(found.reasons or found.remarks),
            )
        )
    return pd.DataFrame(shown, columns=list(columns(bundle)))


def as_data(actions: Actions, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return everything known of each file as JSON types."""
    return [
        {
            "file": row.name,
            "error": row.error or None,
            **({} if row.analysis is None else actions.facts(row.analysis)),
        }
        for row in rows
    ]


def as_csv(actions: Actions, rows: Sequence[Row]) -> str:
    """Return one line per file: verdict, probabilities, logits, flags, reasons, errors."""
    bundle, lines = actions.bundle, []
    for row in rows:
        found = row.analysis
        line: dict[str, Any] = {"file": _harmless(row.name), "error": row.error}
        if found is not None:
            facts = actions.facts(found)
            line |= {
                **facts,
                "prediction_set": " ".join(facts["prediction_set"] or ()),
                "reasons": " ".join(found.reasons),
                **{f"flag_{name}": value for name, value in found.flags.items()},
                **{f"probability_{code}": v for code, v in facts["probabilities"].items()},
                **{f"logit_{code}": v for code, v in facts["logits"].items()},
            }
        lines.append(line)
    wanted = ["file", "predicted", "prediction_set", "abstain", "reasons", "ood_score"]
    wanted += ["calibrated", *(f"flag_{name}" for name in bundle.calibration.operating_points)]
    wanted += [f"{kind}_{code}" for kind in ("probability", "logit") for code in bundle.classes]
    table = pd.DataFrame(lines).reindex(columns=[*wanted, "error"])
    return table.to_csv(index=False, float_format="%.6g")


def _harmless(name: str) -> str:
    """Keep a spreadsheet from taking a file's name for a formula."""
    return f"'{name}" if name.startswith(_FORMULA_STARTS) else name

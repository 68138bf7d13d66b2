"""What the Batch tab does, free of any web framework: many files, one row each."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd

from dermlens.diagnoses import by_code
from dermlens.errors import DataError, UsageError
from dermlens.serve.app_actions import Actions, Analysis, set_codes

MAX_FILES = 100
MAX_BATCH_BYTES = 250 * 2**20
COLUMNS = (
    "File",
    "Verdict",
    "Most probable",
    "Code",
    "Probability",
    "Melanoma",
    "Cannot be excluded",
    "Flags",
    "Reason",
)
"""Of the table on the page."""
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Row:
    """One file of a batch.

    Attributes:
        name: Of the file, without folders.
        analysis: None if it could not be read.
        error: The sentence if it could not be read, else empty.
    """

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
    """Analyze files one after the other; what cannot be read gets a row that says why.

    Args:
        actions: Of the model.
        files: Name and place of each.

    Yields:
        The rows so far, after each file.

    Raises:
        UsageError: If there is no file, or more than ``MAX_FILES`` or ``MAX_BATCH_BYTES``.
    """
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


def shown_table(actions: Actions, rows: Sequence[Row]) -> pd.DataFrame:
    """Return the table of the page, with the columns ``COLUMNS``."""
    shown: list[tuple[Any, ...]] = []
    for row in rows:
        found = row.analysis
        if found is None:
            shown.append((row.name, "not read", "", "", None, None, "", "", row.error))
            continue
        code = actions.bundle.classes[found.predicted]
        melanoma = found.probabilities[actions.bundle.classes.index("mel")]
        shown.append(
            (
                row.name,
                "abstains" if found.abstains else "answers",
                by_code(code).name,
                code,
                round(float(found.probabilities[found.predicted]), 3),
                round(float(melanoma), 3),
                ", ".join(c for c in set_codes(actions.bundle, found) or () if c != code),
                _flag(found, code),
                " ".join(found.reasons or found.remarks),
            )
        )
    return pd.DataFrame(shown, columns=list(COLUMNS))


def _flag(found: Analysis, code: str) -> str:
    raised = ["possibly malignant"] if found.flags.get("malignant") else []
    if found.flags.get("melanoma"):
        raised.append("melanoma suspected" if code == "mel" else "melanoma not excluded")
    return ", ".join(raised)


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
    codes, lines = actions.bundle.classes, []
    points = actions.bundle.calibration.operating_points
    for row in rows:
        found = row.analysis
        line: dict[str, Any] = {"file": _harmless(row.name), "error": row.error}
        if found is not None:
            line |= {
                "predicted": codes[found.predicted],
                "prediction_set": " ".join(set_codes(actions.bundle, found) or ()),
                "abstain": found.abstains,
                "reasons": " ".join(found.reasons),
                "outlier_score": found.outlier_score,
                **{f"flag_{name}": value for name, value in found.flags.items()},
                **dict(zip([f"probability_{c}" for c in codes], found.probabilities, strict=True)),
                **dict(zip([f"logit_{c}" for c in codes], found.logits, strict=True)),
            }
        lines.append(line)
    columns = ["file", "predicted", "prediction_set", "abstain", "reasons", "outlier_score"]
    columns += [f"flag_{name}" for name in points]
    columns += [f"probability_{c}" for c in codes] + [f"logit_{c}" for c in codes] + ["error"]
    stream = io.StringIO()
    pd.DataFrame(lines).reindex(columns=columns).to_csv(stream, index=False, float_format="%.6g")
    return stream.getvalue()


def _harmless(name: str) -> str:
    """Keep a spreadsheet from taking a file's name for a formula."""
    return f"'{name}" if name.startswith(_FORMULA_STARTS) else name

"""Auditing published predictions: do they hold what they claim?

Three ways in which a figure on HAM10000 or ISIC 2018 can be too good or mean something else: the
test images show lesions that the model was trained on; the probabilities already hold a correction
of the class frequencies, made on the very images that are scored; or they are not probabilities.
All that is needed are the predictions and the table of the data set. Neither images nor the model.

On the leak by lesions in HAM10000: Cassidy et al., "Analysis of the ISIC image datasets", Medical
Image Analysis 2022. On prior corrections: Saerens, Latinne & Decaestecker, Neural Computation 2002.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.annotation_rows import image_name
from dermlens.data.formats import COMPANION_IMAGES
from dermlens.data.label_table import read_labels
from dermlens.data.manifest import SPLITS, read_manifest
from dermlens.data.tables import TextTable, number, read_table
from dermlens.errors import DataError
from dermlens.labels import LabelSet
from dermlens.model.balanced_rule import BalancedRule
from dermlens.model.calibration import Calibration, fit_temperature
from dermlens.model.evaluation import RESAMPLES, SMALL_GROUP, metrics_from_predictions
from dermlens.model.metrics import divide, interval, lesion_resamples
from dermlens.model.prediction_table import predictions_table

LARGEST_ECE = 0.05
"""Expected calibration error from which on probabilities are not to be read as such."""
LARGEST_SHIFT = 0.25
"""Exponent of the class frequencies, 0 where the probabilities hold no correction, 1 for all."""
_SUM_GAP = 0.01
_SHIFTS = (-2.0, 3.0)
_SHIFT_RESAMPLES = 200


@dataclass(frozen=True)
class Finding:
    """One question to a claim, and the answer with the number it rests on.

    Attributes:
        check: ``lesions``, ``prior``, ``calibration``, ``support`` or ``coverage``.
        passed: False where the claim needs an explanation.
        text: One or two sentences.
    """

    check: str
    passed: bool
    text: str


def read_register(path: Path, labels: LabelSet) -> pd.DataFrame:
    """Return what is known of every image of a data set: image_id, lesion_id, dx and more.

    Args:
        path: A prepared data set, or its table, such as ``HAM10000_metadata``.
        labels: Its classes.

    Raises:
        DataError: If it cannot be read, or names no lesions.
    """
    table = read_manifest(path) if Path(path).is_dir() else read_labels(path, labels)
    if "lesion_id" not in table or table.lesion_id.isna().all():
        raise DataError(
            f"{path} names no lesions, so no leak can be found. Give the table of the data set "
            "with its column lesion_id, such as HAM10000_metadata."
        )
    table["lesion_id"] = table.lesion_id.where(table.lesion_id.notna(), table.image_id)
    return table


def read_claim(path: Path, labels: LabelSet) -> pd.DataFrame:
    """Read probabilities: a column of image names, and one per class in any order and case.

    Classes may be called as in the official submission (``MEL``), or ``probability_mel``.

    Returns:
        image_id (without file ending) and ``probability_<code>`` per class, float64.

    Raises:
        DataError: If a column is missing, a row is no probabilities, or an image stands twice.
    """
    text = _text_table(path)
    codes = {
        code: _column(text, (code.lower(), f"probability_{code.lower()}")) for code in labels.codes
    }
    lacking = [code for code, column in codes.items() if column is None]
    if lacking:
        raise DataError(
            f"{path} has no column for {', '.join(lacking)}. Give one column of probabilities per "
            f"class: {', '.join(labels.codes)}."
        )
    table = pd.DataFrame({"image_id": _images(text)})
    for code, column in codes.items():
        table[f"probability_{code}"] = [_number(cell) for cell in text.cells[column]]
    values = table.iloc[:, 1:].to_numpy(np.float64)
    wrong = ~np.isfinite(values).all(axis=1) | (values < 0).any(axis=1)
    wrong |= np.abs(values.sum(axis=1) - 1) > _SUM_GAP
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{path}, line {text.lines[row]}: the values of {table.image_id[row]} are no "
            f"probabilities (their sum is {values[row].sum():.3g}). Give softmax outputs."
        )
    return table


def read_split(path: Path) -> pd.DataFrame:
    """Read a split: a column of image names and a column ``split`` (or ``set``, ``fold``).

    Raises:
        DataError: If a column is missing, a row is empty, or an image stands twice.
    """
    text = _text_table(path)
    column = _column(text, ("split", "set", "fold", "subset", "partition"))
    if column is None:
        raise DataError(f"{path} has no column 'split'. Give image names and their splits.")
    table = pd.DataFrame({"image_id": _images(text), "split": text.cells[column]})
    if table.split.isna().any():
        line = text.lines[int(np.flatnonzero(table.split.isna())[0])]
        raise DataError(f"{path}, line {line}: the image has no split. Fill it in.")
    return table


def read_images(path: Path) -> list[str]:
    """Read the image names of a table, without file endings; DataError if there are none."""
    return _images(_text_table(path))


def _number(cell: object) -> float:
    """Return the number of a cell, NaN where it holds none."""
    try:
        return number(str(cell))
    except ValueError:
        return float("nan")


def _text_table(path: Path) -> TextTable:
    try:
        return read_table(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Check the path.") from error


def _column(text: TextTable, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in text.cells.columns), None)


def _images(text: TextTable) -> list[str]:
    column = _column(text, COMPANION_IMAGES)
    if column is None:
        raise DataError(
            f"{text.name} has no column of image names. Call it one of "
            f"{', '.join(COMPANION_IMAGES)}."
        )
    places = [f"{text.name}, line {line}" for line in text.lines]
    cells = zip(text.cells[column], places, strict=True)
    names = [image_name(str(cell), place) for cell, place in cells]
    if not names:
        raise DataError(f"{text.name} lists no image. Give one row per image.")
    twice = pd.Series(names)[pd.Series(names).duplicated()]
    if len(twice):
        raise DataError(f"{text.name} lists image {twice.iloc[0]} twice. Keep one of its rows.")
    return names


def audit_claim(
    claim: pd.DataFrame,
    register: pd.DataFrame,
    labels: LabelSet,
    *,
    training: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Audit predictions against the table of their data set.

    Args:
        claim: As ``read_claim`` returns it.
        register: As ``read_register`` returns it.
        labels: Classes of both.
        training: Images the model was trained on; default all of the data set that are not in the
            claim.
        resamples: Of the bootstrap over lesions.
        seed: Of the bootstrap.

    Returns:
        ``findings`` (``Finding`` as dictionaries), ``lesions``, ``prior``, ``temperature``,
        ``metrics`` (as in ``metrics.json``) and ``unknown_images``, JSON types; and the table of
        predictions (``prediction_table``) that they are of.

    Raises:
        DataError: If no image of the claim is in the data set.
    """
    rows = claim.merge(register, on="image_id", how="inner")
    unknown = sorted(set(claim.image_id) - set(register.image_id))
    if rows.empty:
        raise DataError("No image of the predictions is in the table of the data set.")
    rest = register[~register.image_id.isin(claim.image_id)]
    if training is not None:
        rest = register[register.image_id.isin(training)]
    source = rest if len(rest) else rows
    prior = np.array([(source.dx == code).sum() for code in labels.codes], np.float64) + 0.5
    log_prior = np.log(prior / prior.sum())
    shares = rows[[f"probability_{code}" for code in labels.codes]].to_numpy(np.float64)
    logits = np.log(np.maximum(shares, 1e-12))
    rule = BalancedRule(0.0, tuple(log_prior.tolist()))
    calibration = Calibration(classes=labels.codes, balanced_rule=rule, fitted=False)
    table = predictions_table(rows, logits, calibration, malignant=labels.malignant)
    found = metrics_from_predictions(table, calibration, resamples=resamples, seed=seed)
    lesions = _lesions(
        rows, rest, table.predicted.to_numpy() == rows.dx.to_numpy(), resamples, seed
    )
    truth = np.array([labels.codes.index(code) for code in rows.dx])
    shift = _shift(logits, log_prior, truth, rows.lesion_id.to_numpy(), seed)
    temperature = fit_temperature(logits, truth)
    findings = [
        _coverage(unknown, len(claim)),
        _lesion_finding(lesions, training is not None),
        _prior_finding(shift),
        _calibration_finding(found, temperature),
        _support_finding(found),
    ]
    result = {
        "findings": [vars(one) for one in findings],
        "lesions": lesions,
        "prior": shift,
        "temperature": temperature,
        "metrics": found,
        "unknown_images": unknown,
    }
    return result, table


def audit_split(split: pd.DataFrame, register: pd.DataFrame) -> dict[str, Any]:
    """Audit a split: lesions and patients in several parts, and what each part holds.

    Args:
        split: As ``read_split`` returns it.
        register: As ``read_register`` returns it.

    Returns:
        ``findings``, ``parts`` (images, lesions and share of each class by part) and
        ``shared`` (images of a part whose lesion is in another one too, by part); JSON types.

    Raises:
        DataError: If no image of the split is in the data set.
    """
    rows = split.merge(register.drop(columns="split", errors="ignore"), on="image_id")
    if rows.empty:
        raise DataError("No image of the split is in the table of the data set.")
    unknown = sorted(set(split.image_id) - set(register.image_id))
    findings, shared = [_coverage(unknown, len(split))], {}
    for column, word in (("lesion_id", "lesion"), ("patient_id", "patient")):
        if column not in rows or rows[column].isna().all():
            continue
        spread = rows.groupby(column).split.nunique()
        apart = rows[rows[column].isin(spread.index[spread > 1])]
        shared[word] = apart.split.value_counts().sort_index().to_dict()
        count, images = int((spread > 1).sum()), len(apart)
        text = (
            f"No {word} is in two parts."
            if count == 0
            else f"{count:,} {word}s are in two parts or more, with {images:,} of {len(rows):,} "
            f"images ({images / len(rows):.1%}). Group the split by {word}."
        )
        findings.append(Finding(f"{word}s", count == 0, text))
    order = [*SPLITS, *sorted(set(rows.split) - set(SPLITS))]
    parts = {
        part: {
            "images": len(of),
            "lesions": int(of.lesion_id.nunique()),
            "classes": of.dx.value_counts(normalize=True).round(4).sort_index().to_dict(),
        }
        for part in order
        if len(of := rows[rows.split == part])
    }
    return {"findings": [vars(one) for one in findings], "parts": parts, "shared": shared}


def _lesions(
    rows: pd.DataFrame, rest: pd.DataFrame, right: np.ndarray, resamples: int, seed: int
) -> dict[str, Any]:
    """How many images show a lesion of the rest, and how much better they are answered.

    The gap is the mean over diagnoses of the difference in accuracy: lesions photographed more
    than once are not of the same diagnoses as others.
    """
    eligible = rows.lesion_id.isin(rest.lesion_id).to_numpy()
    codes = [
        code
        for code in sorted(set(rows.dx))
        if min((eligible & (rows.dx == code)).sum(), (~eligible & (rows.dx == code)).sum()) > 0
    ]
    groups = rows.lesion_id.to_numpy()
    weights = np.vstack([np.ones(len(rows)), lesion_resamples(groups, resamples, seed)])

    def accuracy(part: np.ndarray) -> np.ndarray:
        return divide(weights @ (part * right), weights @ part.astype(np.float64))

    gaps = [
        accuracy(eligible & (rows.dx == code).to_numpy())
        - accuracy(~eligible & (rows.dx == code).to_numpy())
        for code in codes
    ]
    gap = np.nanmean(gaps, axis=0) if gaps else np.full(len(weights), np.nan)
    return {
        "images": int(eligible.sum()),
        "share": float(eligible.mean()),
        "per_class": rows.dx[eligible].value_counts().sort_index().to_dict(),
        "gap": float(gap[0]),
        "gap_interval": interval(gap[1:]) if gaps else [float("nan")] * 2,
    }


def _shift(
    logits: np.ndarray, log_prior: np.ndarray, truth: np.ndarray, groups: np.ndarray, seed: int
) -> dict[str, Any]:
    """The exponent of the class frequencies that fits best, and its interval over lesions."""
    from scipy.optimize import minimize_scalar

    def fitted(weights: np.ndarray) -> float:
        def loss(exponent: float) -> float:
            moved = logits + exponent * log_prior
            top = moved.max(axis=1, keepdims=True)
            total = np.log(np.exp(moved - top).sum(axis=1)) + top[:, 0]
            return float(weights @ (total - moved[np.arange(len(truth)), truth]))

        return float(minimize_scalar(loss, bounds=_SHIFTS, method="bounded").x)

    drawn = lesion_resamples(groups, _SHIFT_RESAMPLES, seed)
    spread = np.array([fitted(weights) for weights in drawn])
    return {"exponent": fitted(np.ones(len(truth))), "interval": interval(spread)}


def _coverage(unknown: Sequence[str], count: int) -> Finding:
    text = (
        f"All {count:,} images are in the table of the data set."
        if not unknown
        else f"{len(unknown):,} of {count:,} images are not in the table of the data set, such as "
        f"{unknown[0]}; nothing is known of them, and they are left out."
    )
    return Finding("coverage", not unknown, text)


def _lesion_finding(lesions: dict[str, Any], known: bool) -> Finding:
    if lesions["images"] == 0:
        return Finding("lesions", True, "No image shows a lesion that training images show too.")
    rest = "training images" if known else "images outside of the test set, to train on,"
    low, high = lesions["gap_interval"]
    gain = f"{lesions['gap']:+.3f} ({low:+.3f} to {high:+.3f})"
    better = "which is what a leak does" if low > 0 else "which does not show that it helped"
    return Finding(
        "lesions",
        False,
        f"{lesions['images']:,} images ({lesions['share']:.1%}) show a lesion that {rest} show "
        f"too. Within a diagnosis their accuracy differs from that of the others by {gain}, "
        f"{better}.",
    )


def _prior_finding(shift: dict[str, Any]) -> Finding:
    low, high = shift["interval"]
    inside = low <= LARGEST_SHIFT and high >= -LARGEST_SHIFT
    fits = (
        f"The class frequencies to the power of {shift['exponent']:.2f} ({low:.2f} to {high:.2f})"
    )
    text = (
        f"{fits} fit best: the probabilities hold little or no correction of the class frequencies."
        if inside
        else f"{fits} would have to be put back: the probabilities are corrected for them. "
        "Balanced accuracy at the most probable class is then that of a decision rule, and says "
        "so only if the rule was chosen on other images."
    )
    return Finding("prior", inside, text)


def _calibration_finding(found: dict[str, Any], temperature: float) -> Finding:
    low, high = found["confidence_intervals"]["ece"]
    bad = low > LARGEST_ECE
    kind = "too sure" if temperature > 1 else "not sure enough"
    text = f"The expected calibration error is {found['ece']:.3f} ({low:.3f} to {high:.3f})"
    more = f": the probabilities are {kind} (temperature {temperature:.2f})." if bad else "."
    return Finding("calibration", not bad, text + more)


def _support_finding(found: dict[str, Any]) -> Finding:
    counts = {code: one["support"] for code, one in found["per_class"].items()}
    few = [f"{code} ({count})" for code, count in counts.items() if count < SMALL_GROUP]
    low, high = found["most_probable"]["confidence_intervals"]["balanced_accuracy"]
    value = found["most_probable"]["balanced_accuracy"]
    text = f"Balanced accuracy at the most probable class is {value:.3f} ({low:.3f} to {high:.3f})."
    if few:
        text += f" Fewer than {SMALL_GROUP} images: {', '.join(few)}; one image moves it by much."
    return Finding("support", not few, text)

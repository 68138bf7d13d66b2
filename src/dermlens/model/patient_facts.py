"""What age, sex and place on the body add to an answer, where it is asked for.

The network sees the photograph alone. What is known of the patient is added afterwards, after
Bayes' rule with a strength::

    log p(class | photograph) + strength * sum of log p(fact | class) over the facts that are known

p(fact | class) are frequencies among training lesions. The strength would be 1 if facts said
nothing that the photograph or other facts say already; it is fitted on validation images, as the
temperature is (naive Bayes: Hastie, Tibshirani & Friedman, "The elements of statistical learning",
2009, 6.6.3). What is not known adds nothing. Flags, prediction sets and the balanced rule are
fitted again. No pixel takes part in the sum, so maps of a class stay what they are.

These are the frequencies of the clinics that the images come from: a clinic with other patients
has others.

``BUNDLE/patient_facts.json`` holds it. It names the file of weights that it was fitted with.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from dermlens.errors import DataError, ModelError, UsageError
from dermlens.files import read_json, read_table, write_json
from dermlens.model.calibration import (
    Calibration,
    StoredCalibration,
    fit_calibration,
    negative_log_likelihood,
)
from dermlens.model.evaluation import age_band, compare_predictions
from dermlens.model.prediction_table import predictions_table
from dermlens.model.training_data import TrainingData, load_training_data, require_same_data
from dermlens.schema import Section, checked

if TYPE_CHECKING:
    from dermlens.model.bundle import Bundle

FILE = "patient_facts.json"
FACTS = ("age", "sex", "localization")
"""Columns of a manifest: years, and words."""
Likelihood = dict[str, dict[str, tuple[float, ...]]]
"""log p(value | class) in class order, by fact and value."""
_NOTHING = ("", "unknown", "missing", "nan", "none", "n/a")
_PSEUDO_LESIONS = 5.0
"""So many lesions of no class in particular are added to each class: rare ones have few."""


@dataclass(frozen=True)
class PatientFacts:
    """Frequencies of facts in each class, how much they count, and what is fitted to the sum.

    Attributes:
        strength: Of the facts, 0 or more.
        likelihood: log p(value | class) by fact and value; an age is its band.
        calibration: Of the sum: the temperature of the model, its own flags, sets and rule.
        weights: SHA-256 of the bundle's file of weights.
    """

    strength: float
    likelihood: Likelihood = field(repr=False)
    calibration: Calibration = field(repr=False)
    weights: str = ""

    def evidence(self, rows: pd.DataFrame) -> np.ndarray:
        """Return what facts add to calibrated logits, float64 (N, C); 0 where none is known.

        ``rows`` may lack columns of ``FACTS``. A value that no training lesion has adds nothing.
        """
        total = np.zeros((len(rows), len(self.calibration.classes)))
        for name, values in known_facts(rows).items():
            for value, logs in self.likelihood[str(name)].items():
                total[(values == value).to_numpy(bool)] += np.asarray(logs)
        return self.strength * total

    def fused(self, logits: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
        """Return logits (N, C) with what the facts of ``rows`` add, float64 (N, C)."""
        added = self.evidence(rows) * self.calibration.temperature
        return np.asarray(logits, np.float64) + added

    def summary(self, table: pd.DataFrame, calibration: Calibration) -> dict[str, Any]:
        """Return what an evaluation tells of them, JSON types.

        Args:
            table: Predictions with facts, as ``predictions_table`` makes them.
            calibration: Of the photograph alone.
        """
        columns = [f"logit_{code}" for code in calibration.classes]
        both = table[columns].to_numpy(np.float64)
        alone = both - self.fused(np.zeros_like(both), table)
        change = what_facts_change(self, calibration, table, alone)
        differs = change[change.name != "photograph"]
        return {"strength": self.strength, "change": differs.to_dict("records")}

    def strange(self, rows: pd.DataFrame) -> list[str]:
        """Return the values among the facts of ``rows`` that no training lesion has."""
        found = known_facts(rows)
        return sorted(
            f"{name} {value}"
            for name in found
            for value in set(found[name].dropna()) - set(self.likelihood[str(name)])
        )


def known_facts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the facts of each row as text, ages as bands; None where one is not known.

    Raises:
        DataError: If an age is no number of years.
    """
    found = {}
    for name in FACTS:
        given = rows.get(name, pd.Series([None] * len(rows), index=rows.index))
        text = given.astype(object).where(given.notna(), "").astype(str).str.strip().str.lower()
        known = ~text.isin(_NOTHING)
        if name == "age":
            years = pd.to_numeric(text.where(known), errors="coerce")
            wrong = known & ~years.between(0, 130)
            if wrong.any():
                raise DataError(f"{text[wrong].iloc[0]!r} is no age in years. Write it as 55.")
            text = years.map(age_band)
        found[name] = text.where(known, None)
    return pd.DataFrame(found, index=rows.index)


def facts_of(classifier: Any) -> PatientFacts:
    """Return what facts about patients add to a classifier's answers.

    Raises:
        UsageError: If it does not know.
        ModelError: If what it knows cannot be used.
    """
    found: PatientFacts | None = getattr(classifier, "patient_facts", None)
    if found is None:
        path = getattr(classifier, "path", "BUNDLE")
        raise UsageError(
            "This model does not know what facts about patients add. Fit it on the data set of its "
            f"training: 'dermlens patient-facts {path} DATA'."
        )
    return found


def fit_likelihood(rows: pd.DataFrame, labels: np.ndarray, classes: int) -> Likelihood:
    """Return log p(value | class) of each fact, of one row per lesion.

    Args:
        rows: Facts of training lesions, (N).
        labels: Class positions, int (N,).
        classes: How many there are.
    """
    found: Likelihood = {}
    for name, values in known_facts(rows).items():
        known = values.notna().to_numpy()
        positions, names = pd.factorize(values[known], sort=True)
        counts = np.zeros((len(names), classes))
        np.add.at(counts, (positions, labels[known]), 1)
        shares = counts.sum(axis=1, keepdims=True) / max(counts.sum(), 1)
        smooth = counts + _PSEUDO_LESIONS * shares
        logs = np.log(smooth / smooth.sum(axis=0)) if len(names) else smooth
        found[str(name)] = {
            str(value): tuple(map(float, row)) for value, row in zip(names, logs, strict=True)
        }
    return found


def fit_strength(scaled: np.ndarray, evidence: np.ndarray, labels: np.ndarray) -> float:
    """Return the strength, 0 to 1, that makes the sum most likely on validation images.

    Args:
        scaled: Calibrated logits (N, C).
        evidence: Sum of log p(fact | class), (N, C).
        labels: Class positions, int (N,).
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda strength: negative_log_likelihood(scaled + strength * evidence, labels),
        bounds=(0.0, 1.0),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(found.x)


def fit_patient_facts(
    bundle: "Bundle", data: Path, *, batch_size: int = 32
) -> tuple[PatientFacts, pd.DataFrame]:
    """Fit what facts add to a bundle's answers, on the data set that it was trained on.

    Args:
        bundle: The model.
        data: Its data set, split as it was then, with facts of its patients.
        batch_size: Images per pass.

    Returns:
        The facts, and what they change on validation images, as ``compare_predictions`` tells
        (``"photograph"`` and ``"with facts"``); they were fitted on the same images.

    Raises:
        DataError: If the data set is another one, or tells nothing about its patients.
        UsageError: If the model's classes do not exclude each other.
    """
    if bundle.link != "softmax":
        raise UsageError(
            "Facts about patients need classes that exclude each other; those of this model do not."
        )
    known = load_training_data(data)
    require_same_data(bundle.path, bundle.facts["data"].get("fingerprint"), known)
    train, rows = known.rows["train"], known.rows["validation"]
    if not known_facts(known.table.iloc[train]).notna().any(axis=None):
        raise DataError(
            f"{data} tells no age, sex or place on the body of any training image. Prepare it with "
            "a table that has the columns age, sex and localization."
        )
    logits, _ = bundle.logits_and_ood_scores(
        known.images(bundle.input_size), rows, batch_size=batch_size
    )
    facts = _fitted(bundle, known, logits)
    change = what_facts_change(facts, bundle.calibration, known.table.iloc[rows], logits)
    return facts, change


def what_facts_change(
    facts: PatientFacts, calibration: Calibration, rows: pd.DataFrame, logits: np.ndarray
) -> pd.DataFrame:
    """Return figures of answers by the photograph alone and with facts, and what they differ.

    Args:
        facts: What they add.
        calibration: Of the photograph alone.
        rows: What is known of the images, ``dx`` for every one, (N).
        logits: Of the photographs, (N, C).

    Returns:
        As ``compare_predictions``; the names are ``"photograph"`` and ``"with facts"``.
    """
    calibrations = {"photograph": calibration, "with facts": facts.calibration}
    answers = {"photograph": logits, "with facts": facts.fused(logits, rows)}
    tables = {n: predictions_table(rows, answers[n], calibrations[n]) for n in answers}
    return compare_predictions(tables, calibrations, reference="photograph")


def _fitted(bundle: "Bundle", known: TrainingData, logits: np.ndarray) -> PatientFacts:
    from dermlens.model.case_index import weights_of

    train, rows, classes = known.rows["train"], known.rows["validation"], known.classes
    lesions = known.table.lesion_id.fillna(known.table.image_id)
    first = train[~lesions.iloc[train].duplicated().to_numpy()]
    likelihood = fit_likelihood(known.table.iloc[first], known.labels[first], len(classes))
    table, labels, calibration = known.table.iloc[rows], known.labels[rows], bundle.calibration
    whole = PatientFacts(1.0, likelihood, calibration, weights_of(bundle.facts))
    scaled, evidence = calibration.scaled(logits), whole.evidence(table)
    strength = fit_strength(scaled, evidence, labels)
    fitted = fit_calibration(
        (scaled + strength * evidence) * calibration.temperature,
        labels,
        np.bincount(known.labels[train], minlength=len(classes)),
        lesions.to_numpy()[rows],
        seed=int(bundle.facts["training"].get("seed", 0)),
        sensitivity={n: p.target_sensitivity for n, p in calibration.operating_points.items()},
        classes=classes,
        temperature=calibration.temperature,
    )
    return PatientFacts(strength, likelihood, fitted, whole.weights)


class _Stored(Section):
    """The content of ``patient_facts.json``."""

    format: Literal[1]
    weights: str
    strength: Annotated[float, Field(ge=0)]
    likelihood: Likelihood
    calibration: StoredCalibration
    checksum: str

    @model_validator(mode="after")
    def _of_these_classes(self) -> "_Stored":
        count = len(self.calibration.classes)
        if set(self.likelihood) != set(FACTS):
            raise ValueError(f"likelihood must be of {', '.join(FACTS)}")
        for name, values in self.likelihood.items():
            if any(len(logs) != count for logs in values.values()):
                raise ValueError(
                    f"likelihood.{name} must have a number for each of {count} classes"
                )
        return self


def write_patient_facts(folder: Path, facts: PatientFacts) -> Path:
    """Write what facts add into a bundle's folder."""
    content = {
        "format": 1,
        "weights": facts.weights,
        "strength": facts.strength,
        "likelihood": facts.likelihood,
        "calibration": facts.calibration.to_json(),
    }
    path = Path(folder) / FILE
    return write_json(path, {**content, "checksum": _checksum(content)})


def read_patient_facts(
    folder: Path, weights: str, classes: Sequence[str], temperature: float
) -> PatientFacts | None:
    """Read what facts add to a bundle's answers; None where it does not know.

    Args:
        folder: The bundle.
        weights: SHA-256 of its file of weights.
        classes: Its class codes.
        temperature: Of its calibration.

    Raises:
        ModelError: If the file is damaged, cannot be true, or belongs to another model.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    again = f"Remove it, or make it again: 'dermlens patient-facts {folder} DATA'."
    try:
        content = read_json(path)
    except DataError as error:
        raise ModelError(f"{error} {again}") from None
    told = checked(_Stored, content, lambda wrong: ModelError(f"{path}: {wrong}. {again}"))
    covered = {name: value for name, value in content.items() if name != "checksum"}
    if told.checksum != _checksum(covered):
        raise ModelError(f"{path} has changed since it was made. {again}")
    calibration = told.calibration.calibration()
    mine = (weights, tuple(classes), temperature)
    if (told.weights, calibration.classes, calibration.temperature) != mine:
        raise ModelError(f"{path} was made with another model than this bundle's. {again}")
    return PatientFacts(told.strength, told.likelihood, calibration, told.weights)


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parse_patient(text: str) -> dict[str, str]:
    """Turn ``"age=55,sex=female,localization=back"`` into facts by name.

    Raises:
        UsageError: If it is not written so, or names something else.

    Example:
        >>> parse_patient("age=55, localization=lower extremity")
        {'age': '55', 'localization': 'lower extremity'}
    """
    found = {}
    for part in text.split(","):
        name, equals, value = (one.strip() for one in part.partition("="))
        if name not in FACTS or not equals or not value or name in found:
            raise UsageError(
                f"{part.strip()!r} is no fact about a patient. Write "
                "age=55,sex=female,localization=back, or some of these."
            )
        found[name] = value
    return found


def read_patients(path: Path) -> pd.DataFrame:
    """Read a table of patients: image_id, and some of age, sex and localization.

    Raises:
        DataError: If it lacks image_id or all facts, or has two rows of one image.
    """
    table = read_table(Path(path), ("image_id",), dtype=str)
    if not set(FACTS).intersection(table.columns):
        raise DataError(f"{path} has none of the columns {', '.join(FACTS)}. Add what is known.")
    if (double := table.image_id[table.image_id.duplicated()]).any():
        raise DataError(f"{path} has two rows of the image {double.iloc[0]}. Keep one.")
    return table.reindex(columns=["image_id", *FACTS])

"""Evaluation from a predictions table alone: no model, no images, no randomness but the seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermlens.errors import DataError, UsageError
from dermlens.labels import MALIGNANT
from dermlens.model import metrics
from dermlens.model.balanced_rule import rule_curve
from dermlens.model.calibration import Calibration, OperatingPoint, probabilities
from dermlens.model.conformal import set_metrics

RESAMPLES = 2000
SMALL_GROUP = 30
_AGE_BANDS = ((0, 30, "0-29"), (30, 45, "30-44"), (45, 60, "45-59"), (60, 75, "60-74"))
_LABEL_SCALARS = (
    *("accuracy", "balanced_accuracy", "macro_precision"),
    *("macro_recall", "macro_f1"),
)
_SCALARS = (*_LABEL_SCALARS, "macro_auc", "ece", "brier", "nll")
_PER_CLASS = ("precision", "recall", "specificity", "f1", "auc", "average_precision")
_ISIC_COLUMNS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


@dataclass(frozen=True)
class _Answers:
    """What a table of predictions says, in class positions."""

    labels: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    predicted: np.ndarray
    balanced_rule: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, classes: Sequence[str]) -> "_Answers":
        position = {code: k for k, code in enumerate(classes)}
        numbers = (
            table[[f"{kind}_{c}" for c in classes]].to_numpy(np.float64)
            for kind in ("logit", "probability")
        )
        columns = (table.predicted, table.balanced_rule)
        return cls(
            np.array([position[code] for code in table.dx]),
            *numbers,
            *(np.array([position[code] for code in column]) for column in columns),
        )

    def where(self, mask: np.ndarray) -> "_Answers":
        return _Answers(**{name: values[mask] for name, values in vars(self).items()})

    def one(self) -> np.ndarray:
        """The weights (1, N) of every image once."""
        return np.ones((1, len(self.labels)))

    def decisions(self, weights: np.ndarray, rule: str = "balanced_rule") -> dict[str, np.ndarray]:
        """Figures of the decisions of a rule per row of weights."""
        classes = self.probabilities.shape[1]
        return metrics.label_metrics(
            metrics.confusion_matrices(self.labels, getattr(self, rule), classes, weights)
        )

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Figures of the balanced rule and of the probabilities per row of weights."""
        return self.decisions(weights) | metrics.probability_metrics(
            self.probabilities, self.labels, weights
        )

    def flags(self, point: OperatingPoint, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Score of each image, and whether it is a positive of the point."""
        positions = [classes.index(code) for code in point.codes]
        score = point.score(self.probabilities, classes)
        return score, np.isin(self.labels, positions)


def metrics_from_predictions(
    table: pd.DataFrame,
    calibration: Calibration,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute everything in ``metrics.json`` from a predictions table.

    Decision figures at the top level are those of the balanced rule, which challenges score; those
    under ``most_probable`` of the most probable class, which is the answer to a person.
    Confidence intervals are 95 % percentile intervals over resampled lesions.

    Args:
        table: As ``predictions_table`` makes it, with ``dx`` known for every row.
        calibration: Of the bundle.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        A dictionary of JSON types; undefined figures are NaN.

    Raises:
        DataError: If the table is empty or a diagnosis is unknown.
        UsageError: If ``resamples`` is below 1 or the seed is negative.
    """
    _check(table, calibration, resamples, seed)
    classes = calibration.classes
    data = _Answers.of(table, classes)
    drawn = metrics.lesion_resamples(table.lesion_id.to_numpy(), resamples, seed)
    point, spread = data.figures(data.one()), data.figures(drawn)
    support = np.bincount(data.labels, minlength=len(classes))
    groups, sets = _groupings(table), calibration.prediction_sets
    counts = metrics.confusion_matrices(data.labels, data.balanced_rule, len(classes), data.one())
    shares = probabilities(data.logits, calibration.link)
    raw = metrics.probability_metrics(shares, data.labels, data.one())
    result: dict[str, Any] = {
        **_first(point, _SCALARS),
        "balanced_rule": calibration.rule,
        "temperature": calibration.temperature,
        "per_class": {
            code: {**_first(point, _PER_CLASS, k), "support": int(support[k])}
            for k, code in enumerate(classes)
        },
        "confusion_matrix": {"classes": list(classes), "counts": counts[0].astype(int)},
        "most_probable": _most_probable_block(data, drawn, classes),
        "operating_points": _operating_points(data, calibration, drawn),
        "confidence_intervals": {
            "level": 0.95,
            "resampled": "lesions",
            "resamples": resamples,
            **_intervals(spread, _SCALARS, _PER_CLASS, classes),
        },
        "uncalibrated": _first(raw, ("ece", "brier", "nll")),
        "per_lesion": _per_lesion(table, data, calibration),
    }
    if "abstain" in table.columns:
        result["abstention"] = _abstention(table.abstain.to_numpy(bool), data, classes)
    return result | {
        "subgroups": _subgroups(groups, data, calibration),
        "prediction_sets": (
            None
            if sets is None
            else set_metrics(data.probabilities, data.labels, sets, drawn, groups)
        ),
        "tau": calibration.balanced_rule.tau,
        "balanced_rule_curve": _rule_curve(table, data, calibration, seed),
        "n_images": len(table),
        "n_lesions": int(table.lesion_id.nunique()),
    }


def compare_predictions(
    tables: Mapping[str, pd.DataFrame],
    calibration: Calibration | Mapping[str, Calibration],
    *,
    reference: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return figures of predictions of the same images made in several ways, and what they differ.

    Args:
        tables: Predictions by name, as ``predictions_table`` makes them, of the same images in the
            same order, ``dx`` known for every row.
        calibration: Of the bundle, or of each table by its name.
        reference: The name of those that the others are compared with.
        resamples: Bootstrap resamples of lesions, the same ones for all tables.
        seed: Seed of the bootstrap.

    Returns:
        A row per table and figure: ``name``, ``figure``, ``value``, ``difference`` (less the
        reference's) and its 95 % interval ``low``, ``high``. Figures: ``balanced_accuracy`` (of the
        balanced rule), ``most_probable_balanced_accuracy``, ``macro_auc``, ``ece``, ``nll``,
        ``<flag>_sensitivity`` and ``<flag>_specificity``, ``coverage`` of the prediction sets,
        ``abstained``, ``same_answer`` (share with the reference's most probable class).

    Raises:
        DataError: If there is no prediction, or a diagnosis is unknown.
        UsageError: If ``resamples`` is below 1 or the seed is negative.
    """
    first = tables[reference]
    of = {n: calibration for n in tables} if isinstance(calibration, Calibration) else calibration
    _check(first, of[reference], resamples, seed)
    drawn = metrics.lesion_resamples(first.lesion_id.to_numpy(), resamples, seed)
    weights = np.concatenate([np.ones((1, len(first))), drawn])
    found = {name: _compared(one, first, of[name], weights) for name, one in tables.items()}
    rows = []
    for name, figures in found.items():
        for figure, values in figures.items():
            less = values - found[reference][figure]
            low, high = metrics.interval(less[1:])
            rows.append((name, figure, float(values[0]), float(less[0]), low, high))
    return pd.DataFrame(rows, columns=["name", "figure", "value", "difference", "low", "high"])


def _compared(
    table: pd.DataFrame, reference: pd.DataFrame, calibration: Calibration, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return each figure of ``compare_predictions`` for every row of weights."""
    classes, data = calibration.classes, _Answers.of(table, calibration.classes)
    figures, total = data.figures(weights), weights.sum(axis=1)
    found = {
        "balanced_accuracy": figures["balanced_accuracy"],
        "most_probable_balanced_accuracy": data.decisions(weights, "predicted")[
            "balanced_accuracy"
        ],
        **{name: figures[name] for name in ("macro_auc", "ece", "nll")},
    }
    for name, point in calibration.operating_points.items():
        flags = metrics.flag_metrics(*data.flags(point, classes), point.threshold, weights)
        found |= {f"{name}_{kind}": flags[kind] for kind in ("sensitivity", "specificity")}
    shares: dict[str, np.ndarray] = {}
    if (sets := calibration.prediction_sets) is not None:
        inside = sets.contain(data.probabilities)
        shares["coverage"] = inside[np.arange(len(data.labels)), data.labels]
    if "abstain" in table.columns:
        shares["abstained"] = table.abstain.to_numpy(bool)
    shares["same_answer"] = (table.predicted == reference.predicted).to_numpy()
    return found | {name: weights @ share / total for name, share in shares.items()}


def _check(table: pd.DataFrame, calibration: Calibration, resamples: int, seed: int) -> None:
    if resamples < 1 or seed < 0:
        raise UsageError(
            f"The bootstrap takes at least 1 resample and no negative seed, not {resamples} "
            f"resample(s) and the seed {seed}."
        )
    if table.empty:
        raise DataError("There is no prediction to evaluate.")
    unknown = sorted(set(table.dx.astype(str)) - set(calibration.classes))
    if unknown:
        raise DataError(
            f"The diagnosis {unknown[0]!r} is none of {', '.join(calibration.classes)}."
        )


def _first(figures: dict[str, np.ndarray], names: Sequence[str], *at: int) -> dict[str, float]:
    """Figures of the first row of weights, of one class where they have some."""
    return {name: float(figures[name][(0, *at)]) for name in names}


def _intervals(
    spread: dict[str, np.ndarray],
    scalars: Sequence[str],
    per_class: Sequence[str],
    classes: Sequence[str],
) -> dict[str, Any]:
    return {
        **{name: metrics.interval(spread[name]) for name in scalars},
        "per_class": {
            code: {name: metrics.interval(spread[name][:, k]) for name in per_class}
            for k, code in enumerate(classes)
        },
    }


def _rule_curve(
    table: pd.DataFrame, data: _Answers, calibration: Calibration, seed: int
) -> list[dict[str, float]]:
    """Balanced accuracy over the strength of the rule; empty where the prior is not known."""
    prior = calibration.balanced_rule.log_prior
    if not prior:
        return []
    scaled, lesions = calibration.scaled(data.logits), table.lesion_id.to_numpy()
    curve, _ = rule_curve(scaled, data.labels, prior, lesions, seed=seed)
    return [vars(point) for point in curve]


def _most_probable_block(
    data: _Answers, drawn: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """The decision figures of the most probable class, with intervals."""
    point, spread = (data.decisions(weights, "predicted") for weights in (data.one(), drawn))
    return {
        **_first(point, _LABEL_SCALARS),
        "per_class": {code: _first(point, _PER_CLASS[:4], k) for k, code in enumerate(classes)},
        "confidence_intervals": _intervals(spread, _LABEL_SCALARS, ("recall",), classes),
    }


def _operating_points(
    data: _Answers, calibration: Calibration, drawn: np.ndarray
) -> dict[str, Any]:
    points = {}
    for name, point in calibration.operating_points.items():
        scores, positive = data.flags(point, calibration.classes)
        here = metrics.flag_metrics(scores, positive, point.threshold, data.one())
        spread = metrics.flag_metrics(scores, positive, point.threshold, drawn)
        points[name] = {
            "codes": list(point.codes),
            "threshold": point.threshold,
            "chosen_on": "validation",
            "validation_sensitivity": point.sensitivity,
            "validation_specificity": point.specificity,
            "auc": float(metrics.roc_auc(scores, positive, data.one())[0]),
            **_first(here, list(here)),
            "confidence_intervals": {k: metrics.interval(v) for k, v in spread.items()},
            "positives": int(positive.sum()),
            "negatives": int((~positive).sum()),
        }
    return points


def _abstention(away: np.ndarray, data: _Answers, classes: Sequence[str]) -> dict[str, Any]:
    """How many images the out-of-distribution detector turns away, and how good the rest is."""
    kept = data.where(~away)
    rest = kept.decisions(kept.one()) if len(kept.labels) else {}
    shares = {code: away[data.labels == k] for k, code in enumerate(classes)}
    return {
        "rate": float(away.mean()),
        "per_class": {code: float(of.mean()) if len(of) else None for code, of in shares.items()},
        "balanced_accuracy_of_the_rest": float(rest.get("balanced_accuracy", [np.nan])[0]),
    }


def _per_lesion(table: pd.DataFrame, data: _Answers, calibration: Calibration) -> dict[str, Any]:
    """Figures with one vote per lesion: the mean log-probability over its photographs."""
    lesions, first, lesion = np.unique(
        table.lesion_id.astype(str), return_index=True, return_inverse=True
    )
    sums = [np.bincount(lesion, column) for column in data.logits.T]
    logits = np.stack(sums, axis=1) / np.bincount(lesion)[:, None]
    merged = _Answers(
        labels=data.labels[first],
        logits=logits,
        probabilities=calibration.probabilities(logits),
        predicted=logits.argmax(axis=1),
        balanced_rule=calibration.balanced(logits),
    )
    return {**_first(merged.figures(merged.one()), _SCALARS), "n_lesions": len(lesions)}


def age_band(age: float) -> str:
    """Return the band of an age in years.

    Example:
        >>> age_band(50.0), age_band(85.0), age_band(float("nan"))
        ('45-59', '75+', 'missing')
    """
    if not np.isfinite(age):
        return "missing"
    return next((name for low, high, name in _AGE_BANDS if low <= age < high), "75+")


def _groupings(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the subgroup of each image, as text, by name of the grouping."""
    ages = pd.to_numeric(table.age, errors="coerce").astype(float)
    columns = {
        "sex": table.sex,
        "age_band": ages.map(age_band),
        "localization": table.localization,
        "dx_type": table.dx_type,
    }
    return {
        name: values.astype(object).where(values.notna(), "missing").astype(str)
        for name, values in columns.items()
    }


def _subgroups(
    groupings: dict[str, pd.Series], data: _Answers, calibration: Calibration
) -> dict[str, Any]:
    return {
        name: {
            group: _subgroup(data.where((column == group).to_numpy()), calibration)
            for group in sorted(set(column))
        }
        for name, column in groupings.items()
    }


def _subgroup(data: _Answers, calibration: Calibration) -> dict[str, Any]:
    names = ("accuracy", "balanced_accuracy", "macro_auc", "ece")
    block: dict[str, Any] = _first(data.figures(data.one()), names)
    point = calibration.operating_points.get(MALIGNANT)
    if point is not None:
        scores, positive = data.flags(point, calibration.classes)
        flags = metrics.flag_metrics(scores, positive, point.threshold, data.one())
        for name in ("sensitivity", "specificity"):
            block[f"malignant_{name}"] = float(flags[name][0])
    return {
        "n_images": len(data.labels),
        "n_classes": len(np.unique(data.labels)),
        "small": len(data.labels) < SMALL_GROUP,
        **block,
    }


def isic_submission(table: pd.DataFrame, calibration: Calibration) -> pd.DataFrame | None:
    """Return the official ISIC 2018 Task 3 submission: image, then one column per class.

    None for a model of other classes than the challenge's. The scorer takes a row's largest column
    as the decision. So that it scores the balanced rule, a row holds the softmax of the adjusted
    logits. Columns are in the challenge's order, not the alphabetical one.
    """
    if {code.upper() for code in calibration.classes} != set(_ISIC_COLUMNS):
        return None
    logits = table[[f"logit_{code}" for code in calibration.classes]].to_numpy(np.float64)
    shares = probabilities(calibration.balanced_rule.adjusted(calibration.scaled(logits)))
    position = {code.upper(): k for k, code in enumerate(calibration.classes)}
    columns = {name: shares[:, position[name]] for name in _ISIC_COLUMNS}
    return pd.DataFrame({"image": table.image_id, **columns})

"""Evaluation from a predictions table alone: no model, no images, no randomness but the seed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from dermlens.errors import DataError, UsageError
from dermlens.model import metrics
from dermlens.model.balanced_rule import rule_curve
from dermlens.model.calibration import Calibration, probabilities
from dermlens.model.set_metrics import set_metrics

RESAMPLES = 2000
SMALL_GROUP = 30
_AGE_BANDS = ((0, 30, "0-29"), (30, 45, "30-44"), (45, 60, "45-59"), (60, 75, "60-74"))
_SCALARS = (
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "macro_auc",
    "ece",
    "brier",
    "nll",
)
_LABEL_SCALARS = _SCALARS[:5]
_PER_CLASS = ("precision", "recall", "specificity", "f1", "auc", "average_precision")
_ISIC_COLUMNS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def _arrays(table: pd.DataFrame, classes: Sequence[str]) -> dict[str, np.ndarray]:
    position = {code: k for k, code in enumerate(classes)}
    return {
        "labels": np.array([position[code] for code in table.dx]),
        "logits": table[[f"logit_{c}" for c in classes]].to_numpy(np.float64),
        "probabilities": table[[f"probability_{c}" for c in classes]].to_numpy(np.float64),
        "predicted": np.array([position[code] for code in table.predicted]),
        "balanced_rule": np.array([position[code] for code in table.balanced_rule]),
    }


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
    if resamples < 1 or seed < 0:
        raise UsageError(
            f"The bootstrap takes at least 1 resample and no negative seed, not {resamples} "
            f"resample(s) and the seed {seed}."
        )
    if table.empty:
        raise DataError("There is no prediction to evaluate.")
    unknown = sorted(set(table.dx.astype(str)) - set(calibration.classes))
    if unknown:
        raise DataError(f"The diagnosis {unknown[0]!r} is none of {', '.join(calibration.classes)}")
    classes = calibration.classes
    data = _arrays(table, classes)
    one = np.ones((1, len(table)))
    drawn = metrics.lesion_resamples(table.lesion_id.to_numpy(), resamples, seed)
    point, spread = _figures(data, one, len(classes)), _figures(data, drawn, len(classes))
    support = np.bincount(data["labels"], minlength=len(classes))
    result: dict[str, Any] = {name: float(point[name][0]) for name in _SCALARS}
    result["balanced_rule"] = calibration.rule
    result["temperature"] = calibration.temperature
    result["per_class"] = {
        code: {name: float(point[name][0, k]) for name in _PER_CLASS} | {"support": int(support[k])}
        for k, code in enumerate(classes)
    }
    result["confusion_matrix"] = {
        "classes": list(classes),
        "counts": metrics.confusion_matrices(
            data["labels"], data["balanced_rule"], len(classes), one
        )[0].astype(int),
    }
    result["most_probable"] = _most_probable_block(data, one, drawn, classes)
    result["operating_points"] = _operating_points(data, calibration, one, drawn)
    result["confidence_intervals"] = _intervals(spread, classes, resamples)
    result["uncalibrated"] = _uncalibrated(data, one, calibration)
    result["per_lesion"] = _per_lesion(table, data, calibration)
    if "abstain" in table.columns:
        result["abstention"] = _abstention(table, data, calibration)
    groups = _groupings(table)
    result["subgroups"] = _subgroups(groups, data, calibration)
    sets = calibration.prediction_sets
    result["prediction_sets"] = (
        None
        if sets is None
        else set_metrics(data["probabilities"], data["labels"], sets, drawn, groups)
    )
    result["tau"] = calibration.balanced_rule.tau
    result["balanced_rule_curve"] = _rule_curve(table, data, calibration, seed)
    result["n_images"] = len(table)
    result["n_lesions"] = int(table.lesion_id.nunique())
    return result


def _intervals(
    spread: dict[str, np.ndarray], classes: Sequence[str], resamples: int
) -> dict[str, Any]:
    return {
        "level": 0.95,
        "resampled": "lesions",
        "resamples": resamples,
        **{name: metrics.interval(spread[name]) for name in _SCALARS},
        "per_class": {
            code: {name: metrics.interval(spread[name][:, k]) for name in _PER_CLASS}
            for k, code in enumerate(classes)
        },
    }


def _rule_curve(
    table: pd.DataFrame, data: dict[str, np.ndarray], calibration: Calibration, seed: int
) -> list[dict[str, float]]:
    """Balanced accuracy over the strength of the rule; empty where the prior is not known."""
    prior = calibration.balanced_rule.log_prior
    if not prior:
        return []
    curve, _ = rule_curve(
        calibration.scaled(data["logits"]),
        data["labels"],
        prior,
        table.lesion_id.to_numpy(),
        seed=seed,
    )
    return [vars(point) for point in curve]


def _figures(
    data: dict[str, np.ndarray], weights: np.ndarray, classes: int, decision: str = "balanced_rule"
) -> dict[str, np.ndarray]:
    confusion = metrics.confusion_matrices(data["labels"], data[decision], classes, weights)
    return metrics.label_metrics(confusion) | metrics.probability_metrics(
        data["probabilities"], data["labels"], weights
    )


def _most_probable_block(
    data: dict[str, np.ndarray], one: np.ndarray, drawn: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """The decision figures of the most probable class, with intervals."""

    def at(weights: np.ndarray) -> dict[str, np.ndarray]:
        return metrics.label_metrics(
            metrics.confusion_matrices(data["labels"], data["predicted"], len(classes), weights)
        )

    point, spread = at(one), at(drawn)
    block: dict[str, Any] = {name: float(point[name][0]) for name in _LABEL_SCALARS}
    block["per_class"] = {
        code: {name: float(point[name][0, k]) for name in _PER_CLASS[:4]}
        for k, code in enumerate(classes)
    }
    block["confidence_intervals"] = {
        **{name: metrics.interval(spread[name]) for name in _LABEL_SCALARS},
        "per_class": {
            code: {"recall": metrics.interval(spread["recall"][:, k])}
            for k, code in enumerate(classes)
        },
    }
    return block


def _operating_points(
    data: dict[str, np.ndarray], calibration: Calibration, one: np.ndarray, drawn: np.ndarray
) -> dict[str, Any]:
    points = {}
    for name, point in calibration.operating_points.items():
        positions = [calibration.classes.index(code) for code in point.codes]
        scores = point.score(data["probabilities"], calibration.classes)
        positive = np.isin(data["labels"], positions)
        here = metrics.flag_metrics(scores, positive, point.threshold, one)
        spread = metrics.flag_metrics(scores, positive, point.threshold, drawn)
        points[name] = {
            "codes": list(point.codes),
            "threshold": point.threshold,
            "chosen_on": "validation",
            "validation_sensitivity": point.sensitivity,
            "validation_specificity": point.specificity,
            "auc": float(metrics.roc_auc(scores, positive, one)[0]),
            **{key: float(value[0]) for key, value in here.items()},
            "confidence_intervals": {k: metrics.interval(v) for k, v in spread.items()},
            "positives": int(positive.sum()),
            "negatives": int((~positive).sum()),
        }
    return points


def _uncalibrated(
    data: dict[str, np.ndarray], one: np.ndarray, calibration: Calibration
) -> dict[str, float]:
    shares = probabilities(data["logits"], calibration.link)
    raw = metrics.probability_metrics(shares, data["labels"], one)
    return {name: float(raw[name][0]) for name in ("ece", "brier", "nll")}


def _abstention(
    table: pd.DataFrame, data: dict[str, np.ndarray], calibration: Calibration
) -> dict[str, Any]:
    """How many images the out-of-distribution detector turns away, and how good the rest is."""
    away = table.abstain.to_numpy(bool)
    kept = {name: values[~away] for name, values in data.items()}
    accuracy = float("nan")
    if len(kept["labels"]):
        figures = _figures(kept, np.ones((1, len(kept["labels"]))), len(calibration.classes))
        accuracy = float(figures["balanced_accuracy"][0])
    return {
        "rate": float(away.mean()),
        "per_class": {
            code: float(away[data["labels"] == k].mean()) if (data["labels"] == k).any() else None
            for k, code in enumerate(calibration.classes)
        },
        "balanced_accuracy_of_the_rest": accuracy,
    }


def _per_lesion(
    table: pd.DataFrame, data: dict[str, np.ndarray], calibration: Calibration
) -> dict[str, Any]:
    """Figures with one vote per lesion: the mean log-probability over its photographs."""
    classes = calibration.classes
    lesions, lesion = np.unique(table.lesion_id.astype(str), return_inverse=True)
    count = np.bincount(lesion)
    logits = np.stack(
        [np.bincount(lesion, data["logits"][:, k]) / count for k in range(len(classes))], axis=1
    )
    first = np.zeros(len(lesions), dtype=int)
    first[lesion[::-1]] = data["labels"][::-1]
    merged = {
        "labels": first,
        "probabilities": calibration.probabilities(logits),
        "balanced_rule": calibration.balanced(logits),
    }
    figures = _figures(merged, np.ones((1, len(lesions))), len(classes))
    return {name: float(figures[name][0]) for name in _SCALARS} | {"n_lesions": len(lesions)}


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
    groupings: dict[str, pd.Series], data: dict[str, np.ndarray], calibration: Calibration
) -> dict[str, Any]:
    point = calibration.operating_points.get("malignant")
    result: dict[str, Any] = {}
    for name, column in groupings.items():
        groups = column.to_numpy()
        result[name] = {
            group: _subgroup({k: v[groups == group] for k, v in data.items()}, calibration, point)
            for group in sorted(set(groups))
        }
    return result


def _subgroup(data: dict[str, np.ndarray], calibration: Calibration, point: Any) -> dict[str, Any]:
    one = np.ones((1, len(data["labels"])))
    figures = _figures(data, one, len(calibration.classes))
    names = ("accuracy", "balanced_accuracy", "macro_auc", "ece")
    block: dict[str, Any] = {name: float(figures[name][0]) for name in names}
    if point is not None:
        positions = [calibration.classes.index(code) for code in point.codes]
        scores = point.score(data["probabilities"], calibration.classes)
        positive = np.isin(data["labels"], positions)
        flags = metrics.flag_metrics(scores, positive, point.threshold, one)
        block["malignant_sensitivity"] = float(flags["sensitivity"][0])
        block["malignant_specificity"] = float(flags["specificity"][0])
    present = np.unique(data["labels"])
    return {
        "n_images": len(data["labels"]),
        "n_classes": len(present),
        "small": len(data["labels"]) < SMALL_GROUP,
        **block,
    }


def isic_submission(table: pd.DataFrame, calibration: Calibration) -> pd.DataFrame | None:
    """Return the official ISIC 2018 Task 3 submission: image, then one column per class.

    None for a model of other classes than the challenge's.

    The scorer takes a row's largest column as the decision. So that it scores the balanced rule,
    a row holds the softmax of the adjusted logits; the calibrated probabilities stand in
    ``predictions.csv``. Columns are in the challenge's order, not the alphabetical one.
    """
    if {code.upper() for code in calibration.classes} != set(_ISIC_COLUMNS):
        return None
    logits = table[[f"logit_{code}" for code in calibration.classes]].to_numpy(np.float64)
    shares = probabilities(calibration.balanced_rule.adjusted(calibration.scaled(logits)))
    position = {code.upper(): k for k, code in enumerate(calibration.classes)}
    columns = {name: shares[:, position[name]] for name in _ISIC_COLUMNS}
    return pd.DataFrame({"image": table.image_id, **columns})


def isic_balanced_accuracy(submission: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Return the challenge's figure: mean recall over the classes that have images.

    Args:
        submission: image and the seven columns of the challenge.
        truth: The same columns with one 1 per row. Rows without a prediction (the official test
            table lists ISIC_0035068, which has no image) are left out, as the scorer does.
    """
    columns = list(_ISIC_COLUMNS)
    joined = truth.merge(submission, on="image", suffixes=("_truth", "_prediction"))
    actual = joined[[f"{c}_truth" for c in columns]].to_numpy().argmax(axis=1)
    predicted = joined[[f"{c}_prediction" for c in columns]].to_numpy().argmax(axis=1)
    recalls = [(predicted[actual == c] == c).mean() for c in np.unique(actual)]
    return float(np.mean(recalls))

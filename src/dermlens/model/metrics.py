"""Classification metrics from probabilities, and their lesion-level bootstrap intervals.

Everything is computed for whole sets of image weights at once: a bootstrap resample of lesions is
a row of weights, so that thousands of resamples are a few matrix products. A figure that is not
defined (no image of a class, only one class) is NaN, never silently zero; macro averages run over
the classes that have images, as the ISIC challenge's balanced accuracy does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

ECE_BINS = 15


def confusion_matrices(
    labels: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray
) -> np.ndarray:
    """Return weighted confusion matrices, (R, C, C): truth in rows, prediction in columns.

    Labels and predictions are int (N,), weights (R, N): one row per resample, ones to count.
    """
    cell = np.eye(classes * classes)[labels * classes + predicted]
    return (weights @ cell).reshape(len(weights), classes, classes)


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return a quotient, NaN where it is not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def label_metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return metrics of decisions from confusion matrices (R, C, C), truth in rows.

    Returns:
        ``accuracy, balanced_accuracy, macro_precision, macro_recall, macro_f1``: (R,);
        ``precision, recall, specificity, f1``: (R, C). Precision of a class that is never
        predicted is 0 where the class has images (scikit-learn's convention). Classes without
        images are NaN and left out of macro averages.
    """
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    support = confusion.sum(axis=2)
    called = confusion.sum(axis=1)
    total = confusion.sum(axis=(1, 2))
    present = support > 0
    recall = divide(hits, support)
    precision = np.where(present, np.nan_to_num(divide(hits, called)), np.nan)
    f1 = np.where(present, np.nan_to_num(divide(2 * hits, support + called)), np.nan)
    negatives = total[:, None] - support
    specificity = divide(negatives - (called - hits), negatives)
    return {
        "accuracy": divide(hits.sum(axis=1), total),
        "balanced_accuracy": _nanmean(recall),
        "macro_precision": _nanmean(precision),
        "macro_recall": _nanmean(recall),
        "macro_f1": _nanmean(f1),
        "precision": precision,
        "recall": recall,
        "specificity": specificity,
        "f1": f1,
    }


def _nanmean(values: np.ndarray) -> np.ndarray:
    defined = np.isfinite(values)
    return divide(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


def roc_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve for each row of weights, ties counted half.

    Scores (N,), positive bool (N,), weights (R, N); returns (R,), NaN where a row has no positive
    or no negative.
    """
    order = np.argsort(scores, kind="stable")
    _, tie = np.unique(scores[order], return_inverse=True)
    up = weights[:, order] * positive[order]
    down = weights[:, order] * ~positive[order]
    ties = tie.max() + 1 if len(tie) else 0
    starts = np.searchsorted(tie, np.arange(ties))
    up_by, down_by = np.add.reduceat(up, starts, 1), np.add.reduceat(down, starts, 1)
    below = np.cumsum(down_by, axis=1) - down_by
    area = (up_by * (below + down_by / 2)).sum(axis=1)
    return divide(area, up.sum(axis=1) * down.sum(axis=1))


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the average precision (step-wise area under precision-recall), as ``roc_auc`` does."""
    order = np.argsort(-scores, kind="stable")
    _, tie = np.unique(-scores[order], return_inverse=True)
    starts = np.searchsorted(tie, np.arange(tie.max() + 1))
    up = np.add.reduceat(weights[:, order] * positive[order], starts, 1)
    everything = np.add.reduceat(weights[:, order], starts, 1)
    precision = np.nan_to_num(divide(np.cumsum(up, 1), np.cumsum(everything, 1)))
    return divide((precision * up).sum(axis=1), up.sum(axis=1))


def _bins(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the top probability, whether it is right, and its bin of ``ECE_BINS`` equal ones."""
    top = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == labels).astype(float)
    return top, right, np.clip(np.ceil(top * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)


def calibration_bins(
    probabilities: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return confidence, accuracy and count of equal-width bins of the top probability.

    Three arrays (ECE_BINS,); confidence and accuracy are NaN in empty bins.
    """
    top, right, place = _bins(probabilities, labels)
    count = np.bincount(place, minlength=ECE_BINS).astype(float)
    confidence = divide(np.bincount(place, top, ECE_BINS), count)
    return confidence, divide(np.bincount(place, right, ECE_BINS), count), count


def expected_calibration_error(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the expected calibration error (Guo et al. 2017) of the most probable class, (R,)."""
    top, right, place = _bins(probabilities, labels)
    per_bin = (weights * (right - top)) @ np.eye(ECE_BINS)[place]
    return divide(np.abs(per_bin).sum(axis=1), weights.sum(axis=1))


def probability_metrics(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return metrics of probabilities (N, C) per row of weights (R, N).

    Returns:
        ``macro_auc`` (one against the rest, over classes with images), ``ece``, ``brier``
        (squared error summed over classes, 0..2), ``nll``: (R,); ``auc, average_precision``:
        (R, C).
    """
    classes = probabilities.shape[1]
    truth = labels[:, None] == np.arange(classes)
    auc = [roc_auc(probabilities[:, c], truth[:, c], weights) for c in range(classes)]
    precision = [
        average_precision(probabilities[:, c], truth[:, c], weights) for c in range(classes)
    ]
    squared = ((probabilities - truth) ** 2).sum(axis=1)
    likelihood = np.clip(probabilities[np.arange(len(labels)), labels], 1e-300, None)
    total = weights.sum(axis=1)
    areas = np.stack(auc, axis=1)
    return {
        "macro_auc": _nanmean(areas),
        "ece": expected_calibration_error(probabilities, labels, weights),
        "brier": divide(weights @ squared, total),
        "nll": divide(weights @ -np.log(likelihood), total),
        "auc": areas,
        "average_precision": np.stack(precision, axis=1),
    }


def flag_metrics(
    scores: np.ndarray, positive: np.ndarray, threshold: float, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return sensitivity, specificity, predictive values and flagged share of a threshold, (R,)."""
    flagged = scores >= threshold
    true_up, false_up = weights @ (flagged & positive), weights @ (flagged & ~positive)
    false_down, true_down = weights @ (~flagged & positive), weights @ (~flagged & ~positive)
    return {
        "sensitivity": divide(true_up, true_up + false_down),
        "specificity": divide(true_down, true_down + false_up),
        "positive_predictive_value": divide(true_up, true_up + false_up),
        "negative_predictive_value": divide(true_down, true_down + false_down),
        "flagged": divide(true_up + false_up, weights.sum(axis=1)),
    }


def lesion_resamples(groups: Sequence[Any] | np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return float64 (R, N): how often each image's lesion is drawn with replacement in a resample.

    ``groups`` is the lesion of each image, (N,); ``seed`` sets the drawing.
    """
    _, lesion = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    count = int(lesion.max()) + 1
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn[:, lesion].astype(np.float64)


def interval(values: np.ndarray, level: float = 0.95) -> list[float]:
    """Return the percentile interval of resampled values; NaNs are left out."""
    defined = values[np.isfinite(values)]
    if len(defined) == 0:
        return [float("nan"), float("nan")]
    tail = (1 - level) / 2
    return [float(v) for v in np.quantile(defined, [tail, 1 - tail])]

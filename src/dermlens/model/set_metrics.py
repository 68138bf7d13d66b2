"""How good prediction sets are: how often they hold the truth, and how large they are."""

from typing import Any

import numpy as np
import pandas as pd

from dermlens.model import metrics
from dermlens.model.conformal import PredictionSets

LEVELS = (0.8, 0.9, 0.95)
_FIGURES = ("coverage", "mean_size", "singletons")


def set_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    sets: PredictionSets,
    drawn: np.ndarray,
    groups: dict[str, pd.Series],
) -> dict[str, Any]:
    """Return the figures of prediction sets as JSON types.

    Args:
        probabilities: Calibrated, (N, C).
        labels: int (N,), class positions.
        sets: Fitted on validation.
        drawn: Bootstrap weights of images when whole lesions are drawn, (R, N).
        groups: Subgroup of each image by name of the grouping, each (N,).

    Returns:
        For the default level ``coverage`` (share of images whose set holds the diagnosis),
        ``mean_size``, ``singletons`` (share of sets with one diagnosis) and ``per_class`` coverage,
        with 95 % intervals over lesions; ``subgroups``; ``always_inside``; other ``levels``.
    """
    inside = sets.contain(probabilities)
    covered = inside[np.arange(len(labels)), labels]
    of_images = dict(zip(_FIGURES, _of_images(inside, covered), strict=True))
    return {
        "level": sets.level,
        **{name: float(values.mean()) for name, values in of_images.items()},
        "confidence_intervals": {
            name: metrics.interval(_means(values, drawn)) for name, values in of_images.items()
        },
        "per_class": {
            code: {
                **_group(covered, inside, labels == k),
                "interval": metrics.interval(
                    _means(covered[labels == k].astype(float), drawn[:, labels == k])
                ),
                "validation_images": len(known),
            }
            for k, (code, known) in enumerate(sets.true_probabilities.items())
        },
        "subgroups": {
            kind: {
                str(name): _group(covered, inside, (column == name).to_numpy())
                for name in sorted(set(column))
            }
            for kind, column in groups.items()
        },
        "always_inside": list(sets.always_inside()),
        "levels": [_at_level(probabilities, labels, sets, level) for level in LEVELS],
    }


def _of_images(inside: np.ndarray, covered: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the values of ``_FIGURES`` of each image."""
    sizes = inside.sum(axis=1)
    return covered.astype(float), sizes.astype(float), (sizes == 1).astype(float)


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of each resample, (R,); NaN where none of the images was drawn."""
    with np.errstate(invalid="ignore"):
        means: np.ndarray = weights @ values / weights.sum(axis=1)
    return means


def _group(covered: np.ndarray, inside: np.ndarray, mine: np.ndarray) -> dict[str, Any]:
    count = int(mine.sum())
    if not count:
        return {"coverage": float("nan"), "mean_size": float("nan"), "n_images": 0}
    return {
        "coverage": float(covered[mine].mean()),
        "mean_size": float(inside[mine].sum(axis=1).mean()),
        "n_images": count,
    }


def _at_level(
    probabilities: np.ndarray, labels: np.ndarray, sets: PredictionSets, level: float
) -> dict[str, Any]:
    inside = sets.contain(probabilities, level)
    covered = inside[np.arange(len(labels)), labels]
    figures = [float(values.mean()) for values in _of_images(inside, covered)]
    return {
        "level": level,
        **dict(zip(_FIGURES, figures, strict=True)),
        "lowest_class_coverage": float(min(covered[labels == k].mean() for k in np.unique(labels))),
        "always_inside": list(sets.always_inside(level)),
    }

"""Prediction sets: the diagnoses that cannot be excluded, with a coverage that is promised.

Split conformal prediction, class by class (Mondrian): a class belongs to the set of an image if
its probability is not among the lowest share 1 - level of the probabilities that validation images
*of that class* gave to it. Of new images of each class, drawn like the validation images, at least
the share ``level`` then has its diagnosis in the set, whatever the model is worth; a worse model
has larger sets.

* Sadinle, Lei & Wasserman, "Least ambiguous set-valued classifiers with bounded error levels",
  Journal of the American Statistical Association 114, 2019.
* Angelopoulos & Bates, "A gentle introduction to conformal prediction and distribution-free
  uncertainty quantification", 2021, arXiv:2107.07511.
* Vovk, Gammerman & Shafer, "Algorithmic learning in a random world", 2005: Mondrian predictors.

A class with fewer than 1 / (1 - level) - 1 validation images (9 at 90 %) gives no threshold; it
then belongs to every set. The most probable class always belongs to the set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from dermlens.errors import UsageError
from dermlens.model import metrics
from dermlens.schema import STRICT, Share

DEFAULT_LEVEL = 0.9
LEVELS = (0.8, 0.9, 0.95)
_FIGURES = ("coverage", "mean_size", "singletons")


@dataclass(frozen=True)
class PredictionSets:
    """Fitted on validation; any level can be asked for afterwards.

    Attributes:
        true_probabilities: By class code, in class order: the calibrated probability that each
            validation image of the class gave to it, ascending.
        level: Default share of images of each class whose set holds their diagnosis, 0..1.
    """

    __pydantic_config__ = STRICT
    true_probabilities: Mapping[str, tuple[Share, ...]]
    level: Annotated[float, Field(gt=0, lt=1)] = DEFAULT_LEVEL
    method: Literal["class-conditional split conformal"] = "class-conditional split conformal"

    def thresholds(self, level: float | None = None) -> np.ndarray:
        """Return the probability from which a class belongs to the set, float64 (C,).

        Args:
            level: 0..1 without the ends; default the stored one.

        Raises:
            UsageError: If the level is out of range.
        """
        level = self.level if level is None else level
        check_level(level)
        found = []
        for known in self.true_probabilities.values():
            # The small addition keeps products such as 10 * (1 - 0.9) from falling below 1.
            rank = int(np.floor((len(known) + 1) * (1 - level) + 1e-9))
            found.append(known[rank - 1] if rank else 0.0)
        return np.array(found, np.float64)

    def contain(self, probabilities: np.ndarray, level: float | None = None) -> np.ndarray:
        """Return which classes belong to the set of each image, bool (N, C).

        Args:
            probabilities: Calibrated, (N, C).
            level: As in ``thresholds``.

        Example:
            >>> sets = PredictionSets({"mel": (0.2, 0.9), "nv": (0.4, 0.5)}, level=0.5)
            >>> sets.contain(np.array([[0.6, 0.4], [0.1, 0.9]])).tolist()
            [[True, True], [False, True]]
        """
        probabilities = np.asarray(probabilities, np.float64)
        inside = probabilities >= self.thresholds(level)
        inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
        return inside

    def always_inside(self, level: float | None = None) -> tuple[str, ...]:
        """Return the classes with too few validation images, which belong to every set."""
        levels = self.thresholds(level)
        return tuple(c for c, t in zip(self.true_probabilities, levels, strict=True) if t <= 0)


def check_level(level: float) -> None:
    """Raise UsageError unless a level lies between 0 and 1."""
    if not 0 < level < 1:
        raise UsageError(
            f"The level of prediction sets lies between 0 and 1, such as 0.9, not {level:g}."
        )


def fit_prediction_sets(
    probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> PredictionSets:
    """Fit sets to calibrated probabilities (N, C) and class positions (N,) of validation images."""
    labels = np.asarray(labels)
    known = {}
    for k, code in enumerate(classes):
        # Six decimals keep bundles small; rounded down, they exclude no image that was inside.
        rounded = np.floor(np.sort(probabilities[labels == k, k]) * 1e6) / 1e6
        known[code] = tuple(map(float, rounded))
    return PredictionSets(known)


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

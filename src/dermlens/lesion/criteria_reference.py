"""How a lesion's criteria compare with training images, and what the network makes of them.

``pretrained/criteria_reference.json`` holds percentiles of each criterion by class, average lesion
colors, and, for the network that comes with the package, how far its answer follows each criterion.
``benchmarks/criteria.py`` writes such a file for any data set with outlines and any bundle.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dermlens.lesion.criteria import CRITERIA, Measured
from dermlens.lesion.recoloring import LesionColors
from dermlens.model.bundle import SHIPPED
from dermlens.schema import Count, OpenSection, Share, checked_file

PATH = SHIPPED.parent / "criteria_reference.json"
NOTABLE = 0.2
"""Partial rank correlations below are called weak, whatever their p-value."""
_LEVEL = 0.05
Correlation = Annotated[float, Field(ge=-1, le=1)]
Three = tuple[float, float, float]


class Group(OpenSection):
    """Images of one class or of a group of classes."""

    images: Count
    percentiles: dict[str, list[float]]


class Colors(OpenSection):
    """Average over lesions of the mean and the spread of their colors, in CIELAB."""

    mean: Three
    spread: Three


class Follows(OpenSection):
    """How one output follows one criterion; p-values are corrected for all of them together.

    ``step`` is the change of the log-odds when features move from images with little to images with
    much of it, ``tcav`` the TCAV score; ``quality.concepts`` says more.
    """

    correlation: Correlation
    low: Correlation
    high: Correlation
    p: Share
    step: float
    step_p: Share
    tcav: Share
    tcav_p: Share

    @property
    def sentence(self) -> str:
        """What the output does with the criterion, in words."""
        if self.p >= _LEVEL:
            return "no relation beyond chance, corrected"
        weakly = " weakly" if abs(self.correlation) < NOTABLE else ""
        return f"{'rises' if self.correlation > 0 else 'falls'}{weakly} with it"


class NetworkFollows(OpenSection):
    """What one network does with the criteria, by output and criterion."""

    fingerprint: str
    outputs: dict[str, dict[str, Follows]]


class Reference(OpenSection):
    """The whole file."""

    source: str
    groups: dict[str, Group]
    colors: dict[str, Colors]
    network: NetworkFollows | None = None

    def percentile(self, key: str, value: float, group: str) -> float:
        """Return which share of a group's images has less of a criterion, 0..100; NaN if unknown.

        Ties count half.
        """
        known = self.groups.get(group)
        if known is None or key not in known.percentiles or not np.isfinite(value):
            return float("nan")
        values = np.array(known.percentiles[key])
        steps = np.linspace(0, 100, len(values))
        below, up_to = (
            np.searchsorted(values, value, "left"),
            np.searchsorted(values, value, "right"),
        )
        if up_to > below:
            return float((steps[below] + steps[up_to - 1]) / 2)
        return float(np.interp(value, values, steps))

    def lesion_colors(self) -> dict[str, LesionColors]:
        """Return average lesion colors by class code."""
        return {code: LesionColors(one.mean, one.spread) for code, one in self.colors.items()}

    def follows(self, fingerprint: str, output: str, key: str) -> Follows | None:
        """Return what a network does with a criterion; None if that was not measured."""
        if self.network is None or self.network.fingerprint != fingerprint:
            return None
        return self.network.outputs.get(output, {}).get(key)


def read_reference(path: Path | None = None) -> Reference:
    """Return a reference table; default the one that comes with the package.

    Raises:
        DataError: If the file is missing or no such table.
    """
    advice = "Make it with benchmarks/criteria.py, or leave --reference out."
    return checked_file(Reference, Path(path or PATH), advice)


def criteria_rows(
    measured: Measured, reference: Reference, fingerprint: str, watched: str = "mel"
) -> list[dict[str, Any]]:
    """Return a row for each criterion: value, percentiles, and what the network does with it.

    Args:
        measured: Of one lesion.
        reference: Table to compare with.
        fingerprint: Of the network (``ImageClassifier.identity``).
        watched: Class code that stands beside the benign classes.

    Returns:
        ``criterion``, ``name``, ``meaning``, ``value``, ``text``, ``benign`` and ``watched``
        (percentiles, 0..100), and ``follows``, a dictionary by output (``watched``,
        ``malignant``) that is empty where nothing was measured of this network.
    """
    rows = []
    for key, criterion in CRITERIA.items():
        value = measured.values[key]
        found = {
            output: one.model_dump() | {"sentence": one.sentence}
            for output in (watched, "malignant")
            if (one := reference.follows(fingerprint, output, key)) is not None
        }
        rows.append(
            {
                "criterion": key,
                "name": criterion.name,
                "meaning": criterion.meaning,
                "value": value,
                "text": f"{value:.{criterion.digits}f}",
                "benign": reference.percentile(key, value, "benign"),
                "watched": reference.percentile(key, value, watched),
                "follows": found,
            }
        )
    return rows

"""How a map is read before it is measured.

Methods that answer pixel by pixel give positive and negative values side by side, all over what
they mark. Sorted, as most metrics sort, half of what they mark ranks last, whatever they found; so
the field looks at such maps smoothed and at one sign. Which reading serves, was measured on
validation images (docs/metric_trial.md); a benchmark states the one it used for every method, the
same for all methods of pixels, and measures the maps as they are besides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SMOOTHING = 1 / 32
"""Standard deviation of the smoothing, as a share of the map's shorter side."""
AS_IT_IS, POSITIVE = "as it is", "positive part"


@dataclass(frozen=True)
class Reading:
    """One way to read maps.

    Attributes:
        name: Name for people and in tables.
        sentence: What is done to a map, in one plain sentence.
        read: From maps (N, H, W) to maps of that shape.
    """

    name: str
    sentence: str
    read: Callable[[np.ndarray], np.ndarray]


def positive_part(maps: np.ndarray) -> np.ndarray:
    """Return what speaks for the class, smoothed, float32 (N, H, W); NaN stays NaN."""
    from scipy.ndimage import gaussian_filter

    width = min(maps.shape[1:]) * SMOOTHING
    positive = np.maximum(np.asarray(maps, np.float32), 0.0)
    return np.stack([gaussian_filter(one, width, mode="nearest") for one in positive])


READINGS: dict[str, Reading] = {
    one.name: one
    for one in (
        Reading(AS_IT_IS, "The map as the method gives it.", np.asarray),
        Reading(
            POSITIVE,
            "The positive part, smoothed by a Gaussian whose standard deviation is 1/32 of the "
            "shorter side.",
            positive_part,
        ),
    )
}


def reading_of(method: str) -> Reading:
    """Return how a benchmark reads the maps of a method or control, by name."""
    from dermlens.explainers.registry import METHODS
    from dermlens.quality.controls import UNTRAINED_PREFIX

    about = METHODS.get(method.removeprefix(UNTRAINED_PREFIX))
    return READINGS[AS_IT_IS if about is None or not about.pixels else POSITIVE]


def as_it_is(method: str) -> str:
    """Return the name under which a method's maps are measured as they are, in an appendix."""
    return f"{method}: {AS_IT_IS}"

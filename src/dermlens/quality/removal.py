"""In which order pixels are taken away, and the probability while they are.

* Deletion and insertion: Petsiuk, Das & Saenko, "RISE", BMVC 2018.
* ROAD: Rong et al., ICML 2022.

The order of a map is turned into one number per pixel, its place between 0 (first) and 1. A
removal step is then one threshold on it, so that what crosses into the compiled graph for each
evaluation is two numbers, never an image.
"""

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dermlens.quality.inputs import checked_maps

if TYPE_CHECKING:
    from dermlens.quality.metric import Case

STEPS = 10
ROAD_LEVELS: tuple[float, ...] = tuple(level / 10 for level in range(1, 10))


def removal_places(attribution: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return each pixel's place in the order of descending attribution: float32 (H, W), 0..1.

    Pixels of equal value stand in random order, so that no part of the image is favored: a
    constant map is removed in random order, which is chance. The order of ties depends on the seed
    and the map, so that maps of different images break ties differently, but not on other maps of
    a batch.
    """
    values = np.asarray(attribution, np.float32)
    checked_maps(values[None])
    generator = np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(values).data)])
    order = np.lexsort((generator.random(values.size), -values.ravel()))
    places = np.empty(values.size, np.float32)
    places[order] = np.arange(values.size, dtype=np.float32) / values.size
    return places.reshape(values.shape)


def keep_masks(places: Any, thresholds: Any) -> Any:
    """Return masks (B, H, W) from places (H, W) and rows (share, 1 for the first, 0 for the rest).

    The share that comes first in the order is kept, or the rest is.
    """
    import tensorflow as tf

    share, first = thresholds[:, 0, None, None], thresholds[:, 1, None, None] > 0.5
    # Places are multiples of one over the number of pixels: half of that avoids rounding.
    half = 0.5 / tf.cast(tf.size(places), tf.float32)
    early = places[None] + half < share
    return tf.cast(tf.equal(early, first), tf.float32)


def area_under(curve: np.ndarray) -> float:
    """Return the area under a curve over equal shares from 0 to 1, by the trapezoid rule."""
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def deletion(case: "Case") -> np.ndarray:
    return np.array([area_under(one.deletion(*rest)) for one, *rest in case.once(_ordered)])


def insertion(case: "Case") -> np.ndarray:
    return np.array([area_under(one.insertion(*rest)) for one, *rest in case.once(_ordered)])


def road(case: "Case") -> np.ndarray:
    """Return half the mean of p(least important imputed) - p(most important imputed)."""
    found = [one.imputed(*rest) for one, *rest in case.once(_ordered)]
    return np.array([(least - most).mean() / 2 for most, least in found])


def _ordered(case: "Case") -> list[tuple[Any, np.ndarray, int]]:
    """Return each image, the order of its pixels and its target."""
    return [(one, removal_places(map_, case.seed), target) for one, map_, target in case.each()]

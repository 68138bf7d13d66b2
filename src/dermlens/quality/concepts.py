"""How far a network follows a quantity that is measured on each image.

Two questions. Does its output rise with the quantity, among images of the same diagnosis? That is a
partial rank correlation. And would its output rise if its inner features moved towards images with
much of the quantity? That is concept sensitivity (TCAV; Kim et al., "Interpretability beyond
feature attribution: quantitative testing with concept activation vectors", ICML 2018,
arXiv:1711.11279). Neither says that the quantity is the cause: whatever goes along with it in the
data is followed as well.

The normal of a classifier, as TCAV takes it, is the direction that tells images apart best, which
need not be the one in which features move when there is more of a concept (Haufe et al.,
NeuroImage 2014; Pahde et al., "Navigating neural space", arXiv:2202.03482). So the step from the
mean of images with little to that of images with much of it is measured, too, and how far the
output would change by it. Signs alone say little where random directions agree in sign as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.base import batches, filled
from dermlens.explainers.layers import find_features, run_catching
from dermlens.explainers.stages import stages_of
from dermlens.model.metrics import interval, lesion_resamples
from dermlens.quality.statistics import RESAMPLES, paired_tests

RIDGE = 0.1
"""Of the classifier, as a share of the mean variance of the images' features."""


def rank_residuals(
    values: np.ndarray, groups: Sequence[object] | np.ndarray, others: np.ndarray | None = None
) -> np.ndarray:
    """Return what is left of the ranks of values when groups and the ranks of others are known.

    Args:
        values: float (N,) or (N, K), finite.
        groups: (N,), such as diagnoses.
        others: float (N, J): further quantities to hold fixed.

    Returns:
        float64 of the shape of ``values``, each column with mean 0 and, unless nothing is left,
        variance 1.

    Raises:
        UsageError: If lengths differ.
    """
    from scipy.stats import rankdata

    values = np.asarray(values, np.float64)
    names = np.asarray([str(group) for group in groups])
    known = np.zeros((len(names), 0)) if others is None else np.asarray(others, np.float64)
    if not len(values) == len(names) == len(known):
        raise UsageError(
            f"{len(values)} values, {len(names)} groups and {len(known)} rows of other quantities "
            "do not fit. Give one of each per image."
        )
    members = (names[:, None] == np.unique(names)[None]).astype(np.float64)
    design = np.hstack([members, rankdata(known, axis=0)]) if known.size else members
    ranks = rankdata(values.reshape(len(values), -1), axis=0)
    rest = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    spread = rest.std(axis=0)
    # Rounding leaves a little even where a quantity is wholly known.
    left = spread > 1e-9 * len(values)
    return np.where(left, rest / np.where(left, spread, 1.0), 0.0).reshape(values.shape)


@dataclass(frozen=True)
class Following:
    """A partial Spearman correlation with its 95 % interval and p-value, not yet corrected."""

    correlation: float
    low: float
    high: float
    p: float


def partial_spearman(
    outputs: np.ndarray,
    values: np.ndarray,
    diagnoses: Sequence[object] | np.ndarray,
    lesions: Sequence[object] | np.ndarray,
    *,
    others: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Following]:
    """Return how outputs (N, K) go with values (N,), given the diagnosis and other quantities.

    Intervals resample whole lesions; the test flips the signs of whole lesions.

    Args:
        outputs: Such as logits, float (N, K).
        values: The quantity, float (N,), finite.
        diagnoses: (N,): held fixed.
        lesions: (N,): images of one lesion belong together.
        others: float (N, J): further quantities to hold fixed, such as size.
        resamples: Bootstrap resamples.
        seed: Sets resamples and flips.

    Example:
        >>> values = np.arange(40.0)
        >>> groups = ["a", "b"] * 20
        >>> round(partial_spearman(-values[:, None], values, groups, range(40))[0].correlation, 6)
        -1.0
    """
    rest = rank_residuals(outputs, diagnoses, others)
    own = rank_residuals(values, diagnoses, others)
    products = rest * own[:, None]
    weights = lesion_resamples(np.asarray([str(one) for one in lesions]), resamples, seed)
    drawn = _weighted_correlations(weights, rest, own)
    tests = paired_tests(products, lesions, seed=seed)
    found = []
    for k, test in enumerate(tests):
        low, high = interval(drawn[:, k])
        found.append(Following(float(products[:, k].mean()), low, high, float(test)))
    return found


def _weighted_correlations(weights: np.ndarray, first: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return correlations (R, K) under weights (R, N)."""
    total = weights.sum(axis=1, keepdims=True)

    def mean(values: np.ndarray) -> np.ndarray:
        return (weights @ values) / total

    second = own[:, None]
    covariance = mean(first * second) - mean(first) * mean(second)
    spread = (mean(first**2) - mean(first) ** 2) * (mean(second**2) - mean(second) ** 2)
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


@dataclass(frozen=True)
class LayerReadings:
    """What one layer sees of images, and what the outputs make of it.

    Attributes:
        layer: Path of the layer.
        features: Mean over places of its maps, float32 (N, K).
        gradients: float32 (N, T, K): how each output changes when a feature grows at all places.
        outputs: float32 (N, T).
    """

    layer: str
    features: np.ndarray
    gradients: np.ndarray
    outputs: np.ndarray


class LayerReader:
    """Reads one layer of a model; traced once, for any number of images.

    Args:
        model: Keras model, RGB 0..255 to logits (N, C).
        outputs: Function from logits, a tensor (n, C), to outputs (n, T); None for no gradients,
            which is faster.
        layer: Its name; default the last stage but one, since behind the last one most networks
            are linear and a gradient would be the same for all images.
        batch_size: Images per pass.

    Raises:
        ExplanationError: If the model has no such layer with feature maps.
    """

    def __init__(
        self, model: Any, outputs: Any = None, *, layer: str | None = None, batch_size: int = 16
    ) -> None:
        import tensorflow as tf

        chosen = find_features(model, layer)
        self.step, self.layer = chosen.step, chosen.layer
        if layer is None and len(stages := stages_of(chosen)) > 1:
            self.step, self.layer = stages[-2].step, stages[-2].layer
        self.model, self.outputs, self.batch_size = model, outputs, batch_size
        self._run = tf.function(self._read, autograph=False)

    def _read(self, pictures: Any) -> Any:
        import tensorflow as tf

        watched: list[Any] = []
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:

            def watch(maps: Any) -> None:
                tape.watch(maps)
                watched.append(maps)

            pixels = tf.cast(pictures, tf.float32)
            (maps,), logits = run_catching(self.model, pixels, {self.step}, watch)
            given = logits if self.outputs is None else self.outputs(logits)
            columns = [] if self.outputs is None else tf.unstack(given, axis=1)
        pooled = tf.reduce_mean(tf.cast(maps, tf.float32), axis=(1, 2))
        slopes = [
            tf.reduce_sum(tf.cast(tape.gradient(one, watched[0]), tf.float32), axis=(1, 2))
            for one in columns
        ]
        return pooled, tf.stack(slopes, axis=1) if slopes else pooled[:, None][:, :0], given

    def read(self, images: np.ndarray) -> LayerReadings:
        """Return what the layer sees of images, uint8 or float (N, H, W, 3), N > 0."""
        import tensorflow as tf

        made = []
        for which in batches(len(images), self.batch_size):
            part = np.asarray(images[which], np.float32)
            found = self._run(tf.constant(filled(part, self.batch_size)))
            made.append([values.numpy()[: len(part)] for values in found])
        features, gradients, given = (np.concatenate(parts) for parts in zip(*made, strict=True))
        return LayerReadings(self.layer, features, gradients, given)


def concept_direction(high: np.ndarray, low: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """Return the unit vector (K,) in which features with much of a concept differ from others.

    The normal of a linear classifier (ridge regression on the labels 1 and -1) between features
    (n, K) of images with much and (m, K) with little of it.
    """
    features = np.vstack([high, low]).astype(np.float64)
    labels = np.concatenate([np.full(len(high), 1 / len(high)), np.full(len(low), -1 / len(low))])
    labels -= labels.mean()
    centered = features - features.mean(axis=0)
    products = centered @ centered.T
    # As a share of the mean variance, so that the unit of the features does not matter.
    penalty = max(ridge * np.trace(products) / len(features), 1e-12)
    weights = np.linalg.solve(products + penalty * np.eye(len(features)), labels)
    direction = centered.T @ weights
    length = np.linalg.norm(direction)
    return direction / length if length > 0 else direction


def concept_step(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return the step (K,) from the mean of features (m, K) to that of features (n, K)."""
    means = [np.asarray(features, np.float64).mean(axis=0) for features in (high, low)]
    return np.subtract(*means)


def random_directions(
    features: np.ndarray,
    size: int,
    count: int,
    *,
    between: Callable[[np.ndarray, np.ndarray], np.ndarray] = concept_direction,
    seed: int = 0,
) -> np.ndarray:
    """Return directions (count, K) between random halves, of ``size`` images each, of features.

    ``between`` is ``concept_direction`` or ``concept_step``.
    """
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        drawn = generator.permutation(len(features))[: 2 * size]
        half = len(drawn) // 2
        made.append(between(features[drawn[:half]], features[drawn[half:]]))
    return np.stack(made)


def concept_scores(gradients: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return the TCAV score of directions (R, K), float64 (R,).

    The share of images whose output grows in that direction, by gradients (N, K); an image where
    it neither grows nor falls counts half.
    """
    slopes = np.asarray(gradients, np.float64) @ np.asarray(directions, np.float64).T
    return ((slopes > 0).mean(axis=0) + (slopes >= 0).mean(axis=0)) / 2


def concept_changes(gradients: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return how far each output would change by steps (R, K), to first order, float64 (N, R)."""
    changes: np.ndarray = np.asarray(gradients, np.float64) @ np.asarray(steps, np.float64).T
    return changes


def concept_test(value: float, random_values: np.ndarray, middle: float = 0.0) -> float:
    """Return the two-sided p-value of a concept's value among those of random concepts.

    Halves that change places mirror a value at the ``middle`` (1/2 for TCAV scores), so distances
    from it are compared.
    """
    distances = np.abs(np.asarray(random_values, np.float64) - middle)
    reached = distances >= abs(value - middle) - 1e-12
    return float((1 + reached.sum()) / (1 + len(distances)))

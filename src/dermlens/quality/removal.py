"""In which order pixels are taken away, and the probability while they are.

The order of a map is turned into one number per pixel, its place between 0 (first) and 1. A
removal step is then one threshold on it, so that what crosses into the compiled graph for each
evaluation is two numbers, never an image.
"""

import zlib
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explain.base import Cost, Network
from dermlens.explain.baselines import baseline_image
from dermlens.explain.gradients import even_batch
from dermlens.explain.perturbation import MaskedModel
from dermlens.model.image_classifier import as_classifier

STEPS = 10
ROAD_LEVELS: tuple[float, ...] = tuple(level / 10 for level in range(1, 10))


def removal_places(attribution: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return each pixel's place in the order of descending attribution: float32 (H, W), 0..1.

    Pixels of equal value stand in random order, so that no part of the image is favored: a
    constant map is removed in random order, which is chance.

    Args:
        attribution: float (H, W).
        seed: Sets the order of ties. It also depends on the map, so that maps of different
            images break ties differently, but not on other maps of a batch.

    Example:
        >>> removal_places(np.array([[3.0, 1.0], [4.0, 2.0]])).tolist()
        [[0.25, 0.75], [0.0, 0.5]]
    """
    values = np.asarray(attribution, np.float32)
    if values.ndim != 2:
        raise UsageError(f"A map must be (H, W), not {values.shape}.")
    generator = np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(values).data)])
    order = np.lexsort((generator.random(values.size), -values.ravel()))
    places = np.empty(values.size, np.float32)
    places[order] = np.arange(values.size, dtype=np.float32) / values.size
    return places.reshape(values.shape)


def _keep_masks(places: Any, thresholds: Any) -> Any:
    """Return masks (B, H, W) from places (H, W) and rows (share, 1 for the first, 0 for the rest).

    The share that comes first in the order is kept, or the rest is.
    """
    import tensorflow as tf

    share, first = thresholds[:, 0, None, None], thresholds[:, 1, None, None] > 0.5
    # Places are multiples of one over the number of pixels: half of that avoids rounding.
    half = 0.5 / tf.cast(tf.size(places), tf.float32)
    early = places[None] + half < share
    return tf.cast(tf.equal(early, first), tf.float32)


class RemovalCurves:
    """Probability of a target while pixels are removed, inserted or imputed.

    Per image, passes that do not depend on the map (the image, bare skin, the blurred image) are
    made once and remembered for the next maps: 3 for the image, then 2 * (steps - 1) per map for
    deletion and insertion together, and 2 * levels for ROAD.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        steps: Removal steps; every step takes an equal share of the pixels.
        batch_size: Images per pass; bounds memory.
    """

    def __init__(
        self,
        model: Any,
        *,
        steps: int = STEPS,
        batch_size: int = 16,
    ) -> None:
        if steps < 1:
            raise UsageError(f"At least 1 removal step is needed, not {steps}.")
        self.classifier, self.steps = as_classifier(model), steps
        self.model, self.probabilities = self.classifier.model, self.classifier.probabilities
        self.network = Network(self.model)
        self.batch_size = batch_size
        inner = max(steps - 1, 1)
        batch = even_batch(inner, batch_size)
        self._masked = MaskedModel(self.model, _keep_masks, batch, self.network.cost)
        self._known: tuple[bytes, dict[str, np.ndarray]] = (b"", {})

    @property
    def cost(self) -> Cost:
        """Passes made so far."""
        return self.network.cost

    @property
    def traces(self) -> int:
        """How often functions were traced."""
        return self._masked.traces + self.network.traces

    def ends(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return logits (C,) of the image, of bare skin and of the blurred image, by name."""
        key = np.ascontiguousarray(image).tobytes()
        if self._known[0] != key:
            pictures = [image, baseline_image(image, "border"), baseline_image(image, "blur")]
            logits = self.network.logits(np.stack(pictures).astype(np.float32)).numpy()
            self._known = (key, dict(zip(("image", "skin", "blur"), logits, strict=True)))
        return self._known[1]

    def deletion(self, image: np.ndarray, places: np.ndarray, target: int) -> np.ndarray:
        """Return the probability after each share 0, 1/steps, ..., 1 was removed: (steps + 1,).

        Args:
            image: float32 RGB 0..255, (H, W, 3).
            places: From ``removal_places``.
            target: Class position.
        """
        ends = self.ends(image)
        fill = baseline_image(image, "border")
        return self._curve(image, fill, places, target, 0.0, ends["image"], ends["skin"])

    def insertion(self, image: np.ndarray, places: np.ndarray, target: int) -> np.ndarray:
        """Return the probability after each share was revealed: (steps + 1,); see ``deletion``."""
        ends = self.ends(image)
        fill = baseline_image(image, "blur")
        return self._curve(image, fill, places, target, 1.0, ends["blur"], ends["image"])

    def _curve(
        self,
        image: np.ndarray,
        fill: np.ndarray,
        places: np.ndarray,
        target: int,
        first: float,
        begin: np.ndarray,
        end: np.ndarray,
    ) -> np.ndarray:
        rows = [begin[None], end[None]]
        if self.steps > 1:
            shares = np.arange(1, self.steps, dtype=np.float32) / self.steps
            jobs = np.stack([shares, np.full_like(shares, first)], axis=1)
            rows.insert(1, self._masked.logits(image, fill, places, jobs))
        curve: np.ndarray = self.probabilities(np.concatenate(rows))[:, target]
        return curve

    def imputed(
        self, image: np.ndarray, places: np.ndarray, target: int, seed: int = 0
    ) -> np.ndarray:
        """Return probabilities with the most and the least important pixels imputed: (2, levels).

        Args:
            image: float32 RGB 0..255, (H, W, 3).
            places: From ``removal_places``.
            target: Class position.
            seed: Sets the noise of the imputation, the same for every map of an image.
        """
        from dermlens.quality.imputation import impute

        half = 0.5 / places.size
        most = [places + half < level for level in ROAD_LEVELS]
        least = [places + half > 1 - level for level in ROAD_LEVELS]
        logits = []
        jobs = np.stack(most + least)
        for start in range(0, len(jobs), self.batch_size):
            removed = jobs[start : start + self.batch_size]
            repeated = np.broadcast_to(image, (len(removed), *image.shape))
            logits.append(self.network.logits(impute(repeated, removed, seed=seed)).numpy())
        values = self.probabilities(np.concatenate(logits))[:, target]
        return values.reshape(2, len(ROAD_LEVELS))


def area_under(curve: np.ndarray) -> float:
    """Return the area under a curve over equal shares from 0 to 1, by the trapezoid rule.

    Example:
        >>> area_under(np.array([1.0, 0.5, 0.0]))
        0.5
    """
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))

"""RISE (Petsiuk, Das & Saenko, BMVC 2018): randomized input sampling.

Soft random masks, drawn on a coarse grid, enlarged bilinearly and shifted, hide parts of the
image. The value of a pixel is the mean output of the images in which it was visible, minus the mean
over all masks, so that zero means no influence.

Masks alternate between two halves, each with a map of its own. Half the difference of the two maps
is the standard error of their mean, so how far the map still is from that of endless masks is known
without a longer run.
"""

from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explain.base import batches, image_generator
from dermlens.explain.baselines import Baseline, baseline_image
from dermlens.explain.gradients import even_batch
from dermlens.explain.output import Output
from dermlens.explain.perturbation import (
    Choose,
    Explained,
    MaskedModel,
    PerturbationExplainer,
    Scorer,
    output_values,
)

_ROUND = 96
"""Masks between two looks at the error."""


class RISE(PerturbationExplainer):
    """RISE: random soft masks, weighted by the output of what they leave visible.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        n_samples: Masks per image.
        cells: Cells along the shorter side of the image.
        keep: Probability that a cell stays visible, between 0 and 1.
        baseline: What stands for hidden pixels.
        tolerance: Stop when ``expected_error`` is at most so much; 0 evaluates all samples.
        scorer: Evaluates the masked images in place of the model.

    Result details: ``samples`` (N,): masks evaluated; ``expected_error`` (N,), or (N, C) for all
    classes: standard error of the map over other random masks, as its root mean square relative to
    that of the map.

    Example:
        >>> from dermlens.model.classifier import Architecture, build_classifier
        >>> model = build_classifier(Architecture("mobilenetv3small", (32, 48)))
        >>> result = RISE(model, n_samples=31).attribute(np.zeros((1, 32, 48, 3)), targets="mel")
        >>> result.maps.shape, result.cost.forward
        ((1, 32, 48), 32)
    """

    name = "rise"

    def __init__(
        self,
        model: Any,
        *,
        n_samples: int = 1000,
        cells: int = 7,
        keep: float = 0.5,
        baseline: Baseline = "border",
        tolerance: float = 0.0,
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(model)
        if n_samples < 2 or cells < 1 or not 0 < keep < 1:
            raise UsageError("RISE needs 2 or more samples, 1 or more cells and 0 < keep < 1.")
        self.n_samples, self.cells, self.keep, self.baseline = n_samples, cells, keep, baseline
        if not 0 <= tolerance < 1:
            raise UsageError(f"The tolerance of RISE is 0..1, not {tolerance}.")
        self.tolerance, self.scorer = tolerance, scorer
        self._models: dict[int, MaskedModel] = {}
        self._sum: Any = None

    @property
    def traces(self) -> int:
        """How often the masked model was traced."""
        return sum(masked.traces for masked in self._models.values())

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of cells for images of a size; cells are about square."""
        side = min(size) / min(self.cells, min(size))
        return max(1, round(size[0] / side)), max(1, round(size[1] / side))

    def draw(self, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
        """Return masks as (samples, rows + 1, columns + 2) numbers.

        The last two columns hold, in the first two rows, the shift in cells (0..1) down and right;
        the rest the visible cells, one more than the grid each way so that shifts stay inside.
        """
        rows, columns = self.grid(size)
        visible = generator.random((self.n_samples, rows + 1, columns + 1)) < self.keep
        shift = generator.random((self.n_samples, 2))
        packed = np.zeros((self.n_samples, rows + 1, columns + 2), np.float32)
        packed[:, :, : columns + 1] = visible
        packed[:, :2, columns + 1] = shift
        return packed

    def _one(
        self, image: np.ndarray, choose: Choose, output: Output, batch_size: int, seed: int
    ) -> Explained:
        size = (image.shape[0], image.shape[1])
        drawn = self.draw(size, image_generator(seed, image))
        whole = np.ones_like(drawn[:1])
        whole[:, :2, -1] = 0.0
        # Rounds have a size of their own, so that where RISE stops does not depend on batches.
        step = self.n_samples if not self.tolerance else min(_ROUND, self.n_samples)
        batch = even_batch(self.n_samples + 1 if step == self.n_samples else step, batch_size)
        extent = np.array(size, np.int32)
        logits = self._logits(image, extent, np.concatenate([whole, drawn[:step]]), batch)
        goals = choose(logits[:1])
        value = output_values(output, logits[:1])[0, goals]
        halves, count = _Halves(value, size), 0
        while True:
            fresh = drawn[count : count + step]
            # The change of output is summed up, which keeps its digits where outputs are large.
            change = output_values(output, logits[-len(fresh) :])[:, goals] - value
            halves.add(change, self._sums(extent, fresh, change, count % 2, batch), count)
            count += len(fresh)
            maps, error = halves.maps_and_error()
            if count >= self.n_samples or (error <= self.tolerance).all():
                break
            logits = self._logits(image, extent, drawn[count : count + step], batch)
        return Explained(
            maps.astype(np.float32),
            goals,
            value.astype(np.float32),
            {"expected_error": error.astype(np.float32)},
            {"n_samples": count},
        )

    def _logits(
        self, image: np.ndarray, extent: np.ndarray, packed: np.ndarray, batch: int
    ) -> np.ndarray:
        if batch not in self._models:
            self._models[batch] = MaskedModel(
                self.model, _soft_masks, batch, self.network.cost, scorer=self.scorer
            )
        return self._models[batch].logits(
            image, baseline_image(image, self.baseline), extent, packed
        )

    def _sums(
        self, extent: np.ndarray, drawn: np.ndarray, change: np.ndarray, first: int, batch: int
    ) -> np.ndarray:
        """Return sums over masks of change times mask, and of masks: (2 halves, T + 1, H, W)."""
        import tensorflow as tf

        if self._sum is None:

            def add_up(size: Any, masks: Any, weights: Any) -> Any:
                return tf.einsum("bt,bhw->thw", weights, _soft_masks(size, masks))

            self._sum = tf.function(add_up, autograph=False, reduce_retracing=True)
        rows = np.concatenate([change, np.ones((len(change), 1))], axis=1)
        odd = ((np.arange(len(rows)) + first) % 2 == 1)[:, None]
        weights = np.concatenate([rows * ~odd, rows * odd], axis=1).astype(np.float32)
        total = np.zeros((weights.shape[1], int(extent[0]), int(extent[1])))
        for part in batches(len(drawn), batch):
            total += self._sum(extent, drawn[part], weights[part]).numpy()
        return total.reshape(2, rows.shape[1], *total.shape[1:])


class _Halves:
    """Sums over the masks of two halves, and what follows from them.

    Args:
        value: (T,): outputs of the unchanged image, to know how many targets there are.
        size: (H, W).
    """

    def __init__(self, value: np.ndarray, size: tuple[int, int]) -> None:
        self._sums = np.zeros((2, len(value) + 1, *size))
        self._change = np.zeros((2, len(value)))
        self._count = np.zeros(2)

    def add(self, change: np.ndarray, sums: np.ndarray, before: int) -> None:
        """Add masks: changes of output (n, T), their sums, and how many masks came before."""
        self._sums += sums
        for half in range(2):
            own = change[(np.arange(len(change)) + before) % 2 == half]
            self._change[half] += own.sum(axis=0)
            self._count[half] += len(own)

    def maps_and_error(self) -> tuple[np.ndarray, np.ndarray]:
        """Return maps (T, H, W) of all masks, and their relative standard error (T,)."""
        maps = _mean_where_visible(self._sums.sum(axis=0), self._change.sum(axis=0), self._total)
        pair = [
            _mean_where_visible(self._sums[half], self._change[half], self._count[half])
            for half in range(2)
        ]
        missing = np.sqrt(((pair[0] - pair[1]) ** 2).mean(axis=(1, 2))) / 2
        found = np.sqrt((maps**2).mean(axis=(1, 2)))
        # A network that nothing changes has an empty map, which more masks cannot improve.
        return maps, np.where(missing > 0, missing / np.maximum(found, 1e-12), 0.0)

    @property
    def _total(self) -> float:
        return float(self._count.sum())


def _mean_where_visible(sums: np.ndarray, change: np.ndarray, count: float) -> np.ndarray:
    """Return the mean change where a pixel is visible minus the mean change, (T, H, W)."""
    mean = (change / max(count, 1.0))[:, None, None]
    coverage = sums[-1]
    return (sums[:-1] - mean * coverage) / np.maximum(coverage, 1e-6)


def _soft_masks(size: Any, packed: Any) -> Any:
    """Return masks (B, H, W) in 0..1: cells enlarged bilinearly, each mask with its own shift."""
    import tensorflow as tf

    cells, shift = packed[:, :, :-1], packed[:, :2, -1]
    down = _hats(size[0], tf.shape(cells)[1], shift[:, 0])
    right = _hats(size[1], tf.shape(cells)[2], shift[:, 1])
    return tf.einsum("bhr,brc,bwc->bhw", down, cells, right)


def _hats(length: Any, cells: Any, shift: Any) -> Any:
    """Return bilinear weights (B, length, cells) of every pixel's place on the shifted grid."""
    import tensorflow as tf

    step = tf.cast(cells - 1, tf.float32) / tf.cast(length, tf.float32)
    place = (tf.cast(tf.range(length), tf.float32)[None] + 0.5) * step
    # A shift moves the grid by less than a cell; the half cell keeps both ends inside it.
    place = tf.clip_by_value(place + (shift[:, None] - 0.5), 0.0, tf.cast(cells - 1, tf.float32))
    number = tf.cast(tf.range(cells), tf.float32)
    return tf.nn.relu(1.0 - tf.abs(place[:, :, None] - number[None, None]))

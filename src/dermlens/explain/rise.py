"""RISE (Petsiuk, Das & Saenko, BMVC 2018): randomized input sampling.

Soft random masks, drawn on a coarse grid, enlarged bilinearly and shifted, hide parts of the
image. The value of a pixel is the mean score of the images in which it was visible, minus the mean
over all masks, so that zero means no influence.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.diagnoses import CODES
from dermlens.errors import UsageError
from dermlens.explain.base import batches, image_generator
from dermlens.explain.fills import Fill, fill_image
from dermlens.explain.gradients import even_batch
from dermlens.explain.perturbation import (
    Choose,
    Explained,
    MaskedModel,
    PerturbationExplainer,
    Scorer,
    score_values,
)
from dermlens.explain.score import Score


class RISE(PerturbationExplainer):
    """RISE: random soft masks, weighted by the score of what they leave visible.

    Args:
        model: Keras model from raw RGB 0..255 (N, H, W, 3) to logits (N, C).
        samples: Masks per image.
        cells: Cells along the shorter side of the image.
        keep: Probability that a cell stays visible, between 0 and 1.
        fill: What stands for hidden pixels.
        scorer: Evaluates the masked images in place of the model.
        classes: Codes in the order of the logits.

    Example:
        >>> from dermlens.model.classifier import Architecture, build_classifier
        >>> model = build_classifier(Architecture("mobilenetv3small", (32, 48)))
        >>> result = RISE(model, samples=31).attribute(np.zeros((1, 32, 48, 3)), targets="mel")
        >>> result.maps.shape, result.cost.forward
        ((1, 32, 48), 32)
    """

    name = "rise"

    def __init__(
        self,
        model: Any,
        *,
        samples: int = 1000,
        cells: int = 7,
        keep: float = 0.5,
        fill: Fill = "mean_skin",
        scorer: Scorer | None = None,
        classes: Sequence[str] = CODES,
    ) -> None:
        super().__init__(model, classes=classes)
        if samples < 2 or cells < 1 or not 0 < keep < 1:
            raise UsageError("RISE needs 2 or more samples, 1 or more cells and 0 < keep < 1.")
        self.samples, self.cells, self.keep, self.fill = samples, cells, keep, fill
        self.scorer = scorer
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
        visible = generator.random((self.samples, rows + 1, columns + 1)) < self.keep
        shift = generator.random((self.samples, 2))
        packed = np.zeros((self.samples, rows + 1, columns + 2), np.float32)
        packed[:, :, : columns + 1] = visible
        packed[:, :2, columns + 1] = shift
        return packed

    def _one(
        self, image: np.ndarray, choose: Choose, score: Score, batch_size: int, seed: int
    ) -> Explained:
        size = (image.shape[0], image.shape[1])
        drawn = self.draw(size, image_generator(seed, image))
        whole = np.ones_like(drawn[:1])
        whole[:, :2, -1] = 0.0
        batch = even_batch(self.samples + 1, batch_size)
        if batch not in self._models:
            self._models[batch] = MaskedModel(
                self.model, _soft_masks, batch, self.network.cost, scorer=self.scorer
            )
        extent = np.array(size, np.int32)
        logits = self._models[batch].logits(
            image, fill_image(image, self.fill), extent, np.concatenate([whole, drawn])
        )
        goals = choose(logits[:1])
        values = score_values(score, logits)[:, goals]
        sampled = values[1:]
        visible, coverage = self._accumulate(extent, drawn, sampled - sampled.mean(axis=0), batch)
        maps = visible / np.maximum(coverage, 1e-6)
        return Explained(maps.astype(np.float32), goals, values[0].astype(np.float32))

    def _accumulate(
        self, extent: np.ndarray, drawn: np.ndarray, values: np.ndarray, batch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return sum of value times mask, (T, H, W), and sum of masks, (H, W)."""
        import tensorflow as tf

        if self._sum is None:

            def add_up(size: Any, masks: Any, weights: Any) -> Any:
                return tf.einsum("bt,bhw->thw", weights, _soft_masks(size, masks))

            self._sum = tf.function(add_up, autograph=False, reduce_retracing=True)
        weights = np.concatenate([values, np.ones((len(values), 1))], axis=1).astype(np.float32)
        total = np.zeros((weights.shape[1], int(extent[0]), int(extent[1])))
        for part in batches(len(drawn), batch):
            total += self._sum(extent, drawn[part], weights[part]).numpy()
        return total[:-1], total[-1]


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

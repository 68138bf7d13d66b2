"""RISE (Petsiuk, Das & Saenko, BMVC 2018): randomized input sampling.

Soft random masks, drawn on a coarse grid, enlarged bilinearly and shifted, hide parts of the
image. The value of a pixel is the mean output of the images in which it was visible, minus the mean
over all masks, so that zero means no influence.

Masks alternate between two halves, each with a map of its own. Half the difference of the two maps
is the standard error of their mean, so how far the map still is from that of endless masks is known
without a longer run.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.attribution import PER_CLASS, Attribution
from dermlens.explainers.base import Request, batches, even_batch, image_generator, whole_number
from dermlens.explainers.baselines import Baseline, baseline_image, own_baseline
from dermlens.explainers.perturbation import PerturbationExplainer, Scorer, output_values


@dataclass(kw_only=True)
class RISEAttribution(Attribution):
    """What RISE knows more.

    Attributes:
        expected_error: float32 (N,) or (N, C): standard error of the map over other random masks,
            as its root mean square relative to that of the map.
        n_samples: Masks per image.
        scorer: Name of what evaluated the masked images.
    """

    expected_error: np.ndarray = field(metadata=PER_CLASS)
    n_samples: int
    scorer: str


class RISE(PerturbationExplainer[RISEAttribution]):
    """RISE: random soft masks, weighted by the output of what they leave visible.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        n_samples: Masks per image.
        cells: Cells along the shorter side of the image.
        keep: Probability that a cell stays visible, between 0 and 1.
        baseline: What stands for hidden pixels, as ``Occlusion`` takes it.
        scorer: Evaluates the masked images in place of the model.

    Returns results of the kind ``RISEAttribution``.
    """

    name = "rise"
    kind = RISEAttribution

    def __init__(
        self,
        model: Any,
        *,
        n_samples: int = 1000,
        cells: int = 7,
        keep: float = 0.5,
        baseline: Baseline = "border",
        scorer: Scorer | None = None,
    ) -> None:
        super().__init__(model, _soft_masks, scorer)
        self.n_samples = whole_number(n_samples, "The number of samples of RISE", 2)
        self.cells = whole_number(cells, "The number of cells of RISE")
        if not 0 < keep < 1:
            raise UsageError(f"RISE needs 0 < keep < 1, not {keep}.")
        self.keep, self.baseline = keep, own_baseline(baseline, self.classifier)
        self._sum: Any = None

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of cells for images of a size; cells are about square."""
        side = min(size) / min(self.cells, min(size))
        return max(1, round(size[0] / side)), max(1, round(size[1] / side))

    def draw(self, size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
        """Return masks as (samples, rows + 1, columns + 2) numbers.

        The last column holds, in the first two rows, the shift in cells (0..1) down and right; the
        rest the visible cells, one more than the grid each way so that shifts stay inside.
        """
        rows, columns = self.grid(size)
        packed = np.zeros((self.n_samples, rows + 1, columns + 2), np.float32)
        packed[:, :, :-1] = generator.random((self.n_samples, rows + 1, columns + 1)) < self.keep
        packed[:, :2, -1] = generator.random((self.n_samples, 2))
        return packed

    def _one(self, image: np.ndarray, asked: Request) -> RISEAttribution:
        size = (image.shape[0], image.shape[1])
        drawn = self.draw(size, image_generator(asked.seed, image))
        whole = np.ones_like(drawn[:1])
        whole[:, :2, -1] = 0.0
        batch, extent = even_batch(self.n_samples + 1, asked.batch_size), np.array(size, np.int32)
        background, jobs = baseline_image(image, self.baseline), np.concatenate([whole, drawn])
        logits = self.masked.logits(image, background, extent, jobs, batch)
        goals = asked.goals(logits[:1])[0]
        values = output_values(asked.output, logits)[:, goals]
        # The change of output is summed up, which keeps its digits where outputs are large.
        change = values[1:] - values[0]
        maps, error = _maps_and_error(self._sums(extent, drawn, change, batch), change)
        facts = {"expected_error": error[None].astype(np.float32), "n_samples": self.n_samples}
        return self._scored(asked, logits, goals, maps, **facts)

    def _sums(
        self, extent: np.ndarray, drawn: np.ndarray, change: np.ndarray, batch: int
    ) -> np.ndarray:
        """Return sums over masks of change times mask, and of masks: (2 halves, T + 1, H, W)."""
        import tensorflow as tf

        if self._sum is None:

            def add_up(size: Any, masks: Any, weights: Any) -> Any:
                return tf.einsum("bt,bhw->thw", weights, _soft_masks(size, masks))

            self._sum = tf.function(add_up, autograph=False, reduce_retracing=True)
        rows = np.concatenate([change, np.ones((len(change), 1))], axis=1)
        odd = (np.arange(len(rows)) % 2 == 1)[:, None]
        weights = np.concatenate([rows * ~odd, rows * odd], axis=1).astype(np.float32)
        total = np.zeros((weights.shape[1], int(extent[0]), int(extent[1])))
        for part in batches(len(drawn), batch):
            total += self._sum(extent, drawn[part], weights[part]).numpy()
        return total.reshape(2, rows.shape[1], *total.shape[1:])


def _maps_and_error(sums: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return maps (T, H, W), and their relative standard error (T,); ``sums`` are of two halves."""
    maps = _mean_where_visible(sums.sum(axis=0), change)
    pair = [_mean_where_visible(sums[half], change[half::2]) for half in range(2)]
    missing = np.sqrt(((pair[0] - pair[1]) ** 2).mean(axis=(1, 2))) / 2
    found = np.sqrt((maps**2).mean(axis=(1, 2)))
    # A network that nothing changes has an empty map, which more masks cannot improve.
    return maps, np.where(missing > 0, missing / np.maximum(found, 1e-12), 0.0)


def _mean_where_visible(sums: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return the mean change where a pixel is visible minus the mean change, (T, H, W)."""
    mean = change.mean(axis=0)[:, None, None]
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

"""Feeding a model: batches in a reproducible order, augmented while the model computes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.data.augmentation import NO_AUGMENTATION, Augmentation, augment
from dermlens.errors import DataError, UsageError

IMBALANCE: tuple[str, ...] = ("none", "weights", "sampling")


@dataclass(frozen=True)
class ImbalanceHandling:
    """How rare classes get more say.

    Attributes:
        kind: ``"none"``; ``"weights"``: the loss of class c is weighted by n_c ** -power;
            ``"sampling"``: images of class c are drawn with a probability proportional to
            n_c ** -power each (power 1: every class equally often).
        power: 0..1; 0.5 did best for weights.
    """

    kind: str = "weights"
    power: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in IMBALANCE:
            raise UsageError(
                f"Unknown imbalance handling {self.kind!r}. Use one of: {', '.join(IMBALANCE)}."
            )
        if not 0 <= self.power <= 1:
            raise UsageError(f"The imbalance power {self.power} is outside 0..1.")


def sample_weights(labels: np.ndarray, handling: ImbalanceHandling, classes: int) -> np.ndarray:
    """Return one loss weight per image, mean 1.

    Args:
        labels: int (N,), class positions.
        handling: Of any kind; ``"none"`` and ``"sampling"`` give ones.
        classes: Number of classes.

    Returns:
        float32 (N,).

    Example:
        >>> weights = sample_weights(np.array([0, 0, 0, 0, 1]), ImbalanceHandling(), 2)
        >>> [round(float(weight), 3) for weight in weights[[0, 4]]]
        [0.833, 1.667]
    """
    if handling.kind != "weights":
        return np.ones(len(labels), dtype=np.float32)
    return _rarity(labels, handling.power, classes).astype(np.float32)


def _rarity(labels: np.ndarray, power: float, classes: int) -> np.ndarray:
    counts = np.bincount(labels, minlength=classes)
    weights = np.maximum(counts, 1.0)[labels] ** -power
    return weights / weights.mean()


def epoch_order(
    labels: np.ndarray, handling: ImbalanceHandling, classes: int, seed: int, epoch: int
) -> np.ndarray:
    """Return the rows of one epoch in their order: int64 (N,), set by seed and epoch alone."""
    generator = np.random.default_rng([seed, epoch])
    if handling.kind != "sampling":
        return generator.permutation(len(labels))
    weights = _rarity(labels, handling.power, classes)
    # Systematic sampling: expected counts as asked, with the least possible variance.
    shuffled = generator.permutation(len(labels))
    edges = np.cumsum(weights[shuffled]) / weights.sum()
    points = (np.arange(len(labels)) + generator.random()) / len(labels)
    rows = shuffled[np.searchsorted(edges, points)]
    return generator.permutation(rows)


@dataclass(frozen=True)
class TrainingSet:
    """Images of the training split, ready to be drawn.

    Attributes:
        images: uint8 (M, H, W, 3), usually a memory map of the whole data set, or anything that
            has a shape and gives the images of rows.
        rows: int64 (N,): which of the M images belong to the split.
        labels: int32 (N,): class positions.
        weights: float32 (N,): loss weight per image.
    """

    images: Any
    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise DataError("The training split holds no image. Run 'dermlens data split DATA'.")


def training_batches(
    training: TrainingSet,
    order: np.ndarray,
    *,
    batch_size: int,
    augmentation: Augmentation = NO_AUGMENTATION,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 2,
    others: Sequence[Any] = (),
) -> Any:
    """Return one epoch as a ``tf.data.Dataset``.

    Every batch has the same size (the last, incomplete one is left out; other images are left
    out in the next epoch), so that the training step is traced once. Batches depend only on the
    arguments, never on timing.

    Args:
        training: Where images come from.
        order: Positions in ``training.rows`` in the epoch's order, from ``epoch_order``.
        batch_size: Images per batch.
        augmentation: What to vary.
        seed: Seed of the augmentation.
        epoch: Epoch, so that each epoch varies images differently.
        workers: Batches prepared in parallel.
        others: The images of ``training`` in further sizes, as ``TrainingSet.images`` holds them.

    Returns:
        Dataset of (images float32 (B, H, W, 3) 0..255, labels int32 (B,), weights float32 (B,)),
        and after these the images in each of the other sizes, varied alike.
    """
    import tensorflow as tf

    steps = len(order) // batch_size
    if steps == 0:
        raise DataError(
            f"The training split has {len(order)} images, fewer than one batch of {batch_size}. "
            "Use a smaller --batch-size."
        )
    batches = order[: steps * batch_size].reshape(steps, batch_size)

    def load(positions: Any, step: Any) -> Any:
        # One number per epoch and step: no two batches of a run share their draws.
        key = tf.stack([tf.cast(seed, tf.int32), tf.cast(epoch * 1_000_003, tf.int32) + step])
        # With the same draws each size shows the same part of a picture in the same colors.
        varied, *beside = (
            augment(_gathered(source, training.rows, positions), key, augmentation)
            for source in (training.images, *others)
        )
        labels = tf.gather(tf.constant(training.labels, tf.int32), positions)
        weights = tf.gather(tf.constant(training.weights, tf.float32), positions)
        return varied, labels, weights, *beside

    dataset = tf.data.Dataset.from_tensor_slices((batches, np.arange(steps, dtype=np.int32)))
    loaded = dataset.map(load, num_parallel_calls=workers, deterministic=True).prefetch(4)
    # Nothing here is left to tune, and the end of an epoch would wait for the tuner to wake up.
    options = tf.data.Options()
    options.autotune.enabled = False
    return loaded.with_options(options)


def _gathered(images: Any, rows: np.ndarray, positions: Any) -> Any:
    """Return the images at positions in rows as a uint8 tensor (B, H, W, 3)."""
    import tensorflow as tf

    def gather(wanted: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(images[rows[wanted]])

    found = tf.numpy_function(gather, [positions], tf.uint8, stateful=False)
    return tf.ensure_shape(found, (*positions.shape, *images.shape[1:3], 3))

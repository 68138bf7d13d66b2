"""Gradients of a output with respect to pixels: the engine of all gradient methods."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.explain.base import Cost, call
from dermlens.explain.output import Output
from dermlens.explain.stopping import stop_point


class GradientEngine:
    """Weighted sums of input gradients along points, batched, in one traced function.

    Every job is (image, point): the engine evaluates the gradient at the point, multiplies it by
    a weight and adds it to the image's sum. Points are made inside the graph from a start, an end
    and a position between them, so no pile of interpolated images exists outside a batch.

    Args:
        model: Keras model.
        output: What is explained.
        batch_size: Points per pass.
        cost: Counter to add to.
    """

    def __init__(self, model: Any, output: Output, batch_size: int, cost: Cost) -> None:
        import tensorflow as tf

        self.output = output
        self.batch_size = batch_size
        self.cost = cost
        self.traces = 0

        def along(starts: Any, ends: Any, positions: Any, goals: Any) -> Any:
            self.traces += 1
            place = positions[:, None, None, None]
            points = starts + (ends - starts) * place
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(points)
                value = tf.gather(output.values(call(model, points)), goals, axis=1, batch_dims=1)
            return tf.cast(tape.gradient(value, points), tf.float32), value

        self._along = tf.function(along, autograph=False)

    def integrate(
        self,
        starts: np.ndarray,
        ends: np.ndarray,
        goals: np.ndarray,
        positions: np.ndarray,
        weights: np.ndarray,
    ) -> np.ndarray:
        """Return sum over points of weight times gradient, for each path.

        Args:
            starts: float32 (P, H, W, 3).
            ends: float32 (P, H, W, 3).
            goals: int (P,), target of each path.
            positions: float (S,), places on the path, 0 start, 1 end.
            weights: float (S,).

        Returns:
            float32 (P, H, W, 3).
        """
        paths, steps = len(starts), len(positions)
        path_of = np.repeat(np.arange(paths), steps)
        step_of = np.tile(np.arange(steps), paths)
        total = np.zeros(starts.shape, np.float32)
        for begin in range(0, len(path_of), self.batch_size):
            which = path_of[begin : begin + self.batch_size]
            step = step_of[begin : begin + self.batch_size]
            gradients, _ = self.at(starts[which], ends[which], positions[step], goals[which])
            scaled = gradients * weights[step].astype(np.float32)[:, None, None, None]
            for path in np.unique(which):
                total[path] += scaled[which == path].sum(axis=0)
        return total

    def at(
        self, starts: np.ndarray, ends: np.ndarray, positions: np.ndarray, goals: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return gradients (n, H, W, 3) and outputs (n,) at up to ``batch_size`` points."""
        stop_point()
        count, size = len(starts), self.batch_size
        filled = _filled((starts, ends, positions.astype(np.float32), goals), size)
        gradients, values = self._along(*filled)
        self.cost.forward += count
        self.cost.backward += count
        return gradients.numpy()[:count], values.numpy()[:count]


def even_batch(total: int, largest: int) -> int:
    """Return the batch size up to ``largest`` that covers ``total`` with the least padding.

    Example:
        >>> even_batch(20, 16), even_batch(32, 16), even_batch(5, 16)
        (10, 16, 5)
    """
    return -(-total // -(-total // largest))


def _filled(arrays: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Pad every array to ``size`` rows by repeating its last."""
    return [
        a if len(a) == size else np.concatenate([a, np.repeat(a[-1:], size - len(a), axis=0)])
        for a in arrays
    ]

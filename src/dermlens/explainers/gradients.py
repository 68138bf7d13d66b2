"""Gradients of an output with respect to pixels: what all gradient methods share."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from dermlens.explainers.attribution import Cost, Result
from dermlens.explainers.base import Explainer, Request, batches, call, even_batch, filled
from dermlens.explainers.output import Output
from dermlens.explainers.stopping import stop_point
from dermlens.explainers.tracing import traced_once


def gradients_between(
    model: Any, output: Output, starts: Any, ends: Any, positions: Any, goals: Any
) -> tuple[Any, Any]:
    """Return gradients (n, H, W, 3) and outputs (n,) at points between images, in a graph.

    Args:
        model: Keras model, photographs to logits.
        output: What is explained.
        starts: float32 tensor (n or 1, H, W, 3).
        ends: Likewise.
        positions: float32 tensor (n,): 0 at the start, 1 at the end.
        goals: int32 tensor (n,): class positions.
    """
    import tensorflow as tf

    points = starts + (ends - starts) * positions[:, None, None, None]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(points)
        value = tf.gather(output.values(call(model, points)), goals, axis=1, batch_dims=1)
    # A network that ignores the image has no gradient, which is a gradient of zero.
    slope = tape.gradient(value, points, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return tf.cast(slope, tf.float32), value


class GradientEngine:
    """Weighted sums of input gradients along points, batched, in one traced function.

    Points are made inside the graph from a start, an end and a position between them, so no pile
    of interpolated images exists outside a batch of ``batch_size`` points.
    """

    def __init__(self, model: Any, output: Output, batch_size: int, cost: Cost) -> None:
        self.output, self.batch_size, self.cost = output, batch_size, cost

        def along(*arguments: Any) -> Any:
            return gradients_between(model, output, *arguments)

        self._along = traced_once(model, ("gradients", repr(output), batch_size), along)

    @property
    def traces(self) -> int:
        """How often the gradients were traced."""
        return self._along.traces

    def integrate(
        self,
        starts: np.ndarray,
        ends: np.ndarray,
        goals: np.ndarray,
        positions: np.ndarray,
        weights: np.ndarray,
    ) -> np.ndarray:
        """Return sum over points of weight times gradient, for each path: (P, H, W, 3).

        Positions (S,), with weights (S,), are 0 at the start and 1 at the end of paths.
        """
        paths, steps = len(starts), len(positions)
        path_of = np.repeat(np.arange(paths), steps)
        step_of = np.tile(np.arange(steps), paths)
        total = np.zeros(starts.shape, np.float32)
        for part in batches(len(path_of), self.batch_size):
            which, step = path_of[part], step_of[part]
            gradients = self.at(starts[which], ends[which], positions[step], goals[which])
            scaled = gradients * weights[step].astype(np.float32)[:, None, None, None]
            for path in np.unique(which):
                total[path] += scaled[which == path].sum(axis=0)
        return total

    def at(
        self, starts: np.ndarray, ends: np.ndarray, positions: np.ndarray, goals: np.ndarray
    ) -> np.ndarray:
        """Return gradients (n, H, W, 3) at up to ``batch_size`` points."""
        stop_point()
        arrays = (starts, ends, positions.astype(np.float32), goals)
        gradients, _ = self._along(*(filled(array, self.batch_size) for array in arrays))
        self.cost.pay(len(starts), len(starts))
        return gradients.numpy()[: len(starts)]


class GradientExplainer(Explainer[Result]):
    """Explains image by image with an engine that serves any of them.

    ``points`` per image and target are evaluated at first, to choose an even batch size by.
    """

    def __init__(self, model: Any, points: int) -> None:
        super().__init__(model)
        self._points = points
        self._engines: dict[tuple[str, int], GradientEngine] = {}

    @property
    def traces(self) -> int:
        """How often the gradient function was traced."""
        return sum(engine.traces for engine in self._engines.values())

    @abstractmethod
    def _one(
        self,
        image: np.ndarray,
        goals: np.ndarray,
        values: np.ndarray,
        engine: GradientEngine,
        seed: int,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Explain an image (H, W, 3) with outputs (T,) for class positions (T,).

        Returns maps (T, H, W), and what else is known, (T,) by the name of the field of ``kind``.
        """

    def _parts(self, asked: Request) -> Iterator[Result]:
        size = even_batch(self._points, asked.batch_size)
        key = (repr(asked.output), size)
        if key not in self._engines:
            self._engines[key] = GradientEngine(self.model, asked.output, size, self.network.cost)
        for batch in asked.batches():
            known, logits = self._outputs(batch.images, asked.output)
            goals = batch.goals(logits)
            values = np.take_along_axis(known, goals, axis=1)
            for image, goal, value in zip(batch.images, goals, values, strict=True):
                drawn, facts = self._one(image, goal, value, self._engines[key], asked.seed)
                more = {name: fact[None] for name, fact in facts.items()}
                asked.finished()
                yield self._part(asked, drawn[None], goal[None], value[None], **more)

    def _outputs(self, pixels: np.ndarray, output: Output) -> tuple[np.ndarray, np.ndarray]:
        """Return outputs and logits, (n, C) each, of float32 images."""
        logits = self.network.logits(pixels)
        return np.asarray(output.values(logits)), np.asarray(logits)

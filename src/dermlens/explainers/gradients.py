"""Gradients of an output with respect to pixels: what all gradient methods share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.explainers.attribution import Cost, Result
from dermlens.explainers.base import Explainer, Progress, batches, call, even_batch
from dermlens.explainers.output import Output
from dermlens.explainers.stopping import stop_point
from dermlens.explainers.target import Targets, is_all


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

        def along(*arguments: Any) -> Any:
            self.traces += 1
            return gradients_between(model, output, *arguments)

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
        for part in batches(len(path_of), self.batch_size):
            which, step = path_of[part], step_of[part]
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
        self.cost.pay(count, count)
        return gradients.numpy()[:count], values.numpy()[:count]


class GradientExplainer(Explainer[Result]):
    """Explains image by image with an engine that serves any of them.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        points: Points per image and target at first, to choose an even batch size by.
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
        """Explain a float32 image (H, W, 3) for T targets.

        Args:
            image: The image.
            goals: int (T,).
            values: Outputs of the image, (T,).
            engine: Gives gradients.
            seed: Sets everything random.

        Returns:
            Maps (T, H, W), and what else is known, (T,) by the name of the field of ``kind``.
        """

    def _attribute(
        self,
        images: np.ndarray,
        targets: Targets,
        output: Output,
        batch_size: int,
        seed: int,
        progress: Progress | None,
    ) -> Result:
        every, engine = is_all(targets), self._engine(output, batch_size)
        maps, chosen, values = [], [], []
        facts: dict[str, list[np.ndarray]] = {}
        for part in batches(len(images), batch_size):
            pixels = images[part].astype(np.float32)
            known, logits = self._outputs(pixels, output)
            if every:
                goals = np.tile(np.arange(len(self.classes)), (len(pixels), 1))
            else:
                goals = self.resolve(targets, logits, part.start)[:, None]
                chosen.append(goals[:, 0].astype(np.int32))
            taken = np.take_along_axis(known, goals, axis=1)
            values.append(taken if every else taken[:, 0])
            for row, image in enumerate(pixels):
                drawn, more = self._one(image, goals[row], taken[row], engine, seed)
                maps.append(drawn[None] if every else drawn)
                for name, value in more.items():
                    facts.setdefault(name, []).append(value if every else value[0])
                if progress is not None:
                    progress(1)
        arrays = {name: np.array(value) for name, value in facts.items()}
        return self.result(maps, chosen, values, output, **arrays)

    def _engine(self, output: Output, batch_size: int) -> GradientEngine:
        size = even_batch(self._points, batch_size)
        key = (repr(output), size)
        if key not in self._engines:
            self._engines[key] = GradientEngine(self.model, output, size, self.network.cost)
        return self._engines[key]

    def _outputs(self, pixels: np.ndarray, output: Output) -> tuple[np.ndarray, np.ndarray]:
        """Return outputs and logits, (n, C) each, of float32 images."""
        logits = self.network.logits(pixels)
        return np.asarray(output.values(logits)), np.asarray(logits)


def _filled(arrays: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Pad every array to ``size`` rows by repeating its last."""
    return [
        a if len(a) == size else np.concatenate([a, np.repeat(a[-1:], size - len(a), axis=0)])
        for a in arrays
    ]

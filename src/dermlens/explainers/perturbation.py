"""What methods share that only look at outputs of changed images."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from dermlens.explainers.attribution import Cost, Result
from dermlens.explainers.base import Explainer, Request, batches, call, filled
from dermlens.explainers.output import Output
from dermlens.explainers.stopping import stop_point
from dermlens.explainers.tracing import Traced, traced_once

FLOAT32 = "float32"
"""Name of the scorer that is the Keras model itself."""


class Scorer(Protocol):
    """Gives the logits of changed images in place of the Keras model, such as an int8 copy."""

    @property
    def name(self) -> str:
        """Name in results and files."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return float32 logits (n, C) of float32 images (n, H, W, 3), RGB 0..255."""

    def check(self, model: Any) -> None:
        """Raise ExplanationError if the model's weights are not those it stands for."""


class MaskedModel:
    """A model evaluated on one image with parts replaced, masks being made inside the graph.

    What crosses into the graph for each evaluation is a handful of numbers (which pieces are
    kept, where a patch lies), never an image. One traced function serves every image.
    ``build`` makes masks (B, H, W) in 0..1, 1 keeping the image, from ``shared`` and one batch of
    ``parameters``; a ``scorer`` evaluates the masked images in place of the model.
    """

    def __init__(
        self, model: Any, build: Callable[..., Any], cost: Cost, scorer: Scorer | None = None
    ) -> None:
        self.model, self.build, self.scorer = model, build, scorer
        self.cost = cost
        self._functions: dict[int, Traced] = {}

    @property
    def traces(self) -> int:
        """How often the functions in use were traced."""
        return sum(one.traces for one in self._functions.values())

    def _traced(self, shared: np.ndarray, parameters: np.ndarray, batch_size: int) -> Traced:
        """Return the compiled function; the number of pieces may differ from image to image."""
        import tensorflow as tf

        model, build, pictures = self.model, self.build, self.scorer is not None

        def evaluate(image: Any, baseline: Any, shared: Any, parameters: Any) -> Any:
            keep = build(shared, parameters)[..., None]
            masked = keep * image + (1.0 - keep) * baseline
            return masked if pictures else call(model, masked)

        pixels = tf.TensorSpec(self.model.input_shape[1:], tf.float32)
        signature = [
            pixels,
            pixels,
            tf.TensorSpec([None] * shared.ndim, shared.dtype),
            tf.TensorSpec([batch_size, *[None] * (parameters.ndim - 1)], parameters.dtype),
        ]
        key = (build, pictures, *map(str, signature))
        return traced_once(model, key, evaluate, signature)

    def logits(
        self,
        image: np.ndarray,
        baseline: np.ndarray,
        shared: np.ndarray,
        parameters: np.ndarray,
        batch_size: int,
    ) -> np.ndarray:
        """Return float32 logits (n, C).

        Args:
            image: float32 RGB 0..255, (H, W, 3).
            baseline: What stands where the mask is 0, like ``image``.
            shared: Passed to ``build`` with every batch, such as superpixel labels (H, W).
            parameters: (n, ...), one row per evaluation.
            batch_size: Evaluations per pass; bounds memory. Traced once for each.
        """
        import tensorflow as tf

        if batch_size not in self._functions:
            self._functions[batch_size] = self._traced(shared, parameters, batch_size)
        constant = [tf.constant(a) for a in (image, baseline, shared)]
        results = []
        for which in batches(len(parameters), batch_size):
            stop_point()
            part = parameters[which]
            jobs = tf.constant(filled(part, batch_size))
            made = self._functions[batch_size](*constant, jobs).numpy()[: len(part)]
            results.append(made if self.scorer is None else self.scorer.logits(made))
            self.cost.pay(len(part))
        return np.concatenate(results)


class PerturbationExplainer(Explainer[Result]):
    """Explains image by image; every evaluation gives the outputs of all classes."""

    def __init__(self, model: Any, build: Callable[..., Any], scorer: Scorer | None = None) -> None:
        super().__init__(model)
        self.scorer = scorer
        self.masked = MaskedModel(self.model, build, self.network.cost, scorer)

    @property
    def traces(self) -> int:
        """How often the masked model was traced."""
        return self.masked.traces

    @abstractmethod
    def _one(self, image: np.ndarray, asked: Request) -> Result:
        """Explain one float32 image (H, W, 3), the only one of the request; see ``_scored``."""

    def _scored(
        self, asked: Request, logits: np.ndarray, goals: np.ndarray, maps: np.ndarray, **more: Any
    ) -> Result:
        """Return the attribution of one image: maps (T, H, W) for the classes (T,).

        ``logits`` are of the changed images, the unchanged one first; ``more`` as for ``_part``.
        """
        more["scorer"] = FLOAT32 if self.scorer is None else self.scorer.name
        values = output_values(asked.output, logits[:1])[:, goals]
        return self._part(asked, maps[None], goals[None], values, **more)

    def _parts(self, asked: Request) -> Iterator[Result]:
        if self.scorer is not None:
            self.scorer.check(self.model)
            if not asked.every:
                # The model says what it predicts, never the copy that stands in for it.
                goals = [batch.goals(self._answers(batch))[:, 0] for batch in asked.batches()]
                asked = replace(asked, targets=np.concatenate(goals))
        for one in asked.batches(1):
            yield self._one(one.images[0], one)
            asked.finished()


def output_values(output: Output, logits: np.ndarray) -> np.ndarray:
    """Return the output of every class, float64 (n, C), from logits (n, C)."""
    import tensorflow as tf

    return np.asarray(output.values(tf.constant(logits, tf.float32)), np.float64)

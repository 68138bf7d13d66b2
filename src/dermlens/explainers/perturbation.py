"""What methods share that only look at outputs of changed images."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from dermlens.explainers.attribution import Cost, Result, joined
from dermlens.explainers.base import Explainer, Progress, batches, call
from dermlens.explainers.output import Output
from dermlens.explainers.stopping import stop_point
from dermlens.explainers.target import Targets, depend_on_answer, is_all, resolve_targets

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

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        build: Makes masks (B, H, W) in 0..1, 1 keeping the image, from ``shared`` and one batch
            of ``parameters``.
        batch_size: Evaluations per pass; bounds memory.
        cost: Counter to add to.
        scorer: Evaluates the masked images in place of the model; they leave the graph batch by
            batch.
    """

    def __init__(
        self,
        model: Any,
        build: Callable[..., Any],
        batch_size: int,
        cost: Cost,
        *,
        scorer: Scorer | None = None,
    ) -> None:
        self.model, self.build, self.scorer = model, build, scorer
        self.batch_size, self.cost, self.traces = batch_size, cost, 0
        self._evaluate: Any = None

    def _traced(self, shared: np.ndarray, parameters: np.ndarray) -> Any:
        """Return the compiled function; the number of pieces may differ from image to image."""
        import tensorflow as tf

        def evaluate(image: Any, baseline: Any, shared: Any, parameters: Any) -> Any:
            self.traces += 1
            keep = self.build(shared, parameters)[..., None]
            masked = keep * image + (1.0 - keep) * baseline
            return call(self.model, masked) if self.scorer is None else masked

        pixels = tf.TensorSpec(self.model.input_shape[1:], tf.float32)
        free = [None] * (parameters.ndim - 1)
        signature = [
            pixels,
            pixels,
            tf.TensorSpec([None] * shared.ndim, shared.dtype),
            tf.TensorSpec([self.batch_size, *free], parameters.dtype),
        ]
        return tf.function(evaluate, autograph=False, input_signature=signature)

    def logits(
        self, image: np.ndarray, baseline: np.ndarray, shared: np.ndarray, parameters: np.ndarray
    ) -> np.ndarray:
        """Return float32 logits (n, C).

        Args:
            image: float32 RGB 0..255, (H, W, 3).
            baseline: What stands where the mask is 0, like ``image``.
            shared: Passed to ``build`` with every batch, such as superpixel labels (H, W).
            parameters: (n, ...), one row per evaluation.
        """
        import tensorflow as tf

        if self._evaluate is None:
            self._evaluate = self._traced(shared, parameters)
        constant = [tf.constant(a) for a in (image, baseline, shared)]
        results = []
        for start in range(0, len(parameters), self.batch_size):
            stop_point()
            part = parameters[start : start + self.batch_size]
            missing = self.batch_size - len(part)
            filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)])
            made = self._evaluate(*constant, tf.constant(filled)).numpy()[: len(part)]
            results.append(made if self.scorer is None else self.scorer.logits(made))
            self.cost.pay(len(part))
        return np.concatenate(results)


Choose = Callable[[np.ndarray], np.ndarray]
"""Given the logits of the unchanged image, (1, C), returns the classes to explain, (T,)."""


class PerturbationExplainer(Explainer[Result]):
    """Explains image by image; every evaluation gives the outputs of all classes.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        build: Makes the masks, see ``MaskedModel``.
        scorer: Evaluates the changed images in place of the model.
    """

    def __init__(self, model: Any, build: Callable[..., Any], scorer: Scorer | None = None) -> None:
        super().__init__(model)
        self.build, self.scorer = build, scorer
        self._models: dict[int, MaskedModel] = {}

    @property
    def traces(self) -> int:
        """How often the masked model was traced."""
        return sum(masked.traces for masked in self._models.values())

    @property
    def scorer_name(self) -> str:
        """What evaluates the changed images."""
        return FLOAT32 if self.scorer is None else self.scorer.name

    def masked_model(self, batch: int) -> MaskedModel:
        """Return the masked model for a batch size, made once."""
        if batch not in self._models:
            self._models[batch] = MaskedModel(
                self.model, self.build, batch, self.network.cost, scorer=self.scorer
            )
        return self._models[batch]

    @abstractmethod
    def _one(
        self, image: np.ndarray, choose: Choose, output: Output, batch_size: int, seed: int
    ) -> Result:
        """Explain one float32 image (H, W, 3) for the T classes chosen.

        Returns:
            Arrays (1, T, ...) where a result has one value per class; ``targets`` are the T.
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
        if self.scorer is not None:
            self.scorer.check(self.model)
        every = is_all(targets)
        if self.scorer is not None and not every and depend_on_answer(targets):
            # The model says what it predicts, never the copy that stands in for it.
            answers = [
                np.asarray(self.network.logits(images[part].astype(np.float32)))
                for part in batches(len(images), batch_size)
            ]
            targets = resolve_targets(targets, np.concatenate(answers), self.classifier.labels)
        done: list[Result] = []
        for position, image in enumerate(images):

            def choose(logits: np.ndarray, position: int = position) -> np.ndarray:
                if every:
                    return np.arange(len(self.classes), dtype=np.int32)
                return self.resolve(targets, logits, position)

            part = self._one(image.astype(np.float32), choose, output, batch_size, seed)
            none = np.zeros(0, np.int32)
            done.append(
                replace(part, targets=none) if every else part.of_class(0, int(part.targets[0]))
            )
            if progress is not None:
                progress(1)
        return joined(done)


def output_values(output: Output, logits: np.ndarray) -> np.ndarray:
    """Return the output of every class, float64 (n, C), from logits (n, C)."""
    import tensorflow as tf

    return np.asarray(output.values(tf.constant(logits, tf.float32)), np.float64)

"""What every explanation method shares: arguments, batching, cost, result."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dermlens.explain.folding import folded_logits
from dermlens.explain.output import Logit, Output
from dermlens.explain.stopping import stop_point
from dermlens.explain.target import Targets, check_targets, is_all, part_of, resolve_targets
from dermlens.model.image_classifier import as_classifier

Progress = Callable[[int], None]
"""Called with the number of images finished since the last call."""


@dataclass
class Cost:
    """What was paid for a whole call.

    Attributes:
        forward: Images sent through the network.
        backward: Images whose gradient was taken.
        seconds: Wall-clock time.
    """

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0


@dataclass
class Attribution:
    """What a method returns; rendering is separate (``report.figures``).

    Attributes:
        maps: float32 (N, H, W) at the input's size, or (N, C, H, W) for all classes. Raw values:
            not normalized.
        method: Name in the registry.
        targets: int (N,): explained classes; empty for all classes.
        values: float32 (N,) or (N, C): value of the output on the unchanged images.
        output: Name of the output.
        signed: True if negative values speak against the target.
        cost: What was paid.
        details: More per image, such as ``convergence_delta``, ``r2``, ``segments``,
            ``weights``.
    """

    maps: np.ndarray
    method: str
    targets: np.ndarray
    values: np.ndarray
    output: str
    signed: bool
    cost: Cost
    details: dict[str, Any] = field(default_factory=dict)


class Network:
    """A Keras model called through one traced function for any batch, with counted passes.

    Args:
        model: Images (N, H, W, 3), RGB 0..255, to logits (N, C).
    """

    def __init__(self, model: Any) -> None:
        import tensorflow as tf

        self.model = model
        self.cost = Cost()
        self.traces = 0

        def forward(images: Any) -> Any:
            self.traces += 1
            return call(model, images)

        shape = (None, *model.input_shape[1:])
        self._forward = tf.function(forward, input_signature=[tf.TensorSpec(shape, tf.float32)])

    def logits(self, images: np.ndarray) -> Any:
        """Return float32 logits of float32 images as a tensor; adds to the cost."""
        stop_point()
        self.cost.forward += len(images)
        return self._forward(images)


def call(model: Any, images: Any) -> Any:
    """Call a model in inference mode: float32 pixels in, float32 logits out."""
    import tensorflow as tf

    return tf.cast(folded_logits(model, tf.cast(images, tf.float32)), tf.float32)


class Explainer(ABC):
    """Base of every method.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.

    Attributes:
        classifier: The model with all that is known of it.
        model: Its network in the standard form, RGB 0..255 to logits.
        classes: Codes in the order of the logits.
    """

    name: str = ""
    signed: bool = True

    def __init__(self, model: Any) -> None:
        self.classifier = as_classifier(model)
        self.model = self.classifier.model
        self.network = Network(self.model)
        self.classes = self.classifier.classes

    def attribute(
        self,
        images: np.ndarray,
        targets: Targets = None,
        *,
        output: Output | None = None,
        batch_size: int = 16,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Attribution:
        """Explain images.

        Args:
            images: (N, H, W, 3) at the model's input size: uint8 photographs, or float in the
                classifier's range of values (``ImageClassifier.photographs``).
            targets: Class to explain: None for the most probable one; ``"runner_up"``,
                ``"flagged"``, a code or a position; one of these per image; or ``"all"``
                (``explain.target``).
            output: What is explained; default the logit.
            batch_size: Images per pass; bounds memory. Results do not depend on it.
            seed: Sets everything random. What is drawn for an image depends on the seed and the
                image alone, not on its neighbors.
            progress: Called with the number of images finished.

        Returns:
            The attribution, with maps in the order of ``images``.

        Raises:
            ExplanationError: If the method cannot explain this model.
            UsageError: If the images have another shape than the model takes or are not finite, or
                a target is unknown.
        """
        images = self.classifier.photographs(images)
        if not is_all(targets):
            check_targets(targets, self.classifier.labels, len(images))
        explained: Output = Logit() if output is None else output
        before = Cost(self.network.cost.forward, self.network.cost.backward)
        start = time.perf_counter()
        result = self._attribute(images, targets, explained, batch_size, seed, progress)
        spent = self.network.cost
        result.cost = Cost(
            spent.forward - before.forward,
            spent.backward - before.backward,
            time.perf_counter() - start,
        )
        return result

    def resolve(self, targets: Targets, logits: np.ndarray, offset: int = 0) -> np.ndarray:
        """Return the class position of each image of a batch, int32 (n,).

        Args:
            targets: As given to ``attribute`` (not ``"all"``).
            logits: float (n, C) of the batch.
            offset: Position of the batch's first image in the call.
        """
        part = part_of(targets, slice(offset, offset + len(logits)))
        return resolve_targets(part, logits, self.classifier.labels)

    @abstractmethod
    def _attribute(
        self,
        images: np.ndarray,
        targets: Targets,
        output: Output,
        batch_size: int,
        seed: int,
        progress: Progress | None,
    ) -> Attribution:
        """Explain checked images; the cost is filled in by the caller."""

    def result(
        self,
        maps: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        values: Sequence[np.ndarray],
        output: Output,
        **details: Any,
    ) -> Attribution:
        """Put batches together."""
        return Attribution(
            np.concatenate(maps).astype(np.float32, copy=False),
            self.name,
            np.concatenate(targets) if len(targets) else np.zeros(0, np.int32),
            np.concatenate(values).astype(np.float32, copy=False),
            output.name,
            self.signed,
            Cost(),
            details,
        )


def batches(count: int, size: int) -> list[slice]:
    """Return the slices that cover ``count`` items in batches."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def image_generator(seed: int, image: np.ndarray) -> np.random.Generator:
    """Return a random generator set by the seed and the image's content alone."""
    import zlib

    content = zlib.crc32(np.ascontiguousarray(image, dtype=np.float32).tobytes())
    return np.random.default_rng([seed, content])


Family = Literal["activation", "gradient", "perturbation"]

"""What every explanation method shares: arguments, batching, passes through the network."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Literal, cast

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.attribution import Attribution, Cost, Result, counted
from dermlens.explainers.folding import folded_logits
from dermlens.explainers.output import Output, chosen_output
from dermlens.explainers.stopping import stop_point
from dermlens.explainers.target import Targets, check_targets, is_all, part_of, resolve_targets
from dermlens.model.image_classifier import as_classifier

Progress = Callable[[int], None]
"""Called with the number of images finished since the last call."""
Family = Literal["activation", "gradient", "perturbation"]


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
        self.cost.pay(len(images))
        return self._forward(images)


def call(model: Any, images: Any) -> Any:
    """Call a model in inference mode: float32 pixels in, float32 logits out."""
    import tensorflow as tf

    return tf.cast(folded_logits(model, tf.cast(images, tf.float32)), tf.float32)


class Explainer(ABC, Generic[Result]):
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
    kind: ClassVar[type[Attribution]] = Attribution
    """What it returns."""

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
    ) -> Result:
        """Explain images.

        Args:
            images: (N, H, W, 3) at the model's input size: uint8 photographs, or float in the
                classifier's range of values (``ImageClassifier.photographs``).
            targets: Class to explain: None for the most probable one; ``"runner_up"``,
                ``"flagged"``, a code or a position; one of these per image; or ``"all"``
                (``explainers.target``).
            output: What is explained; default the logit.
            batch_size: Images per pass; bounds memory. Results do not depend on it.
            seed: Sets everything random. What is drawn for an image depends on the seed and the
                image alone, not on its neighbors.
            progress: Called with the number of images finished.

        Returns:
            The attribution, with maps in the order of ``images``.

        Raises:
            ExplanationError: If the method cannot explain this model.
            UsageError: If the images have another shape than the model takes or are not finite, a
                target is unknown, or the batch size is no whole number above 0.
        """
        images = self.classifier.photographs(images)
        if not is_all(targets):
            check_targets(targets, self.classifier.labels, len(images))
        size = whole_number(batch_size, "The batch size")
        explained = chosen_output(output, self.classifier)
        with counted() as cost:
            result = self._attribute(images, targets, explained, size, seed, progress)
        result.cost = cost
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
    ) -> Result:
        """Explain checked images; the cost is filled in by the caller."""

    def result(
        self,
        maps: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        values: Sequence[np.ndarray],
        output: Output,
        **more: Any,
    ) -> Result:
        """Put batches together in a result of ``kind``, with the fields that it has more."""
        made = self.kind(
            maps=np.concatenate(maps).astype(np.float32, copy=False),
            method=self.name,
            targets=np.concatenate(targets) if len(targets) else np.zeros(0, np.int32),
            values=np.concatenate(values).astype(np.float32, copy=False),
            output=output.name,
            signed=self.signed,
            **more,
        )
        return cast(Result, made)


def whole_number(value: Any, what: str, least: int = 1) -> int:
    """Return a size as an int, NumPy's whole numbers too.

    Args:
        value: As given.
        what: Begins the sentence of the error, such as ``"The batch size"``.
        least: Smallest number allowed.

    Raises:
        UsageError: If it is no whole number or too small.

    Example:
        >>> whole_number(np.int64(4), "The batch size")
        4
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool | np.bool_) or number < least:
        raise UsageError(f"{what} must be a whole number of at least {least}, not {value!r}.")
    return number


def batches(count: int, size: int) -> list[slice]:
    """Return the slices that cover ``count`` items in batches."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def even_batch(total: int, largest: int) -> int:
    """Return the batch size up to ``largest`` that covers ``total`` with the least padding.

    Example:
        >>> even_batch(20, 16), even_batch(32, 16), even_batch(5, 16)
        (10, 16, 5)
    """
    return -(-total // -(-total // largest))


def image_generator(seed: int, image: np.ndarray) -> np.random.Generator:
    """Return a random generator set by the seed and the image's content alone."""
    import zlib

    content = zlib.crc32(np.ascontiguousarray(image, dtype=np.float32).tobytes())
    return np.random.default_rng([seed, content])

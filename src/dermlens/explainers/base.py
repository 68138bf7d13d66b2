"""What every explanation method shares: arguments, batching, passes through the network."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, cast

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.attribution import Attribution, Cost, Result, counted, joined
from dermlens.explainers.folding import folded_logits
from dermlens.explainers.output import Output, chosen_output
from dermlens.explainers.stopping import stop_point
from dermlens.explainers.target import (
    Targets,
    check_targets,
    depend_on_answer,
    is_all,
    part_of,
    resolve_targets,
)
from dermlens.explainers.tracing import traced_once
from dermlens.labels import LabelSet
from dermlens.model.image_classifier import as_classifier

Progress = Callable[[int], None]
"""Called with the number of images finished since the last call."""
Family = Literal["activation", "gradient", "perturbation"]


class Network:
    """A Keras model called through one traced function for any batch, with counted passes.

    All networks of a model share that function.

    Args:
        model: Images (N, H, W, 3), RGB 0..255, to logits (N, C).
    """

    def __init__(self, model: Any) -> None:
        import tensorflow as tf

        self.model = model
        self.cost = Cost()
        pixels = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
        self._forward = traced_once(model, "logits", lambda images: call(model, images), [pixels])

    @property
    def traces(self) -> int:
        """How often the model was traced."""
        return self._forward.traces

    def logits(self, images: np.ndarray) -> Any:
        """Return float32 logits of float32 images as a tensor; adds to the cost."""
        stop_point()
        self.cost.pay(len(images))
        return self._forward(images)


def call(model: Any, images: Any) -> Any:
    """Call a model in inference mode: float32 pixels in, float32 logits out."""
    import tensorflow as tf

    return tf.cast(folded_logits(model, tf.cast(images, tf.float32)), tf.float32)


@dataclass(frozen=True)
class Request:
    """What one call of ``Explainer.attribute`` asks for, checked."""

    images: np.ndarray
    targets: Targets
    output: Output
    batch_size: int
    seed: int
    progress: Progress | None
    classes: LabelSet

    @property
    def every(self) -> bool:
        """Whether all classes are explained."""
        return is_all(self.targets)

    def batches(self, size: int | None = None) -> Iterator["Request"]:
        """Yield the request for up to ``size`` images at a time, as float32."""
        for part in batches(len(self.images), size or self.batch_size):
            images = self.images[part].astype(np.float32)
            yield replace(self, images=images, targets=part_of(self.targets, part))

    def goals(self, logits: np.ndarray) -> np.ndarray:
        """Return the class positions to explain in each image, int32 (n, T), from logits (n, C)."""
        if self.every:
            return np.tile(np.arange(len(self.classes), dtype=np.int32), (len(logits), 1))
        return resolve_targets(self.targets, logits, self.classes)[:, None]

    def finished(self, count: int = 1) -> None:
        """Report that images are finished."""
        if self.progress is not None:
            self.progress(count)


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
        images, labels = self.classifier.photographs(images), self.classifier.labels
        if not is_all(targets):
            check_targets(targets, labels, len(images))
        size = whole_number(batch_size, "The batch size")
        explained = chosen_output(output, self.classifier)
        with counted() as cost:
            asked = Request(images, targets, explained, size, seed, progress, labels)
            parts = list(self._parts(asked))
        none = np.zeros(0, np.int32)
        if is_all(targets):
            return replace(joined([replace(part, targets=none) for part in parts]), cost=cost)
        return replace(joined([part.of_class(0, part.targets) for part in parts]), cost=cost)

    @abstractmethod
    def _parts(self, asked: Request) -> Iterator[Result]:
        """Explain some of the images at a time, in order; see ``_part``."""

    def _part(
        self, asked: Request, maps: Any, goals: np.ndarray, values: np.ndarray, **more: Any
    ) -> Result:
        """Return the attribution of n images for T classes each: maps (n, T, H, W), else (n, T).

        ``more`` are the fields that ``kind`` has more, (n, T, ...) where they are per class.
        """
        made = self.kind(
            maps=np.asarray(maps, np.float32),
            method=self.name,
            targets=goals[:, 0],
            values=np.asarray(values, np.float32),
            output=asked.output.name,
            signed=self.signed,
            **more,
        )
        return cast(Result, made)

    def _answers(self, asked: Request) -> np.ndarray:
        """Return logits to resolve targets by; the model is asked only if they depend on it."""
        if depend_on_answer(asked.targets):
            return np.asarray(self.network.logits(asked.images))
        return np.zeros((len(asked.images), len(self.classes)), np.float32)


def whole_number(value: Any, what: str, least: int = 1) -> int:
    """Return a size, NumPy's whole numbers too, or raise UsageError, begun with ``what``."""
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
    """Return the batch size up to ``largest`` that covers ``total`` with the least padding."""
    return -(-total // -(-total // largest))


def filled(array: np.ndarray, size: int) -> np.ndarray:
    """Return an array padded to ``size`` rows by repeating its last."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def image_generator(seed: int, image: np.ndarray) -> np.random.Generator:
    """Return a random generator set by the seed and the image's content alone."""
    import zlib

    content = zlib.crc32(np.ascontiguousarray(image, dtype=np.float32).tobytes())
    return np.random.default_rng([seed, content])

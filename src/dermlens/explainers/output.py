"""The scalar that is explained, as an object of its own, apart from any method."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.target import class_position
from dermlens.model.calibration import Link
from dermlens.model.image_classifier import ImageClassifier


class Output(Protocol):
    """Turns logits into one number per image and target.

    Implementations work on float32 logits, whatever the precision of the model.
    """

    @property
    def name(self) -> str:
        """Name in results and files."""

    def values(self, logits: Any) -> Any:
        """Return the output of every class, (N, C), from logits (N, C), as TensorFlow tensors."""

    def weights(self, classes: int) -> np.ndarray | None:
        """Return the linear map from logits to outputs, (C logits, C targets), if there is one."""


@dataclass(frozen=True)
class Logit:
    """The logit of the target: the default, since it does not saturate."""

    name: str = "logit"

    def values(self, logits: Any) -> Any:
        return logits

    def weights(self, classes: int) -> np.ndarray:
        return np.eye(classes, dtype=np.float32)


@dataclass(frozen=True)
class Probability:
    """The probability of the target (not calibrated); its gradient also holds the other classes.

    Args:
        link: ``"softmax"`` or ``"sigmoid"``; None for the classifier's.
    """

    name: str = "probability"
    link: Link | None = None

    def values(self, logits: Any) -> Any:
        import tensorflow as tf

        return tf.sigmoid(logits) if self.link == "sigmoid" else tf.nn.softmax(logits)

    def weights(self, classes: int) -> None:
        """Return None: a probability is not linear in the logits."""
        return None


@dataclass(frozen=True)
class Contrast:
    """The logit of the target minus that of another class: why this and not that?

    Args:
        other: Position of the other class.
    """

    other: int
    name: str = "contrast"

    def values(self, logits: Any) -> Any:
        return logits - logits[:, self.other : self.other + 1]

    def weights(self, classes: int) -> np.ndarray:
        matrix = np.eye(classes, dtype=np.float32)
        matrix[self.other] -= 1.0
        return matrix


def chosen_output(output: Output | None, classifier: ImageClassifier) -> Output:
    """Return what is explained: the logit where nothing is said, with the classifier's link."""
    if isinstance(output, Probability) and output.link is None:
        return Probability(link=classifier.link)
    return Logit() if output is None else output


def parse_output(text: str, classifier: ImageClassifier) -> Output:
    """Turn ``"logit"``, ``"probability"`` or ``"contrast:nv"`` into an output.

    Raises:
        UsageError: If the text has another form or the class is unknown.
    """
    kind, _, other = text.partition(":")
    if kind == "logit" and not other:
        return Logit()
    if kind == "probability" and not other:
        return Probability(link=classifier.link)
    if kind == "contrast" and other:
        return Contrast(class_position(other, classifier.labels))
    raise UsageError(
        f"Unknown output {text!r}. Use logit, probability, or contrast:CODE such as contrast:nv."
    )

"""What a model says about an image, in numbers and in words: the same on every surface.

Three parts: the most probable class, the classes that cannot be excluded, the flags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.labels import MALIGNANT, LabelSet
from dermlens.model.image_classifier import ImageClassifier
from dermlens.report.facts import NOT_CALIBRATED, class_name, percent

NO_SETS = (
    "this bundle carries no prediction sets, so what cannot be excluded is not known. "
    "'dermlens pack BUNDLE DATA' fits them."
)


@dataclass(frozen=True)
class Answer:
    """What a model says about one image.

    Attributes:
        logits: float32 (C,).
        probabilities: float64 (C,).
        predicted: Position of the most probable class.
        prediction_set: Class positions that cannot be excluded, most probable first; None where
            the model carries no prediction sets.
        flags: Whether each operating point is reached, by its name.
        calibrated: Whether the probabilities were calibrated.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    predicted: int
    prediction_set: tuple[int, ...] | None
    flags: Mapping[str, bool]
    calibrated: bool

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return everything by class codes, as JSON types."""
        inside = self.prediction_set
        return {
            "predicted": classes[self.predicted],
            "prediction_set": None if inside is None else [classes[k] for k in inside],
            "flags": dict(self.flags),
            "calibrated": self.calibrated,
            "probabilities": dict(zip(classes, map(float, self.probabilities), strict=True)),
            "logits": dict(zip(classes, map(float, self.logits), strict=True)),
        }


def answer_of(classifier: ImageClassifier, logits: np.ndarray) -> Answer:
    """Return what logits (C,) of one image say."""
    calibration = classifier.calibration
    probabilities = calibration.probabilities(logits[None])
    return Answer(
        logits,
        probabilities[0],
        int(logits.argmax()),
        calibration.set_of(probabilities[0]),
        {name: bool(up[0]) for name, up in calibration.flags(probabilities).items()},
        classifier.calibrated,
    )


def answer_text(
    labels: LabelSet,
    probabilities: Mapping[str, float],
    prediction_set: Sequence[str] | None,
    flags: Mapping[str, bool],
    *,
    calibrated: bool = True,
) -> str:
    """Return the answer in sentences.

    Example:
        >>> from dermlens.labels import HAM10000
        >>> text = answer_text(HAM10000, {"mel": 0.02, "nv": 0.98}, ["nv"], {"melanoma": False})
        >>> text.replace("\\u00a0", " ")
        'Most probable: melanocytic nevus (nv), 98 %. Cannot be excluded: nothing else.'
    """

    def said(code: str) -> str:
        return f"{class_name(labels, code)}, {percent(probabilities[code])}"

    order = sorted(probabilities, key=lambda code: -probabilities[code])
    note = "" if calibrated else f" ({NOT_CALIBRATED})"
    text = f"Most probable: {said(order[0])}{note}."
    if prediction_set is not None:
        others = ", ".join(said(code) for code in order[1:] if code in prediction_set)
        text += f" Cannot be excluded: {others or 'nothing else'}."
    raised = ["malignancy" if name == MALIGNANT else name for name, up in flags.items() if up]
    return f"{text} Flagged: {' and '.join(raised)}." if raised else text

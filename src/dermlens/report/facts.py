"""What a model says about an image, the numbers of a summary, and both in words.

An answer has three parts: the most probable class, what cannot be excluded, the flags.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import mean
from typing import Any

import numpy as np

from dermlens.labels import MALIGNANT, LabelSet
from dermlens.model.image_classifier import ImageClassifier

NO_BREAK = "\u00a0"
"""Keeps a number and its unit on one line."""

NOT_CALIBRATED = "not calibrated"

NO_SETS = (
    "this bundle carries no prediction sets, so what cannot be excluded is not known. "
    "'dermlens pack BUNDLE DATA' fits them."
)


@dataclass(frozen=True)
class Words:
    """What things are called where a label set is spoken of."""

    one: str = "class"
    several: str = "classes"
    image: str = "image"
    lesion: str = "object"
    around: str = "background"

    @property
    def zones(self) -> dict[str, str]:
        """Where a zone of ``lesion.zones`` lies, by its name."""
        return {
            "core": f"in the core of the {self.lesion}",
            "border": "along its border",
            "skin": f"on the {self.around}",
            "ring": "on the image's border ring",
        }


_OF_SKIN = Words("diagnosis", "diagnoses", "dermatoscopic image", "lesion", "surrounding skin")


def of_skin(labels: LabelSet) -> bool:
    """Tell whether classes are diagnoses of skin lesions, as far as their label set says."""
    return bool(labels.flags)


def words(labels: LabelSet) -> Words:
    """Return what to call the classes of a label set and what they are told by."""
    return _OF_SKIN if of_skin(labels) else Words()


@dataclass(frozen=True)
class ContrastFacts:
    """The numbers of one contrast: the target against another class."""

    other: str
    for_other: Mapping[str, float]
    discrimination: Mapping[str, float]
    zone: str = ""


@dataclass(frozen=True)
class Facts:
    """The numbers that a summary is made of. Shares are 0..1; NaN or empty means not known."""

    labels: LabelSet
    target: str
    predicted: str
    other: str
    probabilities: Mapping[str, float]
    odds: float
    prediction_set: Sequence[str] | None = None
    flags: Mapping[str, bool] = field(default_factory=dict)
    inside: Mapping[str, float] = field(default_factory=dict)
    lesion_area: float = float("nan")
    zones: Mapping[str, float] = field(default_factory=dict)
    zone_areas: Mapping[str, float] = field(default_factory=dict)
    ring: Mapping[str, float] = field(default_factory=dict)
    ring_area: float = float("nan")
    agreement: float = float("nan")
    closest: tuple[str, str, float] | None = None
    farthest: tuple[str, str, float] | None = None
    against: Mapping[str, float] = field(default_factory=dict)
    against_zone: str = ""
    contrasts: tuple[ContrastFacts, ...] = ()
    scale_agreement: float = float("nan")
    convergence_delta: float = float("nan")
    r2: float = float("nan")
    calibrated: bool = True
    synthetic: bool = False
    titles: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> Words:
        """What to call the classes and what they are told by."""
        return words(self.labels)

    @property
    def enrichment(self) -> float:
        """Evidence per pixel inside the outline over that of the image; NaN if not known."""
        if not self.inside or not self.lesion_area > 0:
            return float("nan")
        return mean(self.inside.values()) / self.lesion_area

    @property
    def ring_enrichment(self) -> float:
        """Evidence per pixel on the border ring over that of the image; NaN if not known."""
        if not self.ring or not self.ring_area > 0:
            return float("nan")
        return mean(self.ring.values()) / self.ring_area

    def title(self, method: str) -> str:
        """Return a method's name for people."""
        return self.titles.get(method, method)

    def named(self, code: str) -> str:
        """Return a class for a sentence."""
        return class_name(self.labels, code)


def class_name(labels: LabelSet, code: str) -> str:
    """Return a class for a sentence: its name, in lower case unless it is an acronym.

    Example:
        >>> from dermlens.labels import HAM10000, named_classes
        >>> class_name(HAM10000, "mel"), class_name(named_classes(["Cat"]), "Cat")
        ('melanoma', 'Cat')
    """
    name = labels.of(code).name
    if name == code:
        return code
    return name if name[:2].isupper() else name[0].lower() + name[1:]


def percent(share: float) -> str:
    """Write a share for people; never a bare 0 % or 100 % for what is neither.

    Example:
        >>> shares = (0.724, 0.004, 0.0, 0.9999, float("nan"))
        >>> [percent(share).replace(NO_BREAK, " ") for share in shares]
        ['72 %', 'under 1 %', '0 %', 'over 99 %', 'unknown']
    """
    if not isfinite(share):
        return "unknown"
    rounded = f"{100 * share:.0f}"
    if rounded == "0" and share > 0:
        rounded = "under 1"
    elif rounded == "100" and share < 1:
        rounded = "over 99"
    return f"{rounded}{NO_BREAK}%"


def counted(number: int, noun: str, several: str = "") -> str:
    """Return a number of things in words.

    Example:
        >>> counted(1, "method"), counted(2, "method"), counted(2, "diagnosis", "diagnoses")
        ('1 method', '2 methods', '2 diagnoses')
    """
    return f"{number:,} {noun if number == 1 else several or f'{noun}s'}"


def title(name: str) -> str:
    """Return a name with a capital letter at its start."""
    return name[:1].upper() + name[1:]


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
        'Most probable: melanocytic nevus, 98 %. Cannot be excluded: nothing else.'
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

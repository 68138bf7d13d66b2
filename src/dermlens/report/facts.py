"""The numbers that a summary is made of, and how they are written for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import mean

from dermlens.labels import LabelSet

NO_BREAK = "\u00a0"
"""Keeps a number and its unit on one line."""

NOT_CALIBRATED = "not calibrated"


@dataclass(frozen=True)
class Words:
    """What things are called where a label set is spoken of.

    Attributes:
        one: A class.
        several: Classes.
        image: What the model takes.
        lesion: What the image shows.
        around: What lies around it, after "on".
    """

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
    """The numbers of one contrast: the target against another class.

    Attributes:
        other: Code of the other class.
        for_other: Share of the contrast that speaks for the other, by method; at least one.
        discrimination: Of the evidence for target and other, by method.
        zone: Zone with most evidence for the other per pixel; empty without outline.
    """

    other: str
    for_other: Mapping[str, float]
    discrimination: Mapping[str, float]
    zone: str = ""


@dataclass(frozen=True)
class Facts:
    """The numbers that a summary is made of. Shares are 0..1; NaN or empty means not known.

    Attributes:
        labels: The classes.
        target: Code of the explained class.
        predicted: Code of the most probable class.
        other: Code of the class it is contrasted with first.
        probabilities: By code.
        odds: Probability of the target over that of the other; below 1 the other is more probable.
        prediction_set: Codes that cannot be excluded, most probable first; None if not known.
        flags: Whether each operating point is reached, by its name.
        inside: Share of positive evidence inside the outline, by method; empty without outline.
        lesion_area: Share of the image inside the outline; NaN without one.
        zones: Mean over methods of the share of positive evidence, by zone; empty without outline.
        zone_areas: Share of the image, by zone.
        ring: Share of positive evidence on the image border ring, by method.
        ring_area: Share of the image that the ring covers.
        agreement: Mean rank correlation of methods of different families.
        closest: The two methods that agree most, and how far; None with one method.
        farthest: The two methods that agree least, and how far.
        against: Share of all evidence that speaks against the target, by signed method.
        against_zone: Zone with most evidence against the target per pixel; empty without outline.
        contrasts: With the runner-up, then with any chosen class.
        scale_agreement: Mean rank correlation between kinds of scale.
        convergence_delta: Of Integrated Gradients, relative.
        r2: Of LIME.
        calibrated: Whether the probabilities were calibrated.
        synthetic: True if the model was trained on drawn images only.
        titles: Names of methods for people.
    """

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
    """Return a class for a sentence: name, in lower case unless it is an acronym, and code.

    Example:
        >>> from dermlens.labels import HAM10000, named_classes
        >>> class_name(HAM10000, "mel"), class_name(named_classes(["Cat"]), "Cat")
        ('melanoma (mel)', 'Cat')
    """
    name = labels.of(code).name
    if name == code:
        return code
    return f"{name if name[:2].isupper() else name[0].lower() + name[1:]} ({code})"


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


def title(name: str) -> str:
    """Return a name with a capital letter at its start."""
    return name[:1].upper() + name[1:]

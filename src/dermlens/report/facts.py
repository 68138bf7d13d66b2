"""The numbers that a summary is made of, and how they are written for people."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean

from dermlens.diagnoses import CODES, by_code

NO_BREAK = "\u00a0"
"""Keeps a number and its unit on one line."""

ZONE_WORDS = {
    "core": "in the core of the lesion",
    "border": "along its border",
    "skin": "on the surrounding skin",
    "ring": "on the image's border ring",
}


@dataclass(frozen=True)
class ContrastFacts:
    """The numbers of one contrast: the target against another diagnosis.

    Attributes:
        other: Code of the other diagnosis.
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
        target: Code of the explained diagnosis.
        predicted: Code of the most probable diagnosis.
        other: Code of the diagnosis it is contrasted with first.
        probabilities: Calibrated, by code.
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
        contrasts: With the runner-up, then with any chosen diagnosis.
        scale_agreement: Mean rank correlation between kinds of scale.
        convergence_delta: Of Integrated Gradients, relative.
        r2: Of LIME.
        synthetic: True if the model was trained on drawn images only.
        titles: Names of methods for people.
    """

    target: str
    predicted: str
    other: str
    probabilities: Mapping[str, float]
    odds: float
    prediction_set: tuple[str, ...] | None = None
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
    synthetic: bool = False
    titles: Mapping[str, str] = field(default_factory=dict)

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


def diagnosis_name(code: str) -> str:
    """Return a diagnosis for a sentence: name in lower case and code.

    Example:
        >>> diagnosis_name("mel")
        'melanoma (mel)'
    """
    if code not in CODES:
        return code
    name = by_code(code).name
    return f"{name[0].lower()}{name[1:]} ({code})"


def percent(share: float) -> str:
    """Write a share for people.

    Example:
        >>> [percent(share).replace(NO_BREAK, " ") for share in (0.724, 0.004, 0.0)]
        ['72 %', 'under 1 %', '0 %']
    """
    rounded = f"{100 * share:.0f}"
    return f"under 1{NO_BREAK}%" if share > 0 and rounded == "0" else f"{rounded}{NO_BREAK}%"

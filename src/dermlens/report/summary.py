"""What the numbers of a comparison mean, in sentences."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from statistics import mean, median

from dermlens.report.facts import ContrastFacts, Facts, answer_text, percent
from dermlens.report.trust import HIGH_AGREEMENT, LOW_AGREEMENT, Doubt, doubts


@dataclass(frozen=True)
class Summary:
    """Sentences on what the explanation says, and doubts."""

    sentences: Mapping[str, str]
    doubts: tuple[Doubt, ...]

    @property
    def verdict(self) -> str:
        """One sentence on whether the explanation may be relied on."""
        if not self.doubts:
            return (
                "No check gave a reason to distrust this explanation. That is no proof that it is "
                "right."
            )
        one = len(self.doubts) == 1
        reasons = "1 check gives a reason" if one else f"{len(self.doubts)} checks give reasons"
        return f"{reasons} not to rely on this explanation as it stands."


def summarize(facts: Facts) -> Summary:
    """Return the sentences and warnings that the numbers call for."""
    made = {
        "diagnosis": _diagnosis(facts),
        "evidence": _evidence(facts),
        "place": _place(facts),
        "agreement": _agreement(facts),
        "against": _against(facts),
        **{f"contrast_{one.other}": _contrast(facts, one) for one in facts.contrasts},
    }
    return Summary({topic: text for topic, text in made.items() if text}, doubts(facts))


def _diagnosis(facts: Facts) -> str:
    text = answer_text(
        facts.labels,
        facts.probabilities,
        facts.prediction_set,
        facts.flags,
        calibrated=facts.calibrated,
    )
    shown, other = (
        f"{facts.named(code)}, {percent(facts.probabilities[code])}"
        for code in (facts.target, facts.other)
    )
    if facts.target != facts.predicted:
        text += f" Explained here is {shown}."
    return f"{text} It is contrasted with {other}."


def _evidence(facts: Facts) -> str:
    target = facts.named(facts.target)
    if not facts.inside:
        if not facts.ring:
            return ""
        return (
            f"No outline of the {facts.words.lesion} was given, so it is not known how much of the "
            f"evidence for "
            f"{target} lies inside. On the image's border ring, {percent(facts.ring_area)} of the "
            f"image, lies {percent(mean(facts.ring.values()))} of it."
        )
    inside, enrichment = mean(facts.inside.values()), facts.enrichment
    text = (
        f"On average {percent(inside)} of the evidence for {target} lies inside the outline, which "
        f"covers {percent(facts.lesion_area)} of the image: {enrichment:.1f} times its share"
    )
    if len(facts.inside) < 2:
        return text + "."
    low = min(facts.inside, key=facts.inside.__getitem__)
    high = max(facts.inside, key=facts.inside.__getitem__)
    return (
        f"{text} (from {percent(facts.inside[low])} by {facts.title(low)} to "
        f"{percent(facts.inside[high])} by {facts.title(high)})."
    )


def _place(facts: Facts) -> str:
    if not facts.zones:
        return ""
    parts = [
        f"{percent(facts.zones[zone])} {place} ({percent(facts.zone_areas[zone])} of the image)"
        for zone, place in facts.words.zones.items()
    ]
    return f"It lies {', '.join(parts[:-1])} and {parts[-1]}."


def _agreement(facts: Facts) -> str:
    if facts.closest is None or facts.farthest is None:
        return ""
    pairs = [
        f"{facts.title(one)} and {facts.title(two)} ({value:.2f})"
        for one, two, value in (facts.closest, facts.farthest)
    ]
    ends = f"closest are {pairs[0]}, farthest apart {pairs[1]}"
    if isnan(facts.agreement):
        return f"All methods are of one family, so their agreement proves little: {ends}."
    words = "hardly agree" if facts.agreement < LOW_AGREEMENT else "agree in part"
    words = "agree well" if facts.agreement >= HIGH_AGREEMENT else words
    return (
        f"Methods of different families {words}: mean rank correlation {facts.agreement:.2f} "
        f"(1 same order, 0 unrelated, -1 opposite); {ends}."
    )


def _against(facts: Facts) -> str:
    if not facts.against:
        return ""
    where = _densest(facts, facts.against_zone)
    count = len(facts.against)
    methods = "the one method" if count == 1 else f"the {count} methods"
    return (
        f"By {methods} that can tell, {percent(mean(facts.against.values()))} of all evidence "
        f"speaks against {facts.named(facts.target)}{where}."
    )


def _contrast(facts: Facts, one: ContrastFacts) -> str:
    other = facts.named(one.other)
    where = _densest(facts, one.zone)
    return (
        f"Where {facts.named(facts.target)} and {other} differ, "
        f"{percent(mean(one.for_other.values()))} of the evidence speaks for {other}{where}. "
        f"{percent(median(one.discrimination.values()))} of the evidence for the two lies in "
        f"different places (median over methods; {percent(0)} same places, {percent(1)} no place "
        "in common)."
    )


def _densest(facts: Facts, zone: str) -> str:
    return f", most densely {facts.words.zones[zone]}" if zone else ""

"""When not to trust an explanation: checks on the numbers of a comparison.

Every doubt names its number and its threshold. The thresholds are rules of thumb with a stated
reason; they were not validated on clinical outcomes. Comparisons are written so that a number
that is not known (NaN) never raises a doubt.
"""

from dataclasses import dataclass
from statistics import median

from dermlens.report.facts import ContrastFacts, Facts, diagnosis_name, percent

LOW_AGREEMENT = 0.3
"""Mean rank correlation between families: below, two maps share under a tenth (0.3^2) of what
orders their pixels, so which map is looked at decides what is seen."""
HIGH_AGREEMENT = 0.6
"""Above, they share more than a third; only used to choose the word."""
LARGE_COMPLETENESS_GAP = 0.2
"""Integrated Gradients must account for the whole change of score; a fifth missing is as much as a
strong structure contributes."""
LOW_R2 = 0.5
"""Below, LIME's linear model leaves most of the score's variation unexplained, so its weights do
not describe the model."""
RING_ENRICHMENT = 1.0
"""Evidence per pixel on the image's border ring over that of the whole image: even a map without
any preference stays at 1, and lesions rarely lie there."""
NEAR_TIE_ODDS = 1.5
"""Probability of the diagnosis over that of the other: below three to two, small changes of the
photograph can turn the answer."""
CHANCE_ENRICHMENT = 1.0
"""Evidence per pixel inside the lesion over that of the whole image: at 1 or below, the lesion
counts no more than the skin around it."""
LOW_DISCRIMINATION = 0.1
"""Share of evidence that lies elsewhere for the other diagnosis: below a tenth, the maps of both
diagnoses look alike and do not show why one was preferred."""
LOW_SCALE_AGREEMENT = 0.3
"""Mean rank correlation between kinds of scale; the same reason as ``LOW_AGREEMENT``."""


@dataclass(frozen=True)
class Doubt:
    """A reason not to trust the explanation.

    Attributes:
        name: Short name for files.
        text: Sentence with the number and the threshold.
        value: The number; NaN where it is no number.
        threshold: What it was compared with.
    """

    name: str
    text: str
    value: float = float("nan")
    threshold: float = float("nan")


def doubts(facts: Facts) -> tuple[Doubt, ...]:
    """Return the reasons not to trust an explanation, in a fixed order; empty if none."""
    found = (
        _not_predicted(facts),
        _near_tie(facts),
        _disagreeing(facts),
        _outside(facts),
        _on_ring(facts),
        _incomplete(facts),
        _not_linear(facts),
        *(_not_discriminating(facts, one) for one in facts.contrasts),
        _scales_differ(facts),
        _drawn_images(facts),
    )
    return tuple(doubt for doubt in found if doubt is not None)


def _not_predicted(facts: Facts) -> Doubt | None:
    if facts.target == facts.predicted:
        return None
    return Doubt(
        "not_the_most_probable",
        f"The explained diagnosis {diagnosis_name(facts.target)} is not the most probable one, "
        f"{diagnosis_name(facts.predicted)}: the maps show what would speak for it.",
    )


def _near_tie(facts: Facts) -> Doubt | None:
    # Where the target is not the most probable one, the other is preferred: that is no tie.
    if facts.target != facts.predicted or not facts.odds < NEAR_TIE_ODDS:
        return None
    return Doubt(
        "near_tie",
        f"Near tie: {diagnosis_name(facts.target)} is only {facts.odds:.2f} times as probable as "
        f"{diagnosis_name(facts.other)} (threshold {NEAR_TIE_ODDS:g}). Look at both diagnoses' "
        "maps.",
        facts.odds,
        NEAR_TIE_ODDS,
    )


def _disagreeing(facts: Facts) -> Doubt | None:
    if not facts.agreement < LOW_AGREEMENT:
        return None
    return Doubt(
        "low_agreement",
        f"The methods disagree: mean rank correlation {facts.agreement:.2f} between families "
        f"(threshold {LOW_AGREEMENT:g}). No single map should be shown as the reason.",
        facts.agreement,
        LOW_AGREEMENT,
    )


def _outside(facts: Facts) -> Doubt | None:
    value = facts.enrichment
    if not value <= CHANCE_ENRICHMENT:
        return None
    return Doubt(
        "outside_the_lesion",
        f"The lesion counts no more than the skin around it: evidence per pixel inside the "
        f"outline is {value:.2f} times that of the image (threshold {CHANCE_ENRICHMENT:g}).",
        value,
        CHANCE_ENRICHMENT,
    )


def _on_ring(facts: Facts) -> Doubt | None:
    value = facts.ring_enrichment
    if not value > RING_ENRICHMENT:
        return None
    return Doubt(
        "border_ring",
        f"Evidence lies on the image's border, where dark corners, rulers and gel are: per pixel "
        f"{value:.2f} times that of the image (threshold {RING_ENRICHMENT:g}).",
        value,
        RING_ENRICHMENT,
    )


def _incomplete(facts: Facts) -> Doubt | None:
    if not facts.convergence_delta > LARGE_COMPLETENESS_GAP:
        return None
    missing = percent(facts.convergence_delta) if facts.convergence_delta <= 1 else "more than 100 %"
    return Doubt(
        "convergence_delta",
        f"Integrated Gradients misses {missing} of the change of score it should account for "
        f"(threshold {percent(LARGE_COMPLETENESS_GAP)}). Its map is not reliable here.",
        facts.convergence_delta,
        LARGE_COMPLETENESS_GAP,
    )


def _not_linear(facts: Facts) -> Doubt | None:
    if not facts.r2 < LOW_R2:
        return None
    return Doubt(
        "low_r2",
        f"LIME's linear model explains only R² = {facts.r2:.2f} of the score's variation "
        f"(threshold {LOW_R2:g}). Its map does not describe the model here.",
        facts.r2,
        LOW_R2,
    )


def _not_discriminating(facts: Facts, one: ContrastFacts) -> Doubt | None:
    value = median(one.discrimination.values())
    if not value < LOW_DISCRIMINATION:
        return None
    return Doubt(
        f"low_discrimination_{one.other}",
        f"The maps for {diagnosis_name(facts.target)} and {diagnosis_name(one.other)} look "
        f"alike: only {percent(value)} of the evidence lies elsewhere (threshold "
        f"{percent(LOW_DISCRIMINATION)}). They do not show why one was preferred.",
        value,
        LOW_DISCRIMINATION,
    )


def _scales_differ(facts: Facts) -> Doubt | None:
    if not facts.scale_agreement < LOW_SCALE_AGREEMENT:
        return None
    return Doubt(
        "scales_differ",
        f"Scales tell different stories: mean rank correlation {facts.scale_agreement:.2f} between "
        f"depths, patches and superpixels (threshold {LOW_SCALE_AGREEMENT:g}).",
        facts.scale_agreement,
        LOW_SCALE_AGREEMENT,
    )


def _drawn_images(facts: Facts) -> Doubt | None:
    if not facts.synthetic:
        return None
    return Doubt(
        "synthetic_model",
        "The model was trained on drawn images only. It has never seen skin.",
    )

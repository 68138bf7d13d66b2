"""When not to trust an explanation: checks on the numbers of a comparison.

Every doubt names its number and its threshold. The thresholds are rules of thumb with a stated
reason; they were not validated on clinical outcomes. Comparisons are written so that a number
that is not known (NaN) never raises a doubt.
"""

from dataclasses import dataclass
from statistics import median

from dermlens.report.facts import Facts, of_skin, percent

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
any preference stays at 1, and what is photographed rarely lies there."""
NEAR_TIE_ODDS = 1.5
"""Probability of the class over that of the other: below three to two, small changes of the
photograph can turn the answer."""
CHANCE_ENRICHMENT = 1.0
"""Evidence per pixel inside the lesion over that of the whole image: at 1 or below, the lesion
counts no more than what is around it."""
LOW_DISCRIMINATION = 0.1
"""Share of evidence that lies elsewhere for the other class: below a tenth, the maps of both
look alike and do not show why one was preferred."""
LOW_SCALE_AGREEMENT = 0.3
"""Mean rank correlation between kinds of scale; the same reason as ``LOW_AGREEMENT``."""
_ON_BORDER = ", where dark corners, rulers and gel are"


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
    found: list[Doubt] = []

    def check(crossed: bool, name: str, value: float, threshold: float, text: str) -> None:
        if crossed:
            found.append(Doubt(name, text, value, threshold))

    target, other, words = facts.named(facts.target), facts.named(facts.other), facts.words
    if facts.target != facts.predicted:
        found.append(
            Doubt(
                "not_the_most_probable",
                f"The explained {words.one} {target} is not the most probable one, "
                f"{facts.named(facts.predicted)}: the maps show what would speak for it.",
            )
        )
    else:
        # Where the target is not the most probable one, the other is preferred: that is no tie.
        check(
            facts.odds < NEAR_TIE_ODDS,
            "near_tie",
            facts.odds,
            NEAR_TIE_ODDS,
            f"Near tie: {target} is only {facts.odds:.2f} times as probable as {other} (threshold "
            f"{NEAR_TIE_ODDS:g}). Look at the maps of both {words.several}.",
        )
    check(
        facts.agreement < LOW_AGREEMENT,
        "low_agreement",
        facts.agreement,
        LOW_AGREEMENT,
        f"The methods disagree: mean rank correlation {facts.agreement:.2f} between families "
        f"(threshold {LOW_AGREEMENT:g}). No single map should be shown as the reason.",
    )
    check(
        facts.enrichment <= CHANCE_ENRICHMENT,
        "outside_the_lesion",
        facts.enrichment,
        CHANCE_ENRICHMENT,
        f"The {words.lesion} counts no more than the {words.around}: evidence per pixel inside the "
        f"outline is {facts.enrichment:.2f} times that of the image (threshold "
        f"{CHANCE_ENRICHMENT:g}).",
    )
    check(
        facts.ring_enrichment > RING_ENRICHMENT,
        "border_ring",
        facts.ring_enrichment,
        RING_ENRICHMENT,
        f"Evidence lies on the image's border{_ON_BORDER * of_skin(facts.labels)}: per pixel "
        f"{facts.ring_enrichment:.2f} times that of the image (threshold {RING_ENRICHMENT:g}).",
    )
    gap = facts.convergence_delta
    check(
        gap > LARGE_COMPLETENESS_GAP,
        "convergence_delta",
        gap,
        LARGE_COMPLETENESS_GAP,
        f"Integrated Gradients misses {percent(gap) if gap <= 1 else 'more than 100 %'} of the "
        f"change of score it should account for (threshold {percent(LARGE_COMPLETENESS_GAP)}). Its "
        "map is not reliable here.",
    )
    check(
        facts.r2 < LOW_R2,
        "low_r2",
        facts.r2,
        LOW_R2,
        f"LIME's linear model explains only R² = {facts.r2:.2f} of the score's variation "
        f"(threshold {LOW_R2:g}). Its map does not describe the model here.",
    )
    for one in facts.contrasts:
        apart = median(one.discrimination.values())
        check(
            apart < LOW_DISCRIMINATION,
            f"low_discrimination_{one.other}",
            apart,
            LOW_DISCRIMINATION,
            f"The maps for {target} and {facts.named(one.other)} look alike: only "
            f"{percent(apart)} of the evidence lies elsewhere (threshold "
            f"{percent(LOW_DISCRIMINATION)}). They do not show why one was preferred.",
        )
    check(
        facts.scale_agreement < LOW_SCALE_AGREEMENT,
        "scales_differ",
        facts.scale_agreement,
        LOW_SCALE_AGREEMENT,
        f"Scales tell different stories: mean rank correlation {facts.scale_agreement:.2f} between "
        f"depths, patches and superpixels (threshold {LOW_SCALE_AGREEMENT:g}).",
    )
    if facts.synthetic:
        text = "The model was trained on drawn images only. It has never seen a photograph."
        found.append(Doubt("synthetic_model", text))
    return tuple(found)

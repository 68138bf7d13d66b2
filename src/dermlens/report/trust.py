"""When not to trust an explanation: checks on the numbers of a comparison.

Every doubt names its number and its threshold. The thresholds are rules of thumb with a stated
reason; they were not validated on clinical outcomes. Comparisons are written so that a number
that is not known (NaN) never raises a doubt.
"""

from dataclasses import dataclass
from math import nan
from operator import gt, le, lt
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
    """A reason not to trust the explanation."""

    name: str
    text: str
    value: float = float("nan")
    threshold: float = float("nan")


def doubts(facts: Facts) -> tuple[Doubt, ...]:
    """Return the reasons not to trust an explanation, in a fixed order; empty if none."""
    found = []
    target, other, words = facts.named(facts.target), facts.named(facts.other), facts.words
    chosen = facts.target == facts.predicted
    if not chosen:
        found.append(
            Doubt(
                "not_the_most_probable",
                f"The explained {words.one} {target} is not the most probable one, "
                f"{facts.named(facts.predicted)}: the maps show what would speak for it.",
            )
        )
    gap = facts.convergence_delta
    apart = {one.other: median(one.discrimination.values()) for one in facts.contrasts}
    numbers = (
        # Where the target is not the most probable one, the other is preferred: that is no tie.
        ("near_tie", facts.odds if chosen else nan, lt, NEAR_TIE_ODDS),
        ("low_agreement", facts.agreement, lt, LOW_AGREEMENT),
        ("outside_the_lesion", facts.enrichment, le, CHANCE_ENRICHMENT),
        ("border_ring", facts.ring_enrichment, gt, RING_ENRICHMENT),
        ("convergence_delta", gap, gt, LARGE_COMPLETENESS_GAP),
        ("low_r2", facts.r2, lt, LOW_R2),
        *((f"low_discrimination_{k}", v, lt, LOW_DISCRIMINATION) for k, v in apart.items()),
        ("scales_differ", facts.scale_agreement, lt, LOW_SCALE_AGREEMENT),
    )
    texts = {
        "near_tie": f"Near tie: {target} is only {facts.odds:.2f} times as probable as {other} "
        f"(threshold {NEAR_TIE_ODDS:g}). Look at the maps of both {words.several}.",
        "low_agreement": f"The methods disagree: mean rank correlation {facts.agreement:.2f} "
        f"between families (threshold {LOW_AGREEMENT:g}). No single map should be shown as the "
        "reason.",
        "outside_the_lesion": f"The {words.lesion} counts no more than the {words.around}: "
        f"evidence per pixel inside the outline is {facts.enrichment:.2f} times that of the image "
        f"(threshold {CHANCE_ENRICHMENT:g}).",
        "border_ring": f"Evidence lies on the image's border{_ON_BORDER * of_skin(facts.labels)}: "
        f"per pixel {facts.ring_enrichment:.2f} times that of the image (threshold "
        f"{RING_ENRICHMENT:g}).",
        "convergence_delta": "Integrated Gradients misses "
        f"{percent(gap) if gap <= 1 else 'more than 100 %'} of the change of score it should "
        f"account for (threshold {percent(LARGE_COMPLETENESS_GAP)}). Its map is not reliable here.",
        "low_r2": f"LIME's linear model explains only R² = {facts.r2:.2f} of the score's variation "
        f"(threshold {LOW_R2:g}). Its map does not describe the model here.",
        "scales_differ": "Scales tell different stories: mean rank correlation "
        f"{facts.scale_agreement:.2f} between depths, patches and superpixels (threshold "
        f"{LOW_SCALE_AGREEMENT:g}).",
    }
    for code, value in apart.items():
        texts[f"low_discrimination_{code}"] = (
            f"The maps for {target} and {facts.named(code)} look alike: only {percent(value)} of "
            f"the evidence lies elsewhere (threshold {percent(LOW_DISCRIMINATION)}). They do not "
            "show why one was preferred."
        )
    found += [
        Doubt(name, texts[name], value, threshold)
        for name, value, crossed, threshold in numbers
        if crossed(value, threshold)
    ]
    if facts.synthetic:
        text = "The model was trained on drawn images only. It has never seen a photograph."
        found.append(Doubt("synthetic_model", text))
    return tuple(found)

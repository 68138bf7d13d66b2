"""What every metric declares about itself, and the one table of all of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from dermlens.errors import UsageError

Family = Literal[
    "faithfulness",
    "localization",
    "robustness",
    "complexity",
    "randomization",
    "consistency",
]
Direction = Literal["higher", "lower"]

FAMILIES: tuple[Family, ...] = (
    "faithfulness",
    "localization",
    "robustness",
    "complexity",
    "randomization",
    "consistency",
)


@dataclass(frozen=True)
class Metric:
    """One metric of explanations.

    Attributes:
        name: Column in tables and files.
        title: Name for people.
        family: What kind of quality it measures.
        direction: Whether higher or lower values are better.
        low: Lowest possible value.
        high: Highest possible value; infinity where there is none.
        citation: Where it was published.
        sentence: What it measures, in one plain sentence.
        ranked: Whether it takes part in rankings. Metrics that a map without any content can
            win (a uniform map is perfectly robust) are reported but do not rank.
    """

    name: str
    title: str
    family: Family
    direction: Direction
    low: float
    high: float
    citation: str
    sentence: str
    ranked: bool = True

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return 1 if self.direction == "higher" else -1


_INFINITE = float("inf")
_PETSIUK = "Petsiuk, Das & Saenko, BMVC 2018"
_YEH = "Yeh et al., NeurIPS 2019"
_ARRAS = "Arras, Osman & Samek, Information Fusion 2022"
_ADEBAYO = "Adebayo et al., NeurIPS 2018"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "deletion", "Deletion AUC", "faithfulness", "lower", 0, 1, _PETSIUK,
            "Mean probability of the diagnosis while the most important pixels are replaced by "
            "skin color, most important first.",
        ),
        Metric(
            "insertion", "Insertion AUC", "faithfulness", "higher", 0, 1, _PETSIUK,
            "Mean probability of the diagnosis while a blurred image gets its pixels back, most "
            "important first.",
        ),
        Metric(
            "road", "ROAD", "faithfulness", "higher", -0.5, 0.5, "Rong et al., ICML 2022",
            "How much more the probability falls when the most important pixels are imputed than "
            "when the least important are, half the difference.",
        ),
        Metric(
            "infidelity", "Infidelity", "faithfulness", "lower", 0, 1, _YEH,
            "Share of the score's reaction to covered squares that the map, optimally scaled, "
            "does not foretell.",
        ),
        Metric(
            "mufidelity", "MuFidelity", "faithfulness", "higher", -1, 1,
            "Bhatt, Weller & Moura, IJCAI 2020",
            "Correlation over random sets of cells between the attribution inside and the fall of "
            "the score when the cells are covered.",
        ),
        Metric(
            "pointing_game", "Pointing game", "localization", "higher", 0, 1,
            "Zhang et al., IJCV 2018",
            "Whether the highest value lies in the lesion.",
        ),
        Metric(
            "relevance_mass", "Relevance mass", "localization", "higher", 0, 1, _ARRAS,
            "Share of the positive attribution inside the lesion.",
        ),
        Metric(
            "enrichment", "Enrichment", "localization", "higher", 0, _INFINITE, _ARRAS,
            "Relevance mass over the lesion's share of the area; 1 is chance.",
        ),
        Metric(
            "relevance_rank", "Relevance rank", "localization", "higher", 0, 1, _ARRAS,
            "Share of the highest pixels, as many as the lesion has, that lie in the lesion.",
        ),
        Metric(
            "pixel_auc", "Pixel AUC", "localization", "higher", 0, 1, "Hanley & McNeil, 1982",
            "Chance that a pixel of the lesion has a higher value than one outside.",
        ),
        Metric(
            "best_iou", "Best IoU", "localization", "higher", 0, 1, "Jaccard, 1912",
            "Overlap of map and lesion at the threshold that suits this image best.",
        ),
        Metric(
            "equal_area_iou", "Equal-area IoU", "localization", "higher", 0, 1, "Jaccard, 1912",
            "Overlap of the lesion and as many of the highest pixels.",
        ),
        Metric(
            "max_sensitivity", "Max sensitivity", "robustness", "lower", 0, _INFINITE, _YEH,
            "Largest relative change of the map under noise too weak to see.",
            ranked=False,
        ),
        Metric(
            "average_sensitivity", "Average sensitivity", "robustness", "lower", 0, _INFINITE,
            _YEH, "Mean relative change of the map under noise too weak to see.",
            ranked=False,
        ),
        Metric(
            "equivariance", "Equivariance", "robustness", "higher", -1, 1,
            "Crabbé & van der Schaar, NeurIPS 2023",
            "Rank correlation of the map of the mirrored or turned image with the mirrored or "
            "turned map.",
            ranked=False,
        ),
        Metric(
            "sparseness", "Sparseness (Gini)", "complexity", "higher", 0, 1,
            "Chalasani et al., ICML 2020",
            "Gini index of the absolute values: 0 all alike, 1 everything in one pixel.",
            ranked=False,
        ),
        Metric(
            "entropy", "Entropy", "complexity", "lower", 0, _INFINITE,
            "Bhatt, Weller & Moura, IJCAI 2020",
            "Entropy, in nats, of the absolute values as shares of their sum.",
            ranked=False,
        ),
        Metric(
            "randomization_spearman", "Randomization (Spearman)", "randomization", "lower", -1, 1,
            _ADEBAYO,
            "Rank correlation of the map with the map of the network whose weights were all "
            "shuffled.",
            ranked=False,
        ),
        Metric(
            "randomization_ssim", "Randomization (SSIM)", "randomization", "lower", -1, 1,
            _ADEBAYO,
            "Structural similarity of the map and the map of the network whose weights were all "
            "shuffled.",
            ranked=False,
        ),
        Metric(
            "random_logit", "Random logit", "randomization", "lower", -1, 1,
            "Sixt, Granz & Landgraf, ICML 2020",
            "Structural similarity of the map and the map for another diagnosis drawn at random.",
            ranked=False,
        ),
        Metric(
            "photo_consistency", "Consistency of photographs", "consistency", "higher", -2, 2,
            "this project, docs/metrics.md",
            "Rank correlation of the aligned maps of two photographs of one lesion, less that of "
            "photographs of different lesions.",
        ),
        Metric(
            "zone_consistency", "Zone consistency", "consistency", "higher", 0, 1,
            "this project, docs/metrics.md",
            "Overlap of the zone profiles (core, border, skin, image edge) of two photographs of "
            "one lesion.",
            ranked=False,
        ),
    )
}  # fmt: skip
"""Every metric by name, in the order of the tables."""

STRUCTURE_PREFIX = "structure_"
"""Before the name of a localization metric: measured on the mask of the deciding structure."""


def metric(name: str) -> Metric:
    """Return a metric by name; ``structure_`` names the same metric on structure masks.

    Raises:
        UsageError: If there is no such metric.
    """
    base = METRICS.get(name.removeprefix(STRUCTURE_PREFIX))
    if base is None or (base.name != name and base.family != "localization"):
        raise UsageError(f"Unknown metric {name!r}. Use some of: {', '.join(METRICS)}.")
    if base.name == name:
        return base
    sentence = base.sentence.replace("the lesion", "the structure that decides the class")
    return Metric(
        name,
        f"{base.title} (structure)",
        base.family,
        base.direction,
        base.low,
        base.high,
        base.citation,
        sentence,
        base.ranked,
    )


def metric_table(names: Iterable[str] | None = None) -> pd.DataFrame:
    """Return one row per metric: name, title, family, better, range, citation, sentence.

    Args:
        names: Which; default all.
    """
    rows = []
    for name in METRICS if names is None else names:
        one = metric(name)
        rows.append(
            {
                "metric": one.name,
                "title": one.title,
                "family": one.family,
                "better": one.direction,
                "range": f"{one.low:g} to {one.high:g}".replace("to inf", "or more"),
                "citation": one.citation,
                "measures": one.sentence,
            }
        )
    return pd.DataFrame(rows)

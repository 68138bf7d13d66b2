"""Every metric by name: ``metrics.insertion(classifier, images, maps, targets)``.

Maps may come from any tool. What each metric needs beside them stands in ``Metric.needs``; what it
cannot tell, in docs/metrics.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from dermlens.errors import UsageError
from dermlens.explainers.target import Targets
from dermlens.quality import complexity, localization, randomization, removal, robustness, subsets
from dermlens.quality.metric import Case, Metric, case_of

_INFINITE = float("inf")
_PETSIUK = "Petsiuk, Das & Saenko, BMVC 2018"
_YEH = "Yeh et al., NeurIPS 2019"
_ARRAS = "Arras, Osman & Samek, Information Fusion 2022"
_BHATT = "Bhatt, Weller & Moura, IJCAI 2020"
_ADEBAYO = "Adebayo et al., NeurIPS 2018"
_MODEL, _MASKS = frozenset({"model"}), frozenset({"masks"})
_AGAIN = frozenset({"model", "explainer"})
_DESTROYED = frozenset({"model", "explainer", "weights"})


def _of_maps(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Case], np.ndarray]:
    return lambda case: function(case.maps)


def _on_masks(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Callable[[Case], np.ndarray]:
    def measure(case: Case) -> np.ndarray:
        assert case.masks is not None
        return function(case.maps, case.masks)

    return measure


deletion = Metric(
    "deletion", "Deletion AUC", "faithfulness", "lower", 0, 1, _PETSIUK,
    "Mean probability of the class while the most important pixels are replaced by the color of "
    "the image's border, most important first.",
    removal.deletion, _MODEL,
)  # fmt: skip
insertion = Metric(
    "insertion", "Insertion AUC", "faithfulness", "higher", 0, 1, _PETSIUK,
    "Mean probability of the class while a blurred image gets its pixels back, most important "
    "first.",
    removal.insertion, _MODEL,
)  # fmt: skip
road = Metric(
    "road", "ROAD", "faithfulness", "higher", -0.5, 0.5, "Rong et al., ICML 2022",
    "How much more the probability falls when the most important pixels are imputed than when the "
    "least important are, half the difference.",
    removal.road, _MODEL,
)  # fmt: skip
infidelity = Metric(
    "infidelity", "Normalized infidelity", "faithfulness", "lower", 0, 1, _YEH,
    "Share of the logit's reaction to covered squares that the map, optimally scaled, does not "
    "foretell.",
    subsets.infidelities, _MODEL,
)  # fmt: skip
mufidelity = Metric(
    "mufidelity", "MuFidelity", "faithfulness", "higher", -1, 1, _BHATT,
    "Correlation over random sets of cells between the attribution inside and the fall of the "
    "logit when the cells are covered.",
    subsets.mufidelities, _MODEL,
)  # fmt: skip
pointing_game = Metric(
    "pointing_game", "Pointing game", "localization", "higher", 0, 1, "Zhang et al., IJCV 2018",
    "Whether the highest value lies in the mask.",
    _on_masks(localization.pointing_game), _MASKS,
)  # fmt: skip
relevance_mass = Metric(
    "relevance_mass", "Relevance mass", "localization", "higher", 0, 1, _ARRAS,
    "Share of the positive attribution inside the mask.",
    _on_masks(localization.relevance_mass), _MASKS,
)  # fmt: skip
enrichment = Metric(
    "enrichment", "Enrichment", "localization", "higher", 0, _INFINITE, _ARRAS,
    "Relevance mass over the mask's share of the area; 1 is chance.",
    _on_masks(localization.enrichment), _MASKS,
)  # fmt: skip
relevance_rank = Metric(
    "relevance_rank", "Relevance rank", "localization", "higher", 0, 1, _ARRAS,
    "Share of the highest pixels, as many as the mask has, that lie in the mask.",
    _on_masks(localization.relevance_rank), _MASKS,
)  # fmt: skip
pixel_auc = Metric(
    "pixel_auc", "Pixel AUC", "localization", "higher", 0, 1, "Hanley & McNeil, 1982",
    "Chance that a pixel of the mask has a higher value than one outside.",
    _on_masks(localization.pixel_auc), _MASKS,
)  # fmt: skip
best_iou = Metric(
    "best_iou", "Best IoU", "localization", "higher", 0, 1, "Jaccard, 1912",
    "Overlap of map and mask at the threshold that suits this image best.",
    _on_masks(localization.best_iou), _MASKS,
)  # fmt: skip
equal_area_iou = Metric(
    "equal_area_iou", "Equal-area IoU", "localization", "higher", 0, 1, "Jaccard, 1912",
    "Overlap of the mask and as many of the highest pixels.",
    _on_masks(localization.equal_area_iou), _MASKS,
)  # fmt: skip
max_sensitivity = Metric(
    "max_sensitivity", "Max sensitivity", "robustness", "lower", 0, _INFINITE, _YEH,
    "Largest relative change of the map under noise too weak to see.",
    robustness.max_sensitivity, _AGAIN, ranked=False,
)  # fmt: skip
average_sensitivity = Metric(
    "average_sensitivity", "Average sensitivity", "robustness", "lower", 0, _INFINITE, _YEH,
    "Mean relative change of the map under noise too weak to see.",
    robustness.average_sensitivity, _AGAIN, ranked=False,
)  # fmt: skip
equivariance = Metric(
    "equivariance", "Equivariance", "robustness", "higher", -1, 1,
    "Crabbé & van der Schaar, NeurIPS 2023",
    "Rank correlation of the map of the mirrored or turned image with the mirrored or turned map.",
    robustness.equivariances, _AGAIN, ranked=False,
)  # fmt: skip
sparseness = Metric(
    "sparseness", "Sparseness (Gini)", "complexity", "higher", 0, 1, "Chalasani et al., ICML 2020",
    "Gini index of the absolute values: 0 all alike, 1 everything in one pixel.",
    _of_maps(complexity.gini), ranked=False,
)  # fmt: skip
entropy = Metric(
    "entropy", "Entropy", "complexity", "lower", 0, _INFINITE, _BHATT,
    "Entropy, in nats, of the absolute values as shares of their sum.",
    _of_maps(complexity.entropy), ranked=False,
)  # fmt: skip
randomization_spearman = Metric(
    "randomization_spearman", "Randomization (Spearman)", "randomization", "lower", -1, 1, _ADEBAYO,
    "Rank correlation of the map with the map of the network whose weights were all shuffled.",
    randomization.randomization_spearman, _DESTROYED, ranked=False,
)  # fmt: skip
randomization_ssim = Metric(
    "randomization_ssim", "Randomization (SSIM)", "randomization", "lower", -1, 1, _ADEBAYO,
    "Structural similarity of the map and the map of the network whose weights were all shuffled.",
    randomization.randomization_ssim, _DESTROYED, ranked=False,
)  # fmt: skip
random_logit = Metric(
    "random_logit", "Random logit", "randomization", "lower", -1, 1,
    "Sixt, Granz & Landgraf, ICML 2020",
    "Structural similarity of the map and the map for another class drawn at random.",
    randomization.random_logit, _AGAIN, ranked=False,
)  # fmt: skip

METRICS: dict[str, Metric] = {
    one.name: one for one in list(globals().values()) if isinstance(one, Metric)
}
"""Every metric by name, in the order of the tables."""

LOCALIZATION = tuple(name for name, one in METRICS.items() if one.family == "localization")
"""Names of the metrics that need masks and maps alone."""

STRUCTURE_PREFIX = "structure_"
"""Before the name of a localization metric: measured on the mask of the deciding structure."""


def metric(name: str, known: Mapping[str, Metric] = METRICS) -> Metric:
    """Return a metric by name; ``structure_`` names the same metric on structure masks.

    Args:
        name: Of the metric.
        known: Where to look.

    Raises:
        UsageError: If there is no such metric.
    """
    base = known.get(name.removeprefix(STRUCTURE_PREFIX))
    if base is None or (base.name != name and base.family != "localization"):
        raise UsageError(f"Unknown metric {name!r}. Use some of: {', '.join(known)}.")
    if base.name == name:
        return base
    sentence = base.sentence.replace("the mask", "the structure that decides the class")
    return replace(base, name=name, title=f"{base.title} (structure)", sentence=sentence)


def measure(
    names: Iterable[str], classifier: Any, images: Any, maps: Any, targets: Targets = None,
    **options: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Measure several metrics of the same maps; what they share is evaluated once.

    Takes names of ``METRICS``, and then what each of them takes; returns float64 (N,) by name.
    """
    wanted = [metric(name) for name in names]
    case = case_of(wanted, classifier, images, maps, targets, **options)
    return {one.name: one.measure(case) for one in wanted}


def metric_table(metrics: Sequence[Metric] = tuple(METRICS.values())) -> pd.DataFrame:
    """Return one row per metric: name, title, family, better, range, citation, sentence."""
    return pd.DataFrame(
        {
            "metric": one.name,
            "title": one.title,
            "family": one.family,
            "better": one.direction,
            "range": f"{one.low:g} to {one.high:g}".replace("to inf", "or more"),
            "citation": one.citation,
            "measures": one.sentence,
        }
        for one in metrics
    )

"""From values of metrics to a ranking of methods, and how much of it hangs on one metric.

On every image and metric, methods get ranks (1 is best, ties share their mean rank), over the
images where all have a value. Ranks are averaged over images, then over the metrics that share a
vote, then votes, then families, so that neither a metric's scale counts, nor how many metrics say
the same.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from dermlens.model.metrics import interval, lesion_resamples
from dermlens.quality.controls import is_control
from dermlens.quality.metric import FAMILIES, Metric
from dermlens.quality.metrics import METRICS, STRUCTURE_PREFIX, metric
from dermlens.quality.statistics import RESAMPLES

OVERALL: tuple[str, ...] = ("faithfulness", "localization")
"""Families that decide the overall ranking."""

VOTES: dict[str, str] = {
    "insertion": "foretelling",
    "infidelity": "foretelling",
    "mufidelity": "foretelling",
    "relevance_mass": "mass",
    "enrichment": "mass",
    "relevance_rank": "overlap",
    "pixel_auc": "overlap",
    "best_iou": "overlap",
    "equal_area_iou": "overlap",
}
"""Metrics that order methods alike, and the vote they share; any other metric has its own. Mean
ranks of methods by two of one vote correlate by at least 0.85 (docs/metric_trial.md)."""

Values = Mapping[str, tuple[np.ndarray, Sequence[object] | np.ndarray]]
"""By metric: values (images, methods), NaN where one is missing, and the lesion of each image."""


def vote_of(name: str) -> str:
    """Return the name of a metric's vote; on structures, metrics vote as they do on masks."""
    return VOTES.get(name.removeprefix(STRUCTURE_PREFIX), name)


def ranked_metrics(values: Values, known: Mapping[str, Metric] = METRICS) -> list[str]:
    """Return the metrics that take part in rankings.

    These are metrics that an empty map cannot win (``Metric.ranked``). Where structures are known
    they are the truth, and localization on the masks, of which they are a part, does not rank.
    """
    true = {name.removeprefix(STRUCTURE_PREFIX) for name in values if name not in known}
    return [name for name in values if metric(name, known).ranked and name not in true]


def ranks_of(column: np.ndarray, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks (n, methods) of the images where all methods have a value, and which (N,)."""
    from scipy.stats import rankdata

    whole = np.isfinite(column).all(axis=1)
    # Rounding, so that what is equal but for the last digits ties.
    return rankdata(np.round(-sign * column[whole], 9), axis=1), whole


def ranking(
    values: Values,
    names: Sequence[str],
    known: Mapping[str, Metric] = METRICS,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Rank methods and controls within each family and overall.

    Only families measured on every image count overall (``OVERALL``). Intervals are 95 %
    percentile intervals of mean ranks, lesions resampled, the same for all metrics.

    Returns:
        For each family and ``"overall"``, rows from best to worst: method, mean_rank, low, high,
        control.
    """
    drawn = mean_ranks(values, ranked_metrics(values, known), known, resamples, seed)
    return {family: _listed(ranks, names) for family, ranks in _families(drawn, known).items()}


def stability(
    values: Values, names: Sequence[str], known: Mapping[str, Metric] = METRICS
) -> dict[str, Any]:
    """Tell how the overall ranking changes when any one metric is left out.

    Returns:
        By metric left out: ``tau``, Kendall's correlation of mean ranks with the whole ranking's;
        ``order``, methods and controls from best to worst.
    """
    from scipy.stats import kendalltau

    counted = [n for n in ranked_metrics(values, known) if metric(n, known).family in OVERALL]
    ranks = mean_ranks(values, counted, known, 0, 0)
    if len(ranks) < 2 or len(names) < 2:
        return {}
    whole = _families(ranks, known)["overall"][0]
    result: dict[str, Any] = {}
    for name in ranks:
        left = _families({k: v for k, v in ranks.items() if k != name}, known)["overall"][0]
        order = [names[k] for k in np.argsort(left, kind="stable")]
        result[name] = {"tau": float(kendalltau(whole, left).statistic), "order": order}
    return result


def mean_ranks(
    values: Values,
    counted: Collection[str],
    known: Mapping[str, Metric] = METRICS,
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return mean ranks (1 + resamples, methods) by metric, the first row being of all images."""
    lesions = sorted({str(one) for name in counted for one in values[name][1]})
    weights = np.ones((1, len(lesions)))
    if resamples and len(lesions) > 1:
        weights = np.concatenate([weights, lesion_resamples(lesions, resamples, seed)])
    place = {lesion: number for number, lesion in enumerate(lesions)}
    found = {}
    for name in counted:
        column, groups = values[name]
        ranks, whole = ranks_of(column, metric(name, known).sign)
        if not len(ranks):
            continue
        rows = [place[str(one)] for one in np.asarray(groups)[whole]]
        sums, counts = np.zeros((len(lesions), ranks.shape[1])), np.zeros((len(lesions), 1))
        np.add.at(sums, rows, ranks)
        np.add.at(counts, rows, 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[name] = (weights @ sums) / (weights @ counts)
    return found


def _families(ranks: Mapping[str, np.ndarray], known: Mapping[str, Metric]) -> dict[str, Any]:
    """Return mean ranks (R, methods) by family, and overall where a family counts."""
    votes: dict[str, dict[str, list[np.ndarray]]] = {}
    for name, mean in ranks.items():
        votes.setdefault(metric(name, known).family, {}).setdefault(vote_of(name), []).append(mean)
    means = {
        family: np.mean([np.mean(shared, axis=0) for shared in votes[family].values()], axis=0)
        for family in FAMILIES
        if family in votes
    }
    counted = [mean for family, mean in means.items() if family in OVERALL]
    return means | ({"overall": np.mean(counted, axis=0)} if counted else {})


def _listed(ranks: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return rows from best to worst of mean ranks (1 + resamples, methods)."""
    rows = []
    for k in np.argsort(ranks[0], kind="stable"):
        low, high = interval(ranks[1:, k])
        about = {"method": names[k], "mean_rank": float(ranks[0, k]), "low": low, "high": high}
        rows.append({**about, "control": is_control(names[k])})
    return rows

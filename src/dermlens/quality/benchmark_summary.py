"""From the tables of a benchmark to means, intervals, differences and rankings."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from dermlens.quality.benchmark_plan import Extension
from dermlens.quality.benchmark_tables import Tables
from dermlens.quality.controls import is_control
from dermlens.quality.metric import FAMILIES, Metric
from dermlens.quality.metrics import METRICS, STRUCTURE_PREFIX, metric
from dermlens.quality.statistics import (
    FLIPS,
    RESAMPLES,
    cluster_intervals,
    cluster_means,
    holm,
    paired_tests,
    wilcoxon_test,
)

OVERALL: tuple[str, ...] = ("faithfulness", "localization")
"""Families that decide the overall ranking."""


def summarize(
    tables: Tables,
    names: Sequence[str],
    extension: Extension | None = None,
    *,
    resamples: int = RESAMPLES,
    flips: int = FLIPS,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the content of ``summary.json``; lesions are resampled, and flipped in tests."""
    extension = extension or Extension()
    known = {**METRICS, **extension.metrics}
    found = [n for n in tables.wide().columns if n.removeprefix(STRUCTURE_PREFIX) in METRICS]
    wide: dict[str, Any] = {name: tables.values(name, names) for name in found}
    wide |= extension.values(tables, names)
    wide = {name: one for name, one in wide.items() if np.isfinite(one[0]).any()}
    about = {name: metric(name, known) for name in wide}
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed}
    return {
        "n_images": len(tables.images),
        "n_lesions": int(tables.images.lesion_id.nunique()),
        "per_class": tables.images.dx.value_counts().sort_index().to_dict(),
        "methods": [name for name in names if not is_control(name)],
        "controls": [name for name in names if is_control(name)],
        "metrics": {
            name: dict(zip(names, map(vars, cluster_intervals(*one, **settings)), strict=True))
            for name, one in wide.items()
        },
        "comparisons": {
            name: _comparisons(about[name], values, lesions, names, flips, **settings)
            for name, (values, lesions) in wide.items()
        },
        "ranking": ranking({n: values for n, (values, _) in wide.items()}, names, known),
        "cost": _cost(tables, names),
        "randomization": _curves(tables.randomization, names),
        **extension.summarize(tables, names, **settings),
        "statistics": {
            "interval": "95 % percentile intervals, lesions resampled",
            "test": "means of paired differences, signs of whole lesions flipped at random; "
            "p_holm corrects for all comparisons of a metric",
            "resamples": resamples,
            "flips": flips,
        },
    }


def _comparisons(
    about: Metric,
    values: np.ndarray,
    lesions: np.ndarray,
    names: Sequence[str],
    flips: int,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Compare methods with each other and with every control, on the same images."""
    pairs = [(i, k) for i, k in combinations(range(len(names)), 2) if not is_control(names[i])]
    if not pairs:
        return []
    differences = np.stack([values[:, i] - values[:, k] for i, k in pairs], axis=1)
    found = cluster_intervals(differences, lesions, resamples=resamples, seed=seed)
    p_values = paired_tests(differences, lesions, flips=flips, seed=seed)
    corrected = holm(p_values)
    return [
        {
            "first": names[i],
            "second": names[k],
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "count": interval.count,
            "p": p_values[number],
            "p_holm": corrected[number],
            "p_wilcoxon": wilcoxon_test(cluster_means(differences[:, number], lesions)),
            "better": names[i if interval.mean * about.sign > 0 else k]
            if corrected[number] < 0.05
            else None,
        }
        for number, ((i, k), interval) in enumerate(zip(pairs, found, strict=True))
    ]


def ranking(
    values: Mapping[str, np.ndarray], names: Sequence[str], known: Mapping[str, Metric] = METRICS
) -> dict[str, Any]:
    """Rank methods and controls within each family and overall, by values (images, methods).

    On every image and metric, methods get ranks (1 is best, ties share their mean rank), over the
    images where all have a value. Ranks are averaged over images, then metrics, then families, so
    that neither a metric's scale nor a family's number of metrics counts. Only metrics that an
    empty map cannot win take part (``Metric.ranked``), and only families measured on every image
    count overall (``OVERALL``). Where structures are known they are the truth, and localization on
    the masks, of which they are a part, does not rank.

    Returns, for each family and ``"overall"``, rows from best to worst: method, mean rank, control.
    """
    from scipy.stats import rankdata

    by_family: dict[str, list[np.ndarray]] = {}
    true = {name.removeprefix(STRUCTURE_PREFIX) for name in values if name not in known}
    for name, column in values.items():
        about = metric(name, known)
        whole = column[np.isfinite(column).all(axis=1)]
        if not about.ranked or name in true or len(whole) == 0:
            continue
        # Rounding, so that what is equal but for the last digits ties.
        ranks = rankdata(np.round(-about.sign * whole, 9), axis=1).mean(axis=0)
        by_family.setdefault(about.family, []).append(ranks)
    means = {f: np.mean(by_family[f], axis=0) for f in FAMILIES if f in by_family}
    result: dict[str, Any] = {f: _listed(mean, names) for f, mean in means.items()}
    counted = [mean for family, mean in means.items() if family in OVERALL]
    if counted:
        result["overall"] = _listed(np.mean(counted, axis=0), names)
    return result


def _listed(ranks: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"method": names[k], "mean_rank": float(ranks[k]), "control": is_control(names[k])}
        for k in np.argsort(ranks, kind="stable")
    ]


def _cost(tables: Tables, names: Sequence[str]) -> dict[str, Any]:
    """Return mean passes and median seconds: the first image of a run also pays for tracing."""
    by_method = tables.cost.groupby("method")
    spent = by_method[["forward", "backward"]].mean().join(by_method.seconds.median())
    methods = {name: spent.loc[name].to_dict() for name in names}
    passes = float(tables.images.metric_passes.mean())
    return {"per_image": methods, "metric_passes_per_image": passes}


def _curves(table: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Return mean similarity after each step of parameter randomization."""
    result: dict[str, Any] = {}
    measures = ["spearman", "ssim"]
    for order, rows in table.groupby("order", sort=False) if len(table) else ():
        stages = rows.drop_duplicates("step").stage.tolist()
        means = rows.groupby(["method", "step"])[measures].mean()
        present = [name for name in names if name in set(rows.method)]
        curves = {name: {m: means.loc[name][m].tolist() for m in measures} for name in present}
        result[str(order)] = {"stages": stages, "methods": curves}
    return result

"""From the tables of a benchmark to means, intervals, differences and rankings."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from dermlens.quality.benchmark_plan import Extension
from dermlens.quality.benchmark_tables import Tables
from dermlens.quality.controls import is_control
from dermlens.quality.metric import Metric
from dermlens.quality.metrics import METRICS, STRUCTURE_PREFIX, metric
from dermlens.quality.ranking import ranking, stability, vote_of
from dermlens.quality.readings import as_it_is
from dermlens.quality.statistics import (
    FLIPS,
    RESAMPLES,
    cluster_intervals,
    cluster_means,
    holm,
    paired_tests,
    wilcoxon_test,
)


def summarize(
    tables: Tables,
    names: Sequence[str],
    extension: Extension | None = None,
    *,
    appendix: Sequence[str] = (),
    resamples: int = RESAMPLES,
    flips: int = FLIPS,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the content of ``summary.json``; lesions are resampled, and flipped in tests.

    ``appendix`` are methods of which maps were measured as they are besides.
    """
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
        "ranking": ranking(wide, names, known, **settings),
        "votes": {name: vote_of(name) for name in wide if about[name].ranked},
        "stability": stability(wide, names, known),
        "as_it_is": _as_it_is(tables, found, appendix, settings),
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


def _as_it_is(
    tables: Tables, metrics: Sequence[str], appendix: Sequence[str], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return means with intervals of maps that are otherwise read in another way."""
    if not appendix:
        return {}
    unread = list(map(as_it_is, appendix))
    columns = {name: tables.values(name, unread) for name in metrics}
    return {
        name: dict(zip(unread, map(vars, cluster_intervals(*column, **settings)), strict=True))
        for name, column in columns.items()
        if np.isfinite(column[0]).any()
    }


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

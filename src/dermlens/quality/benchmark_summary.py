"""From the tables of a benchmark to means, intervals, differences and rankings."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from dermlens.quality.baselines import is_baseline
from dermlens.quality.benchmark_tables import Tables
from dermlens.quality.metric import FAMILIES, METRICS, STRUCTURE_PREFIX, metric
from dermlens.quality.statistics import (
    FLIPS,
    RESAMPLES,
    cluster_intervals,
    cluster_means,
    holm,
    paired_tests,
    wilcoxon_test,
)
from dermlens.quality.zones import ZONES

OVERALL: tuple[str, ...] = ("faithfulness", "localization")
"""Families that decide the overall ranking."""
_PARTLY = ("robustness", "randomization")

_TRAITS = ("asymmetry", "irregularity", "color_spread", "colors")
_FOLLOWED = ("zone_border", "zone_core", "asymmetry_relation", "color_relation")


def summarize(
    tables: Tables,
    names: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    flips: int = FLIPS,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Args:
        tables: Of the benchmark.
        names: Methods and baselines in the order of the tables.
        resamples: Of the bootstrap over lesions.
        flips: Of the paired test.
        seed: Sets both.
    """
    table = tables.benchmark
    wide = _by_metric(tables, names)
    settings = {"resamples": resamples, "seed": seed}
    images = table.drop_duplicates("image_id")
    return {
        "n_images": len(images),
        "n_lesions": int(images.lesion_id.nunique()),
        "per_class": images.dx.value_counts().sort_index().to_dict(),
        "methods": [name for name in names if not is_baseline(name)],
        "baselines": [name for name in names if is_baseline(name)],
        "metrics": {
            name: _intervals(name, values, names, clusters, **settings)
            for name, (values, clusters) in wide.items()
        },
        "comparisons": {
            name: _comparisons(name, values, names, clusters, flips, **settings)
            for name, (values, clusters) in wide.items()
        },
        "ranking": ranking({n: v for n, (v, _) in wide.items()}, names),
        "cost": _cost(tables, names),
        "zones": _zones(tables, names, **settings),
        "relevance": _relevance(tables, names),
        "randomization": _curves(tables.randomization, names),
        "shortcuts": _shortcuts(tables.shortcuts, **settings),
        "statistics": {
            "interval": "95 % percentile intervals, lesions resampled",
            "test": "means of paired differences, signs of whole lesions flipped at random; "
            "p_holm corrects for all comparisons of a metric",
            "resamples": resamples,
            "flips": flips,
        },
    }


Wide = dict[str, tuple[np.ndarray, np.ndarray]]
"""For each metric values (images or lesions, methods) and the lesion of each row."""


def _by_metric(tables: Tables, names: Sequence[str]) -> Wide:
    wide: Wide = {}
    found = [c for c in tables.benchmark.columns if c.removeprefix(STRUCTURE_PREFIX) in METRICS]
    images = tables.benchmark.drop_duplicates("image_id")
    for name in found:
        values = tables.benchmark.pivot(index="image_id", columns="method", values=name)
        ordered = values.reindex(index=images.image_id, columns=list(names)).to_numpy(np.float64)
        if np.isfinite(ordered).any():
            wide[name] = (ordered, images.lesion_id.to_numpy())
    if len(tables.consistency):
        lesions = tables.consistency.lesion_id.unique()
        for name in ("photo_consistency", "zone_consistency"):
            values = tables.consistency.pivot(index="lesion_id", columns="method", values=name)
            ordered = values.reindex(index=lesions, columns=list(names)).to_numpy(np.float64)
            if np.isfinite(ordered).any():
                wide[name] = (ordered, lesions)
    return wide


def _measured(name: str, values: np.ndarray) -> np.ndarray:
    """Return which rows a metric was asked for: expensive ones and structures skip images.

    Elsewhere a row without any value, such as an image with an empty mask, counts as excluded.
    """
    partly = metric(name).family in _PARTLY or name.startswith(STRUCTURE_PREFIX)
    measured: np.ndarray = np.isfinite(values).any(axis=1) if partly else np.ones(len(values), bool)
    return measured


def _intervals(
    name: str,
    values: np.ndarray,
    names: Sequence[str],
    clusters: np.ndarray,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    rows = _measured(name, values)
    found = cluster_intervals(values[rows], clusters[rows], resamples=resamples, seed=seed)
    return {method: vars(one) for method, one in zip(names, found, strict=True)}


def _comparisons(
    metric_name: str,
    values: np.ndarray,
    names: Sequence[str],
    clusters: np.ndarray,
    flips: int,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Compare methods with each other and with every baseline, on the same images."""
    pairs = [(i, k) for i, k in combinations(range(len(names)), 2) if not is_baseline(names[i])]
    if not pairs:
        return []
    rows = _measured(metric_name, values)
    kept, lesions = values[rows], clusters[rows]
    differences = np.stack([kept[:, i] - kept[:, k] for i, k in pairs], axis=1)
    found = cluster_intervals(differences, lesions, resamples=resamples, seed=seed)
    p_values = paired_tests(differences, lesions, flips=flips, seed=seed)
    corrected = holm(p_values)
    sign = metric(metric_name).sign
    results = []
    for number, (i, k) in enumerate(pairs):
        interval = found[number]
        better = names[i] if interval.mean * sign > 0 else names[k]
        results.append(
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
                "better": better if corrected[number] < 0.05 else None,
            }
        )
    return results


def ranking(values: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Rank methods and baselines within each family and overall.

    On every image and metric, methods get ranks (1 is best, ties share their mean rank), over the
    images where all have a value. Ranks are averaged over images, then metrics, then families, so
    that neither a metric's scale nor a family's number of metrics counts. Only metrics that an
    empty map cannot win take part (``Metric.ranked``), and only families measured on every image
    count overall (``OVERALL``). Where structures are known they are the truth, and localization on
    the lesion, of which they are a part, does not rank.

    Args:
        values: For each metric, (images, methods).
        names: Of the methods, in the order of the columns.

    Returns:
        For each family, and ``"overall"``, rows from best to worst: method, mean rank, baseline.
    """
    from scipy.stats import rankdata

    by_family: dict[str, list[np.ndarray]] = {}
    known = {name.removeprefix(STRUCTURE_PREFIX) for name in values if name not in METRICS}
    for name, column in values.items():
        about = metric(name)
        whole = column[np.isfinite(column).all(axis=1)]
        if not about.ranked or name in known or len(whole) == 0:
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
        {"method": names[k], "mean_rank": float(ranks[k]), "baseline": is_baseline(names[k])}
        for k in np.argsort(ranks, kind="stable")
    ]


def _cost(tables: Tables, names: Sequence[str]) -> dict[str, Any]:
    """Return mean passes and median seconds: the first image of a run also pays for tracing."""
    by_method = tables.cost.groupby("method")
    spent = by_method[["forward", "backward"]].mean().join(by_method.seconds.median())
    methods = {name: spent.loc[name].to_dict() for name in names}
    return {
        "per_image": methods,
        "metric_passes_per_image": float(tables.lesions.metric_passes.mean()),
    }


def _zones(tables: Tables, names: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    """Return the share of positive attribution in each zone, and that of the area."""
    columns = [f"zone_{zone}" for zone in ZONES]
    shares: dict[str, Any] = {}
    for name in names:
        rows = tables.benchmark[tables.benchmark.method == name]
        found = cluster_intervals(
            rows[columns].to_numpy(np.float64), rows.lesion_id.to_numpy(), resamples=resamples,
            seed=seed,
        )  # fmt: skip
        shares[name] = {zone: vars(one) for zone, one in zip(ZONES, found, strict=True)}
    lesions = tables.lesions[tables.lesions.area > 0]
    areas = {zone: float(lesions[f"area_{zone}"].mean()) for zone in ZONES}
    return {"shares": shares, "areas": areas}


def _relevance(tables: Tables, names: Sequence[str]) -> dict[str, Any]:
    """Return, across images, how attribution goes with the traits of lesions (Spearman)."""
    from scipy.stats import spearmanr

    result: dict[str, Any] = {}
    keys, p_values = [], []
    for name in names:
        rows = tables.benchmark[tables.benchmark.method == name]
        joined = rows.merge(tables.lesions[["image_id", *_TRAITS]], on="image_id")
        result[name] = {}
        for trait in _TRAITS:
            for value in _FOLLOWED:
                both = joined[[trait, value]].dropna()
                varied = len(both) > 3 and (both.nunique() > 1).all()
                found = spearmanr(both[trait], both[value]) if varied else (np.nan, np.nan)
                rho, p = float(found[0]), float(found[1])
                result[name][f"{trait} ~ {value}"] = {"rho": rho, "p": p, "count": len(both)}
                keys.append((name, f"{trait} ~ {value}"))
                p_values.append(p)
    for (name, key), corrected in zip(keys, holm(p_values), strict=True):
        result[name][key]["p_holm"] = float(corrected)
    return result


def _curves(table: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Return mean similarity after each step of parameter randomization."""
    result: dict[str, Any] = {}
    if table.empty:
        return result
    for order, rows in table.groupby("order", sort=False):
        stages = rows.drop_duplicates("step").stage.tolist()
        means = rows.groupby(["method", "step"])[["spearman", "ssim"]].mean()
        present = set(rows.method)
        curves = {
            name: {m: means.loc[name][m].tolist() for m in ("spearman", "ssim")}
            for name in names
            if name in present
        }
        result[str(order)] = {"stages": stages, "methods": curves}
    return result


def _shortcuts(table: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if table.empty:
        return result
    columns = [c for c in table.columns if c not in ("image_id", "lesion_id", "dx", "probe")]
    for name, rows in table.groupby("probe", sort=False):
        found = cluster_intervals(
            rows[columns].to_numpy(np.float64), rows.lesion_id.to_numpy(), resamples=resamples,
            seed=seed,
        )  # fmt: skip
        result[str(name)] = {c: vars(one) for c, one in zip(columns, found, strict=True)}
    return result

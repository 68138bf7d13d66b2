"""A trial of the metrics themselves: which of them deserve a place in a ranking?

After Hedström et al., "The meta-evaluation problem in explainable AI: identifying reliable
estimators with MetaQuantus", TMLR 2023: a good metric hardly moves when a map changes without
meaning, and notices when a map is destroyed. Beyond that, where the truth is planted it should
prefer the truth to maps that know nothing; and two metrics that order methods alike are one vote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dermlens.explainers.base import image_generator
from dermlens.explainers.target import resolve_targets
from dermlens.quality.benchmark_measure import Bench
from dermlens.quality.benchmark_plan import Loaded
from dermlens.quality.controls import CONTROLS, UNTRAINED_PREFIX
from dermlens.quality.metric import Metric
from dermlens.quality.metrics import METRICS, STRUCTURE_PREFIX, metric
from dermlens.quality.ranking import Values, mean_ranks, ranked_metrics
from dermlens.quality.statistics import Interval, cluster_intervals

NOISE, NUDGE, TILES = 0.02, 0.01, 8
"""Standard deviation of harmless noise as a share of a map's range, a harmless shift as a share of
a side, and tiles of the shorter side whose order is random in a destroyed map."""
HARMLESS = ("noise", "nudge")
DESTROYED = ("shuffled", "shifted", "untrained")
OTHER_CLASS = "other class"
ORIGINAL = "original"
PREFERENCE = 0.75
"""A metric is kept that prefers the intact map, and the planted truth, at least this often."""
MOVED = 0.25
"""And whose harmless movement is at most this share of what two methods differ by."""
ONE_VOTE = 0.85
"""Metrics of a family share a vote if methods' mean ranks by them correlate by at least this."""


def changed_maps(maps: np.ndarray, image: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return a map (H, W) with harmless and destructive changes that need no network, by name.

    Args:
        maps: The map, finite.
        image: What it explains; what is drawn depends on it and ``seed`` alone.
        seed: Sets noise and order.
    """
    generator, (height, width) = image_generator(seed, image), maps.shape
    noise = generator.normal(size=maps.shape) * (np.ptp(maps) * NOISE)
    nudge = [max(1, round(side * NUDGE)) for side in maps.shape]
    padded = np.pad(maps, [(one, 0) for one in nudge], mode="edge")
    return {
        "noise": (maps + noise).astype(np.float32),
        "nudge": padded[:height, :width],
        "shuffled": _shuffled(maps, generator),
        "shifted": np.roll(maps, (height // 4, width // 4), axis=(0, 1)),
    }


def _shuffled(map_: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a map whose tiles lie in random order; what no whole tile covers stays."""
    side = max(1, min(map_.shape) // TILES)
    rows, columns = (length // side for length in map_.shape)
    kept = map_[: rows * side, : columns * side]
    tiles = kept.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
    mixed = tiles[generator.permutation(len(tiles))].reshape(rows, columns, side, side)
    result = map_.copy()
    result[: rows * side, : columns * side] = mixed.swapaxes(1, 2).reshape(kept.shape)
    return result


def try_image(bench: Bench, loaded: Loaded) -> dict[str, dict[str, dict[str, float]]]:
    """Measure every map of an image as it is and changed: by method, change and metric."""
    case, _ = bench.case(loaded)
    targets, image = case.targets, loaded.image[None]
    logits = case.evaluated[0].ends["image"][None]
    others = resolve_targets("runner_up", logits, bench.classifier.labels)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name in bench.plan.methods:
        maps = {ORIGINAL: bench.finite(name, image, targets)[0]}
        maps |= changed_maps(maps[ORIGINAL], loaded.image, bench.plan.seed)
        maps[OTHER_CLASS] = bench.finite(name, image, others)[0]
        if UNTRAINED_PREFIX + name in bench.explainers:
            maps["untrained"] = bench.finite(UNTRAINED_PREFIX + name, image, targets)[0]
        rows[name] = {
            change: {n: float(METRICS[n].measure(case.with_map(map_))[0]) for n in _ranked()}
            for change, map_ in maps.items()
        }
    return rows


def _ranked() -> list[str]:
    return [name for name, one in METRICS.items() if one.ranked]


@dataclass(frozen=True)
class Verdict:
    """What the trial says of a metric.

    Attributes:
        moved: How far harmless changes move it, as a share of what two methods differ by on the
            same image (medians).
        reacts: How often a map is worse once changed, by change; ties count half.
        prefers: How often the planted truth is better than each control that knows nothing; empty
            where no truth was given.
    """

    moved: float
    reacts: Mapping[str, Interval]
    prefers: Mapping[str, Interval]

    @property
    def reaction(self) -> float:
        """How often a destroyed map is worse, mean over the ways of destroying it."""
        return float(np.mean([one.mean for name, one in self.reacts.items() if name in DESTROYED]))

    @property
    def preference(self) -> float:
        """How often the truth is better than controls, mean over them; NaN if not known."""
        return float(np.mean([one.mean for one in self.prefers.values()] or [np.nan]))

    @property
    def kept(self) -> bool:
        """Whether the metric deserves a place in a ranking."""
        known = not self.prefers or self.preference >= PREFERENCE
        return self.moved <= MOVED and self.reaction >= PREFERENCE and known


def verdicts(
    trials: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]],
    lesions: Sequence[object],
    truth: Mapping[str, Mapping[str, Interval]] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Verdict]:
    """Judge every metric.

    Args:
        trials: What ``try_image`` returned for each image.
        lesions: The lesion of each image.
        truth: What ``truth_preferred`` returned.
        seed: Sets the resamples of intervals.
    """
    found = {}
    for name in _ranked():
        sign = METRICS[name].sign
        scores = [
            {m: {c: sign * v[name] for c, v in changes.items()} for m, changes in one.items()}
            for one in trials
        ]
        reacts = {}
        for change in (*DESTROYED, OTHER_CLASS):
            shares = np.array([[_worse(one, change)] for one in scores])
            reacts[change] = cluster_intervals(shares, lesions, seed=seed)[0]
        found[name] = Verdict(_moved(scores), reacts, (truth or {}).get(name, {}))
    return found


def _worse(scores: Mapping[str, Mapping[str, float]], change: str) -> float:
    """Return in which share of methods the changed map is worse, on one image."""
    differences = [one[ORIGINAL] - one[change] for one in scores.values() if change in one]
    known = [d for d in differences if np.isfinite(d)]
    return float(np.mean([0.5 * (1 + np.sign(d)) for d in known])) if known else float("nan")


def _moved(scores: Sequence[Mapping[str, Mapping[str, float]]]) -> float:
    """Return the median harmless movement over the median difference of two methods."""
    moved, apart = [], []
    for one in scores:
        originals = [changes[ORIGINAL] for changes in one.values()]
        moved += [abs(v[c] - v[ORIGINAL]) for v in one.values() for c in HARMLESS]
        apart += [abs(a - b) for k, a in enumerate(originals) for b in originals[:k]]
    usual = float(np.nanmedian(apart)) if np.isfinite(apart).any() else 0.0
    return float(np.nanmedian(moved)) / usual if usual > 0 else float(np.nanmean(moved) > 0)


def truth_preferred(
    measurements: pd.DataFrame, lesions: Mapping[str, object], truth: str, *, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Return how often the planted truth is better than controls, by metric and control.

    Args:
        measurements: ``measurements.csv`` of a benchmark on drawn images.
        lesions: The lesion of each image by ``image_id``.
        truth: Name under which the truth was planted. Localization is judged on the structures.
        seed: Sets the resamples of intervals.
    """
    found: dict[str, dict[str, Interval]] = {}
    for name in _ranked():
        local = METRICS[name].family == "localization"
        rows = measurements[measurements.metric == (STRUCTURE_PREFIX if local else "") + name]
        wide = rows.pivot(index="image_id", columns="method", values="value")
        if truth not in wide:
            continue
        groups = [lesions[image_id] for image_id in wide.index]
        known = [control for control in CONTROLS if control in wide]
        better = METRICS[name].sign * (wide[[truth]].to_numpy() - wide[known].to_numpy())
        shares = np.where(np.isfinite(better), 0.5 * (1 + np.sign(np.round(better, 9))), np.nan)
        intervals = cluster_intervals(shares, groups, seed=seed)
        found[name] = dict(zip(known, intervals, strict=True))
    return found


def correlations(
    values: Values, known: Mapping[str, Metric] = METRICS, counted: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return Spearman's correlation of methods' mean ranks between metrics, a square table."""
    names = list(counted or ranked_metrics(values, known))
    ranks = mean_ranks(values, names, known)
    return pd.DataFrame({name: row[0] for name, row in ranks.items()}).corr("spearman")


def shared_votes(
    table: pd.DataFrame, least: float = ONE_VOTE, known: Mapping[str, Metric] = METRICS
) -> list[list[str]]:
    """Return groups of metrics of one family whose correlations are all at least ``least``.

    Args:
        table: What ``correlations`` returned.
        least: Groups are joined, nearest first, while no pair in them is below (complete linkage).
        known: Where metrics are looked up.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    groups: list[list[str]] = []
    found = [str(name) for name in table]
    for family in dict.fromkeys(metric(name, known).family for name in found):
        names = [name for name in found if metric(name, known).family == family]
        if len(names) == 1:
            groups.append(names)
            continue
        apart = np.clip(1.0 - table.loc[names, names].to_numpy(), 0.0, None)
        joined = linkage(squareform(apart, checks=False), "complete")
        numbers = fcluster(joined, 1.0 - least + 1e-9, "distance")
        groups += [
            [name for name, own in zip(names, numbers, strict=True) if own == number]
            for number in dict.fromkeys(numbers)
        ]
    return groups

"""What a benchmark measures on skin lesions besides: zones, traits, photo pairs, probes.

OUT/consistency.csv    a row for each lesion photographed twice, and method
OUT/shortcuts.csv      a row for each image and probe

Asymmetry, border, color and zone areas of each lesion stand in ``images.csv``, zones and relations
of each map among the measurements. Only where there are masks and lesion ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.errors import UsageError
from dermlens.labels import LabelSet
from dermlens.lesion.consistency import (
    CONSISTENCY,
    Framed,
    frame,
    photo_consistency,
    zone_consistency,
)
from dermlens.lesion.relevance import (
    asymmetry_map,
    color_variety_map,
    lesion_traits,
    relation_inside,
    zone_profile,
)
from dermlens.lesion.shortcuts import probe
from dermlens.lesion.zones import ZONES, lesion_zones, zone_areas
from dermlens.quality.benchmark_measure import Bench
from dermlens.quality.benchmark_plan import Extension, Item, Loaded, Piece, in_turn, item_of, load
from dermlens.quality.benchmark_tables import Store, Tables
from dermlens.quality.controls import is_control
from dermlens.quality.statistics import cluster_intervals, holm

WATCHED = "mel"
"""The class whose probability the shortcut probe follows, where the labels have it."""
_TRAITS = ("asymmetry", "irregularity", "color_spread", "colors")
_FOLLOWED = ("zone_border", "zone_core", "asymmetry_relation", "color_relation")
_ABOUT = ("image_id", "lesion_id", "dx", "probe")


class LesionMeasures(Extension):
    """Zones, relations and traits of every image with a mask, photo pairs and shortcut probes.

    Args:
        pairs: Lesions with two photographs, for consistency.
        probes: Images, of the benchmark's, for the shortcut probe.
    """

    metrics = CONSISTENCY

    def __init__(self, pairs: int = 14, probes: int = 70) -> None:
        for name, count in (("pairs", pairs), ("probes", probes)):
            if count < 0:
                raise UsageError(f"{name} must be at least 0, not {count}.")
        self.pairs, self.probes = pairs, probes
        self._pairs: list[tuple[Item, Item]] = []
        self._probed: list[Item] = []
        self._mirrors = False
        self.watched: str | None = None

    def settings(self) -> dict[str, Any]:
        return {"pairs": self.pairs, "probes": self.probes}

    def select(
        self, table: pd.DataFrame, data: Path, codes: Sequence[str], items: list[Item], seed: int
    ) -> list[str]:
        self._pairs = select_pairs(table, data, codes, self.pairs, seed)
        self._probed = items[: self.probes]
        # Only drawn data sets have structures, and only there photographs may be mirrored.
        self._mirrors = any(item.structure is not None for item in items)
        return [first.lesion_id for first, _ in self._pairs]

    def of_image(
        self, loaded: Loaded, maps: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        if loaded.item.mask is None:
            return {}, {}
        image, mask = loaded.image, loaded.mask
        features = {
            "asymmetry_relation": asymmetry_map(image, mask),
            "color_relation": color_variety_map(image, mask),
        }
        areas = zone_areas(lesion_zones(mask))
        facts = asdict(lesion_traits(image, mask))
        facts |= {f"area_{z}": float(share) for z, share in zip(ZONES, areas, strict=True)}
        values = {}
        for name, map_ in maps.items():
            shares = zone_profile(map_[None], mask)[0]
            values[name] = {f"zone_{z}": float(s) for z, s in zip(ZONES, shares, strict=True)}
            values[name] |= {k: relation_inside(map_, one, mask) for k, one in features.items()}
        return facts, values

    def pieces(self, bench: Bench, efforts: Mapping[str, int]) -> list[Piece]:
        self.watched = watched_class(bench.classifier.labels)
        twice, probed = 2 * efforts["explain"], 9 + 7 * efforts["cheap"]

        def piece(kind: str, name: str, effort: int, measure: Any, *items: Item) -> Piece:
            size = bench.classifier.input_size
            return Piece(kind, name, effort, lambda _: measure(*(load(one, size) for one in items)))

        pair = partial(measure_pair, bench)
        shortcut = partial(measure_shortcuts, bench, self.watched)
        return [
            *(piece("pairs", both[0].lesion_id, twice, pair, *both) for both in self._pairs),
            *(piece("shortcuts", one.image_id, probed, shortcut, one) for one in self._probed),
        ]

    def tables(self, store: Store, names: Sequence[str]) -> dict[str, pd.DataFrame]:
        return {
            "consistency": _consistency(store, self._pairs, names, self._mirrors),
            "shortcuts": _shortcuts(store, self._probed),
        }

    def values(
        self, tables: Tables, names: Sequence[str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        table = tables.more.get("consistency")
        if table is None:
            return {}
        lesions, found = table.lesion_id.unique(), {}
        for name in CONSISTENCY:
            wide = table.pivot(index="lesion_id", columns="method", values=name)
            ordered = wide.reindex(index=lesions, columns=list(names))
            found[name] = (ordered.to_numpy(np.float64), lesions)
        return found

    def summarize(
        self, tables: Tables, names: Sequence[str], resamples: int, seed: int
    ) -> dict[str, Any]:
        settings = {"resamples": resamples, "seed": seed}
        table = tables.wide()
        outlined = "zone_core" in table
        return {
            "zones": _zones(table, tables.images, names, **settings) if outlined else {},
            "relevance": _relevance(table, tables.images, names) if outlined else {},
            "shortcuts": _reactions(tables.more.get("shortcuts"), **settings),
            "watched": self.watched,
        }


def watched_class(labels: LabelSet) -> str | None:
    """Return the class that the probe follows: melanoma, else the first alert, else none."""
    alerts = [code for group in labels.alerts.values() for code in group]
    return next((code for code in (WATCHED, *alerts) if code in labels.codes), None)


def select_pairs(
    table: pd.DataFrame, data: Path, codes: Sequence[str], count: int, seed: int
) -> list[tuple[Item, Item]]:
    """Choose lesions with at least two outlined photographs; of each the first two by id."""
    outlined = table[table.mask_path.notna() & table.lesion_id.notna()]
    groups = []
    for number, code in enumerate(codes):
        pairs = [
            tuple(item_of(row, data) for row in rows.sort_values("image_id").head(2).itertuples())
            for _, rows in outlined[outlined.dx == code].groupby("lesion_id", sort=True)
            if len(rows) > 1
        ]
        order = np.random.default_rng([seed, 100 + number]).permutation(len(pairs))
        groups.append([pairs[k] for k in order])
    return in_turn(groups, count)


def measure_pair(bench: Bench, *photographs: Loaded) -> dict[str, np.ndarray]:
    """Return both photographs of a lesion with all maps in the lesion's frame, and zones."""
    arrays: dict[str, np.ndarray] = {}
    for number, loaded in enumerate(photographs):
        image, targets = loaded.image[None], bench.case(loaded)[0].targets
        maps = np.concatenate([bench.finite(name, image, targets) for name in bench.names])
        framed = frame(loaded.image, loaded.mask, maps)
        arrays |= {f"{name}{number}": one for name, one in vars(framed).items()}
        arrays[f"zones{number}"] = zone_profile(maps, loaded.mask)
    return arrays


def measure_shortcuts(bench: Bench, watched: str | None, loaded: Loaded) -> list[dict[str, Any]]:
    """Return how decision and attribution of cheap methods react to pasted artifacts."""
    return probe(
        loaded.image,
        loaded.mask,
        bench.decide,
        explainers={name: partial(bench.finite, name) for name in bench.cheap},
        watched=None if watched is None else bench.classifier.labels.position(watched),
        seed=bench.plan.seed,
    )


def _consistency(
    store: Store, pairs: Sequence[tuple[Item, Item]], names: Sequence[str], mirrors: bool
) -> pd.DataFrame:
    framed, zones = [], []
    for first, _ in pairs:
        found = store.read_arrays("pairs", first.lesion_id)
        zones.append(zone_consistency(found["zones0"], found["zones1"]))
        parts = [(found[f"picture{k}"], found[f"maps{k}"], found[f"valid{k}"]) for k in (0, 1)]
        framed.append((Framed(*parts[0]), Framed(*parts[1])))
    agreement = photo_consistency(framed, mirrors=mirrors)
    return pd.DataFrame(
        {
            "lesion_id": first.lesion_id,
            "dx": first.dx,
            "first": first.image_id,
            "second": second.image_id,
            "method": name,
            "control": is_control(name),
            "photo_consistency": agreement[number, place],
            "zone_consistency": zones[number][place],
        }
        for number, (first, second) in enumerate(pairs)
        for place, name in enumerate(names)
    )


def _shortcuts(store: Store, items: Sequence[Item]) -> pd.DataFrame:
    rows = []
    for item in items:
        about = {"image_id": item.image_id, "lesion_id": item.lesion_id, "dx": item.dx}
        rows += [{**about, **row} for row in store.read("shortcuts", item.image_id)]
    table = pd.DataFrame(rows)
    numbers = [c for c in table.columns if c not in _ABOUT]
    table[numbers] = table[numbers].astype(np.float64)
    return table


def _means(table: pd.DataFrame, columns: Sequence[str], **settings: int) -> dict[str, Any]:
    """Return the mean of each column with its interval over lesions."""
    values = table[list(columns)].to_numpy(np.float64)
    found = cluster_intervals(values, table.lesion_id.to_numpy(), **settings)
    return {column: vars(one) for column, one in zip(columns, found, strict=True)}


def _zones(
    table: pd.DataFrame, images: pd.DataFrame, names: Sequence[str], **settings: int
) -> dict[str, Any]:
    """Return the share of positive attribution in each zone, and that of the area."""
    shares = {}
    for name in names:
        rows = table[table.method == name].rename(columns={f"zone_{zone}": zone for zone in ZONES})
        shares[name] = _means(rows, ZONES, **settings)
    lesions = images[images.area > 0]
    return {"shares": shares, "areas": {z: float(lesions[f"area_{z}"].mean()) for z in ZONES}}


def _relevance(table: pd.DataFrame, images: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Return, across images, how attribution goes with the traits of lesions (Spearman)."""
    from scipy.stats import spearmanr

    result: dict[str, Any] = {name: {} for name in names}
    joined = table.merge(images[["image_id", *_TRAITS]], on="image_id")
    for name, trait, value in product(names, _TRAITS, _FOLLOWED):
        both = joined[joined.method == name][[trait, value]].dropna()
        varied = len(both) > 3 and (both.nunique() > 1).all()
        rho, p = spearmanr(both[trait], both[value]) if varied else (np.nan, np.nan)
        found = {"rho": float(rho), "p": float(p), "count": len(both)}
        result[name][f"{trait} ~ {value}"] = found
    every = [one for relations in result.values() for one in relations.values()]
    for one, corrected in zip(every, holm([one["p"] for one in every]), strict=True):
        one["p_holm"] = float(corrected)
    return result


def _reactions(table: pd.DataFrame | None, **settings: int) -> dict[str, Any]:
    """Return means of every column of the probes, by probe."""
    if table is None:
        return {}
    columns, probes = (
        [c for c in table.columns if c not in _ABOUT],
        table.groupby("probe", sort=False),
    )
    return {str(name): _means(rows, columns, **settings) for name, rows in probes}

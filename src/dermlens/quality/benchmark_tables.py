"""Putting the finished pieces of a benchmark together into tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermlens.quality.baselines import is_baseline
from dermlens.quality.benchmark_plan import BenchmarkPlan, Item
from dermlens.quality.benchmark_store import Store
from dermlens.quality.consistency import Framed, photo_consistency, zone_consistency
from dermlens.quality.metric import METRICS, STRUCTURE_PREFIX
from dermlens.quality.zones import ZONES

_ABOUT = ("image_id", "lesion_id", "dx", "predicted", "target", "probability", "method", "baseline")
_RELATIONS = ("asymmetry_relation", "color_relation")
_PER_LESION = ("photo_consistency", "zone_consistency")


@dataclass(frozen=True)
class Tables:
    """The tables of a benchmark; NaN where a metric has no value.

    Attributes:
        benchmark: A row per image and method: about the image, every metric, zones, relations.
        cost: A row per image and method: forward, backward, seconds, as if run alone.
        lesions: A row per image: traits, zone areas, passes that the metrics took.
        randomization: A row per order, step, image and method: spearman, ssim.
        consistency: A row per lesion and method.
        shortcuts: A row per image and probe.
    """

    benchmark: pd.DataFrame
    cost: pd.DataFrame
    lesions: pd.DataFrame
    randomization: pd.DataFrame
    consistency: pd.DataFrame
    shortcuts: pd.DataFrame

    def by_name(self) -> dict[str, pd.DataFrame]:
        """Return the tables by name, empty ones left out."""
        return {name: table for name, table in vars(self).items() if len(table)}


def assemble(
    store: Store,
    plan: BenchmarkPlan,
    items: Sequence[Item],
    pairs: Sequence[tuple[Item, Item]],
    names: Sequence[str],
    *,
    mirrors: bool,
) -> Tables:
    """Read all pieces; the order of rows does not depend on when they were made.

    Args:
        store: Holds every piece.
        plan: What was measured.
        items: Images, in the order of the plan.
        pairs: Lesions photographed twice.
        names: Methods and baselines, in the order of the tables.
        mirrors: Whether photographs of a lesion may be mirrored.
    """
    randomization = _randomization(store, plan, items, names)
    extra = _expensive(store, plan, items, randomization)
    rows, cost, lesions = [], [], []
    for item in items:
        piece = store.read("images", item.image_id)
        about = {"image_id": item.image_id, "lesion_id": item.lesion_id, "dx": item.dx}
        decision = {name: piece[name] for name in ("predicted", "target", "probability")}
        for name in names:
            found = piece["rows"][name]
            values = {**found["values"], **extra.get((item.image_id, name), {})}
            flags = {"method": name, "baseline": is_baseline(name)}
            rows.append({**about, **decision, **flags, **values})
            cost.append({"image_id": item.image_id, "method": name, **found["cost"]})
        areas = {f"area_{zone}": share for zone, share in piece["zone_areas"].items()}
        passes = {"metric_passes": piece["metric_passes"]}
        lesions.append({**about, **piece["traits"], **areas, **passes})
    return Tables(
        _ordered(pd.DataFrame(rows)),
        pd.DataFrame(cost),
        pd.DataFrame(lesions),
        randomization,
        _consistency(store, pairs, names, mirrors),
        _shortcuts(store, items[: plan.probes]),
    )


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Bring columns into one order and missing values into one form."""
    known = [name for name in METRICS if name not in _PER_LESION]
    structure = [STRUCTURE_PREFIX + n for n in known if METRICS[n].family == "localization"]
    zones = [f"zone_{zone}" for zone in ZONES]
    wanted = [*_ABOUT, *known, *structure, *zones, *_RELATIONS]
    ordered = table.reindex(columns=[name for name in wanted if name in table.columns])
    numbers = [name for name in ordered.columns if name not in _ABOUT]
    ordered[numbers] = ordered[numbers].astype(np.float64)
    return ordered


def _expensive(
    store: Store, plan: BenchmarkPlan, items: Sequence[Item], randomization: pd.DataFrame
) -> dict[tuple[str, str], dict[str, float]]:
    """Return what is measured on a part of the images, by image and method."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for item in items[: plan.robustness]:
        for name, found in store.read("robustness", item.image_id).items():
            values.setdefault((item.image_id, name), {}).update(found)
    if len(randomization):
        cascade = randomization[randomization.order == "cascading"]
        whole = cascade[cascade.step == cascade.step.max()] if len(cascade) else cascade
        for row in whole.itertuples():
            found = {"randomization_spearman": row.spearman, "randomization_ssim": row.ssim}
            values.setdefault((str(row.image_id), str(row.method)), {}).update(found)
    return values


def _randomization(
    store: Store, plan: BenchmarkPlan, items: Sequence[Item], names: Sequence[str]
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for order in plan.orders if plan.randomization else ():
        number = 0
        while store.has("randomization", f"{order}-{number:02d}"):
            piece = store.read("randomization", f"{order}-{number:02d}")
            about = {"order": order, "step": number, "stage": piece["stage"]}
            for name in names:
                if name not in piece["rows"]:
                    continue
                for place, item in enumerate(items[: plan.randomization]):
                    found = {k: v[place] for k, v in piece["rows"][name].items()}
                    rows.append({**about, "image_id": item.image_id, "method": name, **found})
            number += 1
    return pd.DataFrame(rows)


def _consistency(
    store: Store, pairs: Sequence[tuple[Item, Item]], names: Sequence[str], mirrors: bool
) -> pd.DataFrame:
    framed, zones = [], []
    for first, _ in pairs:
        arrays = store.read_arrays("pairs", first.lesion_id)
        both = [
            Framed(arrays[f"picture{k}"], arrays[f"maps{k}"], arrays[f"valid{k}"]) for k in (0, 1)
        ]
        framed.append((both[0], both[1]))
        zones.append(zone_consistency(arrays["zones0"], arrays["zones1"]))
    if not framed:
        return pd.DataFrame()
    agreement = photo_consistency(framed, mirrors=mirrors)
    rows = []
    for number, (first, second) in enumerate(pairs):
        about = {
            "lesion_id": first.lesion_id,
            "dx": first.dx,
            "first": first.image_id,
            "second": second.image_id,
        }
        for place, name in enumerate(names):
            values = {
                "photo_consistency": agreement[number, place],
                "zone_consistency": zones[number][place],
            }
            rows.append({**about, "method": name, "baseline": is_baseline(name), **values})
    return pd.DataFrame(rows)


def _shortcuts(store: Store, items: Sequence[Item]) -> pd.DataFrame:
    rows = []
    for item in items:
        about = {"image_id": item.image_id, "lesion_id": item.lesion_id, "dx": item.dx}
        rows += [{**about, **row} for row in store.read("shortcuts", item.image_id)]
    table = pd.DataFrame(rows)
    numbers = [c for c in table.columns if c not in ("image_id", "lesion_id", "dx", "probe")]
    table[numbers] = table[numbers].astype(np.float64)
    return table

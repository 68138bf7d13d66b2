"""Finished pieces of a benchmark on disk, and the tables that they are put together to."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.files import read_json, write_json, written_beside
from dermlens.quality.benchmark_plan import BenchmarkPlan, Extension, Item
from dermlens.quality.controls import is_control
from dermlens.quality.metrics import LOCALIZATION, METRICS, STRUCTURE_PREFIX
from dermlens.quality.readings import as_it_is
from dermlens.schema import hold_to_plan


class Store:
    """A folder with one file for each finished piece, each written atomically.

    A run that is killed leaves only whole pieces; the next run with the same plan, everything that
    results depend on, goes on where it stopped and ends with the same tables.

    Raises:
        UsageError: If the folder holds pieces of another plan.
    """

    def __init__(
        self, folder: Path, plan: dict[str, Any], what: str = "results of a benchmark that differs"
    ) -> None:
        self.folder = Path(folder)
        hold_to_plan(self.folder / "plan.json", plan, what)

    def path(self, kind: str, name: str, suffix: str = ".json") -> Path:
        """Return where a piece is kept; names of any characters get a safe file name."""
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        if safe != name or safe.startswith("."):
            safe = f"{safe.lstrip('.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return self.folder / kind / f"{safe}{suffix}"

    def has(self, kind: str, name: str) -> bool:
        """Tell whether a piece is finished."""
        return any(self.path(kind, name, suffix).is_file() for suffix in (".json", ".npz"))

    def write(self, kind: str, name: str, content: Any) -> None:
        """Keep a piece of JSON types, or of arrays by name."""
        values = content.values() if isinstance(content, dict) else ()
        if not any(isinstance(value, np.ndarray) for value in values):
            write_json(self.path(kind, name), content)
            return
        with written_beside(self.path(kind, name, ".npz")) as temporary:
            np.savez_compressed(temporary, **content)

    def read(self, kind: str, name: str) -> Any:
        """Return a piece of JSON types; missing numbers come back as None."""
        return read_json(self.path(kind, name))

    def read_arrays(self, kind: str, name: str) -> dict[str, np.ndarray]:
        """Return a piece of arrays."""
        with np.load(self.path(kind, name, ".npz"), allow_pickle=False) as arrays:
            return dict(arrays)


@dataclass(frozen=True)
class Tables:
    """The tables of a benchmark; NaN where something has no value.

    Attributes:
        measurements: Everything that was measured: image_id, method, metric, value. A metric that
            was asked for has a row even where it has no value.
        images: A row per image: image_id, lesion_id, dx, predicted, target, probability,
            metric_passes (what the metrics took), and what an extension says of the image.
        cost: A row per image and method: forward, backward, seconds, as if run alone.
        randomization: A row per order, step, image and method: spearman, ssim.
        more: An extension's tables by name.
    """

    measurements: pd.DataFrame
    images: pd.DataFrame
    cost: pd.DataFrame
    randomization: pd.DataFrame = field(default_factory=pd.DataFrame)
    more: dict[str, pd.DataFrame] = field(default_factory=dict)

    def wide(self) -> pd.DataFrame:
        """Return a row per image and method: about the image, then a column for each metric."""
        found = self.measurements.metric.unique().tolist()
        metrics = [*(n for n in _ORDER if n in found), *(n for n in found if n not in _ORDER)]
        methods = self.measurements.method.unique()
        values = self.measurements.set_index(["image_id", "method", "metric"]).value.unstack()
        rows = pd.MultiIndex.from_product([self.images.image_id, methods])
        about = self.images[[*_ABOUT]].loc[np.repeat(self.images.index, len(methods))]
        about["method"] = rows.get_level_values(1)
        about["control"] = [is_control(name) for name in about.method]
        measured = values.reindex(index=rows, columns=metrics).reset_index(drop=True)
        return pd.concat([about.reset_index(drop=True), measured], axis=1)

    def values(self, metric: str, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return a metric's values (images, methods), and the lesion of each image."""
        rows = self.measurements[self.measurements.metric == metric]
        wide = rows.pivot(index="image_id", columns="method", values="value")
        images = self.images[self.images.image_id.isin(wide.index)]
        ordered = wide.reindex(index=images.image_id, columns=list(names))
        return ordered.to_numpy(np.float64), images.lesion_id.to_numpy()

    def by_name(self) -> dict[str, pd.DataFrame]:
        """Return the tables by file name, empty ones left out."""
        named = {"measurements": self.measurements, "benchmark": self.wide(), "images": self.images}
        named |= {"cost": self.cost, "randomization": self.randomization, **self.more}
        return {name: table for name, table in named.items() if len(table)}


_ABOUT = ("image_id", "lesion_id", "dx", "predicted", "target", "probability")
_ORDER = [*METRICS, *(STRUCTURE_PREFIX + name for name in LOCALIZATION)]


def assemble(
    store: Store,
    plan: BenchmarkPlan,
    items: Sequence[Item],
    names: Sequence[str],
    extension: Extension,
    appendix: Sequence[str] = (),
) -> Tables:
    """Read all pieces; the order of rows does not depend on when they were made.

    ``appendix`` are methods of which maps were measured as they are besides.
    """
    randomization = _randomization(store, plan, items, names)
    expensive = _expensive(store, plan, items, randomization)
    rows, images, cost = [], [], []
    for item in items:
        piece = store.read("images", item.image_id)
        about = {"image_id": item.image_id, "lesion_id": item.lesion_id, "dx": item.dx}
        decision = {name: piece[name] for name in (*_ABOUT[3:], "metric_passes")}
        facts = {k: np.nan if v is None else v for k, v in piece["facts"].items()}
        images.append({**about, **decision, **facts})
        for name in (*names, *map(as_it_is, appendix)):
            found = piece["rows"][name]
            values = {**found["values"], **expensive.get((item.image_id, name), {})}
            ordered = [*(n for n in _ORDER if n in values), *(n for n in values if n not in _ORDER)]
            rows += [(item.image_id, name, metric, values[metric]) for metric in ordered]
            if "cost" in found:
                cost.append({"image_id": item.image_id, "method": name, **found["cost"]})
    measurements = pd.DataFrame(rows, columns=["image_id", "method", "metric", "value"])
    measurements["value"] = measurements.value.astype(np.float64)
    more = {name: one for name, one in extension.tables(store, names).items() if len(one)}
    return Tables(measurements, pd.DataFrame(images), pd.DataFrame(cost), randomization, more)


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


def randomization_name(order: str, number: int, start: int) -> str:
    """Return the name of the piece of a step, and of the batch that begins with image ``start``.

    The first step of every order destroys the last layer alone, so it has one name.
    """
    return f"{order if number else 'first'}-{number:02d}-{start:04d}"


def _randomization(
    store: Store, plan: BenchmarkPlan, items: Sequence[Item], names: Sequence[str]
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    measured = items[: plan.randomization]
    for order in plan.orders if measured else ():
        number = 0
        while store.has("randomization", randomization_name(order, number, 0)):
            rows += _step(store, measured, plan.batch_size, (order, number), names)
            number += 1
    return pd.DataFrame(rows)


def _step(
    store: Store, items: Sequence[Item], size: int, which: tuple[str, int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rows of one step of an order, method by method."""
    starts = range(0, len(items), size)
    pieces = [store.read("randomization", randomization_name(*which, at)) for at in starts]
    about = {"order": which[0], "step": which[1], "stage": pieces[0]["stage"]}
    rows = []
    for name in (one for one in names if one in pieces[0]["rows"]):
        found = [piece["rows"][name] for piece in pieces]
        joined = {measure: [v for one in found for v in one[measure]] for measure in found[0]}
        for place, item in enumerate(items):
            values = {measure: of[place] for measure, of in joined.items()}
            rows.append({**about, "image_id": item.image_id, "method": name, **values})
    return rows

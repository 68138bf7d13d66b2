"""The benchmark: every method and baseline, every metric, resumable.

OUT/benchmark.csv      a row for each image and method: every metric (no timings, so that a
                       resumed run ends with the very same file)
OUT/cost.csv           passes and seconds of each image and method
OUT/lesions.csv        asymmetry, border, color and zone areas of each lesion
OUT/randomization.csv  similarity after each step of parameter randomization
OUT/consistency.csv    a row for each lesion photographed twice, and method
OUT/shortcuts.csv      a row for each image and probe
OUT/summary.json       means with intervals, differences, rankings, cost
OUT/pieces/            finished pieces, by which a run goes on after a kill
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.manifest import read_manifest, select_split
from dermlens.explain.base import Explainer
from dermlens.explain.registry import METHODS
from dermlens.files import write_csv, write_json
from dermlens.locks import folder_lock
from dermlens.model.bundle import Bundle
from dermlens.progress import progress, say
from dermlens.quality.baselines import UNTRAINED_PREFIX
from dermlens.quality.benchmark_measure import Bench
from dermlens.quality.benchmark_plan import (
    BenchmarkPlan,
    Item,
    load,
    select_items,
    select_pairs,
)
from dermlens.quality.benchmark_store import Store
from dermlens.quality.benchmark_summary import summarize
from dermlens.quality.benchmark_tables import Tables, assemble
from dermlens.quality.randomization import stage_steps

NOTE = "Automated proxies, not validated by clinicians. Research and education only."


Tick = Callable[[str], None]
"""Called with a method's name when it is done, in pieces that take long."""


@dataclass(frozen=True)
class _Piece:
    """One piece of work: what it is called, about how many passes and parts, how to make it."""

    kind: str
    name: str
    suffix: str
    effort: int
    parts: int
    make: Callable[[Tick], None]


def run_benchmark(
    bundle: Bundle,
    data: Path,
    out: Path,
    plan: BenchmarkPlan | None = None,
    *,
    extra: Mapping[str, Explainer] | None = None,
) -> dict[str, Path]:
    """Measure methods and baselines on a prepared data set and write tables and summary.

    Pieces that are already in ``out`` are not made again, so a run that was killed goes on.

    Args:
        bundle: Trained model.
        data: Prepared and split data set.
        out: Folder to write.
        plan: What to measure.
        extra: More explainers by name, measured like methods.

    Returns:
        Paths by name.

    Raises:
        DataError: If the data set is not split, or an image cannot be read.
        UsageError: If ``out`` holds a benchmark of another plan, bundle or data set, or another run
            writes into it.
    """
    plan = BenchmarkPlan() if plan is None else plan
    data, out = Path(data), Path(out)
    table = select_split(read_manifest(data), plan.split)
    items = select_items(table, data, plan.n, plan.seed)
    pairs = select_pairs(table, data, plan.pairs, plan.seed)
    if len(items) < plan.n:
        say(f"The split {plan.split} holds only {len(items)} images; all are measured.")
    bench = Bench(bundle, plan, extra)
    with folder_lock(out):
        store = Store(out / "pieces", _fingerprint(bench, items, pairs, extra))
        _make(_pieces(bench, store, items, pairs), store)
        tables = assemble(store, plan, items, pairs, bench.names, mirrors=_drawn(items))
        return _write(out, tables, bench, plan)


def _write(out: Path, tables: Tables, bench: Bench, plan: BenchmarkPlan) -> dict[str, Path]:
    paths = {
        name: write_csv(out / f"{name}.csv", table) for name, table in tables.by_name().items()
    }
    about = {
        "note": NOTE,
        "model": bench.bundle.identity,
        "plan": plan.to_json(),
        "scorers": bench.scorers,
        "input_size": list(bench.bundle.input_size),
        "backbone": bench.bundle.architecture.backbone,
        "synthetic_model": bench.bundle.synthetic,
    }
    paths["summary"] = write_json(
        out / "summary.json", {**about, **summarize(tables, bench.names, seed=plan.seed)}
    )
    return paths


def _drawn(items: list[Item]) -> bool:
    """Only drawn data sets have structures, and only there photographs may be mirrored."""
    return any(item.structure is not None for item in items)


def _fingerprint(
    bench: Bench,
    items: list[Item],
    pairs: list[tuple[Item, Item]],
    extra: Mapping[str, Explainer] | None,
) -> dict[str, Any]:
    """Return everything that results depend on."""
    bundle = bench.bundle
    return {
        **bench.plan.to_json(),
        "scorer": bench.scorers,
        "weights": bundle.facts["sha256"]["weights.h5"],
        "architecture": bundle.architecture.to_json(),
        "temperature": bundle.calibration.temperature,
        "images": [item.image_id for item in items],
        "lesions photographed twice": [first.lesion_id for first, _ in pairs],
        "extra": sorted(extra or {}),
    }


def _pieces(
    bench: Bench, store: Store, items: list[Item], pairs: list[tuple[Item, Item]]
) -> list[_Piece]:
    """Return all pieces of work in the order in which they are made."""
    plan, size = bench.plan, bench.bundle.input_size
    effort, parts = efforts(bench), len(bench.names)
    pieces = []
    for item in items:

        def whole(tick: Tick, item: Item = item) -> None:
            store.write("images", item.image_id, bench.measure_image(load(item, size), tick))

        pieces.append(_Piece("images", item.image_id, ".json", effort["image"], parts, whole))
    for first, second in pairs:

        def pair(tick: Tick, first: Item = first, second: Item = second) -> None:
            arrays = bench.measure_pair(load(first, size), load(second, size))
            store.write_arrays("pairs", first.lesion_id, arrays)

        pieces.append(_Piece("pairs", first.lesion_id, ".npz", effort["pair"], 1, pair))
    for item in items[: plan.probes]:

        def shortcut(tick: Tick, item: Item = item) -> None:
            store.write("shortcuts", item.image_id, bench.measure_shortcuts(load(item, size)))

        pieces.append(_Piece("shortcuts", item.image_id, ".json", effort["shortcut"], 1, shortcut))
    for item in items[: plan.robustness]:

        def robust(tick: Tick, item: Item = item) -> None:
            store.write("robustness", item.image_id, bench.measure_robustness(load(item, size)))

        pieces.append(_Piece("robustness", item.image_id, ".json", effort["robust"], 1, robust))
    return pieces + _randomization_pieces(bench, store, items[: plan.randomization])


def _randomization_pieces(bench: Bench, store: Store, items: list[Item]) -> list[_Piece]:
    """Return a piece for each step of each order; all images of a step share its weights."""
    if not items:
        return []
    size = bench.bundle.input_size
    effort = efforts(bench)["explain"] * len(items)
    inputs: list[tuple[np.ndarray, np.ndarray]] = []

    def loaded() -> tuple[np.ndarray, np.ndarray]:
        if not inputs:
            opened = [load(item, size) for item in items]
            targets = np.array([bench.target(one)[0] for one in opened], np.int32)
            inputs.append((np.stack([one.image for one in opened]), targets))
        return inputs[0]

    pieces = []
    for order in bench.plan.orders:
        for number, step in enumerate(stage_steps(bench.bundle.model, order)):
            name = f"{order}-{number:02d}"

            def randomize(
                tick: Tick,
                name: str = name,
                order: str = order,
                number: int = number,
                step: tuple[str, list[Any]] = step,
            ) -> None:
                rows = bench.measure_randomization(*loaded(), step)
                content = {"order": order, "step": number, "stage": step[0], "rows": rows}
                store.write("randomization", name, content)

            pieces.append(_Piece("randomization", name, ".json", effort, 1, randomize))
    return pieces


def _make(pieces: list[_Piece], store: Store) -> None:
    """Make what is missing, with progress in passes through the network."""
    missing = [p for p in pieces if not store.has(p.kind, p.name, p.suffix)]
    if len(missing) < len(pieces):
        say(f"Resuming: {len(pieces) - len(missing)} of {len(pieces)} pieces are there.")
    with progress("Benchmark (passes)", sum(p.effort for p in missing)) as advance:
        for piece in missing:
            done = 0

            def tick(method: str, piece: _Piece = piece) -> None:
                nonlocal done
                done += piece.effort // piece.parts
                advance(piece.effort // piece.parts, f"{piece.name} {method}")

            piece.make(tick)
            advance(piece.effort - done, piece.kind)


def efforts(bench: Bench) -> dict[str, int]:
    """Return about how many passes each piece of work needs, for the expected time."""
    passes = sum(_passes(bench, name) for name in bench.names)
    plan = bench.plan
    curves = 2 * (plan.steps - 1) + 18
    image = 4 + plan.squares + plan.sets + len(bench.names) * curves + passes
    cheap = sum(_passes(bench, name) for name in bench.cheap())
    square = bench.bundle.input_size[0] == bench.bundle.input_size[1]
    moves = 7 if square else 3
    return {
        "explain": passes,
        "image": image,
        "pair": 2 * passes,
        "shortcut": 9 + 7 * cheap,
        "robust": (4 + moves + 2) * passes,
    }


def _passes(bench: Bench, name: str) -> int:
    """Return about what one map costs; a backward pass counts as two forward passes."""
    if name in ("lime", "gp_shap"):
        shared = {"lime", "gp_shap"} <= set(bench.plan.methods)
        return bench.plan.samples // (2 if shared else 1)
    about = METHODS.get(name.removeprefix(UNTRAINED_PREFIX))
    return 1 if about is None else about.forward + 2 * about.backward

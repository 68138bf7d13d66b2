"""The benchmark: every method and control, every metric, resumable.

OUT/measurements.csv   what everything else is made from: image_id, method, metric, value
OUT/images.csv         a row for each image: classes, probability, and what else is known of it
OUT/benchmark.csv      the measurements again, a row for each image and method (no timings, so that
                       a resumed run ends with the very same file)
OUT/cost.csv           passes and seconds of each image and method
OUT/randomization.csv  similarity after each step of parameter randomization
OUT/summary.json       means with intervals, differences, rankings, cost
OUT/pieces/            finished pieces, by which a run goes on after a kill

An extension (``benchmark_plan.Extension``) adds tables of its own.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.manifest import read_manifest, select_split
from dermlens.explainers.base import Explainer
from dermlens.explainers.perturbation import Scorer
from dermlens.explainers.registry import METHODS
from dermlens.files import write_csv, write_json
from dermlens.labels import LabelSet
from dermlens.locks import folder_lock
from dermlens.model.lite import weights_checksum
from dermlens.progress import progress, say
from dermlens.quality.benchmark_measure import Bench
from dermlens.quality.benchmark_plan import (
    BenchmarkPlan,
    Extension,
    Item,
    Piece,
    Tick,
    load,
    select_items,
)
from dermlens.quality.benchmark_summary import summarize
from dermlens.quality.benchmark_tables import Store, Tables, assemble, randomization_name
from dermlens.quality.controls import UNTRAINED_PREFIX
from dermlens.quality.randomization import stage_steps
from dermlens.quality.removal import ROAD_LEVELS

NOTE = "Automated proxies, not validated by clinicians. Research and education only."


Maker = Callable[[Sequence[Piece], Store], None]
"""Makes those of the pieces that are not in the store yet."""


@dataclass(frozen=True)
class Prepared:
    """A benchmark before anything is measured: what measures, and which images."""

    bench: Bench
    items: tuple[Item, ...]
    chosen: tuple[str, ...]

    def pieces(self) -> list[Piece]:
        """Return all pieces of work in the order in which they are made here."""
        return _pieces(self.bench, self.items)

    def store(self, out: Path) -> Store:
        """Return the finished pieces of a folder.

        Raises:
            UsageError: If they are of another benchmark.
        """
        return Store(out / "pieces", _fingerprint(self))


def prepare_benchmark(
    classifier: Any,
    data: Path,
    plan: BenchmarkPlan,
    *,
    labels: LabelSet | None = None,
    extension: Extension | None = None,
    scorers: Mapping[str, Scorer] | None = None,
    extra: Mapping[str, Explainer] | None = None,
    leave_out: Collection[str] = (),
) -> Prepared:
    """Choose the images and build what measures them; arguments are those of ``run_benchmark``."""
    table = select_split(read_manifest(data), plan.split)
    table = table[~table.image_id.isin(set(leave_out))].reset_index(drop=True)
    bench = Bench(classifier, plan, extra, scorers, extension)
    codes = (labels or bench.classifier.labels).codes
    items = select_items(table, data, codes, plan.n, plan.seed)
    chosen = bench.extension.select(table, data, codes, items, plan.seed)
    return Prepared(bench, tuple(items), tuple(chosen))


def run_benchmark(
    classifier: Any,
    data: Path,
    out: Path,
    plan: BenchmarkPlan | None = None,
    *,
    labels: LabelSet | None = None,
    extension: Extension | None = None,
    scorers: Mapping[str, Scorer] | None = None,
    extra: Mapping[str, Explainer] | None = None,
    about: Mapping[str, Any] | None = None,
    leave_out: Collection[str] = (),
    make: Maker | None = None,
) -> dict[str, Path]:
    """Measure methods and controls on a prepared data set and write tables and summary.

    Pieces that are already in ``out`` are not made again, so a run that was killed goes on.

    Args:
        classifier: ``ImageClassifier``, or a Keras model that it takes without more.
        data: Prepared and split data set.
        out: Folder to write.
        plan: What to measure.
        labels: Classes of the data set; default those of the classifier.
        extension: What is measured besides, such as ``lesion.benchmark.LesionMeasures``.
        scorers: What evaluates changed images in place of the model, by method
            (``model.scorers.choose_scorers``).
        extra: More explainers by name, measured like methods.
        about: More facts for the summary.
        leave_out: Ids of images that are not measured, as ``training_overlap`` finds them.
        make: Makes the pieces that are missing, in any order; default one after the other in this
            process (``make_pieces``).

    Returns:
        Paths by name.

    Raises:
        DataError: If the data set is not split, or an image cannot be read.
        UsageError: If ``out`` holds a benchmark of another plan, model or data set, or another run
            writes into it.
    """
    plan = plan or BenchmarkPlan()
    data, out = Path(data), Path(out)
    prepared = prepare_benchmark(
        classifier,
        data,
        plan,
        labels=labels,
        extension=extension,
        scorers=scorers,
        extra=extra,
        leave_out=leave_out,
    )
    bench, items = prepared.bench, prepared.items
    if len(items) < plan.n:
        say(f"The split {plan.split} holds only {len(items)} images; all are measured.")
    with folder_lock(out):
        store = prepared.store(out)
        (make or make_pieces)(prepared.pieces(), store)
        tables = assemble(store, plan, items, bench.names, bench.extension, bench.appendix)
        return _write(out, tables, bench, about or {})


def _write(out: Path, tables: Tables, bench: Bench, about: Mapping[str, Any]) -> dict[str, Path]:
    found = tables.by_name()
    paths = {name: write_csv(out / f"{name}.csv", table) for name, table in found.items()}
    identity = bench.classifier.identity
    facts = {
        "note": NOTE,
        "model": identity,
        "plan": {**bench.plan.to_json(), **bench.extension.settings()},
        "scorers": bench.scorers,
        "readings": bench.readings,
        "input_size": list(bench.classifier.input_size),
        "backbone": identity["backbone"],
        **about,
    }
    summary = summarize(
        tables, bench.names, bench.extension, appendix=bench.appendix, seed=bench.plan.seed
    )
    paths["summary"] = write_json(out / "summary.json", {**facts, **summary})
    return paths


def _fingerprint(prepared: Prepared) -> dict[str, Any]:
    """Return everything that results depend on."""
    bench, classifier = prepared.bench, prepared.bench.classifier
    return {
        **bench.plan.to_json(),
        **bench.extension.settings(),
        "scorers": bench.scorers,
        "readings": bench.readings,
        "weights": f"{weights_checksum(classifier.model):08x}",
        "classes": list(classifier.classes),
        "input_size": list(classifier.input_size),
        "probabilities": [classifier.link, classifier.calibration.temperature],
        "images": [item.image_id for item in prepared.items],
        "chosen": list(prepared.chosen),
        "extra": sorted(bench.extra),
    }


def _pieces(bench: Bench, items: Sequence[Item]) -> list[Piece]:
    """Return all pieces of work in the order in which they are made."""
    plan, size, effort, parts = bench.plan, bench.classifier.input_size, efforts(bench), bench.names

    def whole(item: Item, tick: Tick) -> Any:
        return bench.measure_image(load(item, size), tick)

    def robust(item: Item, tick: Tick) -> Any:
        return bench.measure_robustness(load(item, size))

    return [
        *(
            Piece("images", item.image_id, effort["image"], partial(whole, item), len(parts))
            for item in items
        ),
        *bench.extension.pieces(bench, effort),
        *(
            Piece("robustness", item.image_id, effort["robust"], partial(robust, item))
            for item in items[: plan.robustness]
        ),
        *_randomization_pieces(bench, items[: plan.randomization], effort["explain"]),
    ]


def _randomization_pieces(bench: Bench, items: Sequence[Item], effort: int) -> list[Piece]:
    """Return a piece for each batch of images and step of each order.

    All steps of a batch come before the next batch, which has to be explained by the intact
    network only once then. Both orders begin with the same step, which is made once.
    """

    @lru_cache(maxsize=1)
    def loaded(start: int) -> tuple[np.ndarray, np.ndarray]:
        batch = items[start : start + bench.plan.batch_size]
        opened = [load(item, bench.classifier.input_size) for item in batch]
        targets = np.concatenate([bench.case(one)[0].targets for one in opened])
        return np.stack([one.image for one in opened]), targets

    def randomize(start: int, step: tuple[str, list[Any]], tick: Tick) -> Any:
        rows = bench.measure_randomization(*loaded(start), step)
        return {"stage": step[0], "rows": rows}

    size, model = bench.plan.batch_size, bench.classifier.model
    pieces: dict[str, Piece] = {}
    for start in range(0, len(items), size):
        passes = effort * len(items[start : start + size])
        for order in bench.plan.orders:
            for number, step in enumerate(stage_steps(model, order)):
                name = randomization_name(order, number, start)
                made = partial(randomize, start, step)
                pieces.setdefault(name, Piece("randomization", name, passes, made))
    return list(pieces.values())


def missing_pieces(pieces: Sequence[Piece], store: Store) -> list[Piece]:
    """Return the pieces that are still to be made, and say so if some are there."""
    missing = [p for p in pieces if not store.has(p.kind, p.name)]
    if len(missing) < len(pieces):
        say(f"Resuming: {len(pieces) - len(missing)} of {len(pieces)} pieces are there.")
    return missing


def make_pieces(pieces: Sequence[Piece], store: Store) -> None:
    """Make what is missing one after the other, with progress in passes through the network."""
    missing = missing_pieces(pieces, store)
    with progress("Benchmark (passes)", sum(p.effort for p in missing)) as advance:
        for piece in missing:
            done = 0

            def tick(method: str, piece: Piece = piece) -> None:
                nonlocal done
                done += piece.effort // piece.parts
                advance(piece.effort // piece.parts, f"{piece.name} {method}")

            store.write(piece.kind, piece.name, piece.make(tick))
            advance(piece.effort - done, piece.kind)


def efforts(bench: Bench) -> dict[str, int]:
    """Return about how many passes pieces of work need, for the expected time.

    ``"explain"`` and ``"cheap"`` are one map of every method, and of every cheap one.
    """
    plan = bench.plan
    passes = sum(_passes(bench, name) for name in bench.names)
    curves = 2 * (plan.steps - 1) + 2 * len(ROAD_LEVELS)
    square = bench.classifier.input_size[0] == bench.classifier.input_size[1]
    return {
        "explain": passes,
        "cheap": sum(_passes(bench, name) for name in bench.cheap),
        "image": 4
        + plan.squares
        + plan.sets
        + (len(bench.names) + len(bench.appendix)) * curves
        + passes,
        "robust": (4 + (7 if square else 3) + 2) * passes,
    }


def _passes(bench: Bench, name: str) -> int:
    """Return about what one map costs; a backward pass counts as two forward passes."""
    if name in bench.sharing:
        return bench.plan.n_samples // len(bench.sharing)
    about = METHODS.get(name.removeprefix(UNTRAINED_PREFIX))
    return 1 if about is None else about.forward + 2 * about.backward

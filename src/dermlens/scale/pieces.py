"""The pieces of a benchmark on an engine: each worker builds the benchmark for itself.

A piece is known by its kind and its name; the driver puts the tables together.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dermlens.data.manifest import data_labels
from dermlens.errors import ExplanationError
from dermlens.model.bundle import load_bundle
from dermlens.model.scorers import scorers_named
from dermlens.progress import say
from dermlens.quality.benchmark import missing_pieces, prepare_benchmark
from dermlens.quality.benchmark_plan import BenchmarkPlan, Extension, Piece
from dermlens.quality.benchmark_tables import Store
from dermlens.scale.engines import Engine, Task


@dataclass(frozen=True)
class BenchmarkJob:
    """What every worker needs to build the same benchmark; plain values that can be sent.

    Attributes:
        bundle: Folder of the model.
        data: Prepared data set.
        out: Folder of the benchmark.
        plan: What to measure.
        extension: What is measured besides, not in use yet.
        scorers: Names of scorers by method.
        leave_out: Ids of images that are not measured.
        custom: Layers of the user's own, ``module:Name``.
    """

    bundle: Path
    data: Path
    out: Path
    plan: BenchmarkPlan
    extension: Extension
    scorers: dict[str, str] = field(default_factory=dict)
    leave_out: Collection[str] = ()
    custom: tuple[str, ...] = ()


def piece_maker(job: BenchmarkJob) -> Callable[[tuple[str, str]], None]:
    """Build a benchmark and return the function that makes a piece of it, given kind and name.

    Raises:
        UsageError: If the benchmark is not the one that the folder holds.
    """
    bundle = load_bundle(job.bundle, custom=job.custom)
    prepared = prepare_benchmark(
        bundle,
        job.data,
        job.plan,
        labels=data_labels(job.data),
        extension=job.extension,
        scorers=scorers_named(bundle, job.scorers),
        leave_out=job.leave_out,
    )
    pieces = {(piece.kind, piece.name): piece for piece in prepared.pieces()}
    return partial(_make_piece, pieces, prepared.store(job.out))


def _make_piece(
    pieces: dict[tuple[str, str], Piece], store: Store, address: tuple[str, str]
) -> None:
    piece = pieces[address]
    store.write(piece.kind, piece.name, piece.make(lambda method: None))


def pieces_on(engine: Engine, job: BenchmarkJob) -> Callable[[Sequence[Piece], Store], None]:
    """Return what makes the pieces of a benchmark on an engine, for ``run_benchmark``."""

    def make(pieces: Sequence[Piece], store: Store) -> None:
        tasks = [
            Task(f"{piece.kind}/{piece.name}", (piece.kind, piece.name), piece.effort, 0)
            for piece in missing_pieces(pieces, store)
        ]
        lost = engine.run(partial(piece_maker, job), tasks, "Benchmark")
        for task in lost:
            say(f"The piece {task.name} was given up: it ended its worker each time.")
        if lost:
            raise ExplanationError(
                f"{len(lost)} pieces of the benchmark could not be made, first {lost[0].name}. "
                "The others are kept; the same command tries again."
            )

    return make

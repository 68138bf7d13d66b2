"""A benchmark whose pieces are made by several workers, each with a model of its own."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from dermlens.data.manifest import data_labels
from dermlens.errors import ExplanationError, UsageError
from dermlens.lesion.benchmark import LesionMeasures
from dermlens.model.bundle import load_bundle
from dermlens.quality.benchmark import run_benchmark
from dermlens.quality.benchmark_plan import BenchmarkPlan
from dermlens.scale.engines import Build, Engine, Task
from dermlens.scale.pieces import BenchmarkJob, piece_maker, pieces_on
from serving_support import save_untrained

PLAN = BenchmarkPlan(
    methods=("grad_cam",), n=3, split="test", batch_size=8, n_samples=20, steps=2,
    squares=3, sets=3, robustness=1, randomization=1, orders=("cascading",), controls=False,
)  # fmt: skip


class TwoWorkers(Engine):
    """Two workers by turns, the last piece first; pieces of a kind may be given up."""

    gives_up = ""

    def run(self, build: Build, tasks: Sequence[Task], title: str) -> list[Task]:
        workers, lost = (build(), build()), []
        for number, task in enumerate(reversed(tasks)):
            if self.gives_up and task.name.startswith(self.gives_up):
                lost.append(task)
            else:
                workers[number % 2](task.what)
        return lost


class Forgetful(TwoWorkers):
    gives_up = "robustness"


def test_tables_are_those_of_one_process(prepared: Path, tmp_path: Path) -> None:
    bundle = save_untrained(tmp_path / "bundle")
    labels = data_labels(prepared)

    def run(out: Path, engine: Engine | None = None) -> None:
        job = BenchmarkJob(bundle, prepared, out, PLAN, LesionMeasures(1, 1))
        run_benchmark(
            load_bundle(bundle),
            prepared,
            out,
            PLAN,
            labels=labels,
            extension=LesionMeasures(1, 1),
            make=None if engine is None else pieces_on(engine, job),
        )

    run(tmp_path / "one")
    with pytest.raises(ExplanationError, match=r"1 pieces .* first robustness/"):
        run(tmp_path / "two", Forgetful())
    assert not (tmp_path / "two" / "benchmark.csv").exists()
    run(tmp_path / "two", TwoWorkers())
    tables = sorted(path.name for path in (tmp_path / "one").glob("*.csv"))
    assert {"measurements.csv", "randomization.csv", "shortcuts.csv"} <= set(tables)
    for name in set(tables) - {"cost.csv"}:
        ours, theirs = ((tmp_path / one / name).read_bytes() for one in ("one", "two"))
        assert ours == theirs, name
    # A worker with another plan must not add to these.
    shutil.rmtree(tmp_path / "two" / "pieces" / "robustness")
    other = BenchmarkJob(bundle, prepared, tmp_path / "two", PLAN, LesionMeasures(0, 0))
    with pytest.raises(UsageError, match="differs in"):
        piece_maker(other)

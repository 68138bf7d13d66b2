"""Options of the commands that can work in shards and on several machines, and what they start."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermlens.errors import UsageError
from dermlens.progress import say
from dermlens.scale.engines import Engine, EngineName

if TYPE_CHECKING:
    from dermlens.model.bundle import Bundle
    from dermlens.quality.benchmark import Maker
    from dermlens.quality.benchmark_plan import BenchmarkPlan
    from dermlens.scale.plan import Job

EngineChoice = Annotated[
    EngineName | None,
    typer.Option(
        help="Work in shards that a killed run goes on with: in this process (local), or on all "
        "cores of this machine or of a cluster (ray).",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Of a running Ray cluster; default one on this machine alone."
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Processes of --engine ray; default one per core.")
]
ShardSize = Annotated[int | None, typer.Option(help="Images per shard; default 256.")]
Part = Annotated[
    str | None,
    typer.Option(
        metavar="K/N",
        help="Make only the K-th of N equal parts of the shards, as one job of an array.",
    ),
]


def chosen_engine(
    engine: EngineName | None,
    address: str | None,
    workers: int | None,
    shard_size: int | None = None,
    part: str | None = None,
) -> Engine | None:
    """Return the engine that was asked for, None for work without shards.

    Raises:
        UsageError: If options do not go together.
    """
    if part is not None and engine is EngineName.RAY:
        raise UsageError("--shard is for jobs without Ray. Leave out --shard or --engine ray.")
    if engine is None and part is None:
        if (address, workers, shard_size) != (None, None, None):
            raise UsageError("--address, --workers and --shard-size need --engine. Add it.")
        return None
    return Engine(engine or EngineName.LOCAL, address, workers)


def folder_of_shards(out: Path) -> Path:
    """Return the folder to write; the name of a CSV file becomes that of a folder.

    Raises:
        UsageError: If another file was named.
    """
    if out == Path("predictions.csv"):
        return Path("predictions")
    if out.suffix == ".csv" or out.is_file():
        raise UsageError(f"With --engine or --shard, --out is a folder, not the file {out}.")
    return out


def refuse_in_shards(**given: bool) -> None:
    """Raise UsageError for options that write files for each image."""
    for name, value in given.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option} writes files for each image. Leave out {option}, or --engine."
            )


def finish_shards(
    kind: str,
    bundle: Path,
    images: list[Path],
    out: Path,
    engine: Engine,
    shard_size: int | None,
    part: str | None,
    settings: dict[str, Any],
) -> None:
    """Make the shards of ``predict`` or ``explain``; exit code 1 if an image or a shard is missing.

    Args:
        kind: ``"predict"`` or ``"explain"``.
        bundle: Folder of the model.
        images: A data set, or files and folders.
        out: Folder to write.
        engine: Where the work is done.
        shard_size: Images per shard; default ``plan.SHARD_SIZE``.
        part: ``K/N``, or None for all shards.
        settings: The command's other options.
    """
    from dermlens.cli_options import load_named
    from dermlens.extras import require
    from dermlens.scale.engines import one_thread
    from dermlens.scale.jobs import outcome_lines, run_shards
    from dermlens.scale.plan import SHARD_SIZE, ShardPlan, listed_images, parse_part

    require("pyarrow")
    chosen = None if part is None else parse_part(part)
    if engine.name is EngineName.RAY:
        require("ray")
    one_thread()
    listed = listed_images(images)
    loaded = load_named(bundle)
    job = (
        _predicting(loaded, settings)
        if kind == "predict"
        else _explaining(loaded, settings, len(listed))
    )
    del loaded
    plan = ShardPlan(job, listed, SHARD_SIZE if shard_size is None else shard_size)
    outcome = run_shards(plan, out, engine, chosen)
    for line in outcome_lines(outcome, plan, out):
        say(line)
    failed = outcome.manifest is not None and outcome.manifest.errors
    if failed or outcome.given_up:
        raise typer.Exit(1)


def _job(kind: str, bundle: "Bundle", settings: dict[str, Any]) -> "Job":
    from dermlens.model.foreign import allowed_layers
    from dermlens.scale.plan import Job

    fingerprint = bundle.identity["fingerprint"]
    return Job(kind, bundle.path.absolute(), fingerprint, settings, tuple(allowed_layers))


def _predicting(bundle: "Bundle", settings: dict[str, Any]) -> "Job":
    """Return a job of predictions whose settings are checked."""
    from dermlens.serve.prediction import check_prediction

    check_prediction(bundle, **settings)
    return _job("predict", bundle, settings)


def _explaining(bundle: "Bundle", settings: dict[str, Any], count: int) -> "Job":
    """Return a job of explanations whose settings are checked; the int8 copy is made if used."""
    from dermlens.explainers.output import parse_output
    from dermlens.explainers.target import check_targets
    from dermlens.model.scorers import choose_scorers
    from dermlens.report.comparer import chosen_methods
    from dermlens.report.explanation import check_numbers

    check_numbers(settings["batch_size"], settings["seed"])
    names = chosen_methods(bundle, settings["methods"])
    parse_output(settings["output"], bundle)
    check_targets(settings["target"], bundle.labels)
    scorers = choose_scorers(bundle, names, settings["scorer"], images=count)
    chosen = {name: one.name for name, one in scorers.items()}
    given = {name: value for name, value in settings.items() if name != "scorer"}
    return _job("explain", bundle, {**given, "methods": list(names), "scorers": chosen})


def benchmark_maker(
    engine: Engine | None,
    bundle: "Bundle",
    data: Path,
    out: Path,
    plan: "BenchmarkPlan",
    lesions: tuple[int, int],
    scorers: dict[str, str],
    leave_out: Collection[str],
) -> "Maker | None":
    """Return what makes the pieces of ``dermlens benchmark`` on an engine; None for this process.

    ``lesions`` are the numbers of pairs and of probes, ``scorers`` names by method.
    """
    if engine is None or engine.name is EngineName.LOCAL:
        return None
    from dermlens.extras import require
    from dermlens.lesion.benchmark import LesionMeasures
    from dermlens.model.foreign import allowed_layers
    from dermlens.scale.pieces import BenchmarkJob, pieces_on

    require("ray")
    job = BenchmarkJob(
        bundle.path.absolute(),
        data.absolute(),
        out.absolute(),
        plan,
        LesionMeasures(*lesions),
        scorers,
        tuple(sorted(leave_out)),
        tuple(allowed_layers),
    )
    return pieces_on(engine, job)

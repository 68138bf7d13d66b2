"""The command line: parse, call, print.

Every command imports what it needs when it runs, so that ``dermlens --help`` is instant.
"""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dermlens import __version__
from dermlens.cli_audit import audit_claim, audit_split
from dermlens.cli_changes import changes, criteria
from dermlens.cli_data import data_app
from dermlens.cli_evidence import cases
from dermlens.cli_explain import benchmark, compare, explain, scorer
from dermlens.cli_model import adopt, card, export, pack, recipe, stress
from dermlens.cli_options import BundlePath, Seed, claim, held, parse_size, say_written
from dermlens.cli_predict import evaluate, patient_facts, predict
from dermlens.errors import DermlensError
from dermlens.progress import printable, say
from dermlens.quiet import quiet_tensorflow

_INTERRUPTED = 130
"""What typer exits with after Ctrl+C."""
_RESUMING = (
    "Interrupted. 'dermlens train' continues with --resume, 'dermlens benchmark' and shards with "
    "the same command."
)

app = typer.Typer(
    name="dermlens",
    help="Train, explain and measure a classifier of dermatoscopic images. Research and "
    "education only, not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
for command in (
    explain,
    compare,
    cases,
    benchmark,
    scorer,
    recipe,
    adopt,
    pack,
    export,
    stress,
    card,
    evaluate,
    predict,
    patient_facts,
    audit_claim,
    audit_split,
    changes,
    criteria,
):
    app.command()(command)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    custom: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:NAME",
            help="Layer of your own that an adopted model holds; its module is run. May be given "
            "several times.",
        ),
    ] = None,
) -> None:
    """Options of the program itself."""
    if custom:
        from dermlens.model.foreign import allowed_layers

        allowed_layers.extend(custom)
    if version:
        say(f"dermlens {__version__}")
        raise typer.Exit


@app.command()
def train(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Prepared and split data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    preset: Annotated[
        str, typer.Option(help="Recipe to start from: ham10000, demo or scratch.")
    ] = ("ham10000"),
    weights: Annotated[
        str | None,
        typer.Option(help="imagenet (download), shipped, none, or a .h5 file by layer name."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Such as resnet50, densenet169.")] = None,
    size: Annotated[str | None, typer.Option(help="Input size HxW, such as 192x256.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Fine-tuning epochs.")] = None,
    head_epochs: Annotated[int | None, typer.Option(help="Epochs of phase one.")] = None,
    train_from: Annotated[
        str | None, typer.Option(help="First stage to fine-tune, such as conv4; all; none.")
    ] = None,
    pretrained_rate: Annotated[float | None, typer.Option(help="Peak rate, backbone.")] = None,
    fresh_rate: Annotated[float | None, typer.Option(help="Peak rate, fresh layers.")] = None,
    imbalance: Annotated[str | None, typer.Option(help="none, weights or sampling.")] = None,
    imbalance_power: Annotated[float, typer.Option(help="0..1, of imbalance handling.")] = 0.5,
    label_smoothing: Annotated[float | None, typer.Option(help="0..1.")] = None,
    focal_gamma: Annotated[float | None, typer.Option(help="Focal loss; 0 for none.")] = None,
    mixup: Annotated[
        float | None, typer.Option(help="Mix pairs of images (Beta parameter); 0 for none.")
    ] = None,
    augmentation: Annotated[
        str | None, typer.Option(help="none, normal or strong variation of training images.")
    ] = None,
    degradation: Annotated[
        str | None,
        typer.Option(
            help="none, normal or strong: light, color, blur, compression and hair that the "
            "network, not its teachers, gets to see."
        ),
    ] = None,
    teachers: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            help="Bundle to learn from beside the labels (distillation); may be given several "
            "times.",
        ),
    ] = None,
    teacher_share: Annotated[
        float | None, typer.Option(help="Share of the loss the teachers set, 0..1.")
    ] = None,
    patience: Annotated[int | None, typer.Option(help="Early stopping; 0 for never.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or mixed_bfloat16.")] = None,
    early_size: Annotated[
        str | None, typer.Option(help="Smaller HxW for the first epochs (progressive resizing).")
    ] = None,
    early_epochs: Annotated[int | None, typer.Option(help="Epochs at --early-size.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Sets everything random.")] = None,
    extra: Annotated[
        list[Path] | None,
        typer.Option(
            help="Prepared data set that serves training alone; may be given several times."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run in --out.")] = False,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT,…",
            help="Addresses of all workers that train together, the first one writes; or set "
            "TF_CONFIG. Their ports are open to everybody who reaches them.",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Which of --workers this is, from 0.")] = None,
) -> None:
    """Train a classifier; write RUN/bundle, history.csv and TensorBoard logs.

    Example: dermlens train DATA --out runs/first --weights imagenet --epochs 20
    """
    from dataclasses import replace

    from dermlens.data.augmentation import augmentation_named
    from dermlens.data.degradation import degradation_named
    from dermlens.data.pipeline import ImbalanceHandling
    from dermlens.model.configuration import preset as preset_configuration
    from dermlens.model.replicas import cluster_of, join_workers, replicas_here
    from dermlens.model.training import train_together
    from dermlens.report.evaluation_report import write_training_figures

    cluster = cluster_of(workers, rank)
    options: dict[str, Any] = {
        **context.params,
        "augmentation": None if augmentation is None else augmentation_named(augmentation),
        "teachers": tuple(teachers) if teachers else None,
        "degradation": None if degradation is None else degradation_named(degradation),
        "early_size": None if early_size is None else parse_size(early_size),
        "imbalance": None if imbalance is None else ImbalanceHandling(imbalance, imbalance_power),
    }
    network = {"backbone": backbone, "input_size": None if size is None else parse_size(size)}
    for name in ("data", "out", "preset", "resume", "extra", "backbone", "size", "imbalance_power"):
        del options[name]
    del options["workers"], options["rank"]
    architecture = replace(preset_configuration(preset).architecture, **_given(network))
    configuration = preset_configuration(preset, architecture=architecture, **_given(options))
    writes = cluster is None or cluster[1] == 0
    if writes:
        claim(out, reading=data)
    replicas = replicas_here() if cluster is None else join_workers(*cluster)
    train_together(data, out, configuration, replicas, extra=extra or (), resume=resume)
    if writes:
        say_written(write_training_figures(out, data))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@app.command("app")
def web(
    bundle: BundlePath = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Prepared data set whose test images are offered, with their diagnoses, and whose "
            "pictures of known cases are shown; it is remembered for the next time.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Default: the first free from 7860.")] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Make a public address through Gradio's service.")
    ] = False,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name that visitors must give, with the password in DERMLENS_PASSWORD; it is "
            "asked for where that is not set.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name by which the page is addressed, such as that of a proxy before it; may be "
            "given several times.",
        ),
    ] = None,
) -> None:
    """Serve the web interface: analyze and explain images in a browser.

    Example: dermlens app runs/first/bundle --port 7860
    """
    from dermlens.extras import optional

    optional("gradio")
    from dermlens.model.bundle import find_bundle
    from dermlens.serve.app import launch
    from dermlens.serve.app_limits import sign_in

    launch(
        find_bundle(bundle),
        host,
        port,
        share,
        sign_in(auth),
        tuple(allow_host or ()),
        examples=examples,
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("demo"),
    images: Annotated[int, typer.Option(help="Drawn images.")] = 1600,
    epochs: Annotated[int | None, typer.Option(help="Fine-tuning epochs.")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the whole network from nothing.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Do everything on the embedded data set of drawn images: minutes, no download.

    The shipped network gets a new last layer, which takes seconds to train.

    Example: dermlens demo --out demo
    """
    from dermlens.serve.demo import run_demo

    claim(out)
    page, good = run_demo(out, images=images, epochs=epochs, from_scratch=from_scratch, seed=seed)
    say(f"Open {page}")
    if not good:
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; errors that a user can act on become one sentence and exit code 2.

    Args:
        arguments: Command and options; default those of the process.
    """
    quiet_tensorflow()
    try:
        with held:
            app(args=None if arguments is None else list(arguments), prog_name="dermlens")
    except DermlensError as error:
        typer.echo(f"Error: {printable(str(error))}", err=True)
        sys.exit(2)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        reason = error.strerror or str(error)
        typer.echo(f"Error: {where}{reason}. Check the path, the rights and the space.", err=True)
        sys.exit(2)
    except Exception as error:
        # TensorFlow and others report a full disk by errors of their own.
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        typer.echo("Error: The disk is full. Free some space and run this again.", err=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            typer.echo(_RESUMING, err=True)
        raise

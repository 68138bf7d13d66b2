"""The command that runs the four experiments on images."""

from pathlib import Path
from typing import Annotated

import typer

from dermlens.cli_options import (
    BatchSize,
    BundleAndImages,
    ScorerChoice,
    Seed,
    claim,
    load_named,
)
from dermlens.progress import say


def compare(
    paths: BundleAndImages,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("comparisons"),
    methods: Annotated[
        str, typer.Option(help="Names separated by commas; 'six' for the six methods; 'all'.")
    ] = "six",
    target: Annotated[
        str | None, typer.Option(help="A code, predicted (the default), runner_up or flagged.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Diagnosis to contrast it with, beside the runner-up.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Outline of the lesion, white inside; or a folder of outlines."),
    ] = None,
    scorer: ScorerChoice = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
) -> None:
    """Compare explanations of images: one HTML page each, raw maps and numbers beside it.

    Example: dermlens compare photo.jpg --against mel --mask outline.png --out comparisons
    """
    from dermlens.model.bundle import bundle_and_rest
    from dermlens.report.comparison_files import compare_files
    from dermlens.serve.prediction import find_images

    bundle, images = bundle_and_rest(paths)
    files = find_images(images)
    claim(out)
    written = compare_files(
        load_named(bundle),
        files,
        out,
        methods=methods,
        target=target,
        against=against,
        mask=mask,
        scorer=scorer,
        batch_size=batch_size,
        seed=seed,
    )
    for path in written:
        say(f"Wrote {path}")

"""Commands that audit what others have published: predictions and splits, without images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermlens.cli_options import Seed, claim, say_written
from dermlens.progress import say

if TYPE_CHECKING:
    from dermlens.labels import LabelSet

Register = Annotated[
    Path,
    typer.Option(
        "--data", help="Table of the data set, such as HAM10000_metadata, or a prepared data set."
    ),
]


def audit_claim(
    predictions: Annotated[
        Path, typer.Argument(help="CSV: a column of image names, and a probability per class.")
    ],
    data: Register,
    training: Annotated[
        Path | None,
        typer.Option(
            help="CSV of the images that the model was trained on; default all others of the data "
            "set."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("claim_audit"),
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples over lesions.")] = 2000,
    seed: Seed = 0,
) -> None:
    """Ask published predictions whether they hold what they claim; no images, no model.

    Example: dermlens audit-claim PREDICTIONS.csv --data HAM10000_metadata --out claim_audit
    """
    from dermlens.files import write_json
    from dermlens.model import claim_audit as audit
    from dermlens.report.claim_report import claim_page, finding_lines

    claim(out)
    labels = _labels(data)
    register = audit.read_register(data, labels)
    given = audit.read_claim(predictions, labels)
    seen = None if training is None else audit.read_images(training)
    result, table = audit.audit_claim(
        given, register, labels, training=seen, resamples=resamples, seed=seed
    )
    for line in finding_lines(result["findings"]):
        say(line)
    page = claim_page(result, table, predictions.name)
    say_written([write_json(out / "audit.json", result), page.write(out / "audit.html")])


def audit_split(
    split: Annotated[Path, typer.Argument(help="CSV: a column of image names and one of splits.")],
    data: Register,
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write; default none.", dir_okay=False)
    ] = None,
) -> None:
    """Ask a split whether lesions or patients stand in several parts; exit code 1 if they do.

    Example: dermlens audit-split SPLIT.csv --data HAM10000_metadata
    """
    from dermlens.files import write_json
    from dermlens.model import claim_audit as audit
    from dermlens.report.claim_report import finding_lines, parts_table

    result = audit.audit_split(audit.read_split(split), audit.read_register(data, _labels(data)))
    say(parts_table(result).to_string(index=False))
    for line in finding_lines(result["findings"]):
        say(line)
    if out is not None:
        say_written([write_json(out, result)])
    if not all(one["passed"] for one in result["findings"]):
        raise typer.Exit(1)


def _labels(data: Path) -> "LabelSet":
    from dermlens.data.manifest import data_labels
    from dermlens.labels import HAM10000

    return data_labels(data) if data.is_dir() else HAM10000

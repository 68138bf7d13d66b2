"""Commands that say what would change an answer, and measure the criteria of a lesion."""

from pathlib import Path
from typing import Annotated

import typer

from dermlens.cli_options import BundleAndImages, ScorerChoice, claim, load_named, say_written
from dermlens.progress import printable, say

Outline = Annotated[
    Path | None,
    typer.Option(
        help="Outline of the lesion, white inside; or a folder of outlines. Default: found "
        "automatically where that is sure."
    ),
]
ReferenceFile = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        help="Table of benchmarks/criteria.py; default that of HAM10000's training images.",
    ),
]


def changes(
    paths: BundleAndImages,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("changes"),
    mask: Outline = None,
    scorer: ScorerChoice = None,
    reference: ReferenceFile = None,
) -> None:
    """Find what would change the answer: pictures with parts erased or other colors.

    Changes of the picture, not of the skin; at most 150 passes through the network per image.

    Example: dermlens changes photo.jpg --mask outline.png --out changes
    """
    from dermlens.lesion.criteria_reference import read_reference
    from dermlens.model.bundle import bundle_and_rest
    from dermlens.report.evidence_files import changes_files
    from dermlens.serve.prediction import doubts_of, find_images

    bundle, images = bundle_and_rest(paths)
    files, table = find_images(images), read_reference(reference)
    claim(out)
    classifier = load_named(bundle)
    for line in doubts_of(classifier, files):
        say(line)
    say_written(changes_files(classifier, files, out, reference=table, mask=mask, scorer=scorer))


def criteria(
    paths: BundleAndImages,
    out: Annotated[
        Path | None, typer.Option(help="CSV file to write; default none.", dir_okay=False)
    ] = None,
    mask: Outline = None,
    reference: ReferenceFile = None,
) -> None:
    """Measure asymmetry, border, colors and size of a lesion, and what the network makes of them.

    Exit code 1 if an image has no outline that is sure enough to be measured.

    Example: dermlens criteria photo.jpg --mask outline.png
    """
    from dermlens.files import write_csv
    from dermlens.lesion.criteria_reference import read_reference
    from dermlens.model.bundle import bundle_and_rest
    from dermlens.model.bundle_description import checksum, read_description
    from dermlens.report.evidence_files import criteria_of_files, criteria_table
    from dermlens.report.evidence_view import criteria_lines
    from dermlens.serve.prediction import find_images

    bundle, images = bundle_and_rest(paths)
    files, table = find_images(images), read_reference(reference)
    found = criteria_of_files(checksum(read_description(bundle)[0]), files, table, mask)
    for one in found:
        say(f"{printable(one.path.name)}: {one.lesion.about}")
        if one.measured is not None:
            for line in criteria_lines(one.rows, one.measured, "melanoma"):
                say(line)
    if out is not None:
        say_written([write_csv(out, criteria_table(found))])
    if any(one.measured is None for one in found):
        raise typer.Exit(1)

"""The command that shows known cases like an image, and makes the index they are found in."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermlens.cli_options import BatchSize, Seed, load_named, say_written
from dermlens.errors import UsageError
from dermlens.progress import printable, say

if TYPE_CHECKING:
    from rich.table import Table

    from dermlens.explainers.nearest_cases import NearestCases
    from dermlens.labels import LabelSet
    from dermlens.model.bundle import Bundle
    from dermlens.report.cases_view import Pictures
    from dermlens.report.html import Page
    from dermlens.serve.similar_cases import FileCases

_WIDTH = 120
"""Columns of a table that is not printed on a terminal."""
_NUMBERS = ("similarity", "distance")


def cases(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BUNDLE] IMAGE...",
            help="Images or folders of images; before them, a bundle if it is not to be the one "
            "that comes with dermlens.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Prepared data set that the model was trained on: shows its pictures."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write; default none.", dir_okay=False)
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(help="Look only where a method's map marks the image, such as grad_cam."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Lesions of each diagnosis.")] = 4,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Name diagnoses where the model abstains, too.")
    ] = False,
    build: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Make the bundle's index of cases from the data set it was trained on; no images.",
        ),
    ] = None,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
) -> None:
    """Show the training lesions most like an image, of the two most probable diagnoses.

    Example: dermlens cases photo.jpg --data DATA --out cases.html
    """
    from dermlens.model.bundle import bundle_and_rest

    if build is not None:
        _build(paths or [], build, batch_size)
        return
    bundle, given = bundle_and_rest(paths or [])
    if not given:
        raise UsageError("Give an image, or --build DATA to make an index of cases.")
    from dermlens.explainers.nearest_cases import CaseFinder
    from dermlens.report.cases_view import CasePictures
    from dermlens.serve.prediction import find_images
    from dermlens.serve.similar_cases import cases_of_files

    files = find_images(given)
    pictures = CasePictures(data)
    finder = CaseFinder(load_named(bundle))
    shown = []
    options: dict[str, Any] = {
        "region": region,
        "count": count,
        "batch_size": batch_size,
        "seed": seed,
    }
    for one in cases_of_files(finder, files, anyway=anyway, **options):
        _tell(one, finder.bundle.labels)
        shown.append((one, {} if one.cases is None else pictures.of(one.cases)))
    if out is not None:
        say_written([_page(finder.bundle, shown).write(out)])
    if any(one.failed for one, _ in shown):
        raise typer.Exit(1)


def _tell(one: "FileCases", labels: "LabelSet") -> None:
    """Print what was found for a file."""
    from rich.console import Console

    from dermlens.report import cases_view as view

    name = printable(str(one.path))
    if one.cases is None:
        say(one.said if one.failed else f"{name}: the model abstains. {one.said}")
        return
    say(f"{name}: {one.said}" if one.said else name)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(_table(one.cases, labels))
    for text in (view.known_note(one.cases, labels), *view.sentences(one.cases, labels)):
        if text:
            say(text)
    say(view.about(one.cases, labels))


def _table(found: "NearestCases", labels: "LabelSet") -> "Table":
    """Return the lesions of both diagnoses as a table; those that are not close are left out."""
    from rich.table import Table
    from rich.text import Text

    from dermlens.report.cases_view import ground
    from dermlens.report.facts import class_name, percent

    table = Table()
    for heading in ("diagnosis", "similarity", "distance", "image", "lesion", "established by"):
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left")
    for one in found.leading:
        name = f"{class_name(labels, one.code)}, {percent(one.probability)}"
        if not one.close:
            table.add_row(Text(name), "", "", "no close case")
        for case in one.nearest[: one.close]:
            numbers = f"{case.similarity:.2f}", f"{case.distance:.2f}"
            told = (name, *numbers, case.image_id, case.lesion_id, ground(case))
            # As text: rich would read brackets in a name as markup.
            table.add_row(*map(Text, told))
    return table


def _page(bundle: "Bundle", shown: "Sequence[tuple[FileCases, Pictures]]") -> "Page":
    """Return one page, a section for each file."""
    from dermlens.report import cases_view as view
    from dermlens.report.html import Page
    from dermlens.report.layers import Canvas, outlined

    several = "these images" if len(shown) > 1 else "this image"
    page = Page(f"Known cases like {several}", f"Model: {bundle.label}.")
    for one, pictures in shown:
        page.section(printable(one.path.name), one.said)
        if one.cases is None or one.photograph is None:
            continue
        page.markup(f'<div class="dl-picture">{outlined(Canvas(one.photograph))}</div>')
        page.markup(view.cases_html(one.cases, bundle.labels, pictures))
        page.paragraph(view.about(one.cases, bundle.labels))
    return page


def _build(paths: list[Path], data: Path, batch_size: int) -> None:
    from dermlens.explainers.case_building import add_index
    from dermlens.model.bundle import find_bundle

    if len(paths) > 1:
        raise UsageError("Give --build one bundle at most, and no images.")
    bundle = load_named(find_bundle(paths[0] if paths else None))
    say_written([add_index(bundle, data, batch_size=batch_size)])

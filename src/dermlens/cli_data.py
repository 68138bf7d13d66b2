"""The ``dermlens data`` commands."""

from pathlib import Path
from typing import Annotated

import typer

from dermlens.cli_options import Seed, claim, parse_pairs, parse_size, say_written
from dermlens.progress import say

data_app = typer.Typer(
    help="Download, prepare, draw, split, audit and explore data sets.", no_args_is_help=True
)

Data = Annotated[Path, typer.Argument(help="Prepared data set.")]


@data_app.command()
def download(
    out: Annotated[Path, typer.Option(help="Folder for the archives.")],
    only: Annotated[
        str,
        typer.Option(
            help="Of images, masks, metadata, test; separated by commas. test (the ISIC 2018 test "
            "set) needs a folder of its own."
        ),
    ] = "images,masks,metadata",
) -> None:
    """Fetch the official HAM10000 archives: checksums, resume.

    Example: dermlens data download --out archives --only images,metadata
    """
    from dermlens.data.download import download as fetch

    claim(out)
    say_written(fetch(out, [part.strip() for part in only.split(",") if part.strip()]))


@data_app.command("dicom")
def pictures_of_dicom(
    source: Annotated[Path, typer.Argument(help="Folder of DICOM files, or one file.")],
    out: Annotated[Path, typer.Option(help="Folder to write: images/ and dicom.csv.")],
    keep_names: Annotated[
        bool,
        typer.Option("--keep-names", help="Name pictures like their files, which may name people."),
    ] = False,
) -> None:
    """Make pictures of DICOM files, for a data set: no patient data, pixel spacing kept.

    Example: dermlens data dicom study --out pictures
    """
    from dermlens.data.dicom_folder import write_pictures

    claim(out, reading=source)
    say(f"Wrote {write_pictures(source, out, keep_names=keep_names)} pictures to {out}")


@data_app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Folder with archives or images and their table.")],
    out: Annotated[Path, typer.Option(help="Prepared data set to write.")],
    table_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="ham10000, isic2018, isic2019, isic2020, isic_archive, pad_ufes, derm7pt, or "
            "folders named by class; default found out by columns.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Of any other table: image=…,label=… and, where known, lesion=…,patient=…,age=…,"
            "sex=…,localization=…."
        ),
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="Name of the table, where several could be meant.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Label set to map diagnoses to: ham10000, isic2019, binary, a file, or names; "
            "default what the format says."
        ),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(help="JSON or CSV file of label and code; an empty code leaves a label out."),
    ] = None,
    image_type: Annotated[
        str | None, typer.Option(help="Only images of this type, such as dermoscopic.")
    ] = None,
) -> None:
    """Turn archives or folders into one checked data set.

    Example: dermlens data prepare archives --out DATA
    """
    from dermlens.data.annotation_classes import read_mapping
    from dermlens.data.formats import Wanted
    from dermlens.data.preparation import prepare as prepare_data
    from dermlens.data.preparation_report import described

    wanted = Wanted(
        table_format,
        {} if columns is None else parse_pairs(columns),
        table,
        classes,
        {} if mapping is None else read_mapping(mapping),
        image_type,
    )
    claim(out)
    done = prepare_data(source, out, wanted=wanted)
    for line in described(done.summary, done.added, done.reused, done.left_out):
        say(line)
    say(f"Wrote {done.data}. Next: dermlens data split {done.data}")


@data_app.command()
def synthetic(
    out: Annotated[Path, typer.Option(help="Prepared data set to write.")],
    images: Annotated[int, typer.Option(help="Number of images.")] = 1600,
    size: Annotated[str, typer.Option(help="HxW in pixels.")] = "192x256",
    classes: Annotated[
        str, typer.Option(help="Label set: ham10000, isic2019, binary, a file, or names.")
    ] = "ham10000",
    seed: Seed = 0,
) -> None:
    """Draw the embedded data set: synthetic images with lesion and structure masks.

    Example: dermlens data synthetic --out DATA --images 700
    """
    from dermlens.data.synthetic import make_synthetic
    from dermlens.labels import label_set

    height_and_width = parse_size(size)
    claim(out)
    table = make_synthetic(
        out, images=images, size=height_and_width, seed=seed, labels=label_set(classes)
    )
    say(f"Drew {len(table):,} synthetic images of {table.lesion_id.nunique():,} lesions: {out}")


@data_app.command()
def split(data: Data, seed: Seed = 0) -> None:
    """Assign images to train, validation and test, patient by patient or lesion by lesion.

    Example: dermlens data split DATA --seed 0
    """
    import pandas as pd

    from dermlens.data.manifest import SPLITS
    from dermlens.data.splits import split_data_set

    claim(data)
    table = split_data_set(data, seed=seed)
    counts = pd.crosstab(table.dx, table.split, margins=True).loc[:, [*SPLITS, "All"]]
    say(counts.to_string())
    say(f"Wrote {data / 'manifest.csv'}")


@data_app.command()
def audit(data: Data) -> None:
    """Say what an image-level split would leak, and prove that this one does not.

    Example: dermlens data audit DATA
    """
    from dermlens.data.splits import audit as audit_split
    from dermlens.files import write_csv

    claim(data)
    table, leaks = audit_split(data)
    say(table.to_string(index=False))
    for name, count in leaks.items():
        say(f"{name.replace('_', ' ')}: {count}")
    say(f"Wrote {write_csv(data / 'audit.csv', table)}")
    if any(leaks.values()):
        say("This split leaks. Run 'dermlens data split' again.")
        raise typer.Exit(1)
    whose = "patient, lesion" if "patients" in table else "lesion"
    say(f"No {whose}, near-duplicate or identical image stands in two splits.")


@data_app.command()
def explore(
    data: Data, out: Annotated[Path, typer.Option(help="Folder for figures, tables and page.")]
) -> None:
    """Draw figures and tables of a data set, and one HTML page.

    Example: dermlens data explore DATA --out exploration
    """
    from dermlens.report.exploration import explore as explore_data

    claim(out, reading=data)
    page = explore_data(data, out)
    say(f"Wrote {page}")

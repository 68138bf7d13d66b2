"""Finding the table that tells what the images of a source show, or reading names of folders."""

from collections import Counter
from pathlib import Path

import pandas as pd

from dermlens.data.annotation_classes import Annotations, map_diagnoses
from dermlens.data.annotation_rows import (
    FACTS,
    Row,
    add_companions,
    image_name,
    is_of_type,
    rows_of,
)
from dermlens.data.formats import (
    CLASS_FOLDERS,
    FORMATS,
    TableFormat,
    Wanted,
    format_called,
    format_names,
    format_of_own,
)
from dermlens.data.sources import Member, MemberReader, Survey
from dermlens.data.tables import read_column_names, read_table
from dermlens.data.vocabulary import Vocabulary
from dermlens.errors import DataError
from dermlens.labels import label_set, label_set_names

_SUFFIX_ORDER = {".csv": 0, "": 1, ".tab": 2, ".tsv": 3, ".txt": 4}


def read_annotations(found: Survey, folder: Path, wanted: Wanted) -> Annotations:
    """Find the table of a source and read it, or take the names of folders for classes.

    Raises:
        DataError: If there is no table that fits, several fit and differ, or one is wrong.
        UsageError: If format, columns or classes cannot be used.
    """
    reader = MemberReader()
    if wanted.format is not None and wanted.format not in format_names():
        format_called(wanted.format)
    if wanted.format == CLASS_FOLDERS:
        return _from_folders(found, wanted)
    own = format_of_own(wanted.columns) if wanted.columns else None
    if own is not None:
        formats: tuple[TableFormat, ...] = (own,)
    else:
        formats = FORMATS if wanted.format is None else (format_called(wanted.format),)
    columns, refusals = _columns(found, reader, wanted)
    for known in formats:
        fitting = [member for member, names in columns if known.fits(names)]
        if fitting:
            return _from_table(known, fitting, columns, reader, wanted)
    if wanted.format is None and own is None and _folders_are_diagnoses(found):
        return _from_folders(found, wanted)
    raise _nothing_fits(folder, formats, columns, refusals, found)


def _columns(
    found: Survey, reader: MemberReader, wanted: Wanted
) -> tuple[list[tuple[Member, list[str]]], list[str]]:
    """Return the columns of each table, and why others are no tables of images."""
    members = sorted(found.tables, key=lambda m: (_SUFFIX_ORDER.get(m.suffix, 9), str(m.place)))
    if wanted.table is not None:
        named = [m for m in members if wanted.table in (m.place.name, str(m.place), str(m.path))]
        if not named:
            raise DataError(f"There is no table {wanted.table} in the source. Check its name.")
        members = named + [m for m in members if m not in named]
    columns, refusals = [], []
    for member in members:
        try:
            columns.append((member, read_column_names(reader.read_head(member), member.label())))
        except DataError as error:
            if member.suffix not in ("", ".txt"):
                refusals.append(str(error))
    return columns, refusals


def _nothing_fits(
    folder: Path,
    formats: tuple[TableFormat, ...],
    columns: list[tuple[Member, list[str]]],
    refusals: list[str],
    found: Survey,
) -> DataError:
    """Say what comes nearest to a table of images."""
    nearest: tuple[float, str] = (-1.0, "")
    for member, names in columns:
        for known in formats:
            lacking = [one for one in known.needs if one not in names]
            share = 1 - len(lacking) / len(known.needs)
            if lacking and share > max(nearest[0], 0.5 if len(formats) > 1 else -1.0):
                nearest = (
                    share,
                    (
                        f"{member.label()} lacks the column {lacking[0]!r}. As a table of "
                        f"{known.title} it needs {', '.join(known.needs)}."
                    ),
                )
    if nearest[1]:
        return DataError(nearest[1])
    if refusals:
        return DataError(refusals[0])
    ham = format_called("ham10000")
    text = (
        f"No metadata found in {folder}: a file named like HAM10000_metadata.csv with the columns "
        f"{', '.join(ham.needs)}, or a table of {', '.join(one.title for one in FORMATS[1:])}. "
    )
    if columns:
        text += f"Of {columns[0][0].label()}, say which columns are what: --columns image=…,label=…"
    elif len(_folders(found)) > 1:
        text += "If the folders of the images are their classes, give --format folders."
    else:
        text += "Put it beside the images."
    return DataError(text if text.endswith(".") else f"{text}.")


def _from_table(
    known: TableFormat,
    fitting: list[Member],
    columns: list[tuple[Member, list[str]]],
    reader: MemberReader,
    wanted: Wanted,
) -> Annotations:
    text = read_table(reader.read(fitting[0]), fitting[0].label())
    if wanted.table is None:
        for other in fitting[1:]:
            again = read_table(reader.read(other), other.label())
            if not _same_rows(text.cells, again.cells):
                raise DataError(
                    f"{text.name} and {again.name} are both tables of {known.title}, and differ. "
                    f"Remove one, or say which with --table {fitting[0].place.name}."
                )
    rows = rows_of(known, text)
    listed = {row["image_id"].lower() for row in rows}
    notes = add_companions(rows, [m for m, _ in columns if m not in fitting], columns, reader)
    if wanted.image_type is not None:
        rows = [row for row in rows if is_of_type(row["image_type"], wanted.image_type)]
    if not rows:
        raise DataError(f"{text.name} lists no image that is wanted. Check the file and options.")
    result = map_diagnoses(known, rows, text, wanted, notes)
    result.listed = listed
    return result


def _same_rows(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    shared = [name for name in first.columns if name in second.columns]
    if len(first) != len(second):
        return False
    return sorted(map(str, first[shared].to_numpy().tolist())) == sorted(
        map(str, second[shared].to_numpy().tolist())
    )


def _folders(found: Survey) -> dict[str, int]:
    """Return how many images lie in each folder, by its name."""
    counts: Counter[str] = Counter()
    for members in found.images.values():
        counts.update(member.place.parent.name for member in members)
    counts.pop("", None)
    return dict(counts)


def _folders_are_diagnoses(found: Survey) -> bool:
    """Tell whether several folders hold images and all are named by what is a diagnosis."""
    names = _folders(found)
    sets = [Vocabulary(label_set(name)) for name in label_set_names()]
    return len(names) > 1 and any(all(one.code_of(n) for n in names) for one in sets)


def _from_folders(found: Survey, wanted: Wanted) -> Annotations:
    """Take the name of the folder that each image lies in for its label."""
    rows: list[Row] = []
    for members in found.images.values():
        for member in members:
            folder = member.place.parent.name.removesuffix(".zip")
            if not folder:
                found.leave_out("lies in no folder that could be its class", str(member.place))
                continue
            rows.append(
                {
                    "line": 0,
                    "listed_as": str(member.place),
                    "image_id": image_name(member.place.name, str(member.label())),
                    "labels": [folder],
                    "lesion_id": None,
                    **dict.fromkeys(FACTS),
                }
            )
    if len({row["labels"][0] for row in rows}) < 2:
        raise DataError(
            "Fewer than two folders hold images, so their names are no classes. Put the images of "
            "each class into a folder of its own, or give a table."
        )
    known = TableFormat(CLASS_FOLDERS, "folders named by class", (), {}, labels="")
    result = map_diagnoses(known, rows, None, wanted, [])
    result.listed = {name.lower() for name in found.images}
    return result

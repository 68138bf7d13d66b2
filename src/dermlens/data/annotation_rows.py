"""The rows of a table of images: names, facts, and the words of their diagnoses."""

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from dermlens.data.formats import COMPANION_FACTS, COMPANION_IMAGES, TableFormat
from dermlens.data.images import IMAGE_SUFFIXES
from dermlens.data.sources import Member, MemberReader
from dermlens.data.tables import TextTable, number, read_table
from dermlens.errors import DataError
from dermlens.files import without_formula

FACTS: tuple[str, ...] = ("dx_type", "age", "sex", "localization", "patient_id", "image_type")
"""What is known of an image besides diagnosis and lesion."""
_UNKNOWN = frozenset({"unknown", ""})
_LONGEST_ID = 180
Row = dict[str, Any]


def rows_of(known: TableFormat, text: TextTable) -> list[Row]:
    """Return a row for each image, diagnoses not yet mapped: ``labels``, what says most first."""
    records = text.cells.to_dict("records")
    rows = []
    for line, record in zip(text.lines, records, strict=True):
        cells = {str(name): value for name, value in record.items()}
        labels = _labels(known, cells, text.name, line)
        for column, kind in known.images.items():
            where = cells.get(column)
            if where is None:
                if len(known.images) > 1:
                    continue
                raise DataError(f"{text.name}, line {line}: {column} is empty. Correct the file.")
            row = {
                "line": line,
                "listed_as": where,
                "image_id": image_name(where, f"{text.name}, line {line}"),
                "labels": labels,
                "lesion_id": _of_use(cells.get(known.lesion)),
                "patient_id": _of_use(cells.get(known.patient)),
                "dx_type": _of_use(cells.get(known.confirmation)),
                "age": _age(cells.get(known.age), text.name, line),
                "sex": _of_use(cells.get(known.sex)),
                "localization": _of_use(cells.get(known.localization)),
                "image_type": kind or _of_use(cells.get(known.kind)),
            }
            if known.strict and cells.get(known.lesion) is None:
                raise DataError(
                    f"{text.name}, line {line}: {known.lesion} is empty. Correct the file."
                )
            rows.append(row)
    return rows


def _of_use(cell: str | None) -> str | None:
    """Return a fact, None where it is unknown."""
    return None if cell is None or cell.lower() in _UNKNOWN else without_formula(cell)


def _age(cell: str | None, name: str, line: int) -> float | None:
    if cell is None or cell.lower() in _UNKNOWN:
        return None
    try:
        age = number(cell)
    except ValueError:
        raise DataError(
            f"{name}, line {line}: the age {cell!r} is not a number. Correct the file."
        ) from None
    if not math.isfinite(age):
        raise DataError(f"{name}, line {line}: the age {cell!r} is not finite. Correct the file.")
    return age if age > 0 else None


def _labels(known: TableFormat, cells: Mapping[str, str | None], name: str, line: int) -> list[str]:
    """Return the diagnoses of a row, what says most first; none where all are empty."""
    if not known.one_hot:
        return [label for one in known.diagnoses if (label := cells.get(one)) is not None]
    marked = []
    for code in known.one_hot:
        try:
            value = number(cells.get(code) or "0")
        except ValueError:
            value = math.nan
        if value not in (0, 1):
            raise DataError(
                f"{name}, line {line}: {code.upper()} holds {cells.get(code)!r}, neither 0 nor 1. "
                "Correct the file."
            )
        marked += [code] * int(value)
    if len(marked) != 1:
        raise DataError(
            f"{name}, line {line}: image {cells.get(next(iter(known.images)))} has {len(marked)} "
            "classes marked; exactly one is needed. Correct the file."
        )
    return marked


def image_name(where: str, place: str) -> str:
    """Return an image's name without folders and ending.

    Args:
        where: As a table has it, such as ``"NEL/Nel026.jpg"``.
        place: Of the cell, for messages.

    Raises:
        DataError: If it leads outside of the folder, cannot be a file's name, or is too long.

    Example:
        >>> image_name("NEL/Nel026.jpg", "line 2"), image_name("ISIC_1.5", "line 3")
        ('Nel026', 'ISIC_1.5')
    """
    path = PurePosixPath(where.replace("\\", "/"))
    wrong = None
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        wrong = "leads outside of the data's folder"
    elif not path.name or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in where):
        wrong = "cannot be the name of a file"
    elif len(path.name.encode()) > _LONGEST_ID:
        wrong = f"is longer than {_LONGEST_ID} bytes"
    elif without_formula(path.name) != path.name:
        wrong = "would be taken for a formula by spreadsheets"
    if wrong:
        raise DataError(f"{place}: the image {where[:80]!r} {wrong}. Correct or rename it.")
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def add_companions(
    rows: list[Row],
    others: list[Member],
    columns: list[tuple[Member, list[str]]],
    reader: MemberReader,
) -> list[str]:
    """Fill in what a second table tells of the same images; return which were used."""
    names_of = {member: names for member, names in columns}
    used = []
    by_id = {row["image_id"]: row for row in rows}
    for member in others:
        names = names_of[member]
        image = next((one for one in COMPANION_IMAGES if one in names), None)
        facts = {
            fact: column
            for fact, candidates in COMPANION_FACTS.items()
            if (column := next((one for one in candidates if one in names), None))
            and all(row[fact] is None for row in rows)
        }
        if image is None or not facts:
            continue
        text = read_table(reader.read(member), member.label())
        told = 0
        for line, record in zip(text.lines, text.cells.to_dict("records"), strict=True):
            if record[image] is None:
                continue
            row = by_id.get(image_name(record[image], f"{text.name}, line {line}"))
            if row is None:
                continue
            told += 1
            for fact, column in facts.items():
                cell = record[column]
                row[fact] = _age(cell, text.name, line) if fact == "age" else _of_use(cell)
        if told:
            used.append(f"{', '.join(sorted(facts))} of {told:,} images come from {text.name}.")
    return used


def is_of_type(kind: str | None, wanted: str) -> bool:
    """Tell whether an image is of a type, such as ``dermoscopic``; unknown ones are not."""
    return (kind or "").lower().startswith(wanted.lower())

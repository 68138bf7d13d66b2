"""Reading the tables that come with images, as people and programs write them.

Separated by commas, semicolons or tabs; UTF-8 with or without a byte order mark, UTF-16 or
Windows' Latin-1. Every cell is text here; what it means is said elsewhere.
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from dermlens.errors import DataError

MAX_TABLE_BYTES = 200_000_000
MAX_COLUMNS = 2000
_LONGEST_CELL = 100_000
_SEPARATORS = ",;\t"
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_PIXEL = re.compile(r"(pixel|px|p)[ _.-]?\d+|\d+")
_NO_VALUE = frozenset(
    {"", "NA", "N/A", "n/a", "nan", "NaN", "NULL", "null", "None", "#N/A", "<NA>"}
)


@dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
        name: Of the file, for messages.
        cells: One column for each of the file, their names stripped and in lower case; missing
            values are None.
        lines: Line of each row in the file, 1 is the first.
    """

    name: str
    cells: pd.DataFrame
    lines: list[int]


def read_table(content: bytes, name: str) -> TextTable:
    """Read a table.

    Args:
        content: The bytes of the file.
        name: Name for messages.

    Raises:
        DataError: If it is no text, far too large, a table of pixels, or a row has more cells than
            the first one has names.
    """
    if len(content) > MAX_TABLE_BYTES:
        raise DataError(
            f"{name} has {len(content) / 1e6:,.0f} MB, far too much for a table of images. Give "
            "the table of diagnoses."
        )
    names: list[str] = []
    rows, lines = [], []
    for line, row in _filled_rows(_decoded(content, name), name):
        if names:
            rows.append(_cells(row, len(names), line, name))
            lines.append(line)
        else:
            names = _column_names(row, name)
    if not names:
        raise DataError(f"{name} is empty. Give a table with a line of column names.")
    return TextTable(name, pd.DataFrame(rows, columns=names, dtype=object), lines)


def read_column_names(head: bytes, name: str) -> list[str]:
    """Return the names of the columns alone, in lower case; none for an empty file.

    Args:
        head: The file's first megabyte, or all of it.
        name: Name for messages.

    Raises:
        DataError: If it is no text, a table of pixels, or far too wide.
    """
    for _, row in _filled_rows(_decoded(head, name), name):
        return _column_names(row, name)
    return []


def is_pixel_table(names: list[str]) -> bool:
    """Tell whether columns hold pixels instead of facts, as in Kaggle's ``hmnist_28_28_RGB.csv``.

    Example:
        >>> is_pixel_table([f"pixel{number:04d}" for number in range(64)] + ["label"])
        True
    """
    pixels = sum(_PIXEL.fullmatch(name) is not None for name in names)
    return pixels >= 16 and pixels > len(names) / 2


def number(text: str) -> float:
    """Read a number, also with a decimal comma or open above.

    Raises:
        ValueError: If it is none.

    Example:
        >>> number("85+"), number("42,5")
        (85.0, 42.5)
    """
    return float(text.strip().removesuffix("+").replace(",", "."))


def _filled_rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line and cells of each row that is not empty."""
    first, _, rest = text.partition("\n")
    skipped = 0
    if re.fullmatch(r'"?sep=.?"?', first.strip(" ").lower()):  # As spreadsheets write it.
        skipped, text = 1, rest
        first = text.partition("\n")[0]
    separator = _separator(first)
    if first.count(separator) >= 4 * MAX_COLUMNS:
        raise _too_wide(name, first.count(separator) + 1)
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    line = 1 + skipped
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield line, row
            line = reader.line_num + 1 + skipped
    except csv.Error as error:
        raise DataError(
            f"{name}, line {line}: this cannot be read as a table ({error}). Correct the file."
        ) from None


def _decoded(content: bytes, name: str) -> str:
    encoding = next((e for mark, e in _MARKS.items() if content.startswith(mark)), None)
    if encoding is None:
        head = content[:4000]
        if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
            raise DataError(f"{name} is a workbook, not a text table. Save it as CSV.")
        zeros = head.count(0)
        if zeros > len(head) / 4:  # UTF-16 without its mark has a zero in every Latin letter.
            encoding = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
        elif sum(byte < 9 or 13 < byte < 32 for byte in head) > len(head) / 20:
            raise DataError(f"{name} is no text. Give a table as CSV.")
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise DataError(f"{name} is damaged text ({error.reason}). Save it again.") from None
        text = content.decode("cp1252", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")


def _separator(first: str) -> str:
    """Return what stands between names, the most frequent outside of quotes."""
    plain = re.sub(r'"[^"]*"', "", first)
    return max(_SEPARATORS, key=lambda one: (plain.count(one), one == ","))


def _column_names(header: list[str], name: str) -> list[str]:
    names = [cell.strip().lower() for cell in header]
    if is_pixel_table(names):
        raise DataError(
            f"{name} holds pixels, not facts about images: its {len(names):,} columns begin with "
            f"{names[0]!r}. Give the image files and their table of diagnoses instead; pictures of "
            "28x28 pixels cannot be trained on here."
        )
    if len(names) > MAX_COLUMNS:
        raise _too_wide(name, len(names))
    named = [one for one in names if one]
    twice = next((one for one in named if named.count(one) > 1), None)
    if twice is not None:
        raise DataError(f"{name} has two columns {twice!r}. Rename or remove one.")
    return [one or f"unnamed {number}" for number, one in enumerate(names, 1)]


def _too_wide(name: str, columns: int) -> DataError:
    return DataError(
        f"{name} has {columns:,} columns, more than the {MAX_COLUMNS:,} allowed for a table of "
        "images. Give the table of diagnoses."
    )


def _cells(row: list[str], width: int, line: int, name: str) -> list[str | None]:
    if any(cell.strip() for cell in row[width:]):
        raise DataError(
            f"{name}, line {line}: there are {len(row)} cells under {width} column names. Put text "
            "that holds the separator into quotes."
        )
    cells = [cell.strip() for cell in row[:width]] + [""] * (width - len(row))
    return [None if cell in _NO_VALUE else cell for cell in cells]

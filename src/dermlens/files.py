"""Writing files so that nothing half-written ever stands under a final name."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.errors import DataError
from dermlens.leftovers import remove, sweep, temporary_beside
from dermlens.locks import missing_above, remove_empty

_FORMULA = ("=", "+", "-", "@", "\t")
"""What a cell begins with that spreadsheets take for a formula."""


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` on success.

    The temporary name keeps the suffix, so writers that look at it still work.
    On an exception the temporary file is removed and ``path`` is left as it was; folders that were
    made for it go too.
    """
    path = Path(path)
    missing = missing_above(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = temporary_beside(path, suffix=path.suffix)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        remove_empty(missing)
        raise


def plain(value: Any) -> Any:
    """Turn numpy scalars and arrays and NaN into what JSON can hold (NaN becomes null)."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path):
        return value.as_posix()
    return value


def write_json(path: Path, content: Any) -> Path:
    """Write JSON atomically, numpy values included; NaN and infinity become null."""
    return write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    with written_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Check the path, or make the file again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Check the path.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}). Make it again.") from error


def without_formula(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: an apostrophe goes before its start.

    Example:
        >>> without_formula("=HYPERLINK(1)"), without_formula("-12.5"), without_formula("back")
        ("'=HYPERLINK(1)", '-12.5', 'back')
    """
    # Where lines end in a line feed, a carriage return alone would not be quoted.
    text = text.replace("\r", "\\r")
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def safe_for_spreadsheets(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which no text, names of columns included, is taken for a formula."""
    changed = {}
    for name in table.columns:
        column = table[name]
        if column.dtype != object and not pd.api.types.is_string_dtype(column):
            continue
        texts = column.map(lambda cell: isinstance(cell, str)).astype(bool)
        safe = column[texts].map(without_formula)
        if not safe.equals(column[texts]):
            changed[name] = column.where(~texts, safe)
    named = {name: without_formula(name) for name in table.columns if isinstance(name, str)}
    return table.assign(**changed).rename(columns=named)


def write_csv(path: Path, table: pd.DataFrame) -> Path:
    """Write a table atomically, without index, floats at full precision, safe for spreadsheets."""
    with written_beside(path) as temporary:
        safe_for_spreadsheets(table).to_csv(temporary, index=False)
    return Path(path)


def read_table(path: Path, columns: Iterable[str] = (), **options: Any) -> pd.DataFrame:
    """Read a CSV file that must have some columns.

    Args:
        path: The file.
        columns: Those that it must have.
        **options: Of ``pandas.read_csv``.

    Raises:
        DataError: If the file is missing, is no table, or lacks a column.
    """
    try:
        table = pd.read_csv(path, **options)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Check the path, or make the file again.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a table ({error}). Make it again.") from error
    lacking = [column for column in columns if column not in table.columns]
    if lacking:
        raise DataError(f"{path} lacks the column {lacking[0]!r}. Make it again.")
    return table


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

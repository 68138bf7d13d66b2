"""Finding HAM10000 in whatever layout a user has it.

Archives as published, the Kaggle copy's folders, one flat folder, or any mixture: every
image, every lesion outline and the metadata file are found by their names alone.
"""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from dermlens.data.images import IMAGE_SUFFIXES, MAX_FILE_BYTES, read_bytes
from dermlens.errors import DataError
from dermlens.labels import HAM10000

METADATA_COLUMNS: tuple[str, ...] = (
    "lesion_id",
    "image_id",
    "dx",
    "dx_type",
    "age",
    "sex",
    "localization",
)
_MASK_ENDING = "_segmentation"
_METADATA_SUFFIXES = ("", ".csv", ".tab", ".tsv", ".txt")


@dataclass(frozen=True)
class Member:
    """One file of a source: a plain file, or a member of a zip archive."""

    name: str
    path: Path
    in_archive: bool
    size: int
    crc32: int | None
    """Known without reading for archive members only."""

    def label(self) -> str:
        """Name for messages."""
        return f"{self.path}:{self.name}" if self.in_archive else str(self.path)


@dataclass
class Source:
    """What was found: image and mask files by image_id, and the metadata file."""

    images: dict[str, Member] = field(default_factory=dict)
    masks: dict[str, Member] = field(default_factory=dict)
    metadata: Path | None = None


class MemberReader:
    """Reads members; keeps its archives open, so give each thread its own."""

    def __init__(self) -> None:
        self._archives: dict[Path, zipfile.ZipFile] = {}

    def read(self, member: Member) -> bytes:
        """Return the bytes of a member.

        Raises:
            DataError: If the file or the archive is damaged, or the member is larger than any
                image may be.
        """
        if not member.in_archive:
            return read_bytes(member.path)
        if member.size > MAX_FILE_BYTES:
            raise DataError(_too_large(member.label()))
        try:
            if member.path not in self._archives:
                self._archives[member.path] = zipfile.ZipFile(member.path)
            with self._archives[member.path].open(member.name) as stream:
                content = stream.read(MAX_FILE_BYTES + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            OSError,
            EOFError,
            ValueError,
            RuntimeError,
        ) as error:
            raise DataError(
                f"The archive {member.path} is damaged at {member.name} ({error}). "
                "Download it again."
            ) from error
        if len(content) > MAX_FILE_BYTES:
            raise DataError(_too_large(member.label()))
        return content


def _too_large(label: str) -> str:
    return (
        f"{label} is larger than the {MAX_FILE_BYTES / 1e6:,.0f} MB that one file of the data set "
        "may have. Do not trust this archive; download the official one."
    )


def find_source(folder: Path, *, besides: Path | None = None) -> Source:
    """Find images, masks and metadata below a folder.

    Files of the ISIC 2018 test set (anything with ``test`` in its name below ``folder``) are
    left alone. Where an image occurs twice (the Kaggle copy repeats its folders), the first in
    alphabetical order is taken; of several members of one archive with the same name, the last, as
    unpacking it would leave.

    Args:
        folder: Where to look.
        besides: Folder below it to leave out, such as the data set made from it.

    Raises:
        DataError: If the folder is missing, holds no image or no metadata, or an archive is
            damaged or tries to write outside its folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give the folder that holds HAM10000's files.")
    source = Source()
    files = [path for path in _files(folder) if besides is None or besides not in path.parents]
    for member in _members(files):
        stem, suffix = _split_name(member.name)
        if suffix == ".png" and stem.endswith(_MASK_ENDING):
            source.masks.setdefault(stem.removesuffix(_MASK_ENDING), member)
        elif suffix in IMAGE_SUFFIXES:
            source.images.setdefault(stem, member)
    source.metadata = _find_metadata(files)
    if source.metadata is None:
        raise DataError(
            f"No metadata found in {folder}: a file named like HAM10000_metadata.csv with the "
            f"columns {', '.join(METADATA_COLUMNS)}. Download it and put it beside the images."
        )
    if not source.images:
        raise DataError(
            f"No image found in {folder}. Put HAM10000_images_part_1.zip and _part_2.zip, or "
            "folders with their images, there."
        )
    return source


def _split_name(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    return path.stem, path.suffix.lower()


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith((".", "__MACOSX")) for part in relative.parts)
        if path.is_file() and not hidden and "test" not in relative.as_posix().lower():
            yield path


def _members(files: list[Path]) -> Iterator[Member]:
    for path in files:
        if path.suffix.lower() == ".zip":
            yield from _archive_members(path)
        else:
            yield Member(path.name, path, False, path.stat().st_size, None)


def _archive_members(path: Path) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path} is not a complete zip archive ({error}). Download it again."
        ) from error
    # A name may stand there twice, after an update; reading and unpacking both give the last.
    for entry in {entry.filename: entry for entry in entries}.values():
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
            raise DataError(
                f"The archive {path} holds {entry.filename!r}, which would be written outside "
                "its folder. Do not trust this archive; download the official one."
            )
        if not entry.is_dir() and "__MACOSX" not in name.parts and not name.name.startswith("."):
            yield Member(entry.filename, path, True, entry.file_size, entry.CRC)


def _find_metadata(files: list[Path]) -> Path | None:
    found = [
        path
        for path in files
        if "metadata" in path.stem.lower() and path.suffix.lower() in _METADATA_SUFFIXES
    ]
    order = {".csv": 0, "": 1, ".tab": 2, ".tsv": 3, ".txt": 4}
    return min(found, key=lambda path: (order[path.suffix.lower()], str(path)), default=None)


def read_metadata(path: Path) -> pd.DataFrame:
    """Read HAM10000's metadata, comma or tab separated, with 7 or 8 columns.

    Ages of 0 and the word ``unknown`` become missing; codes are lower-cased.

    Returns:
        One row per image with the columns in ``METADATA_COLUMNS``; age in years as float.

    Raises:
        DataError: If a column is missing, an image is listed twice, a diagnosis is unknown or
            an age is not a number.
    """
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path} is far too large for a table of images. Download it again.")
        text = Path(path).read_text(encoding="utf-8-sig")
        header = text.split("\n", 1)[0]
        from io import StringIO

        table = pd.read_csv(StringIO(text), sep="\t" if "\t" in header else ",", dtype=object)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(
            f"{path} cannot be read as a table ({error}). Download it again."
        ) from error
    table.columns = [str(column).strip().lower() for column in table.columns]
    for column in METADATA_COLUMNS:
        if column not in table.columns:
            raise DataError(
                f"{path} lacks the column {column!r}. It needs {', '.join(METADATA_COLUMNS)}."
            )
    table = table.loc[:, list(METADATA_COLUMNS)].copy()
    for column in METADATA_COLUMNS:
        table[column] = table[column].astype(object).where(table[column].notna(), None)
        table[column] = [None if v is None else str(v).strip() for v in table[column]]
    table["dx"] = [None if v is None else v.lower() for v in table.dx]
    _check_metadata(table, path)
    for column in ("dx_type", "sex", "localization"):
        unknown = {"unknown", "", "nan", None}
        table[column] = [None if v in unknown else v for v in table[column]]
    table["age"] = _ages(table.age, path)
    return table


def _check_metadata(table: pd.DataFrame, path: Path) -> None:
    for column in ("image_id", "lesion_id"):
        if table[column].isna().any():
            row = int(np.flatnonzero(table[column].isna())[0]) + 2
            raise DataError(f"{path}, line {row}: {column} is empty. Correct the file.")
    twice = table.image_id[table.image_id.duplicated()]
    if len(twice):
        raise DataError(f"{path} lists image {twice.iloc[0]} twice. Keep one of its rows.")
    wrong = [i for i, code in enumerate(table.dx) if code not in HAM10000.codes]
    if wrong:
        raise DataError(
            f"{path}, line {wrong[0] + 2}: the diagnosis {table.dx.iloc[wrong[0]]!r} is none of "
            f"{', '.join(HAM10000.codes)}. Correct the file."
        )


def _ages(values: pd.Series, path: Path) -> pd.Series:
    words = values.where(values.notna() & ~values.isin(["unknown", ""]), None)
    ages = pd.to_numeric(words, errors="coerce")
    wrong = np.flatnonzero(ages.isna() & words.notna())
    if len(wrong):
        raise DataError(
            f"{path}, line {int(wrong[0]) + 2}: the age {words.iloc[wrong[0]]!r} is not a number. "
            "Correct the file."
        )
    return ages.where(ages > 0).astype(float)

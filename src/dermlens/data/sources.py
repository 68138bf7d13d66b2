"""What a folder of data holds: images, outlines and tables, in folders, archives or both.

Everything is found by names alone, so that archives as published, Kaggle's folders, one flat folder
and any mixture work. What is left out is counted, by why.
"""

import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dermlens.data import dicom
from dermlens.data.images import (
    IMAGE_SUFFIXES,
    MAX_FILE_BYTES,
    PHOTOGRAPH_SUFFIXES,
    kind_of,
    read_bytes,
)
from dermlens.errors import DataError
from dermlens.progress import printable

TABLE_SUFFIXES = (".csv", ".tab", ".tsv", ".txt")
_HEAD_BYTES = 1 << 20
ISIC_2018_TEST = frozenset(
    {
        "isic2018_task3_test_images",
        "isic2018_task3_test_input",
        "isic2018_task3_test_groundtruth",
        "isic2018_task3_test_naturemedicine_ai_interaction_benefit",
    }
)
"""Names, without ending, of the files of the ISIC 2018 test set, which HAM10000's come with."""
_OUTLINE_WORDS = r"segmentation|segmentation[ _-]?mask|mask|ground[ _-]?truth"
_OUTLINE_NAME = re.compile(rf"(.+?)[ _.-]({_OUTLINE_WORDS})", re.IGNORECASE)
# These may belong to a photograph's own name, and count only beside the photograph.
_PERHAPS_OUTLINE_NAME = re.compile(r"(.+?)[ _.-](lesion|seg|gt|outline|contour)", re.IGNORECASE)
_OTHER_NAME = re.compile(r".+_(superpixels|attribute_\w+)", re.IGNORECASE)
_OUTLINE_FOLDER = re.compile(
    r"(.*[ _.-])?(segmentations?|masks?|ground[ _-]?truths?|outlines?|contours?)([ _.-].*)?"
    r"|(.*[ _.-])?gt(\.zip)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Member:
    """One file of a source: a plain file, or a member of a zip archive."""

    name: str
    path: Path
    in_archive: bool
    size: int
    crc32: int | None
    """Known without reading for archive members only."""
    place: PurePosixPath = field(default_factory=PurePosixPath)
    """Path below the source, that of the archive included."""

    def label(self) -> str:
        """Name for messages."""
        return printable(f"{self.path}:{self.name}" if self.in_archive else str(self.path))

    @property
    def stem(self) -> str:
        """File name without its ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """Ending in lower case, with its dot."""
        return PurePosixPath(self.name).suffix.lower()


@dataclass
class Survey:
    """What was found.

    Attributes:
        images: Image files by their name without ending, several where a name occurs again.
        outlines: Files of outlines by the image they belong to, likewise.
        tables: Files that may be tables.
        left_out: Files that are not used, by why.
    """

    images: dict[str, list[Member]] = field(default_factory=dict)
    outlines: dict[str, list[Member]] = field(default_factory=dict)
    tables: list[Member] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, why: str, what: str) -> None:
        """Note that something is not used."""
        self.left_out.setdefault(why, []).append(printable(what))


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
        content = self._read(member, MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise DataError(_too_large(member.label()))
        return content

    def read_head(self, member: Member) -> bytes:
        """Return a member's first megabyte.

        Raises:
            DataError: If the file or the archive is damaged.
        """
        if member.in_archive:
            return self._read(member, _HEAD_BYTES)
        try:
            with member.path.open("rb") as stream:
                return stream.read(_HEAD_BYTES)
        except OSError as error:
            raise DataError(f"{member.label()} cannot be read ({error.strerror}).") from error

    def _read(self, member: Member, size: int) -> bytes:
        try:
            if member.path not in self._archives:
                self._archives[member.path] = zipfile.ZipFile(member.path)
            with self._archives[member.path].open(member.name) as stream:
                return stream.read(size)
        except Exception as error:  # Each kind of compression fails in ways of its own.
            raise DataError(
                f"The archive {member.path} is damaged at {printable(member.name)} "
                f"({printable(str(error)) or type(error).__name__}). Download it again."
            ) from error

    def crc32(self, member: Member) -> int:
        """Return the checksum of a member, without reading it where the archive tells."""
        return member.crc32 if member.crc32 is not None else zlib.crc32(self.read(member))


def _too_large(label: str) -> str:
    return (
        f"{label} is larger than the {MAX_FILE_BYTES / 1e6:,.0f} MB that one file of the data set "
        "may have. Do not trust this archive; download the official one."
    )


def survey(folder: Path, *, besides: Path | None = None) -> Survey:
    """Find images, outlines and tables below a folder.

    Files of the ISIC 2018 test set are left out, unless there is nothing else.

    Args:
        folder: Where to look.
        besides: Folder below it to leave out, such as the data set made from it.

    Raises:
        DataError: If the folder is missing, or an archive is damaged, tries to write outside its
            folder, or holds different files under one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give the folder that holds the images' files.")
    found = Survey()
    files = [
        path for path in _files(folder, found) if besides is None or besides not in path.parents
    ]
    test = [path for path in files if _is_test_file(path.relative_to(folder))]
    chosen = [path for path in files if path not in set(test)]
    if not chosen:
        chosen, test = test, []
    for path in test:
        found.leave_out("belongs to the ISIC 2018 test set", str(path.relative_to(folder)))
    members = list(_members(folder, chosen))
    stems = {one.stem for one in members if one.suffix in IMAGE_SUFFIXES}
    for member in members:
        _sort_in(member, stems, found)
    return found


def _sort_in(member: Member, stems: set[str], found: Survey) -> None:
    if member.suffix in IMAGE_SUFFIXES:
        owner = outline_owner(member.place, stems)
        if owner is None:
            found.images.setdefault(member.stem, []).append(member)
        elif owner:
            found.outlines.setdefault(owner, []).append(member)
        else:
            found.leave_out("shows superpixels or attributes, not a photograph", member.name)
    elif member.suffix in TABLE_SUFFIXES or (
        not member.suffix and "metadata" in member.stem.lower()
    ):
        found.tables.append(member)
    elif member.suffix in dicom.SUFFIXES:
        found.leave_out("is DICOM: 'dermlens data dicom' makes pictures of it", member.name)
    else:
        found.leave_out(f"is of the type {member.suffix or 'without ending'}", member.name)


def outline_owner(place: PurePosixPath, stems: Iterable[str]) -> str | None:
    """Tell by its name and folders whether an image file is no photograph but an outline.

    Args:
        place: Path below the folder that is looked through.
        stems: Names, without ending, of all image files there.

    Returns:
        The name of the photograph that the outline belongs to, without ending; "" for pictures of
        superpixels and attributes; None for photographs.

    Example:
        >>> outline_owner(PurePosixPath("a/ISIC_1_Segmentation.PNG"), [])
        'ISIC_1'
        >>> outline_owner(PurePosixPath("gt/ISIC_1.png"), [])
        'ISIC_1'
        >>> outline_owner(PurePosixPath("latest/ISIC_1.png"), [])
    """
    stem = place.stem
    if _OTHER_NAME.fullmatch(stem):
        return ""
    if match := _OUTLINE_NAME.fullmatch(stem):
        return match[1]
    match = _PERHAPS_OUTLINE_NAME.fullmatch(stem)
    if match and match[1] in stems:
        return match[1]
    if any("superpixel" in part.lower() for part in place.parent.parts):
        return ""
    if any(_OUTLINE_FOLDER.fullmatch(part) for part in place.parent.parts):
        return match[1] if match else stem
    return None


def photographs_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the photographs below a folder, and the pictures that show outlines or superpixels."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        # Archives made on a Mac hold a hidden companion beside each file.
        if path.suffix.lower() in PHOTOGRAPH_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    stems = {path.stem for path in files}
    outlines = [
        path
        for path in files
        if outline_owner(PurePosixPath(path.relative_to(folder).as_posix()), stems) is not None
    ]
    drawn = set(outlines)
    return [path for path in files if path not in drawn], outlines


def other_types(folder: Path) -> str:
    """Return how many visible files below a folder are no photographs, by ending, in words."""
    counts = Counter(
        path.suffix.lower() or "without ending"
        for path in folder.rglob("*")
        if path.suffix.lower() not in PHOTOGRAPH_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    return ", ".join(f"{count} {ending}" for ending, count in sorted(counts.items()))


def _is_test_file(place: Path) -> bool:
    return any(part.split(".")[0].lower() in ISIC_2018_TEST for part in place.parts)


def _files(folder: Path, found: Survey) -> Iterator[Path]:
    """Yield plain files in order; hidden ones and what Macs add are no files of a data set."""
    for path in sorted(folder.rglob("*")):
        if any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts):
            continue
        try:
            mode = path.stat().st_mode
        except OSError:
            found.leave_out("cannot be read", path.name)
            continue
        if stat.S_ISREG(mode):
            yield path
        elif not stat.S_ISDIR(mode):
            found.leave_out(f"is a {kind_of(mode)}", path.name)


def _members(folder: Path, files: list[Path]) -> Iterator[Member]:
    for path in files:
        place = PurePosixPath(path.relative_to(folder).as_posix())
        if path.suffix.lower() == ".zip":
            yield from _archive_members(path, place)
        else:
            yield Member(path.name, path, False, path.stat().st_size, None, place)


def _archive_members(path: Path, place: PurePosixPath) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # Damaged directories make the reader fail in many ways.
        raise DataError(
            f"{path} is not a complete zip archive ({error}). Download it again."
        ) from error
    seen: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or (name.parts and ":" in name.parts[0]):
            raise DataError(
                f"The archive {path} holds {printable(entry.filename)!r}, which would be written "
                "outside its folder. Do not trust this archive; download the official one."
            )
        if entry.is_dir() or "__MACOSX" in name.parts or name.name.startswith("."):
            continue
        other = seen.setdefault(entry.filename, entry)
        if (other.CRC, other.file_size) != (entry.CRC, entry.file_size):
            raise DataError(
                f"The archive {path} holds two different files {printable(entry.filename)}. Remove "
                "the wrong one."
            )
        if other is entry:
            yield Member(entry.filename, path, True, entry.file_size, entry.CRC, place / name)


def the_one(members: list[Member], name: str, reader: MemberReader) -> Member:
    """Return the first of several files that must be the same.

    Args:
        members: Files that could be meant.
        name: What they would be, for messages.
        reader: Reads them, as far as needed.

    Raises:
        DataError: If two of them differ.
    """
    first = members[0]
    for other in members[1:]:
        if first.size != other.size or reader.crc32(first) != reader.crc32(other):
            raise DataError(
                f"{first.label()} and {other.label()} differ, and either could be {name}. Remove "
                "or rename the wrong one."
            )
    return first

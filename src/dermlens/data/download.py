"""Fetching the official HAM10000 and ISIC 2018 test files from Harvard Dataverse.

Source: Tschandl, "The HAM10000 dataset, a large collection of multi-source dermatoscopic images
of common pigmented skin lesions", Harvard Dataverse, doi:10.7910/DVN/DBW86T, version 4,
CC BY-NC 4.0.
"""

import hashlib
import http.client
import itertools
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dermlens import __version__
from dermlens.errors import DownloadError, UsageError
from dermlens.progress import Advance, duration, progress, say

BASE_URL = "https://dataverse.harvard.edu/api/access/datafile"
LICENSE = "CC BY-NC 4.0: non-commercial use, attribution required"
_USER_AGENT = f"dermlens/{__version__} (dermatoscopic image research; Python urllib)"
_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 60.0
_LONGEST_WAIT_SECONDS = 60.0
_SPARE_BYTES = 100_000_000
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class RemoteFile:
    """One file on the server.

    Attributes:
        name: Name under which it is stored.
        identifier: Number of the data file on the server.
        group: images, masks, metadata or test.
        md5: Checksum where the server publishes one for the bytes it sends; None otherwise.
        megabytes: Size to reckon with, in 10^6 bytes, rounded up.
        query: What is appended to the address.
    """

    name: str
    identifier: int
    group: str
    md5: str | None
    megabytes: int
    query: str = ""


FILES: tuple[RemoteFile, ...] = (
    RemoteFile(
        "HAM10000_images_part_1.zip", 3172585, "images", "4639bfa73ab251610530a97c898e6e46", 1400
    ),
    RemoteFile(
        "HAM10000_images_part_2.zip", 3172584, "images", "da43d6cc50f6613013be07e8986b384b", 1450
    ),
    RemoteFile(
        "HAM10000_segmentations_lesion_tschandl.zip",
        3838943,
        "masks",
        "6e8d252e09cfdb0189199f15985a5b84",
        50,
    ),
    RemoteFile("HAM10000_metadata.csv", 4338392, "metadata", None, 1, "?format=original"),
    RemoteFile("ISIC2018_Task3_Test_Images.zip", 3855824, "test", None, 450),
    RemoteFile("ISIC2018_Task3_Test_GroundTruth.csv", 6924466, "test", None, 1, "?format=original"),
)
GROUPS: tuple[str, ...] = ("images", "masks", "metadata", "test")


@dataclass(frozen=True)
class _Server:
    """How to talk to the server."""

    base_url: str
    attempts: int
    sleep: Callable[[float], None]

    def address(self, file: RemoteFile) -> str:
        return f"{self.base_url.rstrip('/')}/{file.identifier}{file.query}"


class _Interrupted(Exception):
    """The transfer stopped early; what arrived is kept and another attempt may go on."""


def download(
    out: Path,
    only: Sequence[str] = ("images", "masks", "metadata"),
    *,
    base_url: str = BASE_URL,
    files: Sequence[RemoteFile] = FILES,
    attempts: int = 6,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Path]:
    """Fetch the official files; complete files are kept, broken transfers are resumed.

    A transfer goes to ``<name>.part`` and is renamed once it is complete and its checksum is
    right. A broken connection or an overloaded server is tried again after 1, 2, 4, ... seconds;
    the next attempt, or the next run, goes on where the last one stopped.

    Args:
        out: Folder for the files.
        only: Groups to fetch: images, masks, metadata, test. Give ``test`` a folder of its own:
            its images have no row in HAM10000's metadata, so ``data prepare`` refuses them.
        base_url: Address in front of the file numbers.
        files: What there is to fetch.
        attempts: Transfers in a row that may bring nothing new before it is given up.
        sleep: Called with the seconds to wait between attempts.

    Returns:
        Paths of the files, in the order of ``files``.

    Raises:
        UsageError: If a group is unknown, or ``out`` cannot be a folder.
        DownloadError: If the disk lacks space, the server refuses a file or cannot be reached,
            or a file arrives corrupt twice.
    """
    unknown = [group for group in only if group not in GROUPS]
    if unknown or not only:
        raise UsageError(
            f"Unknown group {unknown[0] if unknown else ''!r}. Use one or more of: "
            f"{', '.join(GROUPS)}."
        )
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{out} cannot be made a folder ({error.strerror}). Choose another for --out."
        ) from error
    wanted = [file for file in files if file.group in only]
    pending = [file for file in wanted if not _is_complete(out / file.name, file)]
    _require_space(out, pending)
    server = _Server(base_url, attempts, sleep)
    for file in pending:
        start = time.monotonic()
        _fetch_verified(out / file.name, file, server)
        size = (out / file.name).stat().st_size / 1e6
        say(f"Fetched {file.name}: {size:,.1f} MB in {duration(time.monotonic() - start)}.")
    return [out / file.name for file in wanted]


def _is_complete(path: Path, file: RemoteFile) -> bool:
    """Whether the file is there and right; a wrong one, which may be the user's, is set aside."""
    if not path.is_file():
        return False
    if _is_right(path, file):
        return True
    aside = _free_name(path)
    path.rename(aside)
    say(f"{path.name} is not the official file; it is kept as {aside.name}.")
    return False


def _free_name(path: Path) -> Path:
    """Return a name beside a file that nothing has yet."""
    names = (path.with_name(f"{path.name}.other{number or ''}") for number in itertools.count())
    return next(name for name in names if not name.exists())


def _is_right(path: Path, file: RemoteFile) -> bool:
    """Whether the content is right as far as can be told without a published checksum."""
    if file.md5 is not None:
        return md5_of_file(path) == file.md5
    if file.name.endswith(".zip"):
        return _is_intact_archive(path)
    with open(path, "rb") as stream:
        head = stream.read(64).lstrip()
    return bool(head) and not head.startswith(b"<")


def _is_intact_archive(path: Path) -> bool:
    """Whether every member of the archive meets its CRC."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError):
        return False


def _require_space(out: Path, pending: Sequence[RemoteFile]) -> None:
    needed = 0
    for file in pending:
        there = _size(_part(out / file.name))
        needed += max(file.megabytes * 1_000_000 - there, 0)
    free = shutil.disk_usage(out).free
    if pending and free < needed + _SPARE_BYTES:
        raise DownloadError(
            f"{out} has {free / 1e9:.1f} GB free, but the download needs about "
            f"{(needed + _SPARE_BYTES) / 1e9:.1f} GB. Free some space or choose another folder."
        )


def _fetch_verified(path: Path, file: RemoteFile, server: _Server) -> None:
    """Fetch a file and check it; a corrupt one is deleted and fetched once more."""
    part = _part(path)
    for _ in range(2):
        _fetch(part, file, server)
        if _is_right(part, file):
            os.replace(part, path)
            return
        part.unlink()
    raise DownloadError(
        f"{file.name} arrived corrupt twice ({_expectation(file)}). A proxy may be changing it; "
        f"try another network, or fetch {server.address(file)} in a browser."
    )


def _expectation(file: RemoteFile) -> str:
    if file.md5 is not None:
        return f"its MD5 checksum is not {file.md5}"
    return "it is no intact zip archive" if file.name.endswith(".zip") else "it is no table"


def _fetch(part: Path, file: RemoteFile, server: _Server) -> None:
    """Bring the part file to its full length, over as many attempts as make progress."""
    failures, furthest = 0, _size(part)
    with progress(file.name, max(file.megabytes, 1)) as advance:
        meter = _Meter(advance)
        while True:
            try:
                _transfer(part, server.address(file), file.name, meter)
                return
            except _Interrupted as error:
                # A server that starts over every time makes no progress, whatever it sends.
                failures = 1 if _size(part) > furthest else failures + 1
                furthest = max(furthest, _size(part))
                if failures >= server.attempts:
                    raise DownloadError(
                        f"{file.name} could not be fetched from {server.address(file)}: {error}. "
                        "Check the connection and run the command again; it goes on where it "
                        "stopped."
                    ) from error
                wait = min(2.0 ** (failures - 1), _LONGEST_WAIT_SECONDS)
                say(f"{file.name}: {error}. Trying again in {duration(wait)}.")
                server.sleep(wait)


def _transfer(part: Path, address: str, name: str, meter: "_Meter") -> None:
    """Append what is missing from the part file, in one request.

    Raises:
        _Interrupted: If it may work another time.
        DownloadError: If it will not.
    """
    there = _size(part)
    with _open(address, part, name) as response:
        if response is None:
            return
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
            part.unlink()
            raise _Interrupted("the server sent another part of the file than was asked for")
        arrived = there if resumed else 0
        total = _total(response, arrived)
        _require_space_for(part, there, total)
        meter.reach(arrived)
        with _writing(part, "ab" if resumed else "wb") as write:
            for block in _blocks(response):
                write(block)
                arrived += len(block)
                meter.reach(arrived)
    if total is not None and arrived != total:
        if arrived > total:
            part.unlink()
        raise _Interrupted(f"the connection broke after {arrived:,} of {total:,} bytes")


def _require_space_for(part: Path, there: int, total: int | None) -> None:
    """Refuse a file that turns out larger than what is free, before writing any of it."""
    free = shutil.disk_usage(part.parent).free + there
    if total is not None and total > free:
        raise DownloadError(
            f"{part} needs {total / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free. "
            "Free some space or choose another folder."
        )


@contextmanager
def _writing(part: Path, mode: str) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that appends to the file; trouble with the disk ends the download."""

    def refuse(error: OSError) -> DownloadError:
        return DownloadError(
            f"{part} cannot be written ({error.strerror}). Free some space or check permissions; "
            "the next run goes on where this one stopped."
        )

    try:
        # Unbuffered, so that closing has nothing left to write and cannot fail.
        stream = open(part, mode, buffering=0)  # noqa: SIM115
    except OSError as error:
        raise refuse(error) from error

    def write(block: bytes) -> None:
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[stream.write(rest) :]
        except OSError as error:
            raise refuse(error) from error

    with stream:
        yield write


class _Meter:
    """Turns bytes into whole megabytes of progress."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._bytes = 0

    def reach(self, position: int) -> None:
        """Say how much of the file is here; less than before where it is read anew."""
        steps = position // 1_000_000 - self._bytes // 1_000_000
        self._bytes = position
        if steps:
            self._advance(steps, "MB")


@contextmanager
def _open(address: str, part: Path, name: str) -> Iterator[http.client.HTTPResponse | None]:
    """Request what is missing from the part file; None means that all of it is there already."""
    start = _size(part)
    headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            yield response
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            if error.headers.get("Content-Range") != f"bytes */{start}":
                part.unlink()
                raise _Interrupted("the file on the server is shorter than what is here") from error
            yield None
        elif error.code in _PASSING_STATUSES:
            raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
        else:
            raise DownloadError(
                f"The server refuses {name}: {error.code} {error.reason} for {address}. "
                "The file may have moved; see https://doi.org/10.7910/DVN/DBW86T."
            ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _Interrupted(f"{reason or type(error).__name__}") from error


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield what arrives; ends early where the connection breaks between blocks."""
    while block := response.read1(_BLOCK):
        yield block


def _total(response: http.client.HTTPResponse, start: int) -> int | None:
    """Return the full length of the file as the server states it, or None."""
    length = response.headers.get("Content-Length")
    return start + int(length) if length is not None else None


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def md5_of_file(path: Path) -> str:
    """Return the MD5 of a file as hexadecimal text; it detects damage, not tampering."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

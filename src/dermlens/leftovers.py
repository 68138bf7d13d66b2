"""Temporary names, and removing what killed processes left under them.

``.NAME.dermlens-HOST-PID-NUMBER.part`` is being written and will be renamed to ``NAME`` (or holds
what stood there before); ``….old`` was moved aside where two folders cannot be exchanged at once.
"""

import itertools
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from dermlens import locks
from dermlens.processes import HOST, is_alive

_FOREIGN_SECONDS = 7 * 24 * 3600
"""After so long untouched, what a process of another machine or container left is leftover."""
_LONGEST = 120
_PATTERN = re.compile(
    r"\..*\.dermlens-(?P<host>[A-Za-z0-9_]+)-(?P<pid>\d+)-\d+\.(?P<ending>part|old)(\.[^.]*)?"
)
_numbers = itertools.count()
_mine: set[str] = set()
_swept: set[Path] = set()


def temporary_beside(path: Path, ending: str = "part", *, suffix: str = "") -> Path:
    """Return a name in the same folder that no other process or thread uses."""
    name = f"{_prefix(path)}{HOST}-{os.getpid()}-{next(_numbers)}.{ending}{suffix}"
    _mine.add(name)
    return path.with_name(name)


def _prefix(path: Path) -> str:
    # File systems take names of 255 bytes.
    return f".{path.name.encode()[:_LONGEST].decode(errors='ignore')}.dermlens-"


def is_ours(name: str) -> bool:
    """Tell whether a file name is one that only dermlens gives while it works."""
    hidden = name.startswith(".")
    return hidden and (name.endswith(locks.ENDING) or _PATTERN.fullmatch(name) is not None)


def retired(path: Path) -> list[Path]:
    """Return what killed processes had moved aside from ``path``, the newest first."""
    found = [
        entry
        for entry in _entries(path.parent)
        if entry.name.startswith(_prefix(path)) and _is_left_over(entry, "old")
    ]
    return sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True)


def sweep(folder: Path) -> None:
    """Remove from a folder what killed processes left; looks once per process and folder.

    Only names that dermlens gives are touched, and never those of a process that still runs.
    """
    folder = Path(folder)
    if folder in _swept:
        return
    _swept.add(folder)
    for entry in _entries(folder):
        if entry.name.startswith(".") and entry.name.endswith(locks.ENDING):
            locks.remove_if_free(entry)
        elif _is_left_over(entry, "part"):
            remove(entry)


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_left_over(entry: Path, ending: str) -> bool:
    match = _PATTERN.fullmatch(entry.name)
    if match is None or match["ending"] != ending or entry.name in _mine:
        return False
    pid = int(match["pid"])
    if match["host"] == HOST:
        # A number that is this process's own was another's before.
        return pid == os.getpid() or not is_alive(pid)
    with suppress(OSError):
        return time.time() - entry.stat().st_mtime > _FOREIGN_SECONDS
    return False

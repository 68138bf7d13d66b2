"""Temporary names, whose process still lives, and removing what killed ones left.

``.NAME.dermlens-HOST-PID-NUMBER.part`` is being written and will be renamed to ``NAME`` (or holds
what stood there before); ``….old`` was moved aside where two folders cannot be exchanged at once.
"""

import itertools
import os
import platform
import re
import shutil
import threading
import time
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path

from dermlens import locks

_FOREIGN_SECONDS = 7 * 24 * 3600
"""After so long untouched, what a process of another machine or container left is leftover."""
_LONGEST = 120
_PATTERN = re.compile(
    r"\..*\.dermlens-(?P<host>[A-Za-z0-9_]+)-(?P<pid>\d+)-\d+\.(?P<ending>part|old)(\.[^.]*)?"
)
_numbers = itertools.count()
_mine: set[str] = set()
_swept: set[Path] = set()


def _host() -> str:
    """Return a name for where process numbers mean the same: machine and, on Linux, namespace."""
    name = re.sub(r"[^A-Za-z0-9]", "_", platform.node())[:32] or "host"
    try:
        # Containers can share a host name and a folder, but count their processes apart.
        namespace = re.sub(r"\D", "", str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        namespace = ""
    return f"{name}_{namespace}"


HOST = _host()
"""Where this process runs; letters, digits and underscores."""


def is_alive(pid: int) -> bool:
    """Tell whether a process of this host runs, whoever's it is."""
    if os.name == "nt":  # os.kill would end the process there.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        # A process that was killed but not yet waited for writes nothing any more.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def end_with_parent() -> None:
    """Make this worker process end as soon as the process that started it is gone.

    A worker waits for tasks at a pipe that its siblings keep open, so that without this it would
    outlive a parent that was killed. Meant as ``initializer`` of a pool of processes.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


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

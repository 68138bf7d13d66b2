"""One run at a time in a folder.

A lock is an open, locked file beside the folder (``.NAME.dermlens.lock``), or inside it where
nothing may be written beside it. The operating system releases it when the process ends, however it
ends, so a lock never has to be broken by hand; a lock file that is left behind means nothing, and
the next run removes it.

Linux hands ``flock`` on to NFS servers, so runs on several machines are kept apart as well, as long
as all of them mount the share with locks (not ``nolock`` or ``local_lock=flock``). Where there are
no such locks at all (on Windows, on some cluster file systems), the run says so and goes on.
"""

import errno
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from dermlens.errors import UsageError
from dermlens.progress import say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ENDING = ".dermlens.lock"
_ATTEMPTS, _SECONDS_BETWEEN = 4, 0.05
_times: dict[tuple[Path, int], int] = {}
"""How often a thread holds the lock of a folder."""


@contextmanager
def folder_lock(folder: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Keep other runs from writing into a folder until the block ends.

    The thread that holds a lock may take it again.

    Args:
        folder: What the run writes into, or replaces. It need not exist; folders made for the lock
            file are removed again if they stay empty.
        shared: Only read: other readers may go on, writers may not. A folder that is missing or
            cannot be written is not locked.
        wait: Wait for the other run instead of refusing.

    Raises:
        UsageError: If another run holds the lock, or the folder is a file or lies in one.
        OSError: If nothing can be written there.
    """
    folder = real_path(folder)
    key = folder, threading.get_ident()
    with ExitStack() as held:
        if key not in _times and not (shared and not folder.is_dir()):
            try:
                held.enter_context(_locked(folder, shared, wait))
            except OSError as error:
                if not (shared and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)):
                    raise
        _times[key] = _times.get(key, 0) + 1
        try:
            yield
        finally:
            _times[key] -= 1
            if not _times[key]:
                del _times[key]


def real_path(path: Path) -> Path:
    """Return a path without links, so that one folder has one name."""
    return Path(os.path.realpath(path))


def missing_above(path: Path) -> list[Path]:
    """Return the folders above a path that do not exist, the innermost first."""
    return [above for above in path.parents if not above.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def remove_if_free(path: Path) -> None:
    """Remove a lock file that a killed process has left behind."""
    with suppress(OSError):
        _release(os.open(path, os.O_RDWR), path)


@contextmanager
def _locked(folder: Path, shared: bool, wait: bool) -> Iterator[None]:
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"{place} is a file, not a folder. Choose another folder for --out.")
    missing = missing_above(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = folder.name and os.access(folder.parent, os.W_OK)
        path = folder.parent / f".{folder.name}{ENDING}" if beside else folder / ENDING
        opened = _acquire(path, folder, shared, wait)
        try:
            yield
        finally:
            _release(opened, path)
    finally:
        remove_empty(missing)


def _acquire(path: Path, folder: Path, shared: bool, wait: bool) -> int:
    """Return the open, locked file that stands under its name."""
    told = False
    while True:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _try_lock_briefly(opened, shared):
                if not wait:
                    raise UsageError(
                        f"A{_holder(opened)[1:]} is using {folder}. Wait until it has ended, or "
                        "choose another folder."
                    )
                if not told:
                    say(f"Waiting for {_holder(opened)}, which is using {folder}.")
                    told = True
                _try_lock(opened, shared, wait=True)
            # Whoever held it before has removed the file, and there may be a new one by now.
            if path.exists() and os.path.samestat(os.fstat(opened), path.stat()):
                _sign(opened)
                return opened
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(opened)
            raise
        os.close(opened)


def _sign(opened: int) -> None:
    """Write who holds the lock; on a full disk it is held all the same."""
    with suppress(OSError):
        os.ftruncate(opened, 0)
        os.write(opened, f"{os.getpid()} on {platform.node()}".encode())


def _holder(opened: int) -> str:
    with suppress(OSError):
        if text := os.read(opened, 100).decode(errors="replace"):
            return f"another run of dermlens (process {text})"
    return "another run of dermlens"


def _release(opened: int, path: Path) -> None:
    """Close a lock file, and remove it unless others hold it too."""
    with suppress(OSError):
        if _try_lock(opened, shared=False) and os.path.samestat(os.fstat(opened), path.stat()):
            path.unlink()
    os.close(opened)


def _try_lock(opened: int, shared: bool, wait: bool = False) -> bool:
    """Lock an open file; False if another process has it."""
    if fcntl is None:
        _say_without_locks()
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(opened, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        _say_without_locks()
    return True


def _try_lock_briefly(opened: int, shared: bool) -> bool:
    """Try a few times: a run that ends or cleans up holds a lock for some microseconds."""
    for _ in range(_ATTEMPTS):
        if _try_lock(opened, shared):
            return True
        time.sleep(_SECONDS_BETWEEN)
    return False


@cache
def _say_without_locks() -> None:
    say("There are no file locks here. Start no second run into the same folder.")

"""Folders that are written as a whole: a bundle, an explanation, a data set.

Each bears a small hidden file, ``.dermlens``, that says what it is and what was written into it.
Only such a folder, or an empty one, is ever replaced, and only while it holds nothing else: what a
user has put into it, or changed in it, is never deleted.

A new folder is built under a temporary name and put in its place in one step, so that at every
moment the old or the new one, complete, stands under its name. On Linux both are exchanged by one
call (``renameat2``). Where there is no such call (other systems, some network file systems), the
old folder is moved aside first; after a kill between the two steps, the next run that writes there
puts it back.
"""

import ctypes
import errno
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dermlens import __version__
from dermlens.errors import DataError
from dermlens.files import read_json, write_json
from dermlens.leftovers import is_ours, remove, retired, sweep, temporary_beside
from dermlens.locks import folder_lock, real_path

MARKER = ".dermlens"
_OF_THE_SYSTEM = (".DS_Store", "Thumbs.db", "desktop.ini")
_NAMED = 3
"""So many strange files are named in a message."""
_LINUX = sys.platform.startswith("linux")
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


@dataclass(frozen=True)
class Kind:
    """What a folder is that is written as a whole.

    Attributes:
        name: In words, with its article: ``"a bundle"``.
        described_by: File that every such folder holds; None if there is no such.
        contents: Given such a folder without a marker, as earlier versions wrote it: patterns of
            everything that can be in it; a folder that holds anything else is not replaced.
        later: Patterns of what other commands write into it afterwards.
        repaired: Files are checked against their source and restored, so that a changed one is no
            reason to leave the folder alone.
    """

    name: str
    described_by: str | None
    contents: Callable[[Path], Collection[str]]
    later: tuple[str, ...] = ()
    repaired: bool = False


@contextmanager
def folder_beside(path: Path, kind: Kind) -> Iterator[Path]:
    """Yield a temporary folder; put it in the place of ``path`` on success.

    Args:
        path: Folder to write; an older one of the same kind is replaced.
        kind: What it is.

    Raises:
        DataError: If something else stands there (``require_replaceable``); it is left as it is.
        UsageError: If another run writes it.
    """
    require_name(path)
    path = real_path(path)
    with folder_lock(path):
        require_replaceable(path, kind)
        sweep(path.parent)
        temporary = temporary_beside(path)
        temporary.mkdir()
        try:
            yield temporary
            sizes = {name: (temporary / name).lstat().st_size for name in _files(temporary)}
            about = {"kind": kind.name, "dermlens_version": __version__, "files": sizes}
            write_json(temporary / MARKER, about)
            _put(temporary, path, kind)
        finally:
            remove(temporary)


def require_replaceable(path: Path, kind: Kind) -> None:
    """Raise DataError unless a folder may be written as a whole; call it before long work.

    It may be missing or empty, or one of the same kind that holds nothing but what was written
    into it. What a killed run had moved aside is put back first.
    """
    require_name(path)
    path = real_path(path)
    for old in retired(path):
        if path.exists():
            remove(old)
        else:
            old.rename(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise DataError(f"{path} is a file. Choose another --out.")
    if any(path.iterdir()):
        _refuse_what_is_not_ours(path, path, kind)


def require_name(path: Path) -> None:
    """Refuse to replace the folder that the program runs in."""
    if real_path(path) in (real_path(Path()), *real_path(Path()).parents):
        raise DataError(
            f"{path} is the folder you are in, or lies above it, and cannot be written as a whole. "
            "Name a folder to be made with --out."
        )


def _refuse_what_is_not_ours(folder: Path, path: Path, kind: Kind) -> None:
    """Raise DataError if a folder, which stands or stood at ``path``, holds what must be kept."""
    marked = (folder / MARKER).is_file()
    about: Any = read_json(folder / MARKER) if marked else {}
    if marked and not (isinstance(about, dict) and isinstance(about.get("files"), dict)):
        raise DataError(f"{path / MARKER} is damaged. Move {path} away or choose another --out.")
    held = about.get("kind") if marked else None
    described = kind.described_by is None or (folder / kind.described_by).is_file()
    if held not in (None, kind.name) or not described:
        what = f"is not {kind.name}" + (f" but {held}" if held not in (None, kind.name) else "")
        raise DataError(
            f"{path} exists and {what}, so it is not replaced. Choose another --out, or move it "
            "away."
        )
    written = about["files"] if marked else dict.fromkeys(kind.contents(folder))
    strange = [name for name in _files(folder) if not _is_known(folder, name, written, kind)]
    if strange:
        more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
        raise DataError(
            f"{path} is not replaced: it holds files that dermlens did not write there, or that "
            f"have changed since: {', '.join(strange[:_NAMED])}{more}. Move them away or choose "
            "another --out."
        )


def _is_known(folder: Path, name: str, written: dict[str, int | None], kind: Kind) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in kind.later):
        return True
    if name in written:
        size = written[name]
        return size is None or kind.repaired or (folder / name).lstat().st_size == size
    return any("*" in pattern and fnmatchcase(name, pattern) for pattern in written)


def _files(folder: Path) -> list[str]:
    """Return everything in a folder that is no folder, without what nobody would miss."""
    found = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in (*files, *links):
            if name not in (MARKER, *_OF_THE_SYSTEM) and not is_ours(name):
                found.append((Path(root) / name).relative_to(folder).as_posix())
    return sorted(found)


def _put(temporary: Path, path: Path, kind: Kind) -> None:
    """Put a finished folder in the place of ``path``; the old one is then under the other name."""
    # Looked at again: the work may have taken hours.
    require_replaceable(path, kind)
    if not path.exists():
        temporary.rename(path)
    elif exchange(temporary, path):
        try:
            # And once more, for what was saved there between the look and the exchange.
            if any(temporary.iterdir()):
                _refuse_what_is_not_ours(temporary, path, kind)
        except BaseException:
            exchange(temporary, path)
            raise
    else:
        _put_in_two_steps(temporary, path)


def _put_in_two_steps(temporary: Path, path: Path) -> None:
    aside = temporary_beside(path, "old")
    try:
        path.rename(aside)
        temporary.rename(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise
    remove(aside)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if _LINUX else None
    if call is None:
        return False
    if call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(other))

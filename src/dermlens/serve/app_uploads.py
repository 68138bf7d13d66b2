"""Where uploads lie, and for how short: one folder for each run, one file for each upload.

A session's uploads are deleted when it ends, everything else after ``SECONDS_KEPT``, and the whole
folder when the program ends. What a killed program left is deleted by the next one: a living one
holds a lock on a file inside, which a dead one cannot.
"""

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from dermlens.progress import say

SECONDS_KEPT = 840
"""Checked every ``_SECONDS_BETWEEN``, so that no upload that nothing waits for is kept longer than
15 minutes."""
FILES_PER_REQUEST = 100
"""As many as a batch takes."""
_SECONDS_BETWEEN = 30.0
_PREFIX = "dermlens-app-"
_LOCK = "lock"

Held = Callable[[str | None], set[Path]]
"""Given a session that ends, or None, returns the files that requests of others still wait for."""


class RunFolder:
    """A folder that belongs to this run of the program alone.

    Folders of runs that have died are deleted first.
    """

    def __init__(self, parent: Path | None = None) -> None:
        place = Path(tempfile.gettempdir()) if parent is None else parent
        sweep_dead_runs(place)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        # Under its final name the lock is held from the first moment on.
        made = self.path / f"{_LOCK}.new"
        self._held = _hold(made, os.O_CREAT)
        os.replace(made, self.path / _LOCK)

    def close(self) -> None:
        """Delete the folder; harmless if it is gone."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None


def sweep_dead_runs(parent: Path) -> list[Path]:
    """Delete the folders of this user's runs that have died, and return them."""
    dead = []
    for folder in parent.glob(f"{_PREFIX}*"):
        if not _is_mine(folder):
            continue
        held = _hold(folder / _LOCK)
        if held is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)
            dead.append(folder)
    return dead


def _is_mine(folder: Path) -> bool:
    """Tell whether it is a real folder of this user: others may write to the parent, too."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _hold(path: Path, flags: int = 0) -> int | None:
    """Return a file descriptor that holds the lock of a file, or None if it cannot be had."""
    try:
        opened = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        return None
    return opened


class Uploads:
    """The folder of uploads and who uses which file."""

    def __init__(self, folder: Path, kept: Path | None = None, held: Held | None = None) -> None:
        self.folder, self._kept = folder.resolve(), None if kept is None else kept.resolve()
        self.held: Held = held or (lambda session: set())
        self._users: dict[Path, set[str]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def record(self, session: str | None, paths: Iterable[str | Path]) -> None:
        """Note that a session uses files; files elsewhere are ignored."""
        for path in map(Path, paths):
            full = path.resolve()
            if session is not None and self._owns(full):
                with self._lock:
                    self._users.setdefault(full, set()).add(session)

    def forget(self, session: str | None) -> None:
        """Delete the files of a session that no other session uses or waits for."""
        held = self.held(session)
        with self._lock:
            for path in [one for one, users in self._users.items() if session in users]:
                self._users[path].discard(str(session))
                if not self._users[path]:
                    del self._users[path]
                    if path not in held:
                        _remove(path)

    def sweep(self, seconds: float = SECONDS_KEPT) -> None:
        """Delete files that were written longer ago and that no request waits for."""
        oldest = time.time() - seconds
        held = self.held(None)
        for folder, _, names in os.walk(self.folder, topdown=False):
            for path in (Path(folder) / name for name in names):
                if self._owns(path) and _written(path) < oldest and path not in held:
                    with self._lock:
                        self._users.pop(path, None)
                    _remove(path)

    def start(self, also: Callable[[], None] | None = None) -> None:
        """Sweep from time to time, in the background, until ``close``; ``also`` is called then."""
        threading.Thread(target=self._run, args=(also,), name="dermlens-sweep", daemon=True).start()

    def close(self) -> None:
        """Delete the folder."""
        self._stopped.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, also: Callable[[], None] | None) -> None:
        while not self._stopped.wait(_SECONDS_BETWEEN):
            try:
                self.sweep()
                if also is not None:
                    also()
            except (OSError, RuntimeError) as error:
                # Whatever stood in the way this time: the next sweep must come.
                say(f"Old uploads could not be looked for: {type(error).__name__}.")

    def _owns(self, path: Path) -> bool:
        inside = path.is_relative_to(self.folder)
        return inside and not (self._kept is not None and path.is_relative_to(self._kept))


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")


def _remove(path: Path) -> None:
    """Delete a file, and its folder if that is empty now."""
    path.unlink(missing_ok=True)
    try:
        path.parent.rmdir()
    except OSError:
        return


receiving: ContextVar[list[Path] | None] = ContextVar("receiving", default=None)
"""The files that the request at hand is writing; None outside of an upload."""


def give_each_upload_its_own_place() -> None:
    """Let every upload lie under a name of its own, which nobody can guess.

    Gradio names the folder of an upload after its content. Two visitors who upload the same
    picture would share one file, and the first to leave would take the other's away.
    """
    from gradio import route_utils
    from starlette.formparsers import MultiPartException

    if getattr(route_utils.GradioUploadFile, "own_place", False):
        return

    class Upload(route_utils.GradioUploadFile):
        own_place = True

        def __init__(self, file: Any, **options: Any) -> None:
            super().__init__(file, **options)
            self.sha.update(secrets.token_bytes(16))
            written = receiving.get()
            if written is not None:
                written.append(Path(file.name))
                if len(written) > FILES_PER_REQUEST:
                    raise MultiPartException(
                        f"Up to {FILES_PER_REQUEST} files are taken at once. Send fewer."
                    )

    route_utils.GradioUploadFile = Upload

"""What is kept of visitors, and for how short: uploads, results, and what a request may reach.

Uploads lie in one folder. A session's uploads are deleted when it ends, everything else after
``SECONDS_KEPT``, and the folder itself when the program ends. Results are kept in memory alone,
for as long, for a limited number of sessions. Nothing about a visitor is written anywhere else.
"""

import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

SECONDS_KEPT = 840
"""Checked every ``_SECONDS_BETWEEN``, so that no upload grows older than 15 minutes."""
SESSIONS_KEPT = 16
MAX_REQUEST_BYTES = 260 * 2**20
"""Of one request: the largest batch and its envelope."""
_SECONDS_BETWEEN = 30.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Served = Callable[[Message, Receive, Send], Awaitable[None]]


class Uploads:
    """The folder of uploads and who uses which file.

    Files lie under a checksum of their content, so two sessions may share one.

    Args:
        folder: Made if missing; everything in it but ``kept`` belongs to this object.
        kept: Folder inside that is never swept, such as that of the examples.
    """

    def __init__(self, folder: Path, kept: Path | None = None) -> None:
        self.folder, self._kept = folder.resolve(), None if kept is None else kept.resolve()
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
        """Delete the files that no other session uses."""
        with self._lock:
            for path in [one for one, users in self._users.items() if session in users]:
                self._users[path].discard(str(session))
                if not self._users[path]:
                    del self._users[path]
                    _remove(path)

    def sweep(self, seconds: float = SECONDS_KEPT) -> None:
        """Delete files that were written longer ago."""
        oldest = time.time() - seconds
        for folder, _, names in os.walk(self.folder, topdown=False):
            for path in (Path(folder) / name for name in names):
                if self._owns(path) and _written(path) < oldest:
                    with self._lock:
                        self._users.pop(path, None)
                    _remove(path)

    def start(self) -> None:
        """Sweep from time to time, in the background, until ``close``."""
        threading.Thread(target=self._run, name="dermlens-sweep", daemon=True).start()

    def close(self) -> None:
        """Delete the folder."""
        self._stopped.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self) -> None:
        while not self._stopped.wait(_SECONDS_BETWEEN):
            self.sweep()

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


class Results:
    """What was computed for the visitors of the last minutes, in memory.

    Args:
        sessions: How many are kept; the one unused for longest goes first.
        seconds: How long a result is kept.
    """

    def __init__(self, sessions: int = SESSIONS_KEPT, seconds: float = SECONDS_KEPT) -> None:
        self._sessions, self._seconds = sessions, seconds
        self._kept: OrderedDict[str, dict[str, tuple[float, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, session: str | None, name: str, value: Any) -> None:
        """Keep a value under a name."""
        if session is None:
            return
        with self._lock:
            self._expire()
            self._kept.setdefault(session, {})[name] = (time.monotonic(), value)
            self._kept.move_to_end(session)
            while len(self._kept) > self._sessions:
                self._kept.popitem(last=False)

    def get(self, session: str | None, name: str) -> Any:
        """Return a kept value, or None."""
        with self._lock:
            self._expire()
            return self._kept.get(session or "", {}).get(name, (0.0, None))[1]

    def forget(self, session: str | None) -> None:
        """Drop everything of a session."""
        with self._lock:
            self._kept.pop(session or "", None)

    def _expire(self) -> None:
        oldest = time.monotonic() - self._seconds
        for session in list(self._kept):
            fresh = {k: v for k, v in self._kept[session].items() if v[0] >= oldest}
            if fresh:
                self._kept[session] = fresh
            else:
                del self._kept[session]


class Guard:
    """ASGI middleware: refuses what no visitor of the page needs, and asks for no traces.

    * Addresses of other servers: this program fetches nothing for anybody.
    * Requests that are too large, or do not say how large they are, before they are read.

    Args:
        app: What is served.
    """

    def __init__(self, app: Served) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = _refusal(scope)
        if refused is not None:
            await _answer(send, *refused)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
                if "file=" in scope["path"]:
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        await self._app(scope, receive, sending)


_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


def _refusal(scope: Message) -> tuple[int, str] | None:
    path = scope["path"]
    if any(mark in path for mark in ("file=http", "file/http", "proxy=")):
        return 403, "This server fetches nothing from other servers."
    if scope["method"] != "POST":
        return None
    length = dict(scope["headers"]).get(b"content-length", b"")
    if not length.isdigit():
        return 411, "The request does not say how long it is."
    if int(length) > MAX_REQUEST_BYTES:
        return 413, f"Up to {MAX_REQUEST_BYTES // 2**20} MB are taken at once. Send fewer files."
    return None


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = sentence.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

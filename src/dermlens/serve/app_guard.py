"""The gate in front of the page: who may ask, for what, and how much, before anything is read.

Gradio serves more than this page needs, and answers whoever asks. What is refused here:

* names that this page does not go by (a foreign name that was bent to this address would make a
  stranger's web page one with this one), and requests that other web pages send;
* everything that writes but what the page itself uses, addresses of other servers, and requests
  that are too large or do not say how large they are;
* uploads beyond a client's share, and passwords after too many wrong ones.

An unexpected error is answered with a sentence; the console learns its kind and place, no more,
since its message may hold something of the visitor's.
"""

import asyncio
import ipaddress
import json
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, QueryParams
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

from dermlens.errors import DermlensError, UsageError
from dermlens.progress import say
from dermlens.serve.app_limits import FAILURES, MEGABYTE, SECONDS, Attempts, Quota, client_of
from dermlens.serve.app_uploads import receiving

_SECONDS_SHOWN = 20

MAX_REQUEST_BYTES = 260 * MEGABYTE
"""Of one upload: the largest batch and its envelope."""
MAX_CALL_BYTES = MEGABYTE
"""Of any other request: it only names what was uploaded."""
SECONDS_OF_SILENCE = 60.0
"""Without a byte, after which an upload is given up."""
_UPLOAD = "/gradio_api/upload"
_LOGIN = "/login"
_WRITES = (
    _UPLOAD,
    _LOGIN,
    "/gradio_api/queue/join",
    "/gradio_api/call/",
    "/gradio_api/run/",
    "/gradio_api/cancel",
    "/gradio_api/reset",
)
_READS = re.compile(r"/gradio_api/(?:call/(?:v2/)?[^/]+/(?P<event>[^/]+)/?|queue/data)")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Served = Callable[[Message, Receive, Send], Awaitable[None]]
_MINUTES = round(SECONDS / 60)
TOO_MANY_PASSWORDS = f"Too many wrong passwords were given. Try again in {_MINUTES} minutes."
PASSWORDS_LEFT = f"After {FAILURES} wrong passwords none is checked for {_MINUTES} minutes."
"""On the sign-in page, which shows no answer but that a password is wrong."""


def sentences(process: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Turn errors into one sentence on the page."""

    @wraps(process)
    async def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            return await process(*arguments, **options)
        except Exception as error:
            raise shown(error) from None

    return guarded


def shown(error: Exception) -> Exception:
    """Return the error to show; the terminal learns the kind of an unexpected one, no more.

    The message of an unexpected error may hold something of the visitor's, so it is not printed.
    """
    import gradio as gr

    if isinstance(error, DermlensError | gr.Error):
        text = error.message if isinstance(error, gr.Error) else str(error)
        return gr.Error(text, duration=_SECONDS_SHOWN, print_exception=False)
    say(f"Unexpected {type(error).__name__} in the web interface, in {place_of(error)}.")
    return gr.Error(
        "This did not work, and it is not your fault. Try another image.",
        duration=_SECONDS_SHOWN,
        print_exception=False,
    )


def place_of(error: Exception) -> str:
    """Return the function and line where an error was raised."""
    trace, where = error.__traceback__, "an unknown place"
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return where


class Site:
    """The names by which this page may be addressed.

    Addresses in digits are always right: no stranger's name is behind them.
    """

    def __init__(self, host: str = "127.0.0.1", more: Iterable[str] = ()) -> None:
        own = socket.gethostname().lower()
        self._names = {"localhost", own, f"{own}.local", _host_name(host)}
        self._allowed: set[str] = set()
        self.allow(*more)

    def allow(self, *names: str) -> None:
        """Take more names, given as such or as whole addresses."""
        for name in names:
            self._allowed.add(_host_name(name.split("://")[-1].split("/")[0]))

    def goes_by(self, host: str) -> bool:
        """Tell whether a ``Host`` header, name and perhaps port, means this page."""
        name = _host_name(host)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names or name in self._allowed
        return True

    def sent(self, origin: str, host: str) -> bool:
        """Tell whether an ``Origin`` header means this page, which was addressed as ``host``."""
        place = urlsplit(origin).netloc.lower()
        # A proxy may hand on another host; the browser's name is then one that was allowed.
        return place != "" and (place == host.lower() or _host_name(place) in self._allowed)


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


class Readers:
    """Which sessions' results are read at the moment."""

    def __init__(self) -> None:
        self.session_of: Callable[[str], str] = lambda event: event
        self._open: Counter[str] = Counter()

    @contextmanager
    def reading(self, session: str) -> Iterator[None]:
        """Count a reader as long as its answer is being sent."""
        self._open[session] += 1
        try:
            yield
        finally:
            self._open[session] -= 1
            if not self._open[session]:
                del self._open[session]

    def __contains__(self, session: str) -> bool:
        """Tell whether somebody reads a session's results."""
        return session in self._open


class Guard:
    """ASGI middleware; see the module."""

    def __init__(
        self,
        app: Served,
        site: Site | None = None,
        readers: Readers | None = None,
        quota: Quota | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        self._app = app
        self._site, self._readers = site or Site(), readers or Readers()
        self._quota, self._attempts = quota or Quota(), attempts or Attempts()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            # Nothing here speaks through sockets.
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        headers = Headers(scope=scope)
        try:
            refused = _refusal(scope, headers, self._site)
            if refused is not None:
                await answer.refuse(*refused)
            elif scope["method"] != "POST":
                with self._noted(scope):
                    await self._app(scope, receive, answer)
            elif _is(scope, _UPLOAD):
                await self._receive_upload(scope, receive, answer, int(headers["content-length"]))
            elif _is(scope, _LOGIN):
                await self._check_password(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        except Exception as error:
            if not isinstance(error, ClientDisconnect):
                say(f"Unexpected {type(error).__name__} in the web server, in {place_of(error)}.")
            await answer.refuse(500, "This did not work. Check the request, or reload the page.")

    def _noted(self, scope: Message) -> Any:
        found = _READS.fullmatch(scope["path"])
        if found is None:
            return nullcontext()
        if found["event"]:
            return self._readers.reading(self._readers.session_of(found["event"]))
        asked = QueryParams(scope.get("query_string", b""))
        return self._readers.reading(asked.get("session_hash", ""))

    async def _receive_upload(
        self, scope: Message, receive: Receive, answer: "_Answer", size: int
    ) -> None:
        written: list[Path] = []
        answer.kept = []
        try:
            with self._quota.admit(_client(scope), size) as left:
                token = receiving.set(written)
                try:
                    await self._app(scope, _impatient(receive), answer)
                finally:
                    receiving.reset(token)
                    if answer.status == 200:
                        left += map(Path, json.loads(b"".join(answer.kept)))
                    # What arrived whole has its final name by now; this is what was cut off.
                    for path in written:
                        path.unlink(missing_ok=True)
        except UsageError as full:
            await answer.refuse(429, str(full))

    async def _check_password(self, scope: Message, receive: Receive, answer: "_Answer") -> None:
        client = _client(scope)
        if not self._attempts.begin(client):
            await answer.refuse(429, TOO_MANY_PASSWORDS, {"retry-after": str(int(SECONDS))})
            return
        await self._app(scope, receive, answer)
        if answer.status == 200:
            self._attempts.succeed(client)


class _Answer:
    """Sends what is served, with the headers of this page, or a refusal.

    Attributes:
        status: Of what was sent; None as long as nothing was.
        kept: Where what is sent is to be kept, its pieces so far.
    """

    def __init__(self, scope: Message, send: Send) -> None:
        self._scope, self._send = scope, send
        self.kept: list[bytes] | None = None
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        """Send one message."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), *_HEADERS]
            if "file=" in self._scope["path"]:
                headers.append((b"cache-control", b"no-store"))
            message["headers"] = headers
        elif self.kept is not None and message["type"] == "http.response.body":
            self.kept.append(message.get("body", b""))
        await self._send(message)

    async def refuse(
        self, status: int, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with a sentence, unless an answer has begun."""
        if self.status is None:
            refusal = PlainTextResponse(sentence, status, headers)
            await refusal(self._scope, _nothing, self)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _is(scope: Message, path: str) -> bool:
    return str(scope["path"]).rstrip("/") == path


def _client(scope: Message) -> str:
    return client_of((scope.get("client") or [None])[0])


def _refusal(scope: Message, headers: Headers, site: Site) -> tuple[int, str] | None:
    path, method = scope["path"], scope["method"]
    host = headers.get("host", "")
    if host and not site.goes_by(host):
        return 421, (
            "This page does not go by that name. Open the address that the program has printed, or "
            "start it with --allow-host and the name."
        )
    if _is_from_elsewhere(scope, headers, site):
        return 403, "Other web pages may not use this one. Open it in a tab of its own."
    if any(mark in path for mark in ("file=http", "file/http", "proxy=")):
        return 403, "This server fetches nothing from other servers."
    if method in ("GET", "HEAD", "OPTIONS"):
        # A state that is saved under an address would outlive its session.
        return (404, "There is no such page here.") if "deep_link" in path else None
    if method != "POST" or not any(
        path.startswith(one) if one.endswith("/") else _is(scope, one) for one in _WRITES
    ):
        return 405, "This page takes no such request."
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        return 411, "The request does not say how long it is."
    largest = MAX_REQUEST_BYTES if _is(scope, _UPLOAD) else MAX_CALL_BYTES
    if int(length) > largest:
        return 413, f"Up to {largest // MEGABYTE} MB are taken at once. Send fewer files."
    return None


def _is_from_elsewhere(scope: Message, headers: Headers, site: Site) -> bool:
    """Tell whether another web page sends this, rather than a visitor who follows a link to here.

    Programs that are no browser say nothing of where a request comes from.
    """
    place = headers.get("sec-fetch-site")
    if place in ("same-origin", "none"):
        return False
    if place is not None:
        opened = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
        plain = scope["method"] == "GET" and scope["path"] == "/"
        return not (plain and opened == ("navigate", "document"))
    origin = headers.get("origin")
    return origin is not None and not site.sent(origin, headers.get("host", ""))


def _impatient(receive: Receive) -> Receive:
    """Give up on a client that sends nothing for a while."""

    async def receiving_in_time() -> Message:
        try:
            return await asyncio.wait_for(receive(), SECONDS_OF_SILENCE)
        except TimeoutError:
            return {"type": "http.disconnect"}

    return receiving_in_time

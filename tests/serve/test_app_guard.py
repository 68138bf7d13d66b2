"""The gate in front of the page: who may ask, for what, and how much."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dermlens.errors import UsageError
from dermlens.serve import app_guard, app_limits
from dermlens.serve.app_guard import MAX_CALL_BYTES, MAX_REQUEST_BYTES, Guard, Readers, Site
from dermlens.serve.app_limits import (
    ALL,
    EACH,
    FAILURES,
    FAILURES_OF_ALL,
    SECONDS,
    Allowance,
    Attempts,
    Quota,
)
from dermlens.serve.app_uploads import receiving

UPLOAD = "/gradio_api/upload"
App = Callable[[Any, Any, Any], Awaitable[None]]
Answer = tuple[int, dict[bytes, bytes], bytes]


async def served(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})


async def nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def ask(
    guard: Guard,
    path: str,
    method: str = "GET",
    client: str = "192.0.2.1",
    receive: Any = nothing,
    query: str = "",
    **headers: str,
) -> Answer:
    """Status, headers and body of an answer."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "query_string": query.encode(),
        "client": (client, 5),
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }
    await guard(scope, receive, send)
    body = b"".join(one["body"] for one in messages[1:])
    return messages[0]["status"], dict(messages[0]["headers"]), body


def asked(path: str, method: str = "GET", site: Site | None = None, **headers: str) -> Answer:
    return asyncio.run(ask(Guard(served, site), path, method, **headers))


def test_guard_refuses_other_servers_and_large_requests() -> None:
    status, headers, body = asked("/")
    assert (status, body) == (200, b"served")
    assert headers[b"x-content-type-options"] == b"nosniff" and b"cache-control" not in headers
    assert asked("/gradio_api/file=/tmp/x.png")[1][b"cache-control"] == b"no-store"
    for path in ("/gradio_api/file=https://a.org/x", "/gradio_api/proxy=https://a.org"):
        status, _, body = asked(path)
        assert status == 403 and body.endswith(b".")
    assert asked(UPLOAD, "POST", content_length=str(MAX_REQUEST_BYTES))[0] == 200
    assert asked(UPLOAD, "POST", content_length=str(MAX_REQUEST_BYTES + 1))[0] == 413
    assert asked(UPLOAD, "POST")[0] == 411 and asked(UPLOAD, "POST", content_length="x")[0] == 411
    join = "/gradio_api/queue/join"
    assert asked(join, "POST", content_length=str(MAX_CALL_BYTES))[0] == 200
    assert asked(join, "POST", content_length=str(MAX_CALL_BYTES + 1))[0] == 413


def test_no_other_page_may_frame_this_one_or_take_its_files() -> None:
    for path in ("/", "/gradio_api/file=/tmp/x.png", "/gradio_api/proxy=https://a.org"):
        headers = asked(path)[1]
        assert headers[b"x-frame-options"] == b"DENY"
        assert headers[b"content-security-policy"] == b"frame-ancestors 'none'"
        assert headers[b"cross-origin-resource-policy"] == b"same-origin"


def test_only_what_the_page_uses_is_taken() -> None:
    for path in ("component_server", "process_recording", "vibe-edit", "api/predict", "stream/a"):
        assert asked(f"/gradio_api/{path}", "POST", content_length="2")[0] == 405, path
    assert asked("/", "DELETE")[0] == 405 and asked("/", "HEAD")[0] == 200
    assert asked("/gradio_api/deep_link", query="session_hash=a")[0] == 404
    for path in ("call/explain", "call/v2/explain/", "run/predict", "cancel", "queue/join/"):
        assert asked(f"/gradio_api/{path}", "POST", content_length="2")[0] == 200, path


def test_the_page_goes_by_its_own_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_guard.socket, "gethostname", lambda: "Ward7")
    right = ["localhost:7860", "127.0.0.1", "[::1]:7860", "192.168.1.5:80", "ward7", "WARD7.local."]
    for name in right:
        assert asked("/", host=name)[0] == 200, name
    wrong = ["evil.org", "evil.org:7860", "localhost.evil.org", "127.0.0.1.evil.org", "[", "a:b:c"]
    for name in wrong:
        assert asked("/", host=name)[0] == 421, name
        assert asked(UPLOAD, "POST", host=name, content_length="2")[0] == 421, name
    site = Site("derm.ward", ["skin.example.org"])
    site.allow("https://abc.gradio.live/")
    for name in ("derm.ward:80", "skin.example.org", "abc.gradio.live"):
        assert asked("/", site=site, host=name)[0] == 200, name
    assert asked("/", site=site, host="example.org")[0] == 421


def test_other_web_pages_cannot_use_this_one() -> None:
    here = {"host": "localhost:7860", "content_length": "2"}
    join = "/gradio_api/queue/join"
    for origin in ("https://evil.org", "http://localhost:3000", "http://127.0.0.1:7860", "null"):
        assert asked(join, "POST", origin=origin, **here)[0] == 403, origin
        assert asked("/config", origin=origin, **here)[0] == 403, origin
    assert asked(join, "POST", origin="http://localhost:7860", **here)[0] == 200
    assert asked(join, "POST", **here)[0] == 200
    for place in ("cross-site", "same-site"):
        fetched = {"sec_fetch_site": place, "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}
        assert asked("/gradio_api/heartbeat/a", **fetched, **here)[0] == 403
        followed = {**fetched, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
        assert asked("/", **followed, **here)[0] == 200
        assert asked("/logout", **followed, **here)[0] == 403
        assert asked("/login", "POST", **followed, **here)[0] == 403
        framed = {**fetched, "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}
        assert asked("/", **framed, **here)[0] == 403
    # Behind a proxy that hands on a host of its own, the browser still says it is the same site.
    proxied = {"host": "127.0.0.1:7860", "content_length": "2", "origin": "https://skin.org"}
    assert asked(join, "POST", sec_fetch_site="same-origin", **proxied)[0] == 200
    assert asked(join, "POST", site=Site(more=["skin.org"]), **proxied)[0] == 200
    assert asked(join, "POST", **proxied)[0] == 403


def test_unexpected_errors_do_not_print_what_a_visitor_sent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("the visitor's secret")

    status, _, body = asyncio.run(ask(Guard(failing), "/"))
    assert status == 500 and body.endswith(b".") and b"secret" not in body
    printed = capsys.readouterr()
    assert printed.out == "Unexpected KeyError in the web server, in " + (
        f"failing, line {failing.__code__.co_firstlineno + 1}.\n"
    )
    assert printed.err == ""


def receiver(folder: Path, sizes: list[int], cut_at: int | None = None) -> App:
    """An app that writes files as Gradio does: under passing names first."""

    async def receive_files(scope: Any, receive: Any, send: Any) -> None:
        written = receiving.get()
        assert written is not None
        paths = []
        for number, size in enumerate(sizes):
            path = folder / f"tmp{number}"
            written.append(path)
            path.write_bytes(b"x" * size)
            if number == cut_at:
                raise RuntimeError("cut off")
            paths.append(folder / f"{len(list(folder.iterdir()))}.png")
            path.rename(paths[-1])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = json.dumps([str(path) for path in paths]).encode()
        await send({"type": "http.response.body", "body": body})

    return receive_files


def test_uploads_beyond_a_share_are_refused_before_they_are_read(tmp_path: Path) -> None:
    quota = Quota(Allowance(100, 9, 9), Allowance(150, 9, 9))
    guard = Guard(receiver(tmp_path, [40]), quota=quota)

    def upload(client: str, size: int = 60) -> int:
        return asyncio.run(ask(guard, UPLOAD, "POST", client=client, content_length=str(size)))[0]

    assert upload("192.0.2.1", 101) == 429 and list(tmp_path.iterdir()) == []
    # What was announced counts until it is here, then what lies here.
    assert [upload("192.0.2.1") for _ in range(3)] == [200, 200, 429]
    assert upload("192.0.2.2") == 200
    assert upload("192.0.2.3") == 429 and len(list(tmp_path.iterdir())) == 3
    next(tmp_path.iterdir()).unlink()
    assert upload("192.0.2.3") == 200


def test_uploads_under_way_are_counted(tmp_path: Path) -> None:
    quota = Quota(Allowance(100, 2, 3), Allowance(1000, 3, 9))
    with quota.admit("ann", 10) as first, quota.admit("ann", 10):
        with pytest.raises(UsageError, match="your address"), quota.admit("ann", 10):
            pass
        with (
            quota.admit("bob", 10),
            pytest.raises(UsageError, match="no room"),
            quota.admit("cid", 10),
        ):
            pass
        for number in range(3):
            first.append(tmp_path / f"{number}.png")
            first[-1].touch()
    with pytest.raises(UsageError, match="your address"), quota.admit("ann", 10):
        pass
    first[0].unlink()
    with quota.admit("ann", 90):
        pass
    assert EACH.size >= 2 * MAX_REQUEST_BYTES and ALL.size >= 4 * EACH.size


def test_what_was_cut_off_does_not_stay(tmp_path: Path) -> None:
    guard = Guard(receiver(tmp_path, [10, 10, 10], cut_at=1))
    assert asyncio.run(ask(guard, UPLOAD, "POST", content_length="30"))[0] == 500
    # The first has its final name: it belongs to the sweep.
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"]


def test_who_sends_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_guard, "SECONDS_OF_SILENCE", 0.01)
    seen = []

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        seen.append(await receive())
        await served(scope, receive, send)

    async def silence() -> Any:
        await asyncio.sleep(60)

    asyncio.run(ask(Guard(reading), UPLOAD, "POST", receive=silence, content_length="30"))
    assert seen == [{"type": "http.disconnect"}]


def test_passwords_are_not_guessed() -> None:
    now = 0.0
    attempts = Attempts(lambda: now)
    right = False
    checked: list[int] = []

    async def signing_in(scope: Any, receive: Any, send: Any) -> None:
        checked.append(1)
        await send({"type": "http.response.start", "status": 200 if right else 400, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(signing_in, attempts=attempts)

    def sign_in(client: str) -> tuple[int, dict[bytes, bytes], bytes]:
        return asyncio.run(ask(guard, "/login/", "POST", client=client, content_length="9"))

    assert [sign_in("192.0.2.1")[0] for _ in range(FAILURES)] == [400] * FAILURES
    right = True
    status, headers, body = sign_in("192.0.2.1")
    assert (status, headers[b"retry-after"]) == (429, b"300") and body.endswith(b".")
    assert len(checked) == FAILURES
    assert sign_in("192.0.2.2")[0] == 200
    now = SECONDS + 1
    assert sign_in("192.0.2.1")[0] == 200
    # The right one ends the count; neighbors in an IPv6 network are one client.
    right = False
    for number in range(FAILURES):
        assert sign_in(f"2001:db8::{number + 1}")[0] == 400
    assert sign_in("2001:db8::77")[0] == 429
    for number in range(FAILURES_OF_ALL):
        sign_in(f"198.51.100.{number}")
    assert sign_in("203.0.113.1")[0] == 429


def test_readers_are_known_as_long_as_they_read() -> None:
    readers = Readers()
    readers.session_of = {"e1": "e1", "e2": "of e2"}.__getitem__
    seen = []

    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        seen.append(("s" in readers, "e1" in readers, "of e2" in readers))
        await served(scope, receive, send)

    guard = Guard(streaming, readers=readers)
    asyncio.run(ask(guard, "/gradio_api/queue/data", query="session_hash=s"))
    asyncio.run(ask(guard, "/gradio_api/call/explain/e1"))
    asyncio.run(ask(guard, "/gradio_api/call/v2/explain/e2/"))
    asyncio.run(ask(guard, "/gradio_api/call/explain", "POST", content_length="2"))
    assert seen == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (False, False, False),
    ]
    assert "s" not in readers and "e1" not in readers


def test_the_password_is_never_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert app_limits.sign_in(None) is None
    monkeypatch.setenv("DERMLENS_PASSWORD", "a:long word")
    assert app_limits.sign_in(" ann ") == ("ann", "a:long word")
    with pytest.raises(UsageError, match="command line can be read"):
        app_limits.sign_in("ann:secret")
    with pytest.raises(UsageError, match="needs a name"):
        app_limits.sign_in(" ")
    monkeypatch.setenv("DERMLENS_PASSWORD", "short")
    with pytest.raises(UsageError, match="at least 8"):
        app_limits.sign_in("ann")
    monkeypatch.delenv("DERMLENS_PASSWORD")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UsageError, match="Set DERMLENS_PASSWORD"):
        app_limits.sign_in("ann")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    typed = iter(["long enough", "long enough", "long enough", "longer"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    assert app_limits.sign_in("ann") == ("ann", "long enough")
    with pytest.raises(UsageError, match="differ"):
        app_limits.sign_in("ann")


def test_open_pages_are_warned_of() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.9"):
        assert app_limits.warning(host, False, False) is None
    for host in ("0.0.0.0", "::", "192.168.1.5", "ward7"):
        said = app_limits.warning(host, False, False)
        assert said is not None and "--auth NAME" in said and "can reach this computer" in said
        said = app_limits.warning(host, False, True)
        assert said is not None and "unencrypted" in said
    said = app_limits.warning("127.0.0.1", True, False)
    assert said is not None and "internet" in said and "--auth NAME" in said
    assert app_limits.warning("127.0.0.1", True, True) is None

"""What is kept of visitors and for how short, and what a request may ask for."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from dermlens.serve.app_privacy import MAX_REQUEST_BYTES, Guard, Results, Uploads


def uploaded(folder: Path, name: str, age: float = 0.0) -> Path:
    path = folder / f"checksum-{name}" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"skin")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_uploads_go_when_the_last_session_that_uses_them_ends(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", kept=tmp_path / "uploads" / "examples")
    mine, shared = (uploaded(uploads.folder, name) for name in ("mine.png", "shared.png"))
    example = uploads.folder / "examples" / "drawn.png"
    example.parent.mkdir()
    example.write_bytes(b"drawn")
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes(b"not an upload")
    uploads.record(
        "ann", [mine, shared, example, elsewhere, uploads.folder / ".." / "elsewhere.png"]
    )
    uploads.record("bob", [str(shared)])
    uploads.record(None, [mine])
    uploads.forget("ann")
    assert not mine.parent.exists() and shared.exists()
    uploads.forget("nobody")
    uploads.forget(None)
    uploads.forget("bob")
    assert not shared.exists() and example.exists() and elsewhere.exists()
    uploads.close()
    assert not uploads.folder.exists() and elsewhere.exists()


def test_old_uploads_go_whoever_uses_them(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, kept=tmp_path / "examples")
    old, fresh = uploaded(tmp_path, "old.png", age=850), uploaded(tmp_path, "fresh.png", age=800)
    example = uploaded(tmp_path / "examples", "drawn.png", age=10_000)
    uploads.record("ann", [old, fresh])
    uploads.sweep()
    assert not old.parent.exists() and fresh.exists() and example.exists()
    uploads.forget("ann")
    assert not fresh.exists()


def test_sweeping_goes_on_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dermlens.serve.app_privacy._SECONDS_BETWEEN", 0.01)
    uploads = Uploads(tmp_path / "uploads")
    old = uploaded(uploads.folder, "old.png", age=850)
    uploads.start()
    deadline = time.monotonic() + 5
    while old.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not old.exists()
    uploads.close()


def test_results_are_few_and_short_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("dermlens.serve.app_privacy.time.monotonic", lambda: now)
    results = Results(sessions=2, seconds=100)
    results.put("ann", "analysis", 1)
    results.put("ann", "explanation", 2)
    results.put("bob", "analysis", 3)
    results.put(None, "analysis", 4)
    assert results.get("ann", "explanation") == 2 and results.get(None, "analysis") is None
    results.put("cid", "analysis", 5)
    assert results.get("ann", "analysis") is None and results.get("bob", "analysis") == 3
    results.forget("bob")
    results.forget(None)
    assert results.get("bob", "analysis") is None
    now = 50.0
    results.put("cid", "explanation", 6)
    now = 120.0
    assert results.get("cid", "analysis") is None and results.get("cid", "explanation") == 6
    now = 151.0
    assert results.get("cid", "explanation") is None


def asked(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of what the guard answers, where the app answers 200."""
    messages: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"served"})

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
    }
    asyncio.run(Guard(app)(scope, lambda: None, send))  # type: ignore[arg-type]
    return messages[0]["status"], dict(messages[0]["headers"]), messages[1]["body"]


def test_guard_refuses_other_servers_and_large_requests() -> None:
    status, headers, body = asked("/")
    assert (status, body) == (200, b"served")
    assert headers[b"x-content-type-options"] == b"nosniff" and b"cache-control" not in headers
    assert asked("/gradio_api/file=/tmp/x.png")[1][b"cache-control"] == b"no-store"
    for path in ("/gradio_api/file=https://a.org/x", "/gradio_api/proxy=https://a.org"):
        status, _, body = asked(path)
        assert status == 403 and body.endswith(b".")
    upload = "/gradio_api/upload"
    assert asked(upload, "POST", content_length=str(MAX_REQUEST_BYTES))[0] == 200
    assert asked(upload, "POST", content_length=str(MAX_REQUEST_BYTES + 1))[0] == 413
    assert asked(upload, "POST")[0] == 411 and asked(upload, "POST", content_length="x")[0] == 411

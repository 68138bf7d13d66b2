"""What is kept of visitors and for how short."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dermlens.serve.app_desk import Results
from dermlens.serve.app_uploads import RunFolder, Uploads, sweep_dead_runs


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
    monkeypatch.setattr("dermlens.serve.app_uploads._SECONDS_BETWEEN", 0.01)
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
    monkeypatch.setattr("dermlens.serve.app_desk.time.monotonic", lambda: now)
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


def test_files_that_requests_wait_for_stay(tmp_path: Path) -> None:
    awaited = {"ann": set(), "bob": set()}  # type: dict[str, set[Path]]

    def held(leaving: str | None) -> set[Path]:
        return set().union(*(paths for one, paths in awaited.items() if one != leaving))

    uploads = Uploads(tmp_path, held=held)
    old, shared = uploaded(tmp_path, "old.png", age=10_000), uploaded(tmp_path, "shared.png")
    uploads.record("ann", [old, shared])
    awaited["ann"], awaited["bob"] = {old}, {shared}
    uploads.sweep()
    assert old.exists()
    # Ann leaves while her request waits, and Bob's, which has not been served yet, does, too.
    uploads.forget("ann")
    assert not old.exists() and shared.exists()
    awaited["bob"] = set()
    uploads.record("bob", [shared])
    uploads.forget("bob")
    assert not shared.exists()


DIE = """
import os, pathlib, signal, sys
from dermlens.serve.app_uploads import RunFolder
run = RunFolder(pathlib.Path(sys.argv[1]))
(run.path / "photo.png").write_bytes(b"skin")
print(run.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_goes_and_a_living_runs_folder_stays(tmp_path: Path) -> None:
    living = RunFolder(tmp_path)
    photo = living.path / "photo.png"
    photo.write_bytes(b"skin")
    killed = subprocess.run([sys.executable, "-c", DIE, tmp_path], capture_output=True, text=True)
    dead = Path(killed.stdout.strip())
    assert killed.returncode == -signal.SIGKILL and (dead / "photo.png").exists()
    # Nothing of these is a folder that a run has made.
    other = tmp_path / "dermlens-app-other"
    other.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").touch()
    (tmp_path / "dermlens-app-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dermlens-app-file").touch()
    begun = RunFolder(tmp_path)
    assert not dead.exists() and photo.exists() and begun.path.exists() and other.exists()
    assert (tmp_path / "elsewhere" / "lock").exists()
    assert sweep_dead_runs(tmp_path) == []
    living.close()
    living.close()
    assert not living.path.exists() and begun.path.stat().st_mode & 0o077 == 0
    begun.close()


SERVE = """
import signal

# Also where this whole run was started by nohup.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
import os, pathlib, time
from dermlens.serve import app
app._end_orderly_when_told_to()
uploads = app._upload_folder()
(uploads.folder / "photo.png").write_bytes(b"skin")
print(uploads.folder, flush=True)
time.sleep(60)
"""


def test_the_end_of_terminal_or_supervisor_deletes_uploads(tmp_path: Path) -> None:
    how: Any = {"stdout": subprocess.PIPE, "text": True}
    how["env"] = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", SERVE]
    # Both at once: each takes long to start.
    with subprocess.Popen(command, **how) as first, subprocess.Popen(command, **how) as second:
        for number, serving in ((signal.SIGHUP, first), (signal.SIGTERM, second)):
            folder = Path(serving.stdout.readline().strip())
            assert (folder / "photo.png").exists() and folder.is_relative_to(tmp_path)
            serving.send_signal(number)
            assert serving.wait(60) == 0
            assert not folder.exists()
    assert list(tmp_path.glob("dermlens-app-*")) == []


def test_what_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    from dermlens.serve import app

    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        app._end_orderly_when_told_to()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGTERM)
        assert ended.value.code == 0 and signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_same_picture_lies_in_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from gradio import route_utils

    from dermlens.serve.app_uploads import give_each_upload_its_own_place

    monkeypatch.setattr(route_utils, "GradioUploadFile", route_utils.GradioUploadFile)
    give_each_upload_its_own_place()
    give_each_upload_its_own_place()

    def place(content: bytes) -> str:
        stream: Any = io.BytesIO(content)
        made = route_utils.GradioUploadFile(stream, size=0, filename="a.png")
        made.sha.update(content)
        return str(made.sha.hexdigest())

    assert len({place(b"skin") for _ in range(3)}) == 3
    assert hashlib.sha256(b"skin").hexdigest() != place(b"skin")

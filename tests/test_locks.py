"""One run at a time in a folder, also after kill -9; and what killed runs leave is removed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli_support import dermlens
from cli_support import refused as refused_by_program
from dermlens import leftovers
from dermlens.errors import UsageError
from dermlens.files import write_json, written_beside
from dermlens.leftovers import HOST, is_alive, sweep, temporary_beside
from dermlens.locks import folder_lock

pytestmark = pytest.mark.skipif(os.name == "nt", reason="locks need flock")
HOLD = """
import pathlib, sys, time
from dermlens.locks import folder_lock
with folder_lock(pathlib.Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held_elsewhere(folder: Path, how: str = "alone") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def free(folder: Path, **how: bool) -> bool:
    """Whether the lock can be had."""
    try:
        with folder_lock(folder, **how):
            return True
    except UsageError:
        return False


def test_second_run_is_refused_with_a_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    with held_elsewhere(folder) as process:
        words = (
            f"Another run of dermlens \\(process {process.pid} on .*\\) is using {folder}\\. Wait"
        )
        with pytest.raises(UsageError, match=words), folder_lock(folder):
            pass
        process.communicate("end\n")
    assert free(folder)
    assert list(tmp_path.iterdir()) == []


def test_kill_releases_the_lock(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "it") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [path.name for path in tmp_path.iterdir()] == [".it.dermlens.lock"]
        assert free(tmp_path / "it")
    assert list(tmp_path.iterdir()) == []


def test_readers_share_and_keep_writers_out(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    with held_elsewhere(tmp_path / "it", "shared"):
        assert free(tmp_path / "it", shared=True)
        assert not free(tmp_path / "it")
    with held_elsewhere(tmp_path / "it"):
        assert not free(tmp_path / "it", shared=True)
    assert free(tmp_path / "it")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_one_folder_has_one_lock_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "it", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "it")
    with held_elsewhere(tmp_path / "it"):
        for name in (Path(), Path("../it"), tmp_path / "link"):
            assert not free(name)
    assert free(Path())


def test_lock_may_be_taken_again_and_is_held_to_the_end(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "it"):
        with folder_lock(tmp_path / "it"), folder_lock(tmp_path / "it", shared=True):
            pass
        code = "import pathlib, sys; from dermlens.locks import folder_lock\n"
        code += "with folder_lock(pathlib.Path(sys.argv[1])): pass"
        command = [sys.executable, "-c", code, str(tmp_path / "it")]
        assert subprocess.run(command, capture_output=True).returncode == 1
    assert free(tmp_path / "it")


def test_waiting_goes_on_when_the_other_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with held_elsewhere(tmp_path / "it") as process:
        monkeypatch.setattr("dermlens.locks.say", lambda text: said.append(text) or process.kill())
        with folder_lock(tmp_path / "it", wait=True):
            assert process.wait() == -signal.SIGKILL
    (line,) = said
    assert line.startswith(f"Waiting for another run of dermlens (process {process.pid} on ")
    assert line.endswith(f"which is using {tmp_path / 'it'}.")


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="file is a file, not a folder"), folder_lock(path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


WRITING = {
    "prepare": ("data", "prepare", "{other}", "--out", "{it}"),
    "synthetic": ("data", "synthetic", "--images", 8, "--size", "32x40", "--out", "{it}"),
    "split": ("data", "split", "{it}"),
    "audit": ("data", "audit", "{it}"),
    "explore": ("data", "explore", "{other}", "--out", "{it}"),
    "download": ("data", "download", "--out", "{it}"),
    "train": ("train", "{other}", "--out", "{it}"),
    "evaluate": ("evaluate", "{other}", "{other}", "--out", "{it}"),
    "benchmark": ("benchmark", "{other}", "{other}", "--out", "{it}"),
    "pack": ("pack", "{other}", "{other}", "--out", "{it}"),
    "export": ("export", "{other}", "--out", "{it}"),
    "card": ("card", "--data", "{other}", "--out", "{it}"),
    "explain": ("explain", "{other}/photo.png", "--out", "{it}"),
    "compare": ("compare", "{other}/photo.png", "--out", "{it}"),
    "demo": ("demo", "--out", "{it}"),
    "train while the data change": ("train", "{it}", "--out", "{other}"),
    "split while a run reads": ("data", "split", "{it}"),
}


@pytest.mark.parametrize("name", WRITING)
def test_every_command_that_writes_refuses_a_folder_in_use(tmp_path: Path, name: str) -> None:
    from PIL import Image

    places = {"it": tmp_path / "it", "other": tmp_path / "other"}
    for folder in places.values():
        folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "photo.png")
    line = [str(part).format(**places) for part in WRITING[name]]
    with held_elsewhere(tmp_path / "it", "shared" if "reads" in name else "alone"):
        refused_by_program(dermlens(*line), f"is using {tmp_path / 'it'}")
    assert list((tmp_path / "it").iterdir()) == []
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["photo.png"]


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_the_dead_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead, alive = dead_process(), os.getppid()
    assert is_alive(alive) and not is_alive(dead)
    gone = [
        *(f".a.dermlens-{HOST}-{dead}-0.part", f".a.dermlens-{HOST}-{dead}-1.part.csv"),
        *(f".a.b.dermlens-{HOST}-{dead}-0.part", ".it.dermlens.lock"),
        # Of a process that had this one's number before.
        f".c.dermlens-{HOST}-{os.getpid()}-999999.part",
    ]
    stays = [
        *(f".a.dermlens-{HOST}-{alive}-0.part", f".a.dermlens-elsewhere_1-{dead}-0.part"),
        *(f"a.dermlens-{HOST}-{dead}-0.part", f".a.{dead}.part", ".a.part", "photo.part"),
        *(".data.old", ".data.building", f".a.dermlens-{HOST}-{dead}-0.old"),
    ]
    for name in (*gone, *stays):
        (tmp_path / name).write_text("x")
    (tmp_path / f".folder.dermlens-{HOST}-{dead}-0.part").mkdir()
    (tmp_path / f".folder.dermlens-{HOST}-{dead}-0.part" / "file").write_text("x")
    mine = temporary_beside(tmp_path / "mine")
    mine.write_text("x")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*stays, mine.name}


def test_what_another_machine_left_is_removed_after_a_week(tmp_path: Path) -> None:
    name = ".a.dermlens-elsewhere_1-5-{}.part"
    for number, days in enumerate((6.9, 7.1)):
        path = tmp_path / name.format(number)
        path.write_text("x")
        then = time.time() - days * 24 * 3600
        os.utime(path, (then, then))
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name.format(0)]


def test_writing_a_file_sweeps_its_folder(tmp_path: Path) -> None:
    (tmp_path / f".a.dermlens-{HOST}-{dead_process()}-0.part.json").write_text("x")
    write_json(tmp_path / "b.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_long_names_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'ü' * 120}.json"
    write_json(path, {"a": 1})
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_failed_file_leaves_neither_itself_nor_its_new_folders(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for path in (tmp_path / "old", tmp_path / "new" / "deep" / "file"):
        with pytest.raises(OSError), written_beside(path) as temporary:
            temporary.write_text("half")
            raise OSError
    assert [one.name for one in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_names_of_two_threads_differ(tmp_path: Path) -> None:
    assert temporary_beside(tmp_path / "a") != temporary_beside(tmp_path / "a")
    assert leftovers.is_ours(temporary_beside(tmp_path / "a", suffix=".png").name)

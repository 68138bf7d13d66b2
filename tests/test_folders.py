"""Folders that are replaced as a whole: only dermlens's own, in one step, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli_support import content
from dermlens import folders, leftovers
from dermlens.errors import DataError, UsageError
from dermlens.folders import MARKER, Kind, folder_beside, require_replaceable
from dermlens.leftovers import HOST
from dermlens.locks import folder_lock

KIND = Kind("a letter", "letter.txt", lambda _: ("letter.txt", "pages/1.txt"), later=("reply.txt",))
OTHER = Kind("a parcel", "letter.txt", lambda _: ("letter.txt",))


def write(path: Path, text: str, kind: Kind = KIND) -> None:
    """Write a letter of two files."""
    with folder_beside(path, kind) as building:
        (building / "pages").mkdir()
        (building / "letter.txt").write_text(text)
        (building / "pages" / "1.txt").write_text(text)


def letter(path: Path) -> str:
    """The text of a complete letter; fails if the two files do not belong together."""
    texts = {(path / name).read_text() for name in ("letter.txt", "pages/1.txt")}
    (text,) = texts
    return text


def refused(path: Path, words: str, kind: Kind = KIND) -> None:
    """Refused before the work and with these words; everything stays as it is."""
    before = content(path.parent)
    with pytest.raises(DataError, match=words):
        require_replaceable(path, kind)
    with pytest.raises(DataError, match=words), folder_beside(path, kind):
        pytest.fail("The work has started.")
    assert content(path.parent) == before


def test_missing_empty_and_own_folders_are_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        for text in ("first", "second"):
            write(tmp_path / name, text)
            assert letter(tmp_path / name) == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "missing"]
    about = json.loads((tmp_path / "missing" / MARKER).read_text())
    assert about["kind"] == "a letter"
    assert about["files"] == {"letter.txt": 6, "pages/1.txt": 6}


def test_foreign_folders_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    refused(tmp_path / "thesis", "thesis exists and is not a letter, so it is not replaced")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file is a file"):
        require_replaceable(tmp_path / "file", KIND)
    with pytest.raises(UsageError, match="file is a file"), folder_beside(tmp_path / "file", KIND):
        pytest.fail("The work has started.")
    assert (tmp_path / "file").read_text() == "mine"


def test_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "it", "text")
    refused(tmp_path / "it", "is not a parcel but a letter", OTHER)


@pytest.mark.parametrize(
    "name", ["photo.jpg", "pages/photo.jpg", "pages/more/photo.jpg", ".secret"]
)
def test_what_a_user_put_into_it_is_named_and_kept(tmp_path: Path, name: str) -> None:
    write(tmp_path / "it", "text")
    path = tmp_path / "it" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    refused(tmp_path / "it", f"have changed since: {name}. Move them away")


def test_link_a_user_put_into_it_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "it", "text")
    (tmp_path / "photos").mkdir()
    (tmp_path / "it" / "photos").symlink_to(tmp_path / "photos", target_is_directory=True)
    refused(tmp_path / "it", "have changed since: photos. Move them away")


def test_what_a_user_changed_is_kept_unless_it_is_repaired(tmp_path: Path) -> None:
    write(tmp_path / "it", "text")
    (tmp_path / "it" / "letter.txt").write_text("my own words")
    refused(tmp_path / "it", "have changed since: letter.txt")
    write(tmp_path / "it", "again", Kind("a letter", "letter.txt", KIND.contents, repaired=True))
    assert letter(tmp_path / "it") == "again"


def test_later_additions_and_files_of_the_system_do_not_hinder(tmp_path: Path) -> None:
    write(tmp_path / "it", "text")
    for name in ("reply.txt", ".DS_Store", "Thumbs.db"):
        (tmp_path / "it" / name).write_text("x")
    (tmp_path / "it" / f".a.dermlens-{HOST}-1-0.part.csv").write_text("x")
    write(tmp_path / "it", "again")
    assert letter(tmp_path / "it") == "again"


def test_folder_of_an_earlier_version_is_known_by_its_whole_content(tmp_path: Path) -> None:
    for name in ("old", "mixed"):
        (tmp_path / name / "pages").mkdir(parents=True)
        (tmp_path / name / "letter.txt").write_text("old")
        (tmp_path / name / "pages" / "1.txt").write_text("old")
    (tmp_path / "mixed" / "pages" / "2.txt").write_text("mine")
    write(tmp_path / "old", "new")
    assert letter(tmp_path / "old") == "new"
    refused(tmp_path / "mixed", "have changed since: pages/2.txt")


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "a letter"}', "\x00"])
def test_damaged_marker_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "it", "text")
    (tmp_path / "it" / MARKER).write_text(text)
    before = content(tmp_path)
    with pytest.raises(DataError):
        write(tmp_path / "it", "again")
    assert content(tmp_path) == before


def test_folder_one_is_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (Path(), Path(".."), tmp_path):
        with pytest.raises(DataError, match="is the folder you are in, or lies above it"):
            write(path, "text")


def test_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    write(tmp_path / "real", "first")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    write(tmp_path / "link", "second")
    assert (tmp_path / "link").is_symlink() and letter(tmp_path / "real") == "second"


def test_failure_and_interruption_leave_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "it", "first")
    before = content(tmp_path)
    for error in (OSError, KeyboardInterrupt):
        for path in (tmp_path / "it", tmp_path / "not" / "yet" / "there"):
            with pytest.raises(error), folder_beside(path, KIND) as building:
                (building / "letter.txt").write_text("half")
                raise error
            assert content(tmp_path) == before


def test_file_saved_there_during_the_work_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "it", "first")
    with pytest.raises(DataError, match=r"photo\.jpg"), folder_beside(tmp_path / "it", KIND) as new:
        (new / "letter.txt").write_text("second")
        (tmp_path / "it" / "photo.jpg").write_text("mine")
    assert letter(tmp_path / "it") == "first"
    assert (tmp_path / "it" / "photo.jpg").read_text() == "mine"


def test_file_saved_there_at_the_last_moment_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "it", "first")
    exchange, mine = folders.exchange, [tmp_path / "it" / "photo.jpg"]

    def late(one: Path, other: Path) -> bool:
        while mine:
            mine.pop().write_text("mine")
        return exchange(one, other)

    monkeypatch.setattr(folders, "exchange", late)
    with pytest.raises(DataError, match=r"photo\.jpg"):
        write(tmp_path / "it", "second")
    assert letter(tmp_path / "it") == "first"
    assert (tmp_path / "it" / "photo.jpg").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


KILLED = """
import os, pathlib, signal, sys
from dermlens import folders
sys.path.insert(0, {tests!r})
from test_folders import write
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
{change}
write(pathlib.Path({path!r}), "second")
"""
IN_ONE_STEP = {
    "before": "folders._put = die",
    "just before": "folders.exchange = die",
    "just after": "real = folders.exchange; folders.exchange = lambda a, b: real(a, b) and die()",
    "while the old one is removed": "folders.remove = lambda p: die((p / 'letter.txt').unlink())",
}
IN_TWO_STEPS = {
    "between": "real = pathlib.Path.rename\n"
    "pathlib.Path.rename = lambda a, b: (real(a, b), str(b).endswith('.old') and die())",
    "after both": "folders.remove = die",
}


def killed(path: Path, change: str) -> None:
    """Replace a letter in another process, which is killed on the way."""
    code = KILLED.format(tests=str(Path(__file__).parent), change=change, path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is a call of Linux")
@pytest.mark.parametrize("moment", IN_ONE_STEP)
def test_kill_leaves_the_old_or_the_new_one_under_its_name(tmp_path: Path, moment: str) -> None:
    write(tmp_path / "it", "first")
    killed(tmp_path / "it", IN_ONE_STEP[moment])
    assert letter(tmp_path / "it") == ("first" if "before" in moment else "second")
    leftovers._swept.clear()
    write(tmp_path / "it", "third")
    assert letter(tmp_path / "it") == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("moment", IN_TWO_STEPS)
def test_kill_without_exchange_is_recovered_by_the_next_run(tmp_path: Path, moment: str) -> None:
    write(tmp_path / "it", "first")
    killed(tmp_path / "it", "folders.exchange = lambda *_: False\n" + IN_TWO_STEPS[moment])
    require_replaceable(tmp_path / "it", KIND)
    assert letter(tmp_path / "it") == ("first" if moment == "between" else "second")
    leftovers._swept.clear()
    write(tmp_path / "it", "third")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_interruption_without_exchange_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "it", "first")
    rename = Path.rename

    def interrupted(one: Path, other: Path) -> Path:
        done = rename(one, other)
        if other.name.endswith(".old"):
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(folders, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "it", "second")
    assert letter(tmp_path / "it") == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_two_writers_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; from test_folders import write\n"
        f"write(Path({str(tmp_path / 'it')!r}), 'other')"
    )
    with folder_lock(tmp_path / "it"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "is using" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []

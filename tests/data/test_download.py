import hashlib
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dermlens.data import download as module
from dermlens.data.download import FILES, GROUPS, RemoteFile, download, md5_of_file
from dermlens.errors import DownloadError, UsageError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
FILE = RemoteFile("part_1.zip", 11, "images", MD5, 1)


class Server:
    """A server on this machine that misbehaves as told.

    Attributes:
        script: What to do with the next requests, one entry each: ``break`` (send half of what
            was asked for and hang up), ``ignore`` (ignore Range), ``corrupt``, ``wrong_part``, or
            a status code. An empty script means to behave.
        asked: (path, Range header, User-Agent header) of every request.
        contents: Bytes by path.
    """

    def __init__(self) -> None:
        self.script: list[str | int] = []
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.contents: dict[str, bytes] = {"/11": CONTENT}
        self.length = True
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._httpd.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._httpd.server_port}"

    def stop(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append((request.path, wanted, request.headers.get("User-Agent")))
        step = self.script.pop(0) if self.script else "behave"
        if isinstance(step, int):
            return request.send_error(step)
        content = self.contents.get(request.path)
        if content is None:
            return request.send_error(404)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and step != "ignore" else 0
        if start >= len(content) and start:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            return request.end_headers()
        if step == "corrupt":
            content = b"?" + content[1:]
        body = content[start:]
        request.send_response(206 if start else 200)
        if start:
            first = start + (5 if step == "wrong_part" else 0)
            request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if self.length:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if step == "break" else body)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Download FILE from the server; returns paths and the seconds waited."""

    def call(file: RemoteFile = FILE, **settings: int) -> SimpleNamespace:
        waited: list[float] = []
        try:
            paths = download(
                tmp_path, [file.group], base_url=server.url, files=[file], sleep=waited.append,
                **settings,
            )  # fmt: skip
        except DownloadError as error:
            return SimpleNamespace(error=str(error), waited=waited)
        return SimpleNamespace(paths=paths, waited=waited, error=None)

    return call


def test_file_arrives_whole_under_its_name(server: Server, fetch: Callable, tmp_path: Path) -> None:
    result = fetch()
    assert result.paths == [tmp_path / "part_1.zip"] and result.waited == []
    assert result.paths[0].read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["part_1.zip"]
    (path, wanted, agent) = server.asked[0]
    assert (path, wanted) == ("/11", None) and str(agent).startswith("dermlens/")


def test_broken_connections_are_resumed_where_they_stopped(server: Server, fetch: Callable) -> None:
    server.script = ["break", "break"]
    result = fetch()
    assert result.paths[0].read_bytes() == CONTENT
    assert [asked[1] for asked in server.asked] == [None, "bytes=150000-", "bytes=225000-"]
    assert result.waited == [1.0, 1.0]


def test_a_later_run_goes_on_where_the_last_stopped(
    server: Server, fetch: Callable, tmp_path: Path
) -> None:
    (tmp_path / "part_1.zip.part").write_bytes(CONTENT[:1000])
    assert fetch().paths[0].read_bytes() == CONTENT
    assert server.asked[0][1] == "bytes=1000-"


def test_server_that_ignores_ranges_is_read_from_the_start(server: Server, fetch: Callable) -> None:
    server.script = ["break", "ignore"]
    result = fetch()
    assert result.paths[0].read_bytes() == CONTENT and result.waited == [1.0]
    assert [asked[1] for asked in server.asked] == [None, "bytes=150000-"]


def test_server_that_sends_another_part_is_not_trusted(
    server: Server, fetch: Callable, tmp_path: Path
) -> None:
    (tmp_path / "part_1.zip.part").write_bytes(CONTENT[:1000])
    server.script = ["wrong_part"]
    assert fetch().paths[0].read_bytes() == CONTENT
    assert [asked[1] for asked in server.asked] == ["bytes=1000-", None]


def test_complete_part_file_is_only_renamed(
    server: Server, fetch: Callable, tmp_path: Path
) -> None:
    (tmp_path / "part_1.zip.part").write_bytes(CONTENT)
    assert fetch().paths[0].read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_too_long_part_file_is_thrown_away(server: Server, fetch: Callable, tmp_path: Path) -> None:
    (tmp_path / "part_1.zip.part").write_bytes(CONTENT + b"more")
    assert fetch().paths[0].read_bytes() == CONTENT
    assert [asked[1] for asked in server.asked] == ["bytes=300004-", None]


def test_overloaded_server_is_asked_again_ever_later(server: Server, fetch: Callable) -> None:
    server.script = [503, 503, 429, 500]
    result = fetch()
    assert result.paths[0].read_bytes() == CONTENT and result.waited == [1.0, 2.0, 4.0, 8.0]


def test_giving_up_says_how_to_go_on_and_keeps_the_part(
    server: Server, fetch: Callable, tmp_path: Path
) -> None:
    server.script = ["break", 503, 503, 503, 503]
    result = fetch(attempts=3)
    assert "503" in result.error and "goes on where it stopped" in result.error
    assert result.waited == [1.0, 2.0] and len(server.asked) == 3
    assert (tmp_path / "part_1.zip.part").read_bytes() == CONTENT[:150_000]
    assert not (tmp_path / "part_1.zip").exists()


def test_refused_file_fails_at_once(server: Server, fetch: Callable, tmp_path: Path) -> None:
    result = fetch(RemoteFile("gone.zip", 99, "masks", None, 1))
    assert "404" in result.error and "gone.zip" in result.error and result.waited == []
    assert list(tmp_path.iterdir()) == [] and len(server.asked) == 1


def test_unreachable_server_is_an_error_with_a_sentence(fetch: Callable, server: Server) -> None:
    server._httpd.server_close()
    result = fetch(attempts=2)
    assert "could not be fetched" in result.error and result.waited == [1.0]


def test_corrupt_file_is_fetched_once_more(server: Server, fetch: Callable) -> None:
    server.script = ["corrupt"]
    assert fetch().paths[0].read_bytes() == CONTENT
    assert [asked[1] for asked in server.asked] == [None, None]


def test_file_corrupt_twice_is_deleted_and_reported(
    server: Server, fetch: Callable, tmp_path: Path
) -> None:
    server.script = ["corrupt", "corrupt"]
    result = fetch()
    assert "arrived corrupt twice" in result.error and MD5 in result.error
    assert list(tmp_path.iterdir()) == [] and len(server.asked) == 2


def test_complete_files_are_skipped_and_others_of_the_name_are_kept_aside(
    server: Server, fetch: Callable, tmp_path: Path
) -> None:
    fetch()
    fetch()
    assert len(server.asked) == 1
    (tmp_path / "part_1.zip").write_bytes(CONTENT[:-1] + b"?")
    assert fetch().paths[0].read_bytes() == CONTENT
    assert len(server.asked) == 2
    # It may be a file of the user's that only has the name.
    assert (tmp_path / "part_1.zip.other").read_bytes() == CONTENT[:-1] + b"?"
    (tmp_path / "part_1.zip").write_bytes(b"another")
    fetch()
    assert (tmp_path / "part_1.zip.other1").read_bytes() == b"another"


def test_files_without_checksum_are_checked_by_their_kind(
    server: Server, fetch: Callable, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "a")
    page = b"<!DOCTYPE html><p>Sign in first</p>"
    server.contents = {"/1": page, "/2": buffer.getvalue(), "/3?format=original": b"image,MEL\n"}
    server.contents["/4"] = page
    assert "it is no intact zip archive" in fetch(RemoteFile("t.zip", 1, "test", None, 1)).error
    assert "it is no table" in fetch(RemoteFile("u.csv", 4, "test", None, 1)).error
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        broken = io.BytesIO()
        with zipfile.ZipFile(broken, "w", compression) as archive:
            archive.writestr("a.txt", "0123456789" * 400)
        content = bytearray(broken.getvalue())
        content[40:50] = b"xxxxxxxxxx"
        server.contents["/5"] = bytes(content)
        assert "no intact zip" in fetch(RemoteFile("v.zip", 5, "test", None, 1)).error
    assert fetch(RemoteFile("t.zip", 2, "test", None, 1)).error is None
    table = fetch(RemoteFile("t.csv", 3, "test", None, 1, "?format=original"))
    assert table.paths[0].read_bytes() == b"image,MEL\n"


def test_server_that_states_no_length(server: Server, fetch: Callable) -> None:
    server.length = False
    assert fetch().paths[0].read_bytes() == CONTENT


def test_groups_choose_the_files(server: Server, tmp_path: Path) -> None:
    server.contents = {f"/{k}": CONTENT for k in range(4)}
    files = [RemoteFile(f"{g}.bin", k, g, MD5, 1) for k, g in enumerate(GROUPS)]
    paths = download(tmp_path, base_url=server.url, files=files)
    assert [path.name for path in paths] == ["images.bin", "masks.bin", "metadata.bin"]
    paths = download(tmp_path, ["test", "images"], base_url=server.url, files=files)
    assert [path.name for path in paths] == ["images.bin", "test.bin"]
    assert [asked[0] for asked in server.asked] == ["/0", "/1", "/2", "/3"]


def test_unknown_group_is_refused(tmp_path: Path) -> None:
    for only in (["pictures"], []):
        with pytest.raises(UsageError, match="Unknown group"):
            download(tmp_path / "d", only, base_url="http://127.0.0.1:9")
    assert not (tmp_path / "d").exists()


def test_lack_of_space_is_noticed_before_the_start(
    server: Server, fetch: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=0, used=0, free=100_500_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    assert "0.1 GB free" in fetch().error and server.asked == []
    (tmp_path / "part_1.zip.part").write_bytes(bytes(600_000))
    assert "GB free" not in str(fetch(attempts=1).error)


def test_stated_length_is_held_against_free_space(
    server: Server, fetch: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "part_1.zip.part").write_bytes(CONTENT[:1000])
    for spare, fits in ((-1, False), (0, True)):
        free = [10**12, len(CONTENT) - 1000 + spare]
        usage = lambda _: SimpleNamespace(free=free.pop(0))  # noqa: B023, E731
        monkeypatch.setattr(module.shutil, "disk_usage", usage)
        error = fetch().error
        assert error is None if fits else "needs 0.00 GB, but only" in error
        assert (tmp_path / "part_1.zip.part").exists() is not fits


def test_starting_over_for_ever_is_no_progress(server: Server, fetch: Callable) -> None:
    """A part that shrinks and grows again below its furthest point does not reset the count."""
    server.script = ["break", 503, "wrong_part", "break", "wrong_part", "break"]
    result = fetch(attempts=5)
    assert "could not be fetched" in result.error and result.waited == [1.0, 2.0, 4.0, 8.0]


def test_progress_counts_every_megabyte_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(4_000_000)
    server.contents = {"/1": content}
    file = RemoteFile("big.zip", 1, "images", hashlib.md5(content).hexdigest(), 4)
    position, seen = 0, []

    @contextmanager
    def recorded(title: str, total: int) -> Iterator[Callable[..., None]]:
        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal position
            position += steps
            seen.append(position)

        assert (title, total) == ("big.zip", 4)
        yield advance

    monkeypatch.setattr(module, "progress", recorded)
    server.script = ["break", "break", "ignore"]
    download(tmp_path, ["images"], base_url=server.url, files=[file], sleep=lambda _: None)
    # Half arrives, then half of the rest, then all of it anew.
    assert position == 4 and max(seen) == 4
    assert seen.index(3) < seen.index(0) < seen.index(4)


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("a file")
    with pytest.raises(UsageError, match="cannot be made a folder"):
        download(tmp_path / "d", ["images"])


def test_full_disk_ends_the_download_with_a_sentence(
    server: Server, fetch: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(io.RawIOBase):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "open", lambda *_, **__: FullDisk(), raising=False)
    result = fetch()
    assert "cannot be written (No space left on device)" in result.error
    assert len(server.asked) == 1 and result.waited == []


def test_official_files() -> None:
    assert {file.name: file.identifier for file in FILES} == {
        "HAM10000_images_part_1.zip": 3172585,
        "HAM10000_images_part_2.zip": 3172584,
        "HAM10000_segmentations_lesion_tschandl.zip": 3838943,
        "HAM10000_metadata.csv": 4338392,
        "ISIC2018_Task3_Test_Images.zip": 3855824,
        "ISIC2018_Task3_Test_GroundTruth.csv": 6924466,
    }
    assert {file.group for file in FILES} == set(GROUPS)
    assert all(file.md5 is None or len(file.md5) == 32 for file in FILES)


def test_md5_of_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert md5_of_file(tmp_path / "f") == "900150983cd24fb0d6963f7d28e17f72"

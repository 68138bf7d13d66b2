"""The page behind a real server: every endpoint, limits, what a visitor must not reach."""

import base64
import io
import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from dermlens.explainers.target import PREDICTED, RUNNER_UP
from dermlens.labels import HAM10000
from dermlens.serve.app_actions import Actions
from serving_support import picture, text_of

WISHES = ["inferno", "none", False]
SENTENCES = {
    "text": "cannot be decoded as an image",
    "empty": "empty",
    "cut": "damaged or cut off",
    "svg": "cannot be decoded as an image",
    "bomb": "far more than the 50 million pixels|pixels, more than",
}


@pytest.fixture(scope="module")
def client(served: Any) -> Any:
    from gradio_client import Client

    return Client(served.url, verbose=False)


def sent(path: Path) -> Any:
    from gradio_client import handle_file

    return handle_file(str(path))


def test_endpoints_are_named_typed_and_described(client: Any) -> None:
    described = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    names = {"/analyze", "/show", "/explain", "/compare", "/report", "/maps"}
    names |= {"/batch", "/table", "/summary", "/cases", "/changes", "/criteria"}
    assert set(described) == names
    for endpoint in described.values():
        assert endpoint["description"].endswith(".")
        for parameter in endpoint["parameters"]:
            assert parameter["label"] and parameter["type"]
    given = [p["parameter_name"] for p in described["/compare"]["parameters"]]
    wishes = ["color_map", "outline", "anyway"]
    assert given == ["image", "methods", "target", "against", "scales", *wishes]


def test_analyze(client: Any, actions: Actions, lesion: Path) -> None:
    expected = actions.analyze(lesion)
    answer, overlay, facts, _ = client.predict(sent(lesion), api_name="/analyze")
    assert facts["predicted"] == actions.bundle.classes[expected.predicted]
    assert facts["probabilities"]["mel"] == pytest.approx(expected.probabilities[4], abs=1e-5)
    assert facts["abstain"] is False and facts["usability"]["shorter_side"] == 240
    assert HAM10000.labels[expected.predicted].name in text_of(answer)
    assert "data:image/jpeg;base64," in overlay and "data:image/png;base64," in overlay


def test_explain_gives_each_method_when_it_is_ready(client: Any, lesion: Path) -> None:
    job = client.submit(sent(lesion), ["grad_cam", "layer_cam"], "bcc", api_name="/explain")
    cards, explained = job.result()
    assert [facts["running"] for _, facts in job.outputs()] == ["grad_cam", "layer_cam", None]
    assert explained["target"] == "bcc" and list(explained["methods"]) == ["grad_cam", "layer_cam"]
    assert cards.count("<article") == 2


def test_compare_streams_its_parts_and_gives_report_and_maps(client: Any, lesion: Path) -> None:
    methods = ["grad_cam", "integrated_gradients"]
    job = client.submit(sent(lesion), methods, "mel", "nv", True, api_name="/compare")
    page, numbers = job.result()
    running = [facts["running"] for _, facts in job.outputs()]
    assert running == [*methods, "agreement", "scales", "discrimination", None]
    assert numbers["target"] == "mel" and "nv" in numbers["compared_with"]
    text = text_of(page)
    parts = ["Summary", "1. Methods side by side", "2. How far they agree", "3. Several scales"]
    places = [text.index(part) for part in [*parts, "4. Why this diagnosis and not another"]]
    assert places == sorted(places)
    for warning in numbers["warnings"]:
        assert places[0] < text.index(" ".join(warning["text"].replace("\xa0", " ").split()))
    report = client.predict(api_name="/report")
    assert (report["name"], report["type"]) == ("lesion.html", "text/html")
    html = base64.b64decode(report["base64"]).decode()
    assert html.startswith("<!DOCTYPE html>") and "not a medical device" in html
    maps = np.load(io.BytesIO(base64.b64decode(client.predict(api_name="/maps")["base64"])))
    assert {*methods, "consensus", "scale__fused", "contrast__nv__grad_cam"} <= set(maps.files)


def test_known_cases_need_an_index(client: Any, lesion: Path) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match="has no index of known cases"):
        client.predict(sent(lesion), False, api_name="/cases")


def test_what_was_analyzed_is_drawn_again(served: Any, lesion: Path, tmp_path: Path) -> None:
    from gradio_client import Client

    client = Client(served.url, verbose=False)
    first = client.predict(sent(lesion), api_name="/analyze")
    again = client.predict("bcc", "inferno", "none", api_name="/show")
    assert again[0] == first[0] and again[1] != first[1] and "Basal cell" in again[1]
    Image.new("RGB", (400, 300), (200, 160, 150)).save(tmp_path / "skin.png")
    *_, facts, _ = client.predict(sent(tmp_path / "skin.png"), api_name="/analyze")
    assert facts["abstain"] and facts["predicted"] is None
    *_, facts = client.predict(PREDICTED, "viridis", "none", True, api_name="/show")
    assert facts["abstain"] and facts["predicted"] is not None
    client.close()


def test_report_needs_a_comparison(served: Any) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match="nothing to save yet"):
        Client(served.url, verbose=False).predict(api_name="/report")


def test_batch_has_a_row_for_every_file(
    client: Any, lesion: Path, bad_files: dict[str, Path]
) -> None:
    files = [sent(lesion), *(sent(path) for path in bad_files.values())]
    status, table, facts = client.predict(files, None, api_name="/batch")
    assert "6 files" in text_of(status) and "5 could not be read" in text_of(status)
    assert [row["file"] for row in facts] == ["lesion.png", *(p.name for p in bad_files.values())]
    assert facts[0]["error"] is None and facts[0]["probabilities"]
    assert all(row["error"].endswith(".") and "probabilities" not in row for row in facts[1:])
    assert table["headers"][:4] == ["No.", "Picture", "File", "Verdict"]
    assert [row[3] for row in table["data"][1:]] == ["not read"] * 5
    file = client.predict(api_name="/table")
    lines = base64.b64decode(file["base64"]).decode().splitlines()
    assert lines[0].startswith("file,truth,predicted,prediction_set,abstain") and len(lines) == 7
    page = client.predict(api_name="/summary")
    assert page["name"] == "summary.html"
    assert "5 could not be read" in base64.b64decode(page["base64"]).decode()


def test_bad_files_are_refused_with_a_sentence_and_the_server_lives_on(
    client: Any, lesion: Path, bad_files: dict[str, Path]
) -> None:
    from gradio_client.exceptions import AppError

    for kind, path in bad_files.items():
        for endpoint, more in (("/analyze", ()), ("/explain", (["grad_cam"], PREDICTED))):
            with pytest.raises(AppError, match=SENTENCES[kind]) as refused:
                client.predict(sent(path), *more, api_name=endpoint)
            assert "Traceback" not in str(refused.value) and "/tmp" not in str(refused.value)
    with pytest.raises(AppError, match="no image yet"):
        client.predict(None, ["grad_cam"], PREDICTED, api_name="/explain")
    with pytest.raises(AppError, match="no files yet"):
        client.predict(None, None, api_name="/batch")
    assert client.predict(sent(lesion), api_name="/analyze")[2]["note"]


def call(url: str, endpoint: str, data: list[Any], **more: Any) -> tuple[str, Any]:
    """Call an endpoint over plain HTTP; the last event and its data."""
    began = httpx.post(f"{url}gradio_api/call/{endpoint}", json={"data": data, **more})
    began.raise_for_status()
    event = "none"
    with httpx.stream(
        "GET", f"{url}gradio_api/call/{endpoint}/{began.json()['event_id']}", timeout=60
    ) as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: ") and event in ("complete", "error"):
                return event, json.loads(line[6:])
    return event, None


def upload(url: str, name: str, content: bytes) -> httpx.Response:
    return httpx.post(f"{url}gradio_api/upload", files={"files": (name, content)}, timeout=60)


def as_upload(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_plain_http(served: Any, lesion: Path) -> None:
    path = upload(served.url, "lesion.png", lesion.read_bytes()).json()[0]
    event, data = call(served.url, "analyze", [as_upload(path), "inferno", "none"])
    assert event == "complete" and set(data[2]["probabilities"]) == {
        d.code for d in HAM10000.labels
    }
    session = {"session_hash": "plain-http"}
    methods = ["grad_cam", "hires_cam"]
    request = [as_upload(path), methods, PREDICTED, RUNNER_UP, False, *WISHES]
    assert call(served.url, "compare", request, **session)[0] == "complete"
    event, data = call(served.url, "maps", [], **session)
    assert event == "complete" and data[0]["name"] == "lesion.npz"


def test_no_file_of_the_server_and_no_other_server_is_reachable(served: Any, lesion: Path) -> None:
    secret = Path(tempfile.gettempdir()) / "dermlens-test-secret.png"
    picture(5, 240, 320).save(secret)
    try:
        for path in (
            "/etc/passwd",
            str(secret),
            f"{served.uploads}/../dermlens-test-secret.png",
            "..%2f..%2f..%2fetc%2fpasswd",
            "http://127.0.0.1:9/x",
            "https://example.org/x.png",
        ):
            for route in ("file=", "file/"):
                answer = httpx.get(f"{served.url}gradio_api/{route}{path}")
                assert answer.status_code in (403, 404), (route, path)
                assert "root:" not in answer.text
        for path in ("/etc/passwd", str(secret), "http://127.0.0.1:9/x.png", "../../etc/passwd"):
            event, _ = call(served.url, "analyze", [as_upload(path), "inferno", "none"])
            assert event == "error", path
            event, _ = call(served.url, "batch", [[as_upload(path)], None, False])
            assert event == "error", path
        for unmarked in ({"path": str(secret)}, {"path": f"{served.uploads}/../{secret.name}"}):
            assert call(served.url, "analyze", [unmarked, "inferno", "none"])[0] == "error"
            assert call(served.url, "batch", [[unmarked], None, False])[0] == "error"
    finally:
        secret.unlink()


def announced(url: str, length: int) -> bytes:
    """Return the answer to a request that says how long it is and sends nothing more."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=10) as line:
        host = address.netloc.decode()
        head = (
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
        )
        line.sendall(head.encode())
        return line.recv(2000)


def test_large_and_unmeasured_requests_are_refused_before_they_are_read(served: Any) -> None:
    answer = upload(served.url, "large.png", b"x" * (50 * 2**20))
    assert answer.status_code == 413 and "maximum" in answer.text.lower()
    address = f"{served.url}gradio_api/upload"
    assert b" 413 " in announced(served.url, 10**10)
    answer = httpx.post(address, content=iter([b"x"]), timeout=10)
    assert answer.status_code == 411


def test_path_like_names_stay_in_the_upload_folder(served: Any, lesion: Path) -> None:
    assert upload(served.url, "..", lesion.read_bytes()).status_code == 400
    for name in ("../../../evil.png", "/etc/evil.png", "..\\..\\evil.png", "a/b/evil.png"):
        paths = upload(served.url, name, lesion.read_bytes()).json()
        assert Path(paths[0]).resolve().is_relative_to(served.uploads.resolve())
        event, data = call(served.url, "analyze", [as_upload(paths[0]), "inferno", "none"])
        assert event == "complete"
    given = {**as_upload(paths[0]), "orig_name": "../../=evil.png"}
    session = {"session_hash": "path-like-names"}
    event, data = call(served.url, "batch", [[given], None, False], **session)
    assert event == "complete" and data[2][0]["file"] == "=evil.png"
    event, data = call(served.url, "table", [False], **session)
    table = base64.b64decode(data[0]["base64"]).decode()
    assert "\n'=evil.png," in table


def marked_files(marks: list[bytes]) -> list[Path]:
    """Return every file under the system's folder for temporary files that holds a mark."""
    found = []
    for folder, _, names in os.walk(tempfile.gettempdir()):
        for path in (Path(folder) / name for name in names):
            try:
                small = path.is_file() and path.stat().st_size < 5_000_000
                if small and any(mark in path.read_bytes() for mark in marks):
                    found.append(path)
            except OSError:
                continue
    return found


def test_no_file_holds_a_marked_image_after_the_session(served: Any, tmp_path: Path) -> None:
    from gradio_client import Client

    stream = io.BytesIO()
    mark = os.urandom(24)
    picture(8, 240, 320).save(stream, "PNG")
    mine = [tmp_path / "marked.png", tmp_path / "second.png"]
    for number, path in enumerate(mine):
        path.write_bytes(stream.getvalue() + mark + bytes([number]))
    assert set(marked_files([mark])) == set(mine)
    client = Client(served.url, verbose=False)
    client.predict(sent(mine[0]), api_name="/analyze")
    client.predict([sent(path) for path in mine], None, api_name="/batch")
    client.submit(sent(mine[0]), ["grad_cam", "hires_cam"], api_name="/compare").result()
    client.predict(api_name="/report")
    client.predict(api_name="/table")
    client.predict(api_name="/summary")
    # The client uploads a file for each request anew, and each upload has a place of its own.
    lying = set(marked_files([mark])) - set(mine)
    assert len(lying) == 4 and all(path.is_relative_to(served.uploads) for path in lying)
    client.close()
    deadline = time.monotonic() + 20
    while set(marked_files([mark])) != set(mine) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert set(marked_files([mark])) == set(mine)
    assert not any(path.parent.exists() for path in lying)


def test_the_same_picture_outlives_the_session_of_another_visitor(
    served: Any, lesion: Path
) -> None:
    from gradio_client import Client

    ann = Client(served.url, verbose=False)
    before = set(served.uploads.rglob(lesion.name))
    ann.predict(sent(lesion), api_name="/analyze")
    hers = set(served.uploads.rglob(lesion.name)) - before
    # Bob uploads the same picture; before any request names it, Ann leaves.
    his = Path(upload(served.url, lesion.name, lesion.read_bytes()).json()[0])
    assert len(hers) == 1 and his not in hers
    ann.close()
    deadline = time.monotonic() + 20
    while any(path.exists() for path in hers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(path.exists() for path in hers) and his.exists()
    event, data = call(served.url, "analyze", [as_upload(str(his)), "inferno", "none"])
    assert event == "complete" and data[2]["probabilities"]


def test_an_upload_that_is_cut_off_leaves_nothing(served: Any) -> None:
    before = set(served.uploads.iterdir())
    address, mark = httpx.URL(served.url), os.urandom(24)
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address.netloc.decode()}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n"
    ).encode()
    with socket.create_connection((address.host, address.port), timeout=10) as line:
        line.sendall(head + part + mark + b"x" * 200_000)
        deadline = time.monotonic() + 20
        while set(served.uploads.iterdir()) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert set(served.uploads.iterdir()) != before
    while set(served.uploads.iterdir()) != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set(served.uploads.iterdir()) == before and marked_files([mark]) == []


def test_too_many_files_at_once_are_refused(served: Any) -> None:
    before = set(served.uploads.iterdir())
    files = [("files", (f"{number}.png", b"x")) for number in range(101)]
    answer = httpx.post(f"{served.url}gradio_api/upload", files=files, timeout=60)
    assert answer.status_code == 400 and "Up to 100 files" in answer.text
    assert set(served.uploads.iterdir()) == before


def test_nothing_a_visitor_sends_is_printed(served: Any, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "visitors-secret-4711"
    path = upload(served.url, "lesion.png", b"x").json()[0]
    calls: list[tuple[str, list[Any]]] = [
        ("analyze", [None, secret]),
        ("explain", [as_upload(path), [secret], PREDICTED, *WISHES]),
        ("explain", [as_upload(path), ["grad_cam"], secret, *WISHES]),
        ("explain", [as_upload(f"/{secret}"), ["grad_cam"], PREDICTED, *WISHES]),
        ("explain", [{"path": [secret]}, ["grad_cam"], PREDICTED, *WISHES]),
        ("explain", [secret, ["grad_cam"], PREDICTED, *WISHES]),
        ("batch", [{secret: secret}]),
        ("batch", [[secret]]),
        ("analyze", [as_upload(f"{path}\0{secret}"), "inferno", "none"]),
    ]
    for endpoint, given in calls:
        assert call(served.url, endpoint, given)[0] == "error", given
    address = f"{served.url}gradio_api/"
    for route, body in (
        (f"call/{secret}", {"data": []}),
        ("queue/join", {"data": [secret], "fn_index": 9999, "session_hash": secret}),
        ("queue/join", {"data": [secret], "api_name": secret, "session_hash": secret}),
        ("queue/join", {"data": [secret], "fn_index": 0, "session_hash": secret, "trigger_id": 9}),
        ("call/v2/explain", {"image": secret, "methods": secret}),
        ("run/predict", {"data": [secret], "fn_index": 9999, "session_hash": secret}),
        ("cancel", {"session_hash": secret, "fn_index": 9999, "event_id": secret}),
        ("cancel", {"session_hash": [secret]}),
    ):
        httpx.post(f"{address}{route}", json=body, timeout=60)
    httpx.post(f"{address}upload", files={secret: ("a.png", b"x")}, timeout=60)
    httpx.post(f"{address}upload", data={"files": secret}, files={"a": b"x"}, timeout=60)
    httpx.get(f"{address}file={secret}%00", timeout=60)
    for route in (f"call/explain/{secret}", f"queue/data?session_hash={secret}"):
        with httpx.stream("GET", f"{address}{route}", timeout=60) as stream:
            next(stream.iter_lines(), None)
    printed = capfd.readouterr()
    assert secret not in printed.out and secret not in printed.err
    assert "Traceback" not in printed.out + printed.err


def test_traffic_is_not_watched_and_nothing_is_kept_in_the_browser(served: Any) -> None:
    for route in ("monitoring", "monitoring/summary", "monitoring/key"):
        assert httpx.get(f"{served.url}{route}").status_code == 403
    assert httpx.get(f"{served.url}config").json()["run_history"] is False
    assert httpx.get(f"{served.url}gradio_api/runs").status_code == 404
    answer = httpx.get(served.url, headers={"Host": "evil.org"})
    assert answer.status_code == 421 and "--allow-host" in answer.text
    answer = httpx.get(f"{served.url}config", headers={"Origin": "https://evil.org"})
    assert answer.status_code == 403
    assert httpx.get(served.url).headers["x-frame-options"] == "DENY"


def test_twenty_visitors_are_all_served_and_see_their_place(served: Any, lesion: Path) -> None:
    dependencies = httpx.get(f"{served.url}config").json()["dependencies"]
    number = next(one["id"] for one in dependencies if one["api_name"] == "analyze")
    path = upload(served.url, "lesion.png", lesion.read_bytes()).json()[0]
    answers: list[Any] = []
    places: list[int] = []
    barrier = threading.Barrier(20)

    def visit(visitor: int) -> None:
        session = f"visitor-{visitor}"
        body = {
            "data": [as_upload(path), "inferno", "none"],
            "fn_index": number,
            "session_hash": session,
        }
        barrier.wait()
        httpx.post(f"{served.url}gradio_api/queue/join", json=body, timeout=60).raise_for_status()
        address = f"{served.url}gradio_api/queue/data?session_hash={session}"
        with httpx.stream("GET", address, timeout=60) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[6:]) if line.startswith("data: ") else {}
                if message.get("msg") == "estimation":
                    places.append(message["rank"])
                if message.get("msg") == "process_completed":
                    assert message["success"]
                    answers.append(message["output"]["data"][2]["predicted"])
                    return

    threads = [threading.Thread(target=visit, args=(one,)) for one in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 20 and len(set(answers)) == 1
    assert max(places, default=0) >= 5


def test_nothing_is_written_into_the_package_or_the_working_folder(served: Any) -> None:
    from dermlens.serve import app

    assert not list(Path(app.__file__).parent.glob("*.pyi"))
    assert not Path(".gradio").exists()


def test_decompression_bombs_of_every_format_are_refused(tmp_path: Path) -> None:
    from dermlens.errors import DataError
    from dermlens.serve.app_actions import read_upload

    large = Image.new("1", (9000, 9000))
    for kind in ("png", "tiff", "bmp"):
        large.save(tmp_path / f"large.{kind}")
        with pytest.raises(DataError, match="9000 x 9000 pixels, more than the 50 million"):
            read_upload(tmp_path / f"large.{kind}")
    with pytest.raises(DataError, match="no longer here"):
        read_upload(tmp_path / "gone.png")

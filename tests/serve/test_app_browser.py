"""A visitor with a real browser: from the upload to the report, without a console error."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dermlens.explainers.registry import METHODS
from dermlens.serve.app_explaining import Explaining

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 25_000


def chromium() -> str | None:
    """The browser named in the environment, else one that is installed."""
    named = os.environ.get("DERMLENS_CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


pytestmark = pytest.mark.skipif(
    chromium() is None,
    reason="No Chromium is installed: apt-get install chromium, or set DERMLENS_CHROMIUM.",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # The sandbox needs rights that containers do not give; only this test's page is opened.
        opened = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(browser: Any, served: Any, complaints: list[str]) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(SECONDS)
    watch(opened, served.url, complaints)
    opened.goto(served.url)
    opened.wait_for_selector("#dl-upload input[type=file]", state="attached")
    yield opened
    context.close()


def watch(page: Any, url: str, complaints: list[str]) -> None:
    """Collect console errors, failed requests and requests to other servers."""

    def message(said: Any) -> None:
        if said.type == "error":
            complaints.append(f"console: {said.text}")

    def request(sent: Any) -> None:
        if not sent.url.startswith((url, "data:", "blob:")):
            complaints.append(f"foreign request: {sent.url}")

    def response(answer: Any) -> None:
        if answer.status >= 400:
            complaints.append(f"status {answer.status}: {answer.url}")

    page.on("console", message)
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("request", request)
    page.on("response", response)


def choose(page: Any, element: str, files: list[Path]) -> None:
    """Choose files to upload; once more where the page was not ready to take them."""
    from playwright.sync_api import TimeoutError as Late

    def taken(answer: Any) -> bool:
        return answer.request.method == "POST" and "/upload" in answer.url

    chosen = [str(path) for path in files]
    for _ in range(5):
        try:
            with page.expect_response(taken, timeout=4000):
                page.set_input_files(f"{element} input[type=file]", chosen)
            return
        except Late:
            page.set_input_files(f"{element} input[type=file]", [])
    raise AssertionError(f"{element} takes no files")


def upload(page: Any, path: Path) -> None:
    choose(page, "#dl-upload", [path])


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def text(page: Any, element: str) -> str:
    shown: str = page.inner_text(element)
    return shown


def wait_for_text(page: Any, element: str, wanted: str) -> None:
    page.wait_for_function(
        "([where, what]) => document.querySelector(where)?.innerText.includes(what)",
        arg=[element, wanted],
    )


def test_from_upload_to_report(
    page: Any, lesion: Path, bad_files: dict[str, Path], complaints: list[str], tmp_path: Path
) -> None:
    upload(page, lesion)
    page.wait_for_selector("#dl-answer .dl-bars")
    assert text(page, "#dl-answer").count("%") >= 7
    assert page.locator("#dl-overlay img.dl-map").count() == 1
    explain_everything(page)
    compare_and_download(page, tmp_path)
    batch(page, [lesion, bad_files["text"]], tmp_path)
    tab(page, "About")
    assert "Intended use" in text(page, "#dl-about")
    assert page.get_by_text("not a medical device").first.is_visible()
    assert complaints == []


def explain_everything(page: Any) -> None:
    tab(page, "Explain")
    for entry in METHODS.values():
        box = (
            page.get_by_role("tabpanel").filter(visible=True).get_by_label(entry.title, exact=True)
        )
        box.check()
    button(page, "Explain").click()
    wait_for_text(page, "#dl-explained", f"by {len(METHODS)} of {len(METHODS)} methods")
    shown = page.locator("#dl-explained article h3").all_inner_texts()
    assert shown == [entry.title for entry in METHODS.values()]
    before = page.locator("#dl-explained img.dl-map").first.get_attribute("src")
    assert not page.locator("#dl-explained svg").first.is_visible()
    page.get_by_label("Contour of the strongest 20 %").check()
    assert page.locator("#dl-explained svg").first.is_visible()
    page.get_by_label("Color map").click()
    page.get_by_role("option", name="Viridis").click()
    page.wait_for_function(
        "(before) => document.querySelector('#dl-explained img.dl-map').src !== before", arg=before
    )


def compare_and_download(page: Any, folder: Path) -> None:
    tab(page, "Compare")
    panel = page.get_by_role("tabpanel").filter(visible=True)
    for title in ("Occlusion", "LIME", "Shapley values (Gaussian process)"):
        panel.get_by_label(title, exact=True).uncheck()
    button(page, "Compare").click()
    wait_for_text(page, "#dl-compared", "Complete.")
    assert page.locator("#dl-compared table.dl-matrix").first.is_visible()
    for name, suffix, start in (
        ("Download report (HTML)", ".html", b"<!DOCTYPE html>"),
        ("Download maps (.npz)", ".npz", b"PK"),
    ):
        with page.expect_download() as waiting:
            button(page, name).click()
        assert waiting.value.suggested_filename == f"lesion{suffix}"
        waiting.value.save_as(folder / f"lesion{suffix}")
        assert (folder / f"lesion{suffix}").read_bytes().startswith(start)


def batch(page: Any, files: list[Path], folder: Path) -> None:
    tab(page, "Batch")
    assert not page.locator("#dl-upload").is_visible()
    page.locator("#dl-files").wait_for()
    choose(page, "#dl-files", files)
    wait_for_text(page, "#dl-files", files[-1].stem)
    button(page, "Analyze all").click()
    page.wait_for_selector("#dl-csv a")
    assert "1 could not be read" in text(page, "#dl-batch-status")
    assert "cannot be decoded" in text(page, "#dl-batch")
    with page.expect_download() as waiting:
        page.click("#dl-csv a")
    waiting.value.save_as(folder / "predictions.csv")
    assert (folder / "predictions.csv").read_text().count("\n") == 3


def test_bad_files_leave_a_sentence_and_no_old_answer(
    page: Any, lesion: Path, bad_files: dict[str, Path], complaints: list[str]
) -> None:
    upload(page, lesion)
    page.wait_for_selector("#dl-answer .dl-verdict")
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    page.wait_for_selector("#dl-answer .dl-empty")
    upload(page, bad_files["svg"])
    toast = page.get_by_text("cannot be decoded as an image")
    toast.first.wait_for()
    page.wait_for_selector("#dl-answer .dl-empty")
    page.wait_for_selector("#dl-upload input[type=file]", state="attached")
    upload(page, lesion)
    page.wait_for_selector("#dl-answer .dl-verdict")
    assert complaints == []


@pytest.fixture
def slow_methods(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every method takes so long that a visitor can press buttons meanwhile."""
    timed = Explaining._timed

    def slowly(self: Explaining, name: str, *rest: Any, **options: Any) -> Any:
        time.sleep(0.7)
        return timed(self, name, *rest, **options)

    monkeypatch.setattr(Explaining, "_timed", slowly)
    return monkeypatch


def test_a_second_visitor_sees_their_place(
    browser: Any, page: Any, served: Any, lesion: Path, slow_methods: pytest.MonkeyPatch
) -> None:
    context = browser.new_context()
    second = context.new_page()
    second.goto(served.url)
    for visitor in (page, second):
        visitor.set_default_timeout(SECONDS)
        visitor.wait_for_selector("#dl-upload input[type=file]", state="attached")
        upload(visitor, lesion)
        visitor.wait_for_selector("#dl-answer .dl-verdict")
        tab(visitor, "Explain")
        button(visitor, "Explain").click()
    second.locator("#dl-explained").get_by_text("queue:").wait_for()
    slow_methods.undo()
    for visitor in (page, second):
        wait_for_text(visitor, "#dl-explained", "by 3 of 3 methods")
    context.close()


def test_stop_leaves_what_is_finished(
    page: Any, lesion: Path, complaints: list[str], slow_methods: pytest.MonkeyPatch
) -> None:
    upload(page, lesion)
    page.wait_for_selector("#dl-answer .dl-verdict")
    tab(page, "Explain")
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.get_by_label("RISE", exact=True).check()
    panel.get_by_label("LIME", exact=True).check()
    button(page, "Explain").click()
    page.wait_for_selector("#dl-explained article")
    panel.get_by_role("button", name="Stop").click()
    wait_for_text(page, "#dl-explained", "Stopped after")
    page.wait_for_timeout(1200)
    assert "Stopped after" in text(page, "#dl-explained")
    slow_methods.undo()
    button(page, "Explain").click()
    wait_for_text(page, "#dl-explained", "by 5 of 5 methods")
    assert complaints == []


def test_phone_width_keyboard_and_words_for_pictures(
    browser: Any, served: Any, lesion: Path, complaints: list[str]
) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    watch(page, served.url, complaints)
    page.goto(served.url)
    page.wait_for_selector("#dl-upload input[type=file]", state="attached")
    upload(page, lesion)
    page.wait_for_selector("#dl-answer .dl-bars")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.mouse.wheel(0, 1500)
    page.wait_for_timeout(200)
    banner = page.locator(".dl-banner").bounding_box()
    assert banner is not None and -1 <= banner["y"] < 20
    assert page.evaluate("[...document.images].filter(one => !one.alt).map(one => one.src)") == []
    page.get_by_role("tab", name="Explain", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#dl-explained", state="visible")
    context.close()
    assert complaints == []

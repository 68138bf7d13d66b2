"""A visitor with a real browser: from the upload to the report, without a console error."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dermlens.explainers.registry import METHODS
from dermlens.explainers.stopping import stop_point
from dermlens.labels import HAM10000
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


def analyzed(page: Any, path: Path) -> None:
    """Upload an image and wait for the verdict, the picture, and the upload to fold away."""
    upload(page, path)
    page.wait_for_selector("#dl-answer .dl-verdict")
    page.wait_for_selector("#dl-viewer .dl-stage .dl-photo")
    page.wait_for_selector("#dl-upload", state="hidden")


def panel(page: Any) -> Any:
    return page.get_by_role("tabpanel").filter(visible=True)


def viewed(page: Any, script: str) -> Any:
    """Evaluate an expression of ``inner``, what lies in the viewer's stage."""
    return page.evaluate(
        f"(() => {{ const inner = document.querySelector('.dl-inner'); {script} }})()"
    )


def test_from_upload_to_report(
    page: Any, lesion: Path, bad_files: dict[str, Path], complaints: list[str], tmp_path: Path
) -> None:
    analyzed(page, lesion)
    assert text(page, "#dl-answer").count("%") >= 9
    assert page.locator("#dl-answer li.dl-alert").count() == 2
    explain_everything(page)
    compare_and_save(page, tmp_path)
    batch(page, [lesion, bad_files["text"]], tmp_path)
    tab(page, "About")
    assert "Intended use" in text(page, "#dl-about") and "Glossary" in text(page, "#dl-about")
    assert page.get_by_text("not a medical device").first.is_visible()
    assert complaints == []


def explain_everything(page: Any) -> None:
    tab(page, "Explain")
    for entry in METHODS.values():
        panel(page).get_by_label(entry.title, exact=True).check()
    button(page, "Explain").click()
    wait_for_text(page, "#dl-explained", f"by {len(METHODS)} methods")
    shown = page.locator("#dl-explained article h3").all_inner_texts()
    assert shown == [entry.title for entry in METHODS.values()]
    maps = page.locator("#dl-explained img.dl-map")
    before = [maps.nth(k).get_attribute("src") for k in range(len(METHODS))]
    assert not page.locator("#dl-explained svg.dl-contour").first.is_visible()
    page.get_by_label("Strongest 20 %").check()
    assert page.locator("#dl-explained svg.dl-contour").first.is_visible()
    page.get_by_label("Colors of the maps").click()
    page.get_by_role("option", name="Inferno").click()
    # Every map changes, the two-sided ones, too.
    page.wait_for_function(
        "(before) => [...document.querySelectorAll('#dl-explained img.dl-map')]"
        ".every((one, k) => one.src !== before[k])",
        arg=before,
    )


def saved(page: Any, name: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        button(page, name).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def compare_and_save(page: Any, folder: Path) -> None:
    tab(page, "Compare")
    for title in ("Occlusion", "LIME", "Shapley values (Gaussian process)"):
        panel(page).get_by_label(title, exact=True).uncheck()
    button(page, "Compare").click()
    wait_for_text(page, "#dl-compared", "Complete.")
    assert page.locator("#dl-compared table.dl-matrix").first.is_visible()
    assert "3. Several scales" not in text(page, "#dl-compared")
    # What is saved stands beside what is done, not below everything.
    status = page.locator("#dl-compared .dl-status").bounding_box()
    save = button(page, "Save report (HTML)").bounding_box()
    assert abs(status["y"] - save["y"]) < 200
    assert saved(page, "Save maps (.npz)", folder).read_bytes().startswith(b"PK")
    report = saved(page, "Save report (HTML)", folder)
    assert report.name == "lesion.html"
    printed(page.context.browser, report)


def printed(browser: Any, report: Path) -> None:
    """The report fits every width, and A4 without a cut."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(report.as_uri())
    wide = (
        "[...document.querySelectorAll('body, .scroll, .dl-scroll')].filter((one) => "
        "one.scrollWidth > one.clientWidth + 1).map((one) => one.className)"
    )
    assert page.evaluate(wide) == []
    assert page.locator(".dl-card .dl-layers").first.bounding_box()["width"] >= 440
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # The width of A4 between its margins, at 96 dots per inch.
    page.set_viewport_size({"width": 688, "height": 1016})
    page.emulate_media(media="print")
    assert page.evaluate(wide) == []
    tall = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.dl-card, figure')].map((one) =>"
        " one.getBoundingClientRect().height))"
    )
    assert tall < 1016
    assert page.locator(".dl-card .dl-layers").first.bounding_box()["width"] >= 480
    assert len(page.pdf(format="A4", print_background=True)) > 20_000
    context.close()


def batch(page: Any, files: list[Path], folder: Path) -> None:
    tab(page, "Batch")
    assert not page.locator("#dl-folded").is_visible()
    page.locator("#dl-files").wait_for()
    choose(page, "#dl-files", files)
    labels = folder / "labels.csv"
    labels.write_text(f"image_id,dx\n{files[0].stem},mel\n")
    choose(page, "#dl-labels", [labels])
    wait_for_text(page, "#dl-files", files[-1].stem)
    wait_for_text(page, "#dl-labels", "labels")
    button(page, "Analyze all").click()
    wait_for_text(page, "#dl-batch-status", "Took")
    assert "1 could not be read" in text(page, "#dl-batch-status")
    assert "The truth of 1 answered image is known" in text(page, "#dl-batch-status")
    assert "cannot be decoded" in text(page, "#dl-batch")
    assert saved(page, "Save table (CSV)", folder).read_text().count("\n") == 3
    assert "1 answered image" in saved(page, "Save summary (HTML)", folder).read_text()
    page.locator("#dl-batch img:visible").first.click()
    page.wait_for_selector("#dl-answer .dl-verdict", state="visible")
    assert page.locator("#dl-folded").is_visible()


def test_bad_files_leave_a_sentence_and_no_old_answer(
    page: Any, lesion: Path, bad_files: dict[str, Path], complaints: list[str]
) -> None:
    analyzed(page, lesion)
    unfold(page)
    page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
    page.wait_for_selector("#dl-answer .dl-empty")
    upload(page, bad_files["svg"])
    page.get_by_text("cannot be decoded as an image").first.wait_for()
    page.wait_for_selector("#dl-answer .dl-empty")
    page.wait_for_selector("#dl-upload input[type=file]", state="attached")
    analyzed(page, lesion)
    assert complaints == []


def unfold(page: Any) -> None:
    page.locator("#dl-folded button").first.click()
    page.wait_for_selector("#dl-upload", state="visible")


def test_the_first_click_on_an_example_is_answered(page: Any, complaints: list[str]) -> None:
    page.locator("#dl-examples button").first.click()
    page.wait_for_selector("#dl-answer .dl-verdict")
    answer = text(page, "#dl-answer")
    assert "True diagnosis of this example: Melanoma" in answer and "abstains" not in answer
    assert complaints == []


def test_where_it_abstains_nothing_is_named_unless_asked(
    page: Any, tmp_path: Path, complaints: list[str]
) -> None:
    Image.new("RGB", (400, 300), (200, 160, 150)).save(tmp_path / "skin.png")
    analyzed(page, tmp_path / "skin.png")
    names = [label.name for label in HAM10000.labels]
    assert "The model abstains" in text(page, "#dl-answer")
    assert not any(name in text(page, "#dl-answer") for name in names)
    assert page.locator("#dl-viewer .dl-map").count() == 0
    tab(page, "Explain")
    button(page, "Explain").click()
    page.get_by_text("The model abstains on this image").first.wait_for()
    tab(page, "Analyze")
    page.get_by_label("Show it anyway").check()
    wait_for_text(page, "#dl-answer", "What it would have said")
    assert any(name in text(page, "#dl-answer") for name in names)
    page.wait_for_selector("#dl-viewer .dl-stage .dl-map")
    assert complaints == []


def test_the_viewer_zooms_wipes_fades_and_takes_an_outline(
    page: Any, lesion: Path, complaints: list[str]
) -> None:
    analyzed(page, lesion)
    assert page.locator(".dl-stage").bounding_box()["width"] >= 500
    thumbs = page.locator(".dl-thumbs button")
    assert thumbs.count() >= 2 and thumbs.first.get_attribute("aria-pressed") == "true"
    second = thumbs.nth(1).inner_text()
    thumbs.nth(1).click()
    assert text(page, ".dl-title") == second
    page.get_by_label("Zoom in").click()
    page.get_by_label("Zoom in").click()
    assert text(page, ".dl-zoom") == "225 %"
    before = viewed(page, "return inner.getBoundingClientRect().x;")
    page.locator(".dl-stage").focus()
    page.keyboard.press("ArrowRight")
    assert viewed(page, "return inner.getBoundingClientRect().x;") < before
    drag(page, [(0.5, 0.5), (0.6, 0.5)])
    assert viewed(page, "return inner.getBoundingClientRect().x;") == pytest.approx(before, abs=9)
    page.keyboard.press("0")
    assert text(page, ".dl-zoom") == "100 %"
    cut = "return getComputedStyle(inner.querySelector('.dl-top')).clipPath;"
    page.get_by_label("Wipe").fill("40")
    assert "60%" in viewed(page, cut)
    page.get_by_label("Wipe").fill("100")
    page.get_by_label("Opacity").fill("0.25")
    assert (
        viewed(page, "return getComputedStyle(inner.querySelector('.dl-map')).opacity;") == "0.25"
    )
    button(page, "Large").click()
    assert page.locator(".dl-viewer").bounding_box()["width"] == 1280
    page.keyboard.press("Escape")
    tab(page, "Explain")
    button(page, "Explain").click()
    wait_for_text(page, "#dl-explained", "by 3 methods")
    page.locator("#dl-explained .dl-view").nth(2).click()
    assert text(page, ".dl-title") == "Integrated Gradients"
    inside = "#dl-explained .dl-checks"
    found = text(page, inside)
    button(page, "Draw outline").click()
    drag(page, [(0.2, 0.3), (0.4, 0.3), (0.4, 0.6), (0.2, 0.6), (0.2, 0.35)])
    page.wait_for_function(
        "([where, found]) => document.querySelector(where).innerText !== found", arg=[inside, found]
    )
    assert page.get_by_label("Drawn").is_checked() and "6 % of the picture" in text(
        page, inside
    ).replace("\xa0", " ").replace("7 %", "6 %")
    assert page.locator(".dl-inner svg.dl-lesion").count() == 1
    assert complaints == []


def drag(page: Any, places: list[tuple[float, float]]) -> None:
    """Move the pressed mouse over the stage, given in shares of it."""
    box = page.locator(".dl-stage").bounding_box()
    for number, (x, y) in enumerate(places):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if number == 0:
            page.mouse.down()
    page.mouse.up()


@pytest.fixture
def slow_methods(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every method takes so long that a visitor can press buttons meanwhile."""
    timed = Explaining._timed

    def slowly(self: Explaining, name: str, *rest: Any, **options: Any) -> Any:
        for _ in range(14):
            time.sleep(0.05)
            stop_point()
        return timed(self, name, *rest, **options)

    monkeypatch.setattr(Explaining, "_timed", slowly)
    return monkeypatch


def test_a_second_visitor_is_told_to_wait(
    browser: Any, page: Any, served: Any, lesion: Path, slow_methods: pytest.MonkeyPatch
) -> None:
    context = browser.new_context()
    second = context.new_page()
    second.goto(served.url)
    for visitor in (page, second):
        visitor.set_default_timeout(SECONDS)
        visitor.wait_for_selector("#dl-upload input[type=file]", state="attached")
        analyzed(visitor, lesion)
        tab(visitor, "Explain")
        button(visitor, "Explain").click()
    wait_for_text(second, "#dl-explained", "Waiting for the computer to be free")
    slow_methods.undo()
    for visitor in (page, second):
        wait_for_text(visitor, "#dl-explained", "by 3 methods")
    context.close()


def test_after_stop_the_next_click_works_at_once(
    page: Any, lesion: Path, complaints: list[str], slow_methods: pytest.MonkeyPatch
) -> None:
    analyzed(page, lesion)
    tab(page, "Explain")
    for name in ("RISE", "LIME"):
        panel(page).get_by_label(name, exact=True).check()
    button(page, "Explain").click()
    page.wait_for_selector("#dl-explained article")
    assert "left." in text(page, "#dl-explained .dl-eta")
    panel(page).get_by_role("button", name="Stop").click()
    wait_for_text(page, "#dl-explained", "Stopped after")
    # What was running must not come back.
    page.wait_for_timeout(900)
    assert "Stopped after" in text(page, "#dl-explained")
    for _ in range(2):
        button(page, "Explain").click()
        wait_for_text(page, "#dl-explained", "of 5:")
        panel(page).get_by_role("button", name="Stop").click()
        wait_for_text(page, "#dl-explained", "Stopped after")
    slow_methods.undo()
    button(page, "Explain").click()
    wait_for_text(page, "#dl-explained", "by 5 methods")
    assert complaints == []


def test_phone_dark_keyboard_and_words_for_pictures(
    browser: Any, served: Any, lesion: Path, complaints: list[str]
) -> None:
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True
    )
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    watch(page, served.url, complaints)
    page.goto(served.url)
    page.wait_for_selector("#dl-upload input[type=file]", state="attached")
    page.mouse.wheel(0, 400)
    analyzed(page, lesion)
    page.wait_for_function("window.scrollY === 0")
    # The verdict and every bar stand in the first screen.
    bars = page.locator("#dl-answer .dl-bars").bounding_box()
    assert bars["y"] + bars["height"] <= 844
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    white = page.evaluate(
        """[...document.querySelectorAll("body *")].filter((one) => {
          const color = getComputedStyle(one).backgroundColor.match(/[\\d.]+/g).map(Number);
          const box = one.getBoundingClientRect();
          return (color[3] ?? 1) > 0.5 && Math.min(...color.slice(0, 3)) > 200
            && box.width * box.height > 4000;
        }).map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert white == []
    page.mouse.wheel(0, 1500)
    page.wait_for_timeout(200)
    banner = page.locator(".dl-banner").bounding_box()
    assert banner is not None and -1 <= banner["y"] < 20
    assert page.evaluate("[...document.images].filter(one => !one.hasAttribute('alt')).length") == 0
    page.get_by_role("tab", name="Explain", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#dl-explained", state="visible")
    button(page, "Explain").click()
    page.locator("#dl-explained .dl-view").first.click()
    assert page.locator(".dl-viewer").bounding_box()["height"] >= 840
    context.close()
    assert complaints == []


def axe() -> Path | None:
    """The script of axe-core, from where it is named or where npm puts it."""
    places = (os.environ.get("DERMLENS_AXE", ""), "node_modules/axe-core/axe.min.js")
    return next((Path(place) for place in places if place and Path(place).is_file()), None)


@pytest.mark.skipif(axe() is None, reason="axe-core is not there: npm install axe-core.")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_stands_in_anybodys_way(
    browser: Any, served: Any, lesion: Path, scheme: Any
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.goto(served.url)
    page.wait_for_selector("#dl-upload input[type=file]", state="attached")
    page.add_script_tag(path=str(axe()))
    found = serious(page)
    analyzed(page, lesion)
    found |= serious(page)
    tab(page, "Explain")
    button(page, "Explain").click()
    wait_for_text(page, "#dl-explained", "by 3 methods")
    for name in ("Explain", "Compare", "Batch", "About"):
        tab(page, name)
        page.wait_for_timeout(150)
        found |= serious(page)
    context.close()
    assert found == set()


def serious(page: Any) -> set[str]:
    """What axe-core calls serious or critical, once nothing fades or slides any more."""
    page.wait_for_function(
        "!document.querySelector('.pending') && document.getAnimations().every("
        "one => one.effect.getComputedTiming().iterations === Infinity"
        " || one.playState !== 'running')"
    )
    result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return {
        f"{one['id']}: {one['nodes'][0]['html'][:160]}"
        for one in result["violations"]
        if one["impact"] in ("serious", "critical")
    }


def test_evidence_beside_maps(page: Any, lesion: Path, complaints: list[str]) -> None:
    """Criteria and changes of an upload, the latter with a word on what they are not."""
    analyzed(page, lesion)
    tab(page, "Evidence")
    button(page, "Measure").click()
    wait_for_text(page, "#dl-criteria", "Measurable criteria")
    button(page, "Find changes").click()
    wait_for_text(page, "#dl-changes", "through the network altogether")
    assert "not of the skin" in text(page, "#dl-changes")
    assert page.locator("#dl-changes article").count() >= 2
    assert complaints == []

"""The pictures of the page, of drawn images alone, in a browser that nobody looks at.

    dermlens cases run/bundle --build run/data
    python docs/screenshots.py run/bundle --data run/data

``run/bundle`` is trained on drawings, as for ``pictures.py``, which are known cases, too. Chromium
is looked for in the environment (``DERMLENS_CHROMIUM``), else on the path.
"""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent / "images"
SIZES = {"1440": (1440, 900), "1024": (1024, 768), "390": (390, 844)}
KEPT = {
    ("1440", "light"): ("analyze", "compare", "evidence"),
    ("1440", "dark"): ("explain",),
    ("1024", "light"): ("analyze",),
    ("390", "light"): ("analyze",),
    ("390", "dark"): ("analyze",),
}
"""What is taken, by width and scheme; ``--all`` takes the rest, too."""
TABS = ("analyze", "explain", "compare", "evidence")
SLOW = ("Occlusion", "LIME", "Shapley values (Gaussian process)")
EVIDENCE = (
    ("Measure", "#dl-criteria", "Measurable criteria"),
    ("Find changes", "#dl-changes", "through the network altogether"),
    ("Find cases", "#dl-cases", "most similar known"),
)
"""Buttons of the Evidence tab, and what stands there when each is done."""
SECONDS = 300_000


def main() -> None:
    """Take and write all pictures."""
    from dermlens.serve.app import launch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="trained on the drawn images")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder to write into")
    parser.add_argument("--all", action="store_true", help="every size, light and dark")
    parser.add_argument("--data", type=Path, help="the drawings, to show known cases")
    given = parser.parse_args()
    page = launch(given.bundle, block=False, examples=given.data)
    try:
        with browser() as opened:
            for name, (width, height) in SIZES.items():
                for scheme in ("light", "dark"):
                    wanted = TABS if given.all else KEPT.get((name, scheme), ())
                    size = (width, height)
                    for tab, shot in visit(opened, page.local_url, size, scheme, wanted):
                        take(shot, given.out / f"app_{tab}_{name}_{scheme}.jpg")
    finally:
        page.close()


@contextmanager
def browser() -> Iterator[Any]:
    """Open Chromium."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("DERMLENS_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def visit(
    opened: Any, url: str, size: tuple[int, int], scheme: Any, wanted: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """Analyze, explain and compare the first drawn example; yield each tab that is wanted."""
    if not wanted:
        return
    width, height = size
    context = opened.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=width < 768
    )
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.goto(url)
    page.locator("#dl-examples button").first.click()
    page.wait_for_selector("#dl-answer .dl-bars")
    page.wait_for_selector("#dl-viewer .dl-stage .dl-photo", state="attached")
    page.wait_for_selector("#dl-upload", state="hidden")
    if "analyze" in wanted:
        yield "analyze", page
    for name, where, done in (
        ("explain", "#dl-explained", "by 3 methods"),
        ("compare", "#dl-compared", "Complete."),
    ):
        if name not in wanted:
            continue
        page.get_by_role("tab", name=name.capitalize(), exact=True).click()
        panel = page.get_by_role("tabpanel").filter(visible=True)
        for method in SLOW:
            panel.get_by_label(method, exact=True).uncheck()
        panel.get_by_role("button", name=name.capitalize(), exact=True).click()
        wait_for(page, where, done)
        page.locator(".dl-thumbs button").filter(has_text="Integrated").first.click()
        if name == "compare":
            page.locator(where).scroll_into_view_if_needed()
        yield name, page
    if "evidence" in wanted:
        page.get_by_role("tab", name="Evidence", exact=True).click()
        for button, where, done in EVIDENCE:
            page.get_by_role("button", name=button, exact=True).click()
            wait_for(page, where, done)
        yield "evidence", page
    context.close()


def wait_for(page: Any, where: str, what: str) -> None:
    """Wait until an element says something."""
    page.wait_for_function(
        "([where, what]) => document.querySelector(where)?.innerText.includes(what)",
        arg=[where, what],
    )


def take(page: Any, path: Path) -> None:
    """Take a picture of what is in view."""
    page.wait_for_timeout(600)
    page.screenshot(path=path, type="jpeg", quality=85)


if __name__ == "__main__":
    main()

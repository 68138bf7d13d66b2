"""The pictures of the page, of drawn images alone, in a browser that nobody looks at.

    python docs/screenshots.py run/bundle

``run/bundle`` is trained on drawings, as for ``pictures.py``. Chromium is looked for in the
environment (``DERMLENS_CHROMIUM``), else on the path.
"""

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent / "images"
SIZES = {"1440": (1440, 900), "1024": (1024, 768), "390": (390, 844)}
METHODS = ("Occlusion", "LIME")
SECONDS = 120_000


def main() -> None:
    """Take and write all pictures."""
    from dermlens.serve.app import launch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="trained on the drawn images")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder to write into")
    parser.add_argument("--all", action="store_true", help="every size, light and dark")
    given = parser.parse_args()
    page = launch(given.bundle, block=False)
    try:
        with browser() as opened:
            for name, (width, height) in SIZES.items():
                for scheme in ("light", "dark"):
                    if given.all or (name, scheme) in (("1440", "light"), ("390", "dark")):
                        visit(opened, page.local_url, (width, height), scheme, given.out, name)
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


def visit(opened: Any, url: str, size: tuple[int, int], scheme: Any, out: Path, name: str) -> None:
    """Analyze, explain and compare the first drawn example, and take a picture of each."""
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
    take(page, out / f"app_analyze_{name}_{scheme}.png")
    tab(page, "Explain")
    panel = page.get_by_role("tabpanel").filter(visible=True)
    for method in METHODS:
        panel.get_by_label(method, exact=True).check()
    panel.get_by_role("button", name="Explain", exact=True).click()
    wait_for(page, "#dl-explained", "by 5 methods")
    page.locator(".dl-thumbs button").filter(has_text="Integrated").first.click()
    take(page, out / f"app_explain_{name}_{scheme}.png")
    if width == 1440:
        tab(page, "Compare")
        page.get_by_role("button", name="Compare", exact=True).click()
        wait_for(page, "#dl-compared", "Complete.")
        page.evaluate("document.querySelector('#dl-compared').scrollIntoView()")
        take(page, out / f"app_compare_{name}_{scheme}.png")
    context.close()


def tab(page: Any, name: str) -> None:
    """Open a tab."""
    page.get_by_role("tab", name=name, exact=True).click()


def wait_for(page: Any, where: str, what: str) -> None:
    """Wait until an element says something."""
    page.wait_for_function(
        "([where, what]) => document.querySelector(where)?.innerText.includes(what)",
        arg=[where, what],
    )


def take(page: Any, path: Path) -> None:
    """Take a picture of what is in view."""
    from PIL import Image

    page.wait_for_timeout(600)
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    main()

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dermlens.errors import UsageError
from dermlens.report.html import NOTICE, Page, format_cell, png_bytes


class Reader(HTMLParser):
    """Collects tags, checks that they nest, and keeps the text."""

    VOID = frozenset({"meta", "img", "br", "link", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def full_page() -> Page:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    page = Page("Title & more", "Under <it>")
    page.section("First part", "Some text.").figure(figure, "A line.")
    page.section("First part").table(
        pd.DataFrame({"dx": ["nv", "<script>"], "images": [6705, 3], "share": [0.5, np.nan]}),
        "Counts.",
    )
    return page


def test_page_is_valid_and_complete() -> None:
    text = full_page().html()
    page = Reader(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.attributes("html") == [{"lang": "en"}]
    assert [a.get("name") for a in page.attributes("meta")][1] == "viewport"
    assert page.text.count(NOTICE) == 2
    assert page.attributes("section") == [{"id": "first-part"}, {"id": "first-part-2"}]
    assert [a["href"] for a in page.attributes("a")] == ["#first-part", "#first-part-2"]
    assert "prefers-color-scheme: dark" in text


def test_everything_put_in_is_escaped() -> None:
    text = full_page().html()
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "<title>Title &amp; more</title>" in text and "Under &lt;it&gt;" in text
    page = Page('"quoted"').figure(np.zeros((2, 2, 3), np.uint8), 'c"><img src=x>')
    assert [a["alt"] for a in Reader(page.html()).attributes("img")] == ['c"><img src=x>']


def test_page_loads_nothing_from_elsewhere() -> None:
    text = full_page().html()
    without_pictures = re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", without_pictures)
    page = Reader(text)
    assert not page.attributes("script") and not page.attributes("link")
    assert all(str(a["src"]).startswith("data:") for a in page.attributes("img"))


def test_figure_is_embedded_with_size_caption_and_alt() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    page = Reader(Page("t").figure(image, "The caption").html())
    (attributes,) = page.attributes("img")
    assert (attributes["width"], attributes["height"]) == ("4", "2")
    assert attributes["alt"] == "The caption" and "The caption" in page.text
    head, content = str(attributes["src"]).split(",")
    assert head == "data:image/png;base64"
    decoded = Image.open(io.BytesIO(base64.b64decode(content)))
    np.testing.assert_array_equal(np.asarray(decoded), image)


def test_png_bytes_stay_as_they_are() -> None:
    content = png_bytes(np.zeros((1, 1, 3), np.uint8))
    assert png_bytes(content) is content


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"GIF89a", "not a PNG"),
        (np.zeros((2, 2, 3)), "cannot be made of ndarray"),
        ("figure.png", "cannot be made of str"),
    ],
)
def test_wrong_pictures_are_refused(picture: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Page("t").figure(picture, "c")  # type: ignore[arg-type]


def test_table_cells_are_formatted_and_aligned() -> None:
    page = Reader(full_page().html())
    cells = page.attributes("td")
    assert [a.get("class") for a in cells[:3]] == [None, "number", "number"]
    assert "6,705" in page.text and "–" in page.text and ">nan<" not in full_page().html()
    assert len(page.attributes("th")) == 3 and len(cells) == 6
    assert [a["tabindex"] for a in page.attributes("div") if "tabindex" in a] == ["0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (np.int64(-1234), "-1,234"),
        (0.0, "0.000"),
        (0.00002, "2.00e-05"),
        (-150.25, "-150.2"),
        (np.float32(0.25), "0.250"),
        (float("inf"), "∞"),
        (-np.inf, "-∞"),
        (None, "–"),
        (pd.NaT, "–"),
        (pd.NA, "–"),
        (np.bool_(False), "no"),
        ("<b>", "<b>"),
    ],
)
def test_format_cell(value: object, text: str) -> None:
    assert format_cell(value) == text


def test_write_is_atomic_and_returns_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "page.html"
    page = full_page()
    assert page.write(path) == path
    before = path.read_text(encoding="utf-8")
    assert before == page.html()
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    monkeypatch.setattr(Page, "html", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page.write(path)
    assert path.read_text(encoding="utf-8") == before
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_page_without_sections_has_no_navigation() -> None:
    page = Reader(Page("Only a title").paragraph("Text.").html())
    assert page.attributes("nav") == [] and "Text." in page.text
    assert page.attributes("h2") == []

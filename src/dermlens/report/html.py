"""Self-contained HTML pages: styles, figures and tables in one file that opens anywhere."""

import base64
import io
import numbers
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from dermlens import __version__
from dermlens.errors import UsageError
from dermlens.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTICE = "Research and education only, not a medical device."
CLINICAL = "Do not use for clinical decisions."
_DOTS_PER_INCH = 130
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass
class _Section:
    title: str
    anchor: str
    blocks: list[dict[str, Any]] = field(default_factory=list)


class Page:
    """A page that grows from top to bottom: sections with paragraphs, figures and tables.

    Everything put in is text and is escaped, except by ``markup``. The page loads nothing from
    elsewhere, adapts to light and dark settings and to phones, and always says that it is for
    research and education only.

    Example:
        >>> page = Page("Lesions", "Counted twice")
        >>> _ = page.section("Counts", "By class.").table(
        ...     pd.DataFrame({"dx": ["nv"], "images": [6705]}), "Images per class."
        ... )
        >>> "6,705" in page.html()
        True
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._subtitle = subtitle
        self._sections: list[_Section] = []

    def section(self, title: str, text: str = "") -> Self:
        """Start a section; what is added next belongs to it."""
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        taken = {section.anchor for section in self._sections}
        unique, count = anchor, 2
        while unique in taken:
            unique, count = f"{anchor}-{count}", count + 1
        self._sections.append(_Section(title, unique))
        return self.paragraph(text) if text else self

    def paragraph(self, text: str) -> Self:
        """Add a paragraph of plain text."""
        return self._add(kind="paragraph", text=text)

    def markup(self, html: str) -> Self:
        """Add HTML as it is; whoever made it has escaped what is text in it."""
        return self._add(kind="markup", html=html)

    def figure(self, picture: "Figure | bytes | np.ndarray", caption: str) -> Self:
        """Add a picture with its caption."""
        content = png_bytes(picture)
        width, height = (int.from_bytes(content[k : k + 4], "big") for k in (16, 20))
        return self._add(
            kind="figure",
            png=base64.b64encode(content).decode("ascii"),
            caption=caption,
            width=width,
            height=height,
            chart=_is_chart(content),
        )

    def table(self, table: pd.DataFrame, caption: str) -> Self:
        """Add a table with its caption; the index is left out, missing values show as a dash."""
        return self._add(kind="table", table=table, caption=caption, **_cells(table))

    def markdown(self) -> str:
        """Return the page without title and pictures as Markdown, to be put into a document."""
        parts = [self._subtitle]
        for section in self._sections:
            parts.append(f"## {section.title}")
            for block in section.blocks:
                if block["kind"] == "paragraph":
                    parts.append(block["text"])
                elif block["kind"] == "table":
                    parts += [block["caption"], markdown_table(block["table"])]
        return "\n\n".join(filter(None, parts)) + "\n"

    def html(self) -> str:
        """Return the page as HTML text."""
        look = templates(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return look.get_template("page.html.j2").render(
            title=self._title,
            subtitle=self._subtitle,
            sections=self._sections,
            notice=NOTICE,
            version=__version__,
        )

    def write(self, path: Path) -> Path:
        """Write the page as one HTML file and return its path."""
        return write_text(path, self.html())

    def _add(self, **block: Any) -> Self:
        if not self._sections:
            self._sections.append(_Section("", "top"))
        self._sections[-1].blocks.append(block)
        return self


def templates(**options: Any) -> Any:
    """Return the Jinja2 environment of this package's templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("dermlens.report")
    return Environment(loader=loader, undefined=StrictUndefined, **options)


def png_bytes(picture: "Figure | bytes | np.ndarray") -> bytes:
    """Return a picture as the bytes of a PNG file."""
    if isinstance(picture, bytes):
        if not picture.startswith(_PNG_SIGNATURE):
            raise UsageError("The bytes given as a picture are not a PNG file. Encode it as PNG.")
        return picture
    buffer = io.BytesIO()
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8:
        from PIL import Image

        Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    elif hasattr(picture, "savefig"):
        picture.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight")
    else:
        raise UsageError(
            f"A picture cannot be made of {type(picture).__name__}. "
            "Give a matplotlib figure, PNG bytes or an image, uint8."
        )
    return buffer.getvalue()


_MOSTLY, _NEARLY_WHITE = 0.6, 235


def _is_chart(content: bytes) -> bool:
    """Tell whether a picture is drawn on white, so that dark pages can show it on dark."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB").reduce(4))
    return bool((pixels.min(axis=2) > _NEARLY_WHITE).mean() > _MOSTLY)


def format_cell(value: Any) -> str:
    """Write one table value for people.

    Example:
        >>> [format_cell(value) for value in (6705, 0.91847, 1234.5, float("nan"), True, "nv")]
        ['6,705', '0.918', '1,234.5', '–', 'yes', 'nv']
        >>> format_cell(65.0), format_cell(47.54)
        ('65', '47.5')
    """
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return "–"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        return _format_real(float(value))
    return str(value)


def _format_real(value: float) -> str:
    if not np.isfinite(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if size >= 10:
        return f"{value:,.1f}".removesuffix(".0")
    if value == 0 or size >= 1e-3:
        return f"{value:.3f}"
    return f"{value:.2e}"


def markdown_table(table: pd.DataFrame) -> str:
    """Write a table in Markdown, numbers as a page writes them.

    Example:
        >>> print(markdown_table(pd.DataFrame({"dx": ["nv"], "share": [0.5]})))
        | diagnosis | share |
        |---|---:|
        | nv | 0.500 |
    """
    cells = _cells(table)
    lines = [
        "| " + " | ".join(cells["head"]) + " |",
        "|" + "|".join("---:" if number else "---" for number in cells["numeric"]) + "|",
    ]
    for row in cells["rows"]:
        lines.append("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |")
    return "\n".join(lines)


_HEADINGS = {
    "dx": "diagnosis",
    "dx_type": "ground for the label",
    "localization": "place on the body",
    "image_id": "image",
    "lesion_id": "lesion",
    "f1": "F1",
    "auc": "AUC",
    "std": "standard deviation",
}


def heading(column: str) -> str:
    """Return the name of a column for people.

    Example:
        >>> heading("dx"), heading("average_precision"), heading("p (Holm)")
        ('diagnosis', 'average precision', 'p (Holm)')
    """
    return _HEADINGS.get(column, column.replace("_", " "))


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    """Return the texts of a table, and which columns hold numbers."""
    return {
        "numeric": [pd.api.types.is_numeric_dtype(table[column]) for column in table.columns],
        "head": [heading(str(column)) for column in table.columns],
        "rows": [list(map(format_cell, row)) for row in table.itertuples(index=False, name=None)],
    }

"""The code blocks of README.md and docs, and what stands in for a reader's files."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHIPPED_SIZE = (192, 256)
SIZE = (48, 64)
"""Of the stand-in for the shipped model: where pages say one, it has the other."""
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]*?) -->\s*)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        page: Where it stands.
        line: Line of its fence, from 1.
        language: What stands behind the fence.
        code: What stands inside.
        reason: Why it cannot be run, from the comment before it; None if it can.
    """

    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    text = page.read_text("utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        reason = match["reason"] and " ".join(match["reason"].split())
        code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        found.append(Block(page, line, match["language"], code, reason))
    return found


def name_of(page: Path) -> str:
    """Return a page's path below the repository, for the names of tests."""
    return page.relative_to(ROOT).as_posix()


def of_language(*languages: str) -> Iterator[Block]:
    """Yield the blocks of all pages in some languages."""
    for page in PAGES:
        yield from (block for block in blocks(page) if block.language in languages)


def make_readers_folder(folder: Path) -> Path:
    """Make what the pages take for granted, small: photographs, data, models, a bundle.

    Returns:
        The folder of the bundle that stands in for the shipped one.
    """
    from dermlens.data.splits import split_data_set
    from dermlens.data.synthetic import draw, make_synthetic
    from dermlens.labels import label_set
    from dermlens.model.foreign import adopt
    from serving_support import foreign_network

    drawn, _, _ = draw("mel", seed=3, size=(300, 400))
    Image.fromarray(drawn).save(folder / "photo.jpg", quality=95)
    (folder / "folder").mkdir()
    shutil.copy(folder / "photo.jpg", folder / "folder" / "another.jpg")
    make_synthetic(folder / "data", images=49, size=(48, 64), workers=1)
    split_data_set(folder / "data")
    (folder / "runs" / "mine").mkdir(parents=True)
    shipped = seven_classes(folder / "runs" / "mine" / "bundle")
    foreign_network().save(folder / "mine.keras")
    adopt(folder / "mine.keras", label_set("benign,malignant"), folder / "mine", value_range=(0, 1))
    return shipped


def export_shipped(folder: Path) -> None:
    """Export the stand-in for the shipped bundle, as the page on deployment has it."""
    from dermlens.model.bundle import load_bundle
    from dermlens.serve.export import export, export_images

    bundle = load_bundle(folder / "runs" / "mine" / "bundle")
    images = export_images(folder=folder / "folder")
    export(bundle, folder / "exported", ("saved_model", "float32"), images)


def seven_classes(folder: Path) -> Path:
    """Write a bundle of seven diagnoses at the shipped model's size, tiny and untrained."""
    import pandas as pd

    from cases_support import give_index
    from dermlens.labels import HAM10000
    from dermlens.model.bundle import save_bundle
    from dermlens.model.classifier import Architecture, build_classifier
    from serving_support import untrained_bundle
    from tests_support import register_tiny_backbone

    register_tiny_backbone()
    architecture = Architecture("tiny", SIZE)
    model = build_classifier(architecture, seed=3)
    model.get_layer("logits").kernel.assign(np.random.default_rng(0).normal(size=(8, 7)) * 3)
    save_bundle(
        folder,
        model=model,
        architecture=architecture,
        calibration=untrained_bundle().calibration,
        training={},
        data={"synthetic": True},
        history=pd.DataFrame({"epoch": [0]}),
        split=pd.DataFrame({"image_id": ["a"], "split": ["train"]}),
        labels=HAM10000,
    )
    give_index(folder)
    return folder


def described(text: str) -> tuple[str, tuple[int, ...]] | None:
    """Return type and shape that a comment such as ``# float32 (1, 192, 256)`` promises."""
    match = re.search(r"#\s*(uint8|bool|int32|float32|float64) \(([\d, ]+)\)", text)
    if match is None:
        return None
    sides = (int(side) for side in match[2].split(",") if side.strip())
    smaller = dict(zip(SHIPPED_SIZE, SIZE, strict=True))
    return match[1], tuple(smaller.get(side, side) for side in sides)


def promises(code: str) -> Iterator[tuple[str, Any]]:
    """Yield each expression or name of a block whose line promises a type and a shape."""
    for line in code.splitlines():
        promise = described(line)
        if promise is not None:
            source = line.split("#")[0].strip()
            assigned = re.match(r"([a-z_]+) = ", source)
            yield (assigned[1] if assigned else source), promise

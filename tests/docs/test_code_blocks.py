"""Every code block of README.md and docs that can run is run; command lines exist.

A block that cannot run carries a comment before it, ``<!-- not run: why -->``.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from docs_commands import command_lines, problem
from docs_pages import (
    PAGES,
    ROOT,
    SIZE,
    Block,
    blocks,
    described,
    export_shipped,
    make_readers_folder,
    name_of,
    of_language,
    promises,
)

LANGUAGES = {"python", "bash", "math", "json", "text", ""}
WITH_PYTHON = [
    page
    for page in PAGES
    if any(block.language == "python" and block.reason is None for block in blocks(page))
]


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a reader has at hand; the shipped bundle is a tiny network meanwhile."""
    from dermlens.model import bundle_choice

    folder = tmp_path_factory.mktemp("reader")
    shipped = make_readers_folder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_choice, "SHIPPED", shipped)
        yield folder


@pytest.fixture
def at_hand() -> dict[str, Any]:
    """What a page may use by name without making it: somebody's model, images and outlines."""
    from explain_networks import smooth_images, trained_like

    masks = np.zeros((2, 24, 36), bool)
    masks[:, 6:18, 9:27] = True
    images = smooth_images(2, (24, 36)).astype(np.float32)
    return {"model": trained_like((24, 36)), "images": images, "masks": masks}


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_runs(
    page: Path,
    readers_folder: Path,
    at_hand: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(readers_folder, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    if page.name == "deployment.md":
        export_shipped(Path.cwd())
    names: dict[str, Any] = {"__name__": "page", **at_hand}
    for block in blocks(page):
        if block.language == "python" and block.reason is None:
            code = compile("\n" * block.line + block.code, str(page), "exec")
            exec(code, names)
            for expression, (dtype, shape) in promises(block.code):
                value = np.asarray(eval(expression, names))
                assert (value.dtype, value.shape) == (np.dtype(dtype), shape), f"{block}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_exist(page: Path) -> None:
    wrong = [
        f"{block}: {' '.join(words)}: {found}"
        for block in blocks(page)
        if block.language == "bash" and block.reason is None
        for words in command_lines(block.code)
        if (found := problem(words)) is not None
    ]
    assert not wrong, "\n".join(wrong)


def test_every_block_is_of_a_known_kind() -> None:
    kinds = {str(block): block.language for page in PAGES for block in blocks(page)}
    assert set(kinds.values()) <= LANGUAGES, kinds
    # A block that is forgotten to be run would say nothing.
    assert len(list(of_language("python"))) > 30
    assert all(len(block.reason) > 10 for block in of_language("python", "bash") if block.reason)


def test_what_is_wrong_is_found() -> None:
    assert problem(["dermlens", "explain", "a.jpg", "--methods", "six"]) is None
    assert "no command" in str(problem(["dermlens", "explian", "a.jpg"]))
    assert "--opactiy" in str(problem(["dermlens", "explain", "a.jpg", "--opactiy", "1"]))
    assert "Unknown method" in str(problem(["dermlens", "explain", "a.jpg", "--methods", "cam"]))
    unknown = ["dermlens", "train", "data", "--out", "o", "--preset", "x"]
    assert "Unknown preset" in str(problem(unknown))
    assert problem(["dermlens", "train", "data"]) is not None
    assert "no target" in str(problem(["make", "coffee"]))
    assert "no option" in str(problem(["python", "inference.py", "--explian", "x"]))
    assert "unknown program" in str(problem(["curl", "localhost"]))
    assert list(command_lines("A=1 dermlens \\\n  app && make docs # why\n")) == [
        ["dermlens", "app"],
        ["make", "docs"],
    ]
    assert described("a.maps  # float32 (1, 7, 192, 256)") == ("float32", (1, 7, *SIZE))


def test_marked_blocks_say_why(tmp_path: Path) -> None:
    page = ROOT / "docs" / "made.md"
    text = "<!-- not run: needs a server -->\n\n```bash\ncurl x\n```\n\n```python\n1\n```\n"
    (tmp_path / "made.md").write_text(text)
    first, second = blocks(tmp_path / "made.md")
    assert (first.reason, second.reason) == ("needs a server", None)
    assert first == Block(tmp_path / "made.md", 3, "bash", "curl x\n", "needs a server")
    assert not page.exists()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    """A module that was renamed must not live on in the pages."""
    text = page.read_text("utf-8")
    named = set(re.findall(r"`((?:[a-z0-9_]+/)+[a-z0-9_]+\.(?:py|ipynb|csv\.gz))`", text))
    here = (ROOT, ROOT / "src", ROOT / "src" / "dermlens")
    gone = [name for name in named if not any((folder / name).exists() for folder in here)]
    assert not gone

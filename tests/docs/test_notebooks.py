"""The notebooks run from top to bottom, offline, and stand in the repository without outputs."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

SMALL = {"IMAGES, SIZE = 280, (96, 128)": "IMAGES, SIZE = 56, (48, 64)"}
"""Numbers of the tour, and smaller ones that show as much to a test."""
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[dict[str, Any]]:
    content = json.loads(path.read_text("utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def small(cell: dict[str, Any]) -> str:
    """Return the source of a cell, its parameters small."""
    source = "".join(cell["source"])
    if "parameters" in cell["metadata"].get("tags", ()):
        for number, smaller in SMALL.items():
            assert number in source
            source = source.replace(number, smaller)
    return source


def run_cell(source: str, place: str, names: dict[str, Any]) -> Any:
    """Run a cell as Jupyter does, and return what it would show: the value of its last line."""
    tree = ast.parse(source, place)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, place, "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), place, "eval"), names)


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["own_keras_model", "tour"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_cleared_and_the_format_is_whole(path: Path) -> None:
    content = json.loads(path.read_text("utf-8"))
    assert content["nbformat"] == 4 and content["nbformat_minor"] >= 5
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in code_cells(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, cell in enumerate(code_cells(path)):
        value = run_cell(small(cell), f"{path.name}, code cell {number}", names)
        if value is not None:
            shown.append(value)
    # Each shows pictures and tables, not only text.
    kinds = {type(value).__name__ for value in shown}
    assert kinds == {"Image", "DataFrame"}
    found = names["results"]
    assert len(found) == 6 and all(abs(one.maps).max() > 0 for one in found.values())
    CHECKS[path.stem](names)


def _tour(names: dict[str, Any]) -> None:
    assert names["scores"][0] > names["shipped"].ood_detector.threshold
    assert names["IMAGES"] == len(names["table"]) == 56
    assert 0 <= names["found"].metrics["balanced_accuracy"] <= 1
    assert names["summary"]["n_images"] == 2
    assert names["stack"].shape == (6, 48, 64)


def _own(names: dict[str, Any]) -> None:
    assert names["accuracy"] >= 0.8
    assert names["rows"]["occlusion"]["insertion"] > names["rows"]["random"]["insertion"]
    assert names["bundle"].classes == ("mel", "vasc")


CHECKS = {"tour": _tour, "own_keras_model": _own}

"""The command that compares explanations: what it writes, prints and refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli_support import Outcome, content, dermlens, printed_paths, refused
from dermlens.report.comparison_files import find_masks
from serving_support import picture, save_untrained

METHODS = "grad_cam,occlusion"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, two images, and the outline of one."""
    made = tmp_path_factory.mktemp("compare")
    save_untrained(made / "bundle")
    (made / "masks").mkdir()
    for seed, name in enumerate(("one", "two")):
        picture(seed).save(made / f"{name}.png")
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 20:60] = 255
    Image.fromarray(mask).save(made / "masks" / "one_segmentation.png")
    return made


@pytest.fixture(scope="module")
def outcome(folder: Path) -> Outcome:
    """Both images compared, one with an outline."""
    return dermlens(
        *("compare", folder / "bundle", folder / "one.png", folder / "two.png"),
        *("--methods", METHODS, "--against", "vasc", "--target", "mel"),
        *("--mask", folder / "masks", "--out", folder / "out", "--batch-size", 8),
    )


def test_one_page_per_image_with_maps_and_numbers(folder: Path, outcome: Outcome) -> None:
    assert outcome.code == 0, outcome
    pages = [folder / "out" / name / "comparison.html" for name in ("one", "two")]
    assert printed_paths(outcome.out) == pages
    assert len(content(folder / "out")) == 2 + 2 * 4
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"https?://|<script|src=\"(?!data:image/)", text)
        assert "not a medical device" in text and "Occlusion" in text and "Grad-CAM" in text
        numbers = json.loads((page.parent / "comparison.json").read_text())
        assert numbers["target"] == "mel" and "vasc" in numbers["compared_with"]
        assert list(numbers["methods"]) == METHODS.split(",")
        with np.load(page.parent / "attributions.npz") as arrays:
            assert {"grad_cam", "occlusion", "consensus", "scale__fused"} <= set(arrays.files)


def test_only_the_image_with_an_outline_is_measured_by_it(folder: Path, outcome: Outcome) -> None:
    one, two = (
        json.loads((folder / "out" / name / "comparison.json").read_text())
        for name in ("one", "two")
    )
    assert two["outline"] is None and "place" not in two["summary"]
    # 2:3 of a 3:4 image: rows at the top and the bottom are cut off.
    assert one["outline"]["area"] == pytest.approx(800 / (80 * 80 * 2 / 3))
    assert "inside the outline" in one["summary"]["evidence"]
    assert "No outline" in two["summary"]["evidence"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--methods", "gradcam"), "Unknown method"),
        (("--target", "flu"), "flu"),
        (("--against", "flu"), "flu"),
        (("--batch-size", 0), "batch size"),
        (("--target", "nv", "--against", "nv"), "contrasted with itself"),
        (("--mask", "absent.png"), "absent.png"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_leave_nothing(
    folder: Path, tmp_path: Path, options: tuple[object, ...], words: str
) -> None:
    call = ("compare", folder / "bundle", folder / "one.png", "--out", tmp_path / "out")
    refused(dermlens(*call, "--methods", "grad_cam", *options), words)
    assert not (tmp_path / "out").exists()


def test_masks_are_found_by_name_or_refused(folder: Path, tmp_path: Path) -> None:
    files = [folder / "one.png", folder / "two.png"]
    mask = folder / "masks" / "one_segmentation.png"
    assert find_masks(files, None) == {}
    assert find_masks(files, folder / "masks") == {files[0]: mask}
    assert find_masks(files[1:], mask) == {files[1]: mask}
    call = ("compare", folder / "bundle", *files, "--out", tmp_path / "out")
    refused(dermlens(*call, "--mask", mask), "One outline was given for 2 images")
    refused(dermlens(*call, "--mask", tmp_path), "no outline of any image")
    Image.fromarray(np.zeros((30, 50), np.uint8)).save(tmp_path / "one.png")
    refused(dermlens(*call, "--mask", tmp_path), "Draw it on the whole image")


def test_the_app_is_one_command_and_compare_is_listed() -> None:
    from dermlens.cli import app

    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert len(names) == len(set(names))
    assert {"app", "compare"} <= set(names)

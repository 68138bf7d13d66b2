"""The commands that change pictures and measure criteria: what they write, print and refuse."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermlens as dl
from cli_support import Outcome, content, dermlens, printed_paths, refused
from dermlens.data.synthetic import draw
from dermlens.errors import UsageError
from dermlens.lesion.counterfactuals import KINDS, MOST_PASSES
from dermlens.lesion.criteria import CRITERIA
from serving_support import save_untrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, a drawn lesion with its outline, and a picture without one."""
    made = tmp_path_factory.mktemp("changes")
    save_untrained(made / "bundle")
    drawn, mask, _ = draw("nv", seed=2, size=(96, 144))
    Image.fromarray(drawn).save(made / "lesion.png")
    (made / "masks").mkdir()
    Image.fromarray(mask.astype(np.uint8) * 255).save(made / "masks" / "lesion.png")
    Image.new("RGB", (144, 96), (210, 170, 150)).save(made / "skin.png")
    return made


@pytest.fixture(scope="module")
def outcome(folder: Path) -> Outcome:
    return dermlens(
        *("changes", folder / "bundle", folder / "lesion.png", folder / "skin.png"),
        *("--mask", folder / "masks", "--out", folder / "out", "--scorer", "float32"),
    )


def test_a_page_numbers_and_pictures_for_each_image(folder: Path, outcome: Outcome) -> None:
    assert outcome.code == 0, outcome
    pages = [folder / "out" / name / "changes.html" for name in ("lesion", "skin")]
    assert printed_paths(outcome.out) == pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"https?://|<script|src=\"(?!data:image/)", text)
        assert "not of the skin" in text and "not a medical device" in text
    numbers = json.loads((pages[0].parent / "changes.json").read_text())
    assert set(numbers["changes"]) == set(KINDS)
    assert numbers["passes"] <= MOST_PASSES and numbers["scorer"] == "float32"
    for kind, change in numbers["changes"].items():
        assert change["found"] == (pages[0].parent / f"changed_{kind}.png").is_file()
        if change["found"]:
            after = max(change["probabilities"], key=change["probabilities"].__getitem__)
            assert change["changed"] == (after != numbers["answer"])


def test_without_an_outline_only_regions_are_looked_for_and_it_says_why(
    folder: Path, outcome: Outcome
) -> None:
    numbers = json.loads((folder / "out" / "skin" / "changes.json").read_text())
    assert set(numbers["changes"]) == {"necessary", "sufficient"}
    assert set(numbers["left_out"]) == {"lesion_erased", "color"}
    assert "No lesion was found" in numbers["outline"] and "No lesion was found" in outcome.out


def test_criteria_of_an_outline_and_a_refusal(folder: Path) -> None:
    outcome = dermlens(
        *("criteria", folder / "bundle", folder / "lesion.png", folder / "skin.png"),
        *("--mask", folder / "masks", "--out", folder / "criteria.csv"),
    )
    # One image has no outline that is sure.
    assert outcome.code == 1 and "No lesion was found" in outcome.out
    table = pd.read_csv(folder / "criteria.csv")
    measured = table[table.image == "lesion.png"]
    assert list(measured.criterion) == list(CRITERIA)
    assert measured.percentile_benign.between(0, 100).all()
    assert measured.percentile_melanoma.between(0, 100).all()
    assert table[table.image == "skin.png"].criterion.isna().all()
    # What another network does is not told of this one.
    assert "not measured for this model" in outcome.out
    assert all(criterion.name in outcome.out for criterion in CRITERIA.values())


def test_wrong_outlines_and_tables_are_refused(folder: Path) -> None:
    Image.new("L", (144, 96)).save(folder / "empty.png")
    image = folder / "lesion.png"
    before = content(folder)
    empty = ("--mask", folder / "empty.png")
    refused(dermlens("criteria", folder / "bundle", image, *empty), "is empty")
    wrong = ("--reference", folder / "bundle" / "bundle.json", "--out", folder / "none")
    refused(dermlens("changes", folder / "bundle", image, *wrong), "benchmarks/criteria.py")
    assert content(folder) == before


def test_from_python(folder: Path) -> None:
    classifier = dl.load(folder / "bundle")
    found = dl.changes(classifier, folder / "lesion.png", scorer="float32")
    assert found.image.shape == (*classifier.input_size, 3) and "necessary" in found.found
    mask = np.asarray(Image.open(folder / "masks" / "lesion.png")) > 127
    table = dl.criteria(folder / "lesion.png", mask, model=classifier)
    assert list(table.criterion) == list(CRITERIA) and np.isfinite(table.value).all()
    with pytest.raises(UsageError, match="sure enough"):
        dl.criteria(folder / "skin.png", model=classifier)


def test_a_comparison_takes_both_when_asked(folder: Path) -> None:
    outcome = dermlens(
        *("compare", folder / "bundle", folder / "lesion.png", "--methods", "grad_cam"),
        *("--mask", folder / "masks" / "lesion.png", "--out", folder / "compared"),
        *("--no-scales", "--evidence", "--scorer", "float32"),
    )
    assert outcome.code == 0, outcome
    text = (folder / "compared" / "lesion" / "comparison.html").read_text(encoding="utf-8")
    assert text.index("What would change the answer") < text.index("Measurable criteria")
    numbers = json.loads((folder / "compared" / "lesion" / "comparison.json").read_text())
    assert set(numbers["changes"]["changes"]) == set(KINDS)
    assert list(numbers["criteria"]) == list(CRITERIA)

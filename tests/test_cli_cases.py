"""``dermlens cases``: what it prints, writes and refuses."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cases_support import give_index
from cli_support import dermlens, printed_paths, refused
from dermlens.data.manifest import read_manifest
from dermlens.model.case_index import FILE
from serving_support import picture, save_untrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an index, one without, a photograph and plain skin."""
    made = tmp_path_factory.mktemp("cases")
    save_untrained(made / "bundle")
    give_index(made / "bundle")
    save_untrained(made / "plain")
    picture(1, 240, 320).save(made / "lesion.png")
    Image.new("RGB", (400, 300), (200, 160, 150)).save(made / "skin.png")
    (made / "bad.png").write_bytes(b"no image")
    return made


def test_a_table_and_what_it_rests_on(folder: Path) -> None:
    outcome = dermlens("cases", folder / "bundle", folder / "lesion.png", "--count", 2)
    assert outcome.code == 0, outcome
    rows = re.findall(
        r"(\d\.\d\d|-\d\.\d\d) │\s+(\d\.\d\d) │ (ISIC_\d+) │ (HAM_\d+) │ (\w+)", outcome.out
    )
    assert len(rows) == 4 and {row[4] for row in rows} == {"histopathology"}
    for similarity, distance, image, lesion, _ in rows:
        assert float(similarity) + float(distance) == pytest.approx(1, abs=0.011)
        assert image[-3:] == lesion[-3:]
    assert re.search(r"\d of the 5 most similar known lesions", outcome.out)
    flat = outcome.out.replace("\xa0", " ")
    assert re.search(r"Of 10 test images with as many, \d+ % were answered rightly", flat)
    assert "Likeness is no proof" in flat


def test_a_page_with_pictures_from_the_data_set(folder: Path, prepared: Path) -> None:
    table = read_manifest(prepared)
    index = give_index(folder / "bundle")
    ids = np.array([*table.image_id[:30], *index.images[30:]])
    give_index(folder / "bundle", images=ids)
    page = folder / "cases.html"
    given = (folder / "lesion.png", folder / "skin.png", "--out", page)
    outcome = dermlens("cases", folder / "bundle", *given, "--data", prepared, "--count", 6)
    assert outcome.code == 0 and printed_paths(outcome.out)[-1] == page
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|src=\"(?!data:image/)", text)
    shown = re.findall(r'class="dl-case" src="data:image/jpeg[^"]*" alt="[^"]*case (\S+)"', text)
    named = re.findall(r"<p>((?:ISIC_)\d+)</p>", text)
    assert set(shown) == set(named) & set(table.image_id) and len(named) == 12
    # Where the model abstains, no diagnosis and no case is named.
    assert "the model abstains" in outcome.out and text.count('<div class="dl-picture">') == 1
    anyway = dermlens("cases", folder / "bundle", folder / "skin.png", "--anyway")
    assert "│ ISIC_" in anyway.out and "abstains" not in anyway.out
    without = dermlens("cases", folder / "bundle", *given[:1], "--out", page, "--count", 6)
    assert without.code == 0 and 'dl-case"' not in page.read_text(encoding="utf-8")


def test_a_region_is_looked_at_and_named(folder: Path) -> None:
    given = (folder / "bundle", folder / "lesion.png")
    whole, part = dermlens("cases", *given), dermlens("cases", *given, "--region", "grad_cam")
    assert part.code == 0 and "in the part that Grad-CAM marks" in part.out
    assert "in the whole image" in whole.out and "answered rightly" not in part.out
    numbers = [re.findall(r"│\s+(-?\d\.\d\d) │", outcome.out) for outcome in (whole, part)]
    assert numbers[0] != numbers[1]


def test_nothing_near_is_said(folder: Path) -> None:
    give_index(folder / "bundle", threshold=1.0)
    outcome = dermlens("cases", folder / "bundle", folder / "lesion.png")
    give_index(folder / "bundle")
    flat = outcome.out.replace("\xa0", " ")
    assert outcome.code == 0 and flat.count("no close case") == 2 and "│ ISIC" not in flat
    assert flat.count("No close case of") == 2 and "reaches for 93 % of test images" in flat
    assert "Of 8 test images whose answer had none, 25 % were answered rightly" in flat


def test_damaged_files_are_told_of_and_the_rest_goes_on(folder: Path) -> None:
    outcome = dermlens("cases", folder / "bundle", folder / "bad.png", folder / "lesion.png")
    assert outcome.code == 1 and "cannot be decoded" in outcome.out and "│ ISIC_" in outcome.out


def test_what_is_refused(folder: Path, prepared: Path) -> None:
    bundle, image = folder / "bundle", folder / "lesion.png"
    refused(dermlens("cases"), "Give an image")
    refused(dermlens("cases", folder / "plain", image), "has no index of cases")
    refused(dermlens("cases", bundle, image, "--region", "magic"), "Unknown method")
    refused(dermlens("cases", bundle, image, "--data", folder), "not a prepared data set")
    refused(dermlens("cases", bundle, image, "--build", prepared), "no images")
    refused(dermlens("cases", bundle, "--build", prepared), "is not the data set")
    give_index(folder / "plain", weights="0" * 64)
    refused(dermlens("cases", folder / "plain", image), "made with other weights")
    (folder / "plain" / FILE).unlink()


def test_building_writes_one_file(
    folder: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dermlens.explainers.case_building.require_same_data", lambda *_: None)
    outcome = dermlens("cases", folder / "plain", "--build", prepared)
    assert outcome.code == 0 and printed_paths(outcome.out) == [folder / "plain" / FILE]
    assert dermlens("cases", folder / "plain", folder / "lesion.png").code == 0
    (folder / "plain" / FILE).unlink()

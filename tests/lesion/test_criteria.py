"""Criteria of drawn lesions, the automatic outline's doubt, and the reference table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from dermlens.data.synthetic import draw
from dermlens.errors import DataError, UsageError
from dermlens.files import write_json
from dermlens.lesion.criteria import CRITERIA, measure_criteria
from dermlens.lesion.criteria_reference import criteria_rows, read_reference
from dermlens.lesion.outline import examine_outline, find_outline, fit_outline

SIZE = (80, 120)
ROWS, COLUMNS = np.indices(SIZE)
SKIN, BROWN = (230, 190, 170), (100, 60, 45)


def painted(mask: np.ndarray, color: tuple[int, int, int] = BROWN) -> np.ndarray:
    image = np.empty((*SIZE, 3), np.uint8)
    image[:] = SKIN
    image[mask] = color
    return image


ELLIPSE = ((COLUMNS - 60) / 36) ** 2 + ((ROWS - 40) / 20) ** 2 <= 1


def test_a_plain_symmetric_ellipse() -> None:
    found = measure_criteria(painted(ELLIPSE), ELLIPSE)
    values = found.values
    assert list(values) == list(CRITERIA)
    assert values["asymmetry"] == 0 and values["color_spread"] < 1e-9
    # Only interpolation across the very edge mixes lesion with skin.
    assert values["color_asymmetry"] < 0.5
    assert values["colors"] == 1 and found.colors == ("dark_brown",)
    assert (values["dark"], values["blue_white"], values["red"]) == (1, 0, 0)
    assert values["size"] == ELLIPSE.mean() and found.cut_off == 0
    assert values["notches"] < 0.04


def test_each_criterion_answers_to_its_own_change() -> None:
    plain = measure_criteria(painted(ELLIPSE), ELLIPSE).values
    image = painted(ELLIPSE)
    image[ELLIPSE & (COLUMNS > 60)] = (190, 75, 75)
    half_red = measure_criteria(image, ELLIPSE)
    assert half_red.values["asymmetry"] == 0
    assert half_red.values["color_asymmetry"] > 10
    assert half_red.values["red"] == pytest.approx(0.5, abs=0.02)
    assert half_red.values["colors"] == 2 and half_red.values["color_spread"] > 10
    bitten = ELLIPSE & ~((COLUMNS > 55) & (COLUMNS < 65) & (ROWS < 40))
    notched = measure_criteria(painted(bitten), bitten).values
    assert notched["notches"] > 0.08 and notched["irregularity"] > plain["irregularity"] + 0.2
    assert notched["asymmetry"] > 0.03 and notched["colors"] == 1
    white = measure_criteria(painted(ELLIPSE, (235, 225, 220)), ELLIPSE).values
    assert white["blue_white"] == 1 and white["dark"] == 0
    cut = COLUMNS < 30
    assert measure_criteria(painted(cut), cut).cut_off == pytest.approx(138 / 396)


def test_large_photographs_are_measured_like_small_ones() -> None:
    rows, columns = np.indices((800, 1200)) / 10
    large = ((columns - 60) / 36) ** 2 + ((rows - 40) / 20) ** 2 <= 1
    image = np.where(large[..., None], BROWN, SKIN).astype(np.uint8)
    small = measure_criteria(painted(ELLIPSE), ELLIPSE).values
    found = measure_criteria(image, large).values
    for key in ("asymmetry", "irregularity", "notches", "size", "dark"):
        assert found[key] == pytest.approx(small[key], abs=0.03), key


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        measure_criteria(painted(ELLIPSE), np.zeros(SIZE, bool))
    with pytest.raises(UsageError, match="same size"):
        measure_criteria(painted(ELLIPSE), ELLIPSE[:-1])


def test_a_clear_outline_is_sure_and_a_faint_or_noisy_one_is_not() -> None:
    drawn, mask, _ = draw("nv", seed=2, size=(300, 400))
    clear = examine_outline(Image.fromarray(drawn))
    assert clear is not None and clear.sure
    small = fit_outline(mask, clear.mask.shape)
    assert (small & clear.mask).sum() / (small | clear.mask).sum() > 0.7
    found = find_outline(Image.fromarray(drawn))
    assert found is not None and np.array_equal(found, clear.mask)
    blotches = gaussian_filter(np.random.default_rng(0).normal(size=(300, 400)), 30)
    skin = np.array(SKIN) + 12 * (blotches / blotches.std())[..., None] * (1.0, 0.6, 0.6)
    faint = examine_outline(Image.fromarray(np.clip(skin, 0, 255).astype(np.uint8)))
    assert faint is not None and not faint.sure and faint.expected_dice < clear.expected_dice - 0.1
    assert examine_outline(Image.new("RGB", (400, 300), (200, 160, 150))) is None


@pytest.fixture
def table() -> dict[str, Any]:
    steps = [float(k) for k in range(21)]
    percentiles = dict.fromkeys(CRITERIA, steps) | {"colors": [1.0] * 11 + [2.0] * 10}
    follows = {"correlation": 0.3, "low": 0.2, "high": 0.4, "p": 0.001}
    follows |= {"step": 0.5, "step_p": 0.04, "tcav": 0.9, "tcav_p": 0.2}
    weak = {**follows, "correlation": -0.05}
    return {
        "source": "drawn",
        "groups": {"benign": {"images": 9, "percentiles": percentiles}},
        "colors": {"nv": {"mean": [50.0, 10.0, 10.0], "spread": [5.0, 2.0, 2.0]}},
        "network": {
            "fingerprint": "abc",
            "outputs": {"mel": {"size": follows, "red": weak, "dark": {**follows, "p": 0.5}}},
        },
    }


def test_percentiles_and_what_the_network_does(tmp_path: Path, table: dict[str, Any]) -> None:
    reference = read_reference(write_json(tmp_path / "table.json", table))
    assert reference.percentile("dark", 10.0, "benign") == 50
    assert reference.percentile("dark", 2.5, "benign") == 12.5
    assert reference.percentile("dark", -1.0, "benign") == 0
    assert reference.percentile("dark", 99.0, "benign") == 100
    # Half of the images have one color: their middle, not their end.
    assert reference.percentile("colors", 1.0, "benign") == 25
    assert np.isnan(reference.percentile("dark", 1.0, "mel"))
    rows = criteria_rows(measure_criteria(painted(ELLIPSE), ELLIPSE), reference, "abc")
    by_key = {row["criterion"]: row for row in rows}
    assert by_key["size"]["follows"]["mel"]["sentence"] == "rises with it"
    assert by_key["red"]["follows"]["mel"]["sentence"] == "falls weakly with it"
    assert by_key["dark"]["follows"]["mel"]["sentence"] == "no relation beyond chance, corrected"
    assert by_key["colors"]["follows"] == {} and by_key["colors"]["text"] == "1"
    other = criteria_rows(measure_criteria(painted(ELLIPSE), ELLIPSE), reference, "another")
    assert not any(row["follows"] for row in other)
    assert reference.lesion_colors()["nv"].mean == (50.0, 10.0, 10.0)


def test_a_damaged_table_is_refused(tmp_path: Path, table: dict[str, Any]) -> None:
    table["network"]["outputs"]["mel"]["size"]["correlation"] = 3.0
    with pytest.raises(DataError, match="correlation must be at most"):
        read_reference(write_json(tmp_path / "table.json", table))

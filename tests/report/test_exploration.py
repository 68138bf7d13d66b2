import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermlens.data import explore as tables
from dermlens.data.manifest import read_manifest
from dermlens.data.synthetic import make_synthetic
from dermlens.errors import DataError
from dermlens.files import read_json, write_json
from dermlens.labels import HAM10000
from dermlens.report import exploration as figures
from dermlens.report.exploration import explore

CODES = HAM10000.codes

FIGURES = {
    "age", "brightness", "class_balance", "color", "dx_type", "images_per_lesion", "lesion_size",
    "localization", "mean_images", "samples", "sex",
}  # fmt: skip
TABLES = {
    "age", "brightness", "class_balance", "dx_type", "lesion_size", "localization",
    "missing_values", "sex",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exploration") / "data"
    make_synthetic(out, images=40, size=(48, 64), seed=2, workers=1)
    return out


def test_explore_writes_page_figures_and_tables(data: Path, tmp_path: Path) -> None:
    page = explore(data, tmp_path / "out")
    assert page == tmp_path / "out" / "exploration.html"
    assert {path.stem for path in (tmp_path / "out" / "figures").iterdir()} == FIGURES
    assert {path.stem for path in (tmp_path / "out" / "tables").iterdir()} == TABLES
    for path in (tmp_path / "out" / "figures").iterdir():
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width > 300 and height > 100
    text = page.read_text(encoding="utf-8")
    assert text.count("<img ") == len(FIGURES) and text.count("<table>") == len(TABLES)
    assert "40 images of" in text and "drawn by a program" in text
    table = read_manifest(data)
    balance = pd.read_csv(tmp_path / "out" / "tables" / "class_balance.csv").set_index("dx")
    assert balance.images.to_dict() == {c: int((table.dx == c).sum()) for c in CODES}
    per_image = pd.read_csv(tmp_path / "out" / "images.csv")
    assert per_image.image_id.tolist() == table.image_id.tolist()


def test_explore_copes_with_absent_metadata_masks_and_classes(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    make_synthetic(copy, images=40, size=(48, 64), seed=2, workers=1)
    table = read_manifest(copy)
    table = table[table.dx.isin(["nv", "mel"])]
    table[["mask_path", "age", "sex"]] = np.nan
    table.to_csv(copy / "manifest.csv", index=False)
    write_json(copy / "dataset.json", read_json(copy / "dataset.json") | {"n_missing_images": 7})
    text = explore(copy, tmp_path / "out").read_text(encoding="utf-8")
    assert "2 of 7 classes" in text and "7 rows of the metadata have no image" in text
    written = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert written == FIGURES - {"age", "lesion_size"}
    assert ">nan<" not in text and ">None<" not in text


def test_explore_needs_a_prepared_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a prepared data set"):
        explore(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_class_balance_bars_show_the_counts_in_the_class_colors(data: Path) -> None:
    from matplotlib.colors import to_hex

    balance = tables.class_balance(read_manifest(data), HAM10000)
    images, lesions = figures.class_balance(balance, HAM10000.colors()).axes
    order = [label.get_text() for label in images.get_yticklabels()]
    counts = balance.set_index("dx")
    assert [bar.get_width() for bar in images.patches] == [counts.images[c] for c in order]
    assert [bar.get_width() for bar in lesions.patches] == [counts.lesions[c] for c in order]
    assert [to_hex(bar.get_facecolor()).upper() for bar in images.patches] == [
        HAM10000.of(c).color for c in order
    ]


def test_shares_sum_to_one_hundred_percent(data: Path) -> None:
    counts = tables.cross_table(read_manifest(data), "localization", HAM10000)
    ax = figures.shares(counts, "localization").axes[0]
    values = np.asarray(ax.collections[0].get_array()).reshape(len(counts), len(CODES) + 1)
    np.testing.assert_allclose(values.sum(axis=0), 100)
    assert [t.get_text() for t in ax.get_yticklabels()] == counts.localization.tolist()


def test_sample_grid_leaves_places_empty_where_samples_lack() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    figure = figures.sample_grid({"mel": [image, image], "nv": [image]}, HAM10000.colors())
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 0]
    assert [ax.get_ylabel() for ax in figure.axes] == ["mel", "", "nv", ""]


def test_color_histograms_are_not_cut_off(data: Path) -> None:
    statistics = tables.image_statistics(data, read_manifest(data))
    figure = figures.color_histograms(statistics, HAM10000.colors())
    highest = 100 * max(histogram.max() for histogram in statistics.histograms.values())
    assert all(ax.get_ylim()[0] == 0 and ax.get_ylim()[1] >= highest for ax in figure.axes)

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermlens.data import explore
from dermlens.data.manifest import COLUMNS
from dermlens.errors import DataError
from dermlens.labels import HAM10000


def manifest() -> pd.DataFrame:
    rows = [
        ("a", "L1", "nv", "histo", 40.0, "male", "back"),
        ("b", "L1", "nv", "histo", 40.0, "male", "back"),
        ("c", "L2", "nv", "follow_up", np.nan, "female", "face"),
        ("d", "L3", "mel", "histo", 70.0, np.nan, "face"),
        ("e", "L4", "mel", "histo", 0.0, "male", np.nan),
    ]
    columns = ["image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization"]
    table = pd.DataFrame(rows, columns=columns)
    table["path"] = table.image_id + ".png"
    table["mask_path"] = np.where(table.dx == "nv", table.image_id + "_mask.png", None)
    table["split"] = np.nan
    return table[list(COLUMNS)]


def with_images(folder: Path) -> pd.DataFrame:
    """Five plain images; nevi have a lighter left half, and a mask on their right quarter."""
    table = manifest()
    for k, row in enumerate(table.itertuples()):
        image = np.full((96, 128, 3), (10 * k, 100, 200), np.uint8)
        if row.dx == "nv":
            image[:, 96:] = (10 * k, 40, 140)
            mask = np.zeros((96, 128), np.uint8)
            mask[:, 96:] = 255
            Image.fromarray(mask).save(folder / row.mask_path)
        Image.fromarray(image).save(folder / row.path)
    return table


def test_class_balance_counts_images_and_lesions() -> None:
    balance = explore.class_balance(manifest(), HAM10000).set_index("dx")
    assert tuple(balance.index) == HAM10000.codes
    assert balance.loc["nv", ["images", "lesions"]].tolist() == [3, 2]
    assert balance.loc["nv", ["image_share", "lesion_share"]].tolist() == [0.6, 0.5]
    assert balance.loc["nv", "images_per_lesion"] == 1.5
    assert balance.loc["df", "images"] == 0 and np.isnan(balance.loc["df", "images_per_lesion"])
    assert balance.loc["mel", "malignant"] and not balance.loc["nv", "malignant"]


def test_images_per_lesion() -> None:
    counts = explore.images_per_lesion(manifest())
    assert counts.to_dict("list") == {"images": [1, 2], "lesions": [3, 1]}


def test_missing_values_by_field_and_class() -> None:
    missing = explore.missing_values(manifest(), HAM10000).set_index("field")
    assert missing.missing.to_dict() == {
        "age": 1,
        "sex": 1,
        "localization": 1,
        "dx_type": 0,
        "mask_path": 2,
        "age of 0": 1,
    }
    assert missing.loc["age", ["share", "nv", "mel"]].tolist() == [0.2, 1, 0]
    assert missing.loc["mask_path", ["nv", "mel"]].tolist() == [0, 2]


def test_cross_table_orders_by_frequency_and_puts_unknown_last() -> None:
    table = pd.concat([manifest()] * 2)
    table.loc[table.localization == "face", "localization"] = None
    counts = explore.cross_table(table, "localization", HAM10000)
    assert counts.localization.tolist() == ["back", "unknown"]
    assert counts["all"].tolist() == [4, 6]
    assert counts.columns.tolist() == ["localization", *HAM10000.codes, "all"]
    assert counts[["nv", "mel"]].to_numpy().tolist() == [[4, 0], [2, 4]]


def test_age_summary_leaves_missing_out() -> None:
    ages = explore.age_summary(manifest(), HAM10000).set_index("dx")
    assert ages.loc["mel", ["n", "median", "minimum", "maximum"]].tolist() == [2, 35, 0, 70]
    assert ages.loc["nv", "n"] == 2 and ages.loc["vasc", "n"] == 0
    assert np.isnan(ages.loc["vasc", "median"])


def test_measure_image() -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, 2:] = (100, 100, 100)
    mask = np.zeros((2, 4), bool)
    mask[:, :1] = True
    measured = explore.measure_image(image, mask)
    assert measured["red"] == measured["green"] == measured["blue"] == 50
    assert measured["brightness"] == pytest.approx(50)
    assert measured["contrast"] == pytest.approx(50)
    assert measured["lesion_share"] == 0.25
    assert measured["lesion_contrast"] == pytest.approx(200 / 3)
    assert np.isnan(explore.measure_image(image, None)["lesion_share"])
    assert np.isnan(explore.measure_image(image, np.ones((2, 4), bool))["lesion_contrast"])
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 100
    assert explore.measure_image(red, None)["brightness"] == pytest.approx(29.9)


@pytest.mark.parametrize("workers", [1, 3])
def test_image_statistics_on_known_images(tmp_path: Path, workers: int) -> None:
    found = explore.image_statistics(tmp_path, with_images(tmp_path), workers=workers)
    assert found.per_image.image_id.tolist() == list("abcde")
    np.testing.assert_allclose(found.per_image.red, [0, 10, 20, 30, 40])
    np.testing.assert_allclose(found.per_image.green, [85, 85, 85, 100, 100])
    np.testing.assert_allclose(found.per_image.lesion_share, [0.25] * 3 + [np.nan] * 2)
    np.testing.assert_allclose(found.per_image.lesion_contrast[:3], 60 * 0.587 + 60 * 0.114)
    assert list(found.mean_images) == ["mel", "nv"] and list(found.mean_masks) == ["nv"]
    np.testing.assert_allclose(found.mean_images["nv"][0, 0], [10, 100, 200])
    np.testing.assert_allclose(found.mean_images["mel"][0, 127], [35, 100, 200])
    assert found.mean_masks["nv"][:, 96:].min() == 1 and found.mean_masks["nv"][:, :96].max() == 0
    histogram = found.histograms["nv"]
    np.testing.assert_allclose(histogram.sum(axis=1), 1)
    assert histogram[1, 100 // 8] == 0.75 and histogram[1, 40 // 8] == 0.25
    sizes = explore.lesion_sizes(found).set_index("dx")
    assert sizes.loc["nv", ["n", "median"]].tolist() == [3, 0.25] and "mel" not in sizes.index
    assert explore.brightness_summary(found).n.tolist() == [2, 3]


def test_damaged_image_is_named(tmp_path: Path) -> None:
    table = with_images(tmp_path)
    (tmp_path / "c.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"c\.png cannot be decoded as an image"):
        explore.image_statistics(tmp_path, table)
    (tmp_path / "b_mask.png").unlink()
    with pytest.raises(DataError, match=r"b_mask\.png cannot be read"):
        explore.image_statistics(tmp_path, table)


def test_draft_decoding_equals_full_decoding_closely(tmp_path: Path) -> None:
    y, x = np.mgrid[:300, :400]
    image = np.stack([x / 400 * 255, y / 300 * 255, np.full_like(x, 90)], axis=2).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(image).save(tmp_path / "a.png")
    small = explore.read_small_image(tmp_path / "a.jpg", (75, 100))
    full = explore.read_small_image(tmp_path / "a.png", (75, 100))
    assert small.shape == (75, 100, 3)
    assert np.abs(small.astype(int) - full).max() <= 4


def test_rotated_jpeg_is_turned_upright(tmp_path: Path) -> None:
    image = np.zeros((80, 60, 3), np.uint8)
    image[:20] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "a.jpg", exif=exif)
    upright = explore.read_small_image(tmp_path / "a.jpg", (30, 40))
    assert upright[:, -5:].min() > 200 and upright[:, :20].max() < 50


def test_samples_come_from_different_lesions_and_follow_the_seed() -> None:
    table = manifest()
    chosen = explore.sample_ids(table, 5)
    assert chosen == {"mel": ["d", "e"], "nv": ["a", "c"]}
    assert all(len(ids) == 1 for ids in explore.sample_ids(table, 1).values())
    many = pd.concat(
        [table.assign(image_id=table.image_id + str(k), lesion_id=f"L{k}") for k in range(30)]
    )
    assert explore.sample_ids(many, 4, seed=1) == explore.sample_ids(many, 4, seed=1)
    assert explore.sample_ids(many, 4, seed=1) != explore.sample_ids(many, 4, seed=2)

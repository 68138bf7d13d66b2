"""Preparing HAM10000 from every layout, and refusing what is wrong."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermlens.data.ham10000 import prepare
from dermlens.data.images import load_mask
from dermlens.data.manifest import read_manifest
from dermlens.data.sources import find_source, read_metadata
from dermlens.errors import DataError
from dermlens.files import read_json


def folders(source, *names):
    """Write the images into folders, the first half into the first."""
    images = list(source.images().items())
    step = -(-len(images) // len(names))
    for number, name in enumerate(names):
        (source.folder / name).mkdir(parents=True)
        for image_id, content in images[number * step : (number + 1) * step]:
            (source.folder / name / f"{image_id}.jpg").write_bytes(content)


def test_archives(ham_source, tmp_path):
    done = prepare(ham_source.write_archives().folder, tmp_path / "data")
    table = read_manifest(done.data)
    assert list(table.image_id) == sorted(ham_source.table.image_id)
    assert done.summary["per_class"] == {code: 8 for code in done.summary["per_class"]}
    assert done.summary["n_images"] == 56
    assert done.summary["n_lesions"] == 42
    assert done.summary["n_masks"] == 56
    assert table.split.isna().all()
    expected = ham_source.images()
    for row in table.itertuples():
        assert (done.data / row.path).read_bytes() == expected[row.image_id]
    mask = load_mask(done.data / table.mask_path[0])
    assert mask.shape == (30, 40)
    assert mask[15, 20] and not mask[0, 0]


@pytest.mark.parametrize(
    "names",
    [
        ("HAM10000_images_part_1", "HAM10000_images_part_2"),
        ("HAM10000_images",),
        ("HAM10000_images_combined_600x450",),
        (".",),
    ],
)
def test_folder_layouts(ham_source, tmp_path, names):
    ham_source.write_metadata()
    if names == (".",):
        for image_id, content in ham_source.images().items():
            (ham_source.folder / f"{image_id}.jpg").write_bytes(content)
    else:
        folders(ham_source, *names)
    assert prepare(ham_source.folder, tmp_path / "data").summary["n_images"] == 56


def test_kaggle_copy_with_folders_repeated_in_lower_case(ham_source, tmp_path):
    ham_source.write_metadata()
    folders(ham_source, "HAM10000_images_part_1", "HAM10000_images_part_2")
    folders(ham_source, "ham10000_images_part_1", "ham10000_images_part_2")
    assert prepare(ham_source.folder, tmp_path / "data").summary["n_images"] == 56


@pytest.mark.parametrize(
    ("name", "sep"),
    [
        ("HAM10000_metadata", ","),
        ("HAM10000_metadata.tab", "\t"),
        ("HAM10000_metadata.txt", "\t"),
        ("HAM10000_metadata", "\t"),
    ],
)
def test_metadata_forms(ham_source, name, sep):
    ham_source.table["dataset"] = "vidir_modern"
    ham_source.write_metadata(name, sep)
    table = read_metadata(ham_source.folder / name)
    assert list(table.columns) == [
        "lesion_id",
        "image_id",
        "dx",
        "dx_type",
        "age",
        "sex",
        "localization",
    ]
    assert len(table) == 56


def test_unknown_and_age_zero_become_missing(ham_source):
    ham_source.table.loc[0, ["age", "sex", "localization"]] = [0.0, "unknown", "unknown"]
    ham_source.table["age"] = ham_source.table.age.astype(object)
    ham_source.table.loc[1, "age"] = "unknown"
    ham_source.write_metadata()
    table = read_metadata(ham_source.folder / "HAM10000_metadata.csv")
    assert np.isnan(table.age[0]) and np.isnan(table.age[1])
    assert pd.isna(table.sex[0]) and pd.isna(table.localization[0])
    assert table.age[2] == ham_source.table.age[2]


def test_rows_without_image_are_reported_not_fatal(ham_source, tmp_path):
    ham_source.write_archives()
    extra = ham_source.table.iloc[[0]].assign(image_id="ISIC_9999999", lesion_id="HAM_extra")
    ham_source.table = pd.concat([ham_source.table, extra], ignore_index=True)
    ham_source.write_metadata()
    summary = prepare(ham_source.folder, tmp_path / "data").summary
    assert summary["n_missing_images"] == 1
    assert summary["missing_images"] == ["ISIC_9999999"]
    assert summary["n_images"] == 56


def test_second_run_does_nothing_and_keeps_the_split(ham_source, tmp_path):
    data = tmp_path / "data"
    prepare(ham_source.write_archives().folder, data)
    table = read_manifest(data)
    table["split"] = "train"
    table.to_csv(data / "manifest.csv", index=False)
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*") if p.is_file()}
    again = prepare(ham_source.folder, data)
    assert (again.added, again.reused) == (0, 56)
    assert {p: p.stat().st_mtime_ns for p in data.rglob("*") if p.is_file()} == before


def test_later_images_are_added_and_earlier_ones_not_decoded_again(ham_source, tmp_path):
    ham_source.write_archives()
    second = ham_source.folder / "HAM10000_images_part_2.zip"
    content = second.read_bytes()
    second.unlink()
    assert prepare(ham_source.folder, tmp_path / "data").added == 28
    second.write_bytes(content)
    again = prepare(ham_source.folder, tmp_path / "data")
    assert (again.added, again.reused) == (28, 28)
    assert len(read_manifest(tmp_path / "data")) == 56


def test_fingerprint_depends_on_content_not_on_layout(ham_source, tmp_path):
    first = prepare(ham_source.write_archives().folder, tmp_path / "first").summary
    for archive in ham_source.folder.glob("*images*.zip"):
        archive.unlink()
    folders(ham_source, "HAM10000_images")
    second = prepare(ham_source.folder, tmp_path / "second").summary
    assert first["fingerprint"] == second["fingerprint"]
    ham_source.table.loc[0, "dx"] = "bcc"
    ham_source.write_metadata()
    third = prepare(ham_source.folder, tmp_path / "third").summary
    assert third["fingerprint"] != first["fingerprint"]


def refused(source_folder: Path, data: Path, words: str) -> None:
    """The source is refused with these words, and nothing is left behind."""
    with pytest.raises(DataError, match=words):
        prepare(source_folder, data)
    assert [p.name for p in data.parent.iterdir() if "data" in p.name] == []


def test_missing_metadata(ham_source, tmp_path):
    ham_source.write_archives()
    (ham_source.folder / "HAM10000_metadata.csv").unlink()
    refused(ham_source.folder, tmp_path / "data", "No metadata found")


def test_missing_column(ham_source, tmp_path):
    ham_source.table = ham_source.table.drop(columns="lesion_id")
    folders(ham_source, "HAM10000_images")
    ham_source.write_metadata()
    refused(ham_source.folder, tmp_path / "data", "lacks the column 'lesion_id'")


def test_unknown_diagnosis(ham_source, tmp_path):
    ham_source.write_archives()
    ham_source.table.loc[3, "dx"] = "scc"
    ham_source.write_metadata()
    refused(ham_source.folder, tmp_path / "data", "line 5: the diagnosis 'scc' is none of")


def test_image_listed_twice(ham_source, tmp_path):
    ham_source.write_archives()
    ham_source.table.loc[3, "image_id"] = ham_source.table.image_id[2]
    ham_source.write_metadata()
    refused(ham_source.folder, tmp_path / "data", "lists image ISIC_0000002 twice")


def test_age_that_is_no_number(ham_source, tmp_path):
    ham_source.write_archives()
    ham_source.table["age"] = ham_source.table.age.astype(object)
    ham_source.table.loc[3, "age"] = "old"
    ham_source.write_metadata()
    refused(ham_source.folder, tmp_path / "data", "age 'old' is not a number")


def test_truncated_jpeg(ham_source, tmp_path):
    ham_source.write_metadata()
    folders(ham_source, "HAM10000_images")
    path = ham_source.folder / "HAM10000_images" / "ISIC_0000007.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    refused(ham_source.folder, tmp_path / "data", "ISIC_0000007.jpg cannot be decoded")


def test_image_without_metadata_row(ham_source, tmp_path):
    ham_source.write_archives()
    ham_source.table = ham_source.table.iloc[1:]
    ham_source.write_metadata()
    refused(ham_source.folder, tmp_path / "data", "ISIC_0000000")


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", "a/../../evil.jpg", "..\\evil.jpg"])
def test_archive_member_that_escapes(ham_source, tmp_path, name):
    ham_source.write_archives()
    with zipfile.ZipFile(ham_source.folder / "HAM10000_images_part_1.zip", "a") as archive:
        archive.writestr(name, b"x")
    refused(ham_source.folder, tmp_path / "data", "outside its folder")
    assert not (tmp_path / "evil.jpg").exists()


def test_corrupt_archive(ham_source, tmp_path):
    ham_source.write_archives()
    path = ham_source.folder / "HAM10000_images_part_1.zip"
    path.write_bytes(path.read_bytes()[:500])
    refused(ham_source.folder, tmp_path / "data", "not a complete zip archive")


def test_archive_with_a_damaged_member(ham_source, tmp_path):
    ham_source.write_archives()
    path = ham_source.folder / "HAM10000_images_part_1.zip"
    content = bytearray(path.read_bytes())
    content[300:310] = bytes(10)
    path.write_bytes(bytes(content))
    refused(ham_source.folder, tmp_path / "data", "damaged at ISIC_0000000")


def test_source_without_images_or_folder(ham_source, tmp_path):
    ham_source.write_metadata()
    refused(ham_source.folder, tmp_path / "data", "No image found")
    refused(tmp_path / "nowhere", tmp_path / "data", "is not a folder")


def test_foreign_folder_is_not_overwritten(ham_source, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not a prepared data set"):
        prepare(ham_source.write_archives().folder, tmp_path / "data")
    assert (tmp_path / "data" / "thesis.txt").read_text() == "mine"


def test_failed_second_run_leaves_the_first_result(ham_source, tmp_path):
    data = tmp_path / "data"
    prepare(ham_source.write_archives().folder, data)
    before = (data / "manifest.csv").read_text()
    path = ham_source.folder / "HAM10000_images_part_2.zip"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError):
        prepare(ham_source.folder, data)
    assert (data / "manifest.csv").read_text() == before
    assert read_json(data / "dataset.json")["n_images"] == 56


def test_test_set_beside_the_training_set_is_left_alone(ham_source):
    ham_source.write_archives()
    (ham_source.folder / "ISIC2018_Task3_Test_Images.zip").write_bytes(b"not even a zip")
    assert len(find_source(ham_source.folder).images) == 56

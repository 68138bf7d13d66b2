"""Preparing HAM10000 from every layout, and refusing what is wrong."""

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from cli_support import content
from conftest import HamSource, jpeg_bytes, mask_bytes, metadata
from dermlens.data.annotations import read_annotations
from dermlens.data.formats import Wanted
from dermlens.data.images import load_mask
from dermlens.data.manifest import read_manifest
from dermlens.data.preparation import prepare
from dermlens.data.sources import survey
from dermlens.data.splits import split_data_set
from dermlens.errors import DataError
from dermlens.files import read_json


def folders(source, *names):
    """Write the images into folders, the first half into the first."""
    images = list(source.images().items())
    step = -(-len(images) // len(names))
    for number, name in enumerate(names):
        (source.folder / name).mkdir(parents=True)
        for image_id, image in images[number * step : (number + 1) * step]:
            (source.folder / name / f"{image_id}.jpg").write_bytes(image)


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
    known = read_annotations(survey(ham_source.folder), ham_source.folder, Wanted())
    assert (known.format, len(known.table)) == ("ham10000", 56)
    expected = ham_source.table
    for column in ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"):
        assert list(known.table[column]) == list(expected[column]), column


def test_unknown_and_age_zero_become_missing(ham_source):
    ham_source.table.loc[0, ["age", "sex", "localization"]] = [0.0, "unknown", "unknown"]
    ham_source.table["age"] = ham_source.table.age.astype(object)
    ham_source.table.loc[1, "age"] = "unknown"
    ham_source.write_metadata()
    table = read_annotations(survey(ham_source.folder), ham_source.folder, Wanted()).table
    assert table.age[0] is None and table.age[1] is None
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
    found = survey(ham_source.folder)
    assert len(found.images) == 56
    assert found.left_out == {
        "belongs to the ISIC 2018 test set": ["ISIC2018_Task3_Test_Images.zip"]
    }


@pytest.fixture
def split_set(tmp_path: Path) -> tuple[HamSource, Path]:
    """A source, and the data set prepared from it and split."""
    source = HamSource(tmp_path / "source", metadata(per_class=9)).write_archives()
    data = prepare(source.folder, tmp_path / "data").data
    split_data_set(data)
    return source, data


def rewrite(archive: Path, change) -> None:
    """Write an archive anew with what ``change`` makes of its members."""
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(archive, "w") as new:
        for name, value in change(members).items():
            new.writestr(name, value)


def test_masks_replaced_in_the_source_are_taken_and_the_split_stays(split_set) -> None:
    source, data = split_set
    before = read_manifest(data)
    other = mask_bytes((60, 80))
    name = "masks/ISIC_0000003_segmentation.png"
    rewrite(source.folder / "HAM10000_segmentations.zip", lambda members: members | {name: other})
    again = prepare(source.folder, data)
    assert (data / name).read_bytes() == other
    assert (again.added, again.reused) == (0, len(before))
    pd.testing.assert_frame_equal(read_manifest(data), before)
    assert before.split.notna().all() and read_json(data / "dataset.json")["split"]["seed"] == 0
    assert (data / "near_duplicates.csv").is_file()


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
    ],
    ids=["deleted", "truncated", "overwritten"],
)
@pytest.mark.parametrize("name", ["images/ISIC_0000003.jpg", "masks/ISIC_0000003_segmentation.png"])
def test_what_was_damaged_in_the_data_set_is_restored(split_set, name, harm) -> None:
    source, data = split_set
    before = content(data)
    harm(data / name)
    prepare(source.folder, data)
    # The marker tells sizes as they were written.
    assert content(data) | {".dermlens": ""} == before | {".dermlens": ""}


def test_unpacked_source_is_compared_by_content_too(ham_source, tmp_path) -> None:
    ham_source.write_metadata()
    folders(ham_source, "images")
    data = prepare(ham_source.folder, tmp_path / "data").data
    path = ham_source.folder / "images" / "ISIC_0000005.jpg"
    changed = bytearray(path.read_bytes())
    changed[30] ^= 1  # A quantization table: another picture, as long as before.
    path.write_bytes(changed)
    again = prepare(ham_source.folder, data)
    assert (again.added, again.reused) == (1, 55)
    assert (data / "images" / "ISIC_0000005.jpg").read_bytes() == bytes(changed)


def test_changed_images_need_a_new_split(split_set) -> None:
    source, data = split_set
    image = jpeg_bytes(999)
    archive = source.folder / "HAM10000_images_part_1.zip"
    rewrite(archive, lambda members: members | {"ISIC_0000003.jpg": image})
    assert prepare(source.folder, data).added == 1
    assert read_manifest(data).split.isna().all()
    assert not (data / "near_duplicates.csv").exists()


def test_name_that_stands_twice_in_an_archive_must_be_one_file(split_set) -> None:
    source, data = split_set
    before = content(data)
    path = source.folder / "HAM10000_images_part_1.zip"
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("ISIC_0000003.jpg", source.images()["ISIC_0000003"])
    assert prepare(source.folder, data).added == 0
    with (
        zipfile.ZipFile(path, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("ISIC_0000003.jpg", jpeg_bytes(999))
    with pytest.raises(DataError, match=r"holds two different files ISIC_0000003\.jpg"):
        prepare(source.folder, data)
    assert content(data) == before


def test_image_that_stands_in_two_archives_must_be_one_file(split_set) -> None:
    source, data = split_set
    before = content(data)
    for image, words in ((source.images()["ISIC_0000003"], None), (jpeg_bytes(999), "differ")):
        with zipfile.ZipFile(source.folder / "HAM10000_images_part_3.zip", "w") as archive:
            archive.writestr("ISIC_0000003.jpg", image)
        if words is None:
            done = prepare(source.folder, data)
            assert done.added == 0
        else:
            with pytest.raises(DataError, match=r"part_1\.zip:ISIC_0000003\.jpg and .* differ"):
                prepare(source.folder, data)
        assert content(data) == before


def test_data_set_below_its_source_is_not_taken_for_a_source(ham_source) -> None:
    data = ham_source.write_archives().folder / "A"
    prepare(ham_source.folder, data)
    (data / "images" / "ISIC_0000003.jpg").write_bytes(jpeg_bytes(999))
    prepare(ham_source.folder, data)
    expected = ham_source.images()["ISIC_0000003"]
    assert (data / "images" / "ISIC_0000003.jpg").read_bytes() == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from dermlens.data import preparation
preparation._write_tables = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
preparation.prepare(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_nothing_of_a_killed_run_gets_into_the_next(ham_source, tmp_path) -> None:
    ham_source.write_archives()
    table = metadata(per_class=2).assign(image_id=lambda t: "B" + t.image_id)
    other = HamSource(tmp_path / "other", table).write_archives()
    command = [sys.executable, "-c", KILLED, str(ham_source.folder), str(tmp_path / "data")]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert any(tmp_path.glob(".data.*/images/ISIC_0000000.jpg"))
    prepare(other.folder, tmp_path / "data")
    images = {path.stem for path in (tmp_path / "data" / "images").iterdir()}
    assert images == set(table.image_id)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "other", "data"}


def test_full_disk_leaves_the_older_data_set_and_no_debris(split_set, monkeypatch) -> None:
    source, data = split_set
    (data / "images" / "ISIC_0000003.jpg").unlink()
    before = content(data.parent)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dermlens.data.preparation.write_manifest", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(source.folder, data)
    assert content(data.parent) == before


def test_files_put_into_the_data_set_are_not_lost(split_set) -> None:
    source, data = split_set
    (data / "images" / "mine.jpg").write_bytes(b"photograph")
    before = content(data)
    prepare(source.folder, data)  # Nothing to do, so nothing is in the way.
    (source.folder / "HAM10000_images_part_2.zip").unlink()
    with pytest.raises(DataError, match=r"have changed since: images/mine\.jpg"):
        prepare(source.folder, data)
    assert content(data) == before


@pytest.mark.parametrize("own", [None, "images/mine.jpg", "notes.txt"])
def test_data_set_of_an_earlier_version_is_replaced_only_if_nothing_else_is_in_it(
    split_set, own
) -> None:
    source, data = split_set
    (data / ".dermlens").unlink()
    (source.folder / "HAM10000_images_part_2.zip").unlink()
    if own is None:
        assert prepare(source.folder, data).reused == 42
        return
    (data / own).write_bytes(b"mine")
    before = content(data)
    with pytest.raises(DataError, match=own):
        prepare(source.folder, data)
    assert content(data) == before


def test_drawn_data_set_is_not_replaced(ham_source, tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text('{"source": "synthetic"}')
    with pytest.raises(DataError, match="is not a prepared data set"):
        prepare(ham_source.write_archives().folder, tmp_path / "data")


def test_two_runs_at_once_leave_one_complete_data_set(ham_source, tmp_path) -> None:
    ham_source.write_archives()
    code = "import sys; from dermlens.cli import main; main(sys.argv[1:])"
    line = ["data", "prepare", str(ham_source.folder), "--out", str(tmp_path / "data")]
    runs = [
        subprocess.Popen([sys.executable, "-c", code, *line], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for run in runs:
        _, said = run.communicate()
        assert run.returncode == 0 or (run.returncode == 2 and "is using" in said)
    assert 0 in [run.returncode for run in runs]
    expected = {f"{name}.jpg": image for name, image in ham_source.images().items()}
    held = {path.name: path.read_bytes() for path in (tmp_path / "data" / "images").iterdir()}
    assert held == expected
    assert {path.name for path in tmp_path.iterdir()} == {"source", "data"}

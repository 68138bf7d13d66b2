"""The ``dermlens data`` commands: what they write, and what they refuse without a trace."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_support import content, dermlens, refused
from conftest import HamSource, metadata

# What is wrong with a source, and words of the sentence that says so.


def without_metadata(source: HamSource) -> None:
    (source.folder / "HAM10000_metadata.csv").unlink()


def without_a_column(source: HamSource) -> None:
    source.table = source.table.drop(columns="dx")
    source.write_metadata()


def with_unknown_diagnosis(source: HamSource) -> None:
    source.table.loc[3, "dx"] = "scc"
    source.write_metadata()


def with_truncated_image(source: HamSource) -> None:
    whole = source.images()["ISIC_0000007"]
    path = source.folder / "HAM10000_images_part_1.zip"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["ISIC_0000007.jpg"] = whole[:-200]
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, value)


def with_image_without_row(source: HamSource) -> None:
    source.table = source.table.iloc[1:]
    source.write_metadata()


def with_escaping_member(source: HamSource) -> None:
    with zipfile.ZipFile(source.folder / "HAM10000_images_part_1.zip", "a") as archive:
        archive.writestr("../evil.jpg", b"x")


def with_corrupt_archive(source: HamSource) -> None:
    path = source.folder / "HAM10000_images_part_2.zip"
    path.write_bytes(path.read_bytes()[:500])


def without_anything(source: HamSource) -> None:
    shutil.rmtree(source.folder)


SOURCES: dict[Callable[[HamSource], None], str] = {
    without_metadata: "No metadata found",
    without_a_column: "lacks the column 'dx'",
    with_unknown_diagnosis: "the diagnosis 'scc' is none of",
    with_truncated_image: "ISIC_0000007.jpg cannot be decoded",
    with_image_without_row: "ISIC_0000000",
    with_escaping_member: "outside its folder",
    with_corrupt_archive: "not a complete zip archive",
    without_anything: "is not a folder",
}


@pytest.mark.parametrize("bend", SOURCES, ids=lambda bend: bend.__name__)
def test_bad_sources_are_refused_and_leave_nothing(
    ham_source: HamSource, tmp_path: Path, bend: Callable[[HamSource], None]
) -> None:
    bend(ham_source.write_archives())
    before = content(tmp_path)
    refused(
        dermlens("data", "prepare", ham_source.folder, "--out", tmp_path / "data"), SOURCES[bend]
    )
    assert content(tmp_path) == before
    assert not (tmp_path.parent / "evil.jpg").exists()


def test_failed_preparation_leaves_the_older_data_set(
    ham_source: HamSource, tmp_path: Path
) -> None:
    prepare = ("data", "prepare", ham_source.write_archives().folder, "--out", tmp_path / "data")
    assert dermlens(*prepare).code == 0
    with_corrupt_archive(ham_source)
    before = content(tmp_path)
    refused(dermlens(*prepare), "not a complete zip archive")
    assert content(tmp_path) == before


def test_class_with_too_few_lesions_cannot_be_split(tmp_path: Path) -> None:
    table = metadata(per_class=3)
    table = table[(table.dx != "df") | (table.lesion_id == "HAM_df001")].reset_index(drop=True)
    source = HamSource(tmp_path / "source", table).write_archives()
    data = tmp_path / "data"
    assert dermlens("data", "prepare", source.folder, "--out", data).code == 0
    before = content(tmp_path)
    refused(dermlens("data", "split", data), "The diagnosis df has only 1 lesion(s); 3 are needed")
    assert content(tmp_path) == before


def test_demo_data_can_be_drawn(tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    outcome = dermlens("data", "synthetic", "--out", out, "--images", 10, "--size", "32x48")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Drew 10 synthetic images of ")
    assert len(list((out / "structures").iterdir())) == 10

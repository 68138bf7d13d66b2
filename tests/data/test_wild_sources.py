"""Folders and archives as they are: outlines beside photographs, copies, odd names, odd files."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cli_support import content, dermlens, refused
from conftest import HamSource, jpeg_bytes, mask_bytes
from dermlens.data.images import load_mask
from dermlens.data.manifest import read_manifest
from dermlens.data.preparation import prepare
from dermlens.data.sources import survey
from dermlens.errors import DataError
from dermlens.files import read_json
from wild_datasets import own_table, with_outline


def ham(source: HamSource, count: int = 8) -> Path:
    """A flat folder of the first images and their metadata."""
    images = list(source.images().items())[:count]
    source.table = source.table.iloc[:count]
    source.write_metadata()
    (source.folder / "images").mkdir()
    for image_id, image in images:
        (source.folder / "images" / f"{image_id}.jpg").write_bytes(image)
    return source.folder


OUTLINES = (
    *("gt/ISIC_0000001.png", "masks/ISIC_0000001.png", "Lesion masks/ISIC_0000001.PNG"),
    "ISIC2018_Task1_Training_GroundTruth/ISIC_0000001.png",
    *("images/ISIC_0000001_Segmentation.PNG", "images/ISIC_0000001_segmentation.jpg"),
    *("images/ISIC_0000001_mask.bmp", "images/ISIC_0000001_seg.png"),
    "HAM10000_segmentations_lesion_tschandl/ISIC_0000001_segmentation.png",
)


@pytest.mark.parametrize("name", OUTLINES)
def test_an_outline_is_never_taken_for_the_photograph(ham_source, tmp_path, name) -> None:
    folder = ham(ham_source)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    Image.open(io.BytesIO(mask_bytes())).save(path)
    data = prepare(folder, tmp_path / "data").data
    table = read_manifest(data).set_index("image_id")
    assert len(table) == 8 and table.mask_path.notna().sum() == 1
    photograph = folder / "images" / "ISIC_0000001.jpg"
    assert (data / table.path["ISIC_0000001"]).read_bytes() == photograph.read_bytes()
    assert (data / table.mask_path["ISIC_0000001"]).read_bytes() == path.read_bytes()
    assert load_mask(data / table.mask_path["ISIC_0000001"])[15, 20]


def test_pictures_of_superpixels_and_attributes_are_left_out_and_said(ham_source, tmp_path) -> None:
    folder = ham(ham_source)
    for name in ("ISIC_0000001_superpixels.png", "ISIC_0000001_attribute_globules.png"):
        (folder / "images" / name).write_bytes(mask_bytes())
    summary = prepare(folder, tmp_path / "data").summary
    assert summary["n_images"] == 8 and summary["n_masks"] == 0
    why = "shows superpixels or attributes, not a photograph"
    assert summary["left_out_files"] == {why: 2}


def test_a_lesions_photograph_is_no_outline_by_its_name_alone(tmp_path) -> None:
    for name in ("a_lesion.jpg", "b_seg.jpg", "latest/c.jpg", "contest test/d.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg_bytes(1))
    found = survey(tmp_path)
    assert sorted(found.images) == ["a_lesion", "b_seg", "c", "d"] and not found.outlines


def test_two_different_files_for_one_image_are_refused(ham_source, tmp_path) -> None:
    folder = ham(ham_source)
    before = content(tmp_path)
    for name in ("pictures/ISIC_0000001.jpg", "images/ISIC_0000001.png"):
        other = folder / name
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(mask_bytes())
        with pytest.raises(DataError, match=r"differ, and either could be the image ISIC_0000001"):
            prepare(folder, tmp_path / "data")
        other.unlink()
    (folder / "pictures").rmdir()
    assert content(tmp_path) == before


def test_the_same_file_in_two_places_is_said(ham_source, tmp_path) -> None:
    folder = ham(ham_source)
    (folder / "copy").mkdir()
    (folder / "copy" / "ISIC_0000001.jpg").write_bytes(
        (folder / "images" / "ISIC_0000001.jpg").read_bytes()
    )
    outcome = dermlens("data", "prepare", folder, "--out", tmp_path / "data")
    assert outcome.code == 0
    assert "1 images occur in several places with the same content; one is used." in outcome.out


def test_two_different_outlines_of_one_image_are_refused(ham_source, tmp_path) -> None:
    folder = ham(ham_source)
    for name, value in (("gt", mask_bytes()), ("masks", mask_bytes((60, 80)))):
        (folder / name).mkdir()
        (folder / name / "ISIC_0000001.png").write_bytes(value)
    with pytest.raises(DataError, match="either could be the outline of ISIC_0000001"):
        prepare(folder, tmp_path / "data")


@pytest.mark.parametrize("name", ["latest", "Contest 2018", "test", "my test images"])
def test_test_in_a_name_makes_no_image_vanish(ham_source, tmp_path, name) -> None:
    folder = ham(ham_source)
    (folder / "images").rename(folder / name)
    assert prepare(folder, tmp_path / "data").summary["n_images"] == 8


@pytest.mark.parametrize("name", ["ISIC2018_Task3_Test_Images", "ISIC2018_Task3_Test_Input.zip"])
def test_only_the_isic_2018_test_set_is_set_apart_and_that_is_said(
    ham_source, tmp_path, name
) -> None:
    folder = ham(ham_source)
    if name.endswith(".zip"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("ISIC_0034524.jpg", jpeg_bytes(5))
    else:
        (folder / name).mkdir()
        (folder / name / "ISIC_0034524.jpg").write_bytes(jpeg_bytes(5))
    outcome = dermlens("data", "prepare", folder, "--out", tmp_path / "data")
    assert outcome.code == 0, outcome.err
    assert "Left out: 1 file that belongs to the ISIC 2018 test set" in outcome.out
    assert len(read_manifest(tmp_path / "data")) == 8


def test_the_isic_2018_test_set_alone_can_be_prepared(tmp_path) -> None:
    folder = tmp_path / "test"
    (folder / "ISIC2018_Task3_Test_Input").mkdir(parents=True)
    codes = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    rows = []
    for number, code in enumerate(codes):
        name = f"ISIC_{number:07d}"
        (folder / "ISIC2018_Task3_Test_Input" / f"{name}.jpg").write_bytes(jpeg_bytes(number))
        rows.append({"image": name, **{c: float(c == code) for c in codes}})
    pd.DataFrame(rows).to_csv(folder / "ISIC2018_Task3_Test_GroundTruth.csv", index=False)
    done = prepare(folder, tmp_path / "data")
    assert done.summary["source"] == "isic2018" and done.summary["n_images"] == 7
    assert done.summary["per_class"]["akiec"] == 1


# Outlines -------------------------------------------------------------------------------------

SHAPE = np.zeros((30, 40), bool)
SHAPE[8:22, 10:30] = True


def palette(inside: int, colors: list[int]) -> Image.Image:
    image = Image.fromarray(np.where(SHAPE, inside, 1 - inside).astype(np.uint8), "P")
    image.putpalette(colors)
    return image


def see_through(color: tuple[int, int, int]) -> Image.Image:
    pixels = np.zeros((30, 40, 4), np.uint8)
    pixels[..., :3] = color
    pixels[..., 3] = SHAPE * 255
    return Image.fromarray(pixels)


def drawn_with_soft_edge() -> Image.Image:
    pixels = np.zeros((30, 40, 4), np.uint8)
    pixels[SHAPE] = 255
    pixels[4:26, 5:35, 3] = 255
    return Image.fromarray(pixels)


SHAPES = {
    "0/255": Image.fromarray(SHAPE * np.uint8(255)),
    "1 bit": Image.fromarray(SHAPE),
    "0/1": Image.fromarray(SHAPE * np.uint8(1)),
    "0/127": Image.fromarray(SHAPE * np.uint8(127)),
    "60/180": Image.fromarray(SHAPE * np.uint8(120) + np.uint8(60)),
    "16 bits 0/1": Image.fromarray(SHAPE.astype(np.uint16)),
    "16 bits": Image.fromarray(SHAPE * np.uint16(65535)),
    "red": Image.fromarray(SHAPE[..., None] * np.array([255, 0, 0], np.uint8)),
    "palette in red": palette(1, [0, 0, 0, 255, 0, 0]),
    "palette, numbers inverted": palette(0, [255, 255, 255, 0, 0, 0]),
    "white with alpha": see_through((255, 255, 255)),
    "black with alpha": see_through((0, 0, 0)),
    "white on black with alpha": drawn_with_soft_edge(),
    "opaque alpha": Image.merge(
        "RGBA", [Image.fromarray(SHAPE * np.uint8(255))] * 3 + [Image.new("L", (40, 30), 255)]
    ),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [None, (60, 80)])
def test_every_kind_of_outline_is_the_shape_that_people_see(tmp_path, name, size) -> None:
    SHAPES[name].save(tmp_path / "mask.png")
    found = load_mask(tmp_path / "mask.png", size)
    expected = SHAPE if size is None else SHAPE.repeat(2, axis=0).repeat(2, axis=1)
    assert (found != expected).mean() < (1e-9 if size is None else 0.02)


def test_noise_of_a_jpeg_without_lesion_is_no_lesion(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 12, (30, 40), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "empty.jpg", quality=95)
    assert not load_mask(tmp_path / "empty.jpg").any()
    Image.fromarray(255 - noise).save(tmp_path / "full.jpg", quality=95)
    assert load_mask(tmp_path / "full.jpg").all()
    Image.fromarray(np.where(SHAPE, 255, 0).astype(np.uint8)).save(tmp_path / "mask.jpg")
    assert (load_mask(tmp_path / "mask.jpg") != SHAPE).mean() < 0.02


def test_wrong_outlines_are_reported_by_id(ham_source, tmp_path) -> None:
    folder = ham(ham_source)
    images = {
        "ISIC_0000000": np.zeros((30, 40), np.uint8),
        "ISIC_0000001": np.full((30, 40), 255, np.uint8),
        "ISIC_0000002": np.where(SHAPE, 0, 255).astype(np.uint8),
        "ISIC_0000003": np.where(SHAPE, 255, 0).astype(np.uint8).T,
        "ISIC_0000004": np.where(SHAPE, 1, 0).astype(np.uint8),
    }
    (folder / "masks").mkdir()
    for name, values in images.items():
        Image.fromarray(values).save(folder / "masks" / f"{name}.png")
    data = tmp_path / "data"
    outcome = dermlens("data", "prepare", folder, "--out", data)
    assert outcome.code == 0, outcome.err
    flaws = read_json(data / "dataset.json")["outline_flaws"]
    found = {flaw: list(ids) for flaw, ids in flaws.items()}
    assert found == {
        "empty": ["ISIC_0000000"],
        "full": ["ISIC_0000001"],
        "corners are lesion": ["ISIC_0000002"],
        "another shape": ["ISIC_0000003"],
    }
    for flaw, ids in found.items():
        assert f"{flaw}: {ids[0]}" in outcome.out
    table = read_manifest(data).set_index("image_id")
    # What shows no lesion, or another frame, is no outline; a lesion may fill its frame.
    with_mask = ["ISIC_0000001", "ISIC_0000002", "ISIC_0000004"]
    assert list(table.index[table.mask_path.notna()]) == with_mask
    before = content(data)
    assert prepare(folder, data).added == 0 and content(data) == before
    Image.fromarray(images["ISIC_0000004"]).save(folder / "masks" / "ISIC_0000000.png")
    prepare(folder, data)
    assert read_manifest(data).set_index("image_id").mask_path.notna()["ISIC_0000000"]


# Tables that contradict themselves or lead elsewhere ---------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../ISIC_0000001", "leads outside"),
        ("/etc/passwd", "leads outside"),
        ("..\\ISIC_0000001", "leads outside"),
        ("C:\\photos\\a.jpg", "leads outside"),
        ("=HYPERLINK(1)", "formula"),
        ("l" * 300, "longer than"),
        ("a\x00b", "cannot be the name"),
    ],
)
def test_an_id_that_leads_elsewhere_is_refused(ham_source, tmp_path, name, words) -> None:
    folder = ham(ham_source)
    ham_source.table = ham_source.table.reset_index(drop=True)
    ham_source.table.loc[3, "image_id"] = name
    ham_source.write_metadata()
    outcome = dermlens("data", "prepare", folder, "--out", tmp_path / "data")
    refused(outcome, words)
    assert "line 5" in outcome.err
    assert not (tmp_path / "data").exists()


def test_a_lesion_with_two_diagnoses_is_said(ham_source, tmp_path) -> None:
    folder = ham(ham_source)
    first = ham_source.table[ham_source.table.lesion_id == ham_source.table.lesion_id[0]].index
    assert len(first) == 2
    ham_source.table = ham_source.table.copy()
    ham_source.table.loc[first[1], "dx"] = "mel"
    ham_source.write_metadata()
    outcome = dermlens("data", "prepare", folder, "--out", tmp_path / "data")
    assert "1 lesion has images with different diagnoses" in outcome.out
    lesion = ham_source.table.lesion_id[0]
    assert read_json(tmp_path / "data" / "dataset.json")["conflicting_lesions"] == [lesion]
    assert lesion in outcome.out


def test_the_same_picture_under_two_diagnoses_is_said(ham_source, tmp_path) -> None:
    folder = ham(ham_source, 12)
    codes = ham_source.table.dx.unique()
    one, two = (
        ham_source.table.image_id[ham_source.table.dx == code].iloc[0] for code in codes[:2]
    )
    (folder / "images" / f"{two}.jpg").write_bytes((folder / "images" / f"{one}.jpg").read_bytes())
    outcome = dermlens("data", "prepare", folder, "--out", tmp_path / "data")
    assert f"{one}, {two}" in outcome.out and "the same picture" in outcome.out
    assert read_json(tmp_path / "data" / "dataset.json")["conflicting_images"] == [[one, two]]


# Files that no data set should hold --------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="no named pipes")
def test_pipes_devices_and_other_files_are_left_out_and_said(ham_source, tmp_path) -> None:
    folder = ham(ham_source)
    os.mkfifo(folder / "images" / "pipe.jpg")
    (folder / "images" / "null.jpg").symlink_to("/dev/zero")
    (folder / "images" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "photo.psd").write_bytes(b"x")
    outcome = dermlens("data", "prepare", folder, "--out", tmp_path / "data")
    assert outcome.code == 0, outcome.err
    for words in (
        "1 file that is a named pipe (pipe.jpg)",
        "1 file that is a device (null.jpg)",
        "1 file that cannot be read (gone.jpg)",
        "1 file that is of the type .psd (photo.psd)",
    ):
        assert words in outcome.out


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_not_utf8_are_a_sentence(ham_source, tmp_path) -> None:
    folder = ham(ham_source)
    odd = folder / "images" / os.fsdecode(b"mole_\xff.jpg")
    odd.write_bytes(jpeg_bytes(1))
    refused(dermlens("data", "prepare", folder, "--out", tmp_path / "data"), "mole_\\udcff")
    own = own_table(tmp_path / "own")
    odd.rename(own / "bilder" / odd.name)
    columns = "image=Datei,label=Befund"
    outcome = dermlens("data", "prepare", own, "--out", tmp_path / "other", "--columns", columns)
    assert outcome.code == 0 and "mole_\\udcff.jpg" in outcome.out
    assert len(read_manifest(tmp_path / "other")) == 12


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_damaged_member_is_a_sentence_and_leaves_nothing(ham_source, tmp_path, method) -> None:
    folder = ham(ham_source)
    name = "ISIC_0000001.jpg"
    image = (folder / "images" / name).read_bytes()
    (folder / "images" / name).unlink()
    archive = folder / "more.zip"
    with zipfile.ZipFile(archive, "w", method) as opened:
        opened.writestr(name, image)
    whole = archive.read_bytes()
    start = whole.index(name.encode()) + len(name)
    before = content(tmp_path)
    generator = np.random.default_rng(0)
    for _ in range(12):
        damaged = bytearray(whole)
        place = start + int(generator.integers(0, len(image) // 2))
        damaged[place : place + 9] = generator.bytes(9)
        archive.write_bytes(damaged)
        outcome = dermlens("data", "prepare", folder, "--out", tmp_path / "data")
        refused(outcome, "more.zip")
    archive.write_bytes(whole)
    assert content(tmp_path) == before


def test_a_member_of_an_unknown_kind_of_compression_is_a_sentence(ham_source, tmp_path) -> None:
    folder = ham(ham_source)
    archive = folder / "images.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("ISIC_0000001.jpg", (folder / "images" / "ISIC_0000001.jpg").read_bytes())
    damaged = bytearray(archive.read_bytes())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        damaged[damaged.index(mark) + place] = 97
    archive.write_bytes(damaged)
    (folder / "images" / "ISIC_0000001.jpg").unlink()
    refused(dermlens("data", "prepare", folder, "--out", tmp_path / "data"), "is damaged at ISIC_")


def test_predict_on_a_folder_leaves_outlines_out(tmp_path) -> None:
    from dermlens.serve.prediction import find_images

    with_outline("images/a.jpg", "images/a_Segmentation.PNG", tmp_path)
    with_outline("images/b.jpg", "gt/b.png", tmp_path)
    (tmp_path / "images" / "a_superpixels.png").write_bytes(mask_bytes())
    found = [path.relative_to(tmp_path).as_posix() for path in find_images([tmp_path])]
    assert found == ["images/a.jpg", "images/b.jpg"]
    # A file that is named is meant, whatever its name.
    assert len(find_images([tmp_path / "gt" / "b.png"])) == 1

"""DICOM on the command line: predicted, explained, turned into pictures; no patient anywhere."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import dcmread

from cli_support import dermlens, refused
from dicom_support import MARK, dicom, picture
from serving_support import save_untrained

MARKED = MARK.split("^")[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """One photograph with its spacing, one file of three frames, one damaged."""
    folder = tmp_path / "study"
    folder.mkdir()
    dicom(folder / "one.dcm", pixels=picture(48, 64), PixelSpacing=[0.02, 0.03])
    frames = np.stack([picture(48, 64, shift=40 * k) for k in range(3)])
    dicom(folder / "many.dcm", pixels=frames, NumberOfFrames=3)
    damaged = dicom(tmp_path / "whole.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(damaged[: len(damaged) // 2])
    (tmp_path / "whole.dcm").unlink()
    return folder


def nothing_of_the_patient(folder: Path, *said: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert MARKED.encode() not in path.read_bytes(), path
    assert all(MARKED not in text and "19700102" not in text for text in said)


def test_every_frame_is_a_row_and_damage_is_one(bundle: Path, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = dermlens("predict", bundle, study, "--out", out / "predictions.csv")
    assert done.code == 1
    table = pd.read_csv(out / "predictions.csv")
    assert [Path(name).name for name in table["path"]] == [
        *("cut.dcm", "many@1.dcm", "many@2.dcm", "many@3.dcm", "one.dcm")
    ]
    assert table.error.notna().tolist() == [True, False, False, False, False]
    # The same pixels as a PNG file give the same answer.
    Image.fromarray(picture(48, 64)).save(tmp_path / "same.png")
    dermlens("predict", bundle, tmp_path / "same.png", "--out", out / "png.csv")
    same = pd.read_csv(out / "png.csv")
    columns = [name for name in table if str(name).startswith("probability_")]
    assert np.allclose(table.loc[4, columns].to_numpy(float), same.loc[0, columns].to_numpy(float))
    nothing_of_the_patient(out, *done[1:])


def test_explanations_become_dicom_objects(bundle: Path, study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = ("explain", bundle, study / "one.dcm", "--methods", "grad_cam", "--out", out, "--dicom")
    done = dermlens(*line)
    assert done.code == 0
    facts = json.loads((out / "one" / "explanation.json").read_text())
    assert facts["pixel_spacing_mm"] == [0.02, 0.03]
    stored = np.load(out / "one" / "attributions.npz")["grad_cam"]
    found = dcmread(out / "one" / "maps.dcm")
    assert np.array_equal(np.frombuffer(found.FloatPixelData, np.float32), stored.ravel())
    assert (out / "one" / "regions.dcm").is_file()
    report = str(dcmread(out / "one" / "report.dcm"))
    assert all(name in report for name in ("Melanocytic nevus", "Dermatofibroma", "Most probable"))
    nothing_of_the_patient(out, *done[1:])
    # A second run replaces the folder; --keep-patient copies what was left out.
    assert dermlens(*line, "--keep-patient").code == 0
    assert str(dcmread(out / "one" / "report.dcm").PatientName) == MARK


def test_dicom_objects_need_dicom_images(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    done = dermlens("explain", bundle, tmp_path / "a.png", "--dicom", "--out", tmp_path / "out")
    refused(done, "a.png is no DICOM file")
    assert not (tmp_path / "out").exists()


def test_pictures_and_a_table_for_a_data_set(study: Path, tmp_path: Path) -> None:
    dicom(study / "other.dcm", PatientID="ANOTHER")
    out = tmp_path / "pictures"
    done = dermlens("data", "dicom", study, "--out", out)
    assert done.code == 0 and "Left out:" in done.out and "Wrote 5 pictures" in done.out
    table = pd.read_csv(out / "dicom.csv")
    assert list(table.frame) == [1, 2, 3, 1, 1]
    # Two patients, whoever they are.
    assert list(table.patient) == ["P00001"] * 4 + ["P00002"]
    assert table.row_spacing_mm.dropna().tolist() == [0.02]
    for name in table.image:
        assert Image.open(out / "images" / f"{name}.png").mode == "RGB"
    assert not any("one" in name or "many" in name for name in table.image)
    nothing_of_the_patient(out, *done[1:])
    named = dermlens("data", "dicom", study, "--out", tmp_path / "named", "--keep-names")
    assert named.code == 0
    assert "many@2" in set(pd.read_csv(tmp_path / "named" / "dicom.csv").image)


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(dermlens("data", "dicom", tmp_path / "empty", "--out", tmp_path / "o"), "no DICOM file")
    (tmp_path / "empty" / "bad.dcm").write_bytes(b"\0" * 128 + b"DICMxx")
    refused(dermlens("data", "dicom", tmp_path / "empty", "--out", tmp_path / "o"), "can be read")
    assert not (tmp_path / "o").exists()

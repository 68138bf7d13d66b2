"""DICOM: frames of every kind as pictures, objects derived from them, nothing of the patient."""

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

from dermlens.data.dicom import frame_paths, is_dicom, picture_bytes, pixel_spacing, split_frame
from dermlens.errors import DataError
from dermlens.report.dicom_objects import DicomAnswer, write_dicom_objects
from dicom_support import MARK, dicom, picture


def compressed(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return encapsulate([stream.getvalue()])


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture_bytes(path))))


def ybr(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("YCbCr"))


def test_uncompressed_colors_come_out_as_they_are(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm")
    assert is_dicom(path.read_bytes()) and not is_dicom(b"DICM" * 4)
    assert np.array_equal(read(path), picture())
    planes = np.moveaxis(picture(), -1, 0).copy()
    changed = dicom(tmp_path / "b.dcm", PlanarConfiguration=1, PixelData=planes.tobytes())
    assert np.array_equal(read(changed), picture())


def test_ybr_jpeg_and_jpeg_2000_are_decoded(tmp_path: Path) -> None:
    full = dicom(
        tmp_path / "ybr.dcm",
        PhotometricInterpretation="YBR_FULL",
        PixelData=ybr(picture()).tobytes(),
    )
    assert np.abs(read(full).astype(int) - picture()).max() <= 3
    jpeg = dicom(
        tmp_path / "jpeg.dcm",
        syntax=JPEGBaseline8Bit,
        PhotometricInterpretation="YBR_FULL_422",
        PixelData=compressed(picture(), "JPEG", quality=95),
    )
    assert np.abs(read(jpeg).astype(int) - picture()).mean() < 3
    lossless = dicom(
        tmp_path / "j2k.dcm",
        syntax=JPEG2000Lossless,
        PhotometricInterpretation="YBR_RCT",
        PixelData=compressed(picture(), "JPEG2000", irreversible=False, no_jp2=True, mct=1),
    )
    assert np.array_equal(read(lossless), picture())


def test_gray_of_twelve_bits_inverted_gray_and_palettes(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 24 * 32).reshape(24, 32).astype(np.uint16)
    gray = read(dicom(tmp_path / "g.dcm", pixels=ramp, BitsStored=12, HighBit=11))
    assert gray.shape == (24, 32, 3) and gray[0, 0, 0] == 0 and gray[-1, -1, 0] == 255
    assert np.abs(gray[..., 1] - ramp / 4095 * 255).max() <= 0.5
    inverted = dicom(
        tmp_path / "i.dcm", pixels=ramp, BitsStored=12, HighBit=11,
        PhotometricInterpretation="MONOCHROME1",
    )  # fmt: skip
    assert np.array_equal(read(inverted), 255 - gray)
    index = (np.arange(24 * 32).reshape(24, 32) % 3).astype(np.uint8)
    tables = {
        f"{color}PaletteColorLookupTableDescriptor": [3, 0, 16]
        for color in ("Red", "Green", "Blue")
    }
    colors = {"Red": [65535, 0, 0], "Green": [0, 65535, 0], "Blue": [0, 0, 32896]}
    data = {
        f"{name}PaletteColorLookupTableData": np.array(values, np.uint16).tobytes()
        for name, values in colors.items()
    }
    palette = dicom(
        tmp_path / "p.dcm",
        pixels=index,
        PhotometricInterpretation="PALETTE COLOR",
        **tables,
        **data,
    )
    expected = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 128]], np.uint8)[index]
    assert np.array_equal(read(palette), expected)


def test_every_frame_is_a_picture_of_its_own(tmp_path: Path) -> None:
    frames = np.stack([picture(shift=k) for k in range(3)])
    path = dicom(tmp_path / "many.dcm", pixels=frames, NumberOfFrames=3)
    paths = frame_paths(path)
    assert [one.name for one in paths] == ["many@1.dcm", "many@2.dcm", "many@3.dcm"]
    for one, expected in zip(paths, frames, strict=True):
        assert np.array_equal(read(one), expected)
    assert frame_paths(dicom(tmp_path / "one.dcm")) == [tmp_path / "one.dcm"]
    with pytest.raises(DataError, match=r"holds 3 frames\. Choose one, such as many@1\.dcm"):
        picture_bytes(path)
    with pytest.raises(DataError, match="has no frame 9; it holds 3"):
        picture_bytes(tmp_path / "many@9.dcm")
    # A file that really has such a name is itself.
    real = shutil.copy(tmp_path / "one.dcm", tmp_path / "real@2.dcm")
    assert split_frame(Path(real)) == (Path(real), None)


def test_spacing_is_told_where_it_is_known(tmp_path: Path) -> None:
    assert pixel_spacing(dicom(tmp_path / "n.dcm")) is None
    assert pixel_spacing(dicom(tmp_path / "s.dcm", PixelSpacing=[0.02, 0.03])) == (0.02, 0.03)
    measures = Dataset()
    measures.PixelSpacing = [0.1, 0.2]
    group = Dataset()
    group.PixelMeasuresSequence = [measures]
    shared = dicom(tmp_path / "g.dcm", SharedFunctionalGroupsSequence=[group])
    assert pixel_spacing(shared) == (0.1, 0.2)
    assert pixel_spacing(dicom(tmp_path / "z.dcm", PixelSpacing=[0.0, 0.03])) is None


@pytest.mark.parametrize("length", [140, 400, 900, 1500])
def test_damaged_files_are_a_sentence_without_their_content(tmp_path: Path, length: int) -> None:
    whole = dicom(tmp_path / "whole.dcm").read_bytes()
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole[:length])
    with pytest.raises(DataError) as told:
        picture_bytes(cut)
    assert "ZZMARKED" not in str(told.value) and str(cut) in str(told.value)
    assert told.value.__cause__ is None


def test_what_holds_no_picture_is_refused(tmp_path: Path) -> None:
    plain = dicom(tmp_path / "plain.dcm")
    content = dcmread(plain)
    del content.PixelData
    content.save_as(tmp_path / "none.dcm")
    with pytest.raises(DataError, match="holds no picture"):
        picture_bytes(tmp_path / "none.dcm")
    with pytest.raises(DataError, match="more than the 100,000,000 allowed"):
        picture_bytes(dicom(tmp_path / "huge.dcm", Rows=60000, Columns=60000))
    with pytest.raises(DataError, match="cannot be read"):
        picture_bytes(tmp_path / "missing.dcm")


ANSWER = DicomAnswer(
    "ham10000 (0123abcd)",
    {"Melanoma": 0.625, "Melanocytic nevus": 0.375},
    "Melanoma",
    ["Melanoma", "Melanocytic nevus"],
    True,
    "Melanoma",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """Objects derived from a source without any geometry, as dermoscopes write them."""
    out = tmp_path_factory.mktemp("objects")
    source = dicom(out / "source.dcm", pixels=picture(48, 80))
    values = np.linspace(-1, 1, 12 * 16).reshape(12, 16).astype(np.float32)
    maps = {"Grad-CAM": np.abs(values), "Occlusion": values}
    assert [p.name for p in write_dicom_objects(out, source, maps, ANSWER)] == [
        *("maps.dcm", "regions.dcm", "report.dcm")
    ]
    return out, maps


def test_maps_keep_their_values_and_their_place(written) -> None:
    out, maps = written
    found = dcmread(out / "maps.dcm")
    assert found.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
    stored = np.frombuffer(found.FloatPixelData, np.float32).reshape(2, 12, 16)
    assert np.array_equal(stored, np.stack(list(maps.values())))
    shared = found.SharedFunctionalGroupsSequence[0]
    # 48x80 is trimmed to 48x64; 4 source pixels make one of the map, the first one 8 pixels in.
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == [4.0, 4.0]
    frame = found.PerFrameFunctionalGroupsSequence[0]
    assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == [8 + 1.5, 1.5, 0.0]


def test_regions_are_the_highest_tenth(written) -> None:
    out, maps = written
    found = dcmread(out / "regions.dcm")
    assert [one.SegmentLabel for one in found.SegmentSequence] == [
        "Grad-CAM: highest tenth", "Occlusion: highest tenth",
    ]  # fmt: skip
    for stored, values in zip(found.pixel_array, maps.values(), strict=True):
        assert np.array_equal(stored == 1, values > np.quantile(values, 0.9))


def texts(item: Any) -> list[str]:
    found = [str(item.get("ConceptCodeSequence", [Dataset()])[0].get("CodeMeaning", ""))]
    found += [str(name.CodeMeaning) for name in item.get("ConceptNameCodeSequence", [])]
    found += [str(value.NumericValue) for value in item.get("MeasuredValueSequence", [])]
    for part in item.get("ContentSequence", []):
        found += texts(part)
    return found


def test_report_says_what_was_answered(written) -> None:
    out, _ = written
    found = dcmread(out / "report.dcm")
    said = texts(found)
    for part in ("Calibrated probability: Melanoma", "62.5", "37.5", "Most probable"):
        assert part in said
    assert said.count("Cannot be excluded") == 2
    assert "Research and education only, not a medical device" in said
    referred = str(found)
    for name in ("source.dcm", "maps.dcm", "regions.dcm"):
        assert dcmread(out / name).SOPInstanceUID in referred


def test_objects_belong_to_the_study_and_tell_nothing_of_the_patient(written, tmp_path) -> None:
    out, maps = written
    source = dcmread(out / "source.dcm")
    for name in ("maps.dcm", "regions.dcm", "report.dcm"):
        content = (out / name).read_bytes()
        assert b"ZZMARKED" not in content and b"19700102" not in content
        assert dcmread(out / name).StudyInstanceUID == source.StudyInstanceUID
    write_dicom_objects(tmp_path, out / "source.dcm", maps, ANSWER, keep_patient=True)
    assert dcmread(tmp_path / "report.dcm").PatientName == MARK


def test_a_source_that_cannot_be_referred_to_is_refused(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", StudyInstanceUID="")
    with pytest.raises(DataError, match="lacks StudyInstanceUID"):
        write_dicom_objects(tmp_path, path, {"Grad-CAM": np.zeros((12, 16), np.float32)}, ANSWER)
    assert [one.name for one in tmp_path.iterdir()] == ["a.dcm"]


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmtk is not installed")
def test_dcmtk_reads_them(written) -> None:
    out, _ = written
    for name in ("maps.dcm", "regions.dcm", "report.dcm"):
        done = subprocess.run(["dcmdump", str(out / name)], capture_output=True, text=True)
        assert done.returncode == 0 and "E: " not in done.stderr


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error(written) -> None:
    out, _ = written
    for name in ("maps.dcm", "regions.dcm", "report.dcm"):
        done = subprocess.run(["dciodvfy", "-new", str(out / name)], capture_output=True, text=True)
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        assert errors == [], errors

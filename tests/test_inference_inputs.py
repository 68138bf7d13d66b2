"""The standalone program on odd files, damaged artifacts and a full disk."""

import csv
import errno
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dermlens.data import color_profiles, decoding, sources
from dermlens.files import sha256_of_file
from dermlens.model.bundle_description import checksum
from dermlens.serve import export as exporting
from dermlens.serve.prediction import find_images
from serving_support import picture, untrained_bundle
from test_inference import artifacts, bundle, inference  # noqa: F401
from wild_datasets import with_outline

SHARED = (
    *("open_header", "_open", "_open_jpeg_without_descriptions", "_tiff_without_descriptions"),
    *("memory_needed", "_stored_bytes", "_in_several_scans", "_strip_bytes", "orientation"),
    *("decode_upright", "_no_tags", "_turns", "to_rgb", "_bands", "_range_in_use", "_deep_to_rgb"),
    *("_part_to_rgb", "_page", "_second_bytes", "_loaded_low_bytes", "_brightest", "_brighten"),
    *("_joined", "_white"),
)


@pytest.fixture
def model(artifacts: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A copy of a small artifact that a test may damage."""
    folder = tmp_path / "exported"
    folder.mkdir()
    for name in ("model.tflite", "model.json"):
        shutil.copy(artifacts / name, folder)
    return folder / "model.tflite"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(1).save(folder / "a.png")
    picture(2).save(folder / "z.png")
    return folder


def test_pictures_are_decoded_by_the_same_code(inference: ModuleType) -> None:  # noqa: F811
    for name in SHARED:
        mine, packaged = getattr(inference, name), getattr(decoding, name)
        assert inspect.getsource(mine) == inspect.getsource(packaged), name
    constants = ("FORMATS", "MAX_MEMORY", "_BAND_PIXELS", "_PIXEL_TAGS", "_DECODER_BYTES")
    for name in (*constants, "_MAX_PAGES", "_HEIC_BRANDS"):
        assert getattr(inference, name) == getattr(decoding, name), name
    for name in ("profile_transform", "keeps_grays"):
        mine, packaged = getattr(inference, name), getattr(color_profiles, name)
        assert inspect.getsource(mine) == inspect.getsource(packaged), name
    assert inference._STEPS == color_profiles._STEPS
    functions = {name for name, one in inspect.getmembers(decoding, inspect.isfunction)}
    own = {"as_array", "check_memory", "profile_transform", "optional"}
    assert functions - set(SHARED) == own


def test_outlines_are_told_from_photographs_by_the_same_code(
    inference: ModuleType,  # noqa: F811
    tmp_path: Path,
) -> None:
    mine, packaged = inference.outline_owner, sources.outline_owner
    assert inspect.getsource(mine) == inspect.getsource(packaged)
    for name in ("_OUTLINE_NAME", "_PERHAPS_OUTLINE_NAME", "_OTHER_NAME", "_OUTLINE_FOLDER"):
        assert getattr(inference, name) == getattr(sources, name), name
    with_outline("images/a.jpg", "images/a_Segmentation.PNG", tmp_path)
    with_outline("images/b.jpg", "gt/b.png", tmp_path)
    found = inference.find_images([str(tmp_path)])
    assert found == find_images([tmp_path]) == [tmp_path / "images" / n for n in ("a.jpg", "b.jpg")]


def test_an_empty_argument_does_not_mean_this_folder(
    inference: ModuleType,  # noqa: F811
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert inference.main([str(model), ""]) == 2
    assert "An image is named by nothing" in capsys.readouterr().err


def test_pipes_devices_and_odd_names_lose_nothing(
    inference: ModuleType,  # noqa: F811
    model: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.mkfifo(photos / "pipe.png")
    odd = Path(os.fsdecode(os.fsencode(photos) + b"/mole_\xff.png"))
    shutil.copy(photos / "a.png", odd)
    long = photos / f"{'l' * 251}.png"
    shutil.copy(photos / "a.png", long)
    too_long = "x" * 5000 + ".png"
    given = [str(model), str(photos), "/dev/zero", too_long, "--explain", str(tmp_path / "maps")]
    written = ["--json", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv")]
    assert inference.main([*given, *written]) == 1
    out = capsys.readouterr().out
    assert "pipe.png is a named pipe, not an image file" in out
    assert "/dev/zero is a device, not an image file" in out
    assert "cannot be read (File name too long)" in out
    assert "mole_\\udcff.png: " in out
    rows = json.loads((tmp_path / "r.json").read_text())["images"]
    good = [row for row in rows if not row["error"]]
    assert [Path(row["path"]) for row in good] == sorted(
        [photos / "a.png", long, odd, photos / "z.png"]
    )
    assert all(Path(row["overlay"]).is_file() for row in good)
    with (tmp_path / "r.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [row["predicted"] for row in table] == [row.get("predicted", "") for row in rows]


def test_only_pipes_is_nothing_to_do(
    inference: ModuleType,  # noqa: F811
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert inference.main([str(model), str(tmp_path / "pipe.png")]) == 2
    assert "pipe.png is a named pipe, not an image file" in capsys.readouterr().err


def test_odd_descriptions_and_other_formats(
    inference: ModuleType,  # noqa: F811
    tmp_path: Path,
) -> None:
    block = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + (
        b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x28\x01\x04\0\x01\0\0\0abcd\0\0\0\0"
    )
    picture(1, 60, 80).save(tmp_path / "a.jpg", exif=block)
    assert inference.read_rgb(tmp_path / "a.jpg").size == (60, 80)
    (tmp_path / "photo.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    picture(1).save(tmp_path / "b.jpg", "PPM")
    for name in ("photo.jpg", "b.jpg"):
        with pytest.raises(inference.Unreadable, match="no image of a known format"):
            inference.read_rgb(tmp_path / name)


def test_a_photograph_that_needs_a_package_is_a_sentence(
    inference: ModuleType,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(inference.Unreadable, match="pip install pi-heif"):
        inference.read_rgb(tmp_path / "a.heic")


def test_what_would_take_too_much_memory_is_refused(
    inference: ModuleType,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture(1).save(tmp_path / "a.webp")
    inference.read_rgb(tmp_path / "a.webp")
    monkeypatch.setattr(inference, "MAX_MEMORY", 1000)
    with pytest.raises(inference.Unreadable, match="of memory to decode"):
        inference.read_rgb(tmp_path / "a.webp")


def changed(path: Path, change: Callable[[dict[str, Any]], Any], *, sealed: bool = True) -> None:
    facts = json.loads(path.read_text())
    change(facts)
    if sealed:
        facts["checksum"] = checksum(facts)
    path.write_text(json.dumps(facts))


WRONG: tuple[tuple[Callable[[dict[str, Any]], Any], str], ...] = (
    (lambda f: f.pop("classes"), "classes"),
    (lambda f: f.pop("balanced_rule"), "decision_rule"),
    (lambda f: f.pop("operating_points"), "operating_points"),
    (lambda f: f["classes"][0].pop("name"), "classes[0].name"),
    (lambda f: f["classes"][1].update(code=f["classes"][0]["code"]), "classes"),
    (lambda f: f.update(classes=3), "classes"),
    (lambda f: f.update(operating_points=[]), "operating_points"),
    (lambda f: f.update(input_size=[32]), "input_size"),
    (lambda f: f.update(input_size=[32, 1 << 40]), "input_size"),
    (lambda f: f.update(link="logit"), "link"),
    (lambda f: f.update(calibrated="no"), "calibrated"),
    (lambda f: f["balanced_rule"].update(log_prior=[-1.0]), "balanced_rule.log_prior"),
    (lambda f: f["balanced_rule"].update(log_prior={}), "balanced_rule.log_prior"),
    (lambda f: f["balanced_rule"].update(tau=float("nan")), "balanced_rule.tau"),
    (lambda f: f["balanced_rule"].update(tau=10**400), "balanced_rule.tau"),
    (
        lambda f: f["operating_points"]["melanoma"].update(codes=["scc"]),
        "operating_points.melanoma.codes",
    ),
    (
        lambda f: f["operating_points"]["melanoma"].update(threshold=None),
        "operating_points.melanoma.threshold",
    ),
    (lambda f: f["prediction_sets"].update(level=1), "prediction_sets.level"),
    (
        lambda f: f["prediction_sets"]["true_probabilities"].pop("mel"),
        "prediction_sets.true_probabilities.mel",
    ),
    (
        lambda f: f["prediction_sets"]["true_probabilities"]["mel"].reverse(),
        "prediction_sets.true_probabilities.mel",
    ),
    (lambda f: f.update(sha256={}), "sha256"),
    (lambda f: f.update(sha256=["x"]), "sha256"),
    (lambda f: f.update(sha256={"model.tflite": 3}), "sha256.model.tflite"),
)


@pytest.mark.parametrize(("change", "field"), WRONG)
def test_damaged_metadata_give_sentences(
    inference: ModuleType,  # noqa: F811
    model: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], Any],
    field: str,
) -> None:
    changed(model.with_suffix(".json"), change)
    assert inference.main([str(model), str(photos)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {model.with_suffix('.json')} is damaged: the field {field} is")
    assert "Copy it again" in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "[" * 100_000])
def test_what_is_no_metadata_gives_a_sentence(
    inference: ModuleType,  # noqa: F811
    model: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
) -> None:
    model.with_suffix(".json").write_text(text)
    assert inference.main([str(model), str(photos)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_changed_metadata_are_found(
    inference: ModuleType,  # noqa: F811
    model: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed(model.with_suffix(".json"), lambda f: f["classes"].reverse(), sealed=False)
    assert inference.main([str(model), str(photos)]) == 2
    assert "it has changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.tflite", "saved_model"])
def test_flipped_weights_are_found(
    inference: ModuleType,  # noqa: F811
    artifacts: Path,  # noqa: F811
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    here = tmp_path / "here"
    shutil.copytree(artifacts, here)
    weights = here / name
    if weights.is_dir():
        weights = weights / "variables" / "variables.data-00000-of-00001"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    assert inference.main([str(here / name), str(photos)]) == 2
    assert f"{weights.name} has changed since it was exported" in capsys.readouterr().err


def test_every_file_of_an_artifact_has_its_checksum(artifacts: Path) -> None:  # noqa: F811
    lone = json.loads((artifacts / "model.json").read_text())
    assert lone["sha256"] == {"model.tflite": sha256_of_file(artifacts / "model.tflite")}
    folder = artifacts / "saved_model"
    inside = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    facts = json.loads((folder / "metadata.json").read_text())
    assert set(facts["sha256"]) == inside - {"metadata.json", ".dermlens"}
    for one in (lone, facts):
        assert one["checksum"] == checksum(one) and one["model"] == untrained_bundle().label


def test_artifacts_of_an_earlier_version_and_renamed_ones_are_taken(
    inference: ModuleType,  # noqa: F811
    model: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("model.tflite", "model.json"):
        shutil.copy(model.with_name(name), model.with_name(name.replace("model", "mine")))
    assert inference.main([str(model.with_name("mine.tflite")), str(photos)]) == 0
    assert capsys.readouterr().err == ""
    for name in ("sha256", "checksum"):
        changed(model.with_suffix(".json"), lambda f, name=name: f.pop(name), sealed=False)
    assert inference.main([str(model), str(photos)]) == 0
    assert "by an earlier version, without checksums" in capsys.readouterr().err


def test_metadata_of_another_network_are_refused(
    inference: ModuleType,  # noqa: F811
    model: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed(model.with_suffix(".json"), lambda f: f.update(input_size=[64, 48]))
    assert inference.main([str(model), str(photos)]) == 2
    assert "do not belong together" in capsys.readouterr().err


def test_an_answer_that_is_not_finite_is_never_printed(
    inference: ModuleType,  # noqa: F811
    model: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    explained = inference.LiteRT.explained
    answers = iter((np.nan, 0.0))

    def broken(self: Any, images: np.ndarray) -> tuple[np.ndarray, Any]:
        probabilities, maps = explained(self, images)
        return probabilities + next(answers), maps

    monkeypatch.setattr(inference.LiteRT, "explained", broken)
    maps = photos.with_name("maps")
    assert inference.main([str(model), str(photos), "--explain", str(maps)]) == 1
    out = capsys.readouterr().out
    assert "a.png has no answer: the model gives no finite numbers" in out and " nan" not in out
    assert [path.name for path in maps.iterdir()] == ["z_grad_cam.png"]


def full_disk(self: Image.Image, path: Path, *_: object, **__: object) -> None:
    Path(path).write_bytes(b"")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_empty_overlay_and_loses_no_answer(
    inference: ModuleType,  # noqa: F811
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Image.Image, "save", full_disk)
    given = [str(model), str(photos), "--explain", str(tmp_path / "maps")]
    assert inference.main([*given, "--json", str(tmp_path / "r.json")]) == 1
    out = capsys.readouterr().out
    assert out.count("_grad_cam.png could not be written (No space left on device)") == 2
    assert list((tmp_path / "maps").iterdir()) == []
    rows = json.loads((tmp_path / "r.json").read_text())["images"]
    assert all(row["predicted"] and row["overlay"] == "" for row in rows)


def test_a_table_that_cannot_be_written_does_not_cost_the_other(
    inference: ModuleType,  # noqa: F811
    model: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "r.json").mkdir()
    given = [str(model), str(photos), "--json", str(tmp_path / "r.json")]
    assert inference.main([*given, "--csv", str(tmp_path / "r.csv")]) == 1
    assert "r.json could not be written (Is a directory)" in capsys.readouterr().err
    assert (tmp_path / "r.csv").is_file() and not list(tmp_path.glob(".*"))


def test_export_leaves_no_file_out_of_its_checksums(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")
    exporting.write_metadata(folder / "metadata.json", {"artifact": "x"}, folder)
    stored = json.loads((folder / "metadata.json").read_text())
    assert set(stored["sha256"]) == {"deep/a", "b"} and stored["artifact"] == "x"

"""The standalone program on exported artifacts of a tiny network."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, features

from dermlens.data.images import IMAGE_SUFFIXES, load_image
from dermlens.explainers.grad_cam import GradCAM
from dermlens.model.bundle import Bundle
from dermlens.report.figures import overlay
from dermlens.serve.export import ExportImages, export
from pictures_support import DISPLAY_P3, png, profile
from serving_support import SIZE, picture, untrained_bundle

SCRIPT = Path(__file__).parents[1] / "inference.py"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return untrained_bundle()


@pytest.fixture(scope="module")
def artifacts(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts")
    images = ExportImages([np.asarray(picture(0))], None, [], "one")
    export(bundle, out, ["saved_model", "float32"], images)
    return out


@pytest.fixture(scope="module")
def inference() -> ModuleType:
    found = importlib.util.spec_from_file_location("inference", SCRIPT)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def odd_images(folder: Path) -> list[Path]:
    """Images of every mode that must come out as the package reads them."""
    folder.mkdir()
    base = picture(1)
    turned = Image.Exif()
    turned[274] = 6
    see_through = base.copy()
    see_through.putalpha(Image.linear_gradient("L").resize(base.size))
    deep = np.asarray(base.convert("L")).astype(np.uint16) * 257
    base.save(folder / "plain.jpg")
    base.save(folder / "turned.jpg", exif=turned)
    base.convert("L").save(folder / "gray.png")
    base.convert("P").save(folder / "palette.png")
    base.convert("CMYK").save(folder / "cmyk.jpg")
    see_through.save(folder / "alpha.png")
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep // 16).save(folder / "deep_12_bits.png")
    (folder / "colors_12_bits.png").write_bytes(png(np.asarray(base).astype(np.uint16) * 16, 2))
    Image.fromarray((deep / 65535).astype(np.float32)).save(folder / "fractions.tif")
    base.save(folder / "telephone.jpg", icc_profile=profile(DISPLAY_P3), quality=95)
    for name, feature in (("photo.avif", "avif"), ("photo.jp2", "jpg_2000")):
        if features.check(feature):
            base.save(folder / name)
    base.save(folder / "pages.tif", save_all=True, append_images=[base.resize((8, 6))])
    picture(2, 90, 40).save(folder / "upright.webp", lossless=True)
    return sorted(folder.iterdir())


def test_every_kind_of_image_is_read_as_the_package_reads_it(
    inference: ModuleType, tmp_path: Path
) -> None:
    for path in odd_images(tmp_path / "images"):
        found = inference.fit(inference.read_rgb(path), SIZE)
        np.testing.assert_array_equal(found, load_image(path, SIZE), err_msg=path.name)
    assert set(IMAGE_SUFFIXES) <= set(inference.IMAGE_SUFFIXES)


@pytest.mark.parametrize("name", ["model.tflite", "saved_model"])
def test_artifact_agrees_with_the_bundle_in_a_process_of_its_own(
    name: str, bundle: Bundle, artifacts: Path, tmp_path: Path
) -> None:
    files = odd_images(tmp_path / "images")
    blocked = "import sys; sys.modules.update(keras=None, dermlens=None, matplotlib=None); "
    if name == "model.tflite":
        blocked += "sys.modules.update(tensorflow=None); "
    code = f"{blocked} import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    outputs = ["--json", "r/out.json", "--csv", "out.csv", "--explain", "maps"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(artifacts / name), "images", *outputs],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "not a medical device" in done.stdout
    images = np.stack([load_image(path, SIZE) for path in files])
    logits = bundle.logits(images)
    predicted = logits.argmax(1)
    assert (bundle.calibration.balanced(logits) != predicted).any()
    probabilities = bundle.calibration.probabilities(logits)
    rows = json.loads((tmp_path / "r" / "out.json").read_text())["images"]
    assert [Path(row["path"]).name for row in rows] == [path.name for path in files]
    maps = GradCAM(bundle.model).attribute(images, predicted.tolist()).maps
    for position, row in enumerate(rows):
        assert row["predicted"] == bundle.classes[predicted[position]]
        inside = bundle.calibration.set_of(probabilities[position])
        assert row["prediction_set"] == [bundle.classes[k] for k in inside]
        found = [row["probabilities"][code] for code in bundle.classes]
        np.testing.assert_allclose(found, probabilities[position], atol=1e-5)
        assert row["flags"]["melanoma"] == bool(probabilities[position, 4] >= 0.1)
        drawn = np.asarray(Image.open(tmp_path / row["overlay"])).astype(int)
        expected = overlay(images[position], maps[position])
        assert np.abs(drawn - expected).max() <= 2, files[position].name
    table = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["predicted"] for row in table] == [row["predicted"] for row in rows]
    np.testing.assert_allclose(
        [float(r["probability_mel"]) for r in table], probabilities[:, 4], atol=1e-5
    )


def test_damaged_files_are_reported_and_the_rest_goes_on(
    inference: ModuleType, artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(1).save(tmp_path / "a.jpg")
    (tmp_path / "b_cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:700])
    (tmp_path / "c_empty.png").write_bytes(b"")
    (tmp_path / "d_text.jpg").write_text("not an image")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "e_bomb.png")
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "f_moving.gif", save_all=True, append_images=frames[1:])
    picture(2).save(tmp_path / "g.png")
    target = tmp_path / "out.csv"
    given = [str(artifacts / "model.tflite"), str(tmp_path), str(tmp_path / "h.jpg")]
    assert inference.main([*given, "--csv", str(target)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error:")]
    expected = ["cannot be decoded", "is empty", "no image", "more than", "animation", "not exist"]
    assert len(lines) == 6
    for line, words in zip(lines, expected, strict=True):
        assert words in line
    rows = list(csv.DictReader(target.open()))
    assert [Path(r["path"]).name for r in rows if not r["error"]] == ["a.jpg", "g.png"]
    assert all(r["predicted"] == "" and r["probability_mel"] == "" for r in rows if r["error"])


def test_overlays_of_equal_names_do_not_overwrite_each_other(
    inference: ModuleType, artifacts: Path, tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        picture(1).save(tmp_path / folder / "same.png")
    pattern = str(tmp_path / "*" / "same.png")
    given = [str(artifacts / "model.tflite"), pattern, "--explain", str(tmp_path / "maps")]
    assert inference.main([*given, "--target", "mel"]) == 0
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["same_2_grad_cam.png", "same_grad_cam.png"]


def test_nothing_to_do_ends_with_2_and_a_sentence(
    inference: ModuleType, artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(1).save(tmp_path / "a.png")
    image, model = str(tmp_path / "a.png"), str(artifacts / "model.tflite")
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    (tmp_path / "broken.json").write_text((artifacts / "model.json").read_text())
    (tmp_path / "lonely.tflite").write_bytes((artifacts / "model.tflite").read_bytes())
    for given, words in (
        ([str(tmp_path / "nowhere"), image], "neither a SavedModel folder nor"),
        ([str(tmp_path / "broken.tflite"), image], "no valid .tflite file"),
        ([str(tmp_path / "lonely.tflite"), image], "lonely.json is missing"),
        ([model, str(tmp_path / "missing.png")], "No image found"),
        ([model, image, "--target", "moles"], "Unknown class 'moles'"),
    ):
        assert inference.main(given) == 2
        error = capsys.readouterr().err
        assert error.startswith("Error: ") and words in error
    with pytest.raises(SystemExit) as ended:
        inference.main([])
    assert ended.value.code == 2


def test_files_are_read_ahead_in_order_and_not_all_at_once(inference: ModuleType) -> None:
    for count in (0, 1, 2, 3, 7):
        started: list[int] = []

        def work(item: int, started: list[int] = started) -> int:
            started.append(item)
            return item * 10

        given = []
        for item, result in inference.ahead(work, list(range(count))):
            given.append((item, result))
            assert len(started) <= len(given) + 2, "a long folder must not fill the memory"
        assert given == [(item, item * 10) for item in range(count)]

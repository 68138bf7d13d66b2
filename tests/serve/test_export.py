"""Exported artifacts say what the Keras model says, without Keras."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dermlens.data.images import fit_image, open_rgb
from dermlens.errors import DataError, ModelError, UsageError
from dermlens.explainers.baselines import border_color
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.integrated_gradients import IntegratedGradients
from dermlens.labels import HAM10000
from dermlens.model.bundle import Bundle
from dermlens.serve import export as exporting
from dermlens.serve.export import ExportImages
from dermlens.serve.parity import Outputs, Reference, measure
from serving_support import SIZE, picture, untrained_bundle

CODES = HAM10000.codes


def pixels(seed: int, height: int, width: int) -> np.ndarray:
    return np.asarray(picture(seed, height, width))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return untrained_bundle()


@pytest.fixture(scope="module")
def originals() -> list[np.ndarray]:
    shapes = [(60, 80), (45, 100), (90, 70), SIZE]
    return [pixels(seed, *shape) for seed, shape in enumerate(shapes)]


@pytest.fixture(scope="module")
def fitted(originals: list[np.ndarray]) -> np.ndarray:
    return np.stack([fit_image(Image.fromarray(o), SIZE) for o in originals])


@pytest.fixture(scope="module")
def exported(
    bundle: Bundle, originals: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("exported")
    labels = np.array([0, 1, 4, 4])
    images = ExportImages(originals, labels, originals, "four")
    exporting.export(bundle, out, exporting.FORMATS, images)
    return out


@pytest.fixture(scope="module")
def loaded(exported: Path) -> Any:
    import tensorflow as tf

    return tf.saved_model.load(str(exported / "saved_model"))


def test_saved_model_needs_neither_keras_nor_dermlens(
    bundle: Bundle, exported: Path, fitted: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", fitted)
    code = (
        "import sys, numpy as np\n"
        "sys.modules['keras'] = sys.modules['dermlens'] = None\n"
        "import tensorflow as tf\n"
        f"loaded = tf.saved_model.load({str(exported / 'saved_model')!r})\n"
        f"images = np.load({str(tmp_path / 'images.npy')!r})\n"
        "out = loaded.signatures['serving_default'](images=tf.constant(images))\n"
        f"np.save({str(tmp_path / 'logits.npy')!r}, out['logits'].numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    logits = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(logits, bundle.logits(fitted), atol=1e-5)


def test_saved_model_outputs_follow_the_calibration(
    bundle: Bundle, loaded: Any, fitted: np.ndarray
) -> None:
    out = {k: v.numpy() for k, v in loaded.signatures["serving_default"](images=fitted).items()}
    logits = bundle.logits(fitted)
    probabilities = bundle.calibration.probabilities(logits)
    predicted = logits.argmax(1)
    # The case tells the most probable class from the balanced rule.
    assert (bundle.calibration.balanced(logits) != predicted).any()
    np.testing.assert_allclose(out["probabilities"], probabilities, atol=1e-6)
    assert out["class_index"].tolist() == predicted.tolist()
    assert [c.decode() for c in out["class_code"]] == [CODES[d] for d in predicted]
    inside = bundle.calibration.prediction_sets.contain(probabilities)
    assert out["prediction_set"].tolist() == inside.tolist()
    assert 1 < inside.sum(axis=1).max() < 7
    assert out["classes"].shape == (4, 7) and out["classes"][2, 4] == b"mel"
    for name, point in bundle.calibration.operating_points.items():
        expected = point.score(probabilities, CODES) >= point.threshold
        assert out[f"flag_{name}"].tolist() == expected.tolist()


def test_images_of_any_size_and_type_and_files_give_the_same(
    bundle: Bundle, loaded: Any, originals: list[np.ndarray], fitted: np.ndarray
) -> None:
    expected = bundle.logits(fitted)
    content = []
    for original in originals:
        stream = io.BytesIO()
        Image.fromarray(original).save(stream, "PNG")
        content.append(stream.getvalue())
    from_files = loaded.signatures["serving_bytes"](content=np.array(content, object))
    np.testing.assert_allclose(from_files["logits"], expected, atol=0.02)
    for position, original in enumerate(originals):
        for name, pixels in (
            ("serving_default", original),
            ("serving_float", original.astype(np.float32)),
        ):
            logits = loaded.signatures[name](images=pixels[None])["logits"]
            np.testing.assert_allclose(logits[0], expected[position], atol=0.02)


def test_explanations_are_those_of_the_package(
    bundle: Bundle, loaded: Any, fitted: np.ndarray
) -> None:
    explain = loaded.signatures["explain_grad_cam"]
    predicted = bundle.logits(fitted).argmax(axis=1)
    asked = np.array([-1, 4, 0, -1], np.int32)
    goals = np.where(asked < 0, predicted, asked)
    out = explain(images=fitted, targets=asked)
    expected = GradCAM(bundle).attribute(fitted, goals.tolist())
    assert out["target"].numpy().tolist() == goals.tolist()
    assert out["target_code"].numpy()[1] == b"mel"
    assert expected.maps.max() > 0
    np.testing.assert_allclose(out["maps"], expected.maps, atol=1e-4)
    np.testing.assert_allclose(out["output"], expected.values, atol=1e-4)


@pytest.mark.parametrize("shape", [(60, 80), (41, 97), (97, 41), (20, 25), (300, 301), SIZE])
def test_fit_in_graph_is_fit_image(shape: tuple[int, int]) -> None:
    from dermlens.serve.export_graph import fit_in_graph

    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = fit_image(Image.fromarray(image), SIZE).astype(int)
    difference = np.abs(fit_in_graph(image[None], SIZE).numpy()[0] - expected)
    assert difference.max() <= 1 and difference.mean() < 0.01


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "jpeg", "gray jpeg"])
def test_decode_in_graph_is_open_rgb(mode: str) -> None:
    from dermlens.serve.export_graph import decode_in_graph

    image = picture(5, 40, 60)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    converted = image.convert({"jpeg": "RGB", "gray jpeg": "L"}.get(mode, mode))
    stream = io.BytesIO()
    converted.save(stream, "JPEG" if "jpeg" in mode else "PNG")
    expected = fit_image(open_rgb(stream.getvalue(), "x"), SIZE).astype(int)
    decoded = decode_in_graph(np.array([stream.getvalue()], object), SIZE).numpy()[0]
    assert np.abs(decoded - expected).max() <= 1


def test_tflite_gives_probabilities_and_the_maps_of_all_classes(
    bundle: Bundle, exported: Path, fitted: np.ndarray
) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(exported / "model.tflite"))
    run = interpreter.get_signature_runner()
    expected = GradCAM(bundle).attribute(fitted, "all").maps
    probabilities = bundle.calibration.probabilities(bundle.logits(fitted))
    for position, image in enumerate(fitted):
        out = run(image=image[None].astype(np.float32))
        np.testing.assert_allclose(out["probabilities"][0], probabilities[position], atol=1e-5)
        np.testing.assert_allclose(out["maps"][0], expected[position], atol=1e-3)
        inside = bundle.calibration.prediction_sets.contain(probabilities[position][None])
        assert out["prediction_set"].tolist() == inside.tolist()
        for flag, up in bundle.calibration.flags(probabilities[position][None]).items():
            assert out[f"flag_{flag}"].tolist() == up.tolist()
    operations = {op["op_name"] for op in interpreter._get_ops_details()}
    assert not any(name.startswith("Flex") for name in operations)


def test_metadata_and_parity_are_written(
    bundle: Bundle, exported: Path, fitted: np.ndarray
) -> None:
    names = ("model.json", "model_float16.json", "model_int8.json", "saved_model/metadata.json")
    for path in map(exported.joinpath, names):
        facts = json.loads(path.read_text())
        assert facts["input_size"] == list(SIZE) and facts["temperature"] == 1.7
        assert [entry["code"] for entry in facts["classes"]] == list(CODES)
        assert facts["classes"][4] == {"code": "mel", "name": "Melanoma", "malignant": True}
        assert facts["balanced_rule"]["tau"] == 0.8 and facts["license"] == "MIT"
    report = json.loads((exported / "parity.json").read_text())
    assert report["compared_on"] == "four"
    decided = bundle.calibration.balanced(bundle.logits(fitted))
    recalls = [(decided[0] == 0), (decided[1] == 1), (decided[2:] == 4).mean()]
    assert report["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    artifacts = report["artifacts"]
    assert list(artifacts) == list(exporting.FORMATS)
    for name, allowed in (("saved_model", 1e-5), ("float32", 1e-5), ("float16", 1e-2)):
        assert artifacts[name]["max_probability_difference"] < allowed
        assert artifacts[name]["top1_agreement"] == 1.0
        assert artifacts[name]["balanced_accuracy_change"] == 0.0
        assert artifacts[name]["same_prediction_sets"] == artifacts[name]["same_flags"] == 1.0
    for name, parity in artifacts.items():
        assert parity["images"] == 4 and not {"latency_ms", "peak_memory_mb"} & set(parity)
        assert parity["mean_map_correlation"] > 0.9
        integrated = parity["min_integrated_gradients_correlation"]
        assert (integrated > 0.9999) if name == "saved_model" else integrated is None
    files = {kind: f"model_{kind}" for kind in ("float16", "dynamic", "int8")} | {
        "float32": "model"
    }
    for name, stem in files.items():
        assert artifacts[name]["bytes"] == (exported / f"{stem}.tflite").stat().st_size
    assert artifacts["int8"]["bytes"] < artifacts["float32"]["bytes"]
    expected = {f"{stem}{end}" for stem in files.values() for end in (".json", ".tflite")}
    assert {p.name for p in exported.iterdir()} == expected | {
        "parity.json",
        "parity.md",
        "saved_model",
    }
    table = (exported / "parity.md").read_text()
    size = (exported / "model_int8.tflite").stat().st_size / 1e6
    assert f"| LiteRT int8, fixed ranges | {size:.1f} MB |" in table and "| SavedModel |" in table
    assert (
        f"Compared on four. Balanced accuracy of the Keras model: {np.mean(recalls):.4f}." in table
    )


def test_integrated_gradients_of_the_saved_model_are_those_of_the_package(
    bundle: Bundle, loaded: Any, fitted: np.ndarray
) -> None:
    predicted = bundle.logits(fitted).argmax(axis=1)
    asked = np.array([-1, 4, 0, -1], np.int32)
    goals = np.where(asked < 0, predicted, asked)
    out = loaded.signatures["explain_integrated_gradients"](images=fitted, targets=asked)
    expected = IntegratedGradients(bundle, tolerance=None).attribute(fitted, goals.tolist())
    np.testing.assert_allclose(out["maps"], expected.maps, atol=1e-4)
    np.testing.assert_allclose(out["output"], expected.values, atol=1e-4)
    np.testing.assert_allclose(out["baseline_output"], expected.baseline_output, atol=1e-4)
    np.testing.assert_allclose(out["convergence_delta"], expected.convergence_delta, atol=1e-3)
    assert out["target_code"].numpy()[1] == b"mel"
    stream = io.BytesIO()
    Image.fromarray(fitted[1]).save(stream, "PNG")
    from_file = loaded.signatures["explain_integrated_gradients_bytes"](
        content=np.array([stream.getvalue()], object), targets=asked[1:2]
    )
    np.testing.assert_allclose(from_file["maps"][0], out["maps"][1], atol=1e-4)


@pytest.mark.parametrize("dark", [0.0, 0.4, 0.95, 1.0])
def test_border_color_in_graph_is_that_of_the_package(dark: float) -> None:
    from dermlens.serve.export_graph import border_color_in_graph

    generator = np.random.default_rng(0)
    image = generator.integers(50, 256, (*SIZE, 3)).astype(np.float32)
    image[generator.random(SIZE) < dark] *= 0.1
    np.testing.assert_array_equal(border_color_in_graph(image, SIZE), border_color(image))


def test_whole_numbers_need_images_to_set_their_ranges(bundle: Bundle, tmp_path: Path) -> None:
    nothing = ExportImages([pixels(0, *SIZE)], None, [], "none")
    with pytest.raises(UsageError, match="representative images"):
        exporting.export(bundle, tmp_path / "out", ["int8"], nothing)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", exporting.FORMATS)
def test_an_artifact_that_is_not_finite_is_not_kept(form: str, tmp_path: Path) -> None:
    broken = untrained_bundle()
    broken.model.get_layer("logits").bias.assign(np.full(7, np.nan, np.float32))
    with pytest.raises(ModelError, match="not finite"):
        some = [pixels(0, *SIZE)]
        exporting.export(broken, tmp_path / "out", [form], ExportImages(some, None, some, "one"))
    assert not (tmp_path / "out").exists()


def said(reference: Reference, **changed: Any) -> Outputs:
    """What an artifact says that is right but for what is given."""
    calibration, exact = reference.bundle.calibration, reference.probabilities
    inside = calibration.prediction_sets.contain(exact)
    return replace(Outputs(exact, reference.maps, inside, calibration.flags(exact)), **changed)


def test_disagreement_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    reference = Reference(bundle, [pixels(seed, 60, 80) for seed in range(3)])
    exact = reference.probabilities

    def slightly_wrong(images: np.ndarray, targets: np.ndarray) -> Outputs:
        return said(reference, probabilities=exact + 2e-4)

    def very_wrong(images: np.ndarray, targets: np.ndarray) -> Outputs:
        return said(reference, probabilities=exact[:, ::-1])

    def wrong_maps(images: np.ndarray, targets: np.ndarray) -> Outputs:
        return said(reference, maps=reference.maps[:, ::-1])

    def wrong_sets(images: np.ndarray, targets: np.ndarray) -> Outputs:
        return said(reference, prediction_sets=np.ones_like(exact, bool))

    def wrong_flags(images: np.ndarray, targets: np.ndarray) -> Outputs:
        flags = said(reference).flags
        return said(reference, flags=flags | {"melanoma": ~flags["melanoma"]})

    def right(images: np.ndarray, targets: np.ndarray) -> Outputs:
        return said(reference, probabilities=exact[: len(images)])

    measure(reference, slightly_wrong, tmp_path, "float16")
    for run, kind, words in (
        (slightly_wrong, "float32", "probabilities by up to 0.0002, allowed 1e-04"),
        (very_wrong, "int8", "in the mean"),
        (wrong_maps, "float16", "map correlation"),
        (wrong_sets, "float32", "prediction set of 100"),
        (wrong_flags, "float32", "flags of 100"),
    ):
        with pytest.raises(ModelError, match=words):
            measure(reference, run, tmp_path, kind)
    with pytest.raises(ModelError, match="correlation of Integrated Gradients"):
        measure(
            reference,
            right,
            tmp_path,
            "float32",
            integrate=lambda images, targets: -reference.integrated,
        )


def test_a_loss_of_balanced_accuracy_is_refused_where_diagnoses_are_known(
    bundle: Bundle, tmp_path: Path
) -> None:
    images = [pixels(seed, 60, 80) for seed in range(6)]
    decided = bundle.calibration.balanced(Reference(bundle, images).logits)
    reference = Reference(bundle, images, decided)
    assert reference.balanced_accuracy(reference.probabilities) == 1.0

    def one_wrong(images: np.ndarray, targets: np.ndarray) -> Outputs:
        changed = reference.probabilities.copy()
        changed[0] = 0.001
        changed[0, (decided[0] + 1) % 7] = 0.994
        return said(reference, probabilities=changed)

    with pytest.raises(ModelError, match="balanced accuracy by -"):
        measure(reference, one_wrong, tmp_path, "int8")


def test_foreign_folder_is_refused_before_the_work(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "saved_model.pb").write_bytes(b"of another program")
    (tmp_path / "saved_model" / "notes.txt").write_text("mine")
    monkeypatch.setattr(exporting, "Reference", None)
    with pytest.raises(DataError, match=r"have changed since: notes\.txt"):
        exporting.export(bundle, tmp_path, ["saved_model"])
    assert len(list((tmp_path / "saved_model").iterdir())) == 2


def test_disk_that_is_too_small_is_refused_before_the_work(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=bundle.model.count_params() * 4)
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(exporting, "Reference", None)
    with pytest.raises(UsageError, match=r"The export needs about .* MB, but only .* MB are free"):
        exporting.export(bundle, tmp_path / "new" / "out", ["saved_model"])
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_and_foreign_folders_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown format 'onnx'"):
        exporting.export(bundle, tmp_path, ["onnx"])
    with pytest.raises(UsageError, match="No format"):
        exporting.export(bundle, tmp_path, [])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not a SavedModel of dermlens, so it is not replaced"):
        exporting.export_saved_model(tmp_path, Reference(bundle, [pixels(0, *SIZE)]))
    assert (tmp_path / "notes.txt").read_text() == "mine"

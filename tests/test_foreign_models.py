"""Three models that dermlens has not built, through every command.

Random weights: what is looked at is that numbers, names and files are right, not what was learned.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermlens.cli import main
from dermlens.data.images import load_image
from dermlens.data.splits import split_data_set
from dermlens.data.synthetic import draw, make_synthetic
from dermlens.labels import label_set
from dermlens.model.bundle import SHIPPED, load_bundle
from dermlens.model.calibration import probabilities

SIZE = (64, 64)


def squeezing_network_with_softmax() -> Any:
    """As an EfficientNet is made: preprocessing, swish, depthwise, squeeze and excitation."""
    import keras
    from keras import layers

    pixels = keras.Input((*SIZE, 3))
    scaled = layers.Normalization(mean=[0.5] * 3, variance=[0.1] * 3)(
        layers.Rescaling(1 / 255)(pixels)
    )
    stem = layers.BatchNormalization()(layers.Conv2D(8, 3, 2, padding="same")(scaled))
    wide = layers.DepthwiseConv2D(3, 2, padding="same")(layers.Activation("swish")(stem))
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(wide)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(squeezed)
    maps = layers.Activation("swish")(layers.Conv2D(16, 1)(layers.Multiply()([wide, gate])))
    pooled = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(maps))
    return keras.Model(pixels, layers.Dense(8, activation="softmax")(pooled))


def nested_residual_network_with_sigmoid() -> Any:
    import keras
    from keras import layers

    inside = keras.Input((*SIZE, 3))
    stem = layers.Conv2D(8, 7, 4, padding="same", activation="relu")(inside)
    branch = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(stem))
    maps = layers.Activation("relu")(layers.Add()([stem, branch]))
    backbone = keras.Model(inside, layers.MaxPooling2D()(maps), name="backbone")
    before = [keras.Input((*SIZE, 3)), layers.RandomFlip(), layers.Rescaling(1 / 255)]
    after = [layers.GlobalAveragePooling2D(), layers.Dense(1, activation="sigmoid")]
    return keras.Sequential([*before, backbone, *after])


def inverted_residuals_on_minus_one_to_one() -> Any:
    """As a MobileNetV2 is made, its preprocessing outside."""
    import keras
    from keras import layers

    pixels = keras.Input((*SIZE, 3))
    stem = layers.BatchNormalization()(layers.Conv2D(8, 3, 2, padding="same")(pixels))
    wide = layers.ReLU(6.0)(layers.Conv2D(24, 1, use_bias=False)(stem))
    deep = layers.ReLU(6.0)(layers.DepthwiseConv2D(3, padding="same")(wide))
    maps = layers.Add()([stem, layers.Conv2D(8, 1, use_bias=False)(deep)])
    last = layers.ReLU(6.0)(layers.Conv2D(32, 3, 4, padding="same")(maps))
    pooled = layers.GlobalAveragePooling2D()(last)
    return keras.Model(pixels, layers.Dense(2, activation="softmax")(pooled))


MODELS: dict[str, tuple[Callable[[], Any], str, str, tuple[float, float]]] = {
    "squeezing": (squeezing_network_with_softmax, "isic2019", "0,255", (0, 255)),
    "residual": (nested_residual_network_with_sigmoid, "binary", "0,255", (0, 255)),
    "inverted": (inverted_residuals_on_minus_one_to_one, "binary", "-1,1", (-1, 1)),
}


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0


@pytest.fixture(scope="module", params=MODELS)
def adopted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model, its bundle, calibrated on drawn images of its own classes, and these images."""
    import keras

    folder = tmp_path_factory.mktemp(request.param)
    make, name, words, value_range = MODELS[request.param]
    labels = label_set(name)
    keras.utils.set_random_seed(1)
    model = make()
    model.save(folder / "model.keras")
    images = 12 * len(labels)
    make_synthetic(folder / "data", images=images, size=SIZE, labels=labels, workers=1)
    split_data_set(folder / "data")
    bundle = folder / "bundle"
    named = ["--classes", name, f"--value-range={words}", "--data", folder / "data"]
    run("adopt", folder / "model.keras", *named, "--out", bundle)
    return model, load_bundle(bundle), folder, labels, value_range


def photograph(folder: Path) -> Path:
    return sorted((folder / "data" / "images").glob("*.jpg"))[0]


def test_predict_says_what_the_model_says(adopted: Any) -> None:
    model, bundle, folder, labels, (low, high) = adopted
    run("predict", bundle.path, folder / "data" / "images", "--out", folder / "p.csv")
    table = pd.read_csv(folder / "p.csv").sort_values("image_id")
    assert set(table.model) == {bundle.label} and (table.columns == "p_malignant").any()
    paths = [folder / "data" / "images" / f"{i}.jpg" for i in table.image_id[:4]]
    images = np.stack([load_image(path, SIZE) for path in paths]).astype(np.float32)
    given = np.asarray(model(low + images / 255 * (high - low), training=False), np.float64)
    given = np.concatenate([1 - given, given], axis=1) if given.shape[1] == 1 else given
    logits = table[[f"logit_{code}" for code in labels.codes]].to_numpy()[:4]
    # What the model itself says is what stands before calibration.
    assert np.abs(probabilities(logits, bundle.link) - given).max() < 1e-5
    assert bundle.calibrated and set(table.predicted) <= set(labels.codes)


def test_explain_gives_all_six_with_their_axioms(adopted: Any) -> None:
    _, bundle, folder, labels, _ = adopted
    out, target = folder / "explanations", labels.codes[-1]
    image = photograph(folder)
    run("explain", bundle.path, image, "--methods", "six", "--target", target, "--out", out)
    with np.load(next(out.rglob("attributions.npz"))) as stored:
        maps = {name: stored[name] for name in stored.files if stored[name].shape == SIZE}
    assert len(maps) >= 6 and all(np.isfinite(one).all() for one in maps.values())
    # What speaks against a class is cut off in class activation maps, which may leave nothing.
    signed = [name for name in maps if not name.startswith("grad_cam")]
    assert len(signed) == 4 and all(np.ptp(maps[name]) > 0 for name in signed)
    facts = json.loads(next(out.rglob("explanation.json")).read_text())["methods"]
    path, shap = facts["integrated_gradients"], facts["gp_shap"]
    change = path["output_value"] - path["baseline_output"]
    assert abs(maps["integrated_gradients"].sum() - change) <= 0.011 * abs(change) + 1e-5
    assert shap["additivity_gap"] < 1e-4 * max(1.0, abs(shap["output_value"]))


def test_compare_and_evaluate(adopted: Any) -> None:
    _, bundle, folder, labels, _ = adopted
    cheap = ["--methods", "grad_cam,integrated_gradients"]
    run("compare", bundle.path, photograph(folder), *cheap, "--out", folder / "comparison")
    assert list((folder / "comparison").rglob("*.html"))
    run("evaluate", bundle.path, folder / "data", "--resamples", 20, "--out", folder / "evaluation")
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert set(metrics["per_class"]) == set(labels.codes)


# Of a benchmark and an export, nothing depends on a network's make that the tests above do not ask.
@pytest.mark.parametrize("adopted", ["squeezing"], indirect=True)
def test_benchmark(adopted: Any) -> None:
    _, bundle, folder, labels, _ = adopted
    few = ["--n-samples", 20, "--robustness", 0, "--randomization", 0, "--pairs", 0, "--probes", 0]
    plan = ["--n", 8, "--split", "all", *few, "--methods", "grad_cam,gp_shap"]
    run("benchmark", bundle.path, folder / "data", *plan, "--out", folder / "benchmark")
    summary = json.loads((folder / "benchmark" / "summary.json").read_text())
    assert summary["n_images"] == 8 and set(summary["per_class"]) <= set(labels.codes)


@pytest.mark.parametrize("adopted", ["residual"], indirect=True)
def test_exports_answer_as_the_bundle_does(adopted: Any) -> None:
    import tensorflow as tf

    _, bundle, folder, _, _ = adopted
    few = ["--images", folder / "data" / "images", "--limit", 3]
    run("export", bundle.path, "--formats", "saved_model", *few, "--out", folder / "exported")
    module = tf.saved_model.load(str(folder / "exported" / "saved_model"))
    image = load_image(photograph(folder), SIZE)
    answer = module.signatures["serving_default"](images=tf.constant(image[None]))
    expected = bundle.probabilities(bundle.logits(image[None]))
    assert np.abs(answer["probabilities"].numpy() - expected).max() < 1e-4


def test_the_page_answers_with_the_models_own_names(adopted: Any) -> None:
    from dermlens.serve.app_actions import Actions

    _, bundle, folder, labels, _ = adopted
    analysis = Actions(bundle).analyze(photograph(folder))
    assert labels.codes[analysis.predicted] in labels.codes


def test_the_shipped_network_adopted_is_the_shipped_bundle(tmp_path: Path) -> None:
    """Its probabilities and maps, as a plain softmax model on 0..1, saved and loaded."""
    import keras

    import dermlens as dl

    shipped = load_bundle(SHIPPED)
    unit = keras.Input((*shipped.input_size, 3))
    logits = shipped.model(keras.layers.Rescaling(255.0)(unit))
    keras.Model(unit, keras.layers.Softmax()(logits)).save(tmp_path / "plain.keras")
    codes = ",".join(shipped.classes)
    run(
        "adopt",
        tmp_path / "plain.keras",
        "--classes",
        codes,
        "--value-range",
        "0,1",
        "--out",
        tmp_path / "b",
    )
    adopted = load_bundle(tmp_path / "b")
    image = draw("mel", 3, shipped.input_size)[0][None]
    ours, theirs = adopted.logits(image), shipped.logits(image)
    assert np.abs(ours - theirs).max() < 1e-4
    calibration = shipped.calibration
    assert np.abs(calibration.probabilities(ours) - calibration.probabilities(theirs)).max() < 1e-5
    one, other = (dl.GradCAM(each).attribute(image, "mel").maps for each in (adopted, shipped))
    assert np.abs(other).max() > 0 and np.abs(one - other).max() < 1e-4 * np.abs(other).max()

"""Building networks and loading weights by name."""

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest

from dermlens.errors import ModelError
from dermlens.model.classifier import (
    BACKBONES,
    Architecture,
    backbone_layers,
    build_classifier,
    stage_start,
)
from dermlens.model.finetuning import choose_trainable
from dermlens.model.optimization import RunningAverage, TwoRateOptimizer
from dermlens.model.weights import (
    load_all_by_name,
    load_by_name,
    no_coverage,
    rounded,
    save_by_name,
    set_weights,
)


@pytest.fixture(scope="module")
def resnet():
    return build_classifier(Architecture("resnet50", (64, 96)))


def test_resnet_is_flat_and_returns_float32_logits(resnet):
    import keras

    assert not [layer for layer in resnet.layers if isinstance(layer, keras.Model)]
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    logits = resnet(images, training=False).numpy()
    assert logits.shape == (2, 7) and logits.dtype == np.float32
    assert not np.allclose(logits.sum(axis=1), 1)


def preprocessed(name: str, images: np.ndarray) -> np.ndarray:
    """What reaches the first layer of a backbone that sees raw pixels."""
    import keras

    from dermlens.model.classifier import preprocess

    pixels = keras.Input((4, 6, 3))
    model = keras.Model(pixels, preprocess(pixels, BACKBONES[name][1]))
    return model(images).numpy()


@pytest.mark.parametrize(
    ("name", "module"),
    [("resnet50", "resnet50"), ("densenet169", "densenet"), ("mobilenetv2", "mobilenet_v2")],
)
def test_preprocessing_equals_that_of_keras_applications(name, module):
    import importlib

    images = np.random.default_rng(0).uniform(0, 255, (2, 4, 6, 3)).astype(np.float32)
    reference = importlib.import_module(f"keras.applications.{module}").preprocess_input
    expected = np.asarray(reference(images.copy()))
    assert np.allclose(preprocessed(name, images), expected, atol=1e-4)


def shrunk(name: str) -> Any:
    """A backbone of the same blocks, and so the same kinds of layers, but few and narrow ones."""
    from keras.src.applications import (
        convnext,
        densenet,
        efficientnet,
        efficientnet_v2,
        mobilenet_v2,
        mobilenet_v3,
        resnet,
    )

    def residual(blocks: Any) -> Callable[[Any], Any]:
        return lambda x: blocks(blocks(x, 8, 2, stride1=1, name="conv2"), 8, 2, name="conv3")

    build, options = {
        "resnet50": (resnet.ResNet, (residual(resnet.stack_residual_blocks_v1), False, True)),
        "resnet50v2": (resnet.ResNet, (residual(resnet.stack_residual_blocks_v2), True, True)),
        "densenet121": (densenet.DenseNet, ([2, 1, 1, 1],)),
        "efficientnetb0": (efficientnet.EfficientNet, (0.2, 0.4, 32)),
        "efficientnetv2b0": (efficientnet_v2.EfficientNetV2, (0.2, 0.4, 32)),
        "mobilenetv2": (mobilenet_v2.MobileNetV2, (None, 0.35)),
        "mobilenetv3small": (mobilenet_v3.MobileNetV3Small, (None, 0.25)),
        "convnexttiny": (convnext.ConvNeXt, ([1, 1, 2, 1], [8, 8, 16, 16])),
    }[name]
    # This one finds its blocks by its name.
    named = {"name": "efficientnetv2-b0"} if name == "efficientnetv2b0" else {}
    return lambda **given: build(*options, **named, **given)


@pytest.fixture
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backbone, which is built from few and narrow blocks here."""
    import keras

    application, _ = BACKBONES[request.param]
    assert callable(getattr(keras.applications, application))
    monkeypatch.setattr(keras.applications, application, shrunk(request.param))
    return request.param


ALIKE = {"densenet169", "mobilenetv3large"}
"""They only repeat the blocks of a smaller one."""


@pytest.mark.parametrize("small", sorted({*BACKBONES} - ALIKE), indirect=True)
def test_every_backbone_trains_one_step_and_comes_back_from_a_file(small, tmp_path):
    import tensorflow as tf

    model = build_classifier(Architecture(small, (32, 32)))
    assert model.count_params() < 800_000
    pretrained, fresh = choose_trainable(model, no_coverage(model), "all")
    optimizer = TwoRateOptimizer(
        pretrained, fresh, pretrained_rate=0, fresh_rate=1e-3, weight_decay=0, clip_norm=1
    )
    statistics = [w for w in model.non_trainable_weights if "float" in str(w.dtype)]
    average = RunningAverage([*optimizer.trained, *statistics], 0.5)
    before = [variable.numpy() for variable in optimizer.trained]
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.nn.log_softmax(model(images, training=True))[:, 0])
    optimizer.apply(tape.gradient(loss, [v.value for v in optimizer.trained]))
    average.update(0)
    average.swap()
    after = [variable.numpy() for variable in optimizer.trained]
    assert not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    expected = rounded(model.get_weights(), "float16")
    save_by_name(model, tmp_path / "w.h5", dtype="float16")
    set_weights(model, [np.ones_like(w) for w in expected])
    load_all_by_name(model, tmp_path / "w.h5")
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), expected, strict=True))


@pytest.mark.parametrize("small", ["convnexttiny", "efficientnetb0"], indirect=True)
def test_weights_come_back_into_another_network_of_the_same_process(small, tmp_path):
    """Keras numbers nameless layers on and on, and ``Normalization`` computes with a copy."""
    first, second = (build_classifier(Architecture(small, (32, 32)), seed=k) for k in (0, 1))
    weights = first.get_weights()
    weights[:2] = [w + 0.5 for w in weights[:2]]
    set_weights(first, weights)
    save_by_name(first, tmp_path / "w.h5")
    load_all_by_name(second, tmp_path / "w.h5")
    images = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    one, other = (np.asarray(model(images, training=False)) for model in (first, second))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("name", ["efficientnetv2b0", "mobilenetv3large"])
def test_backbones_with_their_own_preprocessing_get_raw_pixels(name):
    images = np.random.default_rng(0).uniform(0, 255, (1, 4, 6, 3)).astype(np.float32)
    assert BACKBONES[name][1] == "inside"
    import keras

    pixels = keras.Input((4, 6, 3))
    from dermlens.model.classifier import preprocess

    assert preprocess(pixels, "inside") is pixels
    assert images.max() > 1


def test_bfloat16_computes_in_bfloat16_and_ends_in_float32(tiny):
    import keras

    model = build_classifier(Architecture(tiny, (32, 32)), precision="mixed_bfloat16")
    assert model.get_layer("conv1_conv").compute_dtype == "bfloat16"
    assert model.get_layer("conv1_conv").kernel.dtype == "float32"
    assert model(np.zeros((1, 32, 32, 3), np.float32)).dtype.name == "float32"
    assert keras.config.dtype_policy().name == "float32"


def test_seed_sets_the_initialization(tiny):
    first, again, other = (build_classifier(Architecture(tiny), seed=s) for s in (1, 1, 2))
    kernels = [m.get_layer("conv1_conv").get_weights()[0] for m in (first, again, other)]
    assert np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        (Architecture("resnet5000"), "Unknown backbone 'resnet5000'. Use one of: resnet50"),
        (Architecture("resnet50", (16, 64)), "too small"),
    ],
)
def test_impossible_networks_are_refused(architecture, words):
    with pytest.raises(ModelError, match=words):
        build_classifier(architecture)


def test_stages(resnet):
    layers = backbone_layers(resnet)
    assert layers[stage_start(resnet, "conv4")].name.startswith("conv4_block1")
    assert not [x.name for x in layers[: stage_start(resnet, "conv4")] if "conv4" in x.name]
    assert stage_start(resnet, "all") == 0 and stage_start(resnet, "none") == len(layers)
    with pytest.raises(ModelError, match="No layer of dermlens_resnet50 starts with 'conv9'"):
        stage_start(resnet, "conv9")


def test_weights_survive_a_file(tiny, tmp_path):
    model, other = (build_classifier(Architecture(tiny), seed=s) for s in (1, 2))
    for dtype, tolerance in (("float32", 0.0), ("float16", 1e-3)):
        path = save_by_name(model, tmp_path / f"{dtype}.h5", dtype=dtype)
        load_all_by_name(other, path)
        for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
            assert np.abs(a - b).max() <= tolerance
    half, full = (tmp_path / f"{d}.h5" for d in ("float16", "float32"))
    assert half.stat().st_size < full.stat().st_size


def test_file_can_be_loaded_by_keras_itself(tiny, tmp_path):
    model, other = (build_classifier(Architecture(tiny), seed=s) for s in (1, 2))
    save_by_name(model, tmp_path / "weights.h5")
    other.load_weights(tmp_path / "weights.h5", by_name=True)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        assert np.array_equal(a, b)


def partial_file(model, path, skip: str):
    """A by-name file without the layers whose name starts with ``skip``."""
    save_by_name(model, path)
    with h5py.File(path, "a") as file:
        names = [n if isinstance(n, str) else n.decode() for n in file.attrs["layer_names"]]
        file.attrs["layer_names"] = [n.encode() for n in names if not n.startswith(skip)]
    return path


def test_partial_weights_say_what_is_not_covered(tiny, tmp_path):
    model, other = (build_classifier(Architecture(tiny), seed=s) for s in (1, 2))
    path = partial_file(model, tmp_path / "part.h5", "conv2")
    before = other.get_layer("conv2_conv").get_weights()[0]
    coverage = load_by_name(other, path)
    assert coverage.covered == ("conv1_conv", "conv1_bn")
    assert coverage.uncovered == ("conv2_conv", "conv2_bn")
    assert not coverage.complete
    assert "not covered" in coverage.sentence() and "conv2_conv, conv2_bn" in coverage.sentence()
    assert np.array_equal(other.get_layer("conv2_conv").get_weights()[0], before)
    expected = model.get_layer("conv1_conv").get_weights()[0]
    assert np.array_equal(other.get_layer("conv1_conv").get_weights()[0], expected)


def test_weights_of_another_network_are_refused_and_nothing_is_copied(tiny, tmp_path):
    model = build_classifier(Architecture(tiny), seed=1)
    path = save_by_name(build_classifier(Architecture("mobilenetv2", (32, 32))), tmp_path / "m.h5")
    before = model.get_weights()
    with pytest.raises(ModelError, match="weights of another network"):
        load_by_name(model, path)
    with h5py.File(save_by_name(model, tmp_path / "bent.h5"), "a") as file:
        name = file["conv2_conv"].attrs["weight_names"][0]
        del file["conv2_conv"][name]
        file["conv2_conv"][name] = np.zeros((3, 3, 5, 8), np.float32)
    with pytest.raises(ModelError, match="layer 'conv2_conv' has shapes"):
        load_by_name(model, tmp_path / "bent.h5")
    for a, b in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_missing_and_damaged_weight_files(tiny, tmp_path):
    model = build_classifier(Architecture(tiny))
    with pytest.raises(ModelError, match="is missing"):
        load_by_name(model, tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ModelError, match="cannot be read as HDF5"):
        load_by_name(model, tmp_path / "text.h5")


def test_imagenet_weights_that_cannot_be_fetched_are_explained(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    import keras

    monkeypatch.setattr(
        keras.applications,
        "MobileNetV2",
        lambda **options: offline() if options["weights"] == "imagenet" else None,
    )
    with pytest.raises(ModelError, match=r"could not be downloaded \(no route to host\)"):
        build_classifier(Architecture("mobilenetv2", (32, 32)), imagenet=True)

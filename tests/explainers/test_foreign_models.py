"""Models as other people write them are explained as the same network written plainly."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dermlens.errors import ExplanationError, ModelError, UsageError
from dermlens.explainers.grad_cam import GradCAM, GradCAMPlusPlus
from dermlens.explainers.integrated_gradients import IntegratedGradients
from dermlens.explainers.layers import find_features
from dermlens.explainers.lime import LIME
from dermlens.explainers.occlusion import Occlusion
from dermlens.explainers.output import Probability
from dermlens.explainers.registry import METHODS, SIX, create
from dermlens.explainers.superpixels import grid_cells
from dermlens.model.image_classifier import ImageClassifier
from explain_networks import function_network, linear_network, pooled_network, smooth_images

SIZE = (12, 16)
IMAGES = smooth_images(2, SIZE)
CLASSES = 3
PIECES = grid_cells(*SIZE, 6)
OPTIONS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"n_steps": 8, "tolerance": None},
    "occlusion": {"patch_size": 4, "stride": 4},
    "lime": {"superpixels": PIECES, "n_samples": 40},
    "gp_shap": {"superpixels": PIECES, "n_samples": 64},
    "kernel_shap": {"superpixels": PIECES, "n_samples": 64},
}
ACTIVATION_MAPS = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam")


def convolutions() -> list[Any]:
    """Smooth, so that a few steps along a path are enough."""
    import keras

    kind = keras.layers.Conv2D
    return [
        kind(5, 3, strides=2, padding="same", activation="softplus", kernel_initializer=normal(1)),
        kind(5, 3, padding="same", activation="softplus", kernel_initializer=normal(2)),
    ]


def normal(seed: int) -> Any:
    import keras

    return keras.initializers.RandomNormal(stddev=0.6, seed=seed)


def dense(units: int = CLASSES, activation: str | None = None) -> Any:
    import keras

    return keras.layers.Dense(units, activation=activation, kernel_initializer=normal(3))


def flat() -> Any:
    """Photographs in, logits out, one layer after the other."""
    import keras

    pixels = keras.Input((*SIZE, 3))
    x = keras.layers.Rescaling(1 / 255)(pixels)
    for layer in convolutions():
        x = layer(x)
    return keras.Model(pixels, dense()(keras.layers.GlobalAveragePooling2D()(x)))


def chained(size: tuple[int | None, int | None], *layers: Any) -> Any:
    import keras

    return keras.Sequential([keras.Input((*size, 3)), *layers])


def with_nested_backbone() -> Any:
    """A backbone as one layer, preprocessing and augmentation inside, dropout, a softmax."""
    from keras import layers

    backbone = chained(SIZE, *convolutions())
    inside = [layers.RandomFlip(), layers.Rescaling(1 / 255), backbone]
    head = [layers.GlobalAveragePooling2D(), layers.Dropout(0.5), dense(activation="softmax")]
    return ImageClassifier(chained(SIZE, *inside, *head))


def with_normalization() -> Any:
    """Standardized inside, an activation layer of its own at the end."""
    from keras import layers

    before = layers.Normalization(mean=[0.0] * 3, variance=[255.0**2] * 3)
    head = [layers.GlobalAveragePooling2D(), dense(), layers.Activation("softmax")]
    return ImageClassifier(chained(SIZE, before, *convolutions(), *head))


def from_zero_to_one() -> Any:
    from keras import layers

    model = chained(SIZE, *convolutions(), layers.GlobalAveragePooling2D(), dense())
    return ImageClassifier(model, value_range=(0, 1))


def from_minus_one_to_one() -> Any:
    from keras import layers

    body = [layers.Rescaling(0.5, 0.5), *convolutions(), layers.GlobalAveragePooling2D()]
    model = chained(SIZE, *body, dense(activation="sigmoid"))
    return ImageClassifier(model, value_range=(-1, 1))


def of_any_size() -> Any:
    from keras import layers

    body = [layers.Rescaling(1 / 255), *convolutions(), layers.GlobalAveragePooling2D()]
    return ImageClassifier(chained((None, None), *body, dense()), input_size=SIZE)


def pooled_by_other_layers() -> Any:
    """A full-size average instead of the global one, a 1x1 convolution instead of Dense."""
    from keras import layers

    head = [
        layers.AveragePooling2D((SIZE[0] // 2, SIZE[1] // 2)),
        layers.Conv2D(CLASSES, 1, kernel_initializer=lambda s, **_: normal(3)(s[-2:])[None, None]),
        layers.Flatten(),
        layers.Softmax(),
    ]
    return ImageClassifier(chained(SIZE, layers.Rescaling(1 / 255), *convolutions(), *head))


def saved_and_loaded(folder: Path) -> Any:
    import keras
    from keras import layers

    backbone = chained(SIZE, *convolutions())
    head = [layers.GlobalAveragePooling2D(), dense(activation="softmax")]
    chained(SIZE, layers.Rescaling(1 / 255), backbone, *head).save(folder / "model.keras")
    return ImageClassifier(keras.models.load_model(folder / "model.keras"))


def subclassed() -> Any:
    import keras

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="own")
            self.steps = [keras.layers.Rescaling(1 / 255), *convolutions()]
            self.steps += [keras.layers.GlobalAveragePooling2D(), dense()]

        def call(self, inputs: Any, training: Any = None) -> Any:
            for step in self.steps:
                inputs = step(inputs)
            return inputs

    return ImageClassifier(Own(), input_size=SIZE, output="logits")


BUILDERS: dict[str, Callable[[], Any]] = {
    one.__name__: one
    for one in (
        with_nested_backbone,
        with_normalization,
        from_zero_to_one,
        from_minus_one_to_one,
        of_any_size,
        pooled_by_other_layers,
        subclassed,
    )
}


def explain(name: str, model: Any, **more: Any) -> Any:
    return create(name, model, **OPTIONS.get(name, {})).attribute(IMAGES, 1, **more)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    model = flat()
    return {name: explain(name, model).maps for name in SIX}


def check(model: Any, expected: dict[str, np.ndarray], close: float = 1e-4) -> None:
    for name in SIX:
        if name in ACTIVATION_MAPS and model.model.name == "standard_own":
            with pytest.raises(ExplanationError, match=r"'own' cannot be seen, .* subclassed"):
                create(name, model)
            continue
        result, scale = explain(name, model), np.abs(expected[name]).max()
        assert np.abs(result.maps - expected[name]).max() <= close * scale, name
        total = result.maps.sum(axis=(1, 2))
        if name == "integrated_gradients":
            assert (result.convergence_delta < 0.01).all()
            change = result.values - result.baseline_output
            np.testing.assert_allclose(total, change, rtol=0.01)
        if name == "gp_shap":
            assert result.estimator.tolist() == ["exact"] * 2
            assert (result.additivity_gap < 1e-5).all()


@pytest.mark.parametrize("name", list(BUILDERS))
def test_maps_are_those_of_the_plain_network(name: str, expected: dict[str, np.ndarray]) -> None:
    check(BUILDERS[name](), expected)


def test_a_model_that_was_saved(tmp_path: Path, expected: dict[str, np.ndarray]) -> None:
    check(saved_and_loaded(tmp_path), expected)


def test_half_precision_changes_little(expected: dict[str, np.ndarray]) -> None:
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = with_nested_backbone()
    finally:
        keras.config.set_dtype_policy(before)
    for name in SIX:
        maps = explain(name, model).maps
        assert np.corrcoef(maps.ravel(), expected[name].ravel())[0, 1] > 0.95, name
    assert (explain("gp_shap", model).additivity_gap < 1e-4).all()


def test_a_layer_used_twice_is_two_layers_of_the_same_weights() -> None:
    import keras

    def network(first: Any, second: Any) -> Any:
        pixels = keras.Input((*SIZE, 3))
        x = keras.layers.Conv2D(5, 3, kernel_initializer=normal(1))(
            keras.layers.Rescaling(1 / 255)(pixels)
        )
        x = second(first(x))
        return keras.Model(pixels, dense()(keras.layers.GlobalAveragePooling2D()(x)))

    shared, alone, other = (convolutions()[1] for _ in range(3))
    together, apart = network(shared, shared), network(alone, other)
    for name in SIX:
        one, two = explain(name, together).maps, explain(name, apart).maps
        np.testing.assert_allclose(one, two, atol=1e-4 * np.abs(two).max(), err_msg=name)


def test_one_sigmoid_is_two_classes_that_speak_against_each_other() -> None:
    from keras import layers

    body = [layers.Rescaling(1 / 255), *convolutions(), layers.GlobalAveragePooling2D()]
    model = ImageClassifier(chained(SIZE, *body, dense(1, "sigmoid")), "binary")
    for name in ("grad_cam", "integrated_gradients", "occlusion", "lime", "gp_shap"):
        result = create(name, model, **OPTIONS.get(name, {})).attribute(IMAGES, "all")
        if result.signed:
            against, one_for = result.maps[:, 0], result.maps[:, 1]
            np.testing.assert_allclose(against, -one_for, atol=1e-4 * np.abs(one_for).max())
        np.testing.assert_allclose(result.values[:, 0], -result.values[:, 1], rtol=1e-5)
    logits = model.logits(IMAGES)
    chance = create("occlusion", model, **OPTIONS["occlusion"]).attribute(
        IMAGES, "malignant", output=Probability()
    )
    np.testing.assert_allclose(chance.values, 1 / (1 + np.exp(-logits[:, 1])), rtol=1e-5)


@pytest.mark.parametrize("pooling", ["global", "full size", "1x1 head"])
def test_last_feature_maps_have_more_than_one_place(pooling: str) -> None:
    """By hand: relu of weight times feature over four places; what is 1x1 cannot be a map."""
    import keras

    kernel = np.zeros((2, 2, 3, 1), np.float32)
    kernel[0, 0, 0, 0] = 1.0
    plain = pooled_network(kernel, np.array([[4.0, -4.0]], np.float32), (4, 4))
    features = plain.get_layer("features")
    x = features.output
    if pooling == "full size":
        x = keras.layers.AveragePooling2D(2)(x)
    else:
        x = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    head = np.array([4.0, -4.0], np.float32)
    if pooling == "1x1 head":
        made = keras.layers.Conv2D(2, 1, use_bias=False)
        outputs = keras.layers.Flatten()(made(x))
        made.set_weights([head[None, None, None]])
    else:
        made = keras.layers.Dense(2, use_bias=False)
        outputs = made(keras.layers.Flatten()(x))
        made.set_weights([head[None]])
    model = keras.Model(plain.inputs, outputs)
    image = np.zeros((1, 4, 4, 3), np.float32)
    image[0, ::2, ::2, 0] = [[8.0, 2.0], [4.0, 0.0]]
    assert find_features(model).layer == "features"
    for kind in (GradCAM, GradCAMPlusPlus):
        found = kind(model, registration="tiles").attribute(image, 0).maps
        np.testing.assert_allclose(
            found, kind(plain, registration="tiles").attribute(image, 0).maps
        )
    corners = GradCAM(model, registration="tiles").attribute(image, 0).maps[0, ::3, ::3]
    np.testing.assert_allclose(corners, [[8.0, 2.0], [4.0, 0.0]], atol=1e-5)


def test_mobilenet_with_its_own_top() -> None:
    import keras

    model = keras.applications.MobileNetV3Small((64, 96, 3), weights=None, classes=4)
    explainer = GradCAM(ImageClassifier(model))
    assert [step.shape for step in explainer.features.steps][explainer.features.step][1:3] == (2, 3)
    assert np.ptp(explainer.attribute(smooth_images(1, (64, 96)), 0).maps) > 0


def two_of(what: str) -> Any:
    import keras

    first, second = keras.Input((*SIZE, 3)), keras.Input((*SIZE, 3))
    flattened = keras.layers.Flatten()(first)
    if what == "outputs":
        return keras.Model(first, [dense()(flattened), dense()(flattened)])
    return keras.Model([first, second], dense()(flattened))


def test_what_is_no_image_classifier_is_refused_by_a_sentence() -> None:
    import keras
    from keras import layers

    segmentation = chained(SIZE, layers.Conv2D(2, 1))
    gray = keras.Sequential([keras.Input((*SIZE, 1)), layers.Flatten(), dense()])
    for model, words in (
        (two_of("outputs"), "has 2 outputs"),
        (two_of("inputs"), "has 2 inputs"),
        (segmentation, "no one answer per image"),
        (gray, "gray images"),
        (keras.Sequential([layers.Flatten(), dense()]), "does not say which images"),
    ):
        with pytest.raises(ModelError, match=words):
            create("occlusion", model)


@pytest.mark.parametrize("connected", [True, False])
def test_a_constant_answer_has_empty_maps(connected: bool) -> None:
    """A network that ignores the image, with a gradient of zero and with none at all."""
    import tensorflow as tf

    def ignoring(pixels: Any) -> Any:
        return tf.ones((tf.shape(pixels)[0], 3)) * [1.0, 2.0, 3.0]

    model = linear_network(np.zeros((*SIZE, 3, 3)), [1.0, 2.0, 3.0])
    if not connected:
        model = function_network(SIZE, ignoring)
    for name in ("integrated_gradients", "occlusion", "lime", "gp_shap", "kernel_shap"):
        result = explain(name, model)
        assert (result.maps == 0).all() and (result.values == 2).all(), name
        known = {k: v for k, v in result.arrays().items() if v.dtype.kind == "f"}
        assert all(np.isfinite(value).all() for value in known.values()), name
        assert result.facts().get("convergence_delta", 0.0) == 0.0
    assert explain("lime", model).r2.tolist() == explain("kernel_shap", model).explained.tolist()
    few = {"superpixels": PIECES, "n_samples": 40}
    assert create("gp_shap", model, **few).attribute(IMAGES, 1).explained.tolist() == [1.0, 1.0]


def test_baselines_are_in_the_range_of_the_classifier() -> None:
    model = linear_network(np.ones((*SIZE, 3, 2)))
    photographs, shares = ImageClassifier(model), ImageClassifier(model, value_range=(0, 1))
    image = np.full((1, *SIZE, 3), 200, np.uint8)
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    pairs: list[tuple[Any, Any]] = [
        (0.5, 127.5),
        ((1.0, 0.0, 0.2), (255.0, 0.0, 51.0)),
        ([1, 0, 0], [255, 0, 0]),
        (picture / 255.0, picture.astype(np.float32)),
        (picture, picture),
        ("black", "black"),
    ]
    for ours, plain in pairs:
        for kind, options in ((Occlusion, {}), (LIME, {"superpixels": PIECES, "n_samples": 40})):
            found = kind(shares, baseline=ours, **options).attribute(image, 0).maps
            wanted = kind(photographs, baseline=plain, **options).attribute(image, 0).maps
            # The foreign model divides by 255 first.
            np.testing.assert_allclose(found * 255, wanted, rtol=1e-3, atol=1e-2)
    several = IntegratedGradients(shares, baseline=[0.5, "black"], tolerance=None)
    assert [np.ravel(one).tolist() for one in several.baselines] == [[127.5], ["black"]]
    for wrong in (float("nan"), (0.0, float("inf"), 0.0), ("black", "white"), None):
        with pytest.raises(UsageError, match="baseline"):
            IntegratedGradients(shares, baseline=wrong)
    with pytest.raises(UsageError, match="does not fit"):
        Occlusion(shares, baseline=(0.1, 0.2)).attribute(image, 0)


def test_numbers_of_numpy_are_sizes_too() -> None:
    model = linear_network(np.ones((*SIZE, 3, 2)))
    four = Occlusion(model, patch_size=np.int64(4), stride=(np.int32(4), np.uint8(4)))
    assert four.attribute(IMAGES, 0, batch_size=np.int64(5)).effects.shape == (2, 12)
    pieces = LIME(model, superpixels=np.int64(6), n_samples=np.int32(20))
    assert pieces.attribute(IMAGES, 0).n_samples.tolist() == [20, 20]
    for options in ({"superpixels": 1}, {"superpixels": 2.5}, {"n_samples": 3}):
        with pytest.raises(UsageError, match="must be a whole number of at least"):
            LIME(model, **options)
    with pytest.raises(UsageError, match="The patch_size of an occlusion must be"):
        Occlusion(model, patch_size=0)


def test_a_layer_that_does_not_exist() -> None:
    with pytest.raises(ExplanationError, match=r"has no layer 'nosuch'. Its last layers"):
        GradCAM(with_nested_backbone(), "nosuch")


def test_a_call_pays_for_itself_and_not_for_its_neighbors() -> None:
    """While one thread waits between two images, another explains three."""
    explainer = Occlusion(linear_network(np.ones((*SIZE, 3, 2))), patch_size=4, stride=4)
    images, finished = smooth_images(3, SIZE), threading.Event()
    costs: dict[int, Any] = {}

    def work(count: int, progress: Any = None) -> None:
        costs[count] = explainer.attribute(images[:count], 0, progress=progress).cost

    def other() -> None:
        work(3)
        finished.set()

    def wait(done: int) -> None:
        if not finished.is_set():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    work(2, wait)
    assert finished.is_set()
    assert {count: cost.forward for count, cost in costs.items()} == {2: 26, 3: 39}


def test_methods_say_what_they_share() -> None:
    assert {name for name, one in METHODS.items() if one.superpixels} == {
        "lime",
        "gp_shap",
        "kernel_shap",
    }

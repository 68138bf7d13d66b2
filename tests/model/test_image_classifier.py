"""Foreign Keras models as what everything takes: right logits, right names, or a sentence."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import ModelError, UsageError
from dermlens.labels import HAM10000
from dermlens.model.image_classifier import ImageClassifier, as_classifier

SIZE = (8, 12)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)


def body(inputs: Any, seed: int = 0) -> Any:
    """Pooled features (N, 4) of a small convolution, the same for a seed."""
    from keras import initializers, layers

    kernel = initializers.RandomNormal(0.01, seed=seed)
    maps = layers.Conv2D(4, 3, padding="same", activation="relu", kernel_initializer=kernel)(inputs)
    return layers.GlobalAveragePooling2D()(maps)


def head(units: int, activation: str | None = None, seed: int = 1) -> Any:
    from keras import initializers, layers

    normal = initializers.RandomNormal(0.5, seed=seed)
    return layers.Dense(units, activation, kernel_initializer=normal, bias_initializer=normal)


def network(units: int = 3, activation: str | None = None, size: Any = SIZE) -> Any:
    import keras

    pixels = keras.Input((*size, 3))
    return keras.Model(pixels, head(units, activation)(body(pixels)))


def answers(model: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(model(images.astype(np.float32), training=False), np.float64)


def test_a_network_in_the_standard_form_is_used_itself() -> None:
    model = network()
    classifier = ImageClassifier(model)
    assert classifier.model is model and classifier.link == "softmax" and classifier.note == ""
    assert np.allclose(classifier.logits(IMAGES), answers(model, IMAGES), atol=1e-5)
    assert classifier.classes == ("class 0", "class 1", "class 2") and not classifier.calibrated
    assert as_classifier(classifier) is classifier


def functional_softmax() -> Any:
    return network(3, "softmax")


def separate_softmax() -> Any:
    import keras

    pixels = keras.Input((*SIZE, 3))
    return keras.Model(pixels, keras.layers.Softmax()(head(3)(body(pixels))))


def operation_softmax() -> Any:
    import keras

    pixels = keras.Input((*SIZE, 3))
    return keras.Model(pixels, keras.ops.softmax(head(3)(body(pixels))))


def activation_behind_a_reshape() -> Any:
    import keras

    pixels = keras.Input((*SIZE, 3))
    shaped = keras.layers.Reshape((3,))(head(3)(body(pixels)))
    return keras.Model(pixels, keras.layers.Flatten()(keras.layers.Activation("softmax")(shaped)))


def nested_whole() -> Any:
    import keras

    return keras.Sequential([keras.Input((*SIZE, 3)), network(3, "softmax")])


def nested_backbone() -> Any:
    import keras

    pixels = keras.Input((*SIZE, 3))
    backbone = keras.Model(pixels, body(pixels), name="backbone")
    layers = [keras.Input((*SIZE, 3)), keras.layers.RandomFlip(), backbone]
    return keras.Sequential([*layers, keras.layers.Dropout(0.5), head(3, "softmax")])


SOFTMAX = (
    functional_softmax,
    separate_softmax,
    operation_softmax,
    activation_behind_a_reshape,
    nested_whole,
    nested_backbone,
)


@pytest.mark.parametrize("make", SOFTMAX)
def test_the_last_activation_is_left_out_exactly(make: Any) -> None:
    model, plain = make(), network(3)
    model.set_weights(plain.get_weights())
    classifier = ImageClassifier(model)
    assert classifier.note == "" and classifier.link == "softmax"
    assert np.allclose(classifier.logits(IMAGES), answers(plain, IMAGES), atol=1e-4)
    shares = classifier.probabilities(classifier.logits(IMAGES))
    assert np.allclose(shares, answers(model, IMAGES), atol=1e-6)


@pytest.mark.parametrize("units", [1, 3])
def test_a_standard_network_alone_is_known_for_what_it_is(units: int) -> None:
    classifier = ImageClassifier(network(units, "sigmoid"), value_range=(0, 1))
    again = as_classifier(classifier.model)
    assert again.model is classifier.model and again.link == "sigmoid"


def test_layers_are_used_and_not_copied() -> None:
    model = functional_softmax()
    classifier = ImageClassifier(model)
    before = classifier.logits(IMAGES)
    model.set_weights([w * 0.5 for w in model.get_weights()])
    after = classifier.logits(IMAGES)
    assert not np.allclose(before, after)
    assert np.allclose(classifier.probabilities(after), answers(model, IMAGES), atol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_one_output_becomes_two_classes_by_its_log_odds(activation: str | None) -> None:
    model = network(1, activation)
    classifier = ImageClassifier(model, "binary")
    logit = answers(network(1), IMAGES)[:, 0]
    logits = classifier.logits(IMAGES)
    assert classifier.link == "sigmoid" and logits.shape == (3, 2)
    assert np.allclose(logits, np.stack([-logit, logit], axis=1), atol=1e-4)
    chance = 1 / (1 + np.exp(-logit))
    assert np.allclose(classifier.probabilities(logits)[:, 1], chance, atol=1e-5)
    assert np.allclose(classifier.probabilities(logits).sum(axis=1), 1)


def test_several_sigmoids_stand_each_for_itself() -> None:
    model = network(3, "sigmoid")
    classifier = ImageClassifier(model)
    assert classifier.link == "sigmoid"
    shares = classifier.probabilities(classifier.logits(IMAGES))
    assert np.allclose(shares, answers(model, IMAGES), atol=1e-6)


@pytest.mark.parametrize("value_range", [(0, 1), (-1, 1), (-2.5, 4)])
def test_the_range_of_values_is_the_users(value_range: tuple[float, float]) -> None:
    low, high = value_range
    model = network(3, "softmax")
    classifier = ImageClassifier(model, value_range=value_range)
    own = (low + IMAGES.astype(np.float32) / 255 * (high - low)).astype(np.float32)
    expected = answers(model, own)
    for images in (IMAGES, own):
        shares = classifier.probabilities(classifier.logits(images))
        assert np.allclose(shares, expected, atol=1e-5)
    assert classifier.photographs(own).min() >= -1e-3
    assert np.allclose(classifier.photographs(own), IMAGES, atol=1e-3)


@pytest.mark.parametrize(("mode", "module"), [("caffe", "resnet50"), ("torch", "densenet")])
def test_preprocessing_outside_of_the_model(mode: str, module: str) -> None:
    import importlib

    prepare = importlib.import_module(f"keras.applications.{module}").preprocess_input
    model = network(3)
    expected = answers(model, np.asarray(prepare(IMAGES.astype(np.float32))))
    classifier = ImageClassifier(model, preprocessing=mode)
    assert np.allclose(classifier.logits(IMAGES), expected, atol=1e-4)


def test_any_size_needs_a_size_and_gets_it() -> None:
    model = network(3, "softmax", (None, None))
    with pytest.raises(ModelError, match=r"any size. Give input_size=\(height, width\)"):
        ImageClassifier(model)
    assert ImageClassifier(model, input_size=SIZE).input_size == SIZE


def test_subclassed_models_tell_what_they_give_by_pictures() -> None:
    import keras

    class Own(keras.Model):  # type: ignore[misc]
        def __init__(self, activation: str | None) -> None:
            super().__init__()
            self.pool, self.last = keras.layers.GlobalAveragePooling2D(), head(3, activation)

        def call(self, inputs: Any, training: bool = False) -> Any:
            return self.last(self.pool(inputs / 255))

    model = Own("softmax")
    with pytest.raises(ModelError, match="does not say which images it takes"):
        ImageClassifier(model)
    classifier = ImageClassifier(model, input_size=SIZE)
    assert "logarithm" in classifier.note and classifier.link == "softmax"
    shares = classifier.probabilities(classifier.logits(IMAGES))
    assert np.allclose(shares, answers(model, IMAGES), atol=1e-6)
    plain = ImageClassifier(Own(None), input_size=SIZE)
    assert plain.note == "" and plain.link == "softmax"
    with pytest.raises(ModelError, match="cannot be told from its graph"):
        ImageClassifier(Own("sigmoid"), input_size=SIZE)
    told = ImageClassifier(Own("sigmoid"), input_size=SIZE, output="sigmoid")
    assert told.link == "sigmoid"


def test_mixed_precision_gives_float32_logits() -> None:
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network(3, "softmax")
    finally:
        keras.config.set_dtype_policy(before)
    classifier = ImageClassifier(model)
    assert classifier.model.output.dtype == "float32"
    shares = classifier.probabilities(classifier.logits(IMAGES))
    assert np.abs(shares - answers(model, IMAGES)).max() < 0.02


def test_a_saved_model_is_the_same_again(tmp_path: Any) -> None:
    import keras

    model = nested_backbone()
    model.save(tmp_path / "m.keras")
    loaded = ImageClassifier(keras.models.load_model(tmp_path / "m.keras"))
    assert np.allclose(loaded.logits(IMAGES), ImageClassifier(model).logits(IMAGES), atol=1e-6)


def two_inputs() -> Any:
    import keras

    first, second = keras.Input((*SIZE, 3)), keras.Input((2,))
    joined = keras.layers.Concatenate()([body(first), second])
    return keras.Model([first, second], head(3)(joined))


def two_outputs() -> Any:
    import keras

    pixels = keras.Input((*SIZE, 3))
    return keras.Model(pixels, [head(3)(body(pixels)), head(2)(body(pixels))])


def of_shape(*shape: int | None) -> Any:
    import keras

    pixels = keras.Input(shape)
    return keras.Model(pixels, head(3)(keras.layers.Flatten()(pixels)))


def segmentation() -> Any:
    import keras

    pixels = keras.Input((*SIZE, 3))
    return keras.Model(pixels, keras.layers.Conv2D(3, 1)(pixels))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (two_inputs, "has 2 inputs. An image classifier has one"),
        (two_outputs, r"has 2 outputs. Give keras.Model\(model.inputs, model.outputs\[k\]\)"),
        (lambda: of_shape(3, 8, 12), "channels first"),
        (lambda: of_shape(8, 12, 1), "gray images"),
        (lambda: of_shape(8, 12, 4), r"takes \(N, 8, 12, 4\)"),
        (lambda: of_shape(5), "which are no images"),
        (segmentation, "gives no one answer per image"),
        (lambda: network(1, "softmax"), "softmax over one output, which is always 1"),
        (lambda: "model", "is no Keras model"),
    ],
)
def test_what_is_no_image_classifier_is_told_so(make: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        ImageClassifier(make())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"value_range": (1, 0)}, "The value range 1 to 0 is empty"),
        ({"value_range": 255}, "two numbers"),
        ({"output": "sigmoid"}, "ends in a softmax, not in sigmoid"),
        ({"output": "odds"}, "Unknown output 'odds'"),
        ({"preprocessing": "mine"}, "Unknown preprocessing 'mine'"),
        ({"preprocessing": "caffe", "value_range": (0, 1)}, "starts from 0 to 255"),
        ({"input_size": (9, 9)}, "takes images of 8x12"),
        ({"class_names": HAM10000}, "7 class names"),
        ({"class_names": "benign,malignant"}, "2 class names .* a model with 3 outputs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        ImageClassifier(functional_softmax(), **settings)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (IMAGES[0], "do not fit the model"),
        (IMAGES[:, :4], r"takes \(N, 8, 12, 3\)"),
        (IMAGES[:0], "at least one image"),
        (np.full((1, *SIZE, 3), np.nan), "not finite"),
        (np.full((1, *SIZE, 3), "x"), "hold numbers"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: np.ndarray, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ImageClassifier(network()).logits(images)

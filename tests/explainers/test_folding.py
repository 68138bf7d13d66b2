"""Folded normalization: the same numbers, fewer passes over the feature maps."""

from typing import Any

import numpy as np
import pytest

from dermlens.explainers.base import Network
from dermlens.explainers.folding import folded_logits
from explain_networks import smooth_images, trained_like

SIZE = (24, 32)


def unsettled(model: Any, seed: int = 0) -> Any:
    """Give every weight, moving statistics among them, a value far from its first one."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        values = np.asarray(weight)
        if "moving_variance" in weight.path:
            weight.assign(generator.uniform(0.3, 3.0, values.shape))
        elif "kernel" not in weight.path:
            weight.assign(generator.normal(0.2, 0.5, values.shape))
    return model


def images(count: int = 3) -> np.ndarray:
    return smooth_images(count, SIZE).astype(np.float32)


def operations(model: Any) -> list[Any]:
    """Return the operations of a graph that runs a model folded."""
    import tensorflow as tf

    spec = tf.TensorSpec((None, *SIZE, 3), tf.float32)
    traced = tf.function(lambda x: folded_logits(model, x), autograph=False)
    found: list[Any] = traced.get_concrete_function(spec).graph.get_operations()
    return found


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dense_blocks", [False, True])
def test_same_logits(nested: bool, dense_blocks: bool) -> None:
    model = unsettled(trained_like(SIZE, nested=nested, dense_blocks=dense_blocks))
    expected = np.asarray(model(images(), training=False))
    assert expected.std() > 0.1
    np.testing.assert_allclose(folded_logits(model, images()), expected, rtol=1e-5, atol=1e-4)


def test_no_normalization_is_left_after_a_convolution() -> None:
    found = operations(unsettled(trained_like(SIZE)))
    # Two convolutions, each followed by its normalization, and nothing computed twice.
    assert [operation.type for operation in found].count("Conv2D") == 2
    # Products on maps: the rescaling of pixels alone; the others scale vectors and kernels.
    shapes = [operation.outputs[0].shape for operation in found if operation.type == "Mul"]
    assert [tuple(shape) for shape in shapes if shape.rank == 4 and shape[0] is None] == [
        (None, *SIZE, 3)
    ]


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("center", [False, True])
def test_every_kind_of_convolution_and_normalization(
    use_bias: bool, scale: bool, center: bool
) -> None:
    import keras

    inputs = keras.Input((*SIZE, 3))
    layers = (
        keras.layers.Conv2D(4, 3, strides=2, padding="valid", use_bias=use_bias),
        keras.layers.Conv2D(5, (3, 2), dilation_rate=2, padding="same", use_bias=use_bias),
    )
    value = keras.layers.Rescaling(1 / 255.0)(inputs)
    for layer in layers:
        normalization = keras.layers.BatchNormalization(scale=scale, center=center, epsilon=0.01)
        value = normalization(layer(value))
    pooled = keras.layers.GlobalAveragePooling2D()(value)
    model = unsettled(keras.Model(inputs, keras.layers.Dense(2)(pooled)))
    expected = model(images(), training=False)
    np.testing.assert_allclose(folded_logits(model, images()), expected, rtol=1e-4, atol=1e-5)


def test_convolution_that_something_else_reads_too() -> None:
    import keras

    inputs = keras.Input((*SIZE, 3))
    maps = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255.0)(inputs))
    joined = keras.layers.Add()([keras.layers.BatchNormalization()(maps), maps])
    grouped = keras.layers.Conv2D(4, 3, groups=2)(joined)
    active = keras.layers.Conv2D(3, 1, activation="relu")(
        keras.layers.BatchNormalization()(grouped)
    )
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(active))
    model = unsettled(keras.Model(inputs, pooled))
    expected = model(images(), training=False)
    np.testing.assert_allclose(folded_logits(model, images()), expected, rtol=1e-4, atol=1e-5)


def test_normalization_of_another_axis_is_not_folded_and_nothing_is_computed_twice() -> None:
    import keras

    inputs = keras.Input((*SIZE, 3))
    maps = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(1 / 255.0)(inputs))
    rows = keras.layers.BatchNormalization(axis=1)(maps)
    joined = keras.layers.Add()([rows, keras.layers.ReLU()(maps)])
    model = unsettled(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(joined)))
    expected = model(images(), training=False)
    np.testing.assert_allclose(folded_logits(model, images()), expected, rtol=1e-4, atol=1e-5)
    assert [operation.type for operation in operations(model)].count("Conv2D") == 1


def test_model_that_ends_with_a_convolution() -> None:
    import keras

    inputs = keras.Input((*SIZE, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    np.testing.assert_allclose(
        folded_logits(model, images()), model(images(), training=False), rtol=1e-4, atol=1e-3
    )


def test_sequential_model() -> None:
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((*SIZE, 3)),
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    unsettled(model)
    expected = model(images(), training=False)
    np.testing.assert_allclose(folded_logits(model, images()), expected, rtol=1e-4, atol=1e-3)


def test_changed_weights_are_followed_without_a_new_trace() -> None:
    model = unsettled(trained_like(SIZE))
    network = Network(model)
    before = network.logits(images()).numpy()
    unsettled(model, seed=1)
    after = network.logits(images()).numpy()
    assert np.abs(after - before).max() > 0.1 and network.traces == 1
    np.testing.assert_allclose(after, model(images(), training=False), rtol=1e-4, atol=1e-4)


def test_same_gradient() -> None:
    import tensorflow as tf

    model = unsettled(trained_like(SIZE))
    pixels = tf.constant(images())
    gradients = []
    for run in (lambda x: folded_logits(model, x), lambda x: model(x, training=False)):
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            value = run(pixels)[:, 3]
        gradients.append(tape.gradient(value, pixels).numpy())
    scale = np.abs(gradients[1]).max()
    assert scale > 0
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-5 * scale)


def test_mixed_precision_is_left_as_it_is() -> None:
    model = unsettled(trained_like(SIZE, precision="mixed_bfloat16"))
    expected = np.asarray(model(images(), training=False))
    np.testing.assert_array_equal(np.asarray(folded_logits(model, images())), expected)


def test_subclass_with_a_call_of_its_own_is_called() -> None:
    import keras

    class Doubled(keras.Model):
        def call(self, inputs: Any, training: bool = False) -> Any:
            return 2 * super().call(inputs, training=training)

    inputs = keras.Input((*SIZE, 3))
    normalized = keras.layers.BatchNormalization()(keras.layers.Conv2D(2, 3)(inputs))
    outputs = keras.layers.GlobalAveragePooling2D()(normalized)
    model = Doubled(inputs, outputs)
    plain = keras.Model(inputs, outputs)
    np.testing.assert_allclose(
        folded_logits(model, images()), 2 * np.asarray(plain(images(), training=False)), rtol=1e-5
    )

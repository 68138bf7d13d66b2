"""Small networks with known behavior, to explain by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def linear_network(weights: np.ndarray, bias: Sequence[float] | None = None) -> Any:
    """Logit c = sum of weights[..., c] times pixels, plus bias: (H, W, 3, C)."""
    import keras

    *shape, classes = weights.shape
    inputs = keras.Input(tuple(shape))
    flat = keras.layers.Flatten()(inputs)
    dense = keras.layers.Dense(classes, name="logits")
    model = keras.Model(inputs, dense(flat))
    offset = np.zeros(classes) if bias is None else np.asarray(bias)
    dense.set_weights([weights.reshape(-1, classes), offset])
    return model


def pooled_network(
    kernel: np.ndarray, head: np.ndarray, size: tuple[int, int], activation: str = "relu"
) -> Any:
    """A 1x1 convolution with stride, global average pooling and a Dense layer.

    Args:
        kernel: (k, k, 3, K); the stride is k, so feature maps are (H / k, W / k).
        head: (K, C).
        size: (H, W).
        activation: Of the convolution.
    """
    import keras

    inputs = keras.Input((*size, 3))
    convolution = keras.layers.Conv2D(
        kernel.shape[-1],
        kernel.shape[0],
        strides=kernel.shape[0],
        use_bias=False,
        activation=activation,
        name="features",
    )
    pooled = keras.layers.GlobalAveragePooling2D()(convolution(inputs))
    dense = keras.layers.Dense(head.shape[1], use_bias=False, name="logits")
    model = keras.Model(inputs, dense(pooled))
    convolution.set_weights([kernel])
    dense.set_weights([head])
    return model


def function_network(size: tuple[int, int], function: Any) -> Any:
    """Logits from any function of the pixels, made of TensorFlow or Keras operations."""
    import keras

    inputs = keras.Input((*size, 3))
    return keras.Model(inputs, keras.layers.Lambda(function, name="logits")(inputs))


def trained_like(
    size: tuple[int, int],
    *,
    nested: bool = False,
    dense_blocks: bool = False,
    precision: str = "float32",
    classes: int = 7,
    seed: int = 0,
) -> Any:
    """A small convolutional network with normalization and random, not tiny, weights."""
    import keras

    keras.utils.set_random_seed(seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        inputs = keras.Input((*size, 3), name="image")
        scaled = keras.layers.Rescaling(1 / 64.0, offset=-2.0, name="scaled")(inputs)
        if nested:
            body_input = keras.Input((*size, 3))
            body = keras.Model(body_input, _body(body_input, dense_blocks), name="backbone")
            maps = body(scaled)
        else:
            maps = _body(scaled, dense_blocks)
        pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(maps)
        dropped = keras.layers.Dropout(0.5, name="dropped")(pooled)
        logits = keras.layers.Dense(
            classes, dtype="float32", kernel_initializer=_normal(1.0, seed + 99), name="logits"
        )(dropped)
        return keras.Model(inputs, logits)
    finally:
        keras.config.set_dtype_policy(before)


def _normal(spread: float, seed: int) -> Any:
    import keras

    return keras.initializers.RandomNormal(stddev=spread, seed=seed)


def _body(x: Any, dense_blocks: bool) -> Any:
    import keras

    for number, channels in enumerate((8, 12)):
        made = keras.layers.Conv2D(
            channels,
            3,
            strides=2,
            padding="same",
            kernel_initializer=keras.initializers.HeNormal(seed=number),
            name=f"conv{number + 1}",
        )(x)
        made = keras.layers.BatchNormalization(name=f"norm{number + 1}")(made)
        made = keras.layers.ReLU(name=f"relu{number + 1}")(made)
        if dense_blocks:
            extra = keras.layers.Conv2D(6, 3, padding="same", name=f"extra{number + 1}")(made)
            made = keras.layers.Concatenate(name=f"joined{number + 1}")([made, extra])
            made = keras.layers.BatchNormalization(name=f"joined_norm{number + 1}")(made)
            made = keras.layers.ReLU(name=f"joined_relu{number + 1}")(made)
        x = made
    return x


def smooth_images(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Pictures with soft colored blobs: uint8 (N, H, W, 3)."""
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(seed)
    noise = gaussian_filter(generator.normal(size=(count, *size, 3)), (0, 3, 3, 0))
    return np.clip(noise / noise.std() * 45 + 150, 0, 255).astype(np.uint8)

"""Where cells look, against gradients, and where their values are drawn, against bright pixels."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.layers import find_features, recorded_steps, traced_size
from dermlens.explainers.registration import (
    CellAxis,
    CellGrid,
    Drawing,
    cell_grids,
    interpolation,
    registered,
    tiles,
)
from dermlens.explainers.stages import StageCAM
from dermlens.model.image_classifier import ImageClassifier

SIZE = (64, 80)


def network(*layers: Any, size: tuple[int, int] = SIZE) -> Any:
    """A functional model of the given layers, pooled, with one output; all weights positive."""
    import keras

    inputs = value = keras.Input((*size, 3))
    for layer in layers:
        value = layer(value)
    pooled = keras.layers.GlobalAveragePooling2D()(value)
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(pooled))
    return evened(model)


def evened(model: Any) -> Any:
    """Give every kernel equal positive weights and every normalization none."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            evened(layer)
            continue
        weights = []
        for variable in layer.weights:
            shape, name = tuple(variable.shape), variable.path.split("/")[-1]
            ones = name.endswith("kernel") or name in ("gamma", "moving_variance")
            value = np.ones(shape) if ones else np.zeros(shape)
            if name.endswith("kernel"):
                # Depthwise kernels see one channel each.
                depthwise = "Depthwise" in type(layer).__name__ or name == "depthwise_kernel"
                value /= np.prod(shape[:2] if depthwise else shape[:-1])
            weights.append(value)
        layer.set_weights(weights)
    return model


def cell_grid(model: Any, step: int) -> CellGrid:
    return cell_grids(recorded_steps(model), [step], traced_size(model))[0]


def conv(stride: int, kernel: int = 3, padding: str = "same", **more: Any) -> Any:
    import keras

    return keras.layers.Conv2D(
        2, kernel, strides=stride, padding=padding, use_bias=False, activation="relu", **more
    )


def layers(name: str) -> list[Any]:
    import keras

    made = keras.layers
    return {
        "strided 1x1": [conv(1), conv(2, 1), conv(1), conv(2, 1)],
        "same, strided 3x3": [conv(2), conv(2), conv(2)],
        "explicit padding": [
            made.ZeroPadding2D(((3, 3), (1, 2))),
            conv(2, 7, "valid"),
            made.ZeroPadding2D(1),
            conv(2, 3, "valid"),
        ],
        "valid": [conv(2, 5, "valid"), conv(2, 3, "valid")],
        "dilated": [conv(2), conv(1, 3, dilation_rate=2), conv(2, 2)],
        "max pooling": [conv(1), made.MaxPooling2D(2), conv(1), made.MaxPooling2D(3, 2, "same")],
        "average pooling": [conv(1), made.AveragePooling2D(2), conv(1), made.AveragePooling2D(2)],
        "cropping": [conv(2), made.Cropping2D(((3, 1), (2, 5))), conv(2)],
        "up and down": [conv(2), conv(2), made.UpSampling2D(2), conv(2), conv(2)],
        "transposed": [conv(4, 5), made.Conv2DTranspose(2, 3, 2, "same"), conv(2)],
        "separable": [made.SeparableConv2D(2, 3, 2, "same"), made.DepthwiseConv2D(5, 2, "same")],
    }[name]


KINDS = (
    "strided 1x1",
    "same, strided 3x3",
    "explicit padding",
    "valid",
    "dilated",
    "max pooling",
    "average pooling",
    "cropping",
    "up and down",
    "transposed",
    "separable",
)


def centroids(model: Any, step: int, size: tuple[int, int], count: int) -> tuple[Any, Any]:
    """Where single cells in the middle look, by the gradient of their sum, and which cells."""
    import tensorflow as tf

    features = find_features(model)
    features = replace(features, step=step)
    # Maxima choose one pixel of a window: the mean over many images shows the window's middle.
    images = np.random.default_rng(0).uniform(100, 120, (count, *size, 3))
    image = tf.constant(images, tf.float32)
    shape = features.run(image)[0].shape
    cells = [(shape[1] // 2, shape[2] // 2), ((shape[1] - 1) // 2, (shape[2] - 1) // 2)]
    found = []

    @tf.function(autograph=False)
    def slopes(row: Any, column: Any) -> Any:
        return tf.gradients(features.run(image)[0][:, row, column], image)[0]

    for row, column in cells:
        gradient = np.asarray(slopes(tf.constant(row), tf.constant(column)))
        weight = np.abs(gradient).sum(axis=(0, -1), dtype=np.float64)
        places = np.indices(weight.shape)
        found.append((places * weight).sum(axis=(1, 2)) / weight.sum())
    return np.array(found), np.array(cells)


@pytest.mark.parametrize("size", [(64, 80), (65, 83)])
@pytest.mark.parametrize("name", KINDS)
def test_centers_are_those_of_the_gradients(name: str, size: tuple[int, int]) -> None:
    model = network(*layers(name), size=size)
    features = find_features(model)
    grid = cell_grid(model, features.step)
    found, cells = centroids(model, features.step, size, 64 if name == "max pooling" else 2)
    expected = np.stack([grid.rows.centers[cells[:, 0]], grid.columns.centers[cells[:, 1]]], axis=1)
    # Cells that are read twice, after enlarging, pull the mean their way.
    bound = {"max pooling": 0.5, "up and down": 0.34}.get(name, 0.01)
    assert np.abs(found - expected).max() < bound, (found, expected)
    assert grid.assumed == ()


def test_centers_by_hand() -> None:
    """Strides by 1x1 look at 0, 4, 8, …; ``same`` pads even sizes at the end alone."""
    model = network(*layers("strided 1x1"))
    assert cell_grid(model, find_features(model).step).rows == CellAxis(0.0, 4.0, 16, 64)
    model = network(*layers("same, strided 3x3"))
    assert cell_grid(model, find_features(model).step).columns == CellAxis(7.0, 8.0, 10, 80)
    # An odd size is padded on both sides: 2 j, then 1 + 2 j of 32 cells, then 1 + 2 j of 16.
    model = network(*layers("same, strided 3x3"), size=(63, 63))
    assert cell_grid(model, find_features(model).step).rows == CellAxis(6.0, 8.0, 8, 63)


def test_branches_and_gates() -> None:
    """Branches that look elsewhere count half each; a gate without places counts nothing."""
    import keras

    inputs = keras.Input((32, 32, 3))
    value = keras.layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    short = keras.layers.Conv2D(4, 1, strides=2)(inputs)
    both = keras.layers.Add()([value, short])
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(both)
    gated = keras.layers.Multiply()([both, keras.layers.Dense(4, "sigmoid")(gate)])
    pooled = keras.layers.GlobalAveragePooling2D()(gated)
    model = keras.Model(inputs, keras.layers.Dense(2)(pooled))
    features = find_features(model)
    assert cell_grid(model, features.step).rows == CellAxis(0.5, 2.0, 16, 32)


def test_an_unknown_operation_is_measured() -> None:
    import keras

    @keras.saving.register_keras_serializable("tests")
    class EverySecond(keras.layers.Layer):
        def call(self, images: Any) -> Any:
            return images[:, 1::2, 1::2]

    class Blind(keras.layers.Layer):
        def call(self, images: Any) -> Any:
            import tensorflow as tf

            return tf.stop_gradient(images[:, ::2, ::2])

    for kind, first, assumed in ((EverySecond, 1.0, 0), (Blind, 0.5, 1)):
        model = network(conv(1), kind(name="unknown"), conv(1))
        grid = cell_grid(model, find_features(model).step)
        assert grid.rows == CellAxis(pytest.approx(first), pytest.approx(2.0), 32, 64)
        assert len(grid.assumed) == assumed


def bright(model: Any, place: tuple[int, int], registration: Any) -> np.ndarray:
    """The Grad-CAM of an image that is dark but for one pixel, (H, W)."""
    image = np.zeros((1, *model.input_shape[1:]), np.float32)
    image[0, place[0], place[1]] = 255.0
    # The second of two classes: what one output speaks for.
    return GradCAM(model, registration=registration).attribute(image, 1).maps[0]


def peak(values: np.ndarray) -> np.ndarray:
    """The middle of the highest places."""
    return np.argwhere(values >= values.max() * (1 - 1e-6)).mean(axis=0)


@pytest.mark.parametrize("name", [k for k in KINDS if k not in ("cropping", "transposed")])
def test_a_bright_pixel_is_found_where_it_is(name: str) -> None:
    model = network(*layers(name), conv(1), conv(1))
    grid = cell_grid(model, find_features(model).step)
    row, column = round(grid.rows.centers[5]), round(grid.columns.centers[6])
    spacing = grid.rows.spacing
    found = peak(bright(model, (row, column), "receptive_field"))
    assert np.abs(found - (row, column)).max() <= spacing / 4, (found, row, column)
    missed = peak(bright(model, (row, column), "tiles"))
    shift = tiles(grid.rows.cells, grid.rows.pixels).centers[5] - grid.rows.centers[5]
    assert np.abs(missed - (row, column))[0] == pytest.approx(abs(shift), abs=1.01)


@pytest.mark.parametrize(
    ("backbone", "layer", "first"),
    [
        ("resnet50", "conv5_block3_out", 0.0),
        ("densenet121", "relu", 14.0),
        ("efficientnetv2b0", "top_activation", 31.0),
        ("mobilenetv3small", "activation", 31.0),
    ],
)
def test_real_backbones(backbone: str, layer: str, first: float) -> None:
    """With evened weights a bright patch is found where it is; equal tiles miss it.

    The maps are those after the last activation, where the head pools, not of the last convolution.
    """
    import tensorflow as tf

    from dermlens.model.classifier import Architecture, build_classifier

    size = (160, 192)
    model = evened(build_classifier(Architecture(backbone, size, classes=("a", "b"))))
    features = find_features(model)
    assert layer in features.layer and features.dense is not None
    grid = Drawing(features, [features.step]).grids(size)[0]
    assert grid.rows == CellAxis(first, 32.0, 5, 160)
    assert grid.columns == CellAxis(first, 32.0, 6, 192)
    assert grid.assumed == ()
    row, column = round(grid.rows.centers[2]), round(grid.columns.centers[2]) + 8
    images = np.zeros((2, *size, 3), np.float32)
    images[1, row - 1 : row + 2, column - 1 : column + 2] = 10_000.0
    dark, lit = np.asarray(features.run(tf.constant(images))[0]).sum(axis=-1)
    for registration in ("receptive_field", "tiles"):
        weights = Drawing(features, [features.step], registration).weights(size)[0]
        found = peak(weights[0] @ np.maximum(lit - dark, 0) @ weights[1].T)
        missed = float(np.abs(found - (row, column)).max())
        assert (missed <= 8) == (registration == "receptive_field" or backbone == "densenet121")


def test_interpolation_by_hand() -> None:
    """Half way between two cells both count half; on a cell three quarters and two eighths."""
    weights = interpolation(CellAxis(0.0, 4.0, 3, 12))
    np.testing.assert_allclose(weights[4], [0.125, 0.75, 0.125], atol=1e-7)
    np.testing.assert_allclose(weights[6], [0.0, 0.5, 0.5], atol=1e-7)
    np.testing.assert_allclose(weights[0], [0.875, 0.125, 0.0], atol=1e-7)
    np.testing.assert_allclose(weights[11], [0.0, 0.0, 1.0], atol=1e-2)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)


def test_cells_as_fine_as_pixels_are_left_alone() -> None:
    np.testing.assert_array_equal(interpolation(CellAxis(0.0, 1.0, 5, 5)), np.eye(5))


def test_tiles_are_the_plain_resize() -> None:
    import tensorflow as tf

    cells = np.random.default_rng(0).uniform(size=(1, 6, 8, 1)).astype(np.float32)
    plain = tf.image.resize(cells, (45, 64), method="bilinear").numpy()[0, ..., 0]
    rows, columns = interpolation(tiles(6, 45), "tiles"), interpolation(tiles(8, 64), "tiles")
    np.testing.assert_allclose(rows @ cells[0, ..., 0] @ columns.T, plain, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (3, 7), (5,), (2, 3, 2)])
def test_batches_are_drawn_as_one_by_one(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    cells = generator.uniform(size=(*shape, 6, 8)).astype(np.float32)
    rows = generator.uniform(size=(96, 6)).astype(np.float32)
    columns = generator.uniform(size=(128, 8)).astype(np.float32)
    expected = np.einsum("...hw,Hh,Ww->...HW", cells, rows, columns)
    np.testing.assert_allclose(registered(cells, rows, columns), expected, rtol=1e-4)


def roundness(weights: np.ndarray) -> float:
    """How far one cell's map differs between straight and oblique, as a share of its peak."""
    drawn = np.outer(weights, weights)
    pairs = [(d, round(d / np.sqrt(2))) for d in (8, 16, 24, 32, 40)]
    apart = [abs(drawn[128 + d, 128] - drawn[128 + o, 128 + o]) for d, o in pairs]
    return float(max(apart) / drawn.max())


def test_no_diamonds() -> None:
    """The map of one cell falls off nearly alike in all directions; the plain resize's does not."""
    axis = CellAxis(0.0, 32.0, 9, 257)
    assert roundness(interpolation(axis)[:, 4]) < 0.05
    assert roundness(np.maximum(1 - np.abs(np.arange(257) - 128) / 32, 0)) > 0.08


def test_unknown_registration() -> None:
    model = network(conv(2))
    features = find_features(model)
    for made in (
        lambda: GradCAM(model, registration="moved"),
        lambda: Drawing(features, [1], "x"),
    ):
        with pytest.raises(UsageError, match="receptive_field, tiles"):
            made()


def test_any_size_of_image() -> None:
    """A model without a fixed size is registered for each size by itself."""
    import keras

    inputs = keras.Input((None, None, 3))
    value = conv(2)(inputs)
    pooled = keras.layers.GlobalAveragePooling2D()(value)
    model = evened(keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(pooled)))
    for size, first in (((32, 40), 1.0), ((33, 41), 0.0)):
        explainer = GradCAM(ImageClassifier(model, input_size=size))
        maps = explainer.attribute(np.ones((1, *size, 3), np.float32), 1).maps
        assert maps.shape == (1, *size)
        assert explainer.drawing.grids(size)[0].rows.first == first


def test_depths_are_registered_too() -> None:
    """Every stage of a network with strided 1x1 convolutions peaks at the bright pixel."""
    model = network(conv(1), conv(2, 1), conv(1), conv(2, 1), conv(1), conv(2, 1), conv(1))
    image = np.zeros((1, *SIZE, 3), np.float32)
    image[0, 32, 40] = 255.0
    cam = StageCAM(model)
    for stage, drawn in zip(cam.stages, cam.maps(image, np.array([1])), strict=True):
        spacing = SIZE[0] / stage.size[0]
        assert np.abs(peak(drawn[0]) - (32, 40)).max() <= max(spacing / 4, 1.0), stage

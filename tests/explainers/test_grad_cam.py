"""Class activation maps against tables worked out by hand and against each other."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import ExplanationError
from dermlens.explainers.grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from dermlens.explainers.output import Contrast, Logit, Probability
from explain_networks import pooled_network, smooth_images, trained_like

FAMILY = (GradCAM, GradCAMPlusPlus, LayerCAM, HiResCAM)

# Feature maps of the hand-made network: red and green of each 2x2 block, on a 2x3 grid.
RED = np.array([[0.0, 10.0, 20.0], [30.0, 40.0, 50.0]])
GREEN = np.array([[60.0, 0.0, 0.0], [0.0, 0.0, 12.0]])
HEAD = np.array([[1.0, -1.0], [2.0, 0.5]])


def block_image() -> np.ndarray:
    """The image whose blocks have the colors above: (1, 4, 6, 3)."""
    blocks = np.stack([RED, GREEN, np.zeros_like(RED)], axis=-1)
    return blocks.repeat(2, axis=0).repeat(2, axis=1)[None]


def block_kernel() -> np.ndarray:
    kernel = np.zeros((2, 2, 3, 2), np.float32)
    kernel[:, :, 0, 0] = kernel[:, :, 1, 1] = 0.25
    return kernel


def enlarged(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear about half-pixel centers, written independently with np.interp."""
    rows = (np.arange(size[0]) + 0.5) * grid.shape[0] / size[0] - 0.5
    columns = (np.arange(size[1]) + 0.5) * grid.shape[1] / size[1] - 0.5
    wide = np.stack([np.interp(columns, np.arange(grid.shape[1]), line) for line in grid])
    return np.stack(
        [np.interp(rows, np.arange(grid.shape[0]), wide[:, c]) for c in range(size[1])], axis=1
    )


def flat_head_network() -> tuple[Any, np.ndarray]:
    """The same feature maps, but a head that weights every place by itself: weights (6, 2, 2)."""
    import keras

    weights = np.random.default_rng(3).normal(size=(2, 3, 2, 2)).round(2)
    inputs = keras.Input((4, 6, 3))
    features = keras.layers.Conv2D(2, 2, strides=2, use_bias=False, name="features")
    dense = keras.layers.Dense(2, use_bias=False)
    model = keras.Model(inputs, dense(keras.layers.Flatten()(features(inputs))))
    features.set_weights([block_kernel()])
    dense.set_weights([weights.reshape(12, 2)])
    return model, weights


@pytest.mark.parametrize("form", ["closed", "tape"])
def test_grad_cam_by_hand(form: str) -> None:
    model = pooled_network(block_kernel(), HEAD, (4, 6))
    result = GradCAM(model, form=form, registration="tiles").attribute(block_image(), "all")
    for target in (0, 1):
        weights = HEAD[:, target] / 6
        expected = np.maximum(weights[0] * RED + weights[1] * GREEN, 0)
        np.testing.assert_allclose(
            result.maps[0, target], enlarged(expected, (4, 6)), rtol=1e-6, atol=1e-6
        )
    np.testing.assert_allclose(
        result.values[0], [(RED + 2 * GREEN).mean(), (-RED + 0.5 * GREEN).mean()], rtol=1e-6
    )


def test_plus_plus_by_hand() -> None:
    """Uniform gradients g > 0 give weights n * alpha * g with alpha = 1 / (2 + sum(A) g)."""
    model = pooled_network(block_kernel(), HEAD, (4, 6))
    result = GradCAMPlusPlus(model, registration="tiles").attribute(block_image(), 0)
    gradients = np.array([0.5, 1.0])  # 1/6 and 2/6, over the larger of the two
    sums = np.array([RED.sum(), GREEN.sum()])
    weights = 6 * gradients / (2 + sums * gradients)
    expected = weights[0] * RED + weights[1] * GREEN
    np.testing.assert_allclose(result.maps[0], enlarged(expected, (4, 6)), rtol=1e-5)


def test_family_by_hand_with_a_gradient_at_every_place() -> None:
    model, weights = flat_head_network()
    activations = np.stack([RED, GREEN], axis=-1)
    gradient = weights[..., 1]
    positive = np.maximum(gradient, 0) / gradient.max()
    total = activations.sum(axis=(0, 1))
    with np.errstate(invalid="ignore"):
        alpha = np.nan_to_num(positive**2 / (2 * positive**2 + total * positive**3))
    expected = {
        GradCAM: activations @ gradient.mean(axis=(0, 1)),
        GradCAMPlusPlus: activations @ (alpha * positive).sum(axis=(0, 1)),
        LayerCAM: (activations * np.maximum(gradient, 0)).sum(axis=-1),
        HiResCAM: (activations * gradient).sum(axis=-1),
    }
    for kind, grid in expected.items():
        result = kind(model, registration="tiles").attribute(block_image(), 1)
        np.testing.assert_allclose(
            result.maps[0], enlarged(np.maximum(grid, 0), (4, 6)), rtol=1e-5, atol=1e-5
        )
        assert result.cost.backward == 1


@pytest.mark.parametrize("output", [Logit(), Contrast(2)])
@pytest.mark.parametrize("kind", FAMILY)
def test_closed_form_equals_tape(kind: Any, output: Any) -> None:
    model, images = trained_like((36, 52)), smooth_images(3, (36, 52))
    closed = kind(model, form="closed").attribute(images, "all", output=output)
    tape = kind(model, form="tape").attribute(images, "all", output=output)
    assert closed.cost.backward == 0 and closed.cost.forward == 3
    assert tape.cost.backward == 21
    scale = closed.maps.max(axis=(2, 3), keepdims=True) + 1e-12
    assert np.abs((closed.maps - tape.maps) / scale).max() < 1e-5


@pytest.mark.parametrize("factor", [1e-3, 50.0])
@pytest.mark.parametrize("kind", FAMILY)
def test_scaling_the_head_changes_no_normalized_map(kind: Any, factor: float) -> None:
    model, images = trained_like((24, 36)), smooth_images(2, (24, 36))
    maps = []
    for scale in (1.0, factor):
        dense = model.get_layer("logits")
        dense.kernel.assign(dense.kernel * scale)
        for form in ("closed", "tape"):
            made = kind(model, form=form).attribute(images, 4).maps
            maps.append(made / made.max(axis=(1, 2), keepdims=True))
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], atol=1e-5)


def test_map_is_where_the_evidence_is_and_not_transposed() -> None:
    model = pooled_network(block_kernel(), HEAD, (40, 72))
    for row, column in ((6, 60), (30, 10), (0, 0), (39, 71)):
        image = np.zeros((1, 40, 72, 3))
        top, left = row // 2 * 2, column // 2 * 2
        image[0, top : top + 2, left : left + 2, 0] = 255
        drawn = GradCAM(model).attribute(image, 0).maps[0]
        peak = np.argwhere(drawn == drawn.max()).mean(axis=0)
        np.testing.assert_allclose(peak, [top + 0.5, left + 0.5], atol=0.51)


def test_half_precision_squares_do_not_overflow() -> None:
    """Gradients are squared in float32: in float16 they would vanish or overflow."""
    half = trained_like((24, 36), precision="mixed_float16")
    full = trained_like((24, 36))
    full.set_weights(half.get_weights())
    images = smooth_images(2, (24, 36))
    for model in (half, full):
        model.get_layer("logits").kernel.assign(model.get_layer("logits").kernel * 1e-4)
    for form in ("closed", "tape"):
        maps = [GradCAMPlusPlus(m, form=form).attribute(images, 4).maps for m in (half, full)]
        assert np.isfinite(maps[0]).all() and maps[0].max() > 0
        assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.99


def test_closed_form_is_refused_where_it_would_be_wrong() -> None:
    other_head, _ = flat_head_network()
    with pytest.raises(ExplanationError, match="closed form needs"):
        GradCAM(other_head, form="closed")
    model = trained_like((24, 24))
    with pytest.raises(ExplanationError, match="cannot explain a probability"):
        GradCAM(model, form="closed").attribute(smooth_images(1, (24, 24)), output=Probability())
    assert GradCAM(model).attribute(smooth_images(1, (24, 24)), output=Probability()).cost.backward


def test_any_layer_by_name_nested_or_not() -> None:
    images = smooth_images(2, (24, 40))
    flat, nested = trained_like((24, 40)), trained_like((24, 40), nested=True)
    nested.set_weights(flat.get_weights())
    for kind in (GradCAM, LayerCAM):
        maps = [
            kind(flat, "relu1").attribute(images, 3).maps,
            kind(nested, "backbone/relu1").attribute(images, 3).maps,
            kind(nested, "relu1").attribute(images, 3).maps,
        ]
        assert maps[0].max() > 0
        np.testing.assert_allclose(maps[1], maps[0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(maps[2], maps[0], rtol=1e-5, atol=1e-7)
    with pytest.raises(ExplanationError, match="no layer 'relu9'"):
        GradCAM(flat, "relu9")
    with pytest.raises(ExplanationError, match="not feature maps"):
        GradCAM(flat, "pooled")


def test_model_without_feature_maps_is_refused() -> None:
    import keras

    inputs = keras.Input((4, 4, 3))
    dense = keras.Model(inputs, keras.layers.Dense(7)(keras.layers.Flatten()(inputs)))
    with pytest.raises(ExplanationError, match="has no feature maps"):
        GradCAM(dense)

"""Mistakes that public explanation packages made, at least one test each.

Fuller tests of the same behavior stand beside each module; these fail when the mistake is made,
which was checked by making every one of them in the package's code.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dermlens.data.images import fit_mask, load_image
from dermlens.explainers.baselines import baseline_image
from dermlens.explainers.grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM
from dermlens.explainers.integrated_gradients import IntegratedGradients
from dermlens.explainers.occlusion import Occlusion
from dermlens.explainers.output import Logit, Probability
from dermlens.explainers.registry import METHODS, create
from dermlens.explainers.sampled_gradients import GradientSHAP, SmoothGrad
from dermlens.explainers.shap import GaussianProcessSHAP, KernelSHAP
from dermlens.explainers.stages import StageCAM
from dermlens.explainers.superpixels import superpixels
from dermlens.quality import metrics
from dermlens.quality.evaluations import Evaluations
from dermlens.quality.imputation import impute
from dermlens.quality.localization import pixel_auc
from dermlens.quality.randomization import (
    randomization_curves,
    randomized,
    stage_steps,
    weighted_layers,
)
from dermlens.quality.removal import removal_places
from dermlens.quality.robustness import sensitivity, two_sided_noise
from dermlens.report.figures import attribution_grid, colorize, normalize, overlay
from explain_networks import function_network, linear_network, smooth_images, trained_like

SIZE = (24, 36)
QUICK: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"n_steps": 6, "tolerance": None},
    "smooth_grad": {"n_samples": 5},
    "gradient_shap": {"n_samples": 5},
    "occlusion": {"patch_size": 8, "stride": 6},
    "lime": {"superpixels": 12, "n_samples": 60},
    "gp_shap": {"superpixels": 12, "n_samples": 60},
    "kernel_shap": {"superpixels": 12, "n_samples": 60},
    "rise": {"n_samples": 40, "cells": 3},
}
RANDOM = ("smooth_grad", "gradient_shap", "lime", "gp_shap", "kernel_shap", "rise")
HALVES = ("mixed_float16", "mixed_bfloat16")


@pytest.fixture(scope="module")
def model() -> Any:
    return trained_like(SIZE)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return smooth_images(3, SIZE)


def quick(name: str, model: Any, **options: Any) -> Any:
    return create(name, model, **QUICK.get(name, {}), **options)


def measured(metric: metrics.Metric, maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return metric(None, None, maps, masks=masks)


def unlike(one: np.ndarray, other: np.ndarray) -> float:
    scaled = [m / max(np.abs(m).max(), 1e-12) for m in (one, other)]
    return float(np.abs(scaled[0] - scaled[1]).max())


EVERY_WAY = [(name, {}) for name in METHODS] + [("grad_cam", {"form": "tape"})]


@pytest.mark.parametrize(("name", "options"), EVERY_WAY)
def test_01_the_score_is_not_ignored(
    name: str, options: dict[str, Any], model: Any, images: np.ndarray
) -> None:
    explainer = quick(name, model, **options)
    default, logit, probability = (
        explainer.attribute(images, 4, output=output).maps
        for output in (None, Logit(), Probability())
    )
    assert unlike(logit, probability) > 1e-2
    np.testing.assert_array_equal(default, logit, "what is explained by default is the logit")


@pytest.mark.parametrize("part", ["all", "head", "body"])
@pytest.mark.parametrize("name", list(METHODS))
def test_02_randomizing_the_weights_changes_the_map(
    name: str, part: str, model: Any, images: np.ndarray
) -> None:
    """The head alone and the body alone show which part of a method looks at old weights."""
    layers = {"all": slice(None), "head": slice(-1, None), "body": slice(-1)}[part]
    explainer = quick(name, model)
    before = explainer.attribute(images[:1], 4).maps
    with randomized(model, weighted_layers(model)[layers]):
        during = explainer.attribute(images[:1], 4).maps
    assert unlike(before, during) > 0.05
    np.testing.assert_array_equal(explainer.attribute(images[:1], 4).maps, before)


def test_02_the_metric_looks_at_the_randomized_model(model: Any, images: np.ndarray) -> None:
    explainer = quick("integrated_gradients", model)
    steps = [("nothing", []), *stage_steps(model)]
    curves = randomization_curves(model, lambda: explainer.attribute(images, 4).maps, steps)
    np.testing.assert_allclose([curves["spearman"][0], curves["ssim"][0]], 1.0)
    assert (curves["spearman"][1:] < 0.9).all() and (curves["ssim"][1:] < 0.9).all()


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_03_cascade_begins_with_the_last_layer_only(order: str, model: Any) -> None:
    before = model.get_weights()
    names = [weight.path for weight in model.weights]
    with randomized(model, stage_steps(model, order)[0][1]):
        after = model.get_weights()
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert {n for n, c in zip(names, changed, strict=True) if c} == {"logits/kernel"}


def test_04_imputation_takes_color_images_and_every_batch(images: np.ndarray) -> None:
    removed = np.random.default_rng(0).random((3, *SIZE)) < 0.5
    together = impute(images, removed)
    alone = [impute(images[i : i + 1], removed[i : i + 1])[0] for i in range(3)]
    np.testing.assert_array_equal(together, alone)
    colored = np.broadcast_to(np.float32([200, 120, 40]), (3, *SIZE, 3))
    np.testing.assert_allclose(impute(colored, removed, noise=0.0), colored, atol=0.05)


def test_04_removal_counts_every_batch(model: Any, images: np.ndarray) -> None:
    image = images[0].astype(np.float32)
    places = removal_places(np.random.default_rng(0).random(SIZE))
    by = (Evaluations(model, batch_size=size) for size in (18, 7, 1))
    whole, some, single = (one.of(image[None])[0].imputed(places, 4) for one in by)
    np.testing.assert_allclose(some, whole, rtol=1e-4)
    np.testing.assert_allclose(single, whole, rtol=1e-4)
    assert np.ptp(whole, axis=1).min() > 1e-3


@pytest.mark.parametrize("name", metrics.LOCALIZATION)
def test_05_empty_mask_is_no_hit_and_batch_mates_change_nothing(name: str) -> None:
    metric = partial(measured, metrics.METRICS[name])
    maps = np.random.default_rng(0).random((2, 4, 5))
    masks = np.zeros((2, 4, 5), bool)
    masks[1, :2] = True
    assert np.isnan(metric(maps, masks)[0])
    masks[0, :, 0] = True
    alone = metric(maps[1:], masks[1:])[0]
    for factor, shift in ((1e6, 0.0), (1.0, 100.0), (-1.0, -100.0)):
        mate = maps[:1] * factor + shift
        assert metric(np.concatenate([mate, maps[1:]]), masks)[1] == pytest.approx(alone, rel=1e-9)


def test_05_every_map_is_drawn_at_its_own_scale() -> None:
    maps = np.random.default_rng(0).random((2, 4, 5)) * np.array([1e6, 1])[:, None, None]
    pictures = smooth_images(2, (4, 5))
    quiet = overlay(pictures[1], maps[1])
    figure = attribution_grid(pictures, {"map": maps}, signed={"map": False}, labels=["a", "b"])
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    np.testing.assert_array_equal(drawn[3], quiet)
    np.testing.assert_array_equal(overlay(pictures[1], maps[1]), quiet)
    assert normalize(maps[1]).max() == 1.0


@pytest.mark.parametrize("form", ["closed", "tape"])
@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_06_plus_plus_does_not_depend_on_the_scale_of_the_head(factor: float, form: str) -> None:
    network, pictures = trained_like(SIZE), smooth_images(2, SIZE)
    before = GradCAMPlusPlus(network, form=form).attribute(pictures, 4).maps
    kernel = network.get_layer("logits").kernel
    kernel.assign(kernel * factor)
    after = GradCAMPlusPlus(network, form=form).attribute(pictures, 4).maps
    assert unlike(before, after) < 1e-4


@pytest.mark.parametrize("form", ["closed", "tape"])
def test_06_plus_plus_is_the_formula_of_the_paper(
    form: str, model: Any, images: np.ndarray
) -> None:
    expected = enlarged(plus_plus(*features_and_gradients(model, images, form)))
    assert (
        unlike(
            GradCAMPlusPlus(model, form=form, registration="tiles").attribute(images, 4).maps,
            expected,
        )
        < 1e-4
    )


def features_and_gradients(
    model: Any, images: np.ndarray, form: str
) -> tuple[np.ndarray, np.ndarray]:
    """Last feature maps and the gradient of logit 4 there, as float64 of the model's own numbers.

    The gradient is known without a tape: the head's weight over the number of places.
    """
    import keras
    import tensorflow as tf

    body = keras.Model(model.input, model.get_layer("relu2").output)
    head = [model.get_layer(name) for name in ("pooled", "logits")]

    def differentiated(pixels: Any) -> Any:
        with tf.GradientTape() as tape:
            maps = body(pixels, training=False)
            tape.watch(maps)
            value = head[1](head[0](maps))[:, 4]
        return tf.cast(maps, tf.float64), tf.cast(tape.gradient(value, maps), tf.float64)

    activations, taped = (part.numpy() for part in as_graph(model, differentiated)(images))
    known = np.asarray(head[1].kernel, np.float64)[:, 4] / np.prod(activations.shape[1:3])
    return activations, taped if form == "tape" else np.broadcast_to(known, taped.shape)


def as_graph(model: Any, function: Callable[[Any], Any]) -> Callable[[np.ndarray], Any]:
    """Compile as the package does: half precision is rounded otherwise when run step by step."""
    import tensorflow as tf

    pixels = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
    compiled = tf.function(function, input_signature=[pixels])
    return lambda images: compiled(images.astype(np.float32))


def plus_plus(activations: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Grad-CAM++ in float64: equations 10, 13 and 19, gradients in units of the largest."""
    positive = np.maximum(gradients, 0)
    positive = positive / positive.max(axis=(1, 2, 3), keepdims=True)
    total = np.maximum(activations, 0).sum(axis=(1, 2), keepdims=True)
    below = 2 * positive**2 + total * positive**3
    alpha = np.where(positive > 0, positive**2 / np.where(below > 0, below, 1), 0)
    weights = (alpha * positive).sum(axis=(1, 2), keepdims=True)
    return np.maximum((weights * activations).sum(axis=-1), 0)


def enlarged(maps: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    import tensorflow as tf

    return tf.image.resize(maps[..., None], size).numpy()[..., 0]


def test_07_occlusion_averages_overlaps_and_reaches_the_border() -> None:
    network = linear_network(np.ones((11, 17, 3, 2)))
    explainer = Occlusion(network, patch_size=4, stride=2, baseline="black")
    drawn = explainer.attribute(np.full((1, 11, 17, 3), 7.0), 0).maps
    np.testing.assert_allclose(drawn, drawn[0, 0, 0], rtol=1e-5)
    assert drawn[0, 0, 0] == pytest.approx(4 * 4 * 3 * 7.0, rel=1e-5)


def test_08_integrated_gradients_sum_over_channels(model: Any, images: np.ndarray) -> None:
    explainer = IntegratedGradients(model, n_steps=256, baseline="black", tolerance=None)
    result = explainer.attribute(images, 4)
    change = result.values - result.baseline_output
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), change, rtol=0.02)


def test_08_a_rough_integral_reports_its_gap(model: Any, images: np.ndarray) -> None:
    explainer = IntegratedGradients(model, n_steps=1, baseline="black", tolerance=None)
    result = explainer.attribute(images, 4)
    change = result.values - result.baseline_output
    missing = np.abs(result.maps.sum(axis=(1, 2)) - change) / np.abs(change)
    assert missing.min() > 0.02, "no gap to report would make this test empty"
    np.testing.assert_allclose(result.convergence_delta, missing, rtol=1e-3)


def test_08_gradient_shap_sums_over_channels() -> None:
    network = linear_network(np.random.default_rng(0).normal(1.0, 1.0, (5, 6, 3, 2)))
    explainer = GradientSHAP(network, n_samples=3, baseline=["black"], noise=0.0)
    result = explainer.attribute(smooth_images(2, (5, 6)), 1)
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), result.values, rtol=1e-4)


def test_09_noise_has_two_sides() -> None:
    """One-sided noise would make 200 of the mean gradient 280, and 10400 of the sum 13600."""
    network = function_network((1, 1), lambda p: p[:, 0, 0, :2] ** 2)
    image = np.array([[[[100.0, 0.0, 0.0]]]])
    smooth = SmoothGrad(network, n_samples=2000, noise=0.5)
    assert smooth.attribute(image, 0, batch_size=1000).maps.item() == pytest.approx(200, abs=10)
    expected = GradientSHAP(network, n_samples=4000, baseline=["black"], noise=20.0)
    drawn = expected.attribute(image, 0, batch_size=1000).maps.item()
    assert drawn == pytest.approx(100**2 + 20**2, abs=600)


@pytest.mark.parametrize("shade", [0.0, 255.0])
def test_09_robustness_is_measured_on_both_sides(shade: float) -> None:
    """Black and white images too, where clipping would leave only one side."""
    image = np.full((5, 6, 3), shade, np.float32)
    np.testing.assert_allclose(two_sided_noise(image, 5.0, 4, 0).mean(axis=0), 0.0, atol=1e-6)
    seen = []

    def explain(noisy: np.ndarray, targets: np.ndarray) -> np.ndarray:
        seen.append(noisy)
        return np.ones((len(noisy), 5, 6))

    sensitivity(explain, image, 0, np.ones((5, 6)), radius=5.0, draws=4)
    noise = np.concatenate(seen) - shade
    np.testing.assert_allclose(noise.mean(axis=0), 0.0, atol=1e-4)
    assert noise.min() < -3 and noise.max() > 3


def test_10_filling_keeps_floats() -> None:
    dark = np.full((2, 12, 12, 3), 0.6, np.float32)
    removed = np.zeros((2, 12, 12), bool)
    removed[0, 4:8, 4:8] = True
    removed[1] = True
    np.testing.assert_allclose(impute(dark, removed, noise=0.0), 0.6, atol=1e-5)
    for baseline in ("border", "blur", (0.6, 0.6, 0.6), dark[1]):
        np.testing.assert_allclose(baseline_image(dark[0], baseline), 0.6, atol=1e-5)


@pytest.mark.parametrize(("segments", "exact"), [(12, False), (4, True)])
def test_11_additivity_is_held_to_what_can_fail(
    segments: int, exact: bool, model: Any, images: np.ndarray
) -> None:
    result = GaussianProcessSHAP(model, superpixels=segments, n_samples=60).attribute(images, 4)
    assert (result.n_samples < 60).all() == exact
    sums = np.nansum(result.weights.astype(np.float64), axis=1)
    change = result.values - result.baseline_output
    assert np.abs(change).min() > 1e-2, "a change of zero would make this test empty"
    np.testing.assert_allclose(sums, change, atol=1e-5 * np.abs(change).max() + 1e-6)


@pytest.mark.parametrize("kind", [GaussianProcessSHAP, KernelSHAP])
def test_11_the_reported_gap_can_fail(
    kind: Any, model: Any, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halved weights explain half of the change, and the gap must say so."""
    fit: Callable[..., Any] = kind._estimated

    def halved(*arguments: Any) -> tuple[Any, ...]:
        name, weights, *rest = fit(*arguments)
        return name, weights / 2, *rest

    monkeypatch.setattr(kind, "_estimated", halved)
    explainer = kind(model, superpixels=12, n_samples=60)
    result = explainer.attribute(images, 4)
    change = result.values - result.baseline_output
    np.testing.assert_allclose(result.additivity_gap, np.abs(change) / 2, rtol=1e-3)


def test_12_colors_are_in_order_and_a_blank_map_is_not_nan() -> None:
    low, middle, high = colorize(np.array([[0.0, 0.7, 1.0]]))[0].astype(int)
    assert high.sum() > middle.sum() > low.sum(), "the highest value is the brightest"
    assert middle[1] > middle[2] > middle[0], "green, and more blue than red in it"
    assert high[0] > high[1] > high[2], "yellow, which would be blue in BGR"
    against, neutral, favor = colorize(np.array([[-1.0, 0.0, 1.0]]), signed=True)[0].astype(int)
    assert favor[0] > favor[2] + 50 and against[2] > against[0] + 200
    assert np.ptp(neutral) < 10 and neutral.sum() > max(favor.sum(), against.sum())
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 200
    assert overlay(red, np.ones((2, 3)), opacity=0.0)[0, 0].tolist() == [200, 0, 0]
    for signed in (False, True):
        assert not normalize(np.zeros((4, 5)), signed=signed).any()
    assert not normalize(np.full((4, 5), 3.0)).any()


def test_12_files_are_read_as_red_green_blue(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 6), (200, 100, 50)).save(tmp_path / "skin.png")
    for size in (None, (3, 4)):
        assert load_image(tmp_path / "skin.png", size)[1, 1].tolist() == [200, 100, 50]


@pytest.mark.parametrize("name", list(METHODS))
def test_13_the_same_call_gives_the_same_map(name: str, model: Any, images: np.ndarray) -> None:
    maps = [quick(name, model).attribute(images, 4, seed=seed).maps for seed in (1, 1, 2)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert (unlike(maps[0], maps[2]) > 1e-3) == (name in RANDOM)


def test_13_skin_is_cut_into_many_pieces() -> None:
    rows, columns = np.indices((96, 128))
    lesion = np.exp(-((rows - 50) ** 2 + (columns - 60) ** 2) / 500)
    smooth = np.array([205, 165, 145]) - lesion[..., None] * np.array([90, 90, 70])
    grain = np.random.default_rng(0).normal(0, 2, (96, 128, 1))
    for skin in (np.full((96, 128, 3), 200.0), smooth, smooth + grain):
        labels = superpixels(np.clip(skin, 0, 255).astype(np.uint8), 50)
        assert labels.max() >= 29
        assert np.bincount(labels.ravel()).max() < 0.06 * labels.size


def corner_network(stride: int) -> Any:
    """Only the upper right corner of a wide image counts."""
    import keras

    inputs = keras.Input((16, 40, 3))
    scaled = keras.layers.Rescaling(1 / 100)(inputs)
    corner = keras.layers.Cropping2D(((0, 10), (30, 0)))(scaled)
    placed = keras.layers.ZeroPadding2D(((0, 10), (30, 0)))(corner)
    convolution = keras.layers.Conv2D(
        2, stride, strides=stride, activation="relu", kernel_initializer="ones"
    )
    pooled = keras.layers.GlobalAveragePooling2D()(convolution(placed))
    return keras.Model(inputs, keras.layers.Dense(2, kernel_initializer="ones")(pooled))


CORNER = np.zeros((1, 16, 40), bool)
CORNER[0, :6, 30:] = True


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", list(METHODS))
def test_14_height_and_width_are_not_swapped(name: str, stride: int) -> None:
    small = {
        "rise": {"n_samples": 200, "cells": 4},
        "lime": {"superpixels": 12},
        "gp_shap": {"superpixels": 12},
    }
    image = np.where(CORNER[..., None], np.uint8(220), np.uint8(80)).repeat(3, axis=-1)
    maps = create(name, corner_network(stride), **small.get(name, {})).attribute(image, 1).maps
    assert maps.shape == (1, 16, 40)
    assert maps[0, :6, 30:].mean() > 2 * max(maps[0, 8:, :26].mean(), 0)
    assert pixel_auc(maps, CORNER)[0] > 0.98


def test_14_stages_do_not_swap_height_and_width() -> None:
    image = np.where(CORNER[..., None], np.uint8(220), np.uint8(80)).repeat(3, axis=-1)
    maps = StageCAM(corner_network(2)).maps(image, np.array([1]))[-1]
    assert maps.shape == (1, 16, 40) and pixel_auc(maps, CORNER)[0] > 0.98


def test_14_files_are_fitted_to_height_and_width(tmp_path: Path) -> None:
    from PIL import Image

    wide = np.full((40, 60, 3), 10, np.uint8)
    wide[:20, 40:] = 250
    Image.fromarray(wide).save(tmp_path / "wide.png")
    expected = np.zeros((20, 30), bool)
    expected[:10, 20:] = True
    fitted = load_image(tmp_path / "wide.png", (20, 30))
    np.testing.assert_array_equal(fitted.min(axis=-1) > 128, expected)
    np.testing.assert_array_equal(fit_mask(Image.fromarray(wide), (20, 30)), expected)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("form", ["closed", "tape"])
def test_15_half_precision_is_cast_before_squaring(precision: str, form: str) -> None:
    """Maps of a half-precision network equal float64 formulas of its own feature maps.

    The head is made so small that squares of its gradients would vanish in float16.
    """
    network, pictures = trained_like(SIZE, precision=precision), smooth_images(2, SIZE)
    kernel = network.get_layer("logits").kernel
    kernel.assign(kernel * 1e-4)
    activations, gradients = features_and_gradients(network, pictures, form)
    assert 0 < np.abs(gradients).max() < 1e-4
    weights = gradients.mean(axis=(1, 2), keepdims=True)
    formulas = {
        GradCAM: np.maximum((activations * weights).sum(axis=-1), 0),
        GradCAMPlusPlus: plus_plus(activations, gradients),
        LayerCAM: (activations * np.maximum(gradients, 0)).sum(axis=-1),
    }
    for kind, expected in formulas.items():
        drawn = kind(network, form=form, registration="tiles").attribute(pictures, 4).maps
        assert unlike(drawn, enlarged(expected)) < 1e-5, kind.__name__
    if form == "tape":
        drawn = StageCAM(network, registration="tiles").maps(pictures, np.array([4, 4]))[-1]
        assert unlike(drawn, enlarged(formulas[LayerCAM])) < 1e-5


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", ["grad_cam", "integrated_gradients", "smooth_grad", "occlusion"])
def test_15_half_precision_logits_are_cast_before_the_score(name: str, precision: str) -> None:
    """A probability is as exact as float64 makes it of logits in half precision."""
    import keras
    import tensorflow as tf

    network, pictures = trained_like(SIZE, precision=precision), smooth_images(2, SIZE)
    half = keras.layers.Activation("linear", dtype=precision.removeprefix("mixed_"))
    network = keras.Model(network.input, half(network.output))
    logits = as_graph(network, lambda pixels: network(pixels, training=False))(pictures)
    expected = tf.nn.softmax(tf.cast(logits, tf.float64)).numpy()[:, 4]
    result = quick(name, network).attribute(pictures, 4, output=Probability())
    np.testing.assert_allclose(result.values, expected, rtol=1e-4)
    assert result.maps.dtype == np.float32 and np.isfinite(result.maps).all()

"""Mistakes that public explanation packages made, one test each.

Fuller tests of the same behavior stand beside each module; these fail when the mistake is made.
"""

from typing import Any

import numpy as np
import pytest

from dermlens.explain.fills import fill_image
from dermlens.explain.grad_cam import GradCAM, GradCAMPlusPlus
from dermlens.explain.integrated_gradients import IntegratedGradients
from dermlens.explain.lime import LIME
from dermlens.explain.occlusion import Occlusion
from dermlens.explain.registry import METHODS, create
from dermlens.explain.sampled_gradients import SmoothGrad
from dermlens.explain.score import Logit, Probability
from dermlens.explain.shap import KernelSHAP
from dermlens.explain.superpixels import superpixels
from dermlens.quality.imputation import impute
from dermlens.quality.localization import pointing_game, relevance_mass
from dermlens.quality.randomization import randomization_steps, randomized, weighted_layers
from dermlens.report.figures import colorize, normalize, overlay
from explain_networks import function_network, linear_network, smooth_images, trained_like

SIZE = (24, 36)


@pytest.fixture(scope="module")
def model() -> Any:
    return trained_like(SIZE)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return smooth_images(3, SIZE)


def unlike(one: np.ndarray, other: np.ndarray) -> float:
    scaled = [m / max(np.abs(m).max(), 1e-12) for m in (one, other)]
    return float(np.abs(scaled[0] - scaled[1]).max())


def test_01_the_score_is_not_ignored(model: Any, images: np.ndarray) -> None:
    explainer = IntegratedGradients(model, points=4)
    maps = [explainer.attribute(images, 4, score=s).maps for s in (Logit(), Probability())]
    assert unlike(*maps) > 1e-2


@pytest.mark.parametrize("name", ["grad_cam", "integrated_gradients", "smooth_grad", "shap"])
def test_02_randomizing_the_weights_changes_the_map(
    name: str, model: Any, images: np.ndarray
) -> None:
    explainer = create(name, model)
    before = explainer.attribute(images[:1], 4).maps
    with randomized(model, weighted_layers(model)):
        during = explainer.attribute(images[:1], 4).maps
    assert unlike(before, during) > 0.05


def test_03_cascade_begins_with_the_last_layer_only(model: Any) -> None:
    first = randomization_steps(model)[0]
    before = model.get_weights()
    with randomized(model, first):
        after = model.get_weights()
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    names = [weight.path for weight in model.weights]
    assert {n for n, c in zip(names, changed, strict=True) if c} == {"logits/kernel"}


def test_04_imputation_takes_color_images_and_every_batch(images: np.ndarray) -> None:
    removed = np.random.default_rng(0).random((3, *SIZE)) < 0.5
    together = impute(images, removed)
    alone = [impute(images[i : i + 1], removed[i : i + 1])[0] for i in range(3)]
    np.testing.assert_array_equal(together, alone)


def test_05_empty_mask_is_no_hit_and_batch_mates_change_nothing() -> None:
    maps = np.random.default_rng(0).random((2, 4, 5))
    masks = np.zeros((2, 4, 5), bool)
    masks[1, :2] = True
    assert np.isnan(pointing_game(maps, masks)[0])
    loud = maps * np.array([1e6, 1])[:, None, None]
    assert relevance_mass(loud, masks)[1] == relevance_mass(maps[1:], masks[1:])[0]
    assert normalize(maps[1]).max() == 1.0


@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_06_plus_plus_does_not_depend_on_the_scale_of_the_head(factor: float) -> None:
    network, pictures = trained_like(SIZE), smooth_images(2, SIZE)
    before = GradCAMPlusPlus(network).attribute(pictures, 4).maps
    kernel = network.get_layer("logits").kernel
    kernel.assign(kernel * factor)
    assert unlike(before, GradCAMPlusPlus(network).attribute(pictures, 4).maps) < 1e-4


def test_07_occlusion_averages_overlaps_and_reaches_the_border() -> None:
    network = linear_network(np.ones((11, 17, 3, 2)))
    explainer = Occlusion(network, patch=4, stride=2, fill="black")
    drawn = explainer.attribute(np.full((1, 11, 17, 3), 7.0), 0).maps
    np.testing.assert_allclose(drawn, drawn[0, 0, 0], rtol=1e-5)


def test_08_integrated_gradients_sum_over_channels(model: Any, images: np.ndarray) -> None:
    result = IntegratedGradients(model, points=256, baselines="black").attribute(images, 4)
    change = result.scores - result.details["baseline_score"]
    np.testing.assert_allclose(result.maps.sum(axis=(1, 2)), change, rtol=0.02)


def test_09_noise_has_two_sides() -> None:
    network = function_network((1, 1), lambda p: p[:, 0, 0, :2] ** 2)
    image = np.array([[[[100.0, 0.0, 0.0]]]])
    result = SmoothGrad(network, samples=2000, noise=0.5).attribute(image, 0, batch_size=1000)
    assert result.maps[0, 0, 0] == pytest.approx(200.0, abs=10.0)


def test_10_filling_keeps_floats() -> None:
    dark = np.full((1, 12, 12, 3), 0.6, np.float32)
    removed = np.zeros((1, 12, 12), bool)
    removed[0, 4:8, 4:8] = True
    np.testing.assert_allclose(impute(dark, removed, noise=0.0), 0.6, atol=1e-5)
    for fill in ("mean_skin", "blur"):
        np.testing.assert_allclose(fill_image(dark[0], fill), 0.6, atol=1e-5)


def test_11_additivity_is_held_to_what_can_fail(model: Any, images: np.ndarray) -> None:
    result = KernelSHAP(model, segments=12, samples=60).attribute(images, 4)
    sums = np.nansum(result.details["segment_weights"].astype(np.float64), axis=1)
    change = result.scores - result.details["baseline_score"]
    assert np.abs(change).min() > 1e-2, "a change of zero would make this test empty"
    np.testing.assert_allclose(sums, change, atol=1e-5 * np.abs(change).max() + 1e-6)


def test_12_colors_are_in_order_and_a_blank_map_is_not_nan() -> None:
    ramp = colorize(np.array([[0.0, 1.0]]))
    assert ramp[0, 1].sum() > ramp[0, 0].sum(), "the highest value is the brightest"
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 200
    assert overlay(red, np.ones((2, 3)), opacity=0.0)[0, 0].tolist() == [200, 0, 0]
    assert np.isfinite(normalize(np.zeros((4, 5)))).all()


def test_13_the_same_call_gives_the_same_map_and_skin_many_pieces(
    model: Any, images: np.ndarray
) -> None:
    maps = [LIME(model, samples=60, segments=12).attribute(images, 4).maps for _ in range(2)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert superpixels(np.full((96, 128, 3), 200, np.uint8), 50).max() >= 29


@pytest.mark.parametrize("name", list(METHODS))
def test_14_height_and_width_are_not_swapped(name: str) -> None:
    """Only one corner of a wide image counts; the map must be strongest there."""
    import keras

    inputs = keras.Input((16, 40, 3))
    scaled = keras.layers.Rescaling(1 / 100)(inputs)
    corner = keras.layers.Cropping2D(((0, 10), (30, 0)))(scaled)
    placed = keras.layers.ZeroPadding2D(((0, 10), (30, 0)))(corner)
    maps = keras.layers.Conv2D(2, 1, activation="relu", kernel_initializer="ones")(placed)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    network = keras.Model(inputs, keras.layers.Dense(2, kernel_initializer="ones")(pooled))
    image = np.full((1, 16, 40, 3), 80, np.uint8)
    image[0, :6, 30:] = 220
    small = {
        "rise": {"samples": 200, "cells": 4},
        "lime": {"segments": 12},
        "shap": {"segments": 12},
    }
    drawn = create(name, network, **small.get(name, {})).attribute(image, 1).maps[0]
    assert drawn[:6, 30:].mean() > 2 * max(drawn[8:, :26].mean(), 0)
    assert drawn.shape == (16, 40)


def test_15_half_precision_is_cast_before_squaring() -> None:
    half = trained_like(SIZE, precision="mixed_float16")
    full = trained_like(SIZE)
    full.set_weights(half.get_weights())
    pictures = smooth_images(2, SIZE)
    for network in (half, full):
        kernel = network.get_layer("logits").kernel
        kernel.assign(kernel * 1e-4)
    for kind in (GradCAM, GradCAMPlusPlus):
        maps = [kind(n, form="tape").attribute(pictures, 4).maps for n in (half, full)]
        assert np.isfinite(maps[0]).all() and unlike(*maps) < 0.1

"""Occlusion and RISE on networks whose answer is known."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.baselines import baseline_image, border_color
from dermlens.explainers.occlusion import Occlusion, patch_boxes
from dermlens.explainers.rise import RISE, _soft_masks
from explain_networks import function_network, linear_network, smooth_images


def test_hand_computed_table() -> None:
    """A 3x5 image, a 2x2 patch that steps by 2: the last row and column of patches overlap."""
    weights = np.zeros((3, 5, 3, 1))
    weights[..., 0, 0] = np.arange(15).reshape(3, 5)
    image = np.ones((1, 3, 5, 3))
    # One output becomes the classes "against" and "for".
    result = Occlusion(linear_network(weights), patch_size=2, stride=2, baseline="black").attribute(
        image, 1
    )
    w = weights[..., 0, 0]
    corners = [(0, 0), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]
    effects = [w[r : r + 2, c : c + 2].sum() for r, c in corners]
    np.testing.assert_allclose(result.effects[0], effects)
    np.testing.assert_array_equal(result.boxes[:, :2], corners)
    assert result.maps[0, 0, 0] == pytest.approx(effects[0])
    assert result.maps[0, 1, 0] == pytest.approx((effects[0] + effects[3]) / 2)
    assert result.maps[0, 1, 3] == pytest.approx(np.mean([effects[i] for i in (1, 2, 4, 5)]))
    assert result.maps[0, 2, 4] == pytest.approx(effects[5])


@pytest.mark.parametrize("size", [(20, 33), (31, 17), (8, 8)])
@pytest.mark.parametrize(("patch", "stride"), [(8, 4), ((5, 9), (3, 7)), (7, 1), (40, 40)])
def test_equal_effect_gives_an_equal_map(size: tuple, patch: int, stride: int) -> None:
    """Summing overlaps would make the center darker; an uncovered border would stay at zero."""
    tall, wide = (patch, patch) if isinstance(patch, int) else patch
    area = min(tall, size[0]) * min(wide, size[1])
    model = linear_network(np.full((*size, 3, 2), 1 / 3))
    image = np.full((1, *size, 3), 11.0)
    drawn = (
        Occlusion(model, patch_size=patch, stride=stride, baseline="black").attribute(image, 1).maps
    )
    np.testing.assert_allclose(drawn, 11.0 * area, rtol=1e-4)


def test_linear_network_exactly_with_every_fill() -> None:
    weights = np.random.default_rng(0).normal(size=(8, 12, 3, 3))
    images, model = smooth_images(2, (8, 12)), linear_network(weights)
    for baseline in ("border", "blur", "black", (1.0, 2.0, 3.0)):
        result = Occlusion(model, patch_size=4, stride=4, baseline=baseline).attribute(images, 2)
        change = images - np.stack([baseline_image(i, baseline) for i in images])
        pixelwise = (change * weights[..., 2]).sum(axis=-1)
        blocks = pixelwise.reshape(2, 2, 4, 3, 4).sum(axis=(2, 4))
        expected = blocks.repeat(4, axis=1).repeat(4, axis=2)
        np.testing.assert_allclose(result.maps, expected, rtol=1e-3, atol=0.02)


def test_default_patch_follows_the_shorter_side() -> None:
    model = linear_network(np.zeros((24, 48, 3, 2)))
    boxes = Occlusion(model).boxes((24, 48))
    assert (boxes[:, 2] - boxes[:, 0] == 4).all() and (boxes[:, 3] - boxes[:, 1] == 4).all()
    assert len(boxes) == 11 * 23
    covered = np.zeros((24, 48), int)
    for top, left, bottom, right in boxes:
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1


def test_bad_patches_are_refused() -> None:
    model = linear_network(np.zeros((8, 8, 3, 2)))
    with pytest.raises(UsageError, match="leaves gaps"):
        Occlusion(model, patch_size=2, stride=3).attribute(np.zeros((1, 8, 8, 3)), 0)
    with pytest.raises(UsageError, match="at least 1"):
        Occlusion(model, patch_size=0)
    assert len(patch_boxes((8, 8), (20, 20), (1, 1))) == 1


def test_skin_color_is_that_of_the_border_and_ignores_dark_corners() -> None:
    image = np.full((40, 60, 3), (210, 160, 140), np.uint8)
    image[10:30, 15:45] = (60, 30, 20)
    image[:6, :6] = image[-6:, -6:] = 0
    np.testing.assert_allclose(border_color(image), (210, 160, 140))
    np.testing.assert_allclose(baseline_image(image, "border")[20, 30], (210, 160, 140))


def bilinear_mask(packed: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One soft mask, written independently: the grid sampled bilinearly at shifted places."""
    cells, shift = packed[:, :-1], packed[:2, -1]
    rows = (np.arange(size[0]) + 0.5) * (len(cells) - 1) / size[0] + shift[0] - 0.5
    columns = (np.arange(size[1]) + 0.5) * (cells.shape[1] - 1) / size[1] + shift[1] - 0.5
    wide = np.stack([np.interp(columns, np.arange(cells.shape[1]), line) for line in cells])
    return np.stack(
        [np.interp(rows, np.arange(len(cells)), wide[:, c]) for c in range(size[1])], axis=1
    )


def test_rise_masks_are_the_grid_enlarged_and_shifted() -> None:
    explainer = RISE(linear_network(np.zeros((18, 30, 3, 2))), n_samples=50, cells=3)
    drawn = explainer.draw((18, 30), np.random.default_rng(0))
    assert explainer.grid((18, 30)) == (3, 5)
    masks = _soft_masks(np.array([18, 30], np.int32), drawn).numpy()
    for packed, mask in zip(drawn, masks, strict=True):
        np.testing.assert_allclose(mask, bilinear_mask(packed, (18, 30)), atol=1e-5)
    assert masks.mean() == pytest.approx(0.5, abs=0.1)


def test_rise_is_the_coverage_weighted_mean_of_scores() -> None:
    from dermlens.explainers.base import image_generator

    weights = np.random.default_rng(0).normal(size=(12, 20, 3, 2))
    model, image = linear_network(weights), smooth_images(1, (12, 20)).astype(np.float32)
    explainer = RISE(model, n_samples=40, cells=3)
    result = explainer.attribute(image, 1, seed=4, batch_size=7)
    packed = explainer.draw((12, 20), image_generator(4, image[0]))
    masks = np.stack([bilinear_mask(p, (12, 20)) for p in packed])
    baseline = baseline_image(image[0], "border")
    seen = masks[..., None] * image[0] + (1 - masks[..., None]) * baseline
    outputs = (seen * weights[..., 1]).sum(axis=(1, 2, 3))
    expected = np.tensordot(outputs - outputs.mean(), masks, 1) / masks.sum(axis=0)
    np.testing.assert_allclose(
        result.maps[0], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()
    )


def test_rise_finds_the_place_that_matters() -> None:
    model = function_network((24, 36), _place)
    image = np.full((1, 24, 36, 3), 100.0)
    image[0, 4:8, 26:32] = 250.0
    drawn = RISE(model, n_samples=600, cells=6).attribute(image, 0).maps[0]
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    assert 2 <= row <= 9 and 24 <= column <= 33


def _place(pixels: Any) -> Any:
    import keras

    return keras.ops.mean(pixels[:, 4:8, 26:32], axis=(1, 2))


def test_rise_knows_its_error() -> None:
    """The spread over other draws of masks is what every single draw expects."""
    weights = np.random.default_rng(0).normal(size=(12, 20, 3, 2))
    model, image = linear_network(weights), smooth_images(1, (12, 20))
    explainer = RISE(model, n_samples=150, cells=3)
    results = [explainer.attribute(image, "all", seed=seed) for seed in range(24)]
    maps = np.stack([one.maps[0] for one in results])
    spread = np.sqrt(maps.var(axis=0, ddof=1).mean(axis=(1, 2)))
    size = np.sqrt((maps**2).mean(axis=(0, 2, 3)))
    expected = np.sqrt(np.mean([one.expected_error[0] ** 2 for one in results], axis=0))
    np.testing.assert_allclose(expected, spread / size, rtol=0.25)
    flat = RISE(linear_network(np.zeros((12, 20, 3, 2))), n_samples=96)
    empty = flat.attribute(image, 0)
    assert (empty.expected_error == 0).all() and (empty.maps == 0).all()


def test_rise_settings_are_checked() -> None:
    for options in ({"n_samples": 1}, {"cells": 0}, {"keep": 1.0}, {"keep": 0.0}):
        with pytest.raises(UsageError, match="RISE"):
            RISE(linear_network(np.zeros((4, 4, 3, 2))), **options)


def test_no_effect_at_all_is_an_empty_map() -> None:
    model = linear_network(np.zeros((24, 32, 3, 2)))
    assert (Occlusion(model).attribute(smooth_images(1, (24, 32)), 0).maps == 0).all()

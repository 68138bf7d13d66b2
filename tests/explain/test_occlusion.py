"""Occlusion and RISE on networks whose answer is known."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explain.baselines import baseline_image, border_color
from dermlens.explain.occlusion import Occlusion, patch_boxes, spread_over_boxes
from dermlens.explain.patch_field import PatchField
from dermlens.explain.rise import RISE, _soft_masks
from explain_networks import function_network, linear_network, smooth_images


def test_hand_computed_table() -> None:
    """A 3x5 image, a 2x2 patch that steps by 2: the last row and column of patches overlap."""
    weights = np.zeros((3, 5, 3, 1))
    weights[..., 0, 0] = np.arange(15).reshape(3, 5)
    image = np.ones((1, 3, 5, 3))
    result = Occlusion(linear_network(weights), patch_size=2, stride=2, baseline="black").attribute(
        image, 0
    )
    w = weights[..., 0, 0]
    corners = [(0, 0), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]
    effects = [w[r : r + 2, c : c + 2].sum() for r, c in corners]
    np.testing.assert_allclose(result.details["effects"][0], effects)
    np.testing.assert_array_equal(result.details["boxes"][0][:, :2], corners)
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
    with pytest.raises(UsageError, match="at least 1 pixel"):
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
    from dermlens.explain.base import image_generator

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


def test_rise_stops_when_the_map_no_longer_changes() -> None:
    model = function_network((24, 36), _place)
    image = np.full((1, 24, 36, 3), 100.0)
    image[0, 4:8, 26:32] = 250.0
    whole = RISE(model, n_samples=960, cells=4).attribute(image, 0, seed=2)
    early = RISE(model, n_samples=960, cells=4, tolerance=0.25).attribute(image, 0, seed=2)
    assert whole.details["n_samples"][0] == 960 and whole.cost.forward == 961
    spent = int(early.details["n_samples"][0])
    assert spent < 960 and spent % 96 == 0 and early.cost.forward == spent + 1
    assert whole.details["expected_error"][0] < early.details["expected_error"][0] <= 0.25
    # Had it gone on, the map would have been the same: the masks are drawn beforehand.
    short = RISE(model, n_samples=960, cells=4, tolerance=1e-9).attribute(image, 0, seed=2)
    np.testing.assert_allclose(short.maps, whole.maps, atol=1e-3)
    assert short.details["n_samples"][0] == 960
    again = RISE(model, n_samples=960, cells=4, tolerance=0.25).attribute(
        image, 0, seed=2, batch_size=5
    )
    assert again.details["n_samples"][0] == spent
    np.testing.assert_allclose(again.maps, early.maps, atol=1e-3)


def test_rise_knows_its_error() -> None:
    """The spread over other draws of masks is what every single draw expects."""
    weights = np.random.default_rng(0).normal(size=(12, 20, 3, 2))
    model, image = linear_network(weights), smooth_images(1, (12, 20))
    explainer = RISE(model, n_samples=150, cells=3)
    results = [explainer.attribute(image, "all", seed=seed) for seed in range(24)]
    maps = np.stack([one.maps[0] for one in results])
    spread = np.sqrt(maps.var(axis=0, ddof=1).mean(axis=(1, 2)))
    size = np.sqrt((maps**2).mean(axis=(0, 2, 3)))
    expected = np.sqrt(np.mean([one.details["expected_error"][0] ** 2 for one in results], axis=0))
    np.testing.assert_allclose(expected, spread / size, rtol=0.25)
    flat = RISE(linear_network(np.zeros((12, 20, 3, 2))), n_samples=500, tolerance=0.1)
    empty = flat.attribute(image, 0)
    assert empty.details["n_samples"][0] == 96 and (empty.maps == 0).all()


def test_rise_settings_are_checked() -> None:
    for options in ({"n_samples": 1}, {"cells": 0}, {"keep": 1.0}, {"keep": 0.0}):
        with pytest.raises(UsageError, match="RISE needs"):
            RISE(linear_network(np.zeros((4, 4, 3, 2))), **options)
    with pytest.raises(UsageError, match="tolerance of RISE"):
        RISE(linear_network(np.zeros((4, 4, 3, 2))), tolerance=-0.1)


def wavy_weights(size: tuple[int, int], cycles: float) -> np.ndarray:
    row, column = np.mgrid[: size[0], : size[1]] / max(size)
    wave = np.sin(2 * np.pi * cycles * row + 1) + np.cos(2 * np.pi * cycles * column)
    return np.repeat(wave[..., None, None], 3, axis=2) * np.array([1.0, -0.5])


def test_fewer_passes_keep_the_map_of_a_smooth_network() -> None:
    size = (48, 64)
    model, image = linear_network(wavy_weights(size, 0.7)), np.full((1, *size, 3), 200.0)
    dense = Occlusion(model, baseline="black").attribute(image, 0)
    few = Occlusion(model, baseline="black", passes=41).attribute(image, 0)
    assert (dense.cost.forward, few.cost.forward) == (166, 41)
    assert np.corrcoef(dense.maps.ravel(), few.maps.ravel())[0, 1] > 0.99
    known = few.details["evaluated"][0]
    assert known.sum() == 40
    np.testing.assert_allclose(
        few.details["effects"][0][known], dense.details["effects"][0][known], rtol=1e-4
    )
    assert 0 < few.details["expected_error"][0] < 0.2
    assert "expected_error" not in dense.details
    np.testing.assert_array_equal(few.values, dense.values)


def test_enough_passes_give_the_complete_map_exactly() -> None:
    weights = np.random.default_rng(0).normal(size=(24, 32, 3, 3))
    images, model = smooth_images(2, (24, 32)), linear_network(weights)
    coarse: dict[str, Any] = {"patch_size": 8, "stride": 4}
    dense = Occlusion(model, **coarse).attribute(images, "all")
    same = Occlusion(model, passes=10_000, **coarse).attribute(images, "all")
    np.testing.assert_array_equal(dense.maps, same.maps)
    # A tolerance that nothing reaches ends with every patch measured.
    every = Occlusion(model, tolerance=1e-12, **coarse).attribute(images, "all")
    assert every.details["evaluated"].all() and every.cost.forward == dense.cost.forward
    np.testing.assert_allclose(every.maps, dense.maps, rtol=1e-3, atol=0.05)
    assert (every.details["expected_error"] == 0).all()


def test_passes_go_where_the_effect_is() -> None:
    """Only one place matters, off the middle; skin there shows it, and the rest is plain."""
    model = function_network((48, 64), lambda pixels: _corner(pixels))
    image = np.random.default_rng(0).normal(150, 20, (1, 48, 64, 3)).clip(0, 255)
    dense = Occlusion(model).attribute(image, 0)
    few = Occlusion(model, passes=48).attribute(image, 0)
    assert np.corrcoef(dense.maps.ravel(), few.maps.ravel())[0, 1] > 0.97
    boxes, known = few.details["boxes"][0], few.details["evaluated"][0]
    near = (boxes[:, 0] < 16) & (boxes[:, 3] > 48)
    assert known[near].mean() > 1.5 * known[~near].mean()


def _corner(pixels: Any) -> Any:
    import keras

    return keras.ops.sum(pixels[:, 4:12, 50:58], axis=(1, 2)) / 100


def test_tolerance_is_kept_and_spends_less_on_the_easier_image() -> None:
    size = (48, 64)
    image = np.full((1, *size, 3), 200.0)
    spent = []
    for cycles in (0.4, 3.0):
        model = linear_network(wavy_weights(size, cycles))
        dense = Occlusion(model, baseline="black").attribute(image, 0).maps
        early = Occlusion(model, baseline="black", tolerance=0.1).attribute(image, 0)
        assert early.details["expected_error"][0] <= 0.1
        assert np.linalg.norm(early.maps - dense) <= 0.1 * np.linalg.norm(dense)
        spent.append(early.cost.forward)
    assert spent[0] < spent[1] <= 166 and (spent[0] - 16) % 8 == 0


def test_estimated_maps_do_not_depend_on_batches_or_neighbors() -> None:
    weights = np.random.default_rng(1).normal(size=(24, 32, 3, 3))
    images, model = smooth_images(3, (24, 32)), linear_network(weights)
    together = Occlusion(model, passes=30).attribute(images, 1, batch_size=16)
    alone = Occlusion(model, passes=30).attribute(images[2:], 1, batch_size=3)
    assert together.cost.forward == 90 and alone.cost.forward == 30
    np.testing.assert_array_equal(together.details["evaluated"][2], alone.details["evaluated"][0])
    np.testing.assert_allclose(together.maps[2], alone.maps[0], rtol=1e-3, atol=0.05)
    every = Occlusion(model, passes=30).attribute(images, "all")
    assert every.maps.shape == (3, 3, 24, 32) and every.cost.forward == 90
    assert every.details["expected_error"].shape == (3, 3)


def test_expected_error_is_about_the_true_error() -> None:
    """Effects drawn from smooth fields: over many, the error expected is the error made."""
    from scipy.ndimage import gaussian_filter

    boxes = patch_boxes((48, 64), (8, 8), (4, 4))
    generator, ratios = np.random.default_rng(0), []
    for _ in range(12):
        field = gaussian_filter(generator.normal(size=(11, 15)), 1.2).ravel()[None]
        patches = PatchField(boxes, np.ones((48, 64)))
        measured = patches.first(48)
        fit = patches.fit(measured, field[:, measured])
        maps = [spread_over_boxes(one, boxes, (48, 64)) for one in (field, fit.effects)]
        true = np.linalg.norm(maps[0] - maps[1]) / np.linalg.norm(maps[1])
        ratios.append(fit.error[0] / true)
    assert 0.5 < np.median(ratios) < 2.0


def test_first_patches_lie_apart_and_where_something_changes() -> None:
    boxes = patch_boxes((48, 64), (8, 8), (4, 4))
    first = boxes[PatchField(boxes, np.ones((48, 64))).first(12)]
    apart = np.abs(first[:, None, :2] - first[None, :, :2]).max(axis=-1)
    assert (apart + 99 * np.eye(12) >= 8).all(), "two of the first patches overlap"
    half = np.zeros((48, 64))
    half[:, :32] = 1.0
    left = boxes[PatchField(boxes, half).first(12)][:, 1] < 32
    assert left.sum() >= 8


def test_every_patch_is_the_one_that_lowers_the_error_of_the_map_most() -> None:
    """Against trying each: what is left of the covariance, and the squared map it stands for."""
    boxes = patch_boxes((20, 28), (8, 8), (4, 4))
    field = PatchField(boxes, np.ones((20, 28)))
    root = np.random.default_rng(0).normal(size=(len(boxes), len(boxes)))
    left = root @ root.T
    spread = np.stack(
        [spread_over_boxes(one[None], boxes, (20, 28)).ravel() for one in np.eye(len(boxes))], 1
    )
    expected: list[int] = []
    for _ in range(5):
        after = {
            c: left - np.outer(left[:, c], left[c]) / left[c, c]
            for c in range(len(boxes))
            if c not in expected
        }
        errors = {c: np.trace(spread @ one @ spread.T) for c, one in after.items()}
        expected.append(min(errors, key=lambda c: errors[c]))
        left = after[expected[-1]]
    assert field._most_useful(root @ root.T, [], 5) == expected


def test_no_effect_at_all_is_an_empty_map() -> None:
    model = linear_network(np.zeros((24, 32, 3, 2)))
    result = Occlusion(model, passes=20, tolerance=0.1).attribute(smooth_images(1, (24, 32)), 0)
    assert (result.maps == 0).all() and result.cost.forward == 16


def test_bad_budgets_are_refused() -> None:
    model = linear_network(np.zeros((80, 80, 3, 2)))
    with pytest.raises(UsageError, match="16 passes or more"):
        Occlusion(model, passes=15)
    with pytest.raises(UsageError, match="tolerance"):
        Occlusion(model, tolerance=1.0)
    with pytest.raises(UsageError, match="too many to choose from"):
        Occlusion(model, patch_size=8, stride=1, passes=40).attribute(np.zeros((1, 80, 80, 3)), 0)

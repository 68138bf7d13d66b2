"""Superpixels, masks and their weights, LIME and Kernel SHAP."""

from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pytest

from dermlens.errors import ExplanationError, UsageError
from dermlens.explainers.baselines import baseline_image
from dermlens.explainers.coalitions import binomial_mass, coalitions, shapley_mass
from dermlens.explainers.lime import LIME, proximity_kernel
from dermlens.explainers.shap import (
    GaussianProcessSHAP,
    KernelSHAP,
    constrained_values,
    shapley_values,
)
from dermlens.explainers.superpixel_explainer import SuperpixelBank, ranking
from dermlens.explainers.superpixels import grid_cells, painted, superpixels
from explain_networks import function_network, linear_network, smooth_images, trained_like


def connected(piece: np.ndarray) -> bool:
    from scipy.ndimage import label

    return label(piece, np.ones((3, 3)))[1] == 1


@pytest.mark.parametrize("kind", ["uniform", "gradient", "lesion"])
def test_smooth_skin_is_cut_into_many_pieces_of_like_size(kind: str) -> None:
    image = np.full((96, 128, 3), (215, 170, 150), np.uint8)
    if kind == "gradient":
        image = (image - np.linspace(0, 60, 128)[None, :, None]).astype(np.uint8)
    if kind == "lesion":
        row, column = np.mgrid[:96, :128]
        image[(row - 48) ** 2 + (column - 60) ** 2 < 25**2] = (90, 50, 40)
    labels = superpixels(image, 50)
    sizes = np.bincount(labels.ravel())
    assert 30 <= len(sizes) <= 75 and sizes.min() > 0
    assert sizes.max() < 6 * 96 * 128 / 50
    assert all(connected(labels == piece) for piece in range(len(sizes)))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, superpixels(image.copy(), 50))


def test_pieces_follow_the_border_of_a_lesion() -> None:
    image = np.full((96, 128, 3), (215, 170, 150), np.uint8)
    row, column = np.mgrid[:96, :128]
    lesion = (row - 48) ** 2 + (column - 60) ** 2 < 25**2
    image[lesion] = (90, 50, 40)
    labels = superpixels(image, 50)
    inside = np.array([lesion[labels == piece].mean() for piece in range(labels.max() + 1)])
    assert ((inside < 0.15) | (inside > 0.85)).mean() > 0.9


def test_tiny_and_odd_images_are_cut_too() -> None:
    for size in ((2, 2), (3, 7), (9, 5)):
        labels = superpixels(np.zeros((*size, 3), np.uint8), 50)
        assert labels.shape == size and labels.max() >= 1
    assert grid_cells(4, 6, 6).tolist()[0] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UsageError, match="at least 2"):
        superpixels(np.zeros((9, 9, 3)), 1)


def test_painting_gives_pixels_the_value_of_their_piece() -> None:
    labels = np.array([[0, 0, 1], [2, 1, 1]])
    drawn = painted(np.array([[5.0, -1.0, 2.0]]), labels)
    np.testing.assert_array_equal(drawn[0], [[5, 5, -1], [2, -1, -1]])


@pytest.mark.parametrize("design", ["lime", "shap", "even", "both"])
@pytest.mark.parametrize(("pieces", "samples"), [(4, 16), (7, 60), (12, 300), (40, 400)])
def test_masks_are_valid_and_paired(design: str, pieces: int, samples: int) -> None:
    made = coalitions(pieces, samples, design, np.random.default_rng(0))
    assert len(made.masks) == min(samples, 2**pieces)
    assert made.masks[0].all() and not made.masks[1].any()
    known = made.masks[made.pairs < 0]
    assert len({mask.tobytes() for mask in known}) == len(known)
    for size in np.flatnonzero(made.complete):
        assert (known.sum(axis=1) == size).sum() == comb(pieces, int(size))
    for pair in range(0, made.pairs.max(), 7):
        one, other = made.masks[made.pairs == pair][:2]
        np.testing.assert_array_equal(one, ~other)


@pytest.mark.parametrize("design", ["lime", "shap", "both"])
def test_weighted_sums_estimate_sums_over_all_masks(design: str) -> None:
    """Whatever the design, weights undo it: the mean over draws is the sum over all masks."""
    pieces = 8
    value = np.random.default_rng(1).normal(size=2**pieces)
    everything = (np.arange(2**pieces)[:, None] >> np.arange(pieces)) & 1
    sizes = everything.sum(axis=1)
    mass = {"lime": binomial_mass, "shap": shapley_mass, "both": shapley_mass}[design](pieces)
    each = mass / [comb(pieces, s) for s in range(pieces + 1)]
    truth = (each[sizes] * value).sum()
    estimates = []
    for seed in range(400):
        made = coalitions(pieces, 60, design, np.random.default_rng(seed))
        codes = made.masks @ (1 << np.arange(pieces))
        estimates.append((made.weights(mass) * value[codes]).sum())
    # Under the binomial design the two masks that are always there are counted on top.
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * error + 0.02)


def test_coalitions_refuse_what_cannot_work() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(UsageError, match="explain nothing"):
        coalitions(5, 3, "shap", generator)
    with pytest.raises(UsageError, match="explain nothing"):
        coalitions(1, 100, "shap", generator)
    with pytest.raises(UsageError, match="Unknown design"):
        coalitions(5, 30, "owen", generator)


def quarters(size: tuple[int, int] = (8, 12)) -> np.ndarray:
    return grid_cells(*size, 4)


def quarter_means(pixels: Any) -> list:
    """The mean red of the four quarters of an 8x12 image."""
    import keras

    return [
        keras.ops.mean(pixels[:, r : r + 4, c : c + 6, 0], axis=(1, 2)) / 10
        for r in (0, 4)
        for c in (0, 6)
    ]


def game_network() -> Any:
    """f = a + 2 b + a b + 3 c d: interactions, and Shapley values that are easy by hand."""
    import keras

    def value(pixels: Any) -> Any:
        a, b, c, d = quarter_means(pixels)
        return keras.ops.stack([a + 2 * b + a * b + 3 * c * d, c], axis=1)

    return function_network((8, 12), value)


def test_shapley_values_by_hand() -> None:
    image = np.full((1, 8, 12, 3), 10.0)
    shap = GaussianProcessSHAP(
        game_network(), superpixels=quarters(), n_samples=16, baseline="black"
    )
    result = shap.attribute(image, "all")
    np.testing.assert_allclose(
        result.weights[0],
        [[1.5, 2.5, 1.5, 1.5], [0, 0, 1, 0]],
        atol=1e-5,
    )
    assert (result.interval == 0).all() and result.cost.forward == 16
    np.testing.assert_allclose(
        result.maps[0, 0, [0, 0, 7, 7], [0, 11, 0, 11]], [1.5, 2.5, 1.5, 1.5], atol=1e-5
    )
    np.testing.assert_allclose(result.values, [[7.0, 1.0]], atol=1e-5)


def definition(values: np.ndarray, pieces: int) -> np.ndarray:
    """Shapley values as a sum over subsets, written independently."""
    result = np.zeros(pieces)
    for player in range(pieces):
        others = [p for p in range(pieces) if p != player]
        for size in range(pieces):
            for subset in combinations(others, size):
                code = sum(1 << p for p in subset)
                gain = values[code | 1 << player] - values[code]
                result[player] += gain / (pieces * comb(pieces - 1, size))
    return result


def random_game(pieces: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Worth of all coalitions, with interactions of pairs and triples; and all masks."""
    generator = np.random.default_rng(seed)
    masks = (np.arange(2**pieces)[:, None] >> np.arange(pieces)) & 1
    pairs = generator.normal(size=(pieces, pieces)) * 0.4
    worth = masks @ generator.normal(size=pieces) + ((masks @ pairs) * masks).sum(axis=1)
    triples = [generator.choice(pieces, 3, replace=False) for _ in range(6)]
    worth = worth + sum(masks[:, t].prod(axis=1) * generator.normal() for t in triples)
    return worth, masks.astype(bool)


def test_exact_values_and_the_kernel_regression_agree_with_the_definition() -> None:
    worth, _ = random_game(6, 0)
    expected = definition(worth, 6)
    np.testing.assert_allclose(shapley_values(worth[:, None])[0], expected, atol=1e-12)
    everything = coalitions(6, 64, "shap", np.random.default_rng(0))
    codes = everything.masks @ (1 << np.arange(6))
    fitted, _ = constrained_values(everything, worth[codes][:, None])
    np.testing.assert_allclose(fitted[0], expected, atol=1e-9)


def test_sampled_values_are_close_add_up_and_their_intervals_cover() -> None:
    worth, _ = random_game(10, 3)
    expected = shapley_values(worth[:, None])[0]
    covered, errors = [], []
    for seed in range(150):
        made = coalitions(10, 200, "shap", np.random.default_rng(seed))
        values = worth[made.masks @ (1 << np.arange(10))][:, None]
        fitted, half = constrained_values(made, values)
        assert fitted.sum() == pytest.approx(worth[-1] - worth[0], abs=1e-9)
        errors.append(fitted[0] - expected)
        covered.append(np.abs(fitted[0] - expected) <= half[0])
    assert 0.88 < np.mean(covered) < 0.995
    bias = np.mean(errors, axis=0) / (np.std(errors, axis=0) / np.sqrt(150))
    assert np.abs(bias).max() < 4
    assert np.std(errors) < 0.1 * np.std(expected)


def test_additivity_test_can_fail() -> None:
    """The gap that is reported is that of the values: without the constraint it is large."""
    model, image = trained_like((24, 36)), smooth_images(1, (24, 36))
    result = GaussianProcessSHAP(model, superpixels=12, n_samples=60).attribute(image, 4)
    weights = result.weights[0].astype(np.float64)
    change = float(result.values[0] - result.baseline_output[0])
    assert weights.sum() == pytest.approx(change, abs=1e-4)
    assert result.additivity_gap[0] < 1e-5
    assert abs(weights.sum() * 0.99 - change) > 1e-3


@pytest.mark.parametrize("kind", [LIME, GaussianProcessSHAP])
def test_linear_network_exactly(kind: Any) -> None:
    weights = np.random.default_rng(0).normal(size=(8, 12, 3, 3))
    images, model = smooth_images(2, (8, 12)), linear_network(weights)
    labels = grid_cells(8, 12, 6)
    options = {"ridge": 0.0} if kind is LIME else {}
    result = kind(model, superpixels=labels, n_samples=50, baseline="blur", **options).attribute(
        images, 1
    )
    change = images - np.stack([baseline_image(i, "blur") for i in images])
    pixelwise = (change * weights[..., 1]).sum(axis=-1)
    expected = [[image[labels == piece].sum() for piece in range(6)] for image in pixelwise]
    np.testing.assert_allclose(result.weights, expected, rtol=1e-3, atol=0.05)
    if kind is LIME:
        np.testing.assert_allclose(result.r2, 1.0, atol=1e-6)


def test_lime_is_weighted_ridge_regression() -> None:
    from sklearn.linear_model import Ridge

    model, image = trained_like((24, 36)), smooth_images(1, (24, 36)).astype(np.float32)
    labels = grid_cells(24, 36, 6)
    lime = LIME(model, superpixels=labels, n_samples=64, ridge=0.7, kernel_width=0.3)
    result = lime.attribute(image, 2)
    masks = (np.arange(64)[:, None] >> np.arange(6)) & 1
    baseline = baseline_image(image[0], "border")
    seen = np.stack([np.where(m[labels][..., None] == 1, image[0], baseline) for m in masks])
    outputs = np.asarray(model(seen, training=False))[:, 2]
    distance = 1 - np.sqrt(masks.mean(axis=1))
    near = np.sqrt(np.exp(-(distance**2) / 0.3**2))
    oracle = Ridge(alpha=0.7).fit(masks, outputs, sample_weight=near)
    np.testing.assert_allclose(result.weights[0], oracle.coef_, rtol=1e-3, atol=1e-4)
    r2 = oracle.score(masks, outputs, sample_weight=near)
    assert result.r2[0] == pytest.approx(r2, abs=1e-4)
    assert proximity_kernel(6, 0.3)[6] == 1.0


def test_intervals_of_lime_cover_what_more_masks_would_say() -> None:
    model, image = trained_like((24, 36)), smooth_images(1, (24, 36))
    labels = grid_cells(24, 36, 12)
    truth = LIME(model, superpixels=labels, n_samples=4096, ridge=0).attribute(image, 4)
    target, covered = truth.weights[0], []
    lime = LIME(model, superpixels=labels, n_samples=150, ridge=0)
    for seed in range(30):
        result = lime.attribute(image, 4, seed=seed)
        error = np.abs(result.weights[0] - target)
        covered.append(error <= result.interval[0])
    assert 0.85 < np.mean(covered) < 0.999


def test_one_bank_serves_both_methods_and_all_classes() -> None:
    model, images = trained_like((24, 36)), smooth_images(1, (24, 36))
    bank = SuperpixelBank(model, superpixels=10, n_samples=200)
    lime, shap = LIME(model, bank=bank), GaussianProcessSHAP(model, bank=bank)
    first, second = lime.attribute(images, "all"), shap.attribute(images, "all")
    assert first.cost.forward == 200 and second.cost.forward == 0
    assert bank.masked.traces == 1
    alone = LIME(model, superpixels=10, n_samples=200).attribute(images, "all")
    own = GaussianProcessSHAP(model, superpixels=10, n_samples=200).attribute(images, "all")
    for shared, single in ((first, alone), (second, own)):
        a, b = shared.weights, single.weights
        here = ~np.isnan(a)
        a, b = a[here], b[here]
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97


def test_bank_forgets_when_weights_or_seed_change() -> None:
    model, image = trained_like((24, 36)), smooth_images(1, (24, 36))
    shap = GaussianProcessSHAP(model, superpixels=10, n_samples=40)
    assert shap.attribute(image, 4).cost.forward == 40
    assert shap.attribute(image, 5).cost.forward == 0
    assert shap.attribute(image, 4, seed=1).cost.forward == 40
    model.get_layer("logits").kernel.assign(model.get_layer("logits").kernel * 2)
    assert shap.attribute(image, 4).cost.forward == 40


def test_the_strongest_superpixels_are_named_with_their_weights() -> None:
    weights = np.zeros((12, 18, 3, 2))
    labels = grid_cells(12, 18, 9)
    for rank, piece in enumerate((4, 2, 7)):
        weights[labels == piece] = 0.1 * (3 - rank)
    model, image = linear_network(weights), np.full((1, 12, 18, 3), 100.0)
    for kind in (LIME, GaussianProcessSHAP, KernelSHAP):
        result = kind(model, superpixels=labels, n_samples=100, baseline="black").attribute(
            image, 0
        )
        strongest = result.facts()["strongest_superpixels"]
        assert [one["superpixel"] for one in strongest[:3]] == [4, 2, 7] and len(strongest) == 5
        assert strongest[0]["weight"] == result.weights[0, 4] > 0
        assert ranking(result.weights[0])[:3].tolist() == [4, 2, 7]


def test_segmentations_of_ones_own() -> None:
    model, images = trained_like((24, 36)), smooth_images(1, (24, 36))
    by_function = LIME(model, superpixels=lambda image: grid_cells(24, 36, 8) * 3, n_samples=80)
    result = by_function.attribute(images, 0)
    assert sorted(np.unique(result.superpixels)) == list(range(8))
    with pytest.raises(ExplanationError, match="do not fit"):
        LIME(model, superpixels=np.zeros((3, 3), int)).attribute(images, 0)
    with pytest.raises(UsageError, match="too few"):
        GaussianProcessSHAP(model, superpixels=40, n_samples=20).attribute(images, 0)
    with pytest.raises(UsageError, match="kernel_width"):
        LIME(model, kernel_width=0)

"""Shapley values from a Gaussian process over coalitions: exact where they must be, and honest."""

from dataclasses import replace

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers import shapley_process
from dermlens.explainers.coalitions import Coalitions, coalitions
from dermlens.explainers.shap import (
    GaussianProcessSHAP,
    KernelSHAP,
    constrained_values,
    permutation_values,
    shapley_values,
)
from dermlens.explainers.shapley_process import (
    _covariance,
    _posterior,
    coalition_shapley,
    odd_parts,
    process_values,
)
from dermlens.explainers.superpixels import grid_cells
from explain_networks import smooth_images, trained_like


def every(pieces: int) -> np.ndarray:
    """All coalitions, bit i of the position saying whether piece i is in."""
    return (np.arange(2**pieces)[:, None] >> np.arange(pieces)) & 1 == 1


def code(masks: np.ndarray) -> np.ndarray:
    return masks @ (1 << np.arange(masks.shape[1]))


def smooth_game(pieces: int, seed: int) -> np.ndarray:
    """Worth of all coalitions: a small random network, as smooth as an image's output."""
    generator = np.random.default_rng(seed)
    hidden = np.tanh(every(pieces) @ generator.normal(size=(pieces, 12)) * 0.5 - 0.5)
    return hidden @ generator.normal(size=12)


def saturating_game(pieces: int, seed: int) -> np.ndarray:
    """Worth of all coalitions: half of the evidence is nearly enough, as it is for a classifier."""
    weights = np.random.default_rng(seed).exponential(size=pieces)
    return 1 - np.exp(-4 * (every(pieces) @ weights) / weights.sum())


@pytest.mark.parametrize("pieces", [1, 2, 5, 8])
@pytest.mark.parametrize("rho", [0.05, 0.6, 0.98])
def test_closed_form_is_the_definition(pieces: int, rho: float) -> None:
    inside, outside = coalition_shapley(pieces, rho)
    masks = every(pieces)
    for size in range(pieces + 1):
        coalition = np.arange(pieces) < size
        game = rho ** (masks != coalition).sum(axis=1)
        expected = shapley_values(game[:, None])[0]
        np.testing.assert_allclose(
            np.where(coalition, inside[size], outside[size]), expected, atol=1e-12
        )


def test_closed_form_by_hand() -> None:
    """M = 2, T = {a}: v() = r, v(a) = 1, v(b) = r^2, v(ab) = r."""
    inside, outside = coalition_shapley(2, 0.3)
    assert inside[1] == pytest.approx(((1 - 0.3) + (0.3 - 0.09)) / 2)
    assert outside[1] == pytest.approx(((0.09 - 0.3) + (0.3 - 1)) / 2)
    assert np.isnan(inside[0]) and np.isnan(outside[2])


def brute_force(
    masks: Coalitions, worth: np.ndarray, length: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior of all 2^M odd parts as one big Gaussian, then the definition of Shapley values.

    The trend is a process with a huge variance in place of a flat prior; scale is one.
    """
    pieces = masks.pieces
    whole = every(pieces) - 0.5
    prior = _covariance(whole, float(np.exp(-1 / length))) + 1e5 * whole @ whole.T
    kept, odd = odd_parts(masks, worth[code(masks.masks)][:, None])
    seen = code(kept)
    nugget = np.diag(np.where(np.arange(len(seen)) == 0, 1e-9, noise))
    gain = prior[:, seen] @ np.linalg.inv(prior[np.ix_(seen, seen)] + nugget)
    mean, covariance = gain @ odd[:, 0], prior - gain @ prior[seen]
    # The matrix of the definition: Shapley values of the games that are 1 at one coalition.
    definition = shapley_values(np.eye(2**pieces)).T
    return definition @ mean, np.einsum("pa,ab,pb->p", definition, covariance, definition)


@pytest.mark.parametrize(("length", "noise"), [(2.0, 1e-2), (8.0, 0.3)])
def test_values_and_deviations_are_those_of_the_posterior(length: float, noise: float) -> None:
    worth = smooth_game(7, 0)
    made = coalitions(7, 40, "even", np.random.default_rng(0))
    kept, odd = odd_parts(made, worth[code(made.masks)][:, None])
    values, deviation, _ = _posterior(kept, kept - 0.5, odd[:, 0], length, noise)
    mean, variance = brute_force(made, worth, length, noise)
    np.testing.assert_allclose(values, mean, atol=2e-4)
    # The scale is estimated: deviations are compared up to one factor, which is the same for all.
    ratio = deviation**2 / variance
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=2e-3)
    assert ratio.mean() > 0


def test_scale_of_the_deviations_follows_the_scores() -> None:
    worth = smooth_game(9, 1)
    made = coalitions(9, 80, "even", np.random.default_rng(0))
    values = worth[code(made.masks)][:, None]
    once, larger = process_values(made, values), process_values(made, 40 * values + 3)
    np.testing.assert_allclose(larger.values, 40 * once.values, rtol=1e-6)
    np.testing.assert_allclose(larger.deviation, 40 * once.deviation, rtol=1e-6)
    np.testing.assert_allclose(larger.explained, once.explained, rtol=1e-6)


def test_a_sum_over_pieces_is_solved_exactly_from_few_masks() -> None:
    weights = np.random.default_rng(0).normal(size=30)
    made = coalitions(30, 64, "lime", np.random.default_rng(1))
    fit = process_values(made, (made.masks @ weights + 2.0)[:, None])
    np.testing.assert_allclose(fit.values[0], weights, atol=1e-6)
    assert fit.deviation.max() < 1e-6 and fit.explained[0] > 1 - 1e-9


def test_what_a_coalition_and_its_complement_share_is_worth_nothing() -> None:
    made = coalitions(20, 80, "even", np.random.default_rng(0))
    size = made.masks.sum(axis=1)
    fit = process_values(made, (size * (20 - size) * 1.0)[:, None])
    np.testing.assert_array_equal(fit.values, 0.0)
    np.testing.assert_array_equal(fit.deviation, 0.0)
    assert fit.explained[0] == 1.0


def test_values_add_up_and_follow_their_pieces() -> None:
    worth = np.stack([smooth_game(10, 1), -3 * smooth_game(10, 2)], axis=1)
    made = coalitions(10, 90, "even", np.random.default_rng(0))
    values = worth[code(made.masks)]
    fit = process_values(made, values)
    np.testing.assert_allclose(fit.values.sum(axis=1), worth[-1] - worth[0], atol=1e-12)
    turn = np.random.default_rng(3).permutation(10)
    turned = Coalitions(made.masks[:, turn], made.complete, made.chances, made.pairs)
    np.testing.assert_allclose(
        process_values(turned, values).values, fit.values[:, turn], atol=1e-8
    )
    alone = process_values(made, values[:, 1:])
    np.testing.assert_allclose(alone.values[0], fit.values[1], atol=1e-10)


def test_values_add_up_even_where_the_fit_alone_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapley_process, "_EXACT", 0.5)
    worth = smooth_game(10, 1)
    made = coalitions(10, 90, "even", np.random.default_rng(0))
    fit = process_values(made, worth[code(made.masks)][:, None])
    assert fit.values.sum() == pytest.approx(worth[-1] - worth[0], abs=1e-12)


def test_error_is_well_below_that_of_the_regression_and_intervals_cover() -> None:
    process, regression, covered, explained = [], [], [], []
    for seed in range(40):
        worth = saturating_game(12, seed)
        exact = shapley_values(worth[:, None])[0]
        spread = np.var(exact)
        even = coalitions(12, 120, "even", np.random.default_rng(seed))
        fit = process_values(even, worth[code(even.masks)][:, None])
        process.append(np.mean((fit.values[0] - exact) ** 2) / spread)
        covered.append(np.abs(fit.values[0] - exact) <= 1.96 * fit.deviation[0])
        explained.append(fit.explained[0])
        kernel = coalitions(12, 120, "shap", np.random.default_rng(seed))
        fitted, _ = constrained_values(kernel, worth[code(kernel.masks)][:, None])
        regression.append(np.mean((fitted[0] - exact) ** 2) / spread)
    assert np.mean(process) < 0.3 * np.mean(regression)
    assert 0.9 < np.mean(covered) <= 0.999
    assert 0.8 < np.mean(explained) < 1


def test_a_game_without_structure_is_not_explained() -> None:
    noise = np.random.default_rng(0).normal(size=(2**10, 1))
    made = coalitions(10, 200, "even", np.random.default_rng(0))
    fit = process_values(made, noise[code(made.masks)])
    assert fit.explained[0] < 0.2
    exact = shapley_values(noise)[0]
    assert np.mean(np.abs(fit.values[0] - exact) <= 1.96 * fit.deviation[0]) > 0.8


def test_odd_parts_by_hand() -> None:
    masks = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 1, 0], [1, 0, 0]], bool)
    made = Coalitions(masks, np.zeros(4, bool), np.zeros(4), np.array([-1, -1, 0, 0, 1, 2]))
    kept, odd = odd_parts(made, np.array([[8.0], [2.0], [3.0], [4.0], [5.0], [3.0]]))
    np.testing.assert_array_equal(kept, masks[[0, 2]])
    np.testing.assert_array_equal(odd, [[3.0], [-0.5]])


@pytest.mark.parametrize(("pieces", "samples"), [(8, 120), (12, 100), (50, 500)])
def test_even_masks_differ_and_spread_over_all_sizes(pieces: int, samples: int) -> None:
    made = coalitions(pieces, samples, "even", np.random.default_rng(0))
    assert len(np.unique(made.masks, axis=0)) == len(made.masks) == samples
    assert (made.pairs < 0).sum() == 2
    counts = np.bincount(made.masks.sum(axis=1), minlength=pieces + 1)[2:-2]
    expected = (samples - 2) / (pieces - 1)
    if pieces > 8:
        assert counts.min() >= 0.5 * expected and counts.max() <= 2 * expected
    again = coalitions(pieces, samples, "even", np.random.default_rng(0))
    np.testing.assert_array_equal(again.masks, made.masks)


def test_both_estimators_approach_the_exact_values_of_a_network() -> None:
    model, image = trained_like((24, 36)), smooth_images(1, (24, 36))
    labels = grid_cells(24, 36, 12)
    exact = GaussianProcessSHAP(model, superpixels=labels, n_samples=4096).attribute(image, 4)
    for kind in (GaussianProcessSHAP, KernelSHAP):
        found = kind(model, superpixels=labels, n_samples=600).attribute(image, 4)
        assert np.corrcoef(found.maps.ravel(), exact.maps.ravel())[0, 1] > 0.995
        assert found.cost.forward == 600
        if kind is GaussianProcessSHAP:
            assert 0.5 < found.explained[0] < 1
    assert exact.explained[0] == 1.0 and (exact.interval == 0).all()


def test_as_few_couples_as_pieces_still_give_values_that_add_up() -> None:
    made = coalitions(20, 42, "lime", np.random.default_rng(0))
    kept, _ = odd_parts(made, np.zeros((42, 1)))
    outputs = np.random.default_rng(1).normal(size=(42, 1))
    for count in (42, 38):
        few = replace(made, masks=made.masks[:count], pairs=made.pairs[:count])
        fit = process_values(few, outputs[:count])
        assert fit.values.sum() == pytest.approx(outputs[0, 0] - outputs[1, 0])
        assert np.isfinite(fit.values).all() and np.isfinite(fit.deviation).all()
        # 21 couples of 20 pieces leave one to judge by, 19 couples none.
        assert np.isnan(fit.explained[0]) == (count == 38)
    assert len(kept) == 21


@pytest.mark.parametrize("design", ["even", "both"])
def test_few_masks_are_the_beginnings_of_permutations(design: str) -> None:
    made = coalitions(10, 39, design, np.random.default_rng(0))
    # Two pairs of a permutation and its reverse, nine masks on the way of each, all and none.
    assert made.orders is not None and made.orders.shape == (4, 10) and len(made.masks) == 38
    assert (np.sort(made.orders, axis=1) == np.arange(10)).all()
    np.testing.assert_array_equal(made.orders[1::2], made.orders[::2, ::-1])
    known = {mask.tobytes() for mask in made.masks}
    for order in made.orders:
        for length in range(11):
            assert np.isin(np.arange(10), order[:length]).tobytes() in known
    np.testing.assert_array_equal(made.masks[2::2], ~made.masks[3::2])
    assert (np.bincount(made.masks.sum(axis=1))[1:-1] == 4).all()
    for count, pieces in ((40, 10), (19, 10)):
        assert coalitions(pieces, count, design, np.random.default_rng(0)).orders is None


def test_permutations_give_what_they_add_on_average_by_hand() -> None:
    """v = 2 a + 3 b c: in (a, b, c) c gets the 3, in its reverse a gets 2, b the 3, c nothing."""
    masks = every(3)
    made = Coalitions(
        np.concatenate([masks[-1:], masks[:-1]]),
        np.array([True, False, False, True]),
        np.array([0.0, 0.5, 0.5, 0.0]),
        np.zeros(8, int),
        np.array([[0, 1, 2], [2, 1, 0]]),
    )
    worth = (2.0 * made.masks[:, 0] + 3.0 * made.masks[:, 1] * made.masks[:, 2])[:, None]
    values, half_width = permutation_values(made, worth)
    np.testing.assert_allclose(values, [[2.0, 1.5, 1.5]])
    # The standard error of 0 and 3 is 1.5; Student's t of one degree of freedom is 12.7062.
    np.testing.assert_allclose(half_width, [[0.0, 1.5 * 12.7062, 1.5 * 12.7062]], rtol=1e-5)


def test_permutations_are_right_on_average_and_cover() -> None:
    worth = saturating_game(10, 3)
    truth = shapley_values(worth[:, None])[0]
    found, covered = [], []
    for seed in range(150):
        made = coalitions(10, 38, "even", np.random.default_rng(seed))
        values, half = permutation_values(made, worth[code(made.masks)][:, None])
        assert values.sum() == pytest.approx(worth[-1] - worth[0])
        found.append(values[0])
        covered.append(np.abs(values[0] - truth) <= half[0])
    drawn = np.array(found)
    spread = drawn.std(axis=0, ddof=1) / np.sqrt(150)
    assert (np.abs(drawn.mean(axis=0) - truth) <= 4 * spread).all()
    assert 0.9 < np.mean(covered) < 0.99


def test_the_result_says_which_estimator_was_used() -> None:
    model, image = trained_like((24, 36)), smooth_images(1, (24, 36))
    labels = grid_cells(24, 36, 12)
    for kind, count, name in (
        (GaussianProcessSHAP, 47, "permutations"),
        (GaussianProcessSHAP, 48, "gaussian_process"),
        (GaussianProcessSHAP, 4096, "exact"),
        (KernelSHAP, 47, "least_squares"),
    ):
        result = kind(model, superpixels=labels, n_samples=count).attribute(image, 4)
        assert result.estimator.tolist() == [result.facts()["estimator"]] == [name]
        assert result.additivity_gap[0] < 1e-5
        assert np.isnan(result.explained[0]) == (name == "permutations")
    with pytest.raises(UsageError, match="too few"):
        GaussianProcessSHAP(model, superpixels=labels, n_samples=23).attribute(image, 4)

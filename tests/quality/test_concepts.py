"""Following of quantities: exact answers for networks and numbers that are known."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.quality.concepts import (
    LayerReader,
    concept_changes,
    concept_direction,
    concept_scores,
    concept_step,
    concept_test,
    partial_spearman,
    random_directions,
    rank_residuals,
)
from explain_networks import pooled_network

GENERATOR = np.random.default_rng(0)


def test_ranks_without_groups_and_other_quantities() -> None:
    groups = np.repeat(["a", "b", "c"], 40)
    size = GENERATOR.permutation(120).astype(float)
    within = GENERATOR.permutation(120).astype(float)
    rest = rank_residuals(within + 1000 * np.repeat([0, 1, 2], 40), groups, size[:, None])
    for name in "abc":
        assert abs(rest[groups == name].mean()) < 1e-12
    assert abs(np.corrcoef(rest, size)[0, 1]) < 1e-12
    assert rest.mean() == pytest.approx(0, abs=1e-12) and rest.std() == pytest.approx(1)
    # What is wholly known leaves exactly nothing, not rounding blown up.
    assert (rank_residuals(size**3, groups, size[:, None]) == 0).all()


def test_a_diagnosis_alone_makes_no_correlation_and_a_real_one_is_found() -> None:
    groups = np.repeat(["benign", "malignant"], 150)
    value = GENERATOR.normal(size=300) + 3 * (groups == "malignant")
    only_class = GENERATOR.normal(size=300) + 5 * (groups == "malignant")
    follows = -value + 0.5 * GENERATOR.normal(size=300) + 20 * (groups == "malignant")
    assert np.corrcoef(value, only_class)[0, 1] > 0.6
    outputs = np.column_stack([only_class, follows])
    none, real = partial_spearman(outputs, value, groups, np.arange(300), resamples=400)
    assert none.low < 0 < none.high and none.p > 0.05
    assert real.correlation < -0.8 and real.high < -0.7 and real.p < 0.001
    assert real.low < real.correlation < real.high


def test_photographs_of_one_lesion_count_as_one() -> None:
    value = np.repeat(GENERATOR.normal(size=30), 8)
    output = np.repeat(GENERATOR.normal(size=30), 8)
    lesions = np.repeat(np.arange(30), 8)
    together = partial_spearman(output[:, None], value, ["x"] * 240, lesions)[0]
    apart = partial_spearman(output[:, None], value, ["x"] * 240, np.arange(240))[0]
    assert together.correlation == apart.correlation
    assert together.high - together.low > 2 * (apart.high - apart.low)
    assert together.p > apart.p


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="do not fit"):
        rank_residuals(np.ones(3), ["a", "b"])


def network() -> Any:
    """Features are the mean colors; logit 0 grows with red, 1 falls with green, 2 knows nothing."""
    head = np.array([[2.0, 0.0, 0.0], [0.0, -3.0, 0.0], [0.0, 0.0, 0.0]])
    return pooled_network(np.eye(3).reshape(1, 1, 3, 3), head, (6, 8))


def test_features_and_gradients_of_a_known_network() -> None:
    images = GENERATOR.integers(0, 256, (5, 6, 8, 3)).astype(np.uint8)
    found = LayerReader(network(), lambda logits: logits, batch_size=2).read(images)
    assert found.layer == "features"
    np.testing.assert_allclose(found.features, images.mean(axis=(1, 2)), rtol=1e-5)
    expected = [[2.0, 0.0, 0.0], [0.0, -3.0, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(found.gradients, np.tile(expected, (5, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(found.outputs[:, 0], 2 * images[..., 0].mean(axis=(1, 2)), rtol=1e-5)
    plain = LayerReader(network()).read(images)
    assert plain.gradients.shape == (5, 0, 3)
    np.testing.assert_array_equal(plain.features, found.features)


def test_a_concept_the_network_follows_one_against_it_and_one_it_ignores() -> None:
    features = GENERATOR.normal(128, 20, (200, 3))
    images = GENERATOR.integers(0, 256, (4, 6, 8, 3))
    gradients = LayerReader(network(), lambda logits: logits).read(images).gradients
    scores = {}
    for channel, name in enumerate(("red", "green", "blue")):
        shift = np.eye(3)[channel] * 60
        direction = concept_direction(features[:100] + shift, features[100:])
        assert direction[channel] > 0.9 and np.linalg.norm(direction) == pytest.approx(1)
        scores[name] = [float(concept_scores(gradients[:, k], direction[None])[0]) for k in (0, 1)]
    assert scores["red"][0] == 1.0 and scores["green"][1] == 0.0
    # An output that knows nothing neither grows nor falls.
    assert concept_scores(gradients[:, 2], np.eye(3)).tolist() == [0.5, 0.5, 0.5]


def test_the_direction_is_that_of_the_normal_equations() -> None:
    high, low = GENERATOR.normal(1, 1, (30, 5)), GENERATOR.normal(0, 2, (20, 5))
    features = np.vstack([high, low])
    labels = np.concatenate([np.full(30, 1 / 30), np.full(20, -1 / 20)])
    labels -= labels.mean()
    centered = features - features.mean(axis=0)
    penalty = 0.1 * np.trace(centered.T @ centered) / 50
    primal = np.linalg.solve(centered.T @ centered + penalty * np.eye(5), centered.T @ labels)
    found = concept_direction(high, low)
    np.testing.assert_allclose(found, primal / np.linalg.norm(primal), atol=1e-10)
    scaled = concept_direction(high * 1e4, low * 1e4)
    np.testing.assert_allclose(scaled, found, atol=1e-10)


def test_random_concepts_and_their_test() -> None:
    features = GENERATOR.normal(size=(60, 4))
    drawn = random_directions(features, 20, 50, seed=1)
    assert drawn.shape == (50, 4)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1.0)
    np.testing.assert_array_equal(drawn, random_directions(features, 20, 50, seed=1))
    spread = np.linspace(0.2, 0.8, 99)
    assert concept_test(0.95, spread, 0.5) == concept_test(0.05, spread, 0.5) == 0.01
    assert concept_test(0.5, spread, 0.5) == 1.0
    steps = random_directions(features, 20, 50, between=concept_step, seed=1)
    assert np.abs(steps).max() < 1.5 and concept_test(-9.0, steps[:, 0]) == pytest.approx(1 / 51)


def test_a_step_changes_the_output_as_much_as_moving_the_features_does() -> None:
    """The classifier's normal points against the concept where a second feature tells better."""
    much = GENERATOR.normal(size=(1000, 1)) * 5
    noise = GENERATOR.normal(size=(1000, 1)) * 20
    features = np.hstack([much + noise, noise, np.zeros_like(much)])
    high, low = features[much[:, 0] > 2], features[much[:, 0] < -2]
    step, normal = concept_step(high, low), concept_direction(high, low, ridge=1e-6)
    np.testing.assert_allclose(step, high.mean(axis=0) - low.mean(axis=0))
    gradients = np.tile([[0.2, 1.0, 0.0]], (3, 1))
    change = concept_changes(gradients, step[None])
    assert change.shape == (3, 1) and change.mean() == pytest.approx(float(gradients[0] @ step))
    # Telling apart takes the noise away, which says nothing of where features move.
    assert normal[1] < -0.5 and concept_scores(gradients, normal[None])[0] == 0.0
    assert step[0] > 5 and abs(step[1]) < 2

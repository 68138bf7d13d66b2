"""The strength of the balanced rule: theory, and what it takes to overrule it."""

import json

import numpy as np
import pytest

from dermlens.model.balanced_rule import NO_RULE, TAUS, fit_balanced_rule, rule_curve
from dermlens.model.calibration import Calibration


def skewed(count: int, seed: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Honest logits under a skewed prior, labels, and the log prior."""
    generator = np.random.default_rng(seed)
    prior = np.array([0.85, 0.1, 0.05])
    labels = generator.choice(3, count, p=prior)
    evidence = np.eye(3)[labels] * 1.5 + generator.normal(size=(count, 3)) * 1.2
    return np.log(prior) + evidence * 1.5 / 1.44, labels, np.log(prior)


def test_a_hidden_prior_is_divided_out_but_not_more_than_theory_says() -> None:
    logits, labels, prior = skewed(6000)
    rule = fit_balanced_rule(logits, labels, prior, np.arange(6000))
    assert 0.75 <= rule.tau <= 1.0
    exaggerated = fit_balanced_rule(0.5 * logits, labels, 0.25 * prior, np.arange(6000))
    assert exaggerated.tau == 1.0


def test_few_images_do_not_overrule_theory_and_many_do() -> None:
    """Noise of a handful does not lower the strength; many logits without a prior do."""
    logits, labels, prior = skewed(6000)
    without = logits - prior
    assert fit_balanced_rule(without, labels, prior, np.arange(6000)).tau <= 0.3
    few = [fit_balanced_rule(*skewed(150, seed), np.arange(150)).tau for seed in range(6)]
    assert np.mean(few) > 0.85


def test_where_the_rule_changes_nothing_it_is_that_of_theory() -> None:
    labels = np.arange(60) % 3
    logits = 50.0 * np.eye(3)[labels]
    rule = fit_balanced_rule(logits, labels, np.log([0.6, 0.3, 0.1]), np.arange(60))
    assert rule.tau == 1.0


def test_curve_by_hand() -> None:
    """One rare image is won once tau log(9) exceeds its distance, and a frequent one lost later."""
    prior = np.log([0.9, 0.1])
    margins = np.array([1.0, 3.0, -0.5])
    logits = np.stack([margins, np.zeros(3)], axis=1)
    labels = np.array([1, 0, 1])
    curve, resampled = rule_curve(logits, labels, prior, np.arange(3))
    assert resampled.shape == (len(TAUS), 1000)
    gained = 1.0 / np.log(9)
    for point in curve:
        expected = 1.0 if point.tau > gained and point.tau * np.log(9) < 3 else None
        expected = (1.0 + 0.5) / 2 if point.tau < gained else expected
        if expected is not None:
            assert point.balanced_accuracy == pytest.approx(expected), point
        assert point.low <= point.balanced_accuracy <= point.high


def test_rule_survives_json() -> None:
    logits, labels, prior = skewed(200)
    rule = fit_balanced_rule(logits, labels, prior, np.arange(200))
    content = json.loads(json.dumps(Calibration(1.0, rule, {}, ("a", "b", "c")).to_json()))
    assert Calibration.from_json(content).balanced_rule == rule
    assert NO_RULE.decide(logits).tolist() == logits.argmax(axis=1).tolist()

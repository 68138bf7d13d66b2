"""Metrics against scikit-learn, by hand, and under resampling."""

import numpy as np
import pytest
from sklearn import metrics as reference

from dermlens.labels import HAM10000
from dermlens.model import metrics
from dermlens.model.balanced_rule import BalancedRule
from dermlens.model.calibration import (
    Calibration,
    choose_operating_point,
    fit_calibration,
    fit_temperature,
    negative_log_likelihood,
)
from dermlens.model.calibration import probabilities as softmax


@pytest.fixture
def case():
    generator = np.random.default_rng(0)
    labels = generator.choice(7, 400, p=[0.05, 0.05, 0.1, 0.05, 0.1, 0.6, 0.05])
    logits = generator.normal(size=(400, 7)) + 2 * np.eye(7)[labels]
    return labels, softmax(logits.round(1))


def one(labels):
    return np.ones((1, len(labels)))


def test_label_metrics_equal_scikit_learn(case):
    labels, probabilities = case
    predicted = probabilities.argmax(axis=1)
    found = metrics.label_metrics(metrics.confusion_matrices(labels, predicted, 7, one(labels)))
    assert found["accuracy"][0] == reference.accuracy_score(labels, predicted)
    assert found["balanced_accuracy"][0] == pytest.approx(
        reference.balanced_accuracy_score(labels, predicted), abs=1e-12
    )
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        labels, predicted, zero_division=0
    )
    assert np.allclose(found["precision"][0], precision, atol=1e-12)
    assert np.allclose(found["recall"][0], recall, atol=1e-12)
    assert np.allclose(found["f1"][0], f1, atol=1e-12)
    assert found["macro_f1"][0] == pytest.approx(f1.mean(), abs=1e-12)
    negatives = labels != 4
    assert found["specificity"][0, 4] == pytest.approx((predicted[negatives] != 4).mean())


def test_areas_equal_scikit_learn_with_ties(case):
    labels, probabilities = case
    rounded = probabilities.round(2)
    for k in range(7):
        positive = labels == k
        area = metrics.roc_auc(rounded[:, k], positive, one(labels))[0]
        assert area == pytest.approx(reference.roc_auc_score(positive, rounded[:, k]), abs=1e-12)
        average = metrics.average_precision(rounded[:, k], positive, one(labels))[0]
        expected = reference.average_precision_score(positive, rounded[:, k])
        assert average == pytest.approx(expected, abs=1e-12)


def test_weights_act_as_repeated_images(case):
    labels, probabilities = case
    weights = metrics.lesion_resamples(np.arange(400) // 2, 3, seed=1)
    found = metrics.probability_metrics(probabilities, labels, weights)
    for row in range(3):
        rows = np.repeat(np.arange(400), weights[row].astype(int))
        plain = metrics.probability_metrics(probabilities[rows], labels[rows], one(rows))
        for name, value in found.items():
            assert np.allclose(value[row], plain[name][0], atol=1e-12, equal_nan=True), name


def test_resamples_draw_whole_lesions():
    lesions = ["a", "a", "b", "c", "c", "c"]
    weights = metrics.lesion_resamples(lesions, 500, seed=0)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert weights.mean() == pytest.approx(1, abs=0.05)


def test_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    labels = np.array([0, 1, 0, 0])
    # 0.9 twice, right once: gap 0.4; 0.6 twice, right twice: gap 0.4.
    found = metrics.expected_calibration_error(probabilities, labels, one(labels))
    assert found[0] == pytest.approx(0.4)
    confidence, accuracy, count = metrics.calibration_bins(probabilities, labels)
    assert count[[8, 13]].tolist() == [2, 2] and count.sum() == 4
    assert accuracy[13] == 0.5 and confidence[13] == pytest.approx(0.9)


def test_brier_and_likelihood_by_hand():
    found = metrics.probability_metrics(
        np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0, 0]), np.ones((1, 2))
    )
    assert found["brier"][0] == pytest.approx((0.04 + 0.04 + 0.49 + 0.49) / 2)
    assert found["nll"][0] == pytest.approx(-(np.log(0.8) + np.log(0.3)) / 2)
    assert np.isnan(found["macro_auc"][0])


def test_absent_class_is_undefined_and_left_out():
    labels, predicted = np.array([0, 0, 1]), np.array([0, 1, 1])
    found = metrics.label_metrics(metrics.confusion_matrices(labels, predicted, 3, one(labels)))
    assert np.isnan(found["recall"][0, 2]) and np.isnan(found["precision"][0, 2])
    assert found["balanced_accuracy"][0] == pytest.approx(0.75)


def test_flags_by_hand():
    scores, positive = np.array([0.9, 0.5, 0.4, 0.1]), np.array([True, False, True, False])
    found = metrics.flag_metrics(scores, positive, 0.5, np.ones((1, 4)))
    assert {k: float(v[0]) for k, v in found.items()} == {
        "sensitivity": 0.5,
        "specificity": 0.5,
        "positive_predictive_value": 0.5,
        "negative_predictive_value": 0.5,
        "flagged": 0.5,
    }


def test_interval_is_percentile_and_ignores_the_undefined():
    low, high = metrics.interval(np.append(np.arange(101.0), np.nan))
    assert (low, high) == pytest.approx((2.5, 97.5))


def test_temperature_is_recovered():
    generator = np.random.default_rng(1)
    honest = generator.normal(size=(5000, 7)) * 2
    labels = np.array([generator.choice(7, p=p) for p in softmax(honest)])
    assert fit_temperature(honest * 3, labels) == pytest.approx(3, rel=0.05)
    found = fit_temperature(honest, labels)
    at = [negative_log_likelihood(honest / t, labels) for t in (found * 0.98, found, found * 1.02)]
    assert at[1] < at[0] and at[1] < at[2]


def test_operating_point_reaches_its_sensitivity_and_no_more():
    probabilities = np.zeros((20, 7))
    probabilities[:, 4] = np.linspace(0.05, 1.0, 20)
    labels = np.where(np.arange(20) >= 10, 4, 5)
    point = choose_operating_point(
        "melanoma", ("mel",), probabilities, labels, sensitivity=0.9, classes=HAM10000.codes
    )
    assert point.sensitivity == 0.9 and point.specificity == 1.0
    assert point.threshold == pytest.approx(probabilities[11, 4])
    assert (point.positives, point.negatives) == (10, 10)


def test_calibration_survives_json():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 7, 200)
    logits = generator.normal(size=(200, 7)) + 3 * np.eye(7)[labels]
    fitted = fit_calibration(logits, labels, np.array([5, 5, 10, 5, 10, 60, 5]), np.arange(200))
    again = Calibration.from_json(fitted.to_json())
    assert again == fitted
    assert np.array_equal(again.balanced(logits), fitted.balanced(logits))
    assert set(fitted.operating_points) == {"malignant", "melanoma"}


def test_balanced_rule_subtracts_the_prior():
    prior = tuple(np.log([0.5, *[0.5 / 6] * 6]))
    calibration = Calibration(temperature=2.0, balanced_rule=BalancedRule(1.0, prior))
    logits = np.array([[2.0, 1.9, 0, 0, 0, 0, 0]])
    assert Calibration(temperature=2.0).balanced(logits)[0] == 0
    assert calibration.balanced(logits)[0] == 1
    assert calibration.probabilities(logits).argmax() == 0

"""The out-of-distribution detector against the Mahalanobis distance worked out directly."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from dermlens.errors import ModelError
from dermlens.model.out_of_distribution import (
    OODDetector,
    StoredDetector,
    fit_ood_detector,
    read_detector,
    with_threshold,
)


def clusters(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Two classes with one covariance, 6 features."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(6, 6))
    labels = np.arange(count) % 2
    centers = np.array([[5.0] * 6, [-5.0] * 6])
    return generator.normal(size=(count, 6)) @ mixing + centers[labels], labels


def test_with_all_directions_it_is_the_mahalanobis_distance_to_the_nearest_class() -> None:
    features, labels = clusters()
    detector = fit_ood_detector(features, labels, features, classes=2)
    means = np.stack([features[labels == c].mean(0) for c in (0, 1)])
    inverse = np.linalg.inv(ledoit_wolf(features - means[labels], assume_centered=True)[0])
    # One direction fewer than features keeps its own variance: the last one is "the rest".
    difference = features[:, None] - means
    squared = np.einsum("ncd,de,nce->nc", difference, inverse, difference)
    np.testing.assert_allclose(
        detector.scores(features), np.sqrt(squared.min(1) / 6), rtol=1e-4, atol=1e-4
    )


def test_scores_by_hand() -> None:
    detector = OODDetector(
        means=np.array([[0.0, 0.0], [10.0, 0.0]], np.float32),
        basis=np.array([[1.0], [0.0]], np.float32),
        variances=np.array([4.0], np.float32),
        rest=1.0,
        threshold=1.0,
        false_rejects=0.0,
        images=2,
    )
    # (2/2)^2 = 1; 3^2 / 1 = 9; from the second class (-1/2)^2 = 0.25; all over 2 features.
    features = np.array([[2.0, 0.0], [0.0, 3.0], [9.0, 0.0]])
    np.testing.assert_allclose(detector.scores(features), np.sqrt([0.5, 4.5, 0.125]))
    assert detector.rejected(features).tolist() == [False, True, False]


def test_threshold_turns_away_the_asked_share_of_validation() -> None:
    features, labels = clusters()
    detector = fit_ood_detector(
        features[:200], labels[:200], features[200:], classes=2, false_rejects=0.03
    )
    assert detector.false_rejects == pytest.approx(0.03)
    assert detector.rejected(features[200:]).mean() == pytest.approx(0.03)
    strict = with_threshold(detector, features[200:], 0.0)
    assert not strict.rejected(features[200:]).any() and strict.false_rejects == 0


def test_what_lies_between_the_classes_is_unlike_both() -> None:
    features, labels = clusters()
    detector = fit_ood_detector(features, labels, features, classes=2)
    assert detector.rejected(np.zeros((1, 6))).all()
    assert not detector.rejected(detector.means).any()


def test_a_class_without_images_and_a_constant_feature_are_no_problem() -> None:
    features, labels = clusters()
    features = np.column_stack([features, np.full(len(features), 3.0)])
    detector = fit_ood_detector(features, labels * 2, features, classes=3)
    assert detector.means.shape == (2, 7) and np.isfinite(detector.scores(features)).all()


def test_it_survives_storage(tmp_path) -> None:
    features, labels = clusters()
    detector = fit_ood_detector(features, labels, features, classes=2)
    np.savez(tmp_path / "outlier.npz", **detector.arrays())
    stored = StoredDetector(**detector.to_json())
    again = read_detector(tmp_path / "outlier.npz", stored, 2, 6)
    np.testing.assert_array_equal(again.scores(features), detector.scores(features))
    assert again.to_json() == detector.to_json()


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = clusters()
    features[0, 0] = np.nan
    with pytest.raises(ModelError, match="finite features"):
        fit_ood_detector(features, labels, features, classes=2)

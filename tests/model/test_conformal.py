"""Prediction sets by hand, by their promise, and against another package."""

from importlib.util import find_spec

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.model.calibration import Calibration, fit_calibration
from dermlens.model.calibration import probabilities as softmax
from dermlens.model.conformal import PredictionSets, fit_prediction_sets, set_metrics

CODES = ("bkl", "mel", "nv")


def known(*counts: int) -> dict[str, tuple[float, ...]]:
    """The probabilities 0.1, 0.2, … that so many validation images of each class gave to it."""
    return {c: tuple(0.1 * (k + 1) for k in range(n)) for c, n in zip(CODES, counts, strict=True)}


def test_thresholds_by_hand() -> None:
    """The r-th lowest of n counts, r = floor((n + 1) (1 - level)); none where that is 0."""
    sets = PredictionSets(known(9, 4, 0), level=0.8)
    assert sets.thresholds() == pytest.approx([0.2, 0.1, 0.0])
    assert sets.thresholds(0.9) == pytest.approx([0.1, 0.0, 0.0])
    assert sets.thresholds(0.5) == pytest.approx([0.5, 0.2, 0.0])
    assert sets.always_inside() == ("nv",) and sets.always_inside(0.95) == CODES
    inside = sets.contain(np.array([[0.2, 0.09, 0.71], [0.19, 0.8, 0.01], [0.05, 0.05, 0.9]]))
    assert inside.tolist() == [[True, False, True], [False, True, True], [False, False, True]]


def test_the_most_probable_class_always_belongs() -> None:
    sets = PredictionSets({c: (0.9,) * 20 for c in CODES})
    assert sets.contain(np.array([[0.3, 0.4, 0.3]])).tolist() == [[False, True, False]]


@pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, float("nan")])
def test_levels_out_of_range_are_refused(level: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        PredictionSets(known(9, 9, 9)).thresholds(level)


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a mediocre classifier with rare classes, and true labels."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(3, count, p=[0.1, 0.2, 0.7])
    logits = generator.normal(size=(count, 3)) * 1.5 + 1.5 * np.eye(3)[labels]
    return softmax(logits), labels


def test_every_class_is_covered_as_promised() -> None:
    """On average over draws; a class with few images as well, and never much more than needed."""
    covered = np.zeros((40, 3))
    for seed in range(40):
        sets = fit_prediction_sets(*drawn(300, seed), CODES)
        probabilities, labels = drawn(4000, 1000 + seed)
        inside = sets.contain(probabilities)[np.arange(4000), labels]
        covered[seed] = [inside[labels == k].mean() for k in range(3)]
    assert (covered.mean(axis=0) > 0.893).all()
    assert (covered.mean(axis=0)[1:] < 0.93).all()


def test_all_probability_of_a_set_is_at_or_above_its_thresholds() -> None:
    probabilities, labels = drawn(500, 3)
    sets = fit_prediction_sets(probabilities, labels, CODES)
    own = sets.contain(probabilities)[np.arange(500), labels]
    for k in range(3):
        assert own[labels == k].mean() >= 0.9 - 1e-9


@pytest.mark.skipif(find_spec("crepes") is None, reason="crepes is not installed")
def test_against_crepes() -> None:
    from crepes import ConformalClassifier
    from crepes.extras import hinge

    probabilities, labels = drawn(400, 5)
    fresh, _ = drawn(300, 6)
    classes = np.arange(3)
    oracle = ConformalClassifier()
    oracle.fit(hinge(probabilities, classes, labels), bins=labels)
    alphas = hinge(fresh)
    values = np.stack(
        [oracle.predict_p(alphas, np.full(len(fresh), k), smoothing=False)[:, k] for k in range(3)],
        axis=1,
    )
    expected = values > 0.1
    expected[np.arange(300), fresh.argmax(axis=1)] = True
    sets = fit_prediction_sets(probabilities, labels, CODES)
    assert (sets.contain(fresh) == expected).mean() > 0.995


def test_sets_survive_json() -> None:
    fitted = fit_prediction_sets(*drawn(200, 1), CODES)
    content = Calibration(classes=CODES, prediction_sets=fitted).to_json()
    assert Calibration.from_json(content).prediction_sets == fitted
    known = content["prediction_sets"]["true_probabilities"]
    assert all(v == round(v, 6) for row in known.values() for v in row)
    # Another order in the file is not another order of the classes, nor of the images.
    content["prediction_sets"]["true_probabilities"] = {
        code: known[code][::-1] for code in reversed(CODES)
    }
    again = Calibration.from_json(content).prediction_sets
    assert again is not None and list(again.true_probabilities) == list(CODES)
    assert again == fitted


def test_calibration_of_an_earlier_version_carries_none() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 7, 300)
    logits = generator.normal(size=(300, 7)) + 2 * np.eye(7)[labels]
    fitted = fit_calibration(logits, labels, np.full(7, 40), np.arange(300))
    assert fitted.prediction_sets is not None
    content = fitted.to_json()
    content["decision_rule"] = content.pop("balanced_rule")
    del content["prediction_sets"]
    old = Calibration.from_json(content)
    assert old.prediction_sets is None and old.set_of(np.full(7, 1 / 7)) is None
    assert old.balanced_rule.tau == fitted.balanced_rule.tau


def test_figures_of_sets_by_hand() -> None:
    import pandas as pd

    sets = PredictionSets({"bkl": (0.3,) * 9, "mel": (0.25,) * 9, "nv": (0.6,) * 9})
    probabilities = np.array([[0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.5, 0.4, 0.1], [0.0, 0.1, 0.9]])
    labels = np.array([0, 1, 0, 2])
    # Sets: {bkl, mel, nv}, {nv}, {bkl, mel}, {nv}; the second misses its truth.
    groups = {"sex": pd.Series(["f", "f", "m", "m"])}
    found = set_metrics(probabilities, labels, sets, np.ones((5, 4)), groups)
    assert found["coverage"] == 0.75 and found["mean_size"] == 7 / 4 and found["singletons"] == 0.5
    assert found["per_class"]["bkl"]["coverage"] == 1.0
    assert found["per_class"]["mel"]["coverage"] == 0.0
    assert found["per_class"]["nv"]["validation_images"] == 9
    assert found["subgroups"]["sex"]["f"] == {"coverage": 0.5, "mean_size": 2.0, "n_images": 2}
    assert found["confidence_intervals"]["coverage"] == [0.75, 0.75]
    assert [row["level"] for row in found["levels"]] == [0.8, 0.9, 0.95]

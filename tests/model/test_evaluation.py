"""Everything in metrics.json can be recomputed from predictions.csv, by others too."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from dermlens.errors import DataError
from dermlens.labels import HAM10000
from dermlens.model.calibration import Calibration, fit_calibration
from dermlens.model.evaluation import (
    isic_submission,
    metrics_from_predictions,
)
from dermlens.model.prediction_table import predictions_table, read_predictions
from dermlens.report.evaluation_report import write_evaluation
from isic_support import isic_balanced_accuracy

ISIC = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


def case(images: int = 300, seed: int = 0) -> tuple[pd.DataFrame, Calibration]:
    generator = np.random.default_rng(seed)
    labels = generator.choice(7, images, p=[0.06, 0.06, 0.12, 0.06, 0.12, 0.5, 0.08])
    logits = 3 * (generator.normal(size=(images, 7)) + 1.5 * np.eye(7)[labels])
    rows = pd.DataFrame(
        {
            "image_id": [f"I{k:04d}" for k in range(images)],
            "lesion_id": [f"L{k // 2:04d}" for k in range(images)],
            "dx": np.array(HAM10000.codes)[labels],
            "dx_type": np.where(np.arange(images) % 3 == 0, "histo", "consensus"),
            "age": np.where(np.arange(images) % 10 == 0, np.nan, 20.0 + np.arange(images) % 60),
            "sex": np.where(np.arange(images) % 2 == 0, "male", None),
            "localization": "back",
        }
    )
    counts = np.bincount(labels, minlength=7)
    calibration = fit_calibration(logits, labels, counts, rows.lesion_id.to_numpy())
    return predictions_table(rows, logits, calibration), calibration


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    table, calibration = case()
    paths = write_evaluation(table, calibration, out, resamples=200)
    return out, paths, table, calibration


def test_scikit_learn_recomputes_from_the_file(written):
    out, _, _, _ = written
    table = pd.read_csv(out / "predictions.csv")
    stored = json.loads((out / "metrics.json").read_text())
    labels = table.dx.to_numpy()
    for column, block in (("balanced_rule", stored), ("predicted", stored["most_probable"])):
        predicted = table[column].to_numpy()
        assert block["accuracy"] == pytest.approx(
            reference.accuracy_score(labels, predicted), abs=1e-9
        )
        assert block["balanced_accuracy"] == pytest.approx(
            reference.balanced_accuracy_score(labels, predicted), abs=1e-9
        )
        assert block["macro_f1"] == pytest.approx(
            reference.f1_score(labels, predicted, average="macro"), abs=1e-9
        )
    probabilities = table[[f"probability_{code}" for code in HAM10000.codes]].to_numpy()
    assert stored["macro_auc"] == pytest.approx(
        reference.roc_auc_score(
            labels, probabilities, multi_class="ovr", labels=list(HAM10000.codes)
        ),
        abs=1e-9,
    )
    assert stored["nll"] == pytest.approx(
        reference.log_loss(labels, probabilities, labels=list(HAM10000.codes)), abs=1e-9
    )


def test_file_alone_gives_every_figure_again(written):
    out, _, _, _ = written
    table = read_predictions(out / "predictions.csv")
    calibration = Calibration.from_json(json.loads((out / "calibration.json").read_text()))
    again = metrics_from_predictions(table, calibration, resamples=200)
    stored = json.loads((out / "metrics.json").read_text())
    from dermlens.files import plain

    assert plain(again) == stored


def test_names_of_the_contract(written):
    stored = json.loads((written[0] / "metrics.json").read_text())
    wanted = (
        *("accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1"),
        *("macro_auc", "ece", "brier", "nll", "per_class", "operating_points"),
        *("confidence_intervals", "subgroups", "n_images", "n_lesions"),
    )
    assert set(wanted) <= set(stored)
    for code in HAM10000.codes:
        assert set(stored["per_class"][code]) == {
            "precision",
            "recall",
            "specificity",
            "f1",
            "auc",
            "average_precision",
            "support",
        }
    assert set(stored["subgroups"]) == {"sex", "age_band", "localization", "dx_type"}
    assert set(stored["subgroups"]["sex"]) == {"male", "missing"}
    assert stored["n_images"] == 300 and stored["n_lesions"] == 150


def test_intervals_contain_the_figure_and_widen_with_fewer_lesions():
    table, calibration = case(400)
    wide = table.assign(lesion_id=[f"L{k // 40}" for k in range(400)])
    narrow = metrics_from_predictions(table, calibration, resamples=300)
    broad = metrics_from_predictions(wide, calibration, resamples=300)
    for result in (narrow, broad):
        low, high = result["confidence_intervals"]["accuracy"]
        assert low <= result["accuracy"] <= high
    assert narrow["accuracy"] == broad["accuracy"]
    assert narrow["confidence_intervals"] != broad["confidence_intervals"]


def test_subgroups_are_what_a_filter_gives(written):
    _, _, table, calibration = written
    result = metrics_from_predictions(table, calibration, resamples=10)
    part = table[(table.age >= 45) & (table.age < 60)]
    block = result["subgroups"]["age_band"]["45-59"]
    assert block["n_images"] == len(part)
    assert block["accuracy"] == pytest.approx((part.balanced_rule == part.dx).mean())


def test_lesion_vote_uses_all_photographs():
    rows = pd.DataFrame(
        {"image_id": ["a", "b"], "lesion_id": ["l", "l"], "dx": ["mel", "mel"]}, dtype=object
    )
    logits = np.zeros((2, 7))
    logits[0, 4], logits[1, 5] = 5.0, 1.0
    calibration = Calibration()
    table = predictions_table(rows, logits, calibration)
    result = metrics_from_predictions(table, calibration, resamples=5)
    assert result["accuracy"] == 0.5
    assert result["per_lesion"]["accuracy"] == 1.0
    assert result["per_lesion"]["n_lesions"] == 1


def test_submission_has_the_challenge_order_and_scores_the_balanced_rule():
    table, fitted = case(200)
    rule = replace(fitted.balanced_rule, tau=0.8)
    calibration = replace(fitted, balanced_rule=rule)
    logits = table[[f"logit_{code}" for code in HAM10000.codes]].to_numpy()
    table["balanced_rule"] = np.array(HAM10000.codes)[calibration.balanced(logits)]
    submission = isic_submission(table, calibration)
    assert list(submission.columns) == ["image", *ISIC]
    assert np.allclose(submission[ISIC].sum(axis=1), 1)
    decided = submission[ISIC].idxmax(axis=1).str.lower()
    assert (decided == table.balanced_rule).all()
    assert (table.balanced_rule != table.predicted).any()
    truth = pd.DataFrame({code: (table.dx == code.lower()) * 1.0 for code in ISIC})
    score = isic_balanced_accuracy(submission, truth.assign(image=table.image_id))
    result = metrics_from_predictions(table, calibration, resamples=5)
    assert score == pytest.approx(result["balanced_accuracy"], abs=1e-12)


def hand_case() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two of three mel right, one of two nv right, bcc right; one truth row has no image."""
    truth = ["MEL", "MEL", "MEL", "NV", "NV", "BCC", "NV"]
    called = ["MEL", "MEL", "NV", "NV", "MEL", "BCC"]
    names = [f"ISIC_{k}" for k in range(6)]
    return (
        pd.DataFrame([[float(c == p) for c in ISIC] for p in called], columns=ISIC).assign(
            image=names
        ),
        pd.DataFrame([[float(c == t) for c in ISIC] for t in truth], columns=ISIC).assign(
            image=[*names, "ISIC_0035068"]
        ),
    )


def test_challenge_score_by_hand_with_a_missing_image():
    submission, truth = hand_case()
    assert isic_balanced_accuracy(submission, truth) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_empty_and_unknown_are_refused():
    table, calibration = case(20)
    with pytest.raises(DataError, match="no prediction"):
        metrics_from_predictions(table.iloc[:0], calibration)
    with pytest.raises(DataError, match="'scc'"):
        metrics_from_predictions(table.assign(dx="scc"), calibration)


def test_every_figure_is_written_and_not_blank(written):
    from PIL import Image

    _, paths, _, _ = written
    figures = [path for path in paths.values() if path.suffix == ".png"]
    assert len(figures) == 8
    for path in figures:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.std() > 10

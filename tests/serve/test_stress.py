"""The stress test, from figures by hand to the command and its place in the model card."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cli_support import dermlens, refused
from dermlens.errors import DataError, UsageError
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.model.calibration import Calibration, OperatingPoint
from dermlens.model.classifier import Architecture
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.evaluation import compare_predictions, metrics_from_predictions
from dermlens.model.prediction_table import predictions_table
from dermlens.model.training import train
from dermlens.report.cards import model_card
from dermlens.report.evaluation_report import write_evaluation
from dermlens.serve import stress
from dermlens.serve.prediction import predict_split
from tests_support import register_tiny_backbone

CLASSES = ("mel", "nv")


def answers(logits: list[list[float]], calibration: Calibration) -> pd.DataFrame:
    rows = pd.DataFrame(
        {
            "image_id": list("abcd"),
            "lesion_id": list("wxyz"),
            "dx": ["mel", "mel", "nv", "nv"],
        }
    )
    return predictions_table(rows, np.array(logits), calibration)


def test_figures_and_differences_by_hand() -> None:
    point = OperatingPoint("melanoma", ("mel",), 0.4, 0.9, 1.0, 1.0, 2, 2)
    calibration = Calibration(classes=CLASSES, operating_points={"melanoma": point})
    usual = answers([[2, 0], [1, 0], [0, 1], [0, 2]], calibration)
    # One melanoma is taken for a nevus, and one nevus for a melanoma that it hardly is.
    worse = answers([[2, 0], [0, 1], [0.1, 0], [0, 2]], calibration)
    found = compare_predictions(
        {"as it is": usual, "worse": worse}, calibration, reference="as it is", resamples=200
    ).set_index(["name", "figure"])
    same, now = found.loc["as it is"], found.loc["worse"]
    assert (same.difference == 0).all() and (same.low == 0).all() and (same.high == 0).all()
    assert now.value["balanced_accuracy"] == 0.5 and now.difference["balanced_accuracy"] == -0.5
    assert now.value["same_answer"] == 0.5 and same.value["same_answer"] == 1
    assert now.value["macro_auc"] == 0.75
    assert now.value["melanoma_sensitivity"] == 0.5 and now.value["melanoma_specificity"] == 0.5
    assert now.low["balanced_accuracy"] <= -0.5 <= now.high["balanced_accuracy"]
    whole = metrics_from_predictions(worse, calibration, resamples=5)
    for name in ("balanced_accuracy", "macro_auc", "ece", "nll"):
        assert now.value[name] == pytest.approx(whole[name])


def test_what_cannot_be_compared_is_refused() -> None:
    calibration = Calibration(classes=CLASSES)
    table = answers([[2, 0], [1, 0], [0, 1], [0, 2]], calibration)
    with pytest.raises(DataError, match="'wart' is none of mel, nv"):
        compare_predictions({"a": table.assign(dx="wart")}, calibration, reference="a")
    with pytest.raises(UsageError, match="at least 1 resample"):
        compare_predictions({"a": table}, calibration, reference="a", resamples=0)
    with pytest.raises(DataError, match="no prediction"):
        compare_predictions({"a": table[:0]}, calibration, reference="a")


@pytest.fixture(scope="module")
def run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    register_tiny_backbone()
    run = tmp_path_factory.mktemp("stress") / "run"
    setup = TrainingConfiguration(
        architecture=Architecture("tiny", (32, 40)), epochs=1, batch_size=8, train_from="all"
    )
    train(prepared, run, setup)
    return run


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    return load_bundle(run / "bundle")


@pytest.fixture(scope="module")
def stressed(run: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stressed") / "stress"
    outcome = dermlens("stress", run / "bundle", prepared, "--out", out, "--resamples", 50)
    assert outcome.code == 0, outcome
    assert "The worst of 8 everyday changes: " in outcome.out
    return out


def test_unchanged_photographs_are_the_evaluation(
    bundle: Bundle, prepared: Path, stressed: Path
) -> None:
    usual = predict_split(bundle, prepared, "test")
    figures = pd.read_csv(stressed / "stress.csv").set_index(["name", "figure"])
    metrics = metrics_from_predictions(usual, bundle.calibration, resamples=5)
    for name in ("balanced_accuracy", "macro_auc", "ece"):
        assert figures.value["unchanged", name] == pytest.approx(metrics[name], abs=1e-9)
    assert len(figures.index.levels[0]) == 13
    assert (stressed / "stress.png").stat().st_size > 10_000


def test_a_run_that_was_cut_off_goes_on(
    bundle: Bundle, prepared: Path, stressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "stress"
    shutil.copytree(stressed, out)
    (out / "stress.csv").unlink()
    (out / "pieces" / "answers" / "hair.npz").unlink()
    asked = []
    predict = stress._predict

    def watched(classifier, files, change, *rest):
        asked.append(change.name)
        return predict(classifier, files, change, *rest)

    monkeypatch.setattr(stress, "_predict", watched)
    stress.stress_test(bundle, prepared, out, resamples=50)
    assert asked == ["hair"]
    assert (out / "stress.csv").read_bytes() == (stressed / "stress.csv").read_bytes()
    with pytest.raises(UsageError, match="a stress test that differs in: images, split"):
        stress.stress_test(bundle, prepared, out, "validation", resamples=50)


def test_the_model_card_tells_every_change(
    run: Path, bundle: Bundle, prepared: Path, stressed: Path, tmp_path: Path
) -> None:
    table = predict_split(bundle, prepared, "test")
    write_evaluation(table, bundle.calibration, tmp_path / "evaluation", resamples=50)
    card = model_card(bundle, tmp_path / "evaluation", stress=stressed)
    facts = json.loads((stressed / "stress.json").read_text())
    figures = pd.read_csv(stressed / "stress.csv").set_index(["name", "figure"])
    part = card[card.index("### Worse photographs") : card.index("### Subgroups")]
    rows = [line for line in part.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(facts["changes"])
    columns = {line.count("|") for line in part.splitlines() if line.startswith("|")}
    assert len(columns) == 1
    for change in facts["changes"]:
        star = "" if change["mild"] else "*"
        value = figures.value[change["name"], "balanced_accuracy"]
        assert f"| {change['title']}{star} | {value:.3f} | " in part
    assert "### Worse photographs" not in model_card(bundle, tmp_path / "evaluation")
    other = tmp_path / "other"
    shutil.copytree(stressed, other)
    (other / "stress.json").write_text(json.dumps(facts | {"model": {"name": "another"}}))
    evaluation = tmp_path / "evaluation"
    refused(
        dermlens("card", run / "bundle", "--evaluation", evaluation, "--stress", other,
                 "--out", tmp_path / "docs"),
        "was made with another model. Run 'dermlens stress' again.",
    )  # fmt: skip

"""Model card and data card: every figure is the measured one, and nothing is left open."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dermlens.errors import DataError
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.model.classifier import Architecture
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.patient_facts import fit_patient_facts, write_patient_facts
from dermlens.model.training import train
from dermlens.report.cards import data_card, model_card
from dermlens.report.evaluation_report import write_evaluation
from dermlens.serve.prediction import predict_split
from tests_support import register_tiny_backbone


@pytest.fixture(scope="module")
def evaluated(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, Path, Path]:
    register_tiny_backbone()
    folder = tmp_path_factory.mktemp("cards")
    setup = TrainingConfiguration(
        architecture=Architecture("tiny", (32, 40)), epochs=1, batch_size=8, train_from="all"
    )
    train(prepared, folder / "run", setup)
    bundle = load_bundle(folder / "run" / "bundle")
    table = predict_split(bundle, prepared, "test")
    write_evaluation(table, bundle.calibration, folder / "evaluation", resamples=50)
    return bundle, folder / "evaluation", prepared


def test_every_figure_of_the_model_card_is_the_measured_one(evaluated) -> None:
    bundle, evaluation, _ = evaluated
    card = model_card(bundle, evaluation)
    metrics = json.loads((evaluation / "metrics.json").read_text())
    low, high = metrics["confidence_intervals"]["balanced_accuracy"]
    assert (
        f"| balanced accuracy | {metrics['balanced_accuracy']:.3f} | {low:.3f}–{high:.3f} | "
        f"{metrics['most_probable']['balanced_accuracy']:.3f} |" in card
    )
    assert f"| macro AUC | {metrics['macro_auc']:.3f} |" in card
    mel = metrics["per_class"]["mel"]
    row = next(line for line in card.splitlines() if line.startswith("| mel: Melanoma"))
    assert f"| {mel['recall']:.3f} |" in row and row.endswith(f"| {mel['support']} |")
    point = metrics["operating_points"]["malignant"]
    assert f"| {point['threshold']:.4f} | {point['sensitivity']:.3f} |" in card
    assert f"{100 * metrics['abstention']['rate']:.1f} % of the test images" in card
    for kind, groups in metrics["subgroups"].items():
        for name in groups:
            assert f"| {kind.replace('_', ' ')}: {name}" in card


def test_failures_are_those_of_the_predictions(evaluated) -> None:
    bundle, evaluation, _ = evaluated
    card = model_card(bundle, evaluation)
    table = pd.read_csv(evaluation / "predictions.csv")
    wrong = table[table.predicted != table.dx]
    assert f"{len(wrong)} of {len(table)} test images have another most probable diagnosis" in card
    chance = [row[f"probability_{row['predicted']}"] for _, row in wrong.iterrows()]
    worst = wrong.image_id.iloc[chance.index(max(chance))]
    listed = re.findall(r"^\| (ISIC_\d+) \|", card, re.MULTILINE)
    assert listed[0] == worst and len(listed) == min(10, len(wrong))


def test_parts_that_were_not_measured_say_so(evaluated) -> None:
    bundle, evaluation, _ = evaluated
    plain = model_card(bundle, evaluation)
    assert "was not part of this card's input" in plain and "## Shortcut probe" not in plain
    full = model_card(bundle, evaluation, explanation="Good maps.", shortcuts="Rulers flip 3 %.")
    assert "Good maps." in full and "## Shortcut probe\n\nRulers flip 3 %." in full
    for card in (plain, full):
        assert "not a medical\ndevice" in card
        assert "{{" not in card and "nan" not in card.lower().split()


def test_facts_about_patients_are_told_where_the_model_knows_what_they_add(evaluated) -> None:
    bundle, evaluation, data = evaluated
    assert "### Facts about the patient" not in model_card(bundle, evaluation)
    facts, _ = fit_patient_facts(bundle, data)
    path = write_patient_facts(bundle.path, facts)
    try:
        card = model_card(load_bundle(bundle.path), evaluation)
    finally:
        path.unlink()
    assert "### Facts about the patient\n\nAll figures of this card" in card
    assert f"among training lesions with a strength of {facts.strength:.2f};" in card


def test_an_evaluation_of_another_bundle_is_refused(evaluated, tmp_path: Path) -> None:
    bundle, evaluation, _ = evaluated
    shutil.copytree(evaluation, tmp_path / "other")
    path = tmp_path / "other" / "metrics.json"
    changed = json.loads(path.read_text()) | {"balanced_rule": "argmax(logit / 9 - 9 * log prior)"}
    path.write_text(json.dumps(changed))
    with pytest.raises(DataError, match="made with another bundle"):
        model_card(bundle, tmp_path / "other")
    with pytest.raises(DataError, match="is missing"):
        model_card(bundle, tmp_path / "nothing")


def test_the_data_card_counts_what_is_there(evaluated, tmp_path: Path) -> None:
    data = evaluated[2]
    table = pd.read_csv(data / "manifest.csv")
    card = data_card(data)
    mel = table[table.dx == "mel"]
    counts = [int((mel.split == s).sum()) for s in ("train", "validation", "test")]
    assert (
        f"| mel: Melanoma | {len(mel)} | {mel.lesion_id.nunique()} | "
        f"{' | '.join(map(str, counts))} |" in card
    )
    assert f"| images | {len(table)} |" in card and "| female |" in card

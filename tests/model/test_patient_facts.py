"""What age, sex and place on the body add: frequencies by hand, strength, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dermlens as dl
from cli_support import dermlens, refused
from dermlens.data.manifest import read_manifest
from dermlens.errors import DataError, ModelError, UsageError
from dermlens.files import read_json, write_json
from dermlens.model import patient_facts as facts_module
from dermlens.model.bundle import SHIPPED, Bundle, load_bundle, save_bundle
from dermlens.model.calibration import Calibration, fit_calibration
from dermlens.model.patient_facts import (
    FILE,
    PatientFacts,
    fit_likelihood,
    fit_patient_facts,
    fit_strength,
    known_facts,
    parse_patient,
    read_patients,
    what_facts_change,
    write_patient_facts,
)
from dermlens.model.training_data import load_training_data
from serving_support import picture, untrained_bundle


def rows(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


def by_hand(strength: float = 0.5) -> PatientFacts:
    """Two classes; women have the second one three times as often as the first."""
    likelihood = {"age": {}, "sex": {"female": (np.log(0.25), np.log(0.75))}, "localization": {}}
    return PatientFacts(strength, likelihood, Calibration(2.0, classes=("a", "b")))


def test_facts_are_read_as_bands_and_words_and_what_misses_is_none() -> None:
    table = rows(age=[45.0, None, "unknown"], sex=[" Female", "", "male"])
    found = known_facts(table)
    assert found.columns.tolist() == ["age", "sex", "localization"]
    assert found.age[0] == "45-59" and found.age[1:].isna().all()
    assert found.sex[[0, 2]].tolist() == ["female", "male"] and pd.isna(found.sex[1])
    assert found.localization.isna().all()
    for wrong in ("old", -1, 200):
        with pytest.raises(DataError, match="no age in years"):
            known_facts(rows(age=[wrong]))


def test_frequencies_among_lesions_with_five_more_of_no_class() -> None:
    table = rows(sex=["female", "female", "male", None, "male"], age=[None] * 5)
    found = fit_likelihood(table, np.array([0, 0, 0, 1, 1]), 2)
    # Of the four known, half are women: each class gets 2.5 of either.
    women, men = np.exp(found["sex"]["female"]), np.exp(found["sex"]["male"])
    np.testing.assert_allclose(women, [(2 + 2.5) / 8, 2.5 / 6])
    np.testing.assert_allclose(men, [(1 + 2.5) / 8, 3.5 / 6])
    assert found["age"] == found["localization"] == {}


def test_facts_are_added_to_the_calibrated_logits() -> None:
    facts = by_hand()
    table = rows(sex=["female", None, "other"])
    fused = facts.fused(np.zeros((3, 2)), table)
    scaled = facts.calibration.scaled(fused)
    np.testing.assert_allclose(scaled[0], [0.5 * np.log(0.25), 0.5 * np.log(0.75)])
    assert fused[1:].tolist() == [[0, 0], [0, 0]]
    assert facts.strange(table) == ["sex other"]
    # The strength is an exponent of the frequencies.
    shares = facts.calibration.probabilities(fused)[0]
    assert shares[1] / shares[0] == pytest.approx(np.sqrt(3))


def test_the_strength_that_is_most_likely() -> None:
    evidence = np.tile([np.log(0.8), np.log(0.2)], (10, 1))
    for right, expected in ((8, 1.0), (7, np.log(7 / 3) / np.log(4)), (5, 0.0), (2, 0.0)):
        labels = np.array([0] * right + [1] * (10 - right))
        found = fit_strength(np.zeros((10, 2)), evidence, labels)
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_patient_in_words() -> None:
    assert parse_patient("sex=male,age=70") == {"sex": "male", "age": "70"}
    for wrong in ("", "age", "age=", "weight=70", "age=1,age=2", "age=1,,sex=male"):
        with pytest.raises(UsageError, match="no fact about a patient"):
            parse_patient(wrong)


def test_a_table_of_patients(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("image_id,sex,note\na,female,x\n", encoding="utf-8")
    found = read_patients(path)
    assert found.columns.tolist() == ["image_id", "age", "sex", "localization"]
    path.write_text("image_id,note\na,x\n", encoding="utf-8")
    with pytest.raises(DataError, match="none of the columns age"):
        read_patients(path)
    path.write_text("image_id,sex\na,male\na,female\n", encoding="utf-8")
    with pytest.raises(DataError, match="two rows of the image a"):
        read_patients(path)


@pytest.fixture(scope="module")
def data(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in which those with melanoma are old."""
    folder = tmp_path_factory.mktemp("facts") / "data"
    shutil.copytree(prepared, folder)
    table = pd.read_csv(folder / "manifest.csv")
    table.loc[table.dx == "mel", "age"] = 80.0
    table.to_csv(folder / "manifest.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def bundle(data: Path) -> Bundle:
    """An untrained model that says it learned from the data set."""
    known, made = load_training_data(data), untrained_bundle()
    labels, split = known.labels, known.rows["validation"]
    logits = made.logits(known.images(made.input_size)[split])
    calibration = fit_calibration(
        logits, labels[split], np.ones(7), known.table.lesion_id.to_numpy()[split]
    )
    return save_bundle(
        data.parent / "bundle",
        model=made.model,
        architecture=made.architecture,
        calibration=calibration,
        training={"seed": 1},
        data={"fingerprint": known.fingerprint, "synthetic": True},
        history=pd.DataFrame({"epoch": [0]}),
        split=known.stored_split("lesion_id", "dx"),
        labels=made.labels,
    )


@pytest.fixture(scope="module")
def fitted(bundle: Bundle, data: Path) -> PatientFacts:
    facts, change = fit_patient_facts(bundle, data)
    differs = change[change.name == "with facts"].set_index("figure")
    assert 0.05 < facts.strength <= 1 and differs.loc["nll"].difference < 0
    assert set(change.name) == {"photograph", "with facts"}
    write_patient_facts(bundle.path, facts)
    return facts


def test_it_is_fitted_to_lesions_of_training_and_images_of_validation(
    fitted: PatientFacts, bundle: Bundle, data: Path
) -> None:
    table = read_manifest(data)
    train = table[table.split == "train"].drop_duplicates("lesion_id")
    positions = train.dx.map(bundle.classes.index).to_numpy()
    assert fitted.likelihood == fit_likelihood(train, positions, 7)
    assert fitted.calibration.temperature == bundle.calibration.temperature
    validation = table[table.split == "validation"]
    rows = np.flatnonzero((table.split == "validation").to_numpy())
    logits = bundle.logits(load_training_data(data).images(bundle.input_size)[rows])
    scaled = bundle.calibration.scaled(fitted.fused(logits, validation))
    labels = validation.dx.map(bundle.classes.index).to_numpy()
    priors = np.bincount(table.dx[table.split == "train"].map(bundle.classes.index))
    again = fit_calibration(
        scaled * bundle.calibration.temperature, labels, priors,
        validation.lesion_id.to_numpy(), seed=1, temperature=bundle.calibration.temperature,
    )  # fmt: skip
    assert fitted.calibration == again


def test_an_image_whose_lesion_is_not_known_is_a_lesion_of_its_own(
    bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = load_training_data(data)
    nameless = replace(known, table=known.table.assign(lesion_id=None))
    monkeypatch.setattr(facts_module, "load_training_data", lambda _: nameless)
    monkeypatch.setattr(facts_module, "require_same_data", lambda *_: None)
    found, _ = fit_patient_facts(bundle, data)
    train = known.rows["train"]
    assert found.likelihood == fit_likelihood(known.table.iloc[train], known.labels[train], 7)


def test_what_is_stored_is_what_was_fitted(fitted: PatientFacts, bundle: Bundle) -> None:
    loaded = load_bundle(bundle.path)
    assert loaded.patient_facts == fitted
    assert loaded.identity == bundle.identity


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strength": 0.9}, "changed since it was made"),
        ({"strength": -1.0}, "strength must be at least 0"),
        ({"likelihood": {"age": {}}}, "likelihood must be of age"),
        ({"weights": "0" * 64}, "another model"),
    ],
)
def test_what_cannot_be_true_is_refused(
    fitted: PatientFacts, bundle: Bundle, change: dict[str, Any], words: str
) -> None:
    path = bundle.path / FILE
    good = path.read_bytes()
    try:
        content = {**read_json(path), **change}
        if "weights" in change:
            covered = {name: value for name, value in content.items() if name != "checksum"}
            content["checksum"] = facts_module._checksum(covered)
        write_json(path, content)
        with pytest.raises(ModelError, match=words) as told:
            _ = load_bundle(bundle.path).patient_facts
        assert "dermlens patient-facts" in str(told.value)
    finally:
        path.write_bytes(good)


def test_another_data_set_and_one_without_facts_are_refused(
    bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(data, other)
    table = pd.read_csv(other / "manifest.csv")
    table.assign(age=np.nan, sex=np.nan, localization=np.nan).to_csv(
        other / "manifest.csv", index=False
    )
    with pytest.raises(DataError, match="no age, sex or place"):
        fit_patient_facts(bundle, other)
    table["split"] = table.split.map({"train": "test", "test": "train"}).fillna(table.split)
    table.to_csv(other / "manifest.csv", index=False)
    with pytest.raises(DataError, match="not the data set"):
        fit_patient_facts(bundle, other)


def test_the_command_writes_into_the_bundle(
    fitted: PatientFacts, bundle: Bundle, data: Path
) -> None:
    path = bundle.path / FILE
    before = path.read_bytes()
    path.unlink()
    told = dermlens("evaluate", bundle.path, data, "--patient-facts", "--out", data.parent / "e")
    refused(told, "does not know what facts about patients add")
    outcome = dermlens("patient-facts", bundle.path, data)
    assert outcome.code == 0 and f"Strength of the facts: {fitted.strength:.2f}" in outcome.out
    assert path.read_bytes() == before


def test_evaluation_with_facts_and_without(
    fitted: PatientFacts, bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "evaluation"
    outcome = dermlens("evaluate", bundle.path, data, "--patient-facts", "--resamples", 20,
                       "--out", out)  # fmt: skip
    assert outcome.code == 0, outcome
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    loaded = load_bundle(bundle.path)
    alone = dl.evaluate(loaded, data, resamples=20)
    both = dl.evaluate(loaded, data, patient_facts=True, resamples=20)
    change = {one["figure"]: one for one in metrics["patient_facts"]["change"]}
    for figure in ("balanced_accuracy", "macro_auc", "nll"):
        assert metrics[figure] == pytest.approx(both.metrics[figure])
        assert change[figure]["value"] == pytest.approx(metrics[figure])
        less = both.metrics[figure] - alone.metrics[figure]
        assert change[figure]["difference"] == pytest.approx(less)
    names = [f"logit_{code}" for code in bundle.classes]
    expected = fitted.fused(alone.predictions[names].to_numpy(), alone.predictions)
    np.testing.assert_allclose(both.predictions[names].to_numpy(), expected)
    assert "patient_facts" not in alone.metrics
    refused(
        dermlens("card", bundle.path, "--evaluation", out, "--out", tmp_path / "card"),
        "facts about patients",
    )
    with pytest.raises(UsageError, match="does not know"):
        dl.evaluate(bundle.model, data, patient_facts=True)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        picture(number, 240, 320).save(folder / f"p{number}.png")
    return sorted(folder.iterdir())


def test_predictions_with_what_is_known_of_the_patient(
    fitted: PatientFacts, bundle: Bundle, photographs: list[Path], tmp_path: Path
) -> None:
    def predicted(*options: object) -> pd.DataFrame:
        out = tmp_path / "predictions.csv"
        outcome = dermlens("predict", bundle.path, *photographs, "--out", out, *options)
        assert outcome.code == 0, outcome
        assert ("of the patient counts" in outcome.out) == bool(options)
        return pd.read_csv(out)

    names = [f"probability_{code}" for code in bundle.classes]
    alone = predicted()
    told = predicted("--patient", "age=48,sex=female")
    assert "age" not in alone.columns and told.age.tolist() == [48, 48]
    logits = alone[[f"logit_{code}" for code in bundle.classes]].to_numpy()
    patient = rows(age=[48, 48], sex=["female"] * 2)
    fused = fitted.fused(logits, patient)
    np.testing.assert_allclose(told[names], fitted.calibration.probabilities(fused), atol=1e-9)
    flags = fitted.calibration.flags(told[names].to_numpy())
    assert told.flag_melanoma.tolist() == flags["melanoma"].tolist()
    # In a table, what is not told of an image adds nothing to it.
    table = tmp_path / "patients.csv"
    table.write_text("image_id,age,sex\np1,48,female\n", encoding="utf-8")
    mixed = predicted("--patients", table)
    np.testing.assert_allclose(mixed[names].iloc[1], told[names].iloc[1], atol=1e-9)
    np.testing.assert_allclose(mixed[names].iloc[0], alone[names].iloc[0], atol=1e-9)


def test_what_is_told_wrongly_of_a_patient(
    fitted: PatientFacts, bundle: Bundle, photographs: list[Path], tmp_path: Path
) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("image_id,sex\nelse,male\n", encoding="utf-8")
    given = ("predict", bundle.path, photographs[0], "--out", tmp_path / "p.csv")
    refused(dermlens(*given, "--patient", "age=old"), "no age in years")
    refused(dermlens(*given, "--patient", "height=1"), "no fact about a patient")
    refused(dermlens(*given, "--patients", table), "names none of the images")
    refused(dermlens(*given, "--patient", "age=1", "--patients", table), "Give either")
    refused(dermlens(*given, "--patient", "age=1", "--engine", "local"), "in shards")
    odd = dermlens(*given, "--patient", "localization=moon")
    assert odd.code == 0 and "of no effect: localization moon" in odd.out


def test_the_shipped_model_knows_what_they_add() -> None:
    facts = load_bundle(SHIPPED).patient_facts
    assert facts is not None and 0.2 < facts.strength < 0.4
    told = rows(age=[80, 25], sex=["male", "female"], localization=["face", "back"])
    assert not facts.strange(told)
    nv = facts.calibration.classes.index("nv")
    old, young = facts.evidence(told)
    assert old.argmin() in (nv, facts.calibration.classes.index("df")) and young[nv] > old[nv]


def test_the_photograph_alone_is_the_reference() -> None:
    facts = by_hand(1.0)
    table = rows(
        image_id=["1", "2", "3", "4"], lesion_id=["1", "2", "3", "4"], dx=["a", "b", "a", "b"],
        sex=["female", "female", None, None],
    )  # fmt: skip
    change = what_facts_change(facts, facts.calibration, table, np.zeros((4, 2)))
    found = change.set_index(["name", "figure"])
    nll = (-np.log(0.25) - np.log(0.75) + 2 * np.log(2)) / 4
    assert found.loc[("with facts", "nll"), "value"] == pytest.approx(nll)
    assert found.loc[("photograph", "nll"), "value"] == pytest.approx(np.log(2))

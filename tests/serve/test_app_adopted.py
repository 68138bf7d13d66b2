"""The page, the commands and exports with models of somebody else: any classes, no calibration."""

import csv
import io
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from dermlens.data.images import load_image
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.registry import METHODS
from dermlens.explainers.target import PREDICTED, RUNNER_UP
from dermlens.labels import label_set
from dermlens.model.bundle import Bundle
from dermlens.report.explanation import explain_files
from dermlens.report.verdict import verdict
from dermlens.serve import app_batch, app_page, app_page_about, app_page_results
from dermlens.serve.app import build_app
from dermlens.serve.app_actions import Actions
from dermlens.serve.app_desk import Desk
from dermlens.serve.export import ExportImages, export
from dermlens.serve.prediction import describe_predictions, predict_files
from serving_support import SIZE, adopted_bundle, picture, text_of
from test_inference import inference  # noqa: F401

SKIN_WORDS = ("diagnos", "dermato", "lesion", "skin", "malignan", "melanom", "doctor", "mole")
EIGHT = label_set("isic2019")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adopted") / "photo.png"
    picture(1, 240, 320).save(path)
    return path


@pytest.fixture(scope="module")
def two() -> Bundle:
    return adopted_bundle()


@pytest.fixture(scope="module")
def desk(two: Bundle) -> Desk:
    return Desk(two)


def test_verdict_of_two_classes(two: Bundle, desk: Desk, photo: Path) -> None:
    found = desk.actions.analyze(photo)
    image = found.image[None]
    expected = two.probabilities(two.logits(image))[0]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert found.usability is None and found.reasons == () and found.ood_score is None
    text = text_of(verdict(two, found))
    name = two.classes[expected.argmax()]
    assert text.startswith(f"Most probable: {name}, ") and "(not calibrated)" in text
    assert "Probabilities are not calibrated" in text
    assert "These compare" in text or "They compare these 2 classes only" in text
    everything = text + text_of(app_page.header(two) + app_page.banner(two) + app_page.empty(two))
    about = app_page_about.about(two)
    assert "none: not calibrated" in about and "cat, golden retriever" in about
    assert "Operating points" not in about and "A Keras model that tells 2 classes apart" in about
    for word in SKIN_WORDS:
        assert word not in (everything + about).lower(), word
    facts = desk.actions.facts(found)
    assert facts["calibrated"] is False and facts["flags"] == {} and facts["usability"] is None
    assert set(facts["probabilities"]) == set(two.classes)


def test_grad_cam_of_a_head_that_is_no_pooling_and_dense_layer(
    two: Bundle, desk: Desk, photo: Path
) -> None:
    found = desk.actions.analyze(photo)
    assert found.maps.shape == (0, *SIZE)
    for target in (0, 1):
        expected = GradCAM(two).attribute(found.image[None], target).maps[0]
        np.testing.assert_allclose(desk.actions.map_of(found, target), expected, atol=1e-6)
    assert two.classes[1] in app_page.evidence(desk.actions, found, 1)


def test_explained_and_compared(desk: Desk, photo: Path) -> None:
    methods = ["grad_cam", "integrated_gradients"]
    *_, last = desk.explain(None, str(photo), methods, "golden retriever")
    assert list(last.work.comparison.combined) == methods
    *_, done = desk.compare(None, str(photo), methods, PREDICTED, RUNNER_UP)
    text = text_of(app_page_results.comparison(done))
    assert "Why this class and not another" in text and "not calibrated" in text
    assert done.work.comparison.scales is not None
    questions = [METHODS[name].question for name in methods]
    for question in questions:
        text = text.replace(question, "")
    for word in SKIN_WORDS:
        assert word not in text.lower(), word


def test_batch_of_two_classes(two: Bundle, desk: Desk, photo: Path) -> None:
    *_, rows = app_batch.analyze_many(desk.actions, [("a.png", photo)])
    table = app_batch.shown_table(desk.actions, rows)
    assert list(table.columns) == [
        *("No.", "Picture", "File", "Verdict", "Most probable", "Probability (not calibrated)"),
        *("Cannot be excluded", "Alerts", "True class", "Remarks"),
    ]
    (row,) = csv.DictReader(io.StringIO(app_batch.as_csv(desk.actions, rows)))
    assert row["calibrated"] == "False" and float(row["probability_golden retriever"]) > 0
    assert not any(name.startswith(("flag_", "p_")) for name in row)


def test_subclassed_model_offers_the_other_methods_and_says_why(photo: Path) -> None:
    desk = Desk(adopted_bundle(subclassed=True))
    assert desk.explaining.methods == [
        name for name, entry in METHODS.items() if entry.family != "activation"
    ]
    assert desk.explaining.without
    found = desk.actions.analyze(photo)
    assert desk.actions.map_of(found, 0) is None
    assert "There is no Grad-CAM of this model." in app_page.evidence(desk.actions, found, 0)
    with pytest.raises(Exception, match="activation map"):
        list(desk.explain(None, str(photo), ["grad_cam"], PREDICTED))
    *_, last = desk.explain(None, str(photo), ["occlusion"], PREDICTED)
    assert last.work.comparison.combined["occlusion"].maps.shape == (1, *SIZE)
    page = build_app(desk.bundle)
    shown = str(page.get_config_file())
    assert "Without class activation maps." in shown


def test_eight_diagnoses_keep_their_names_and_marks(photo: Path) -> None:
    bundle = adopted_bundle(labels=EIGHT)
    actions = Actions(bundle)
    text = text_of(verdict(bundle, actions.analyze(photo)))
    for label in EIGHT.labels:
        assert f"{label.name} malignant" in text if label.malignant else label.name in text
    assert "not calibrated" in text and "these 8 diagnoses only" in text
    # A flag needs a threshold, and none was fitted.
    assert "threshold" not in text and "suspected" not in text


def test_sigmoid_probabilities_are_not_said_to_sum_to_one(photo: Path) -> None:
    bundle = adopted_bundle(("car", "road", "tree"), "sigmoid")
    found = Actions(bundle).analyze(photo)
    np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp(-found.logits)), atol=1e-6)
    assert "Each class is judged for itself" in text_of(verdict(bundle, found))


def test_predictions_on_the_command_line(two: Bundle, photo: Path) -> None:
    table = predict_files(two, [photo])
    assert list(table.calibrated) == [False] and "p_malignant" not in table
    (line, sets, note) = describe_predictions(table, two)
    name = two.classes[int(table["probability_golden retriever"].iloc[0] > 0.5)]
    assert line.startswith(f"{photo}: Most probable: {name}, ")
    assert line.endswith(" (not calibrated).")
    assert "prediction sets" in sets and "medical device" in note


def test_explanations_on_disk(two: Bundle, photo: Path, tmp_path: Path) -> None:
    (folder,) = explain_files(two, [photo], tmp_path, methods="grad_cam", target="cat")
    stored = json.loads((folder / "explanation.json").read_text())
    assert stored["calibrated"] is False and stored["target"] == "cat"
    assert set(stored["probabilities"]) == set(two.classes)
    assert Image.open(folder / "grad_cam.png").width == 320


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_exports_and_the_standalone_program(
    activation: str,
    inference: ModuleType,  # noqa: F811
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = adopted_bundle(activation=activation)
    original = np.asarray(picture(1, 60, 80))
    export(bundle, tmp_path, ["saved_model"], ExportImages([original], None, [], "one"))
    facts = json.loads((tmp_path / "saved_model" / "metadata.json").read_text())
    assert facts["link"] == activation and facts["calibrated"] is False
    assert [entry["name"] for entry in facts["classes"]] == list(bundle.classes)
    given = [str(tmp_path / "saved_model"), str(photo), "--json", str(tmp_path / "out.json")]
    assert inference.main([*given, "--explain", str(tmp_path / "maps")]) == 0
    said = capsys.readouterr().out
    assert " (not calibrated)." in said and "Probabilities are not calibrated" in said
    found = json.loads((tmp_path / "out.json").read_text())
    expected = bundle.probabilities(bundle.logits(load_image(photo, SIZE)[None]))[0]
    assert found["calibrated"] is False
    shares = found["images"][0]["probabilities"]
    assert list(shares) == list(bundle.classes)
    np.testing.assert_allclose(list(shares.values()), expected, atol=1e-4)

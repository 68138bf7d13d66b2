"""What the web interface does and shows, and the page behind a real server."""

import asyncio
import base64
import copy
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dermlens import __version__
from dermlens.data.images import fit_image, load_image
from dermlens.errors import DataError, DermlensError, UsageError
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.registry import METHODS
from dermlens.explainers.target import PREDICTED
from dermlens.labels import HAM10000
from dermlens.model.bundle import SHIPPED, Bundle, load_bundle
from dermlens.model.out_of_distribution import OODDetector
from dermlens.quality.agreement import smoothed, spearman
from dermlens.report import layers as app_layers
from dermlens.report import verdict as report_verdict
from dermlens.report.verdict import verdict
from dermlens.serve import app_page, app_page_about, app_page_results
from dermlens.serve.app_actions import Actions, Analysis, Wish
from dermlens.serve.app_desk import Desk, Job
from dermlens.serve.app_explaining import Explaining
from dermlens.serve.app_guard import sentences
from dermlens.serve.usability import seen_remarks
from pictures_support import HEIC, heic_picture
from serving_support import SIZE, picture, text_of, untrained_bundle

NOTE = "Research and education only, not a medical device."


@pytest.fixture(scope="module")
def explaining(desk: Desk) -> Explaining:
    return desk.explaining


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "large.png"
    picture(1, 240, 320).save(path)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    picture(1).save(path)
    return path


@pytest.fixture(scope="module")
def analysis(actions: Actions, photo: Path) -> Analysis:
    return actions.analyze(photo)


def test_analysis_is_what_the_bundle_says(
    actions: Actions, photo: Path, analysis: Analysis
) -> None:
    bundle = actions.bundle
    image = load_image(photo, SIZE)
    logits = bundle.logits(image[None])
    calibration = bundle.calibration
    probabilities = calibration.probabilities(logits)
    np.testing.assert_array_equal(analysis.image, image)
    np.testing.assert_allclose(analysis.probabilities, probabilities[0], atol=1e-6)
    assert analysis.predicted == logits[0].argmax()
    assert analysis.prediction_set == calibration.set_of(probabilities[0])
    assert analysis.flags == {
        name: bool(point.score(probabilities, HAM10000.codes)[0] >= point.threshold)
        for name, point in calibration.operating_points.items()
    }
    expected = GradCAM(bundle).attribute(image[None], "all").maps[0]
    np.testing.assert_allclose(analysis.maps, expected, atol=1e-4)
    # The whole photograph is shown, and where in it the network looks.
    assert analysis.display.shape == (60, 80, 3)
    left, top, right, bottom = analysis.box
    assert (left, right) == (0, 1) and bottom - top == pytest.approx(80 * 32 / 48 / 60)
    assert len(analysis.sha256) == 64
    facts = actions.facts(analysis, anyway=True)
    assert facts["predicted"] == bundle.classes[analysis.predicted] and facts["note"] == NOTE
    assert sum(facts["probabilities"].values()) == pytest.approx(1)


def test_small_images_get_a_remark_or_an_abstention(actions: Actions, tmp_path: Path) -> None:
    picture(0, 20, 60).save(tmp_path / "small.png")
    found = actions.analyze(tmp_path / "small.png")
    assert found.abstains and "20 pixels" in found.reasons[0] and found.remarks == ()
    assert "Stretched or cut to a strip: one side is 3.0 times" in found.reasons[1]
    small, cropped = seen_remarks(Image.new("RGB", (30, 200)), SIZE)
    assert "30 x 200 pixels" in small and "the middle 10 %" in cropped.replace("\xa0", " ")


def test_photographs_that_show_nothing_make_the_model_abstain(
    actions: Actions, tmp_path: Path
) -> None:
    Image.new("RGB", (400, 300), (200, 160, 150)).save(tmp_path / "skin.png")
    found = actions.analyze(tmp_path / "skin.png")
    assert found.abstains and len(found.reasons) == 2 and found.remarks == ()
    text = verdict_text(actions.bundle, found)
    assert text.startswith("The model abstains")
    for reason in found.reasons:
        assert reason in text
    everything = text + text_of(app_page.evidence(actions, found, found.predicted))
    everything += str(actions.facts(found))
    for label in HAM10000.labels:
        assert label.name not in everything and f"'{label.code}'" not in everything
    shown = verdict_text(actions.bundle, found, anyway=True)
    second = shown.index("What it would have said")
    assert shown.index("Blurred") < second < shown.index(HAM10000.labels[found.predicted].name)
    assert actions.facts(found)["predicted"] is None
    assert "Grad-CAM" in app_page.evidence(actions, found, 0, Wish(anyway=True))
    facts = actions.facts(found, anyway=True)
    assert facts["predicted"] == actions.bundle.classes[found.predicted]
    assert facts["abstain"] is True and facts["reasons"] == list(found.reasons)
    assert facts["usability"]["shorter_side"] == 300
    assert facts["usability"]["problems"] == list(found.reasons)
    assert facts["ood_score"] is None and facts["ood_threshold"] is None


def verdict_text(bundle: Bundle, found: Analysis, **options: Any) -> str:
    """The text of the verdict as the page asks for it."""
    options = {"reasons": found.reasons, "remarks": found.remarks, **options}
    return text_of(verdict(bundle, found, **options))


def with_detector(threshold: float) -> Actions:
    bundle = untrained_bundle()
    basis = np.eye(8, 2, dtype=np.float32)
    bundle.ood_detector = OODDetector(
        np.zeros((7, 8), np.float32), basis, np.ones(2, np.float32), 1.0, threshold, 0.02, 900
    )
    return Actions(bundle)


def test_images_unlike_the_training_images_make_the_model_abstain(large: Path) -> None:
    actions = with_detector(1e-6)
    found = actions.analyze(large)
    assert len(found.reasons) == 1 and found.reasons[0].startswith("Unlike the training images")
    assert "98 % of ordinary images" in found.reasons[0].replace("\N{NO-BREAK SPACE}", " ")
    facts = actions.facts(found)
    assert facts["abstain"] is True and facts["ood_threshold"] == 1e-6
    assert facts["ood_score"] == pytest.approx(found.ood_score) and facts["ood_score"] > 0
    assert "2 % of ordinary ones" in app_page_about.about(actions.bundle).replace("\xa0", " ")
    answered = with_detector(1e6).analyze(large)
    assert not answered.abstains and answered.ood_score == pytest.approx(found.ood_score)
    expected = GradCAM(actions.bundle)
    features = expected.features.run(found.image[None].astype(np.float32))[0].numpy().mean((1, 2))
    score = actions.bundle.ood_detector.scores(features)[0]
    assert found.ood_score == pytest.approx(score, rel=1e-4)


def test_probabilities_map_and_ood_score_cost_one_pass(
    actions: Actions, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    forward = actions._forward
    monkeypatch.setattr(
        actions, "_forward", lambda images: passes.append(images) or forward(images)
    )
    found = actions.analyze(large)
    verdict_text(actions.bundle, found)
    for target in range(7):
        app_page.evidence(actions, found, target)
    assert len(passes) == 1 and passes[0].shape == (1, *SIZE, 3)


def test_methods_are_explained_one_after_the_other(
    explaining: Explaining, analysis: Analysis, photo: Path
) -> None:
    names = ["grad_cam", "integrated_gradients"]
    states = list(explaining.explain(analysis, names, "mel"))
    progress = [(list(work.comparison.combined), work.running) for work in states]
    assert progress == [
        ([], "grad_cam"),
        (["grad_cam"], "integrated_gradients"),
        (names, None),
    ]
    last, bundle = states[-1], explaining.bundle
    expected = GradCAM(bundle).attribute(load_image(photo, SIZE)[None], "mel")
    np.testing.assert_allclose(last.comparison.combined["grad_cam"].maps, expected.maps, atol=1e-5)
    assert (
        last.comparison.target == "mel" and states[0].agreement == {} and states[1].agreement == {}
    )
    maps = smoothed(np.stack([result.maps[0] for result in last.comparison.combined.values()]))
    both = spearman(maps[:1], maps[1:])[0]
    assert last.agreement == {name: pytest.approx(both) for name in names}
    text = text_of(app_page_results.cards(Job("", analysis, last)))
    assert "Melanoma" in text and "convergence delta" in text
    assert f"agreement {both:.2f}" in text and "Explained: Melanoma, by 2 methods." in text
    for name in names:
        assert METHODS[name].title in text and METHODS[name].question in text
    running = text_of(app_page_results.cards(Job("", analysis, states[1])))
    assert "2 of 2: Integrated Gradients for Melanoma." in running
    stopped = text_of(app_page_results.cards(Job("", analysis, states[1]), stopped=True))
    assert stopped.startswith("Stopped after 1 of 2 methods.")
    one = replace(states[1], running=None, total=1)
    assert "by 1 method." in text_of(app_page_results.cards(Job("", analysis, one)))
    facts = explaining.facts(last)
    assert facts["target"] == "mel" and list(facts["methods"]) == names
    assert facts["methods"]["grad_cam"]["forward_passes"] == 1
    assert facts["methods"]["grad_cam"]["agreement_with_others"] == pytest.approx(both)


def test_expected_time_is_passes_times_a_pass_until_measured(actions: Actions) -> None:
    fresh = Explaining(actions)
    assert actions.pass_seconds > 0
    assert fresh.expected("occlusion") == 166 * actions.pass_seconds
    assert fresh.expected("integrated_gradients") == (22 + 2 * 64) * actions.pass_seconds
    found = fresh._timed("occlusion", lambda: "done")
    assert found == "done" and fresh.expected("occlusion") < 166 * actions.pass_seconds
    page = app_page_results.busy("Working", 1, 4, 12.0, 95.0)
    assert "About 2 minutes left." in text_of(page)
    assert "--dl-from:25%;--dl-to:49%;--dl-seconds:12.0s" in page
    assert "left" not in app_page_results.busy("Working", 0, 4, float("nan"), float("nan"))


def test_default_target_is_the_most_probable_and_wrong_choices_are_refused(
    explaining: Explaining, analysis: Analysis
) -> None:
    *_, last = explaining.explain(analysis, ["grad_cam"], PREDICTED)
    assert (
        last.comparison.reading.target
        == analysis.predicted
        == explaining.actions.target(analysis, PREDICTED)
    )
    assert explaining.actions.target(analysis, "vasc") == 6
    for methods, target in (([], PREDICTED), (["magic"], PREDICTED), (["grad_cam"], "moles")):
        with pytest.raises(UsageError):
            next(explaining.explain(analysis, methods, target))


def test_color_maps_and_contours_change_nothing_but_colors(
    explaining: Explaining, analysis: Analysis
) -> None:
    *_, last = explaining.explain(analysis, ["grad_cam", "integrated_gradients"], "mel")
    first, other = (
        app_page_results.cards(Job("", analysis, last), Wish(color_map))
        for color_map in ("inferno", "viridis")
    )
    assert text_of(first) == text_of(other) and first != other
    cards = [page.split("<article")[1:] for page in (first, other)]
    # Two-sided maps change as well.
    assert cards[0][0] != cards[1][0] and cards[0][1] != cards[1][1]
    assert cards[0][0].count("<svg") == 1
    with pytest.raises(UsageError, match="Unknown color map"):
        app_layers.checked_color_map("jet")


def test_contour_surrounds_the_strongest_fifth() -> None:
    values = np.zeros((40, 60), np.float32)
    values[10:20, 30:50] = 1.0
    path = app_layers.contour(values)
    numbers = re.findall(r"[-\d.]+ [-\d.]+", path.split(' d="')[1].split('"')[0])
    points = np.array([[float(n) for n in pair.split()] for pair in numbers])
    assert points[:, 0].min() == pytest.approx(29, abs=4)
    assert points[:, 0].max() == pytest.approx(51, abs=4)
    assert points[:, 1].min() == pytest.approx(9, abs=4)
    assert app_layers.contour(np.ones((9, 9))) == ""


def test_every_registered_method_can_be_chosen(explaining: Explaining) -> None:
    assert explaining.methods == list(METHODS)
    assert len(explaining.actions.target_choices()) == 8


def with_probabilities(analysis: Analysis, predicted: int, melanoma: float) -> Analysis:
    probabilities = np.full(7, (1 - melanoma) / 6)
    probabilities[4] = melanoma
    return replace(
        analysis,
        probabilities=probabilities,
        predicted=predicted,
        prediction_set=(predicted, 4) if predicted != 4 else (4,),
        flags={"malignant": False, "melanoma": melanoma >= 0.1},
        reasons=(),
    )


def test_verdict_names_all_diagnoses_and_does_not_play_melanoma_down(
    actions: Actions, analysis: Analysis
) -> None:
    def show(predicted: int, melanoma: float) -> str:
        return text_of(verdict(actions.bundle, with_probabilities(analysis, predicted, melanoma)))

    flagged = show(5, 0.12)
    assert "Melanoma not excluded (12 %)" in flagged and "A mole, usually benign" in flagged
    for diagnosis in HAM10000.labels:
        expected = f"{diagnosis.name} malignant" if diagnosis.malignant else diagnosis.name
        assert expected in flagged
    assert flagged.count(" malignant ") >= 3
    calm = show(5, 0.02)
    assert "Melanoma: below the threshold (2 %). That excludes nothing." in calm
    assert "Melanoma not excluded" not in calm
    # Both alerts are always there; what they reach stands behind a question mark.
    assert "Malignancy: below the threshold (35 %)" in calm and calm.count("?") >= 2
    assert "On validation images it was up for 90 % of 9 with melanoma, and for 50 % of 11" in calm
    assert "Melanoma suspected" in show(4, 0.6)


def test_a_malignant_diagnosis_is_never_without_its_alert(
    actions: Actions, analysis: Analysis
) -> None:
    probabilities = np.full(7, 0.01 / 6)
    probabilities[1] = 0.99
    found = replace(
        with_probabilities(analysis, 1, 0.0),
        probabilities=probabilities,
        flags={"malignant": True, "melanoma": False},
    )
    html = verdict(actions.bundle, found)
    assert html.count('class="dl-alert dl-up"') == 1 and html.count('class="dl-alert"') == 1
    assert "Malignancy suspected" in text_of(html)


def test_near_ties_are_said_and_examples_tell_their_truth(
    actions: Actions, analysis: Analysis
) -> None:
    probabilities = np.array([0.0, 0.0, 0.0, 0.0, 0.45, 0.5, 0.05])
    near = replace(with_probabilities(analysis, 5, 0.45), probabilities=probabilities)
    assert "Near tie: melanoma is nearly as probable, 45 %." in verdict_text(actions.bundle, near)
    clear = replace(near, probabilities=np.array([0.0, 0.0, 0.0, 0.0, 0.05, 0.9, 0.05]))
    assert "Near tie" not in verdict_text(actions.bundle, clear)
    told = verdict_text(actions.bundle, clear, truth="Melanoma")
    assert "True diagnosis of this example: Melanoma." in told


def test_thresholds_are_told_from_the_test_split_where_it_is_known(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = untrained_bundle()
    known = {"melanoma": {"sensitivity": 0.9, "specificity": 0.7, "positives": 50, "negatives": 80}}
    fingerprint = bundle.identity["fingerprint"]
    monkeypatch.setattr(report_verdict, "_tested", {fingerprint: known}.__getitem__)
    text = verdict_text(bundle, with_probabilities(analysis, 5, 0.02))
    assert "On test images it was up for 90 % of 50 with melanoma, and for 30 % of 80" in text
    shipped = load_bundle(SHIPPED)
    monkeypatch.undo()
    assert set(report_verdict._tested(shipped.identity["fingerprint"])) == {"malignant", "melanoma"}


def test_classes_side_by_side_have_one_scale(actions: Actions, analysis: Analysis) -> None:
    maps = np.zeros((7, *SIZE), np.float32)
    maps[5], maps[4] = 2.0, 0.02
    found = replace(
        analysis,
        reasons=(),
        maps=maps,
        probabilities=np.array([0.0, 0.0, 0.0, 0.0, 0.004, 0.996, 0.0]),
        predicted=5,
        prediction_set=(5, 4),
    )
    html = app_page.evidence(actions, found, 5)
    assert re.findall(r'data-name="([^"]+)"', html) == [
        "Grad-CAM: Melanocytic nevus",
        "Grad-CAM: Melanoma",
    ]
    assert html.count("most evidence (2)") == 4
    strength = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))[..., 3].max()
        for content in re.findall(r'dl-map" src="data:image/png;base64,([^"]+)"', html)
    ]
    assert strength[0] == 255 and strength[1] <= 3


def test_untouched_where_there_is_no_evidence() -> None:
    values = np.zeros((40, 60), np.float32)
    values[10:20, 30:50] = 1.0
    html = app_layers.layers(
        app_layers.Canvas(np.zeros((40, 60, 3), np.uint8)), values, signed=False, text="map"
    )
    content = html.split('dl-map" src="data:image/png;base64,')[1].split('"')[0]
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))[..., 3]
    assert (alpha[values == 0] == 0).all() and (alpha[values == 1] == 255).all()


def test_what_the_network_sees_is_drawn_in(actions: Actions, tmp_path: Path) -> None:
    picture(1, 400, 300).save(tmp_path / "upright.png")
    found = actions.analyze(tmp_path / "upright.png")
    html = app_page.evidence(actions, found, found.predicted, Wish(anyway=True))
    assert 'class="dl-seen dl-cropped" style="left:0.000%;top:25.000%' in html
    assert any("sees the middle 50" in remark for remark in found.remarks)


def test_dicom_and_heic_are_taken(actions: Actions, lesion: Path, tmp_path: Path) -> None:
    pytest.importorskip("pi_heif")
    pytest.importorskip("pydicom")
    from dicom_support import dicom

    expected = actions.analyze(lesion)
    pixels = np.asarray(Image.open(lesion).convert("RGB"))
    stored = dicom(tmp_path / "upload.bin", pixels=pixels)
    np.testing.assert_array_equal(actions.analyze(stored).image, expected.image)
    (tmp_path / "phone").write_bytes(HEIC)
    phone = actions.analyze(tmp_path / "phone")
    expected = fit_image(Image.fromarray(heic_picture()), actions.bundle.input_size)
    assert np.abs(phone.image.astype(int) - expected).mean() < 8 and np.ptp(expected) > 100
    (tmp_path / "text.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"nothing")
    with pytest.raises(DataError, match="holds no single picture") as refused:
        actions.analyze(tmp_path / "text.dcm")
    assert str(tmp_path) not in str(refused.value)


def test_page_says_what_it_is(actions: Actions, analysis: Analysis) -> None:
    bundle = actions.bundle
    assert NOTE in text_of(app_page.banner(bundle))
    assert "drawn images only" in text_of(app_page.header(bundle))
    real = copy.copy(bundle)
    real.synthetic = False
    assert "drawn" not in text_of(app_page.header(real))
    about = app_page_about.about(bundle)
    assert "### Glossary" in about and "**Cannot be excluded**" in about
    assert NOTE in about and "MIT" in about and "| melanoma | mel | 0.1 | 90" in about
    assert "### Intended use" in about and "### Limits" in about and __version__ in about
    empty = Analysis(**{**vars(analysis), "maps": np.zeros_like(analysis.maps)})
    assert "the map is empty" in text_of(app_page.evidence(actions, empty, 4, Wish(anyway=True)))
    assert "Melanoma" in app_page.evidence(actions, analysis, 4, Wish(anyway=True))


def test_errors_become_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    import gradio as gr

    async def fail(error: Exception) -> None:
        raise error

    def told(error: Exception) -> gr.Error:
        with pytest.raises(gr.Error) as raised:
            asyncio.run(sentences(fail)(error))
        assert raised.value.print_exception is False
        return raised.value

    assert told(DataError("The file is broken. Replace it.")).message == (
        "The file is broken. Replace it."
    )
    assert told(DermlensError("No.")).message == "No."
    # Gradio's own would print what was sent.
    assert told(gr.Error("Value: 'my secret' is not a choice")).message.startswith("Value")
    assert capsys.readouterr().out == ""
    assert "secret" not in told(ValueError("/secret/path")).message
    printed = capsys.readouterr()
    assert printed.out.startswith("Unexpected ValueError in the web interface, in fail, line ")
    assert "secret" not in printed.out + printed.err

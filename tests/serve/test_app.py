"""What the web interface does and shows, and the page behind a real server."""

import asyncio
import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermlens import __version__
from dermlens.data.images import load_image
from dermlens.errors import DataError, DermlensError, UsageError
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.registry import METHODS
from dermlens.explainers.target import PREDICTED
from dermlens.labels import HAM10000
from dermlens.model.out_of_distribution import OODDetector
from dermlens.quality.agreement import smoothed, spearman
from dermlens.report import layers as app_layers
from dermlens.serve import app_page, app_page_about, app_page_results
from dermlens.serve.app_actions import Actions, Analysis
from dermlens.serve.app_desk import Desk, Job
from dermlens.serve.app_explaining import Explaining
from dermlens.serve.app_guard import sentences
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
    assert analysis.remarks == ()
    assert analysis.display.shape == (53, 80, 3)
    facts = actions.facts(analysis)
    assert facts["predicted"] == bundle.classes[analysis.predicted] and facts["note"] == NOTE
    assert sum(facts["probabilities"].values()) == pytest.approx(1)


def test_small_images_get_a_remark_or_an_abstention(actions: Actions, tmp_path: Path) -> None:
    picture(0, 20, 60).save(tmp_path / "small.png")
    found = actions.analyze(tmp_path / "small.png")
    assert found.abstains and "20 pixels" in found.reasons[0] and found.remarks == ()
    remark = actions._remarks(Image.new("RGB", (30, 200)))
    assert len(remark) == 1 and "30 x 200 pixels" in remark[0]


def test_photographs_that_show_nothing_make_the_model_abstain(
    actions: Actions, tmp_path: Path
) -> None:
    Image.new("RGB", (400, 300), (200, 160, 150)).save(tmp_path / "skin.png")
    found = actions.analyze(tmp_path / "skin.png")
    assert found.abstains and len(found.reasons) == 2 and found.remarks == ()
    text = text_of(app_page.verdict(actions.bundle, found))
    assert text.startswith("The model abstains")
    for reason in found.reasons:
        assert reason in text
    second = text.index("What it would have said")
    assert text.index("Blurred") < second < text.index(HAM10000.labels[found.predicted].name)
    facts = actions.facts(found)
    assert facts["abstain"] is True and facts["reasons"] == list(found.reasons)
    assert facts["usability"]["shorter_side"] == 300
    assert facts["usability"]["problems"] == list(found.reasons)
    assert facts["ood_score"] is None and facts["ood_threshold"] is None


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
    app_page.verdict(actions.bundle, found)
    for target in range(7):
        app_page.grad_cam(actions, found, target)
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
    assert f"agreement with others {both:.2f}" in text
    for name in names:
        assert METHODS[name].title in text and METHODS[name].question in text
    running = text_of(app_page_results.cards(Job("", analysis, states[1])))
    assert "2 of 2: Integrated Gradients" in running and "about 22 forward, 64 backward" in running
    stopped = text_of(app_page_results.cards(Job("", analysis, states[1]), stopped=True))
    assert stopped.startswith("Stopped after 1 of 2 methods.")
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
    assert "About 1 min 30 s left" in text_of(page) or "About 1 min 40 s left" in text_of(page)
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
        app_page_results.cards(Job("", analysis, last), color_map)
        for color_map in ("inferno", "viridis")
    )
    assert text_of(first) == text_of(other) and first != other
    cards = [page.split("<article")[1:] for page in (first, other)]
    assert cards[0][0] != cards[1][0]
    assert cards[0][1] == cards[1][1]  # A signed map stays diverging.
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
    )


def test_verdict_names_all_diagnoses_and_does_not_play_melanoma_down(
    actions: Actions, analysis: Analysis
) -> None:
    show = app_page.verdict
    flagged = text_of(show(actions.bundle, with_probabilities(analysis, 5, 0.12)))
    assert "Melanoma not excluded (12 %)" in flagged and "A mole, usually benign" in flagged
    for diagnosis in HAM10000.labels:
        expected = f"{diagnosis.name} malignant" if diagnosis.malignant else diagnosis.name
        assert expected in flagged
    assert flagged.count(" malignant ") >= 3
    calm = text_of(show(actions.bundle, with_probabilities(analysis, 5, 0.02)))
    assert "Below the melanoma threshold (2 %). That excludes nothing." in calm
    assert "not excluded" not in calm
    suspected = text_of(show(actions.bundle, with_probabilities(analysis, 4, 0.6)))
    assert "Melanoma suspected" in suspected


def test_page_says_what_it_is(actions: Actions, analysis: Analysis) -> None:
    bundle = actions.bundle
    assert NOTE in text_of(app_page.banner(bundle))
    assert "drawn images only" in text_of(app_page.header(bundle))
    real = copy.copy(bundle)
    real.synthetic = False
    assert "drawn" not in text_of(app_page.header(real))
    about = app_page_about.about(bundle)
    assert NOTE in about and "MIT" in about and "| melanoma | mel | 0.1 | 90" in about
    assert "### Intended use" in about and "### Limits" in about and __version__ in about
    empty = Analysis(**{**vars(analysis), "maps": np.zeros_like(analysis.maps)})
    assert "the map is empty" in text_of(app_page.grad_cam(actions, empty, 4))
    assert "Melanoma" in text_of(app_page.grad_cam(actions, analysis, 4))


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

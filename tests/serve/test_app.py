"""What the web interface does and shows, and the page behind a real server."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dermlens.data.images import load_image
from dermlens.diagnoses import DIAGNOSES
from dermlens.errors import DataError, DermlensError, UsageError
from dermlens.explain.grad_cam import GradCAM
from dermlens.explain.registry import METHODS
from dermlens.model.bundle import Bundle
from dermlens.serve import app as serving
from dermlens.serve import app_actions, app_page
from dermlens.serve.app_actions import DECISION, Actions, Analysis
from serving_support import SIZE, picture, save_untrained, untrained_bundle

NOTE = "Research and education only, not a medical device."


@pytest.fixture(scope="module")
def actions() -> Actions:
    return Actions(untrained_bundle())


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    picture(1).save(path)
    return path


@pytest.fixture(scope="module")
def analysis(actions: Actions, photo: Path) -> Analysis:
    return actions.analyze(photo)


def text_of(html: str) -> str:
    """The text of a piece of HTML, which must be well formed."""
    parts: list[str] = []
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: Any) -> None:
            if tag != "img":
                opened.append(tag)
            else:
                assert dict(attributes)["alt"]

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

        def handle_data(self, data: str) -> None:
            parts.append(data)

    Reader(convert_charrefs=True).feed(html)
    assert opened == []
    return " ".join(" ".join(parts).replace("\N{NO-BREAK SPACE}", " ").split())


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
    assert analysis.decision == calibration.decide(logits)[0]
    assert analysis.flags == {
        name: bool(point.score(probabilities)[0] >= point.threshold)
        for name, point in calibration.operating_points.items()
    }
    expected = GradCAM(bundle.model).attribute(image[None], "all").maps[0]
    np.testing.assert_allclose(analysis.maps, expected, atol=1e-4)
    assert analysis.remarks == ()
    assert analysis.display.shape == (53, 80, 3)
    facts = actions.facts(analysis)
    assert facts["decision"] == bundle.classes[analysis.decision] and facts["note"] == NOTE
    assert sum(facts["probabilities"].values()) == pytest.approx(1)


def test_small_images_get_a_remark(actions: Actions, tmp_path: Path) -> None:
    picture(0, 20, 60).save(tmp_path / "small.png")
    found = actions.analyze(tmp_path / "small.png")
    assert len(found.remarks) == 1 and "60 x 20 pixels" in found.remarks[0]
    assert found.remarks[0] in text_of(app_page.verdict(actions.bundle, found))


def test_unusable_files_are_refused_with_a_sentence(
    actions: Actions, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "text.jpg": b"not an image",
        "empty.png": b"",
        "cut.png": photo.read_bytes()[:300],
        "script.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be decoded"):
            actions.analyze(tmp_path / name)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError):
        actions.analyze(tmp_path / "bomb.png")
    monkeypatch.setattr(app_actions, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="Scale the image down"):
        actions.analyze(photo)


def test_methods_are_explained_one_after_the_other(actions: Actions, photo: Path) -> None:
    names = ["grad_cam", "integrated_gradients"]
    states = list(actions.explain(photo, names, "mel"))
    progress = [(list(step.results), step.running) for _, step in states]
    assert progress == [
        ([], "grad_cam"),
        (["grad_cam"], "integrated_gradients"),
        (names, None),
    ]
    found, last = states[-1]
    expected = GradCAM(actions.bundle.model).attribute(load_image(photo, SIZE)[None], "mel")
    np.testing.assert_allclose(last.results["grad_cam"].maps, expected.maps, atol=1e-5)
    assert last.target == 4
    text = text_of(app_page.cards(actions.bundle, found, last))
    assert "Melanoma" in text and "completeness gap" in text
    for name in names:
        assert METHODS[name].title in text and METHODS[name].question in text
    running = text_of(app_page.cards(actions.bundle, *states[1]))
    assert "2 of 2: Integrated Gradients" in running
    facts = actions.explained_facts(last)
    assert facts["target"] == "mel" and list(facts["methods"]) == names
    assert facts["methods"]["grad_cam"]["forward_passes"] == 1


def test_default_target_is_the_decision_and_wrong_choices_are_refused(
    actions: Actions, photo: Path, analysis: Analysis
) -> None:
    _, last = list(actions.explain(photo, ["grad_cam"], DECISION))[-1]
    assert last.target == analysis.decision == actions.target(analysis, DECISION)
    assert actions.target(analysis, "vasc") == 6
    for methods, target in (([], DECISION), (["magic"], DECISION), (["grad_cam"], "moles")):
        with pytest.raises(UsageError):
            next(actions.explain(photo, methods, target))


def test_every_registered_method_can_be_chosen(actions: Actions) -> None:
    assert [value for _, value in actions.method_choices()] == list(METHODS)
    assert len(actions.target_choices()) == 8


def with_probabilities(analysis: Analysis, decision: int, melanoma: float) -> Analysis:
    probabilities = np.full(7, (1 - melanoma) / 6)
    probabilities[4] = melanoma
    return Analysis(
        analysis.image,
        analysis.display,
        analysis.logits,
        probabilities,
        decision,
        {"malignant": False, "melanoma": melanoma >= 0.1},
        analysis.maps,
    )


def test_verdict_names_all_diagnoses_and_does_not_play_melanoma_down(
    actions: Actions, analysis: Analysis
) -> None:
    show = app_page.verdict
    flagged = text_of(show(actions.bundle, with_probabilities(analysis, 5, 0.12)))
    assert "Melanoma not excluded (12 %)" in flagged and "Harmless mole" in flagged
    for diagnosis in DIAGNOSES:
        expected = f"{diagnosis.name} malignant" if diagnosis.malignant else diagnosis.name
        assert expected in flagged
    assert flagged.count(" malignant ") == 3
    calm = text_of(show(actions.bundle, with_probabilities(analysis, 5, 0.02)))
    assert "Below the melanoma threshold (2 %). That excludes nothing." in calm
    assert "not excluded" not in calm
    suspected = text_of(show(actions.bundle, with_probabilities(analysis, 4, 0.6)))
    assert "Melanoma suspected" in suspected


def test_page_says_what_it_is(actions: Actions, analysis: Analysis) -> None:
    bundle = actions.bundle
    assert NOTE in text_of(app_page.BANNER)
    assert "drawn images only" in text_of(app_page.header(bundle))
    real = Bundle(
        bundle.path, bundle.architecture, bundle.calibration, {"data": {"name": "HAM10000"}}, None
    )
    assert "drawn" not in text_of(app_page.header(real))
    about = app_page.about(bundle)
    assert NOTE in about and "MIT" in about and "| melanoma | mel | 0.1 | 90" in about
    empty = Analysis(**{**vars(analysis), "maps": np.zeros_like(analysis.maps)})
    assert "the map is empty" in text_of(app_page.grad_cam(bundle, empty, 4))
    assert "Melanoma" in text_of(app_page.grad_cam(bundle, analysis, 4))


def test_errors_become_sentences() -> None:
    import gradio as gr

    def fail(error: Exception) -> None:
        raise error

    def fail_later(error: Exception) -> Iterator[int]:
        yield 1
        raise error

    with pytest.raises(gr.Error) as known:
        serving.sentences(fail)(DataError("The file is broken. Replace it."))
    assert known.value.message == "The file is broken. Replace it."
    with pytest.raises(gr.Error) as unknown:
        serving.sentences(fail)(ValueError("/secret/path"))
    assert "secret" not in unknown.value.message
    running = serving.sentences_while_running(fail_later)(DermlensError("No."))
    assert next(running) == 1
    with pytest.raises(gr.Error, match="No"):
        next(running)


def test_auth_needs_name_and_password() -> None:
    assert serving.parse_auth(None) is None and serving.parse_auth("a:b:c") == ("a", "b:c")
    for text in ("a", "a:", ":b"):
        with pytest.raises(UsageError):
            serving.parse_auth(text)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
    page = serving.launch(save_untrained(tmp_path / "bundle"), block=False)
    yield page
    page.close()


def test_page_is_served_and_its_endpoints_answer(
    server: Any, photo: Path, tmp_path: Path, actions: Actions, analysis: Analysis
) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    assert server.local_url.startswith("http://127.0.0.1:")
    client = Client(server.local_url, verbose=False)
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/analyze", "/explain"}
    image = handle_file(str(photo))
    answer, overlay, facts, _ = client.predict(image, api_name="/analyze")
    assert facts["decision"] == actions.bundle.classes[analysis.decision]
    assert facts["probabilities"]["mel"] == pytest.approx(analysis.probabilities[4], abs=1e-5)
    assert DIAGNOSES[analysis.decision].name in text_of(answer)
    assert "data:image/png;base64," in overlay
    job = client.submit(image, ["grad_cam", "layer_cam"], "bcc", api_name="/explain")
    cards, explained = job.result()
    assert [facts["running"] for _, facts in job.outputs()] == ["grad_cam", "layer_cam", None]
    assert explained["target"] == "bcc" and list(explained["methods"]) == ["grad_cam", "layer_cam"]
    assert cards.count("<article") == 2
    (tmp_path / "text.jpg").write_text("not an image")
    for endpoint, more in (("/analyze", ()), ("/explain", (["grad_cam"], DECISION))):
        with pytest.raises(AppError, match="cannot be decoded"):
            client.predict(handle_file(str(tmp_path / "text.jpg")), *more, api_name=endpoint)
    with pytest.raises(AppError, match="no image yet"):
        client.predict(None, ["grad_cam"], DECISION, api_name="/explain")


def test_nothing_is_written_into_the_package(server: Any) -> None:
    assert not list(Path(serving.__file__).parent.glob("*.pyi"))

"""The demo, small: every step once, what the page says, and going on where it stopped."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermlens.data.images import load_image, load_mask
from dermlens.data.manifest import read_manifest
from dermlens.errors import ModelError, UsageError
from dermlens.explainers.registry import create
from dermlens.files import write_json
from dermlens.labels import HAM10000
from dermlens.model.bundle import load_bundle
from dermlens.model.classifier import Architecture
from dermlens.model.configuration import PRESETS
from dermlens.report.html import Page
from dermlens.serve import demo
from dermlens.serve.demo import run_demo
from tests_support import register_tiny_backbone

IMAGES = 84
STEPS = (
    "1/5 Drawing the embedded data set",
    "2/5 Color-histogram baseline",
    "3/5 Training ResNet50 from scratch",
    "4/5 Evaluating",
    "5/5 Explaining and reporting",
)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """The demo's recipe with a tiny network and small images."""
    register_tiny_backbone()
    recipe = replace(PRESETS["demo"], architecture=Architecture("tiny", (32, 40)), epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "demo", recipe)
        patch.setattr(demo, "SIZE", (48, 64))
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """One finished demo: its folder, and whether it was good."""
    out = tmp_path_factory.mktemp("demo") / "out"
    page, good = run_demo(out, images=IMAGES, seed=1)
    assert page == out / "report.html"
    return out, good


def test_every_step_leaves_its_files(done: tuple[Path, bool]) -> None:
    out, _ = done
    assert {path.name for path in out.iterdir()} == {
        *("data", "run", "evaluation", "report.html", "demo.json")
    }
    table = read_manifest(out / "data")
    assert len(table) == IMAGES and set(table.split) == {"train", "validation", "test"}
    assert load_image(out / "data" / table.path[0]).shape == (48, 64, 3)
    assert load_bundle(out / "run" / "bundle").synthetic
    assert len(pd.read_csv(out / "run" / "history.csv")) == 2
    predictions = pd.read_csv(out / "evaluation" / "predictions.csv")
    assert list(predictions.image_id) == list(table.image_id[table.split == "test"])


def test_summary_is_what_was_measured(done: tuple[Path, bool]) -> None:
    out, good = done
    summary = json.loads((out / "demo.json").read_text())
    assert set(summary) == {
        *("test_balanced_accuracy", "color_histogram_balanced_accuracy", "good", "seconds")
    }
    predictions = pd.read_csv(out / "evaluation" / "predictions.csv")
    right = predictions.predicted == predictions.dx
    recall = right.groupby(predictions.dx).mean().mean()
    assert summary["test_balanced_accuracy"] == pytest.approx(recall)
    # Two epochs of a tiny network see nothing, and the demo says so.
    assert summary["good"] is good is False
    assert summary["seconds"] > 0


def test_page_tells_the_whole_story(done: tuple[Path, bool]) -> None:
    out, _ = done
    page = (out / "report.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Data", "Training", "How good is it?", "Why?"]
    summary = json.loads((out / "demo.json").read_text())
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text())
    table = read_manifest(out / "data")
    assert f"{IMAGES} synthetic images of {table.lesion_id.nunique()} lesions" in page
    assert "Lesions in two splits: 0" in page
    assert f"balanced accuracy of {summary['color_histogram_balanced_accuracy']:.3f}" in page
    assert f"balanced accuracy {metrics['balanced_accuracy']:.3f}" in page
    assert "Nothing here says anything about patients." in page
    assert "Research and education only, not a medical device." in page
    assert page.count("<img ") >= 6 and page.count("<table>") == 2
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def modified(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_second_call_trains_and_draws_nothing_again(
    done: tuple[Path, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    out, good = done
    kept = [out / "data", out / "run" / "bundle"]
    before = [modified(folder) for folder in kept]
    summary = json.loads((out / "demo.json").read_text())
    assert run_demo(out, images=IMAGES, seed=1) == (out / "report.html", good)
    assert [modified(folder) for folder in kept] == before
    printed = capsys.readouterr().out
    assert "nothing to resume" in printed and "finetuning" not in printed
    assert [line for line in printed.splitlines() if line in STEPS] == list(STEPS)
    again = json.loads((out / "demo.json").read_text())
    assert again | {"seconds": 0} == summary | {"seconds": 0}


def test_another_demo_does_not_go_into_the_same_folder(done: tuple[Path, bool]) -> None:
    out, _ = done
    before = modified(out / "run")
    with pytest.raises(ModelError, match="started with another epochs"):
        run_demo(out, images=IMAGES, epochs=5, seed=1)
    assert modified(out / "run") == before


def test_interrupted_demo_goes_on(
    done: tuple[Path, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0] / "data", out / "data")
    drawn = modified(out / "data")
    resumed = []

    def interrupt(data: Path, run: Path, configuration: object, *, resume: bool) -> None:
        resumed.append(resume)
        write_json(run / "configuration.json", {})
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_demo(out, images=IMAGES, seed=1)
    # The images stay; the second time, training goes on instead of starting over.
    assert modified(out / "data") == drawn
    assert resumed == [False, True]
    assert not (out / "demo.json").exists() and not (out / "report.html").exists()


@pytest.mark.parametrize(
    ("least", "margin", "good"), [(0.0, -1.0, True), (0.0, 1.0, False), (1.1, -1.0, False)]
)
def test_good_needs_a_score_and_a_margin(
    done: tuple[Path, bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    least: float,
    margin: float,
    good: bool,
) -> None:
    monkeypatch.setattr(demo, "GOOD_BALANCED_ACCURACY", least)
    monkeypatch.setattr(demo, "GOOD_MARGIN", margin)
    for name in ("_report", "_evaluate"):
        monkeypatch.setattr(demo, name, lambda *_: {"balanced_accuracy": 0.5})
    monkeypatch.setattr(demo, "color_histogram_baseline", lambda _: 0.3)
    monkeypatch.setattr(demo, "write_training_figures", lambda *_: [])
    assert run_demo(done[0], images=IMAGES, seed=1)[1] is good
    printed = capsys.readouterr().out
    assert (
        "Test balanced accuracy 0.500; color histogram with logistic regression 0.300." in printed
    )
    assert ("Train longer with --epochs." in printed) is not good


def test_wrong_numbers_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    for options in ({"epochs": 0}, {"seed": -1}, {"images": 0}):
        with pytest.raises(UsageError):
            run_demo(tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_explained_images_stand_beside_their_structures(
    done: tuple[Path, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = done
    bundle, data = load_bundle(out / "run" / "bundle"), out / "data"
    drawn = {}

    def record(images: list[np.ndarray], maps: dict[str, np.ndarray], **options: object) -> bytes:
        drawn.update(images=images, maps=maps, **options)
        return (out / "run" / "augmentation.png").read_bytes()

    monkeypatch.setattr(demo, "attribution_grid", record)
    predictions = pd.read_csv(out / "evaluation" / "predictions.csv")
    predictions["predicted"] = predictions.dx.where(predictions.dx != "df", "nv")
    page = Page("Demo")
    demo._explanations(page, bundle, data, predictions)
    codes = [code for code in HAM10000.codes if code != "df" and (predictions.dx == code).any()]
    assert drawn["labels"] == codes
    chosen = [predictions.image_id[predictions.dx == code].iloc[0] for code in codes]
    for k, image_id in enumerate(chosen):
        image = load_image(data / "images" / f"{image_id}.jpg", (32, 40))
        assert np.array_equal(drawn["images"][k], image)
        structure = load_mask(data / "structures" / f"{image_id}_structure.png", (32, 40))
        assert np.array_equal(drawn["maps"]["drawn structure"][k], structure)
        lesion = load_mask(data / "masks" / f"{image_id}_segmentation.png", (32, 40))
        assert np.array_equal(drawn["lesions"][k], lesion)
    for name in ("grad_cam", "grad_cam_plus_plus"):
        expected = create(name, bundle).attribute(np.stack(drawn["images"]), codes)
        assert np.allclose(drawn["maps"][name], expected.maps, atol=1e-6)
    assert "the lesion is outlined in cyan" in page.html()


def test_page_says_so_when_no_image_is_classified_correctly(done: tuple[Path, bool]) -> None:
    out, _ = done
    predictions = pd.read_csv(out / "evaluation" / "predictions.csv")
    predictions["predicted"] = predictions.dx.map(lambda code: "nv" if code != "nv" else "mel")
    page = Page("Demo")
    demo._explanations(page, load_bundle(out / "run" / "bundle"), out / "data", predictions)
    assert "No test image was classified correctly" in page.html()

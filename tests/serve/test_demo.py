"""The demo, small: every step once, what the page says, and going on where it stopped.

The tiny network has no shipped weights, so the way from scratch is run; the transfer itself is
tested in tests/model/test_training.py, and its recipe here.
"""

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
from dermlens.explainers.registry import SIX, create
from dermlens.files import write_json
from dermlens.labels import HAM10000
from dermlens.model.bundle import load_bundle
from dermlens.model.classifier import Architecture
from dermlens.model.configuration import PRESETS
from dermlens.report import demo_report
from dermlens.report.demo_report import Explained, demo_page, explain_one_per_class, quality
from dermlens.serve import demo
from dermlens.serve.demo import run_demo
from tests_support import register_tiny_backbone

IMAGES = 84
STEPS = (
    "1/6 Drawing the embedded data set",
    "2/6 Color-histogram baseline",
    "3/6 Training ResNet50 from scratch",
    "4/6 Evaluating",
    "5/6 Explaining by six methods",
    "6/6 Measuring the explanations and reporting",
)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """The demo's recipe with a tiny network and small images."""
    register_tiny_backbone()
    recipe = replace(PRESETS["scratch"], architecture=Architecture("tiny", (32, 40)), epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "scratch", recipe)
        patch.setattr(demo_report, "SAMPLES", 100)
        patch.setattr(demo, "SIZE", (48, 64))
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    """One finished demo: its folder, and whether it was good."""
    out = tmp_path_factory.mktemp("demo") / "out"
    page, good = run_demo(out, images=IMAGES, from_scratch=True, seed=1)
    assert page == out / "report.html"
    return out, good


def test_every_step_leaves_its_files(done: tuple[Path, bool]) -> None:
    out, _ = done
    assert {path.name for path in out.iterdir()} == {
        *("data", "run", "evaluation", "explanations.png", "report.html", "demo.json")
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
        *("test_balanced_accuracy", "color_histogram_balanced_accuracy", "explanations"),
        *("good", "seconds"),
    }
    predictions = pd.read_csv(out / "evaluation" / "predictions.csv")
    right = predictions.balanced_rule == predictions.dx
    recall = right.groupby(predictions.dx).mean().mean()
    assert summary["test_balanced_accuracy"] == pytest.approx(recall)
    # Two epochs of a tiny network see nothing, and the demo says so.
    assert summary["good"] is good is False
    assert summary["seconds"] > 0


def test_page_tells_the_whole_story(done: tuple[Path, bool]) -> None:
    out, _ = done
    page = (out / "report.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        *("What was asked", "What was found", "Why?", "How good are the reasons?"),
        *("Your own images", "The details"),
    ]
    summary = json.loads((out / "demo.json").read_text())
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text())
    table = read_manifest(out / "data")
    assert f"{IMAGES} synthetic images of {table.lesion_id.nunique()} lesions" in page
    assert "Lesions in two splits: 0" in page
    assert f"regression reaches {summary['color_histogram_balanced_accuracy']:.3f}." in page
    assert f"balanced accuracy {metrics['balanced_accuracy']:.3f}" in page
    assert "Nothing here says anything about patients." in page
    assert "Research and education only, not a medical device." in page
    assert page.count("<img ") == 11 and page.count("<table>") == 3
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
    assert run_demo(out, images=IMAGES, from_scratch=True, seed=1) == (out / "report.html", good)
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
        run_demo(out, images=IMAGES, epochs=5, from_scratch=True, seed=1)
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
            run_demo(out, images=IMAGES, from_scratch=True, seed=1)
    # The images stay; the second time, training goes on instead of starting over.
    assert modified(out / "data") == drawn
    assert resumed == [False, True]
    assert not (out / "demo.json").exists() and not (out / "report.html").exists()


@pytest.mark.parametrize(
    ("least", "margin", "good"), [(0.0, -1.0, True), (0.0, 1.0, False), (1.1, -1.0, False)]
)
def test_good_needs_a_score_and_a_margin(
    done: tuple[Path, bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    least: float,
    margin: float,
    good: bool,
) -> None:
    monkeypatch.setattr(demo, "GOOD_BALANCED_ACCURACY", least)
    monkeypatch.setattr(demo, "GOOD_MARGIN", margin)
    monkeypatch.setattr(demo, "_evaluate", lambda *_: {"balanced_accuracy": 0.5})
    monkeypatch.setattr(demo, "color_histogram_baseline", lambda _: 0.3)
    monkeypatch.setattr(demo, "write_training_figures", lambda *_: [])
    monkeypatch.setattr(demo, "explain_one_per_class", lambda *_, **__: None)
    assert run_demo(done[0], images=IMAGES, from_scratch=True, seed=1)[1] is good
    printed = capsys.readouterr().out
    assert (
        "Test balanced accuracy 0.500; color histogram with logistic regression 0.300." in printed
    )
    assert ("Train longer with --epochs." in printed) is not good
    assert "No test image was classified correctly" in (done[0] / "report.html").read_text()
    # What comes next is the last thing that is said.
    assert printed.splitlines()[-1].startswith("Your own images next:")


def test_wrong_numbers_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    for options in ({"epochs": -1}, {"seed": -1}, {"images": 0}):
        with pytest.raises(UsageError):
            run_demo(tmp_path / "out", **options)
    with pytest.raises(UsageError, match="Without fine-tuning epochs"):
        run_demo(tmp_path / "out", epochs=0, from_scratch=True)
    assert list(tmp_path.iterdir()) == []


def test_the_usual_demo_trains_the_last_layer_of_the_shipped_network() -> None:
    recipe = PRESETS["demo"]
    assert (recipe.weights, recipe.epochs) == ("shipped", 0) and recipe.head_epochs > 0
    assert recipe.architecture.backbone == "resnet50"


@pytest.fixture(scope="module")
def explained(done: tuple[Path, bool]) -> tuple[Path, pd.DataFrame, Explained]:
    """Explanations of a table of predictions in which all classes but one are met."""
    out, _ = done
    predictions = pd.read_csv(out / "evaluation" / "predictions.csv")
    predictions["predicted"] = predictions.dx.where(predictions.dx != "df", "nv")
    found = explain_one_per_class(load_bundle(out / "run" / "bundle"), out / "data", predictions)
    assert found is not None
    return out, predictions, found


def test_explained_images_stand_beside_their_structures(
    explained: tuple[Path, pd.DataFrame, Explained],
) -> None:
    out, predictions, found = explained
    codes = [code for code in HAM10000.codes if code != "df" and (predictions.dx == code).any()]
    assert found.codes == codes
    for k, code in enumerate(codes):
        image_id = predictions.image_id[predictions.dx == code].iloc[0]
        image = load_image(out / "data" / "images" / f"{image_id}.jpg", (32, 40))
        assert np.array_equal(found.images[k], image)
        path = out / "data" / "structures" / f"{image_id}_structure.png"
        assert np.array_equal(found.structures[k], load_mask(path, (32, 40)))
    assert list(found.maps) == [*SIX, *demo_report.CONTROLS]
    assert found.controls == list(demo_report.CONTROLS)
    bundle = load_bundle(out / "run" / "bundle")
    for name in ("grad_cam", "occlusion"):
        expected = create(name, bundle).attribute(found.images, codes)
        assert np.allclose(found.maps[name], expected.maps, atol=1e-6)
        assert found.signed[name] == expected.signed


def test_quality_is_that_of_the_structures(
    explained: tuple[Path, pd.DataFrame, Explained],
) -> None:
    out, _, found = explained
    perfect = replace(
        found,
        maps={
            "grad_cam": found.structures.astype(np.float32),
            "lime": 1.0 - found.structures,
            demo_report.RIVAL: found.maps[demo_report.RIVAL],
        },
        methods=("grad_cam", "lime"),
    )
    measured = quality(load_bundle(out / "run" / "bundle"), perfect)
    assert measured["controls"] == [demo_report.RIVAL]
    assert set(measured["metrics"]) == {
        *("structure_pixel_auc", "structure_relevance_rank", "deletion", "insertion")
    }
    area = measured["metrics"]["structure_pixel_auc"]
    assert area["grad_cam"]["mean"] == 1.0 and area["lime"]["mean"] == 0.0
    assert area["grad_cam"]["above_gaussian"]["low"] > 0
    assert area[demo_report.RIVAL]["above_gaussian"] == {"low": 0.0, "high": 0.0}
    assert "Grad-CAM by Pixel AUC" in demo_report._verdict(measured)
    assert "LIME by Pixel AUC" not in demo_report._verdict(measured)
    table = demo_report.quality_table(measured)
    assert list(table.columns) == [
        *("map", "Pixel AUC ↑", "Relevance rank ↑", "Deletion AUC ↓", "Insertion AUC ↑")
    ]
    assert table["Pixel AUC ↑"].iloc[0] == "1.00 (1.00 to 1.00)"


def test_page_says_so_when_no_image_is_classified_correctly(done: tuple[Path, bool]) -> None:
    out, _ = done
    predictions = pd.read_csv(out / "evaluation" / "predictions.csv")
    predictions["predicted"] = predictions.dx.map(lambda code: "nv" if code != "nv" else "mel")
    bundle = load_bundle(out / "run" / "bundle")
    assert explain_one_per_class(bundle, out / "data", predictions) is None
    page = demo_page(out, bundle, None, None, 0.3).html()
    assert "No test image was classified correctly" in page

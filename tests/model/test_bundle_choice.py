"""Which bundle a command takes, and that nothing else is ever taken for one."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from cli_support import content, dermlens, refused
from dermlens.errors import ModelError, UsageError
from dermlens.model.bundle import SHIPPED, Bundle, bundle_and_rest, load_bundle
from dermlens.report.benchmark_report import describe
from serving_support import picture, save_untrained


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("saved") / "mine" / "bundle")


@pytest.fixture
def places(saved: Path, tmp_path: Path) -> Path:
    """Everything that people have given instead of a bundle, and folders of images."""
    run = tmp_path / "runs" / "mine"
    shutil.copytree(saved, run / "bundle")
    (run / "configuration.json").write_text('{"data_fingerprint": ""}')
    picture(1).save(run / "history.png")
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "configuration.json", tmp_path / "begun")
    shutil.copytree(saved, tmp_path / "beheaded")
    (tmp_path / "beheaded" / "bundle.json").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "exported" / "saved_model").mkdir(parents=True)
    (tmp_path / "exported" / "saved_model" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "exported" / "model.tflite").write_bytes(b"")
    for name in ("model.keras", "weights.h5"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    picture(2).save(tmp_path / "photos" / "deep" / "b.png")
    (tmp_path / "photos" / "configuration.json").write_text("{}")
    picture(1).save(tmp_path / "a.png")
    return tmp_path


INSTEAD: tuple[tuple[str, str], ...] = (
    ("runs/mine", r"runs/mine is a run folder; its bundle is \S+runs/mine/bundle\. Give that\."),
    ("runs", r"runs is not a bundle but holds \S+runs/mine/bundle\."),
    ("begun", "begun is a run folder without a bundle: its training has not finished"),
    ("beheaded", r"beheaded is an incomplete bundle: bundle\.json is missing"),
    ("empty", r"empty is not a bundle: it holds no bundle\.json, and no image either"),
    ("exported", r"exported was written by 'dermlens export'; inference\.py runs it"),
    ("exported/saved_model", "was written by 'dermlens export'"),
    ("model.keras", r"model\.keras is a Keras model, not a bundle"),
    ("weights.h5", r"weights\.h5 is not a bundle but a file or folder of a model"),
)


@pytest.mark.parametrize(("name", "words"), INSTEAD)
def test_what_was_meant_as_a_bundle_is_refused(places: Path, name: str, words: str) -> None:
    for given in ([places / name], [places / name, places / "a.png"]):
        with pytest.raises(ModelError, match=words):
            bundle_and_rest(given)
    if (places / name).is_dir():
        with pytest.raises(ModelError, match=words):
            load_bundle(places / name)


def test_images_and_folders_of_images_leave_the_bundle_out(places: Path) -> None:
    for names in (["a.png"], ["photos"], ["photos", "a.png"], ["missing.png"]):
        given = [places / name for name in names]
        assert bundle_and_rest(given) == (SHIPPED, given)
    mine = places / "runs" / "mine" / "bundle"
    assert bundle_and_rest([mine, places / "photos"]) == (mine, [places / "photos"])


def test_a_model_behind_images_is_refused(places: Path) -> None:
    mine = places / "runs" / "mine" / "bundle"
    with pytest.raises(UsageError, match="Give one bundle at most, before everything else"):
        bundle_and_rest([places / "a.png", mine])
    with pytest.raises(UsageError, match="Give one bundle at most, before everything else"):
        bundle_and_rest([mine, mine])
    with pytest.raises(ModelError, match="is a run folder"):
        bundle_and_rest([places / "a.png", mine.parent])


@pytest.mark.parametrize("command", ["predict", "explain", "compare", "evaluate", "benchmark"])
def test_commands_refuse_a_run_folder_and_write_nothing(places: Path, command: str) -> None:
    before = content(places)
    out = places / ("out.csv" if command == "predict" else "out")
    for rest in ([], [places / "a.png"]):
        outcome = dermlens(command, places / "runs" / "mine", *rest, "--out", out)
        refused(outcome, "runs/mine is a run folder; its bundle is")
    assert content(places) == before


def test_every_output_of_a_prediction_names_the_model(saved: Path, tmp_path: Path) -> None:
    label = load_bundle(saved).label
    picture(1).save(tmp_path / "a.png")
    outcome = dermlens("predict", saved, tmp_path / "a.png", "--out", tmp_path / "p.csv")
    assert outcome.code == 0 and f"Model: {label}\n" in outcome.out
    assert pd.read_csv(tmp_path / "p.csv").model.tolist() == [label]
    outcome = dermlens("explain", saved, tmp_path / "a.png", "--out", tmp_path / "e")
    assert outcome.code == 0 and f"Model: {label}\n" in outcome.out
    explained = json.loads((tmp_path / "e" / "a" / "explanation.json").read_text())
    assert explained["model"] == load_bundle(saved).identity


def test_every_table_of_an_evaluation_names_the_model(
    saved: Path, prepared: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(saved)
    given = ("evaluate", saved, prepared, "--resamples", 2, "--out", tmp_path / "e")
    outcome = dermlens(*given)
    assert outcome.code == 0 and f"Model: {bundle.label}\n" in outcome.out
    assert set(pd.read_csv(tmp_path / "e" / "predictions.csv").model) == {bundle.label}
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["model"] == bundle.identity


def test_a_benchmark_report_names_the_model(saved: Path) -> None:
    bundle = load_bundle(saved)
    measured = {"n_images": 1, "n_lesions": 1, "per_class": {}, "methods": [], "controls": []}
    assert f"Model: {bundle.label}." in describe({**measured, "model": bundle.identity})
    assert "Model" not in describe(measured)


def test_the_fingerprint_is_of_weights_and_calibration(saved: Path, tmp_path: Path) -> None:
    bundle = load_bundle(saved)
    assert bundle.name == "mine/bundle"
    assert bundle.label == f"mine/bundle (tiny, fingerprint {bundle.facts['checksum'][:12]})"
    moved = shutil.copytree(saved, tmp_path / "elsewhere")
    assert load_bundle(moved).identity["fingerprint"] == bundle.identity["fingerprint"]
    shipped = Bundle(SHIPPED, bundle.architecture, bundle.calibration, bundle.facts, bundle.model)
    assert shipped.name == "ham10000"


def test_names_that_are_not_utf_8_lose_nothing(saved: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/mole_\xff.png"))
    picture(1).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", odd)
    os.mkfifo(tmp_path / "pipe.png")
    table = tmp_path / "p.csv"
    outcome = dermlens("predict", saved, tmp_path / "a.png", odd, "--out", table)
    assert outcome.code == 0
    assert pd.read_csv(table).image_id.tolist() == ["a", "mole_\\udcff"]
    refused(
        dermlens("predict", saved, tmp_path / "pipe.png", "--out", table),
        "pipe.png is neither a file nor a folder",
    )

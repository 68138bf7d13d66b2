"""Bundles: which one is used, how a finished one is packed, what it says about odd images."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermlens.errors import DataError, ModelError, UsageError
from dermlens.model import bundle_choice as bundles
from dermlens.model.bundle import bundle_and_rest, find_bundle, load_bundle
from dermlens.model.classifier import Architecture
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.finishing import pack
from dermlens.model.training import train
from dermlens.model.weights import rounded
from dermlens.serve.prediction import predict_split
from tests_support import register_tiny_backbone


def empty_bundle(folder: Path, age: float = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text("{}")
    made = time.time() - age
    os.utime(folder / "bundle.json", (made, made))
    return folder


def test_newest_bundle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "SHIPPED", tmp_path / "shipped")
    with pytest.raises(ModelError, match="make demo"):
        find_bundle(None, tmp_path)
    for age, name in ((30, "demo/run"), (10, "runs/second"), (20, "runs/first")):
        empty_bundle(tmp_path / name / "bundle", age)
    assert find_bundle(None, tmp_path) == tmp_path / "runs/second/bundle"
    assert find_bundle(Path("mine"), tmp_path) == Path("mine")
    empty_bundle(tmp_path / "shipped", 99)
    assert find_bundle(None, tmp_path) == tmp_path / "shipped"


def test_a_bundle_before_the_images_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, mine = empty_bundle(tmp_path / "shipped"), empty_bundle(tmp_path / "mine")
    monkeypatch.setattr(bundles, "SHIPPED", shipped)
    image = tmp_path / "photo.jpg"
    assert bundle_and_rest([mine, image]) == (mine, [image])
    with pytest.raises(UsageError, match=r"mine is a bundle\. Give one bundle at most, before"):
        bundle_and_rest([image, mine])
    assert bundle_and_rest([]) == (shipped, [])


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    register_tiny_backbone()
    out = tmp_path_factory.mktemp("run") / "run"
    setup = TrainingConfiguration(
        architecture=Architecture("tiny", (32, 40)), epochs=2, batch_size=8, train_from="all"
    )
    train(prepared, out, setup)
    return out / "bundle", prepared


def test_a_finished_bundle_knows_odd_images(finished) -> None:
    bundle = load_bundle(finished[0])
    assert bundle.ood_detector is not None
    odd = np.random.default_rng(0).integers(0, 256, (6, 32, 40, 3), dtype=np.uint8)
    logits, scores = bundle.logits_and_ood_scores(odd, batch_size=4)
    np.testing.assert_allclose(logits, bundle.logits(odd), atol=1e-5)
    assert (scores > bundle.ood_detector.threshold).all()
    _, turned = bundle.logits_and_ood_scores(odd, tta_views=8, batch_size=4)
    assert turned.shape == (6,) and not np.allclose(turned, scores)


def test_packing_halves_the_weights_and_calibrates_what_is_stored(finished, tmp_path) -> None:
    whole = load_bundle(finished[0])
    packed = pack(*finished, tmp_path / "packed")
    again = load_bundle(tmp_path / "packed")
    assert again.facts["storage"] == "float16"
    columns = ["image_id", "split", "perceptual_hash"]
    assert list(pd.read_csv(tmp_path / "packed" / "split.csv")) == columns
    for mine, kept in zip(
        again.model.get_weights(), rounded(whole.model.get_weights(), "float16"), strict=True
    ):
        np.testing.assert_array_equal(mine, kept)
    assert again.calibration == packed.calibration
    assert again.best_epoch == whole.best_epoch and again.history.equals(whole.history)
    table = predict_split(again, finished[1], "validation")
    assert table.abstain.mean() == pytest.approx(again.ood_detector.false_rejects)


def test_packing_averages_two_runs_of_one_network(finished, tmp_path) -> None:
    bundle, data = finished
    start = {"architecture": Architecture("tiny", (32, 40)), "batch_size": 8, "train_from": "all"}
    begun = {"weights": str(bundle / "weights.h5"), "head_epochs": 0, "epochs": 1}
    train(data, tmp_path / "more", TrainingConfiguration(**start, **begun))
    more = tmp_path / "more" / "bundle"
    packed = pack(more, data, tmp_path / "packed", dtype="float32", average_with=bundle)
    weights = [load_bundle(path).model.get_weights() for path in (bundle, more)]
    for mine, one, other in zip(packed.model.get_weights(), *weights, strict=True):
        np.testing.assert_allclose(mine, (one + other) / 2, atol=1e-6)
    assert packed.facts["training"]["averaged_with"]["epochs"] == 2
    smaller = TrainingConfiguration(**start | {"architecture": Architecture("tiny", (32, 32))})
    train(data, tmp_path / "smaller", replace(smaller, epochs=1))
    with pytest.raises(ModelError, match="cannot be averaged"):
        pack(more, data, tmp_path / "no", average_with=tmp_path / "smaller" / "bundle")
    assert not (tmp_path / "no").exists()


def test_statistics_keep_their_range_in_float16() -> None:
    kernel, variance = np.full((2, 2), 0.1, np.float32), np.array([1e6, 1e-9], np.float32)
    small = rounded([kernel, variance], "float16")
    np.testing.assert_array_equal(small[1], variance)
    assert (small[0] != kernel).all() and np.allclose(small[0], kernel, rtol=1e-3)


def test_packing_refuses_another_split_and_unknown_storage(finished, tmp_path) -> None:
    bundle, data = finished
    table = pd.read_csv(data / "manifest.csv")
    with pytest.raises(UsageError, match="Unknown storage 'int8'"):
        pack(bundle, data, tmp_path / "packed", dtype="int8")
    other = tmp_path / "other"
    shutil.copytree(data, other, ignore=shutil.ignore_patterns("cache"))
    # Two lesions of one class change places: as good a split, but not the one trained on.
    places = [table.index[(table.dx == "nv") & (table.split == name)] for name in ("train", "test")]
    table.loc[places[0], "split"], table.loc[places[1], "split"] = "test", "train"
    table.to_csv(other / "manifest.csv", index=False)
    with pytest.raises(DataError, match="is not the data set"):
        pack(bundle, other, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("as_file", [True, False])
def test_packing_refuses_what_is_no_bundle_before_the_work(
    finished, tmp_path, monkeypatch, as_file
) -> None:
    run, data = finished
    thesis = tmp_path / "thesis"
    if not as_file:
        thesis.mkdir()
    mine = thesis if as_file else thesis / "chapter.txt"
    mine.write_text("years of work")
    monkeypatch.setattr("dermlens.model.finishing.load_bundle", None)
    with pytest.raises(DataError, match="thesis"):
        pack(run, data, thesis)
    assert mine.read_text() == "years of work"


def test_bundle_with_a_copy_beside_it_is_replaced_but_not_with_notes(finished, tmp_path) -> None:
    run, data = finished
    pack(run, data, tmp_path / "packed")
    (tmp_path / "packed" / "int8").mkdir()
    (tmp_path / "packed" / "int8" / "agreement.json").write_text("{}")
    pack(run, data, tmp_path / "packed")
    (tmp_path / "packed" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"have changed since: notes\.txt"):
        pack(run, data, tmp_path / "packed")
    assert (tmp_path / "packed" / "notes.txt").read_text() == "mine"


def test_bundle_of_an_earlier_version_is_replaced(finished, tmp_path) -> None:
    run, data = finished
    old = tmp_path / "packed"
    shutil.copytree(run, old, ignore=shutil.ignore_patterns(".dermlens", "int8"))
    pack(run, data, old)
    assert (old / ".dermlens").is_file()

"""Images that a model was trained on are named and left out, under whatever name they come."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermlens as dl
from cli_support import dermlens, refused
from conftest import HamSource, metadata
from dermlens.data.images import inspect_bytes
from dermlens.data.manifest import read_manifest
from dermlens.data.preparation import prepare
from dermlens.data.splits import read_checks, split_data_set
from dermlens.data.synthetic import draw
from dermlens.labels import HAM10000
from dermlens.model.bundle import SHIPPED, load_bundle
from dermlens.model.training import train
from dermlens.model.training_overlap import (
    MAX_HASH_DISTANCE,
    overlap_of,
    seen_images,
    training_overlap,
)
from tests_support import register_tiny_backbone, tiny_configuration


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle and the data set it was trained on."""
    register_tiny_backbone()
    folder = tmp_path_factory.mktemp("trained")
    source = HamSource(folder / "source", metadata(per_class=9)).write_archives()
    data = prepare(source.folder, folder / "data").data
    split_data_set(data)
    train(data, folder / "run", tiny_configuration(epochs=1))
    return folder / "run" / "bundle", data


def resplit(data: Path, out: Path) -> tuple[Path, set[str]]:
    """A copy of a data set under another split; and the ids in test that were in train before."""
    shutil.copytree(data, out)
    before = read_manifest(data).set_index("image_id").split
    table = split_data_set(out, seed=3)
    test = set(table.image_id[table.split == "test"])
    return out, {name for name in test if before[name] == "train"}


def test_a_bundle_knows_its_training_images(trained) -> None:
    bundle, data = trained
    table = read_manifest(data)
    seen = seen_images(load_bundle(bundle))
    train_rows = table[table.split == "train"]
    assert seen is not None
    assert seen.images == set(train_rows.image_id) and seen.lesions == set(train_rows.lesion_id)
    hashes = read_checks(data).set_index("image_id").perceptual_hash[train_rows.image_id]
    assert {row.tobytes().hex() for row in seen.hashes} == set(hashes)


def test_its_own_test_split_is_scored_whole(trained) -> None:
    bundle, data = trained
    loaded = load_bundle(bundle)
    for split in ("validation", "test"):
        assert training_overlap(loaded, data, split).table.empty
    overlap = training_overlap(loaded, data, "train")
    assert set(overlap.table.why) == {"image"} and len(overlap.table) == overlap.images


def test_evaluate_leaves_training_images_out_unless_allowed(trained, tmp_path) -> None:
    bundle, data = trained
    other, seen = resplit(data, tmp_path / "other")
    arguments = ("evaluate", bundle, other, "--resamples", 10, "--out", tmp_path / "e")
    table = read_manifest(other)
    lesions = table[table.split == "test"].lesion_id.isin(
        table[table.image_id.isin(seen)].lesion_id
    )
    outcome = dermlens(*arguments)
    assert outcome.code == 0, outcome.err
    count, whole = int(lesions.sum()), len(lesions)
    assert 0 < len(seen) <= count < whole
    assert f"The model was trained on {count} of the {whole} images ({len(seen)} by their ids" in (
        outcome.out
    )
    assert "They are left out; --allow-training-images" in outcome.out
    scored = pd.read_csv(tmp_path / "e" / "predictions.csv")
    assert len(scored) == whole - count and not set(scored.image_id) & seen
    named = pd.read_csv(tmp_path / "e" / "training_overlap.csv")
    assert set(named.image_id[named.why == "image"]) == seen and len(named) == count
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["training_overlap"]["all"] == count and metrics["n_images"] == whole - count
    outcome = dermlens(*arguments, "--allow-training-images")
    assert "They are scored all the same: the figures are too good." in outcome.out
    assert len(pd.read_csv(tmp_path / "e" / "predictions.csv")) == whole


def test_evaluate_on_the_training_split_alone_is_a_sentence(trained, tmp_path) -> None:
    bundle, data = trained
    arguments = ("evaluate", bundle, data, "--split", "train", "--resamples", 5)
    refused(dermlens(*arguments, "--out", tmp_path / "e"), "none is left to score")
    allowed = dermlens(*arguments, "--out", tmp_path / "e", "--allow-training-images")
    assert allowed.code == 0, allowed.err


def test_the_python_functions_do_the_same(trained, tmp_path, capsys) -> None:
    bundle, data = trained
    other, seen = resplit(data, tmp_path / "other")
    found = dl.evaluate(dl.load(bundle), other, resamples=5)
    assert not set(found.predictions.image_id) & seen
    assert found.metrics["training_overlap"]["image"] == len(seen)
    kept = dl.evaluate(dl.load(bundle), other, resamples=5, allow_training_images=True)
    assert set(kept.predictions.image_id) >= seen
    assert "The model was trained on" in capsys.readouterr().out


def test_benchmark_leaves_training_images_out_unless_allowed(trained, tmp_path) -> None:
    bundle, data = trained
    other, seen = resplit(data, tmp_path / "other")
    quick = ("--n", 99, "--methods", "grad_cam", "--robustness", 0, "--randomization", 0)
    quick += ("--pairs", 0, "--probes", 0, "--no-controls", "--steps", 2)
    for more, out in (((), "left_out"), (("--allow-training-images",), "kept")):
        outcome = dermlens("benchmark", bundle, other, *quick, *more, "--out", tmp_path / out)
        assert outcome.code == 0, outcome.err
        assert "The model was trained on" in outcome.out
        measured = set(pd.read_csv(tmp_path / out / "images.csv").image_id)
        assert measured >= seen if more else not measured & seen
        summary = json.loads((tmp_path / out / "summary.json").read_text())
        assert summary["training_overlap"]["image"] == len(seen)


def copied(picture: Image.Image, scale: float, quality: int) -> bytes:
    """A picture scaled and saved again."""
    stream = io.BytesIO()
    size = (round(picture.width * scale), round(picture.height * scale))
    picture.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


TURNS = (None, *Image.Transpose)


@pytest.mark.parametrize(("scale", "quality"), [(1, 50), (0.5, 90), (2, 75)])
@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: "upright" if turn is None else turn.name)
def test_copies_under_other_names_are_known_by_their_look(
    scale: float, quality: int, turn: Image.Transpose | None
) -> None:
    pictures = [Image.fromarray(draw(code, seed=k)[0]) for k, code in enumerate(HAM10000.codes)]
    stored = [inspect_bytes(copied(one, 1, 95), "x")["perceptual_hash"] for one in pictures]
    names = [f"ISIC_{number}" for number in range(4)]
    bundle = with_split(names, names, stored[:4])
    turned = pictures if turn is None else [one.transpose(turn) for one in pictures]
    found = [inspect_bytes(copied(one, scale, quality), "x") for one in turned]
    rows = pd.DataFrame({"image_id": [f"clinic_{number}" for number in range(7)]})
    hashes = {name: one["perceptual_hash"] for name, one in zip(rows.image_id, found, strict=True)}
    overlap = overlap_of(bundle, rows, rows, hashes).table
    assert list(overlap.image_id) == [f"clinic_{number}" for number in range(4)]
    assert set(overlap.why) == {"near-duplicate"}


def test_images_of_the_same_lesion_or_patient_count() -> None:
    bundle = SimpleNamespace(path=None, facts={"data": {}})
    table = pd.DataFrame(
        {
            "image_id": ["a1", "a2", "b1", "c1", "d1", "e1"],
            "lesion_id": ["A", "A", "B", "C", "7", "E"],
            "patient_id": ["P", "P", "P", None, None, None],
        }
    )
    assert overlap_of(bundle, table, table, {}).table.empty
    overlap = overlap_of(with_split(["a1", "x"], ["A", "C"]), table, table, {}).table
    assert overlap.set_index("image_id").why.to_dict() == {
        "a1": "image",
        "a2": "lesion",
        "b1": "patient",
        "c1": "lesion",
    }
    # A bare number is no name: lesion 7 of another data set is another lesion.
    assert overlap_of(with_split(["x"], ["7"]), table, table, {}).table.empty


def with_split(
    images: list[str], lesions: list[str], hashes: list[str] | None = None
) -> SimpleNamespace:
    """What stands for a bundle that was trained on these."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    table = pd.DataFrame({"image_id": images, "split": "train"})
    table["lesion_id"] = pd.Series(lesions)
    if hashes is not None:
        table["perceptual_hash"] = hashes
    table.to_csv(folder / "split.csv", index=False)
    return SimpleNamespace(path=folder, facts={"data": {}})


def test_the_shipped_model_knows_its_images_by_id_and_by_look() -> None:
    facts = json.loads((SHIPPED / "bundle.json").read_text())
    seen = seen_images(SimpleNamespace(path=SHIPPED, facts=facts))
    assert seen is not None
    assert len(seen.images) == len(seen.hashes) == facts["data"]["split"]["images"]["train"]
    assert seen.hashes.dtype == np.uint8 and seen.hashes.shape[1] == 32
    one = bytearray(seen.hashes[17].tobytes())
    one[0] ^= 0b111
    rows = pd.DataFrame({"image_id": ["mine", "other"], "lesion_id": ["1", "2"]})
    hashes = {"mine": one.hex(), "other": bytes(32).hex()}
    bundle = SimpleNamespace(path=SHIPPED, facts=facts)
    overlap = overlap_of(bundle, rows, rows, hashes).table
    assert overlap.to_dict("records") == [{"image_id": "mine", "why": "near-duplicate"}]
    assert MAX_HASH_DISTANCE < 30


def test_labelled_folders_too(trained, tmp_path) -> None:
    bundle, data = trained
    table = read_manifest(data)
    table.loc[:, ["image_id", "dx"]].to_csv(tmp_path / "labels.csv", index=False)
    arguments = (
        "evaluate",
        bundle,
        "--images",
        data / "images",
        "--labels",
        tmp_path / "labels.csv",
    )
    outcome = dermlens(*arguments, "--resamples", 5, "--out", tmp_path / "e")
    assert outcome.code == 0, outcome.err
    scored = pd.read_csv(tmp_path / "e" / "predictions.csv")
    assert set(scored.image_id) == set(table.image_id[table.split != "train"])
    more = ("--resamples", 5, "--out", tmp_path / "e", "--allow-training-images")
    assert dermlens(*arguments, *more).code == 0
    assert len(pd.read_csv(tmp_path / "e" / "predictions.csv")) == len(table)

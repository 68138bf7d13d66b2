"""Images that serve training alone: which are taken, how they are read, what is told of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cli_support import dermlens, refused
from conftest import HamSource, jpeg_bytes, metadata
from dermlens.data.manifest import read_manifest
from dermlens.data.preparation import prepare
from dermlens.errors import DataError, ModelError
from dermlens.model.bundle import load_bundle
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.extra_images import StackedImages
from dermlens.model.finishing import pack
from dermlens.model.training import train
from dermlens.model.training_data import load_training_data, training_set
from dermlens.model.training_overlap import seen_images, training_overlap
from dermlens.report.cards import model_card
from dermlens.report.evaluation_report import write_evaluation
from dermlens.serve.prediction import predict_split
from tests_support import tiny_configuration


class Pictures(HamSource):
    """A source with pictures of its own, but for copies of others."""

    def __init__(self, folder: Path, table: pd.DataFrame, copies: dict[str, bytes]) -> None:
        super().__init__(folder, table)
        self.copies = copies

    def images(self) -> dict[str, bytes]:
        made = {name: jpeg_bytes(1000 + k) for k, name in enumerate(self.table.image_id)}
        return made | self.copies


@pytest.fixture(scope="module")
def more(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images, of which some belong to the data set, each in another way."""
    table = read_manifest(prepared)
    test, train_row = table[table.split == "test"].iloc[0], table[table.split == "train"].iloc[0]
    rows = metadata(per_class=2).iloc[:16].copy().reset_index(drop=True)
    rows["image_id"] = [f"ISIC_9{k:06d}" for k in range(16)]
    rows["lesion_id"] = [f"NEW_{k:03d}" for k in range(16)]
    rows.loc[0, "image_id"] = train_row.image_id
    rows.loc[1, "lesion_id"] = test.lesion_id
    rows.loc[2, "lesion_id"] = train_row.lesion_id
    copies = {"ISIC_9000003": (prepared / str(test.path)).read_bytes()}
    source = Pictures(tmp_path_factory.mktemp("more") / "source", rows, copies)
    return prepare(source.write_archives().folder, source.folder.parent / "data").data


def test_what_belongs_to_held_images_is_left_out(
    prepared: Path, more: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_training_data(prepared, [more])
    (extra,) = data.extras
    chosen = set(extra.chosen.image_id)
    everything = set(read_manifest(more).image_id)
    by_id = {read_manifest(prepared).query("split == 'train'").image_id.iloc[0]}
    assert everything - chosen == by_id | {"ISIC_9000001", "ISIC_9000003"}
    # Another photograph of a lesion that is trained on may be trained on too.
    assert "ISIC_9000002" in chosen
    assert (
        "left out: 1 of the data set itself, 1 of lesions that are validated or tested on, 1 that "
        "look like validation or test images." in capsys.readouterr().out
    )
    assert data.count == len(data.rows["train"]) + 13
    assert data.identity != data.fingerprint and data.identity.startswith(data.fingerprint)


def test_a_data_set_given_twice_counts_once(prepared: Path, more: Path) -> None:
    with pytest.raises(DataError, match=r"No image of .* can be trained on besides; left out"):
        load_training_data(prepared, [more, more])
    with pytest.raises(DataError, match="No image"):
        load_training_data(prepared, [prepared])


def test_images_labels_and_weights_go_together(prepared: Path, more: Path) -> None:
    """Every image of a training set is the one its label belongs to."""
    data = load_training_data(prepared, [more])
    recipe = TrainingConfiguration()
    drawn = training_set(data, recipe, (32, 40))
    plain = training_set(load_training_data(prepared), recipe, (32, 40))
    assert len(drawn.rows) == data.count and len(drawn.labels) == data.count
    old = len(plain.rows)
    np.testing.assert_array_equal(drawn.images[drawn.rows[:old]], plain.images[plain.rows])
    np.testing.assert_array_equal(drawn.labels[:old], plain.labels)
    (extra,) = data.extras
    pixels = extra.images((32, 40))
    np.testing.assert_array_equal(drawn.images[drawn.rows[old:]], pixels[extra.rows])
    codes = [data.classes.codes[k] for k in drawn.labels[old:]]
    assert codes == list(extra.chosen.dx)
    counts = np.bincount(drawn.labels, minlength=7)
    expected = counts[drawn.labels] ** -0.5
    np.testing.assert_allclose(drawn.weights, expected / expected.mean(), rtol=1e-6)


def test_stacked_images_are_read_like_one_array() -> None:
    parts = [np.arange(24).reshape(2, 2, 2, 3), 100 + np.arange(60).reshape(5, 2, 2, 3)]
    stacked, whole = StackedImages(parts), np.concatenate(parts)
    assert stacked.shape == whole.shape and len(stacked) == 7
    rows = np.array([6, 0, 1, 2, 2, 5])
    np.testing.assert_array_equal(stacked[rows], whole[rows])


@pytest.fixture(scope="module")
def run(prepared: Path, more: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests_support import register_tiny_backbone

    register_tiny_backbone()
    out = tmp_path_factory.mktemp("extra") / "run"
    train(prepared, out, tiny_configuration(epochs=2), extra=[more])
    return out


def test_a_bundle_tells_what_it_was_trained_on_besides(
    run: Path, prepared: Path, more: Path, tmp_path: Path
) -> None:
    steps = pd.read_csv(run / "history.csv").step
    count = load_training_data(prepared, [more]).count
    assert list(steps) == [count // 8, 2 * (count // 8)]
    facts = json.loads((run / "bundle" / "bundle.json").read_text())["training"]["extra"]
    assert [one["images"] for one in facts] == [13]
    assert sum(facts[0]["per_class"].values()) == 13
    bundle = load_bundle(run / "bundle")
    extra = set(load_training_data(prepared, [more]).extras[0].chosen.image_id)
    seen = seen_images(bundle)
    assert seen is not None and extra <= seen.images
    # The extra data set cannot be used to measure it, by ids as by looks.
    shutil.copytree(more, tmp_path / "more")
    overlap = training_overlap(bundle, tmp_path / "more", "all")
    assert extra <= set(overlap.table.image_id)
    packed = pack(run / "bundle", prepared, tmp_path / "packed")
    kept, stored = (pd.read_csv(p / "split.csv") for p in (packed.path, run / "bundle"))
    assert set(kept[kept.split == "extra"].image_id) == extra
    assert kept.perceptual_hash.notna().sum() == stored.perceptual_hash.notna().sum()
    # The prior of the balanced rule is that of the data set itself.
    plain = load_training_data(prepared)
    counts = np.bincount(plain.labels[plain.rows["train"]], minlength=7)
    prior = np.log(counts / counts.sum())
    np.testing.assert_allclose(bundle.calibration.balanced_rule.log_prior, prior, atol=1e-6)
    table = predict_split(bundle, prepared, "test")
    write_evaluation(table, bundle.calibration, tmp_path / "evaluation", resamples=20)
    card = model_card(bundle, tmp_path / "evaluation")
    assert "| Trained on besides | HAM10000: 13 images, none of a lesion that is" in card


def test_a_run_is_resumed_with_the_same_extra_images_only(
    run: Path, prepared: Path, more: Path, tmp_path: Path
) -> None:
    again = train(prepared, run, tiny_configuration(epochs=2), extra=[more], resume=True)
    assert again.path == run / "bundle"
    with pytest.raises(ModelError, match="was started on other data"):
        train(prepared, run, tiny_configuration(epochs=2), resume=True)
    # As a teacher it is of the same data set all the same.
    how = tiny_configuration(epochs=1, teachers=(str(run / "bundle"),))
    train(prepared, tmp_path / "student", how)


def test_the_command_line_takes_them(prepared: Path, more: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    refused(
        dermlens("train", prepared, "--out", tmp_path / "run", "--extra", nothing),
        "nothing is not a prepared data set",
    )
    assert not (tmp_path / "run").exists()

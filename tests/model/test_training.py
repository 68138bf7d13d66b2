"""Training: what is learned, what is frozen, what a killed run leaves and how it goes on."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pandas as pd
import pytest

from dermlens.errors import DataError, DermlensError, ModelError, UsageError
from dermlens.labels import HAM10000
from dermlens.locks import folder_lock
from dermlens.model.bundle import load_bundle
from dermlens.model.calibration import negative_log_likelihood
from dermlens.model.classifier import Architecture, build_classifier
from dermlens.model.configuration import preset
from dermlens.model.finetuning import choose_trainable
from dermlens.model.optimization import (
    RunningAverage,
    TwoRateOptimizer,
    classification_loss,
    learning_rate_factor,
)
from dermlens.model.prediction import Predictor
from dermlens.model.training import train
from dermlens.model.weights import Coverage, full_coverage, no_coverage, save_by_name
from tests_support import tiny_configuration as configuration

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    from tests_support import register_tiny_backbone

    register_tiny_backbone()
    out = tmp_path_factory.mktemp("run") / "run"
    return train(prepared, out, configuration(epochs=6)), out


def test_run_leaves_a_bundle_history_and_logs(trained):
    bundle, out = trained
    history = pd.read_csv(out / "history.csv")
    assert list(history.epoch) == [1, 2, 3, 4, 5, 6] and set(history.phase) == {"finetuning"}
    assert list((out / "logs").glob("events*"))
    assert not (out / "checkpoint").exists()
    stored = json.loads((out / "bundle" / "bundle.json").read_text())
    assert stored["training"]["best_epoch"] == int(history.epoch[history.validation_loss.argmin()])
    assert stored["architecture"]["input_size"] == [32, 40]
    assert stored["data"]["fingerprint"]
    assert bundle.history.equals(history)


def test_it_learns(trained):
    history = trained[0].history
    assert history.train_loss.iloc[-1] < 0.8 * history.train_loss.iloc[0]
    assert history.validation_macro_auc.iloc[-1] > 0.75


def test_bundle_holds_the_averaged_weights_of_the_best_epoch(trained, prepared):
    """Its validation loss is the lowest of the history."""
    from dermlens.data.cache import cached_images
    from dermlens.data.manifest import class_indices, read_manifest

    bundle, _ = trained
    table = read_manifest(prepared)
    rows = np.flatnonzero(table.split == "validation")
    logits = bundle.predictor().logits(cached_images(prepared, table, (32, 40)), rows)
    labels = class_indices(table, HAM10000)[rows]
    loss = negative_log_likelihood(logits, labels)
    assert loss == pytest.approx(bundle.history.validation_loss.min(), abs=1e-5)


def test_bundle_loads_again_and_predicts_the_same(trained):
    bundle, out = trained
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), dtype=np.uint8)
    again = load_bundle(out / "bundle")
    assert np.array_equal(again.logits(images), bundle.logits(images))
    assert again.calibration == bundle.calibration


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("weights.h5", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "weights.h5 has changed"),
        ("weights.h5", None, "weights.h5 is missing"),
        ("bundle.json", lambda b: b[: len(b) // 2], "not valid JSON"),
        ("bundle.json", lambda b: b.replace(b'"format": 2', b'"format": 99'), "format 99"),
    ],
)
def test_damaged_bundles_are_refused(trained, tmp_path, name, change, words):
    import shutil

    shutil.copytree(trained[1] / "bundle", tmp_path / "bundle")
    path = tmp_path / "bundle" / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DermlensError, match=words):
        load_bundle(tmp_path / "bundle")


def test_finished_runs_are_not_overwritten(trained, prepared):
    bundle, out = trained
    with pytest.raises(ModelError, match="already holds a run"):
        train(prepared, out, configuration(epochs=6))
    with pytest.raises(ModelError, match="another epochs"):
        train(prepared, out, configuration(epochs=7), resume=True)
    assert train(prepared, out, configuration(epochs=6), resume=True).path == bundle.path


def test_run_in_use_and_data_being_changed_are_refused(tiny, prepared, tmp_path):
    for used in (tmp_path / "run", prepared):
        with pytest.raises(UsageError, match="is using"), in_use_elsewhere(used):
            train(prepared, tmp_path / "run", configuration(epochs=1))
        assert list(tmp_path.iterdir()) == []


@contextmanager
def in_use_elsewhere(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder in another thread."""
    taken, done = Event(), Event()

    def hold() -> None:
        with folder_lock(folder):
            taken.set()
            done.wait()

    thread = Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_files_of_the_user_beside_a_checkpoint_stay(tiny, prepared, tmp_path):
    mine = tmp_path / "run" / "checkpoint" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    train(prepared, tmp_path / "run", configuration(epochs=1))
    assert [path.name for path in mine.parent.iterdir()] == ["notes.txt"]


SCRIPT = """
import sys
from pathlib import Path
from threading import Event, Thread
sys.path[:0] = {path!r}
from tests_support import register_tiny_backbone
register_tiny_backbone()
from tests_support import tiny_configuration as configuration
from dermlens.model.training import train
train(Path({data!r}), Path({out!r}), configuration(epochs=5), resume="--resume" in sys.argv)
"""


def run_and_kill(prepared: Path, out: Path, after_epoch: int | None, *options: str) -> None:
    """Train in a process of its own; kill -9 it as soon as an epoch has been recorded."""
    script = SCRIPT.format(path=[str(HERE), str(HERE.parent)], data=str(prepared), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script, *options])
    state = out / "checkpoint" / "state.npz"
    from dermlens.model.checkpoint import read_state

    while process.poll() is None:
        written = after_epoch is not None and state.is_file()
        if written and read_state(state)[0]["next_epoch"] >= after_epoch:
            process.kill()
        time.sleep(0.02)
    process.wait()


def test_run_killed_twice_ends_where_the_uninterrupted_one_ends(tiny, prepared, tmp_path):
    whole = train(prepared, tmp_path / "whole", configuration(epochs=5))
    out = tmp_path / "killed"
    run_and_kill(prepared, out, 1)
    run_and_kill(prepared, out, 3, "--resume")
    assert not (out / "bundle").exists()
    resumed = train(prepared, out, configuration(epochs=5), resume=True)
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        assert np.abs(a - b).max() <= 1e-5
    columns = ["epoch", "train_loss", "validation_loss", "validation_balanced_accuracy"]
    assert np.allclose(whole.history[columns], resumed.history[columns], atol=1e-5)


def test_other_data_cannot_resume_a_run(tiny, prepared, tmp_path):
    out = tmp_path / "run"
    train(prepared, out, configuration(epochs=1))
    stored = json.loads((out / "configuration.json").read_text())
    stored["data_fingerprint"] = "0" * 64
    (out / "configuration.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match="started on other data"):
        train(prepared, out, configuration(epochs=1), resume=True)


def test_class_missing_from_a_split_is_refused_before_anything_is_written(tiny, prepared, tmp_path):
    import shutil

    data = shutil.copytree(prepared, tmp_path / "data")
    table = pd.read_csv(data / "manifest.csv")
    table.loc[(table.dx == "df") & (table.split == "validation"), "split"] = "train"
    table.to_csv(data / "manifest.csv", index=False)
    with pytest.raises(DataError, match="validation split holds no image of df"):
        train(data, tmp_path / "run", configuration())
    assert not (tmp_path / "run").exists()


def test_head_phase_changes_only_the_last_layer_and_learns(tiny, prepared, tmp_path):
    start = build_classifier(Architecture(tiny, (32, 40)), seed=3)
    path = save_by_name(start, tmp_path / "weights.h5")
    setup = configuration(
        weights=str(path),
        head_epochs=15,
        head_rate=0.05,
        epochs=1,
        train_from="none",
        pretrained_rate=0.0,
        fresh_rate=0.0,
        average_decay=0.0,
    )
    bundle = train(prepared, tmp_path / "run", setup)
    history = bundle.history
    assert list(history.phase) == ["head"] * 15 + ["finetuning"]
    head = history[history.phase == "head"]
    assert head.train_loss.iloc[-1] < 0.8 * head.train_loss.iloc[0]
    for name in ("conv1_conv", "conv1_bn", "conv2_conv", "conv2_bn"):
        before, after = (m.get_layer(name).get_weights() for m in (start, bundle.model))
        for a, b in zip(before, after, strict=True):
            assert np.array_equal(a, b), name
    assert head.validation_balanced_accuracy.max() == pytest.approx(
        history.validation_balanced_accuracy.iloc[-1]
    )


def test_progressive_resizing_ends_at_the_full_size(tiny, prepared, tmp_path):
    setup = configuration(epochs=3, early_size=(24, 32), early_epochs=2)
    bundle = train(prepared, tmp_path / "run", setup)
    assert bundle.model.input_shape == (None, 32, 40, 3)
    stored = json.loads((tmp_path / "run" / "bundle" / "bundle.json").read_text())
    assert (prepared / "cache" / "24x32").is_dir()
    # The score at the small size does not compete.
    assert stored["training"]["early_epochs"] == 2
    assert stored["training"]["best_epoch"] == 3
    with pytest.raises(UsageError, match="no effect without early_size"):
        configuration(epochs=3, early_epochs=2)
    with pytest.raises(UsageError, match="leave at least one epoch"):
        configuration(epochs=2, early_size=(24, 32), early_epochs=2)


def test_images_of_a_size_are_mapped_once(prepared):
    from dermlens.model.training_data import load_training_data

    data = load_training_data(prepared)
    assert data.images((32, 40)) is data.images((32, 40))
    assert data.images((24, 32)).shape[1:] == (24, 32, 3)


def test_early_stopping(tiny, prepared, tmp_path):
    setup = configuration(epochs=30, patience=2, fresh_rate=0.0, average_decay=0.0)
    history = train(prepared, tmp_path / "run", setup).history
    assert len(history) == 3


def test_training_that_goes_astray_is_said_and_leaves_no_bundle(tiny, prepared, tmp_path):
    setup = configuration(epochs=1, fresh_rate=1e30, pretrained_rate=1e30, average_decay=0.0)
    with pytest.raises(ModelError, match="loss of epoch 1 is not a number"):
        train(prepared, tmp_path / "run", setup)
    assert not (tmp_path / "run" / "bundle").exists()


def test_what_is_trained(tiny):
    model = build_classifier(Architecture(tiny))
    covered = Coverage(("conv1_conv", "conv1_bn"), ("conv2_conv", "conv2_bn"))
    pretrained, fresh = choose_trainable(model, covered, "conv1")
    assert [v.path for v in pretrained] == ["conv1_conv/kernel", "conv1_conv/bias"]
    assert {v.path.split("/")[0] for v in fresh} == {"conv2_conv", "conv2_bn", "logits"}
    assert not model.get_layer("conv1_bn").trainable and model.get_layer("conv2_bn").trainable
    pretrained, fresh = choose_trainable(model, covered, "none")
    assert pretrained == [] and len(fresh) == 6
    pretrained, fresh = choose_trainable(model, full_coverage(model), "conv2")
    assert {v.path.split("/")[0] for v in pretrained} == {"conv2_conv"}
    assert [v.path for v in fresh] == ["logits/kernel", "logits/bias"]
    pretrained, fresh = choose_trainable(model, no_coverage(model), "all")
    assert pretrained == [] and len(fresh) == 10


def test_loss_by_hand():
    logits = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32)
    labels = np.array([[1, 0], [1, 0]], np.float32)
    weights = np.array([1.0, 3.0], np.float32)
    p = np.array([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))])
    plain = float(classification_loss(labels, logits, weights))
    assert plain == pytest.approx((-np.log(p) * weights).mean(), rel=1e-5)
    focal = float(classification_loss(labels, logits, weights, focal_gamma=2.0))
    assert focal == pytest.approx((-np.log(p) * (1 - p) ** 2 * weights).mean(), rel=1e-5)
    smooth = float(classification_loss(labels, logits, weights, smoothing=0.2))
    expected = (-(0.9 * np.log(p) + 0.1 * np.log(1 - p)) * weights).mean()
    assert smooth == pytest.approx(expected, rel=1e-5)
    mixed = np.array([[0.75, 0.25], [1, 0]], np.float32)
    expected = np.array([-0.75 * np.log(p[0]) - 0.25 * np.log(1 - p[0]), -np.log(p[1])])
    loss = float(classification_loss(mixed, logits, weights))
    assert loss == pytest.approx((expected * weights).mean(), rel=1e-5)


def test_schedule():
    factors = [learning_rate_factor(step, 10, 100) for step in range(101)]
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert factors[10] == 1.0 and factors[55] == pytest.approx(0.5) and factors[100] == 0.0
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_two_rates_and_one_clip():
    import keras

    slow = keras.Variable(np.ones((2, 2), np.float32))
    fast = keras.Variable(np.ones((2, 2), np.float32))
    optimizer = TwoRateOptimizer(
        [slow], [fast], pretrained_rate=1e-3, fresh_rate=1e-2, weight_decay=0.0, clip_norm=1.0
    )
    import tensorflow as tf

    norm = optimizer.apply([tf.ones((2, 2)) * 30, tf.ones((2, 2)) * 40])
    assert float(norm) == pytest.approx(100)
    # Adam's first step has the size of the rate whatever the gradient.
    assert 1 - slow.numpy().mean() == pytest.approx(1e-3, rel=1e-3)
    assert 1 - fast.numpy().mean() == pytest.approx(1e-2, rel=1e-3)
    optimizer.scale_rates(0.5)
    assert optimizer.rate == pytest.approx(5e-3)


def test_running_average_and_swap():
    import keras

    variable = keras.Variable(np.zeros(1, np.float32))
    average = RunningAverage([variable], 0.5)
    variable.assign([8.0])
    average.update(100)
    variable.assign([2.0])
    average.update(101)
    assert average.averages[0].numpy()[0] == 3.0  # 0 -> 4 -> 3
    average.swap()
    assert variable.numpy()[0] == 3.0 and average.averages[0].numpy()[0] == 2.0


def test_predictions_do_not_depend_on_the_batch(trained):
    bundle, _ = trained
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 40, 3), dtype=np.uint8)
    results = [Predictor(bundle.model, batch_size=b).logits(images) for b in (1, 3, 7, 16)]
    for other in results[1:]:
        assert np.allclose(results[0], other, atol=1e-5)


def test_views_average_the_dihedral_group(trained):
    bundle, _ = trained
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), dtype=np.uint8)
    eight = bundle.logits(images, tta_views=8)
    turned = bundle._transposed()
    plain = [images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1]]
    straight = [bundle.model(np.float32(v)).numpy() for v in plain]
    sideways = [turned(np.float32(v.transpose(0, 2, 1, 3))).numpy() for v in plain]
    assert np.allclose(eight, np.mean(straight + sideways, axis=0), atol=1e-5)
    assert np.allclose(bundle.logits(images, tta_views=4), np.mean(straight, axis=0), atol=1e-5)
    assert np.allclose(bundle.logits(images[:, ::-1], tta_views=8), eight, atol=1e-5)
    with pytest.raises(ModelError, match="Use 1, 4 or 8"):
        bundle.logits(images, tta_views=3)


def test_presets_are_complete():
    assert preset("ham10000").architecture.backbone == "resnet50"
    assert preset("demo", epochs=2).epochs == 2
    with pytest.raises(UsageError, match="Unknown preset"):
        preset("best")


def test_resizing_of_a_preset_follows_epochs_and_size():
    recipe = preset("ham10000")
    assert (recipe.epochs, recipe.early_epochs, recipe.early_size) == (26, 17, (144, 192))
    short = preset("ham10000", epochs=13)
    assert (short.early_epochs, short.early_size) == (8, (144, 192))
    one = preset("ham10000", epochs=1)
    assert (one.early_epochs, one.early_size) == (0, None)
    square = preset("ham10000", architecture=Architecture("resnet50", (224, 224)))
    assert (square.early_epochs, square.early_size) == (17, (160, 160))
    assert preset("ham10000", architecture=Architecture("tiny", (32, 40))).early_size is None
    own = preset("ham10000", epochs=13, early_epochs=2, early_size=(96, 128))
    assert (own.early_epochs, own.early_size) == (2, (96, 128))

"""Learning from a teacher and from mixed images."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dermlens.data.augmentation import AUGMENTATIONS, augmentation_named, mix
from dermlens.data.cache import cached_images
from dermlens.data.degradation import Degradation
from dermlens.data.manifest import read_manifest
from dermlens.data.splits import split_data_set
from dermlens.errors import DataError, ModelError, UsageError
from dermlens.model import finetuning, training
from dermlens.model.bundle import load_bundle
from dermlens.model.classifier import Architecture
from dermlens.model.distillation import load_teachers
from dermlens.model.optimization import distillation_loss
from dermlens.model.training import train
from dermlens.model.training_data import load_training_data
from tests_support import tiny_configuration as configuration


def test_divergence_from_the_teacher_by_hand():
    taught = np.array([[2.0, 0.0], [0.0, 0.0]], np.float32)
    logits = np.array([[0.0, 0.0], [0.0, 0.0]], np.float32)
    weights = np.array([2.0, 5.0], np.float32)
    q = 1 / (1 + np.exp(-1))
    divergence = q * np.log(q / 0.5) + (1 - q) * np.log((1 - q) / 0.5)
    loss = float(distillation_loss(taught, logits, weights, temperature=2.0))
    assert loss == pytest.approx(4 * 2 * divergence / 2, rel=1e-5)
    assert float(distillation_loss(taught, taught + 3, weights, temperature=2.0)) == pytest.approx(
        0, abs=1e-6
    )


def test_mixing_uses_one_share_for_image_labels_and_weights():
    images = np.arange(5, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 3), np.float32)
    truth = np.eye(5, dtype=np.float32)
    mixed, shares, weights = (
        value.numpy() for value in mix(images, truth, np.arange(5.0, dtype="float32"), [1, 2], 1.0)
    )
    own = shares.diagonal()
    assert np.all((own >= 0.5) & (own <= 1)) and len(np.unique(own)) == 5
    assert shares == pytest.approx(
        np.diag(own) + np.roll(np.eye(5), 1, axis=1) * (1 - own)[:, None]
    )
    expected = shares @ np.arange(5)
    assert weights == pytest.approx(expected, rel=1e-6)
    assert mixed == pytest.approx(expected[:, None, None, None] * np.ones((1, 2, 2, 3)), rel=1e-6)
    again = mix(images, truth, np.arange(5.0, dtype="float32"), [1, 2], 1.0)[0].numpy()
    assert np.array_equal(mixed, again)


def test_small_alpha_leaves_most_images_alone():
    shares = mix(
        np.zeros((200, 1, 1, 3), np.float32),
        np.eye(200, dtype=np.float32),
        np.ones(200, np.float32),
        [0, 0],
        0.05,
    )[1].numpy()
    own = shares.diagonal()
    assert np.isfinite(own).all() and np.mean(own > 0.98) > 0.7


def test_augmentations_have_names():
    assert augmentation_named("strong").zoom > augmentation_named("normal").zoom
    with pytest.raises(UsageError, match=", ".join(AUGMENTATIONS)):
        augmentation_named("weak")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher_share": 1.5}, "teacher_share"),
        ({"teacher_temperature": 0.0}, "teacher_temperature"),
        ({"mixup": -1.0}, "mixup"),
    ],
)
def test_values_out_of_range_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        configuration(**changes)


@pytest.fixture(scope="module")
def teacher(prepared, tmp_path_factory):
    from tests_support import register_tiny_backbone

    register_tiny_backbone()
    out = tmp_path_factory.mktemp("teacher") / "run"
    # Another input size than the student's.
    how = configuration(architecture=Architecture("tiny", (40, 48)), epochs=6)
    train(prepared, out, how)
    return out / "bundle"


def test_a_student_that_gets_only_the_teacher_follows_it(prepared, teacher, tmp_path):
    """Without a share for the labels, its outputs approach the teacher's all the same."""
    images, larger = (
        cached_images(prepared, read_manifest(prepared), size)[:40] for size in ((32, 40), (40, 48))
    )
    taught = load_bundle(teacher)
    how = {"teachers": (str(teacher),), "teacher_share": 1.0, "mixup": 0.2, "seed": 3}
    student = train(prepared, tmp_path / "student", configuration(epochs=8, **how))
    alone = train(prepared, tmp_path / "alone", configuration(epochs=1, seed=3))
    goal = taught.logits(larger)
    near, far = (np.abs(bundle.logits(images) - goal).mean() for bundle in (student, alone))
    assert near < 0.6 * far
    facts = json.loads((tmp_path / "student" / "bundle" / "bundle.json").read_text())["training"]
    assert facts["teachers"] == [
        {
            "backbone": "tiny",
            "best_epoch": taught.best_epoch,
            "license": taught.facts["license"],
        }
    ]
    assert facts["mixup"] == 0.2


def test_several_teachers_say_the_mean_of_their_logits(prepared, teacher, tmp_path):
    other = tmp_path / "other"
    train(prepared, other, configuration(epochs=2, seed=9))
    data = load_training_data(prepared)
    images, larger = (data.images(size)[:6].astype(np.float32) for size in ((32, 40), (40, 48)))

    def said(*paths):
        teach = load_teachers(configuration(teachers=tuple(map(str, paths))), data)
        return teach(images, [larger] * len(teach.sizes)).numpy()

    first, second = said(teacher), said(other / "bundle")
    np.testing.assert_allclose(first, load_bundle(teacher).logits(larger[:6]), atol=1e-4)
    assert np.abs(first - second).max() > 0.05
    np.testing.assert_allclose(said(teacher, other / "bundle"), (first + second) / 2, atol=1e-5)
    assert load_teachers(configuration(), data) is None


def test_the_student_sees_worse_images_than_its_teachers(prepared, teacher, tmp_path, monkeypatch):
    """What is learned from is said of the images as they are."""
    taught, learned = [], []
    degrade = finetuning.degrade

    def watched(images, seed, how):
        learned.append(images)
        return degrade(images, seed, how)

    def teachers(configuration, data):
        teach = load_teachers(configuration, data)

        class Watched:
            sizes = teach.sizes

            def __call__(self, images, others):
                taught.append(images)
                return teach(images, others)

        return Watched()

    monkeypatch.setattr(finetuning, "degrade", watched)
    monkeypatch.setattr(training, "load_teachers", teachers)
    how = configuration(epochs=1, teachers=(str(teacher),), degradation=Degradation(exposure=3.0))
    plain = train(prepared, tmp_path / "plain", replace(how, degradation=Degradation()))
    worse = train(prepared, tmp_path / "worse", how)
    # Traced once each: what is made worse is what the teachers have looked at.
    assert [one is other for one, other in zip(taught, learned, strict=True)] == [True, True]
    images = cached_images(prepared, read_manifest(prepared), (32, 40))[:8]
    assert np.abs(plain.logits(images) - worse.logits(images)).max() > 0.05


@pytest.mark.filterwarnings("ignore:Even though")
def test_a_teacher_sees_the_same_pictures_in_its_own_size(prepared, teacher, tmp_path, monkeypatch):
    """Turned, colored, erased and mixed alike, early small images of the student included."""
    import tensorflow as tf

    seen = []

    class Watched:
        sizes = ((96, 120),)

        def __call__(self, images, others):
            seen.append((images.numpy(), others[0].numpy()))
            return load_teachers(how, load_training_data(prepared))(images, others)

    how = configuration(
        architecture=Architecture("tiny", (80, 100)),
        epochs=2,
        early_size=(64, 80),
        early_epochs=1,
        teachers=(str(teacher),),
        mixup=0.5,
        augmentation=augmentation_named("strong"),
    )
    monkeypatch.setattr(training, "load_teachers", lambda *_: Watched())
    tf.config.run_functions_eagerly(True)
    try:
        train(prepared, tmp_path / "run", how)
    finally:
        tf.config.run_functions_eagerly(False)
    assert {images.shape[1:3] for images, _ in seen} == {(64, 80), (80, 100)}
    for images, larger in (seen[0], seen[-1]):
        assert larger.shape == (len(images), 96, 120, 3)
        small = [tf.image.resize(one, (16, 20), antialias=True).numpy() for one in (images, larger)]
        apart = np.abs(small[0] - small[1]).mean((1, 2, 3))
        strangers = np.abs(small[0] - np.roll(small[1], 1, axis=0)).mean((1, 2, 3))
        assert apart.max() < 1 and strangers.min() > 4, (apart, strangers)


def test_a_teacher_that_saw_other_data_or_classes_is_refused(prepared, teacher, tmp_path):
    import shutil

    other = tmp_path / "data"
    shutil.copytree(prepared, other)
    split_data_set(other, seed=5)
    with pytest.raises(DataError, match="not the data set"):
        train(other, tmp_path / "run", configuration(teachers=(str(teacher),)))
    with pytest.raises(ModelError, match="not a bundle"):
        train(prepared, tmp_path / "run", configuration(teachers=(str(tmp_path),)))
    assert not (tmp_path / "run").exists()

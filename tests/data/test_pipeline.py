"""The pixel cache, the order of images, augmentation and batches."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermlens.data.augmentation import NO_AUGMENTATION, Augmentation, augment
from dermlens.data.cache import cached_images
from dermlens.data.images import load_image
from dermlens.data.label_table import read_labels
from dermlens.data.manifest import class_indices, read_manifest
from dermlens.data.pipeline import (
    ImbalanceHandling,
    TrainingSet,
    epoch_order,
    sample_weights,
    training_batches,
)
from dermlens.errors import DataError, UsageError
from dermlens.labels import HAM10000

LABELS = np.repeat(np.arange(3), [80, 16, 4])


def test_cache_holds_the_fitted_images(prepared):
    table = read_manifest(prepared)
    images = cached_images(prepared, table, (24, 32))
    assert images.shape == (84, 24, 32, 3) and images.dtype == np.uint8
    for row in (0, 50):
        assert np.array_equal(images[row], load_image(prepared / table.path[row], (24, 32)))


def test_cache_is_made_once_and_again_when_images_change(prepared, monkeypatch):
    table = read_manifest(prepared)
    cached_images(prepared, table, (20, 20))
    calls = []
    monkeypatch.setattr(
        "dermlens.data.cache.load_image",
        lambda path, size: calls.append(path) or np.zeros((*size, 3), np.uint8),
    )
    cached_images(prepared, table, (20, 20))
    assert calls == []
    cached_images(prepared, table.iloc[:10], (20, 20))
    assert len(calls) == 10


CACHE = """
import os, sys
from pathlib import Path
from dermlens.data import cache
from dermlens.data.manifest import read_manifest
data = Path(sys.argv[1])
{change}
cache.cached_images(data, read_manifest(data), (int(sys.argv[2]), 40))
"""


def copied(prepared: Path, folder: Path) -> Path:
    """A copy of a data set without its caches."""
    return shutil.copytree(prepared, folder / "data", ignore=shutil.ignore_patterns("cache"))


def filling(data: Path, height: int = 30, change: str = "") -> list[str]:
    """The command that fills a pixel cache in another process."""
    return [sys.executable, "-c", CACHE.format(change=change), str(data), str(height)]


def cache_files(data: Path) -> set[str]:
    """Every file of the caches."""
    return {p.relative_to(data).as_posix() for p in (data / "cache").rglob("*") if p.is_file()}


def test_processes_that_need_the_same_pixels_decode_them_once(prepared, tmp_path):
    data = copied(prepared, tmp_path)
    runs = [subprocess.Popen(filling(data), stdout=subprocess.PIPE) for _ in range(3)]
    for run in runs:
        run.communicate()
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert cache_files(data) == {"cache/30x40/images.npy", "cache/30x40/index.json"}
    table = read_manifest(data)
    images = cached_images(data, table, (30, 40))
    for row, path in enumerate(table.path):
        assert np.array_equal(images[row], load_image(data / path, (30, 40)))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_full_disk_is_a_sentence_and_leaves_nothing(prepared, tmp_path):
    data = copied(prepared, tmp_path)
    # A file that may not grow meets the same calls as a disk that is full.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    done = subprocess.run(filling(data, change=limit), capture_output=True, text=True)
    assert done.returncode == 1
    assert "DataError: The pixel cache needs 0.0 GB in" in done.stderr.splitlines()[-1]
    assert cache_files(data) == set()
    assert sorted(p.name for p in data.parent.iterdir()) == ["data"]


@pytest.mark.skipif(sys.platform != "linux", reason="no SIGKILL on Windows")
def test_cache_killed_half_way_is_made_by_the_next_run(prepared, tmp_path):
    data = copied(prepared, tmp_path)
    die = "cache.load_image = lambda *_: os.kill(os.getpid(), 9)"
    assert subprocess.run(filling(data, change=die)).returncode == -9
    assert not (data / "cache" / "30x40" / "images.npy").exists()
    assert subprocess.run(filling(data)).returncode == 0
    assert cache_files(data) == {"cache/30x40/images.npy", "cache/30x40/index.json"}


def test_damaged_cache_is_made_again(prepared, tmp_path):
    data = copied(prepared, tmp_path)
    table = read_manifest(data)
    whole = np.array(cached_images(data, table, (20, 20)))
    path = data / "cache" / "20x20" / "images.npy"
    for broken in (path.read_bytes()[:-1], b"", b"not an array"):
        path.unlink()
        path.write_bytes(broken)
        assert np.array_equal(cached_images(data, table, (20, 20)), whole)


def test_weights_follow_the_power():
    counts = np.array([80, 16, 4])
    for power in (0.0, 0.5, 1.0):
        weights = sample_weights(LABELS, ImbalanceHandling("weights", power), 3)
        assert weights.mean() == pytest.approx(1)
        per_class = weights[[0, 80, 96]]
        assert np.allclose(per_class / per_class[0], (counts / 80.0) ** -power)
    assert (sample_weights(LABELS, ImbalanceHandling("sampling", 1.0), 3) == 1).all()
    assert (sample_weights(LABELS, ImbalanceHandling("none"), 3) == 1).all()


def test_order_is_a_permutation_set_by_seed_and_epoch():
    handling = ImbalanceHandling("weights")
    first = epoch_order(LABELS, handling, 3, seed=1, epoch=2)
    assert sorted(first) == list(range(100))
    assert np.array_equal(first, epoch_order(LABELS, handling, 3, seed=1, epoch=2))
    assert not np.array_equal(first, epoch_order(LABELS, handling, 3, seed=1, epoch=3))
    assert not np.array_equal(first, epoch_order(LABELS, handling, 3, seed=2, epoch=2))


def test_balanced_sampling_draws_classes_equally_often():
    order = epoch_order(LABELS, ImbalanceHandling("sampling", 1.0), 3, seed=0, epoch=0)
    counts = np.bincount(LABELS[order])
    assert counts.sum() == 100
    assert counts.max() - counts.min() <= 3
    half = epoch_order(LABELS, ImbalanceHandling("sampling", 0.5), 3, seed=0, epoch=0)
    expected = np.sqrt([80, 16, 4]) / np.sqrt([80, 16, 4]).sum() * 100
    assert np.abs(np.bincount(LABELS[half]) - expected).max() <= 2


def test_unknown_handling_is_refused():
    with pytest.raises(UsageError, match="Unknown imbalance handling 'oversample'"):
        ImbalanceHandling("oversample")


def training(prepared, size=(24, 32)):
    table = read_manifest(prepared)
    labels = class_indices(table, HAM10000)
    images = cached_images(prepared, table, size)
    return TrainingSet(images, np.arange(len(table)), labels, np.ones(len(table), np.float32))


def test_batches_without_augmentation_are_the_images_in_order(prepared):
    data = training(prepared)
    order = np.random.default_rng(0).permutation(84)
    batches = list(training_batches(data, order, batch_size=8).as_numpy_iterator())
    assert len(batches) == 10
    for number, (images, labels, _) in enumerate(batches):
        rows = order[number * 8 : number * 8 + 8]
        assert np.array_equal(images, data.images[rows].astype(np.float32))
        assert np.array_equal(labels, data.labels[rows])


def test_batches_are_reproducible_and_differ_between_epochs(prepared):
    data, order, how = training(prepared), np.arange(84), Augmentation()

    def first(epoch, workers):
        batches = training_batches(
            data, order, batch_size=8, augmentation=how, seed=5, epoch=epoch, workers=workers
        )
        return list(batches.as_numpy_iterator())

    once, again, later = first(0, 1), first(0, 2), first(1, 1)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(once, again, strict=True))
    assert not np.array_equal(once[0][0], later[0][0])
    assert not np.array_equal(once[0][0][0], once[1][0][0])


def test_batch_larger_than_the_split_is_refused(prepared):
    with pytest.raises(DataError, match="smaller --batch-size"):
        training_batches(training(prepared), np.arange(84), batch_size=100)


def picture(height=24, width=32):
    generator = np.random.default_rng(0)
    return generator.uniform(20, 235, (6, height, width, 3)).astype(np.float32)


def test_no_augmentation_changes_nothing():
    images = picture()
    assert np.array_equal(augment(images, [0, 0], NO_AUGMENTATION).numpy(), images)


def only(**strength) -> Augmentation:
    return Augmentation(
        **{**{k: 0 for k in Augmentation().to_json()}, "dihedral": False, **strength}
    )


def test_zero_strength_in_every_operation_is_the_identity():
    images = picture()
    varied = augment(images, [1, 2], only(erasing=1e-9)).numpy()
    assert np.allclose(varied, images, atol=1e-2)


def test_brightness_adds_the_same_to_every_pixel():
    images = np.full((6, 8, 8, 3), 120, np.float32)
    shift = augment(images, [1, 2], only(brightness=0.1)).numpy() - images
    assert np.allclose(shift.std(axis=(1, 2, 3)), 0, atol=1e-3)
    assert np.abs(shift).max() <= 25.6
    assert len(np.unique(shift[:, 0, 0, 0].round(2))) == 6


def test_contrast_keeps_the_mean_color():
    images = picture()
    varied = augment(images, [1, 2], only(contrast=0.1)).numpy()
    assert np.allclose(varied.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=0.5)
    assert not np.allclose(varied, images, atol=1)


def test_hue_and_saturation_keep_grays_gray():
    gray = np.repeat(np.linspace(10, 240, 64, dtype=np.float32).reshape(1, 8, 8, 1), 3, axis=3)
    varied = augment(np.repeat(gray, 4, 0), [1, 2], only(hue=20.0, saturation=0.4)).numpy()
    assert np.allclose(varied, gray, atol=1e-2)


def test_rotation_keeps_the_center_where_it_is():
    """A disk in the middle of a non-square image stays in place under every rotation."""
    y, x = np.mgrid[:48, :64]
    disk = np.where((y - 23.5) ** 2 + (x - 31.5) ** 2 < 100, 200, 50).astype(np.float32)
    images = np.repeat(np.repeat(disk[None, :, :, None], 3, 3), 8, 0)
    varied = augment(images, [3, 4], only(dihedral=True)).numpy()
    assert np.abs(varied - images).mean() < 4


def test_erasing_paints_one_rectangle_with_the_mean_color():
    images = picture(40, 40)
    varied = augment(images, [3, 4], only(erasing=1.0, erased_area=0.2)).numpy()
    for before, after in zip(images, varied, strict=True):
        changed = np.abs(before - after).max(axis=2) > 1e-3
        assert 0 < changed.mean() < 0.25
        assert np.allclose(after[changed], before.mean(axis=(0, 1)), atol=1e-2)


def test_labels_one_hot_and_plain(tmp_path):
    one_hot = tmp_path / "truth.csv"
    one_hot.write_text(
        "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_1,1.0,0,0,0,0,0,0\nISIC_2,0,0,0,0,0,0,1.0\n"
    )
    table = read_labels(one_hot, HAM10000)
    assert list(table.image_id) == ["ISIC_1", "ISIC_2"] and list(table.dx) == ["mel", "vasc"]
    plain = tmp_path / "labels.csv"
    plain.write_text("image_id;dx;age\nISIC_1.jpg;MEL;30\n")
    table = read_labels(plain, HAM10000)
    assert table.to_dict("records") == [{"image_id": "ISIC_1", "age": 30.0, "dx": "mel"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,MEL,NV\na,1,0\n", "neither a column dx"),
        ("name,dx\na,mel\n", "no column image_id or image"),
        ("image_id,dx\na,scc\n", "diagnosis 'scc'"),
        ("image_id,dx\na,mel\na,nv\n", "lists image a twice"),
        ("image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\na,1,1,0,0,0,0,0\n", "a has 2 classes marked"),
        ("image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\na,0,0,0,0,0,0,0\n", "a has 0 classes marked"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, text, words):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_labels(tmp_path / "labels.csv", HAM10000)


def test_class_indices_follow_the_alphabet():
    table = pd.DataFrame({"dx": ["vasc", "akiec", "mel"]})
    assert class_indices(table, HAM10000).tolist() == [6, 0, 4]

"""The index of cases: whitening and search by hand, and what is refused as an index."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cases_support import give_index, plain_index, random_index
from dermlens.errors import ModelError
from dermlens.labels import HAM10000
from dermlens.model import stored_arrays
from dermlens.model.bundle import SHIPPED, load_bundle
from dermlens.model.case_index import (
    FILE,
    CaseIndex,
    _arrays,
    _checksum,
    _facts,
    fit_whitening,
    read_index,
    write_index,
)
from dermlens.model.stored_arrays import pack_members
from serving_support import save_untrained

QUERY = np.array([[1.0, 0.0]])


def test_whitened_training_features_have_no_correlation_and_one_spread() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(500, 6)) @ generator.normal(size=(6, 6)) + 3.0
    whitening = fit_whitening(features, 4)
    turned = (features - whitening.mean) @ whitening.projection
    np.testing.assert_allclose(turned.T @ turned / len(turned), np.eye(4), atol=1e-4)
    # The strongest directions are kept, and each is an eigenvector of the covariance.
    values, vectors = np.linalg.eigh(np.cov(features.T, bias=True))
    expected = vectors[:, ::-1][:, :4] / np.sqrt(values[::-1][:4])
    np.testing.assert_allclose(np.abs(whitening.projection), np.abs(expected), rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(whitening(features), axis=1), 1, atol=1e-5)


def test_whitening_is_fitted_to_what_varies() -> None:
    features = np.zeros((6, 3))
    features[:, 1] = [1, -1, 2, -2, 0, 0]
    assert fit_whitening(features, 3).projection.shape == (3, 1)
    whitening = fit_whitening(features, 3)
    assert whitening(features[:2]).tolist() == [[1.0], [-1.0]]
    assert whitening(np.zeros((1, 3))).tolist() == [[0.0]]
    with pytest.raises(ModelError, match="same features"):
        fit_whitening(np.ones((4, 3)), 2)
    with pytest.raises(ModelError, match="at least two"):
        fit_whitening(np.array([[1.0, np.nan], [0.0, 1.0]]), 1)


def test_one_image_of_a_lesion_and_the_most_similar_first() -> None:
    index = plain_index()
    similarity = index.similarities(QUERY)[0]
    np.testing.assert_allclose(similarity, [1, 0.6, 0, 0, 0.8], atol=1e-3)
    found = index.nearest(similarity, 5)
    assert [case.image_id for case in found] == ["a1", "b2", "c1"]
    assert [case.similarity for case in found] == pytest.approx([1, 0.8, 0], abs=1e-3)
    assert found[1].distance == pytest.approx(0.2, abs=1e-3)
    assert (found[1].lesion_id, found[1].dx, found[1].dx_type) == ("B", "mel", "follow_up")
    assert [case.image_id for case in index.nearest(similarity, 5, dx="mel")] == ["b2", "c1"]
    assert index.nearest(similarity, 5, dx="vasc") == ()
    assert len(index.nearest(similarity, 1)) == 1


def test_a_lesion_is_left_out_with_all_its_images() -> None:
    index = plain_index()
    similarity = index.similarities(QUERY)[0]
    found = index.nearest(similarity, 5, without=("A",))
    assert [case.image_id for case in found] == ["b2", "c1"]


def test_of_equal_ones_the_earlier_counts_first() -> None:
    index = plain_index()
    found = index.nearest(np.full(5, 0.25), 5)
    assert [case.image_id for case in found] == ["a1", "b1", "c1"]


def test_the_threshold_leaves_the_asked_share_without_a_close_case() -> None:
    index = plain_index()
    angles = np.linspace(0, np.pi / 2, 20)
    images = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    own = np.array(["nv"] * 10 + ["mel"] * 10)
    best = index.best_of(images, own)
    # By hand: the first is a1 itself, the last b1, and none is known of another diagnosis.
    assert best[0] == pytest.approx(1, abs=1e-3) and best[-1] == pytest.approx(1, abs=1e-3)
    assert index.best_of(images[:1], np.array(["vasc"])).tolist() == [-1.0]
    for share in (0.0, 0.1, 0.25):
        threshold = index.with_threshold(images, own, share).threshold
        assert (best < threshold).mean() == pytest.approx(share)


def test_many_images_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    index, images = random_index("0" * 64), np.random.default_rng(1).normal(size=(7, 8))
    whole = index.similarities(images)
    monkeypatch.setattr("dermlens.model.case_index._BLOCK", 3)
    parts = list(index.blocks(images))
    assert [rows.stop - rows.start for rows, _ in parts] == [3, 3, 1]
    np.testing.assert_allclose(np.concatenate([one for _, one in parts]), whole, atol=1e-6)


def test_a_photograph_is_known_turned_and_slightly_changed() -> None:
    index = random_index("0" * 64)
    bits = np.unpackbits(index.hashes[9])
    mirrored = bits.reshape(16, 16) ^ (np.arange(16) % 2).astype(np.uint8)
    for changed in (0, 28):
        given = mirrored.ravel().copy()
        given[:changed] ^= 1
        assert index.known(np.packbits(given).tobytes().hex()) == (
            index.images[9],
            index.lesions[9],
        )
    given[:60] = 1 - given[:60]
    assert index.known(np.packbits(given).tobytes().hex()) is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_untrained(tmp_path_factory.mktemp("saved") / "bundle")
    give_index(folder)
    return folder


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


def read(folder: Path) -> CaseIndex | None:
    facts = json.loads((folder / "bundle.json").read_text())
    return read_index(folder, facts, HAM10000.codes)


def test_it_comes_back_as_it_was_written(bundle: Path) -> None:
    index, again = give_index(bundle, threshold=0.25), read(bundle)
    assert again is not None
    for name, values in vars(index).items():
        if isinstance(values, np.ndarray):
            assert np.array_equal(getattr(again, name), values), name
    assert (again.threshold, again.weights) == (0.25, index.weights)
    assert again.measured == index.measured
    before = (bundle / FILE).read_bytes()
    write_index(bundle / FILE, again)
    assert (bundle / FILE).read_bytes() == before


def test_an_index_changes_nothing_of_the_bundle(bundle: Path) -> None:
    with_index = load_bundle(bundle).identity
    (bundle / FILE).unlink()
    assert load_bundle(bundle).identity == with_index
    assert read(bundle) is None


def test_a_bundle_with_an_index_may_be_replaced(bundle: Path) -> None:
    save_untrained(bundle)
    # It was of the old weights.
    assert not (bundle / FILE).exists()


def test_an_index_of_other_weights_is_refused(bundle: Path) -> None:
    give_index(bundle, weights="ab" * 32)
    with pytest.raises(ModelError, match=r"made with other weights.*--build DATA") as refused:
        read(bundle)
    assert str(refused.value).endswith(".")


def tampered(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Change arrays or facts of an index, and seal it again as whoever makes one would."""
    index = read(folder)
    assert index is not None
    arrays, facts = _arrays(index), _facts(index)
    change(arrays, facts)
    try:
        facts.setdefault("checksum", _checksum(arrays, facts))
    except ValueError:
        facts["checksum"] = "0" * 64
    (folder / FILE).write_bytes(pack_members(arrays, facts, "cases.json"))


CHANGES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "checksum": (lambda a, f: f.update(checksum="0" * 64), "it has changed since"),
    "newer": (lambda a, f: f.update(format=2), "format must be at most 1"),
    "unknown field": (lambda a, f: f.update(more=1), "more is not known"),
    "threshold": (lambda a, f: f.update(threshold=2.0), "threshold must be at most 1"),
    "class": (lambda a, f: f["diagnoses"].__setitem__(0, "scc"), "'scc', which is none"),
    "columns": (lambda a, f: f["lesions"].pop(), "does not describe the 42 images"),
    "text": (lambda a, f: f["images"].__setitem__(0, 7), "images[0] must be a valid string"),
    "tally": (
        lambda a, f: f["measured"]["agreeing"].__setitem__(0, {"images": 1, "right": 2}),
        "more right answers",
    ),
    "votes": (lambda a, f: f["measured"]["agreeing"].pop(), "does not count agreement"),
    "missing": (lambda a, f: a.pop("mean"), "mean.npy is missing"),
    "not finite": (lambda a, f: a["mean"].fill(np.nan), "no finite number"),
    "integers": (lambda a, f: a.update(features=a["features"].astype(int)), "features.npy"),
    "rows": (lambda a, f: a.update(hashes=a["hashes"][1:]), "hashes.npy does not fit"),
    "hash type": (lambda a, f: a.update(hashes=a["hashes"].astype("u2")), "hashes.npy does"),
    "directions": (lambda a, f: a.update(projection=a["projection"][:, 1:]), "projection.npy"),
    "flat": (lambda a, f: a.update(features=a["features"].ravel()), "features.npy"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_cannot_be_true_is_refused(bundle: Path, name: str) -> None:
    change, words = CHANGES[name]
    tampered(bundle, change)
    with pytest.raises(ModelError) as refused:
        read(bundle)
    text = str(refused.value)
    assert words in text and "cases.npz cannot be used" in text and text.endswith("DATA'.")
    assert "\n" not in text


def test_damaged_archives_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (bundle / FILE).read_bytes()
    for bad in (b"", b"no archive", content[: len(content) // 2]):
        (bundle / FILE).write_bytes(bad)
        with pytest.raises(ModelError, match="cannot be used"):
            read(bundle)
    (bundle / FILE).write_bytes(content)
    monkeypatch.setattr(stored_arrays, "MAX_BYTES", 100)
    with pytest.raises(ModelError, match=r"features\.npy has [\d,]+ bytes"):
        read(bundle)


def test_objects_are_never_unpickled(bundle: Path) -> None:
    index = read(bundle)
    assert index is not None
    with zipfile.ZipFile(bundle / FILE, "w") as archive, archive.open("features.npy", "w") as file:
        np.lib.format.write_array(file, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ModelError, match=r"features\.npy does not hold"):
        read(bundle)


def test_the_shipped_index_belongs_to_the_shipped_model() -> None:
    assert (SHIPPED / FILE).stat().st_size <= 3_000_000
    index, split = read(SHIPPED), pd.read_csv(SHIPPED / "split.csv")
    assert index is not None and index.features.shape == (5598, 128)
    assert index.images.tolist() == split.image_id[split.split == "train"].tolist()
    assert set(index.diagnoses) == set(HAM10000.codes) and 0 < index.threshold < 1
    lengths = np.linalg.norm(index.features.astype(np.float32), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2e-3)
    measured = index.measured
    assert (measured.split, measured.answers.images) == ("test", 1205)
    assert sum(one.images for one in measured.agreeing) == 1205
    assert sum(one.right for one in measured.agreeing) == measured.answers.right


def test_rounding_to_storage_is_part_of_the_whitening() -> None:
    features = np.random.default_rng(3).normal(size=(50, 5))
    stored = fit_whitening(features, 3).stored()
    again = replace(stored).stored()
    assert np.array_equal(again.projection, stored.projection)
    assert np.array_equal(stored.projection.astype(np.float16), stored.projection)

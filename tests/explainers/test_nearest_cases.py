"""Finding and building: one pass, regions by hand, what agreement was worth, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import dermlens as dl
from cases_support import give_index
from dermlens.data.images import load_image
from dermlens.data.manifest import data_facts, read_manifest
from dermlens.errors import DataError, ModelError, UsageError
from dermlens.explainers.case_building import add_index, index_of_features, measure
from dermlens.explainers.nearest_cases import CaseFinder, FeatureReader, finder_of, index_of
from dermlens.labels import HAM10000
from dermlens.model.bundle import Bundle, load_bundle, save_bundle
from dermlens.model.case_index import FILE, VOTERS, Tally, weights_of
from dermlens.model.prediction import split_features, with_features
from serving_support import SIZE, adopted_bundle, picture, save_untrained, untrained_bundle

IMAGE = np.asarray(picture(3, *SIZE))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = save_untrained(tmp_path_factory.mktemp("cases") / "bundle")
    give_index(folder)
    return load_bundle(folder)


@pytest.fixture(scope="module")
def finder(bundle: Bundle) -> CaseFinder:
    return CaseFinder(bundle)


def test_features_are_those_of_the_out_of_distribution_detector(finder: CaseFinder) -> None:
    images = np.stack([IMAGE, IMAGE[::-1]])
    joined = with_features(finder.bundle.model)(images.astype(np.float32)).numpy()
    logits, features = finder.reader(images)
    for found, expected in zip((logits, features), split_features(joined, 7), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    again = finder.reader.many(images, batch_size=1)
    np.testing.assert_allclose(again[1], features, rtol=1e-4, atol=1e-5)


def test_a_region_weighs_the_cells_that_look_at_it(finder: CaseFinder) -> None:
    reader = finder.reader
    whole = reader.weights(None)
    assert whole.shape == (8, 12) and np.allclose(whole, 1 / 96)
    half = np.zeros(SIZE)
    half[:, 24:] = 1
    half[:, :8] = -5  # What speaks against marks nothing.
    cells = reader.weights(half)
    assert cells.sum() == pytest.approx(1) and np.all(cells >= 0)
    assert cells[:, :5].sum() < 0.01 and cells[:, 8:].std() < 1e-7
    assert cells[0, 8] > cells[0, 6] > cells[0, 5] > 0
    assert reader.weights(np.full(SIZE, 3.0)) == pytest.approx(whole)
    maps, _ = reader.features.run(IMAGE[None].astype(np.float32))
    expected = np.einsum("hwk,hw->k", maps[0], cells)
    np.testing.assert_allclose(reader(IMAGE[None], half)[1][0], expected, rtol=1e-4, atol=1e-5)
    for wrong in (np.ones((4, 4)), -np.ones(SIZE)):
        with pytest.raises(UsageError):
            reader(IMAGE[None], wrong)


def test_cases_of_the_two_most_probable_diagnoses(finder: CaseFinder) -> None:
    found = finder.find(IMAGE, count=3)
    probabilities = finder.bundle.probabilities(finder.bundle.logits(IMAGE[None]))[0]
    order = np.argsort(-probabilities)[:2]
    assert [one.code for one in found.leading] == [HAM10000.codes[k] for k in order]
    features = finder.reader(IMAGE[None])[1]
    similarity = finder.index.similarities(features)[0]
    for one, k in zip(found.leading, order, strict=True):
        rows = np.flatnonzero(finder.index.diagnoses == HAM10000.codes[k])
        best = rows[np.argsort(-similarity[rows])][:3]
        assert [case.image_id for case in one.nearest] == finder.index.images[best].tolist()
        assert one.probability == pytest.approx(probabilities[k], abs=1e-5) and one.close == 3
    overall = np.argsort(-similarity)[:VOTERS]
    assert [case.image_id for case in found.nearest] == finder.index.images[overall].tolist()
    assert found.agreeing == sum(case.dx == found.answer for case in found.nearest)
    told, first = found.to_json(), found.leading[0].nearest[0]
    case = told["leading"][0]["cases"][0]
    assert case["distance"] == pytest.approx(1 - case["similarity"])
    assert case["image_id"] == first.image_id and case["dx"] == told["leading"][0]["diagnosis"]
    assert told["agreeing"] == found.agreeing and told["region"] == ""


def test_what_is_far_is_not_close(bundle: Bundle, finder: CaseFinder) -> None:
    similarity = finder.index.similarities(finder.reader(IMAGE[None])[1])[0]
    first = finder.find(IMAGE).leading[0]
    limit = (first.nearest[1].similarity + first.nearest[2].similarity) / 2
    finder = CaseFinder(bundle)
    finder.index = replace(finder.index, threshold=limit)
    assert finder.find(IMAGE).leading[0].close == 2
    finder.index = replace(finder.index, threshold=float(similarity.max()) + 0.01)
    assert [one.close for one in finder.find(IMAGE).leading] == [0, 0]


def test_the_model_s_own_photograph_is_known_and_its_lesion_left_out(bundle: Bundle) -> None:
    from dermlens.data.images import perceptual_hash

    finder = CaseFinder(bundle)
    before = finder.find(IMAGE)
    assert before.known == ""
    itself = before.nearest[0]
    row = finder.index.images.tolist().index(itself.image_id)
    hashes = finder.index.hashes.copy()
    large = Image.fromarray(IMAGE).resize((160, 120))
    hashes[row] = np.frombuffer(bytes.fromhex(perceptual_hash(large)), np.uint8)
    finder.index = replace(finder.index, hashes=hashes)
    found = finder.find(IMAGE, photograph=np.asarray(large))
    assert found.known == itself.image_id
    shown = [*found.nearest, *(case for one in found.leading for case in one.nearest)]
    assert itself.lesion_id not in [case.lesion_id for case in shown]


def test_from_python(bundle: Bundle, tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    expected = CaseFinder(bundle).find(IMAGE)
    for given in (IMAGE, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert dl.nearest_cases(bundle, given).to_json() == expected.to_json()
    region = dl.explain(bundle, IMAGE, methods="grad_cam")["grad_cam"].maps[0]
    by_name = dl.nearest_cases(bundle, IMAGE, region="grad_cam", count=2)
    by_map = dl.nearest_cases(bundle, IMAGE, region=region, count=2)
    assert by_name.region == "Grad-CAM" and by_map.region == "a map"
    assert by_name.nearest == by_map.nearest and by_name.nearest != expected.nearest
    with pytest.raises(UsageError, match="belong to a bundle"):
        dl.nearest_cases(bundle.model, IMAGE)


def test_without_an_index_a_sentence_says_how_to_make_one(tmp_path: Path, capsys: Any) -> None:
    plain = load_bundle(save_untrained(tmp_path / "bundle"))
    assert index_of(plain) is None and finder_of(plain) is None
    with pytest.raises(ModelError, match=r"no index of cases.*dermlens cases .*--build DATA"):
        CaseFinder(plain)
    assert finder_of(adopted_bundle()) is None and finder_of(untrained_bundle()) is None
    (tmp_path / "bundle" / FILE).write_bytes(b"broken")
    assert finder_of(plain) is None
    assert "Without known cases. The index of cases" in capsys.readouterr().out


def test_an_index_of_another_network_is_refused(tmp_path: Path) -> None:
    from dermlens.model.case_index import Whitening

    folder = save_untrained(tmp_path / "bundle")
    whitening = Whitening(np.zeros(3, np.float32), np.ones((3, 8), np.float32))
    give_index(folder, whitening=whitening)
    with pytest.raises(ModelError, match="of another network"):
        CaseFinder(load_bundle(folder)).find(IMAGE)


def learned_from(data: Path, folder: Path) -> Bundle:
    """An untrained network that says that it learned from a data set."""
    bundle, table = untrained_bundle(), read_manifest(data)
    save_bundle(
        folder,
        model=bundle.model,
        architecture=bundle.architecture,
        calibration=bundle.calibration,
        training={},
        data={"fingerprint": data_facts(data).fingerprint},
        history=pd.DataFrame({"epoch": [0]}),
        split=table[["image_id", "split"]],
    )
    return load_bundle(folder)


def test_building_from_a_data_set(prepared: Path, tmp_path: Path) -> None:
    bundle = learned_from(prepared, tmp_path / "bundle")
    written = add_index(bundle, prepared)
    assert written == tmp_path / "bundle" / FILE
    assert load_bundle(tmp_path / "bundle").identity == bundle.identity
    finder, table = CaseFinder(bundle), read_manifest(prepared)
    train = table[table.split == "train"]
    assert finder.index.images.tolist() == train.image_id.tolist()
    assert finder.index.grounds.tolist() == ["histo"] * len(train)
    # 5 of 100 of few validation images: none has to be without a close case.
    images = np.stack([load_image(prepared / path, SIZE) for path in table.path])
    features = FeatureReader(bundle).many(images)[1]
    held = (table.split == "validation").to_numpy()
    best = finder.index.best_of(features[held], table.dx.to_numpy()[held])
    allowed = int(0.05 * held.sum())
    assert (best < finder.index.threshold - 1e-6).sum() == allowed
    # A training image is its own nearest case, unless it is known and left out.
    position = int(np.flatnonzero(table.split == "train")[0])
    similarity = finder.index.similarities(features[position : position + 1])[0]
    assert finder.index.nearest(similarity, 1)[0].image_id == table.image_id[position]
    found = finder.find(images[position], photograph=load_image(prepared / table.path[position]))
    assert found.known == table.image_id[position]
    assert table.lesion_id[position] not in [case.lesion_id for case in found.nearest]
    measured = finder.index.measured
    assert measured.split == "test"
    assert measured.answers.images == (table.split == "test").sum()
    assert sum(one.images for one in measured.agreeing) == measured.answers.images


def test_another_data_set_is_refused(prepared: Path, tmp_path: Path) -> None:
    bundle = load_bundle(save_untrained(tmp_path / "bundle"))
    with pytest.raises(DataError, match="is not the data set"):
        add_index(bundle, prepared)
    assert not (tmp_path / "bundle" / FILE).exists()


def small_table() -> tuple[np.ndarray, pd.DataFrame]:
    """Two diagnoses that lie apart in three dimensions; twelve lesions each to learn from."""
    generator = np.random.default_rng(2)
    splits = ["train"] * 12 + ["validation"] * 4 + ["test"] * 4
    rows = [(code, split) for code in ("nv", "mel") for split in splits]
    dx, split = map(list, zip(*rows, strict=True))
    centers = {"nv": [4.0, 0, 0], "mel": [-4.0, 0, 0]}
    features = np.array([centers[code] for code in dx]) + generator.normal(size=(len(dx), 3))
    ids = [f"i{k}" for k in range(len(dx))]
    table = pd.DataFrame({"image_id": ids, "lesion_id": ids, "dx": dx, "split": split})
    return features, table.assign(dx_type=None, perceptual_hash=None)


def test_what_agreement_is_worth_is_counted_on_test_images() -> None:
    features, table = small_table()
    predicted = table.dx.to_numpy().copy()
    predicted[table.index[table.split == "test"][0]] = "mel"  # An nv: wrong, and none agrees.
    index = index_of_features(features, predicted, table, HAM10000.codes, "ab" * 32)
    assert index.weights == "ab" * 32 and index.grounds.tolist() == [""] * 24
    found = index.measured
    assert found.answers == Tally(images=8, right=7)
    assert found.agreeing[VOTERS].right == found.agreeing[VOTERS].images
    assert sum(one.images for one in found.agreeing) == 8
    assert sum(one.right for one in found.agreeing) == 7
    wrong = [one for one in found.agreeing if one.images > one.right]
    assert wrong == [Tally(images=1, right=0)] and found.agreeing.index(wrong[0]) < VOTERS
    # By hand: the first test image again, all others left out.
    one = np.flatnonzero(table.split == "test")[:1]
    again = measure(index, features[one], np.array(["nv"]), np.array(["nv"]))
    assert again.answers == Tally(images=1, right=1) and again.agreeing[VOTERS].images == 1
    far = replace(index, threshold=1.0)
    again = measure(far, features[one], np.array(["nv"]), np.array(["mel"]))
    assert again.without_close == Tally(images=1, right=0) and again.own_without_close == 1


def test_classes_that_the_model_does_not_know_are_refused() -> None:
    features, table = small_table()
    with pytest.raises(ModelError, match="does not know the class 'mel'"):
        index_of_features(features, table.dx, table, ("nv", "bcc"), "ab" * 32)
    unsplit = table.assign(split=table.split.replace("validation", "train"))
    with pytest.raises(ModelError, match="needs validation images"):
        index_of_features(features, table.dx, unsplit, HAM10000.codes, "ab" * 32)


def test_the_weights_are_the_bundle_s_file_of_weights() -> None:
    assert weights_of({"sha256": {"weights.h5": "a", "split.csv": "b"}}) == "a"
    assert weights_of({"sha256": {"model.keras": "c"}}) == "c"
    assert weights_of({}) == ""

"""Predictions on splits, labelled folders and loose files: right rows, right order, right flags."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermlens.data.images import load_image
from dermlens.data.manifest import read_manifest
from dermlens.errors import DataError
from dermlens.labels import HAM10000
from dermlens.model.bundle import Bundle, save_bundle
from dermlens.model.calibration import Calibration, OperatingPoint
from dermlens.model.classifier import Architecture, build_classifier
from dermlens.report.facts import NO_BREAK
from dermlens.serve import prediction
from dermlens.serve.prediction import (
    describe_predictions,
    find_images,
    predict_external,
    predict_files,
    predict_split,
)
from tests_support import register_tiny_backbone

CODES = HAM10000.codes

SIZE = (32, 40)
LOGITS = [f"logit_{code}" for code in CODES]
PROBABILITIES = [f"probability_{code}" for code in CODES]


def point(name: str, codes: Sequence[str], threshold: float) -> OperatingPoint:
    return OperatingPoint(name, tuple(codes), threshold, 0.95, 0.95, 0.5, 10, 20)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained network with spread-out logits, and thresholds that split the images."""
    register_tiny_backbone()
    architecture = Architecture("tiny", SIZE)
    model = build_classifier(architecture, seed=1)
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([40 * kernel, bias])
    return save_bundle(
        tmp_path_factory.mktemp("model") / "bundle",
        model=model,
        architecture=architecture,
        calibration=Calibration(temperature=1.7, operating_points={}),
        training={},
        data={"synthetic": False},
        history=pd.DataFrame({"epoch": [1]}),
        split=pd.DataFrame({"image_id": ["a"]}),
        labels=HAM10000,
    )


@pytest.fixture(scope="module")
def flagged(bundle: Bundle, prepared: Path) -> Bundle:
    """The bundle with thresholds exactly at one image's score: at least it means flagged."""
    files = find_images([prepared / "images"])[:10]
    images = np.stack([load_image(path, SIZE) for path in files])
    shares = bundle.calibration.probabilities(bundle.logits(images))
    malignant = shares[:, [CODES.index(code) for code in HAM10000.malignant]].sum(axis=1)
    melanoma = shares[:, CODES.index("mel")]
    points = {
        "malignant": point("malignant", HAM10000.malignant, float(np.sort(malignant)[5])),
        "melanoma": point("melanoma", ["mel"], float(np.sort(melanoma)[7])),
    }
    calibration = Calibration(temperature=1.7, operating_points=points)
    return Bundle(bundle.path, bundle.architecture, calibration, bundle.facts, bundle.model)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """Three good images in nested folders and one that is cut off."""
    out = tmp_path / "photos"
    (out / "b" / "deep").mkdir(parents=True)
    source = find_images([prepared / "images"])
    shutil.copy(source[0], out / "z.JPG")
    shutil.copy(source[1], out / "b" / "deep" / "m.jpeg")
    shutil.copy(source[2], out / "b" / "a.jpg")
    (out / "cut.jpg").write_bytes(source[3].read_bytes()[:-200])
    (out / "notes.txt").write_text("no image")
    (out / "b" / "._a.jpg").write_bytes(b"companion")
    (out / "folder.jpg").mkdir()
    return out


def names(paths: Sequence[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_folders_are_searched_through_in_order(folder: Path) -> None:
    found = ["b/a.jpg", "b/deep/m.jpeg", "cut.jpg", "z.JPG"]
    assert names(find_images([folder]), folder) == found
    given = [folder / "z.JPG", folder / "notes.txt", folder / "b"]
    assert names(find_images(given), folder) == ["z.JPG", "notes.txt", *found[:2]]


def test_paths_without_images_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nosuch\.jpg does not exist"):
        find_images([folder, folder / "nosuch.jpg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="No image found in"):
        find_images([tmp_path / "empty"])


@pytest.mark.parametrize("split", ["validation", "test", "all"])
def test_split_rows_and_logits(bundle: Bundle, prepared: Path, split: str) -> None:
    table = predict_split(bundle, prepared, split, batch_size=5)
    manifest = read_manifest(prepared)
    chosen = manifest if split == "all" else manifest[manifest.split == split]
    assert list(table.image_id) == list(chosen.image_id)
    assert list(table.dx) == list(chosen.dx) and list(table.lesion_id) == list(chosen.lesion_id)
    images = np.stack([load_image(prepared / path, SIZE) for path in chosen.path])
    logits = bundle.logits(images)
    assert np.allclose(table[LOGITS], logits, atol=1e-4)
    assert np.allclose(table[PROBABILITIES], bundle.calibration.probabilities(logits), atol=1e-5)
    malignant = [f"probability_{code}" for code in HAM10000.malignant]
    assert np.allclose(table.p_malignant, table[malignant].sum(axis=1))
    assert not table.calibrated.eq(False).any()
    right = np.array(CODES)[bundle.calibration.balanced(table[LOGITS].to_numpy())]
    assert list(table.balanced_rule) == list(right)
    assert list(table.predicted) == [CODES[k] for k in table[LOGITS].to_numpy().argmax(axis=1)]


def test_views_are_averaged(bundle: Bundle, prepared: Path) -> None:
    table = predict_split(bundle, prepared, "test", tta_views=4)
    manifest = read_manifest(prepared)
    paths = manifest.path[manifest.split == "test"]
    images = np.stack([load_image(prepared / path, SIZE) for path in paths])
    mirrored = [images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1]]
    mean = np.mean([bundle.logits(view) for view in mirrored], axis=0)
    assert np.allclose(table[LOGITS], mean, atol=1e-4)
    assert not np.allclose(mean, bundle.logits(images), atol=1e-2)


def test_labelled_folder_gives_the_figures_of_the_split(
    bundle: Bundle, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = predict_split(bundle, prepared, "test")
    labels = pd.DataFrame({"image": [f"{i}.jpg" for i in expected.image_id], "dx": expected.dx})
    labels = pd.concat([labels.iloc[::-1], pd.DataFrame({"image": ["none"], "dx": ["mel"]})])
    labels.to_csv(tmp_path / "labels.csv", index=False)
    table = predict_external(bundle, prepared / "images", tmp_path / "labels.csv", batch_size=7)
    backwards = expected.iloc[::-1].reset_index(drop=True)
    assert list(table.image_id) == list(backwards.image_id)
    assert list(table.dx) == list(backwards.dx)
    assert list(table.predicted) == list(backwards.predicted)
    assert np.allclose(table[LOGITS], backwards[LOGITS], atol=1e-4)
    assert "1 labelled rows have no image and are left out, first none." in capsys.readouterr().out


def test_labels_of_other_images_are_refused(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,dx\nelsewhere,mel\n")
    with pytest.raises(DataError, match="None of the 1 labelled images"):
        predict_external(bundle, folder, labels)
    labels.write_text("image_id,dx\na,mel\ncut,nv\n")
    with pytest.raises(DataError, match=r"cut\.jpg cannot be decoded"):
        predict_external(bundle, folder, labels)


def test_two_different_files_of_one_image_are_refused(
    bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,dx\na,mel\n")
    shutil.copy(folder / "b" / "a.jpg", folder / "a.jpg")
    assert list(predict_external(bundle, folder, labels).image_id) == ["a"]
    shutil.copy(folder / "z.JPG", folder / "a.jpg")
    with pytest.raises(DataError, match="either could be the image a"):
        predict_external(bundle, folder, labels)


def test_files_have_one_row_each_in_the_given_order(flagged: Bundle, prepared: Path) -> None:
    files = find_images([prepared / "images"])[9::-1]
    table = predict_files(flagged, files, batch_size=4)
    assert list(table.columns) == [
        *("path", "image_id", *LOGITS, *PROBABILITIES, "p_malignant"),
        *(
            "predicted",
            "prediction_set",
            "balanced_rule",
            "calibrated",
            "model",
            "flag_malignant",
            "flag_melanoma",
            "abstain",
            "reasons",
            "remarks",
            "error",
        ),
    ]
    assert set(table.model) == {flagged.label}
    assert list(table.path) == [str(path) for path in files]
    assert list(table.image_id) == [path.stem for path in files]
    assert (table.error == "").all()
    logits = flagged.logits(np.stack([load_image(path, SIZE) for path in files]))
    assert np.allclose(table[LOGITS], logits, atol=1e-4)
    shares = flagged.calibration.probabilities(table[LOGITS].to_numpy())
    assert np.array_equal(table[PROBABILITIES], shares)
    assert list(table.predicted) == [CODES[k] for k in logits.argmax(axis=1)]


def test_flags_are_scores_at_or_above_the_threshold(flagged: Bundle, prepared: Path) -> None:
    table = predict_files(flagged, find_images([prepared / "images"])[:10])
    points = flagged.calibration.operating_points
    # The same ten images, one of which stands exactly at each threshold.
    assert table.flag_malignant.sum() == 5 and table.flag_melanoma.sum() == 3
    assert (table.flag_melanoma == (table.probability_mel >= points["melanoma"].threshold)).all()
    malignant = table[[f"probability_{code}" for code in HAM10000.malignant]].sum(axis=1)
    assert (malignant[table.flag_malignant].min()) > malignant[~table.flag_malignant].max()


def test_damaged_file_gets_a_row_and_the_rest_goes_on(flagged: Bundle, folder: Path) -> None:
    files = find_images([folder])
    table = predict_files(flagged, files)
    assert list(table.image_id) == ["a", "m", "cut", "z"]
    damaged = table.iloc[2]
    assert "cut.jpg cannot be decoded" in damaged.error
    assert damaged.path == str(folder / "cut.jpg")
    assert damaged.drop(["path", "image_id", "error"]).isna().all()
    good = table.drop(index=2)
    assert (good.error == "").all() and good.drop(columns=["error", "prediction_set"]).notna().all(
        axis=None
    )
    alone = predict_files(flagged, [files[k] for k in (0, 1, 3)])
    assert list(good.predicted) == list(alone.predicted)
    assert np.allclose(good[LOGITS].astype(float), alone[LOGITS], atol=1e-4)
    assert list(good.flag_malignant) == list(alone.flag_malignant)


def test_only_damaged_files(flagged: Bundle, folder: Path) -> None:
    table = predict_files(flagged, [folder / "cut.jpg", folder / "notes.txt"])
    assert table.predicted.isna().all() and (table.error != "").all()
    lines = describe_predictions(table, flagged)
    assert lines[:2] == list(table.error)
    assert lines[2].startswith("This bundle carries no prediction sets")
    assert lines[3:] == ["Research and education only, not a medical device."]


def test_chunks_do_not_change_anything(
    flagged: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict_files(flagged, find_images([folder]))
    monkeypatch.setattr(prediction, "_CHUNK", 2)
    parts = predict_files(flagged, find_images([folder]))
    assert list(parts.index) == [0, 1, 2, 3]
    for column in ("path", "predicted", "flag_melanoma", "error"):
        assert parts[column].equals(whole[column].astype(parts[column].dtype))
    assert np.allclose(parts[LOGITS].astype(float), whole[LOGITS].astype(float), equal_nan=True)


def test_descriptions(flagged: Bundle) -> None:
    shares = {f"probability_{code}": 0.03 for code in CODES}
    flags = {"flag_malignant": False, "flag_melanoma": False, "prediction_set": None}
    row = {"path": "x.jpg", "error": "", **shares, **flags, "balanced_rule": "df"}
    nevus = row | {"probability_nv": 0.61, "probability_mel": 0.21}
    table = pd.DataFrame(
        [
            nevus | {"flag_melanoma": True, "prediction_set": "nv mel"},
            nevus | {"prediction_set": "nv"},
            row | {"probability_mel": 0.9, "flag_malignant": True, "flag_melanoma": True},
        ]
    )
    lines = [line.replace(NO_BREAK, " ") for line in describe_predictions(table, flagged)]
    assert lines[:3] == [
        "x.jpg: Most probable: melanocytic nevus, 61 %. Cannot be excluded: melanoma, "
        "21 %. Flagged: melanoma.",
        "x.jpg: Most probable: melanocytic nevus, 61 %. Cannot be excluded: nothing else.",
        "x.jpg: Most probable: melanoma, 90 %. Flagged: malignancy and melanoma.",
    ]
    balanced = describe_predictions(table, flagged, balanced=True)[1].replace(NO_BREAK, " ")
    assert balanced.startswith("x.jpg: Balanced rule: dermatofibroma, 3 %. Most probable: ")
    assert describe_predictions(table, flagged, limit=1)[1] == "… and 2 more in the file."
    drawn = Bundle(
        flagged.path,
        flagged.architecture,
        flagged.calibration,
        {"data": {"synthetic": True}},
        flagged.model,
    )
    assert "trained on drawn images only" in describe_predictions(table, drawn)[-2]
    assert "drawn" not in " ".join(describe_predictions(table, flagged))

"""Tampered files, however well sealed: one sentence that names file and field, nothing else."""

import copy
import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dermlens.data.manifest import data_facts
from dermlens.errors import DataError, DermlensError, ModelError, UsageError
from dermlens.files import write_json
from dermlens.model import weights
from dermlens.model.bundle import load_bundle
from dermlens.model.bundle_choice import bundle_and_rest
from dermlens.model.calibration import Calibration
from dermlens.model.checkpoint import restore_state, save_state
from dermlens.model.configuration import StoredRun, TrainingConfiguration, preset
from dermlens.model.int8_copy import carried_agreement
from dermlens.quality.benchmark_plan import BenchmarkPlan
from dermlens.quality.benchmark_tables import Store
from dermlens.schema import checked_file
from serving_support import SIZE, picture, save_untrained
from tampering_support import Change, Facts, drop, put, reseal, rewrite, save_detecting

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detecting(tmp_path_factory.mktemp("saved") / "bundle")


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


def is_one_sentence(error: BaseException, *words: str) -> None:
    text = str(error)
    assert isinstance(error, DermlensError) and "\n" not in text and text.endswith(".")
    assert all(word in text for word in words), text


def reverse_classes(facts: Facts) -> None:
    for name in ("architecture", "calibration"):
        facts[name]["classes"].reverse()


def both(*changes: Change) -> Change:
    def change(facts: Facts) -> None:
        for one in changes:
            one(facts)

    return change


def older(*changes: Change) -> Change:
    """A description as versions wrote it that knew HAM10000 alone."""
    return both(drop("labels"), *changes)


MELANOMA = ("calibration", "operating_points", "melanoma")
RULE = ("calibration", "balanced_rule")
SETS = ("calibration", "prediction_sets")
DESCRIPTIONS: tuple[tuple[Change, str], ...] = (
    (reverse_classes, "labels are not architecture.classes"),
    (older(reverse_classes), "architecture.classes are not HAM10000's in the order"),
    (lambda f: f["architecture"]["classes"].reverse(), "calibration.classes are not architec"),
    (lambda f: f["calibration"]["classes"].reverse(), "calibration.classes are not architecture"),
    (lambda f: f["labels"]["labels"].reverse(), "labels are not architecture.classes"),
    (put(["akiec", "bcc"], "architecture", "classes"), "calibration.classes are not architec"),
    (put(["mel"], "architecture", "classes"), "architecture.classes: tuple must have at least 2"),
    (put(["mel"] * 7, "calibration", "classes"), "calibration.classes hold a code twice"),
    (put([[]], "architecture", "classes"), "architecture.classes[0] must be a valid string, not"),
    (put({}, "labels"), "labels.name is missing"),
    (put([{"code": "mel"}] * 2, "labels", "labels"), "labels.labels[0].name is missing"),
    (put("mel", "labels", "labels", 0, "code"), "the code 'mel' stands twice"),
    (put("red", "labels", "labels", 0, "color"), "the color 'red' is not like"),
    (put(1, "labels", "labels", 0, "malignant"), "labels.labels[0].malignant must be a valid bool"),
    (put(True, "labels", "labels", 0, "malign"), "labels.labels[0].malign is not known"),
    (put({"x": ["scc"]}, "labels", "alerts"), "the alert code 'scc' is none of"),
    (put([32, 1 << 30], "architecture", "input_size"), "architecture.input_size[1] must be at mo"),
    (put([8, 48], "architecture", "input_size"), "architecture.input_size must be at least 32"),
    (put([32.5, 48], "architecture", "input_size"), "architecture.input_size[0] must be a valid i"),
    (put([True, 48], "architecture", "input_size"), "architecture.input_size[0] must be a valid i"),
    (put([32], "architecture", "input_size"), "architecture.input_size[1] is missing"),
    (put("32x48", "architecture", "input_size"), "architecture.input_size must be a valid array"),
    (put(NAN, "architecture", "dropout"), "architecture.dropout must be a finite number"),
    (put(1.0, "architecture", "dropout"), "architecture.dropout must be less than 1"),
    (drop("architecture", "dropout"), "architecture.dropout is missing"),
    (put("nosuch", "architecture", "backbone"), "Unknown backbone 'nosuch'"),
    (put(None, "architecture", "backbone"), "architecture.backbone must be a valid string"),
    (put(0, "calibration", "temperature"), "calibration.temperature must be greater than 0, not 0"),
    (put(NAN, "calibration", "temperature"), "calibration.temperature must be a finite number"),
    (put(INF, "calibration", "temperature"), "calibration.temperature must be a finite number"),
    (put(-1, "calibration", "temperature"), "calibration.temperature must be greater than 0, not"),
    (put(10**400, "calibration", "temperature"), "calibration.temperature must be a finite"),
    (put("warm", "calibration", "temperature"), "calibration.temperature must be a valid number"),
    (put("1.5", "calibration", "temperature"), "calibration.temperature must be a valid number"),
    (put(True, "calibration", "temperature"), "calibration.temperature must be a valid number"),
    (drop("calibration", "temperature"), "calibration.temperature is missing"),
    (put(1.0, "calibration", "temprature"), "calibration.temprature is not known"),
    (put("tanh", "calibration", "link"), "calibration.link must be 'softmax' or 'sigmoid'"),
    (put("yes", "calibration", "fitted"), "calibration.fitted must be a valid boolean"),
    (put(NAN, *RULE, "tau"), "calibration.balanced_rule.tau must be a finite number"),
    (put(-0.5, *RULE, "tau"), "calibration.balanced_rule.tau must be at least 0"),
    (drop(*RULE, "tau"), "calibration.balanced_rule.tau is missing"),
    (drop(*RULE), "calibration.balanced_rule is missing"),
    (put([-1.0], *RULE, "log_prior"), "calibration.balanced_rule.log_prior must have a number for"),
    (put([-INF] * 7, *RULE, "log_prior"), "calibration.balanced_rule.log_prior[0] must be a finit"),
    (put({}, *RULE, "log_prior"), "calibration.balanced_rule.log_prior must be a valid array"),
    (
        put([{"tau": 1}], *RULE, "curve"),
        "calibration.balanced_rule.curve[0].balanced_accuracy is",
    ),
    (put(NAN, *MELANOMA, "threshold"), "operating_points.melanoma.threshold must be a finite"),
    (put(None, *MELANOMA, "threshold"), "operating_points.melanoma.threshold must be a valid num"),
    (put(1.5, *MELANOMA, "threshold"), "operating_points.melanoma.threshold must be at most 1"),
    (put(["scc"], *MELANOMA, "codes"), "operating_points.melanoma.codes hold 'scc', which is no"),
    (put([], *MELANOMA, "codes"), "operating_points.melanoma.codes: tuple must have at least 1"),
    (put(2, *MELANOMA, "sensitivity"), "operating_points.melanoma.sensitivity must be at most 1"),
    (put(-3, *MELANOMA, "positives"), "operating_points.melanoma.positives must be at least 0"),
    (put([], "calibration", "operating_points"), "calibration.operating_points must be an object"),
    (put([0.9], *SETS), "calibration.prediction_sets must be an object"),
    (put(1.0, *SETS, "level"), "calibration.prediction_sets.level must be less than 1"),
    (drop(*SETS, "true_probabilities"), "prediction_sets.true_probabilities is missing"),
    (
        put("other", *SETS, "method"),
        "calibration.prediction_sets.method must be 'class-cond",
    ),
    (put([2.0], *SETS, "true_probabilities", "mel"), "true_probabilities.mel[0] must be at most 1"),
    (put([NAN], *SETS, "true_probabilities", "mel"), "true_probabilities.mel[0] must be a finite"),
    (drop(*SETS, "true_probabilities", "mel"), "prediction_sets.true_probabilities must be of eac"),
    (put([], "calibration"), "calibration must be an object"),
    (drop("calibration"), "calibration is missing"),
    (put([], "training"), "training must be an object"),
    (put("two", "training", "best_epoch"), "training.best_epoch must be a valid integer"),
    (put([0, 0], "training", "early_size"), "training.early_size[0] must be at least 1"),
    (put("yes", "data", "synthetic"), "data.synthetic must be a valid boolean"),
    (put(-1, "data", "n_images"), "data.n_images must be at least 0"),
    (put({"images": [3]}, "data", "split"), "data.split.images must be an object"),
    (put({"custom": []}, "adopted"), "adopted.value_range is missing"),
    (put({"rest": 1.0}, "outlier"), "outlier.kind is missing"),
    (put(NAN, "outlier", "threshold"), "outlier.threshold must be a finite number"),
    (put(0, "outlier", "rest"), "outlier.rest must be greater than 0"),
    (put(2, "outlier", "false_rejects_on_validation"), "outlier.false_rejects_on_validation must"),
    (drop("sha256", "weights.h5"), "sha256.weights.h5 is missing"),
    (drop("sha256", "outlier.npz"), "sha256.outlier.npz is missing"),
    (put({}, "sha256", "weights.h5"), "sha256.weights.h5 must be a valid string"),
    (put("0", "sha256", "weights.h5"), "sha256.weights.h5: string must match pattern"),
    (put("0" * 64, "sha256", "weights.h5"), "weights.h5 has changed since it was saved"),
    (put("0" * 64, "sha256", "../secret"), "../secret is missing"),
    (put(3, "license"), "license must be a valid string"),
    (put(0, "format"), "format must be at least 1"),
    (put(3, "format"), "has format 3; this version of dermlens reads up to 2"),
    (put(True, "format"), "is not the description of a bundle"),
    (put("1", "format"), "is not the description of a bundle"),
    (drop("format"), "is not the description of a bundle"),
)


@pytest.mark.parametrize(("change", "words"), DESCRIPTIONS)
def test_an_impossible_description_is_refused(bundle: Path, change: Change, words: str) -> None:
    rewrite(bundle, change)
    with pytest.raises(ModelError) as found:
        load_bundle(bundle)
    is_one_sentence(found.value, words)
    assert "bundle" in str(found.value) or words.startswith("Unknown backbone")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "{}", '{"format": 1e999}', "[" * 100_000, "9" * 5000, "\x00"],
)
def test_what_is_no_description_is_refused(bundle: Path, text: str) -> None:
    (bundle / "bundle.json").write_text(text)
    with pytest.raises(DermlensError) as found:
        load_bundle(bundle)
    is_one_sentence(found.value, "bundle.json")


def test_a_description_that_is_no_text_is_refused(bundle: Path) -> None:
    (bundle / "bundle.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError) as found:
        load_bundle(bundle)
    is_one_sentence(found.value, "bundle.json is not valid JSON")


@pytest.mark.parametrize("left", ["weights.h5", "outlier.npz"])
def test_a_bundle_without_its_description_is_never_a_folder_of_images(
    bundle: Path, left: str
) -> None:
    for path in bundle.iterdir():
        if path.name != left:
            path.unlink()
    picture(1).save(bundle / "photo.png")
    with pytest.raises(ModelError) as found:
        bundle_and_rest([bundle])
    is_one_sentence(found.value, "incomplete bundle: bundle.json is missing")


@pytest.mark.parametrize("name", ["weights.h5", "outlier.npz", "history.csv", "split.csv"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(ModelError) as found:
        load_bundle(bundle)
    is_one_sentence(found.value, f"{name} is missing")


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as found:
        save_untrained(tmp_path / "bundle", Calibration(NAN))
    is_one_sentence(found.value, "calibration.temperature must be a valid number, not None")
    assert not (tmp_path / "bundle").exists()


# Weights -------------------------------------------------------------------------------------

KERNEL = "logits/logits/kernel:0"


def replaced(**options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[KERNEL]
        file.create_dataset(KERNEL, **options)

    return change


def link_to_another_file(file: h5py.File) -> None:
    other = Path(file.filename).with_name("other.h5")
    with h5py.File(other, "w") as elsewhere:
        elsewhere["kernel"] = np.zeros((8, 7), np.float32)
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink(other.name, "kernel")


def link_inside(file: h5py.File) -> None:
    file.move(KERNEL, "hidden")
    file[KERNEL] = h5py.SoftLink("/hidden")


def data_in_another_file(file: h5py.File) -> None:
    other = Path(file.filename).with_name("raw.bin")
    other.write_bytes(bytes(8 * 7 * 4))
    del file[KERNEL]
    file.create_dataset(KERNEL, (8, 7), "f4", external=[(str(other), 0, 8 * 7 * 4)])


def virtual_data(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((8, 7), "f4")
    layout[:] = h5py.VirtualSource(file.filename, "elsewhere", (8, 7))
    del file[KERNEL]
    file.create_virtual_dataset(KERNEL, layout)


WEIGHTS: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "NaN": (lambda file: file[KERNEL].write_direct(np.full((8, 7), np.nan, "f4")), "'logits' that"),
    "infinite": (lambda file: file[KERNEL].write_direct(np.full((8, 7), np.inf, "f4")), "'logits'"),
    "linked": (link_to_another_file, "logits/kernel:0 is missing or a link"),
    "linked inside": (link_inside, "logits/kernel:0 is missing or a link"),
    "external": (data_in_another_file, "the data of logits/logits/kernel:0 lie in another file"),
    "virtual": (virtual_data, "the data of logits/logits/kernel:0 lie in another file"),
    "1 TiB": (
        replaced(shape=(1 << 19, 1 << 19), dtype="f4", chunks=(64, 64)),
        "layer 'logits' has shapes",
    ),
    "large parts": (
        replaced(shape=(8, 7), maxshape=(None, None), dtype="f4", chunks=(8192, 8192)),
        "logits/kernel:0 is stored in parts larger than itself",
    ),
    "transposed": (replaced(data=np.zeros((7, 8), "f4")), "layer 'logits' has shapes"),
    "text": (replaced(data=np.full((8, 7), b"x")), "logits/kernel:0 holds no numbers"),
    "complex": (replaced(data=np.zeros((8, 7), complex)), "logits/kernel:0 holds no numbers"),
    "objects": (
        replaced(shape=(8, 7), dtype=h5py.string_dtype()),
        "logits/kernel:0 holds no numbers",
    ),
    "empty": (replaced(data=h5py.Empty("f4")), "logits/kernel:0 holds no numbers"),
    "a group": (lambda file: file.move("logits/logits", "logits/a"), "is missing or a link"),
    "no layer": (lambda file: file.__delitem__("conv1_bn"), "conv1_bn/"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_lie_elsewhere_or_are_no_numbers_are_refused(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = WEIGHTS[name]
    with h5py.File(bundle / "weights.h5", "r+") as file:
        change(file)
    reseal(bundle, "weights.h5")
    if name == "1 TiB":
        monkeypatch.setattr(weights, "_copy", checked_before_reading(weights._copy))
    with pytest.raises(ModelError) as found:
        load_bundle(bundle)
    is_one_sentence(found.value, words, "weights.h5")


def checked_before_reading(copy: Callable[..., None]) -> Callable[..., None]:
    """Make reading any data set fail the test."""

    def watched(layers: Any, stored: dict[str, Any], path: Path) -> None:
        class Unread:
            def __init__(self, shape: tuple[int, ...]) -> None:
                self.shape = shape

            def __getitem__(self, _: object) -> None:
                pytest.fail("was read before its shape was checked")

        copy(layers, {k: [Unread(part.shape) for part in v] for k, v in stored.items()}, path)

    return watched


def names_put(value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__("layer_names", value)


LISTS: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "no names": (lambda file: file.attrs.__delitem__("layer_names"), "has no layer_names"),
    "a number for names": (names_put(3), "cannot be read as HDF5 weights"),
    "names of nothing": (names_put([b"nosuch"]), "nosuch is missing or a link"),
    "names of other layers": (names_put([b"logits"]), "none of its 1 layers (such as 'logits')"),
    "no weights of a layer": (
        lambda file: file["logits"].attrs.__delitem__("weight_names"),
        "cannot be read as HDF5 weights",
    ),
    "one weight of a layer": (
        lambda file: file["logits"].attrs.__setitem__("weight_names", [b"logits/kernel:0"]),
        "layer 'logits' has shapes",
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_pretrained_weights_that_are_listed_wrongly_are_refused(bundle: Path, name: str) -> None:
    change, words = LISTS[name]
    model = load_bundle(bundle).model
    with h5py.File(bundle / "weights.h5", "r+") as file:
        change(file)
    with pytest.raises(ModelError) as found:
        weights.load_by_name(model, bundle / "weights.h5")
    is_one_sentence(found.value, words, "weights.h5")


def test_damaged_text_in_a_bundles_weights_is_never_read(bundle: Path) -> None:
    """HDF5 can read damaged lists of names forever; a bundle's layers are known without them."""
    with h5py.File(bundle / "weights.h5", "r+") as file:
        del file.attrs["layer_names"], file["logits"].attrs["weight_names"]
    reseal(bundle, "weights.h5")
    assert np.isfinite(load_bundle(bundle).model(np.zeros((1, *SIZE, 3), np.float32))).all()


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_what_is_no_weights_file_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "weights.h5").write_bytes(content)
    reseal(bundle, "weights.h5")
    with pytest.raises(ModelError) as found:
        load_bundle(bundle)
    is_one_sentence(found.value, "weights.h5 cannot be read as HDF5 weights")


# The detector's arrays -----------------------------------------------------------------------


def header(**fields: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"fortran_order": False, **fields})
    return stream.getvalue()


ARRAYS: dict[str, tuple[str, Callable[[np.ndarray], Any], str]] = {
    "NaN": ("means", lambda a: np.full_like(a, np.nan), "means.npy holds what is no finite"),
    "negative": ("variances", np.negative, "variances.npy holds a variance that is not above 0"),
    "narrow": ("basis", lambda a: a[:, :-1], "basis.npy is (8, 6) and does not belong"),
    "of another network": ("means", lambda a: a[:, :-1], "means.npy is (1, 7), of another"),
    "too many classes": ("means", lambda a: np.repeat(a, 8, 0), "means.npy is (8, 8), of another"),
    "no class": ("means", lambda a: a[:0], "means.npy is (0, 8), of another"),
    "flat": ("means", np.ravel, "means.npy does not hold the (8,)"),
    "objects": ("means", lambda a: a.astype(object), "means.npy does not hold the"),
    "whole numbers": ("means", lambda a: a.astype(int), "means.npy does not hold the"),
    "text": ("means", lambda a: a.astype(str), "means.npy does not hold the"),
    "1 TiB": (
        "means",
        lambda _: header(descr="<f4", shape=(1 << 19, 1 << 19)),
        "means.npy does not hold the (524288, 524288)",
    ),
    "a bomb": ("basis", lambda _: bytes(1 << 27), "basis.npy has 134,217,728 bytes"),
    "cut off": ("basis", lambda _: header(descr="<f4", shape=(8, 7))[:20], "outlier.npz"),
    "nothing": ("basis", lambda _: b"", "outlier.npz"),
    "nested": ("basis", lambda _: header(descr="(" * 900, shape=(1,)), "outlier.npz"),
    "missing": ("basis", lambda _: None, "basis.npy is missing"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_no_fit_gives_are_refused(bundle: Path, name: str) -> None:
    changed, change, words = ARRAYS[name]
    with np.load(bundle / "outlier.npz") as stored:
        contents: dict[str, Any] = {**dict(stored), changed: change(stored[changed])}
    with zipfile.ZipFile(bundle / "outlier.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for array, content in contents.items():
            if content is None:
                continue
            stream = io.BytesIO()
            if isinstance(content, bytes):
                stream.write(content)
            else:
                np.save(stream, content)
            archive.writestr(f"{array}.npy", stream.getvalue())
    reseal(bundle, "outlier.npz")
    with pytest.raises(ModelError) as found:
        load_bundle(bundle)
    is_one_sentence(found.value, words, "outlier.npz")


def test_what_is_no_archive_is_refused(bundle: Path) -> None:
    (bundle / "outlier.npz").write_bytes(b"PK\x03\x04 no archive")
    reseal(bundle, "outlier.npz")
    with pytest.raises(ModelError) as found:
        load_bundle(bundle)
    is_one_sentence(found.value, "outlier.npz")


def test_a_history_that_is_no_table_gives_a_sentence(bundle: Path) -> None:
    (bundle / "history.csv").write_bytes(b"")
    reseal(bundle, "history.csv")
    with pytest.raises(DataError) as found:
        _ = load_bundle(bundle).history
    is_one_sentence(found.value, "history.csv cannot be read as a table")


# What stands beside it -----------------------------------------------------------------------

COPY = {"weights_sha256": "0", "model_sha256": "1"}
STATE = {"next_epoch": 1, "lowest_loss": 0.5, "best_epoch": 0, "history": [{"phase": "head"}]}
LABELS = {"name": "x", "labels": [{"code": "a", "name": "A"}, {"code": "b", "name": "B"}]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "the content must be an object"),
        ({"synthetic": "yes"}, "synthetic must be a valid boolean"),
        ({"name": None}, "name must be a valid string"),
        ({"n_images": -1}, "n_images must be at least 0"),
        ({"n_images": 1.5}, "n_images must be a valid integer"),
        ({"per_class": {"mel": "many"}}, "per_class.mel must be a valid integer"),
        ({"split": []}, "split must be an object"),
        ({"split": {"fractions": {"train": 2}}}, "split.fractions.train must be at most 1"),
        ({"labels": 3}, "labels must be an object"),
        ({"labels": {"name": "x", "labels": []}}, "it has no class"),
        ({"labels": {**LABELS, "labels": LABELS["labels"] * 2}}, "the code 'a' stands twice"),
        ({"labels": {**LABELS, "alerts": {"x": ["c"]}}}, "the alert code 'c' is none of"),
        ({"labels": {**LABELS, "alerts": []}}, "labels.alerts must be an object"),
    ],
)
def test_a_data_set_that_says_what_it_may_not_is_refused(
    tmp_path: Path, content: Any, words: str
) -> None:
    write_json(tmp_path / "dataset.json", content)
    with pytest.raises(DataError) as found:
        data_facts(tmp_path)
    is_one_sentence(found.value, words, "dataset.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("data_fingerprint"), "data_fingerprint is missing"),
        (put([], "training"), "training must be an object"),
        (put("x", "training", "batch_size"), "training.batch_size must be a valid integer"),
        (put(-1, "training", "epochs"), "training.epochs must be at least 0"),
        (put(-1, "training", "head_rate"), "training.head_rate must be at least 0"),
        (put("float8", "training", "precision"), "training.precision must be 'float32' or"),
        (
            put([1, 2, 3], "training", "early_size"),
            "training.early_size: tuple must have at m",
        ),
        (put(None, "training", "early_size"), "early_epochs has no effect without early_size"),
        (put("all", "training", "imbalance", "kind"), "Unknown imbalance handling 'all'"),
        (put([], "training", "architecture"), "training.architecture must be an object"),
        (
            put([8], "training", "architecture", "input_size"),
            "architecture.input_size[1] is missing",
        ),
        (put(1, "training", "rate"), "training.rate is not known"),
    ],
)
def test_a_run_that_says_what_it_may_not_is_refused(
    tmp_path: Path, change: Change, words: str
) -> None:
    content = {"training": asdict(preset("ham10000")), "data_fingerprint": "0"}
    path = write_json(tmp_path / "configuration.json", content)
    assert checked_file(StoredRun, path, "").training == preset("ham10000")
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)
    with pytest.raises(DataError) as found:
        checked_file(StoredRun, path, "Use another --out.")
    is_one_sentence(found.value, words, "configuration.json")


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (TrainingConfiguration, {"epochs": -1}, "epochs must be at least 0, not -1"),
        (TrainingConfiguration, {"clip_norm": NAN}, "clip_norm must be a finite number"),
        (TrainingConfiguration, {"label_smoothing": 1.0}, "label_smoothing must be less than 1"),
        (TrainingConfiguration, {"seed": 2**32}, "seed must be less than 4294967296"),
        (TrainingConfiguration, {"teacher_share": 1.5}, "teacher_share must be at most 1"),
        (BenchmarkPlan, {"n": 0}, "n must be at least 1, not 0"),
        (BenchmarkPlan, {"n": "many"}, "n must be a valid integer"),
        (BenchmarkPlan, {"orders": ("up",)}, "orders[0] must be 'cascading' or 'independent'"),
        (BenchmarkPlan, {"squares": 1}, "squares must be at least 2"),
        (BenchmarkPlan, {"images": 3}, "images is not known"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    kind: type, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as found:
        kind(**values)
    is_one_sentence(found.value, words)


@pytest.mark.parametrize("text", ["[]", "3", "{", ""])
def test_another_plan_or_none_is_no_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DataError) as found:
        Store(tmp_path, {"n": 1})
    is_one_sentence(found.value, "plan.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "the content must be an object"),
        ({}, "weights_sha256 is missing"),
        ({**COPY, "methods": []}, "methods must be an object"),
        ({**COPY, "methods": {"lime": 3}}, "methods.lime must be an object"),
        (
            {**COPY, "methods": {"lime": {"pearson": "high"}}},
            "methods.lime.pearson must be a",
        ),
    ],
)
def test_an_agreement_that_says_what_it_may_not_is_refused(
    bundle: Path, content: Any, words: str
) -> None:
    loaded = load_bundle(bundle)
    write_json(bundle / "int8" / "agreement.json", content)
    with pytest.raises(DataError) as found:
        carried_agreement(loaded)
    is_one_sentence(found.value, words, "agreement.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(-1, "next_epoch"), "next_epoch must be at least 0"),
        (put("low", "lowest_loss"), "lowest_loss must be a valid number"),
        (drop("history"), "history is missing"),
        (put([[]], "history"), "history[0] must be an object"),
    ],
)
def test_a_checkpoint_that_says_what_it_may_not_is_refused(
    tmp_path: Path, change: Change, words: str
) -> None:
    facts = copy.deepcopy(STATE)
    change(facts)
    save_state(tmp_path / "state.npz", {"model": [np.zeros(3)]}, facts)
    with pytest.raises(ModelError) as found:
        restore_state(tmp_path / "state.npz", {})
    is_one_sentence(found.value, words, "state.npz is damaged")


def test_a_checkpoint_of_another_network_or_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save_state(path, {"model": [np.zeros(3)]}, STATE)
    for shapes in ([(3,), (3,)], [(4,)], []):
        with pytest.raises(ModelError) as found:
            restore_state(path, {"model": [np.zeros(shape) for shape in shapes]})
        is_one_sentence(found.value, "state.npz belongs to another network: its model variables")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError) as found:
        restore_state(path, {})
    is_one_sentence(found.value, "state.npz is damaged")


def test_a_calibration_by_itself_names_the_field() -> None:
    content = Calibration().to_json()
    assert Calibration.from_json(content) == Calibration()
    with pytest.raises(ModelError) as found:
        Calibration.from_json({**content, "temperature": 0})
    is_one_sentence(found.value, "temperature must be greater than 0, not 0")
    with pytest.raises(ModelError, match="the content must be an object, not 3"):
        Calibration.from_json(3)


# Whatever else -------------------------------------------------------------------------------

FUZZED = 200 * int(os.environ.get("DERMLENS_FUZZ", "1"))
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, NAN, INF, "", "x", [], {}, [[]], 10**400, "\ud800", "../x",
)  # fmt: skip


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value inside of JSON content."""
    inside = content.items() if isinstance(content, dict) else enumerate(content)
    found: list[tuple[Any, ...]] = []
    for key, value in list(inside)[:5]:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


def mutate_description(bundle: Path, chance: random.Random) -> None:
    """Change one or two values, and the checksum with them."""

    def change(facts: Facts) -> None:
        for _ in range(chance.choice((1, 1, 2))):
            way = chance.choice([place for place in places(facts) if place != ("checksum",)])
            if chance.random() < 0.3:
                drop(*way)(facts)
            else:
                put(chance.choice(VALUES), *way)(facts)

    rewrite(bundle, change)


def mutate_bytes(path: Path, chance: random.Random) -> None:
    """Flip bits, cut off, or repeat a part."""
    content = bytearray(path.read_bytes())
    kind, at = chance.random(), chance.randrange(len(content))
    if kind < 0.6:
        for _ in range(chance.choice((1, 3, 30))):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind < 0.8:
        del content[at:]
    else:
        content[at:at] = content[at : at + chance.randrange(1, 200)]
    path.write_bytes(content)


def test_mutated_bundles_give_a_sentence_or_a_finite_answer(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (2, *SIZE, 3)).astype(np.float32)
    answered = 0
    for seed in range(FUZZED):
        chance = random.Random(seed)
        bundle = Path(shutil.copytree(saved, tmp_path / str(seed)))
        name = chance.choice(
            ("bundle.json",) * 5 + ("weights.h5", "weights.h5", "outlier.npz", "history.csv")
        )
        if name == "bundle.json" and chance.random() < 0.7:
            mutate_description(bundle, chance)
        else:
            mutate_bytes(bundle / name, chance)
            if name != "bundle.json":
                reseal(bundle, name)
        try:
            loaded = load_bundle(bundle)
            _ = loaded.history
            shares = loaded.probabilities(loaded.model(images, training=False))
            assert np.isfinite(shares).all(), seed
            answered += 1
        except DermlensError as error:
            is_one_sentence(error)
        shutil.rmtree(bundle)
    assert FUZZED // 10 < answered < FUZZED // 2

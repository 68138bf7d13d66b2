"""What a bundle's description may say: damaged, changed or impossible ones are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from dermlens.errors import ModelError
from dermlens.files import sha256_of_file
from dermlens.model import weights
from dermlens.model.bundle import SHIPPED, load_bundle
from dermlens.model.bundle_description import checksum, write_description
from dermlens.model.calibration import Calibration
from dermlens.model.out_of_distribution import fit_ood_detector
from serving_support import save_untrained, untrained_bundle

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("saved") / "bundle")


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(saved, tmp_path / "bundle")
    return tmp_path / "bundle"


def rewritten(bundle: Path, change: Callable[[Facts], None], *, sealed: bool) -> None:
    """Change a description, and its checksum with it (``sealed``) or not."""
    facts = json.loads((bundle / "bundle.json").read_text())
    change(facts)
    if sealed:
        facts["checksum"] = checksum(facts)
    (bundle / "bundle.json").write_text(json.dumps(facts))


def reverse_classes(facts: Facts) -> None:
    for name in ("architecture", "calibration"):
        facts[name]["classes"].reverse()


def older(change: Callable[[Facts], None]) -> Callable[[Facts], None]:
    """A description as versions wrote it that knew HAM10000 alone."""

    def both(facts: Facts) -> None:
        facts.pop("labels")
        change(facts)

    return both


def put(value: Any, *keys: str) -> Callable[[Facts], None]:
    def change(facts: Facts) -> None:
        for key in keys[:-1]:
            facts = facts[key]
        facts[keys[-1]] = value

    return change


CHANGES: dict[str, Callable[[Facts], None]] = {
    "classes": reverse_classes,
    "temperature": put(3.0, "calibration", "temperature"),
    "prior": put([-1.0] * 7, "calibration", "balanced_rule", "log_prior"),
    "threshold": put(0.5, "calibration", "operating_points", "melanoma", "threshold"),
    "size": put([32, 32], "architecture", "input_size"),
    "weights": put("0" * 64, "sha256", "weights.h5"),
    "a field of later": put([0.9], "calibration", "prediction_sets"),
    "data": put(False, "data", "synthetic"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_change_of_the_description_is_found(bundle: Path, name: str) -> None:
    rewritten(bundle, CHANGES[name], sealed=False)
    with pytest.raises(ModelError, match=r"is damaged: bundle\.json has changed"):
        load_bundle(bundle)


def test_what_only_informs_may_change(bundle: Path) -> None:
    rewritten(bundle, put("MIT, as before", "license"), sealed=False)
    assert load_bundle(bundle).facts["license"] == "MIT, as before"


def test_the_checksum_is_of_what_is_stored(tmp_path: Path) -> None:
    facts = {"b": np.float32(0.1), "a": float("nan"), "c": (1, 2), "checksum": "old"}
    stored = write_description(tmp_path / "x.json", facts)
    assert stored == json.loads((tmp_path / "x.json").read_text())
    assert stored["a"] is None and stored["c"] == [1, 2]
    assert stored["checksum"] == checksum(stored) != "old"
    assert checksum({"c": [1, 2], "a": None, "b": stored["b"]}) == stored["checksum"]


def test_the_shipped_bundle_is_covered() -> None:
    facts = json.loads((SHIPPED / "bundle.json").read_text())
    assert facts["checksum"] == checksum(facts)


def test_a_bundle_of_an_earlier_version_is_taken_with_a_warning(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_bundle(bundle)
    assert capsys.readouterr().out == ""
    rewritten(bundle, lambda facts: facts.pop("checksum"), sealed=False)
    older = load_bundle(bundle)
    assert "no checksum tells whether its classes and calibration are" in capsys.readouterr().out
    assert older.identity["fingerprint"] == checksum(older.facts)


IMPOSSIBLE: tuple[tuple[Callable[[Facts], None], str], ...] = (
    (reverse_classes, "label set is of other classes than its network"),
    (older(reverse_classes), "are not those of HAM10000 in the order of their labels"),
    (put(["akiec", "bcc"], "architecture", "classes"), "of other classes than its network"),
    (older(put(["mel", "scc"], "architecture", "classes")), "are not those of HAM10000"),
    (put({}, "labels"), "This is no label set"),
    (put([{"code": "mel"}] * 2, "labels", "labels"), "the code 'mel' stands twice"),
    (put([[]], "architecture", "classes"), "are not two or more names"),
    (put([32, 1 << 30], "architecture", "input_size"), "is not two sides of 1 to 4096"),
    (put([32.5, 48], "architecture", "input_size"), "is not two sides"),
    (put("32x48", "architecture", "input_size"), "is not two sides"),
    (put(float("nan"), "architecture", "dropout"), "its dropout nan is not in 0..1"),
    (put("nosuch", "architecture", "backbone"), "Unknown backbone 'nosuch'"),
    (put(None, "architecture", "backbone"), "its backbone has no name"),
    (put(0, "calibration", "temperature"), "its temperature has an impossible value"),
    (put(float("nan"), "calibration", "temperature"), "its temperature has an impossible value"),
    (put(float("inf"), "calibration", "temperature"), "its temperature has an impossible value"),
    (put(-1, "calibration", "temperature"), "its temperature has an impossible value"),
    (put("warm", "calibration", "temperature"), "is incomplete"),
    (put(float("nan"), "calibration", "balanced_rule", "tau"), "prior correction has an imposs"),
    (put([-1.0], "calibration", "balanced_rule", "log_prior"), "its prior has an impossible value"),
    (
        put([float("-inf")] * 7, "calibration", "balanced_rule", "log_prior"),
        "its prior has an impossible value",
    ),
    (
        put(float("nan"), "calibration", "operating_points", "melanoma", "threshold"),
        "operating point 'melanoma' has an impossible value",
    ),
    (
        put(None, "calibration", "operating_points", "melanoma", "threshold"),
        "operating point 'melanoma' has an impossible value",
    ),
    (
        put(["scc"], "calibration", "operating_points", "melanoma", "codes"),
        "operating point 'melanoma' has an impossible value",
    ),
    (put([], "calibration", "operating_points"), "is incomplete"),
    (put([], "calibration"), "lacks the section 'calibration'"),
    (put({}, "sha256"), r"bundle\.json has no checksum of weights\.h5"),
    (put({}, "sha256", "weights.h5"), r"no valid checksum of weights\.h5"),
    (put({"rest": 1.0}, "outlier"), r"bundle\.json has no checksum of outlier\.npz"),
    (put("0" * 64, "sha256", "../secret"), r"\.\./secret is missing"),
    (put(True, "format"), "is not the description of a bundle"),
    (put("1", "format"), "is not the description of a bundle"),
)


@pytest.mark.parametrize(("change", "words"), IMPOSSIBLE)
def test_impossible_descriptions_are_refused_however_well_sealed(
    bundle: Path, change: Callable[[Facts], None], words: str
) -> None:
    rewritten(bundle, change, sealed=True)
    with pytest.raises(ModelError, match=words):
        load_bundle(bundle)


@pytest.mark.parametrize("text", ["[]", "3", "{}", "[" * 100_000])
def test_other_json_is_no_description(bundle: Path, text: str) -> None:
    (bundle / "bundle.json").write_text(text)
    with pytest.raises(ModelError, match="is not the description of a bundle"):
        load_bundle(bundle)


def reweighed(bundle: Path, change: Callable[[h5py.File], None]) -> None:
    """Change the weights file, and everything that is known of it."""
    with h5py.File(bundle / "weights.h5", "r+") as file:
        change(file)
    sums = {"weights.h5": sha256_of_file(bundle / "weights.h5")}
    rewritten(bundle, lambda facts: facts["sha256"].update(sums), sealed=True)


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


WEIGHTS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "NaN": (lambda file: file[KERNEL].write_direct(np.full((8, 7), np.nan, "f4")), "no finite num"),
    "linked": (link_to_another_file, "is missing or a link"),
    "linked inside": (link_inside, "is missing or a link"),
    "external": (data_in_another_file, "lie in another file"),
    "virtual": (virtual_data, "lie in another file"),
    "1 TiB": (replaced(shape=(1 << 19, 1 << 19), dtype="f4", chunks=(64, 64)), "has shapes"),
    "large parts": (
        replaced(shape=(8, 7), maxshape=(None, None), dtype="f4", chunks=(8192, 8192)),
        "parts larger than itself",
    ),
    "text": (replaced(data=np.full((8, 7), b"x")), "holds no numbers"),
    "a group": (lambda file: file.move("logits/logits", "logits/a"), "is missing or a link"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_lie_elsewhere_or_are_no_numbers_are_refused(
    bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = WEIGHTS[name]
    reweighed(bundle, change)
    if name == "1 TiB":
        monkeypatch.setattr(weights, "_copy", checked_before_reading(weights._copy))
    with pytest.raises(ModelError, match=words):
        load_bundle(bundle)


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


@pytest.fixture
def detecting(bundle: Path) -> Path:
    """A bundle with an out-of-distribution detector."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(90, 8))
    detector = fit_ood_detector(features[:60], np.zeros(60, int), features[60:], classes=1)
    np.savez(bundle / "outlier.npz", **detector.arrays())
    rewritten(bundle, put(detector.to_json(), "outlier"), sealed=True)
    resealed(bundle)
    return bundle


def resealed(bundle: Path) -> None:
    sums = {"outlier.npz": sha256_of_file(bundle / "outlier.npz")}
    rewritten(bundle, lambda facts: facts["sha256"].update(sums), sealed=True)


def test_outlier_arrays_are_checked(detecting: Path) -> None:
    assert load_bundle(detecting).ood_detector is not None
    with np.load(detecting / "outlier.npz") as stored:
        arrays = dict(stored)
    for name, value, words in (
        ("means", np.full_like(arrays["means"], np.nan), "impossible values"),
        ("variances", -arrays["variances"], "impossible values"),
        ("basis", arrays["basis"][:, :-1], "do not belong together"),
        ("means", arrays["means"].astype(object), "does not hold the"),
    ):
        np.savez(detecting / "outlier.npz", **{**arrays, name: value})
        resealed(detecting)
        with pytest.raises(ModelError, match=words):
            load_bundle(detecting)


def test_a_declared_array_is_not_allocated_before_it_is_checked(detecting: Path) -> None:
    import io
    import zipfile

    header = io.BytesIO()
    huge = {"descr": "<f4", "fortran_order": False, "shape": (1 << 19, 1 << 19)}
    np.lib.format.write_array_header_1_0(header, huge)
    with zipfile.ZipFile(detecting / "outlier.npz", "w") as archive:
        for name in ("means", "basis", "variances"):
            archive.writestr(f"{name}.npy", header.getvalue())
    resealed(detecting)
    with pytest.raises(ModelError, match="does not hold the"):
        load_bundle(detecting)


def test_an_answer_that_is_not_finite_is_refused() -> None:
    calibration = Calibration()
    for wrong in (np.nan, np.inf, -np.inf):
        logits = np.zeros((2, 7))
        logits[1, 3] = wrong
        for answer in (calibration.probabilities, calibration.scaled, calibration.balanced):
            with pytest.raises(ModelError, match="answer is not finite"):
                answer(logits)


def test_broken_weights_in_memory_give_no_table(tmp_path: Path) -> None:
    from dermlens.serve.prediction import predict_files
    from serving_support import picture

    broken = untrained_bundle()
    broken.model.get_layer("logits").kernel.assign(np.full((8, 7), np.nan))
    picture(1).save(tmp_path / "a.png")
    with pytest.raises(ModelError, match="answer is not finite"):
        predict_files(broken, [tmp_path / "a.png"])


def test_a_saved_bundle_returns_what_is_stored(saved: Path) -> None:
    stored = json.loads((saved / "bundle.json").read_text())
    assert load_bundle(saved).facts == stored
    assert pd.read_csv(saved / "split.csv").image_id.tolist() == ["a"]

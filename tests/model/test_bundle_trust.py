"""What a bundle's checksum covers, and what is never answered; test_tampering has the rest."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermlens.errors import ModelError
from dermlens.model.bundle import NON_COMMERCIAL, SHIPPED, load_bundle
from dermlens.model.bundle_description import checksum, write_description
from dermlens.model.calibration import Calibration
from serving_support import save_untrained, untrained_bundle
from tampering_support import Change, Facts, drop, put, rewrite


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("saved") / "bundle")


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(saved, tmp_path / "bundle")
    return tmp_path / "bundle"


def reverse_classes(facts: Facts) -> None:
    for name in ("architecture", "calibration"):
        facts[name]["classes"].reverse()


CHANGES: dict[str, Change] = {
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
    rewrite(bundle, CHANGES[name], sealed=False)
    with pytest.raises(ModelError, match=r"is damaged: bundle\.json has changed"):
        load_bundle(bundle)


def test_what_only_informs_may_change(bundle: Path) -> None:
    rewrite(bundle, put("MIT, as before", "license"), sealed=False)
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
    rewrite(bundle, drop("checksum"), sealed=False)
    older = load_bundle(bundle)
    assert "no checksum tells whether its classes and calibration are" in capsys.readouterr().out
    assert older.identity["fingerprint"] == checksum(older.facts)


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


OWN = "The weights were trained on images with terms of their own."


@pytest.mark.parametrize(
    ("training", "data", "words"),
    [
        ({}, {"source": "ham10000", "license": "CC"}, "non-commercial"),
        ({"weights": "shipped"}, {"synthetic": True, "license": "MIT"}, "non-commercial"),
        ({}, {"license": "ISIC 2019 is licensed CC BY-NC 4.0"}, "ISIC 2019 is licensed CC BY-NC"),
        ({"weights": "none"}, {"synthetic": True, "license": "Drawn, MIT license"}, "MIT"),
        ({"extra": [{"source": "ham10000"}]}, {"synthetic": True}, "non-commercial"),
        ({"extra": [{"license": "Derm7pt may be used"}]}, {"synthetic": True}, "Derm7pt may be"),
        ({"extra": [{"synthetic": True, "license": "drawn"}]}, {"synthetic": True}, "MIT"),
        ({"teachers": [{"license": NON_COMMERCIAL}]}, {"synthetic": True}, "non-commercial"),
        ({"weights_license": NON_COMMERCIAL}, {"synthetic": True}, "non-commercial"),
        ({"weights_license": "MIT"}, {"synthetic": True}, "MIT"),
        ({"weights_license": f"{OWN} PAD-UFES"}, {"license": "PAD-UFES"}, "own. PAD-UFES"),
        ({}, {}, "MIT"),
    ],
)
def test_weights_have_the_terms_of_what_they_have_seen(training, data, words) -> None:
    from dermlens.model.bundle import _license

    assert words in _license(training, data)
    assert (_license(training, data) == "MIT") == (words == "MIT")

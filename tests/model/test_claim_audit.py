"""Claims with a planted fault, each found; a clean one passes. No images, no model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cli_support import dermlens, refused
from dermlens.errors import DataError
from dermlens.labels import HAM10000
from dermlens.model.claim_audit import (
    audit_claim,
    audit_split,
    read_claim,
    read_register,
    read_split,
)

CODES = HAM10000.codes
SHARES = np.array([0.06, 0.10, 0.14, 0.04, 0.14, 0.46, 0.06])


@pytest.fixture(scope="module")
def register() -> pd.DataFrame:
    """3,000 lesions of a data set, every fourth photographed twice."""
    random = np.random.default_rng(0)
    rows = []
    for lesion in range(3000):
        code = random.choice(CODES, p=SHARES)
        for _ in range(2 if lesion % 4 == 0 else 1):
            rows.append({"image_id": f"ISIC_{len(rows):07d}", "lesion_id": f"HAM_{lesion:07d}",
                         "dx": code, "dx_type": "histo", "age": "50", "sex": "male",
                         "localization": "back"})  # fmt: skip
    return pd.DataFrame(rows)


def clean_split(register: pd.DataFrame) -> pd.DataFrame:
    """A third of the lesions is test."""
    lesions = register.lesion_id.str[4:].astype(int)
    return register[lesions % 3 == 0]


def calibrated(rows: pd.DataFrame, sharper: np.ndarray | float = 1.0) -> pd.DataFrame:
    """Posteriors of a Gaussian feature per class, so calibrated by construction."""
    random = np.random.default_rng(1)
    truth = np.array([CODES.index(code) for code in rows.dx])
    strength = np.broadcast_to(np.asarray(sharper, np.float64), len(rows))
    feature = 2.0 * strength[:, None] * np.eye(7)[truth] + random.normal(size=(len(rows), 7))
    logits = 2.0 * strength[:, None] * feature + np.log(SHARES)
    return claim_of(rows, logits)


def claim_of(rows: pd.DataFrame, logits: np.ndarray) -> pd.DataFrame:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    named = {f"probability_{code}": shares[:, k] for k, code in enumerate(CODES)}
    return pd.DataFrame({"image_id": rows.image_id.to_numpy(), **named})


def logits_of(claim: pd.DataFrame) -> np.ndarray:
    return np.log(claim.iloc[:, 1:].to_numpy())


def failed(result: dict[str, Any]) -> set[str]:
    return {one["check"] for one in result["findings"] if not one["passed"]}


def audited(claim: pd.DataFrame, register: pd.DataFrame) -> dict[str, Any]:
    return audit_claim(claim, register, HAM10000, resamples=100)[0]


def test_a_clean_claim_passes(register: pd.DataFrame) -> None:
    result = audited(calibrated(clean_split(register)), register)
    assert failed(result) == set()
    assert abs(result["prior"]["exponent"]) < 0.15 and result["lesions"]["images"] == 0
    assert abs(result["temperature"] - 1) < 0.1


def test_a_planted_leak_is_found_with_its_gain(register: pd.DataFrame) -> None:
    """A split by image: the model is surer on lesions of which it knows another photograph."""
    random = np.random.default_rng(2)
    test = register[random.random(len(register)) < 0.4]
    known = test.lesion_id.isin(register.lesion_id[~register.image_id.isin(test.image_id)])
    result = audited(calibrated(test, np.where(known, 1.6, 1.0)), register)
    assert failed(result) == {"lesions"}
    assert result["lesions"]["images"] == known.sum() > 100
    assert result["lesions"]["gap_interval"][0] > 0


def test_a_leak_that_did_not_help_is_told_from_one_that_did(register: pd.DataFrame) -> None:
    test = register[np.random.default_rng(2).random(len(register)) < 0.4]
    result = audited(calibrated(test), register)
    assert failed(result) == {"lesions"}
    low, high = result["lesions"]["gap_interval"]
    assert low < 0 < high
    assert "does not show that it helped" in str(result["findings"])


def test_the_images_of_the_training_can_be_named(register: pd.DataFrame) -> None:
    test = register[np.random.default_rng(2).random(len(register)) < 0.4]
    other = register[~register.lesion_id.isin(test.lesion_id)]
    result, _ = audit_claim(
        calibrated(test), register, HAM10000, training=list(other.image_id), resamples=50
    )
    assert failed(result) == set()


def test_a_planted_correction_of_the_prior_is_found(register: pd.DataFrame) -> None:
    claim = calibrated(clean_split(register))
    moved = claim_of(clean_split(register), logits_of(claim) - np.log(SHARES))
    result = audited(moved, register)
    assert "prior" in failed(result)
    assert abs(result["prior"]["exponent"] - 1) < 0.15


def test_probabilities_that_are_too_sure_are_found(register: pd.DataFrame) -> None:
    claim = calibrated(clean_split(register))
    result = audited(claim_of(clean_split(register), 3 * logits_of(claim)), register)
    assert "calibration" in failed(result) and 2.5 < result["temperature"] < 3.5
    assert "too sure" in str(result["findings"])


def test_splits(register: pd.DataFrame) -> None:
    test = set(clean_split(register).image_id)
    split = register[["image_id"]].assign(
        split=["test" if name in test else "train" for name in register.image_id]
    )
    assert failed(audit_split(split, register)) == set()
    twice = register.image_id[register.lesion_id.duplicated()].iloc[0]
    split.loc[split.image_id == twice, "split"] = "validation"
    result = audit_split(split, register)
    assert failed(result) == {"lesions"} and "1 lesions are in two parts" in str(result)
    assert list(result["parts"]) == ["train", "validation", "test"]
    assert sum(result["shared"]["lesion"].values()) == 2


def test_the_commands(register: pd.DataFrame, tmp_path: Path) -> None:
    register.to_csv(tmp_path / "HAM10000_metadata", index=False)
    rows = clean_split(register)
    claim = calibrated(rows)
    claim.columns = ["image", *(code.upper() for code in CODES)]
    claim.to_csv(tmp_path / "claim.csv", index=False)
    given = ("--data", tmp_path / "HAM10000_metadata")
    few = ("--resamples", 50, "--out", tmp_path / "audit")
    done = dermlens("audit-claim", tmp_path / "claim.csv", *given, *few)
    assert done.code == 0 and done.out.count("ok  ") == 5, done
    stored = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert stored["metrics"]["n_images"] == len(rows)
    assert "Nothing here speaks against the claim" in (tmp_path / "audit/audit.html").read_text()
    split = register[["image_id"]].assign(split=["train", "test"] * (len(register) // 2))
    split.to_csv(tmp_path / "split.csv", index=False)
    done = dermlens("audit-split", tmp_path / "split.csv", *given, "--out", tmp_path / "s.json")
    assert done.code == 1 and "Group the split by lesion" in done.out
    claim.iloc[:, :-1].to_csv(tmp_path / "claim.csv", index=False)
    refused(dermlens("audit-claim", tmp_path / "claim.csv", *given, *few), "has no column for vasc")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,mel\nA,1\n", "has no column for akiec"),
        ("x,y\n1,2\n", "no column for"),
        (f"image,{','.join(CODES)}\nA,1,0,0,0,0,0,0\nA,1,0,0,0,0,0,0\n", "lists image A twice"),
        (f"image,{','.join(CODES)}\nA,1,1,0,0,0,0,0\n", "line 2: the values of A are no prob"),
        (f"image,{','.join(CODES)}\nA,nan,1,0,0,0,0,0\n", "are no probabilities"),
        (f"{','.join(CODES)}\n1,0,0,0,0,0,0\n", "no column of image names"),
    ],
)
def test_what_is_no_claim_is_a_sentence(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "claim.csv").write_text(content)
    with pytest.raises(DataError, match=words):
        read_claim(tmp_path / "claim.csv", HAM10000)


def test_what_is_no_split_or_register_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("image,dx\nA,mel\n")
    with pytest.raises(DataError, match="no column 'split'"):
        read_split(path)
    with pytest.raises(DataError, match="names no lesions"):
        read_register(path, HAM10000)
    path.write_text("image,split\nA,train\nB,\n")
    with pytest.raises(DataError, match="line 3: the image has no split"):
        read_split(path)

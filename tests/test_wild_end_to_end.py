"""Five data sets of the field, each all the way: prepared to exported."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import wild_datasets
from cli_support import dermlens
from dermlens.data.manifest import read_manifest
from dermlens.model.bundle import load_bundle
from tests_support import register_tiny_backbone

CLASSES = {
    wild_datasets.isic_2019: ("mel", "nv", "bcc", "ak", "bkl", "df", "vasc", "scc"),
    wild_datasets.isic_2020: ("benign", "malignant"),
    wild_datasets.isic_archive: None,
    wild_datasets.pad_ufes: None,
    wild_datasets.class_folders: None,
}


@pytest.mark.parametrize("build", CLASSES, ids=lambda build: build.__name__)
def test_a_data_set_goes_all_the_way(build: Callable[[Path], Path], tmp_path: Path) -> None:
    register_tiny_backbone()
    source, data, run = tmp_path / "source", tmp_path / "data", tmp_path / "run"
    source.mkdir()
    build(source)
    for line in (
        ("data", "prepare", source, "--out", data),
        ("data", "split", data),
        ("data", "audit", data),
        ("train", data, "--out", run, "--backbone", "tiny", "--size", "32x40", "--weights", "none",
         "--train-from", "all", "--epochs", 1, "--batch-size", 8),
    ):  # fmt: skip
        done = dermlens(*line)
        assert done.code == 0, (line, done)
    table, bundle = read_manifest(data), run / "bundle"
    codes = load_bundle(bundle).labels.codes
    assert set(table.dx) <= set(codes)
    if CLASSES[build] is not None:
        assert set(codes) == set(CLASSES[build])
    assert dermlens("evaluate", bundle, data, "--out", tmp_path / "e", "--resamples", 20).code == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["n_images"] == (table.split == "test").sum() > 0
    image = data / table.path[0]
    line = ("explain", bundle, image, "--methods", "grad_cam", "--out", tmp_path / "x")
    assert dermlens(*line).code == 0
    maps = np.load(tmp_path / "x" / image.stem / "attributions.npz")
    assert maps["grad_cam"].shape == (32, 40) and np.isfinite(maps["grad_cam"]).all()
    line = (
        "export",
        bundle,
        "--formats",
        "float32",
        "--data",
        data,
        "--out",
        tmp_path / "exported",
    )
    assert dermlens(*line).code == 0
    described = json.loads((tmp_path / "exported" / "model.json").read_text())
    assert [one["code"] for one in described["classes"]] == list(codes)
    predictions = pd.read_csv(tmp_path / "e" / "predictions.csv")
    assert set(predictions.predicted) <= set(codes)

"""Changing a bundle's files in every way, with or without the checksums that would show it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.files import sha256_of_file
from dermlens.model.bundle_description import checksum
from dermlens.model.out_of_distribution import fit_ood_detector
from serving_support import save_untrained

Facts = Any
Change = Callable[[Facts], Any]


def save_detecting(folder: Path) -> Path:
    """Write an untrained bundle that has an out-of-distribution detector too."""
    features = np.random.default_rng(0).normal(size=(90, 8))
    detector = fit_ood_detector(features[:60], np.zeros(60, int), features[60:], classes=1)
    save_untrained(folder)
    np.savez(folder / "outlier.npz", **detector.arrays())
    rewrite(folder, put(detector.to_json(), "outlier"))
    reseal(folder, "outlier.npz")
    return folder


def rewrite(bundle: Path, change: Change, *, sealed: bool = True) -> None:
    """Change a description, and its checksum with it (``sealed``) or not."""
    facts = json.loads((bundle / "bundle.json").read_text())
    change(facts)
    if sealed:
        facts["checksum"] = checksum(facts)
    (bundle / "bundle.json").write_text(json.dumps(facts))


def reseal(bundle: Path, name: str) -> None:
    """Make the checksum of a file fit."""
    rewrite(bundle, put(sha256_of_file(bundle / name), "sha256", name))


def put(value: Any, *keys: Any) -> Change:
    """Return a change of one value."""

    def change(facts: Facts) -> None:
        for key in keys[:-1]:
            facts = facts[key]
        facts[keys[-1]] = value

    return change


def drop(*keys: Any) -> Change:
    """Return a change that leaves something out."""

    def change(facts: Facts) -> None:
        for key in keys[:-1]:
            facts = facts[key]
        del facts[keys[-1]]

    return change

"""``bundle.json``: written with a checksum over all of it, and refused where it cannot be true.

The checksum is the SHA-256 of the canonical JSON of every field but itself and what only informs.
The checksums of the other files are such a field, so it covers classes, calibration, sizes and
weights, and any field that is added later.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dermlens.errors import ModelError, UsageError
from dermlens.files import read_json, sha256_of_file, write_json
from dermlens.labels import HAM10000, LabelSet, chosen
from dermlens.progress import say

NAME = "bundle.json"
FORMAT = 2
"""2: prediction sets, and the balanced rule under its name. Format 1 is still read."""
MAX_SIDE = 4096
"""Of an input, in pixels; far above what any of the networks is used at."""
_DIGITS = 12
_CHECKSUM = "checksum"
_INFORMATIVE = ("dermlens_version", "license")
_SECTIONS = ("architecture", "calibration", "training", "data", "sha256")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def checksum(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 over everything in a description that matters, as hexadecimal text.

    Example:
        >>> one = checksum({"format": 1, "license": "MIT"})
        >>> one == checksum({"license": "other", "format": 1, "checksum": one})
        True
        >>> one == checksum({"format": 2})
        False
    """
    covered = {k: v for k, v in facts.items() if k != _CHECKSUM and k not in _INFORMATIVE}
    canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def model_label(identity: Mapping[str, str]) -> str:
    """Return a model's identity (``Bundle.identity``) in short, for people.

    Example:
        >>> model_label({"name": "ham10000", "backbone": "resnet50", "fingerprint": "ab" * 32})
        'ham10000 (resnet50, fingerprint abababababab)'
    """
    short = identity["fingerprint"][:_DIGITS]
    return f"{identity['name']} ({identity['backbone']}, fingerprint {short})"


def write_description(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write a description with its checksum, atomically, and return it as it is stored.

    The one way to write a ``bundle.json`` or the metadata of an export.

    Args:
        path: JSON file to write.
        facts: Its content; a checksum in it is replaced.
    """
    # What JSON cannot hold (NaN, numpy values) is changed by writing: the checksum is of the rest.
    stored = read_json(write_json(path, {k: v for k, v in facts.items() if k != _CHECKSUM}))
    stored[_CHECKSUM] = checksum(stored)
    write_json(path, stored)
    return stored


def read_description(folder: Path) -> dict[str, Any]:
    """Read the description of a bundle and check it and the files that it lists.

    A bundle of an earlier version, without the checksum, is taken with a warning.

    Args:
        folder: The bundle.

    Raises:
        ModelError: If it comes from a newer version, is damaged or impossible, or a file is
            missing or changed.
    """
    path = folder / NAME
    try:
        facts = read_json(path)
    except RecursionError:
        raise ModelError(f"{path} is not the description of a bundle.") from None
    if not isinstance(facts, dict) or type(facts.get("format")) is not int:
        raise ModelError(f"{path} is not the description of a bundle.")
    if facts["format"] > FORMAT:
        raise ModelError(
            f"The bundle {folder} has format {facts['format']}; this version of dermlens reads up "
            f"to {FORMAT}. Update dermlens."
        )
    if _CHECKSUM not in facts:
        say(
            f"The bundle {folder} was saved by an earlier version of dermlens: no checksum tells "
            "whether its classes and calibration are as they were saved."
        )
    elif facts[_CHECKSUM] != checksum(facts):
        raise ModelError(
            f"The bundle {folder} is damaged: {NAME} has changed since it was saved. Copy the "
            "bundle again."
        )
    for name in _SECTIONS:
        if not isinstance(facts.get(name), dict):
            raise impossible(folder, f"{NAME} lacks the section {name!r}")
    _check_architecture(folder, facts["architecture"])
    if stored_labels(folder, facts).codes != tuple(facts["architecture"]["classes"]):
        raise impossible(folder, "its label set is of other classes than its network")
    _check_files(folder, facts)
    return facts


def impossible(folder: Path, problem: str) -> ModelError:
    """Return the error that says why a bundle cannot be used."""
    return ModelError(f"The bundle {folder} cannot be used: {problem}. Copy it again.")


def _check_architecture(folder: Path, stored: Mapping[str, Any]) -> None:
    size, classes, dropout = (stored.get(name) for name in ("input_size", "classes", "dropout"))
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in size)
    ):
        raise impossible(folder, f"its input size {size!r} is not two sides of 1 to {MAX_SIDE}")
    if not isinstance(classes, list) or len(classes) < 2 or len(set(map(str, classes))) < 2:
        raise impossible(folder, f"its classes {classes!r} are not two or more names")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise impossible(folder, f"its dropout {dropout!r} is not in 0..1")
    if not isinstance(stored.get("backbone"), str):
        raise impossible(folder, "its backbone has no name")


def stored_labels(folder: Path, facts: Mapping[str, Any]) -> LabelSet:
    """Return the label set in a description; HAM10000's where an earlier version wrote it.

    Raises:
        ModelError: If it holds something else.
    """
    if "labels" in facts:
        try:
            return LabelSet.from_json(facts["labels"])
        except UsageError as error:
            raise impossible(folder, str(error).rstrip(".")) from None
    classes = facts["architecture"]["classes"]
    # Those versions knew HAM10000 alone, and labels were positions in its order.
    if classes != [code for code in HAM10000.codes if code in classes]:
        raise impossible(
            folder,
            f"its classes {classes!r} are not those of HAM10000 in the order of their labels",
        )
    return chosen(HAM10000, classes)


def _check_files(folder: Path, facts: Mapping[str, Any]) -> None:
    sums = facts["sha256"]
    network = "model.keras" if "adopted" in facts else "weights.h5"
    needed = [network, *(["outlier.npz"] if facts.get("outlier") is not None else [])]
    for name in needed:
        if name not in sums:
            raise impossible(folder, f"{NAME} has no checksum of {name}")
    for name, expected in sums.items():
        if not isinstance(expected, str) or not _SHA256.fullmatch(expected):
            raise impossible(folder, f"{NAME} has no valid checksum of {name}")
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(
                f"The bundle {folder} is incomplete: {name} is missing. Copy it again."
            )
        if sha256_of_file(folder / name) != expected:
            raise ModelError(
                f"The bundle {folder} is damaged: {name} has changed since it was saved. Copy the "
                "bundle again."
            )

"""``bundle.json``: written with a checksum over all of it, and refused where it cannot be true.

The checksum is the SHA-256 of the canonical JSON of every field but itself and what only informs.
The checksums of the other files are such a field, so it covers classes, calibration, sizes and
weights, and any field that is added later.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dermlens import __version__
from dermlens.data.manifest import DataFacts
from dermlens.errors import ModelError
from dermlens.files import read_json, sha256_of_file, write_json
from dermlens.labels import HAM10000, LabelSet
from dermlens.model.calibration import Calibration, StoredCalibration
from dermlens.model.classifier import MAX_SIDE, MIN_SIDE, Architecture
from dermlens.model.out_of_distribution import StoredDetector
from dermlens.progress import say
from dermlens.schema import Code, Count, OpenSection, Section, checked

NAME = "bundle.json"
FORMAT = 2
"""2: prediction sets, and the balanced rule under its name. Format 1 is still read."""
_DIGITS = 12
_CHECKSUM = "checksum"
_INFORMATIVE = ("dermlens_version", "license")
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


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
    """Write the metadata of a bundle or an export with its checksum; return what is stored.

    Args:
        path: JSON file to write, atomically.
        facts: Its content; a checksum in it is replaced.
    """
    # What JSON cannot hold (NaN, numpy values) is changed by writing: the checksum is of the rest.
    stored = read_json(write_json(path, {k: v for k, v in facts.items() if k != _CHECKSUM}))
    stored[_CHECKSUM] = checksum(stored)
    write_json(path, stored)
    return stored


def describe(
    folder: Path,
    architecture: Architecture,
    labels: LabelSet,
    calibration: Calibration,
    **sections: Any,
) -> dict[str, Any]:
    """Write the description of a bundle whose other files are complete; return what is stored.

    Raises:
        ModelError: If it says what could not be read again.
    """

    def refuse(problem: str) -> ModelError:
        return ModelError(f"The model cannot be saved as a bundle: {problem}.")

    files = sorted(path.name for path in folder.iterdir())
    facts = {
        "format": FORMAT,
        "dermlens_version": __version__,
        "architecture": asdict(architecture),
        "labels": labels.to_json(),
        "calibration": calibration.to_json(),
        "outlier": None,
        **sections,
        "sha256": {name: sha256_of_file(folder / name) for name in files},
    }
    stored = write_description(folder / NAME, facts)
    checked(Description, stored, refuse)
    return stored


class StoredArchitecture(Section):
    """The network and its input."""

    backbone: Code
    input_size: tuple[Side, Side]
    classes: Annotated[tuple[Code, ...], Field(min_length=2)]
    dropout: Annotated[float, Field(ge=0, lt=1)]


class StoredTraining(OpenSection):
    """How the network was trained; nothing is known of an adopted one."""

    seed: Count = 0
    epochs: Count | None = None
    best_epoch: Count | None = None
    augmentation: dict[str, float | bool] | None = None
    early_size: tuple[Side, Side] | None = None
    uncovered_layers: tuple[str, ...] = ()


class Adopted(OpenSection):
    """What has to be known of a foreign network."""

    value_range: tuple[float, float]
    preprocessing: Literal["inside", "caffe", "torch"]
    output: Literal["auto", "logits", "softmax", "sigmoid"]
    custom: tuple[str, ...]


class Description(OpenSection):
    """The content of ``bundle.json``."""

    format: Annotated[int, Field(ge=1)]
    dermlens_version: str
    architecture: StoredArchitecture
    labels: LabelSet | None = None
    calibration: StoredCalibration
    adopted: Adopted | None = None
    training: StoredTraining
    data: DataFacts
    license: str = ""
    storage: str = ""
    outlier: StoredDetector | None = None
    sha256: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]

    @model_validator(mode="after")
    def _belongs_together(self) -> "Description":
        classes = self.architecture.classes
        if self.calibration.classes != classes:
            raise ValueError("calibration.classes are not architecture.classes")
        if self.labels is not None and self.labels.codes != classes:
            raise ValueError("labels are not architecture.classes")
        # Versions without labels knew HAM10000 alone, and labels were positions in its order.
        if self.labels is None and classes != tuple(c for c in HAM10000.codes if c in classes):
            raise ValueError("architecture.classes are not HAM10000's in the order of their labels")
        if self.adopted is None and min(self.architecture.input_size) < MIN_SIDE:
            raise ValueError(f"architecture.input_size must be at least {MIN_SIDE}")
        for name in self.needed_files():
            if name not in self.sha256:
                raise ValueError(f"sha256.{name} is missing")
        return self

    def needed_files(self) -> list[str]:
        """Return the files without which there is no model."""
        network = "weights.h5" if self.adopted is None else "model.keras"
        return [network] if self.outlier is None else [network, "outlier.npz"]


def read_description(folder: Path) -> tuple[dict[str, Any], Description]:
    """Read the description of a bundle and check it and the files that it lists.

    A bundle of an earlier version, without the checksum, is taken with a warning.

    Returns:
        The whole content as it is, and what it says.

    Raises:
        ModelError: If it comes from a newer version, is damaged or impossible, or a file is
            missing or changed.
    """
    path = folder / NAME
    facts = read_json(path)
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
        raise _damaged(folder, NAME)

    def refuse(problem: str) -> ModelError:
        return ModelError(f"The bundle {folder} cannot be used: {NAME}: {problem}. Copy it again.")

    description = checked(Description, facts, refuse)
    for name, expected in description.sha256.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(
                f"The bundle {folder} is incomplete: {name} is missing. Copy it again."
            )
        if sha256_of_file(folder / name) != expected:
            raise _damaged(folder, name)
    return facts, description


def _damaged(folder: Path, name: str) -> ModelError:
    return ModelError(
        f"The bundle {folder} is damaged: {name} has changed since it was saved. Copy the bundle "
        "again."
    )

"""A trained model as a folder: everything needed to serve, evaluate and explain it.

::

    BUNDLE/bundle.json    version, classes, input size, calibration, decision rule, training
                          configuration, data fingerprint, checksums of the other files
    BUNDLE/weights.h5     all weights by layer name (float32, or float16 to halve the size)
    BUNDLE/history.csv    the training record
    BUNDLE/split.csv      image_id, lesion_id, dx, split

Loading builds the network from its description and copies weights into it: nothing is unpickled
and no stored code is run.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermlens import __version__
from dermlens.errors import ModelError
from dermlens.files import folder_beside, read_json, sha256_of_file, write_csv, write_json
from dermlens.model.calibration import Calibration
from dermlens.model.classifier import Architecture, build_classifier
from dermlens.model.prediction import Predictor
from dermlens.model.weights import load_all_by_name, save_by_name

if TYPE_CHECKING:
    import keras

FORMAT = 1
NON_COMMERCIAL = (
    "The weights were trained on HAM10000 (CC BY-NC 4.0) and are for non-commercial use only."
)


@dataclass
class Bundle:
    """A trained classifier with its calibration.

    Attributes:
        path: Folder it was loaded from.
        architecture: Network and input size.
        calibration: Temperature, decision rule and operating points.
        facts: The whole content of ``bundle.json``.
        model: Keras model, images (N, H, W, 3) RGB 0..255 to logits (N, classes).
    """

    path: Path
    architecture: Architecture
    calibration: Calibration
    facts: dict[str, Any]
    model: "keras.Model" = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Codes in the order of the logits."""
        return self.architecture.classes

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.architecture.input_size

    @property
    def synthetic(self) -> bool:
        """True if the model was trained on drawn images only."""
        return bool(self.facts["data"].get("synthetic", False))

    @cached_property
    def history(self) -> pd.DataFrame:
        """The training record."""
        return pd.read_csv(self.path / "history.csv")

    def predictor(self, batch_size: int = 32) -> Predictor:
        """Return a predictor that can also give 8 test-time views."""
        return Predictor(self.model, transposed=self._transposed, batch_size=batch_size)

    def _transposed(self) -> Any:
        turned = build_classifier(self.architecture.transposed())
        turned.set_weights(self.model.get_weights())
        return turned

    def logits(self, images: np.ndarray, *, views: int = 1, batch_size: int = 32) -> np.ndarray:
        """Return logits, float32 (N, classes), of images uint8 or float (N, H, W, 3), 0..255."""
        return self.predictor(batch_size).logits(images, views=views)


def save_bundle(
    path: Path,
    *,
    model: Any,
    architecture: Architecture,
    calibration: Calibration,
    training: dict[str, Any],
    data: dict[str, Any],
    history: pd.DataFrame,
    split: pd.DataFrame,
    dtype: str = "float32",
) -> Bundle:
    """Write a bundle atomically and return it.

    Args:
        path: Folder to write; an older bundle there is replaced.
        model: float32 network built from ``architecture``.
        architecture: Its description.
        calibration: Fitted on validation.
        training: Configuration and outcome of the training.
        data: Name, fingerprint and counts of the data set.
        history: Training record.
        split: Columns image_id, lesion_id, dx, split.
        dtype: Storage of weights, ``"float32"`` or ``"float16"``.
    """
    license_note = NON_COMMERCIAL if data.get("source") == "ham10000" else "MIT"
    with folder_beside(Path(path)) as folder:
        save_by_name(model, folder / "weights.h5", dtype=dtype)
        write_csv(folder / "history.csv", history)
        write_csv(folder / "split.csv", split)
        facts = {
            "format": FORMAT,
            "dermlens_version": __version__,
            "architecture": architecture.to_json(),
            "calibration": calibration.to_json(),
            "training": training,
            "data": data,
            "license": license_note,
            "storage": dtype,
            "sha256": {
                name: sha256_of_file(folder / name)
                for name in ("weights.h5", "history.csv", "split.csv")
            },
        }
        write_json(folder / "bundle.json", facts)
    return Bundle(Path(path), architecture, calibration, facts, model)


def load_bundle(path: Path) -> Bundle:
    """Load a bundle.

    Raises:
        ModelError: If the folder is no bundle, comes from a newer version, or a file of it is
            missing or changed.
    """
    path = Path(path)
    if not (path / "bundle.json").is_file():
        raise ModelError(
            f"{path} is not a bundle: it holds no bundle.json. Give the folder that "
            "'dermlens train' wrote as RUN/bundle."
        )
    facts = read_json(path / "bundle.json")
    if not isinstance(facts, dict) or "format" not in facts:
        raise ModelError(f"{path / 'bundle.json'} is not the description of a bundle.")
    if facts["format"] > FORMAT:
        raise ModelError(
            f"The bundle {path} has format {facts['format']}; this version of dermlens reads up to "
            f"{FORMAT}. Update dermlens."
        )
    _check_files(path, facts)
    architecture = Architecture.from_json(facts["architecture"])
    model = build_classifier(architecture)
    load_all_by_name(model, path / "weights.h5")
    model.trainable = False
    calibration = Calibration.from_json(facts["calibration"])
    return Bundle(path, architecture, calibration, facts, model)


def _check_files(path: Path, facts: dict[str, Any]) -> None:
    for name, expected in facts["sha256"].items():
        if Path(name).name != name or not (path / name).is_file():
            raise ModelError(f"The bundle {path} is incomplete: {name} is missing. Copy it again.")
        if sha256_of_file(path / name) != expected:
            raise ModelError(
                f"The bundle {path} is damaged: {name} has changed since it was saved. Copy the "
                "bundle again."
            )

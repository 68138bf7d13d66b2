"""A trained model as a folder: everything needed to serve, evaluate and explain it.

::

    BUNDLE/bundle.json    version, classes, input size, calibration, prediction sets, training
                          configuration, data fingerprint, checksums of the other files and
                          one over all of this
    BUNDLE/weights.h5     all weights by layer name (float32, or float16 to halve the size)
    BUNDLE/model.keras    instead of weights.h5, the file of an adopted model
    BUNDLE/outlier.npz    directions and means of the out-of-distribution detector
    BUNDLE/cases.npz      where it was made, the index of training images (model/case_index.py)
    BUNDLE/patient_facts.json  where it was made, what age, sex and place on the body add
                          (model/patient_facts.py)
    BUNDLE/history.csv    the training record
    BUNDLE/split.csv      image_id, split, perceptual_hash of training images (before packing also
                          lesion_id, dx)
    BUNDLE/.dermlens      marks a folder that may be replaced by a newer bundle

Loading builds the network from its description and copies weights into it, or has Keras read the
adopted file in its safe mode: nothing is unpickled and no stored code is run.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermlens.errors import ModelError
from dermlens.files import read_table, write_csv
from dermlens.folders import Kind, folder_beside
from dermlens.labels import HAM10000, LabelSet, chosen
from dermlens.model.bundle_choice import (
    SHIPPED,
    bundle_and_rest,
    find_bundle,
    is_bundle,
    no_bundle,
)
from dermlens.model.bundle_description import FORMAT, NAME, checksum, describe, read_description
from dermlens.model.calibration import Calibration
from dermlens.model.classifier import Architecture, build_classifier
from dermlens.model.foreign import ADOPTED_SETTINGS, load_keras_model
from dermlens.model.image_classifier import ImageClassifier
from dermlens.model.out_of_distribution import OODDetector, read_detector
from dermlens.model.prediction import Predictor, split_features, with_features
from dermlens.model.weights import load_all_by_name, save_by_name, set_weights

if TYPE_CHECKING:
    from dermlens.model.patient_facts import PatientFacts

__all__ = [
    "FORMAT",
    "SHIPPED",
    "Bundle",
    "bundle_and_rest",
    "find_bundle",
    "is_bundle",
    "load_bundle",
    "save_bundle",
]
_FILES = ("bundle.json", "weights.h5", "model.keras", "outlier.npz", "history.csv", "split.csv")
_COPY = ("model.tflite", "copy.json", "agreement.json", "agreement.part.json")
_LATER = ("cases.npz", "patient_facts.json", *(f"int8/{name}" for name in _COPY))
KIND = Kind("a bundle", NAME, lambda _: _FILES, later=_LATER)
NON_COMMERCIAL = (
    "The weights were trained on HAM10000 (CC BY-NC 4.0) and are for non-commercial use only."
)


class Bundle(ImageClassifier):
    """A trained classifier with its calibration, history and provenance.

    Args:
        path: Folder it was loaded from.
        architecture: Network and input size.
        calibration: Temperature, prediction sets, operating points and balanced rule.
        facts: The whole content of ``bundle.json``.
        model: Keras model; built from ``architecture``, or the one that was adopted.
        ood_detector: Tells images apart that are unlike the training images; None where there is
            none.
        labels: The classes; default those of HAM10000 with the codes of the architecture.
        **settings: ``value_range``, ``preprocessing`` and ``output`` of an adopted model.
    """

    def __init__(
        self,
        path: Path,
        architecture: Architecture,
        calibration: Calibration,
        facts: dict[str, Any],
        model: Any,
        ood_detector: OODDetector | None = None,
        *,
        labels: LabelSet | None = None,
        **settings: Any,
    ) -> None:
        labels = chosen(HAM10000, architecture.classes) if labels is None else labels
        super().__init__(
            model,
            labels,
            input_size=architecture.input_size,
            calibration=calibration,
            **settings,
        )
        self.path, self.architecture, self.facts = Path(path), architecture, facts
        self.ood_detector = ood_detector
        self.synthetic = bool(facts["data"].get("synthetic", False))

    @property
    def adopted(self) -> bool:
        """True if the network is a foreign Keras model, not one that dermlens has built."""
        return "adopted" in self.facts

    @property
    def best_epoch(self) -> int | None:
        """The fine-tuning epoch (1 is the first) whose weights were kept."""
        return self.facts["training"].get("best_epoch")

    @property
    def name(self) -> str:
        """What people call it: ``ham10000`` for the shipped one, else its last two folders."""
        path = self.path.resolve()
        return path.name if path == SHIPPED.resolve() else "/".join(path.parts[-2:])

    @property
    def identity(self) -> dict[str, str]:
        """What tells this model from every other, for everything that is written with it.

        Name, backbone and fingerprint: the SHA-256 over weights, classes, sizes and calibration.
        """
        return {
            "name": self.name,
            "backbone": self.architecture.backbone,
            "fingerprint": checksum(self.facts),
        }

    @cached_property
    def patient_facts(self) -> "PatientFacts | None":
        """What age, sex and place on the body add to answers; None where it was not fitted."""
        from dermlens.model.case_index import weights_of
        from dermlens.model.patient_facts import read_patient_facts

        temperature = self.calibration.temperature
        return read_patient_facts(self.path, weights_of(self.facts), self.classes, temperature)

    @cached_property
    def history(self) -> pd.DataFrame:
        """The training record; empty for an adopted model."""
        path = self.path / "history.csv"
        return read_table(path) if path.is_file() else pd.DataFrame()

    def predictor(self, batch_size: int = 32) -> Predictor:
        """Return a predictor that can also give 8 test-time views."""
        transposed = None if self.adopted else self._transposed
        return Predictor(self.model, transposed=transposed, batch_size=batch_size)

    def _transposed(self) -> Any:
        turned = build_classifier(self.architecture.transposed())
        set_weights(turned, self.model.get_weights())
        return turned

    def logits_and_ood_scores(
        self,
        images: np.ndarray,
        rows: np.ndarray | None = None,
        *,
        batch_size: int = 32,
        **how: Any,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return logits and out-of-distribution scores; see the base class."""
        if self.ood_detector is None:
            return super().logits_and_ood_scores(images, rows, batch_size=batch_size, **how)
        if batch_size not in self._joint:
            self._joint[batch_size] = Predictor(
                with_features(self.model),
                transposed=lambda: with_features(self._transposed()),
                batch_size=batch_size,
            )
        joined = self._joint[batch_size].logits(images, rows, **how)
        logits, features = split_features(joined, len(self.classes))
        return logits, self.ood_detector.scores(features)

    @cached_property
    def _joint(self) -> dict[int, Predictor]:
        return {}


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
    labels: LabelSet | None = None,
    ood_detector: OODDetector | None = None,
    dtype: str = "float32",
) -> Bundle:
    """Write a bundle atomically and return it.

    Args:
        path: Folder to write; an older bundle there is replaced, anything else is not.
        model: float32 network built from ``architecture``.
        architecture: Its description.
        calibration: Fitted on validation, as the threshold of ``ood_detector``.
        training: Configuration and outcome of the training.
        data: Name, fingerprint and counts of the data set.
        history: Training record.
        split: Columns image_id and split, and any others.
        labels: The classes; default those of HAM10000 with the codes of the architecture.
        dtype: Storage of weights, ``"float32"`` or ``"float16"``.

    Raises:
        DataError: If something else than a bundle stands at ``path``.
    """
    labels = chosen(HAM10000, architecture.classes) if labels is None else labels
    with folder_beside(Path(path), KIND) as folder:
        save_by_name(model, folder / "weights.h5", dtype=dtype)
        write_csv(folder / "history.csv", history)
        write_csv(folder / "split.csv", split)
        if ood_detector is not None:
            arrays: dict[str, Any] = {k: v.astype(dtype) for k, v in ood_detector.arrays().items()}
            np.savez(folder / "outlier.npz", **arrays)
        stored = describe(
            folder,
            architecture,
            labels,
            calibration,
            training=training,
            data=data,
            license=_license(training, data),
            storage=dtype,
            outlier=None if ood_detector is None else ood_detector.to_json(),
        )
    return Bundle(Path(path), architecture, calibration, stored, model, ood_detector, labels=labels)


def _license(training: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Return the terms of weights: those of the images that they have seen.

    So have, before them, the weights they began with and the networks that taught them.
    """
    sources = [data, *(training.get("extra") or ())]
    inherited = [one.get("license") for one in training.get("teachers") or ()]
    inherited.append(training.get("weights_license"))
    seen = any(one.get("source") == "ham10000" for one in sources)
    if seen or training.get("weights") == "shipped" or NON_COMMERCIAL in inherited:
        return NON_COMMERCIAL
    found = [str(one.get("license") or "") for one in sources if not one.get("synthetic")]
    own = "The weights were trained on images with terms of their own."
    found += [str(one or "").removeprefix(own).strip() for one in inherited if one != "MIT"]
    terms = list(dict.fromkeys(filter(None, found)))
    return f"{own} {' '.join(terms)}" if terms else "MIT"


def load_bundle(path: Path, *, custom: Sequence[str] = ()) -> Bundle:
    """Load a bundle.

    Args:
        path: Its folder.
        custom: Layers that an adopted model needs, as ``module:Name``; importing them runs code.

    Raises:
        ModelError: If the folder is no bundle, comes from a newer version, a file of it is missing
            or changed, or its content cannot be true.
    """
    path = Path(path)
    if not is_bundle(path):
        raise ModelError(no_bundle(path))
    facts, description = read_description(path)
    architecture = Architecture(**dict(description.architecture))
    settings: dict[str, Any] = {}
    if (adopted := description.adopted) is not None:
        model = load_keras_model(path / "model.keras", custom, needed=adopted.custom)
        settings = {name: getattr(adopted, name) for name in ADOPTED_SETTINGS}
    else:
        model = build_classifier(architecture)
        load_all_by_name(model, path / "weights.h5")
    model.trainable = False
    ood_detector = None
    if description.outlier is not None:
        features = model.get_layer("pool").output.shape[-1]
        ood_detector = read_detector(
            path / "outlier.npz", description.outlier, len(architecture.classes), features
        )
    return Bundle(
        path,
        architecture,
        description.calibration.calibration(),
        facts,
        model,
        ood_detector,
        labels=description.labels,
        **settings,
    )

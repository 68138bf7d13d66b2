"""An int8 LiteRT copy of a bundle, for methods that only look at scores of changed images.

::

    BUNDLE/int8/model.tflite     logits of one image
    BUNDLE/int8/copy.json        of which weights (SHA-256), how and with what it was made
    BUNDLE/int8/agreement.json   how far maps made with it agree with the Keras model's, if measured

The copy is made once and stands beside the bundle, or in the user's cache directory where the
bundle's folder cannot be written or is the package's own. It is made again when the weights differ.

A bundle that is handed on may hold ``agreement.json`` without the copy itself (24 MB for ResNet50):
it counts for a copy that is the same byte by byte.

Weights are stored in eight bits, per output channel. Activations are rounded to eight bits while
the copy runs, each layer by the range it has in that very image, so no representative images are
needed and none are used. Ranges fixed beforehand by representative images would save about a sixth
of the time, but the rounding is then as large as the effect of a patch (docs/performance.md).
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from dermlens import __version__
from dermlens.errors import DataError, ExplanationError, ModelError
from dermlens.files import sha256_of_file, write_json
from dermlens.folders import Kind, folder_beside
from dermlens.locks import folder_lock
from dermlens.model.bundle import SHIPPED, Bundle, is_bundle
from dermlens.model.lite import LiteClassifier, frozen_function, to_litert, weights_checksum
from dermlens.schema import OpenSection, checked_file

FOLDER = "int8"
_MODEL, _FACTS, _AGREEMENT = "model.tflite", "copy.json", "agreement.json"
PARTIAL = "agreement.part.json"
"""An unfinished measurement."""
_KIND = Kind(
    "an int8 copy",
    None,
    lambda _: (_MODEL, _FACTS, _AGREEMENT),
    later=(_AGREEMENT, PARTIAL),
    # A damaged copy is made again from the weights.
    repaired=True,
)


class StoredCopy(OpenSection):
    """The content of ``copy.json``."""

    weights_sha256: str
    model_sha256: str


class _MethodAgreement(OpenSection):
    pearson: float | None = None


class StoredAgreement(StoredCopy):
    """The content of ``agreement.json``, and of which copy it is."""

    methods: dict[str, _MethodAgreement] = Field(default_factory=dict)


@dataclass(frozen=True)
class Int8Copy:
    """A copy on disk, the content of ``copy.json``, and what a bundle brought along as measured."""

    folder: Path
    facts: dict[str, Any]
    carried: dict[str, Any] | None = None

    @property
    def agreement(self) -> dict[str, Any] | None:
        """What ``serve.scorer_agreement`` measured with this copy; None if nothing yet."""
        for measured in (_read_agreement(self.folder), self.carried):
            # Of another copy, such as a newer converter's, it would say nothing.
            if measured and measured["model_sha256"] == self.facts["model_sha256"]:
                return measured
        return None

    def store_agreement(self, measured: dict[str, Any]) -> Path:
        """Keep what was measured with this copy; an older measurement is replaced."""
        of = {name: self.facts[name] for name in StoredCopy.model_fields}
        return write_json(self.folder / _AGREEMENT, {**measured, **of})

    def scorer(self, model: Any, workers: int | None = None) -> "Int8Scorer":
        """Return the copy as a scorer for explainers of the Keras model it was made from.

        ``workers`` images are evaluated at the same time, default one per core.
        """
        if weights_sha256(model) != self.facts["weights_sha256"]:
            raise ModelError(
                f"The int8 copy in {self.folder} was made from other weights. Call int8_copy, "
                "which makes it again."
            )
        return Int8Scorer(self.folder / _MODEL, weights_checksum(model), workers)


class Int8Scorer(LiteClassifier):
    """A copy, and the checksum of its weights; see ``explainers.perturbation.Scorer``."""

    name = "int8"

    def __init__(self, path: Path, checksum: int, workers: int | None = None) -> None:
        super().__init__(path, workers=workers)
        self._checksum = checksum

    def check(self, model: Any) -> None:
        """Raise ExplanationError if the model was trained or randomized since."""
        if weights_checksum(model) != self._checksum:
            raise ExplanationError(
                "The model's weights have changed since its int8 copy was made, so the copy would "
                "explain another model. Use the scorer float32, or make the copy again."
            )


def weights_sha256(model: Any) -> str:
    """Return the SHA-256 of a model's weights as they are in memory and of its input size."""
    # A copy takes images of one size only.
    digest = hashlib.sha256(f"{model.input_shape[1:]}".encode())
    for weight in model.get_weights():
        digest.update(f"{weight.shape}{weight.dtype}".encode())
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def carried_agreement(bundle: Bundle) -> dict[str, Any] | None:
    """Return what a bundle brings along as measured with a copy of its weights, or None.

    Whether it is the copy that would be made here is known only when that is made.
    """
    measured = _read_agreement(bundle.path / FOLDER)
    same = measured is not None and measured["weights_sha256"] == weights_sha256(bundle.model)
    return measured if same else None


def _read_agreement(folder: Path) -> dict[str, Any] | None:
    path = folder / _AGREEMENT
    if not path.is_file():
        return None
    return checked_file(StoredAgreement, path, "Remove it, and measure again.").model_dump()


def int8_copy(bundle: Bundle) -> Int8Copy:
    """Return the copy of a bundle's weights; made (some 20 s for ResNet50) if there is none.

    Raises:
        ModelError: If the model is in mixed precision, or cannot be converted.
    """
    if found := find_int8_copy(bundle):
        return found
    key = _key(bundle)
    place = _place(bundle, key)
    # Of two runs that need the same copy the second waits, and finds it made.
    with folder_lock(place, wait=True):
        return find_int8_copy(bundle) or _make(bundle, key, place)


def find_int8_copy(bundle: Bundle) -> Int8Copy | None:
    """Return the copy of a bundle's weights if there is a sound one; makes nothing."""
    key = _key(bundle)
    for folder in _folders(bundle, key):
        try:
            facts = checked_file(StoredCopy, folder / _FACTS, "").model_dump()
        except DataError:
            continue
        path = folder / _MODEL
        sound = path.is_file() and facts["model_sha256"] == sha256_of_file(path)
        if facts["weights_sha256"] == key and sound:
            return Int8Copy(folder, facts, _read_agreement(bundle.path / FOLDER))
    return None


def _key(bundle: Bundle) -> str:
    """Return what a copy is a copy of: weights and size, and all settings of an adopted model."""
    weights = weights_sha256(bundle.model)
    if not bundle.adopted:
        return weights
    return hashlib.sha256(f"{weights}{bundle.identity['fingerprint']}".encode()).hexdigest()


def _folders(bundle: Bundle, key: str) -> list[Path]:
    """Return where a copy may be: beside a bundle that is on disk, and in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # Nothing is written into the installed package.
    kept = is_bundle(bundle.path) and bundle.path.resolve() != SHIPPED.resolve()
    beside = [bundle.path / FOLDER] if kept else []
    return [*beside, cache / "dermlens" / FOLDER / key[:32]]


def _place(bundle: Bundle, key: str) -> Path:
    """Return where a new copy is to be written."""
    folders = _folders(bundle, key)
    # The parent is what must be writable: the folder is renamed into it when complete.
    writable = [folder for folder in folders[:-1] if os.access(folder.parent, os.W_OK)]
    return (writable or folders[-1:])[0]


def _make(bundle: Bundle, key: str, folder: Path) -> Int8Copy:
    content, carried = _converted(bundle), _read_agreement(bundle.path / FOLDER)
    with folder_beside(folder, _KIND) as building:
        (building / _MODEL).write_bytes(content)
        facts = {
            "weights_sha256": key,
            "model_sha256": sha256_of_file(building / _MODEL),
            "weights": "int8, one scale per output channel",
            "activations": "int8 while running, ranges of each image; no representative images",
            "backbone": bundle.architecture.backbone,
            "input_size": list(bundle.input_size),
            "classes": list(bundle.classes),
            "dermlens_version": __version__,
        }
        write_json(building / _FACTS, facts)
        if carried is not None:
            write_json(building / _AGREEMENT, carried)
    return Int8Copy(folder, facts, carried)


def _converted(bundle: Bundle) -> bytes:
    import tensorflow as tf

    if bundle.model.dtype_policy.compute_dtype != "float32":
        raise ModelError(
            "A mixed-precision model has no int8 copy. Load the bundle with load_bundle, which "
            "builds it in float32."
        )

    def run(image: Any) -> dict[str, Any]:
        return {"logits": tf.cast(bundle.model(image, training=False), tf.float32)}

    return to_litert(
        frozen_function(run, bundle.input_size),
        ["logits"],
        "dynamic",
        name=bundle.architecture.backbone,
        instead="Use the scorer float32.",
    )

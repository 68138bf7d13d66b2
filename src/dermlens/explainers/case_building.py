"""Making the index of cases of a bundle: whitening, closeness, and what both are worth.

The whitening is fitted on training images, "close" is set on validation images, and what agreement
of the nearest lesions foretells is counted on test images.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from dermlens.data.splits import read_checks
from dermlens.errors import ModelError
from dermlens.explainers.nearest_cases import FeatureReader
from dermlens.locks import folder_lock
from dermlens.model.bundle import Bundle
from dermlens.model.case_index import (
    FILE,
    VOTERS,
    CaseIndex,
    Measured,
    Tally,
    fit_whitening,
    weights_of,
    write_index,
)
from dermlens.model.training_data import load_training_data, require_same_data
from dermlens.progress import progress

DIMENSIONS = 128
"""Directions that are kept; chosen on validation images of HAM10000 (docs/nearest_cases.md)."""
_NO_HASH = "0" * 64


def build_index(bundle: Bundle, data: Path, *, batch_size: int = 32) -> CaseIndex:
    """Make the index of cases of a bundle.

    Args:
        bundle: The model.
        data: The prepared and split data set that it was trained on.
        batch_size: Images per pass; bounds memory.

    Raises:
        DataError: If the data set is not split, or not the one the model was trained on.
        ExplanationError: If the model has no feature maps.
        ModelError: If a class of the data set is none of the model's.
    """
    known = load_training_data(data)
    if not bundle.adopted:
        require_same_data(bundle.path, bundle.facts["data"].get("fingerprint"), known)
    reader, images = FeatureReader(bundle), known.images(bundle.input_size)
    with progress("Looking at cases", len(images)) as advance:
        logits, features = reader.many(images, batch_size=batch_size, advance=advance)
    hashes = read_checks(data).set_index("image_id").perceptual_hash
    table = known.table.assign(perceptual_hash=known.table.image_id.map(hashes))
    predicted = np.asarray(bundle.classes)[logits.argmax(axis=1)]
    return index_of_features(features, predicted, table, bundle.classes, weights_of(bundle.facts))


def index_of_features(
    features: np.ndarray,
    predicted: Sequence[str] | np.ndarray,
    table: pd.DataFrame,
    classes: Sequence[str],
    weights: str,
    *,
    dimensions: int = DIMENSIONS,
) -> CaseIndex:
    """Make an index of features that are known.

    Args:
        features: Pooled features of all images, (N, D).
        predicted: Codes of the most probable classes, (N,).
        table: image_id, lesion_id, dx, dx_type, split and perceptual_hash of all, (N) rows.
        classes: Codes that the model knows.
        weights: SHA-256 of the file of weights.
        dimensions: Directions to keep.

    Raises:
        ModelError: If a diagnosis is none of the classes, or there is no validation image.
    """
    if strange := sorted(set(table.dx) - set(classes)):
        raise ModelError(f"The model does not know the class {strange[0]!r} of the data set.")
    rows = {name: np.flatnonzero(table.split == name) for name in ("train", "validation", "test")}
    if not len(rows["validation"]):
        raise ModelError("An index of cases needs validation images. Split the data set again.")
    dx, train = table.dx.to_numpy(), table.iloc[rows["train"]]
    whitening = fit_whitening(features[rows["train"]], dimensions).stored()
    hashes = [bytes.fromhex(h) for h in train.perceptual_hash.fillna(_NO_HASH)]
    index = CaseIndex(
        whitening,
        whitening(features[rows["train"]]).astype(np.float16),
        np.frombuffer(b"".join(hashes), np.uint8).reshape(len(train), -1),
        train.image_id.to_numpy(str),
        train.lesion_id.fillna(train.image_id).to_numpy(str),
        train.dx.to_numpy(str),
        train.dx_type.fillna("").to_numpy(str),
        weights=weights,
    )
    held = rows["validation"]
    index = index.with_threshold(features[held], dx[held])
    if not len(rows["test"]):
        return index
    test = rows["test"]
    found = measure(index, features[test], dx[test], np.asarray(predicted)[test])
    return replace(index, measured=found)


def measure(
    index: CaseIndex,
    features: np.ndarray,
    diagnoses: np.ndarray,
    predicted: np.ndarray,
    split: str = "test",
) -> Measured:
    """Count what agreement and closeness foretell on images that the network did not learn from.

    Args:
        index: With its threshold.
        features: Of the images, as the network gives them, (M, D).
        diagnoses: Codes, (M,).
        predicted: Likewise, what the model answers.
        split: Which images they are.
    """
    right = predicted == diagnoses
    agreeing = np.concatenate(
        [
            [_votes(index, *one) for one in zip(similarity, predicted[rows], strict=True)]
            for rows, similarity in index.blocks(features)
        ]
    )
    far, own = (
        index.best_of(features, codes) < index.threshold for codes in (predicted, diagnoses)
    )

    def tally(which: np.ndarray) -> Tally:
        return Tally(images=int(which.sum()), right=int((which & right).sum()))

    return Measured(
        split=split,
        answers=tally(np.ones(len(right), bool)),
        agreeing=tuple(tally(agreeing == count) for count in range(VOTERS + 1)),
        without_close=tally(far),
        own_without_close=int(own.sum()),
    )


def _votes(index: CaseIndex, similarity: np.ndarray, code: str) -> int:
    return sum(case.dx == code for case in index.nearest(similarity, VOTERS))


def add_index(bundle: Bundle, data: Path, *, batch_size: int = 32) -> Path:
    """Make the index of a bundle and write it into its folder; return the file.

    Nothing else of the bundle changes, nor does its fingerprint.
    """
    with folder_lock(bundle.path), folder_lock(data, shared=True):
        index = build_index(bundle, data, batch_size=batch_size)
        return write_index(bundle.path / FILE, index)

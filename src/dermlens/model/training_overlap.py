"""Which images of a data set a model was trained on, so that none is scored without a word.

A bundle keeps the ids of its split, with a perceptual hash of each training image, so that images
are known again under another name. What belongs to them, photographs of the same lesion or patient,
counts too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.duplicates import hash_distances, turned_hashes
from dermlens.data.manifest import AS_WRITTEN, patients, read_manifest, select_split
from dermlens.data.splits import read_checks
from dermlens.errors import DataError
from dermlens.files import write_csv
from dermlens.model.bundle_choice import SHIPPED
from dermlens.progress import say

MAX_HASH_DISTANCE = 28
"""Bits of 256 within which two hashes are of one photograph.

Of 32 million pairs of different photographs of HAM10000 none is as close, mirrored and turned ones
included. Copies saved at quality 50, at half or double size, or brightened, differ by 14 at most,
mirrored or turned ones mostly by 12, cut by 3 percent mostly by less than 32.
"""
ALLOW = "--allow-training-images (in Python allow_training_images=True)"
_NAMED = 3

FILE = "training_overlap.csv"


@dataclass(frozen=True)
class SeenImages:
    """What a model was trained on: image ids, lesion ids where known, hashes uint8 (N, 32)."""

    images: frozenset[str]
    lesions: frozenset[str]
    hashes: np.ndarray


@dataclass(frozen=True)
class TrainingOverlap:
    """Images to score that a model was trained on.

    Attributes:
        table: image_id and ``why``: ``image`` (the same id), ``near-duplicate`` (the same
            photograph under another id), ``lesion`` or ``patient`` (belongs to such an image).
        images: How many were to be scored.
    """

    table: pd.DataFrame
    images: int

    def counts(self) -> dict[str, int]:
        """Return how many images there are, of each kind and of all."""
        kinds = self.table.why.value_counts()
        return {"all": len(self.table), **{str(why): int(n) for why, n in kinds.items()}}

    def write(self, out: Path) -> None:
        """Write the images and why they count as seen into a folder; nothing if there are none."""
        path = Path(out) / FILE
        if self.table.empty:
            path.unlink(missing_ok=True)
        else:
            write_csv(path, self.table)

    def to_leave_out(self, allow: bool = False) -> frozenset[str]:
        """Say how many images are left out, and return their ids; none if they are allowed.

        Raises:
            DataError: If no image would be left.
        """
        if self.table.empty:
            return frozenset()
        counts = self.counts()
        names = ", ".join(self.table.image_id[:_NAMED])
        more = ", …" if counts["all"] > _NAMED else ""
        parts = {
            "image": "by their ids",
            "near-duplicate": "as the same photograph under another id",
            "lesion": "by a lesion",
            "patient": "by a patient",
        }
        kinds = ", ".join(f"{counts[k]:,} {words}" for k, words in parts.items() if k in counts)
        found = (
            f"The model was trained on {counts['all']:,} of the {self.images:,} images ({kinds}: "
            f"{names}{more})"
        )
        if allow:
            say(f"{found}. They are scored all the same: the figures are too good.")
            return frozenset()
        if counts["all"] >= self.images:
            raise DataError(f"{found}, so that none is left to score. To score them give {ALLOW}.")
        say(f"{found}. They are left out; {ALLOW} keeps them.")
        return frozenset(self.table.image_id)


def seen_images(classifier: Any) -> SeenImages | None:
    """Return what a model was trained on, None where it does not tell."""
    path = getattr(classifier, "path", None)
    if path is None or not (Path(path) / "split.csv").is_file():
        return None
    text = {"image_id": str, "lesion_id": str, "split": str, "perceptual_hash": str}
    table = pd.read_csv(Path(path) / "split.csv", dtype=text, **AS_WRITTEN)
    if not {"image_id", "split"} <= set(table.columns):
        return None
    table = table[table.split.isin(TRAINED_ON)]
    lesions = table.lesion_id.dropna() if "lesion_id" in table else pd.Series(dtype=str)
    # A lesion that is called like its image has no name of its own; bare numbers occur anywhere.
    named = {one for one in lesions if not one.isdigit()} - set(table.image_id)
    if "perceptual_hash" in table:
        stored = _unpacked(table.perceptual_hash.dropna())
    else:
        stored = _kept_apart(classifier.facts["data"].get("fingerprint"))
    return SeenImages(frozenset(table.image_id), frozenset(named), stored)


def knows_looks(classifier: Any) -> bool:
    """Tell whether a model knows its training images by their hashes, not by their ids alone."""
    seen = seen_images(classifier)
    return seen is not None and len(seen.hashes) > 0


def _unpacked(hashes: pd.Series) -> np.ndarray:
    rows = [np.frombuffer(bytes.fromhex(text), np.uint8) for text in hashes]
    return np.stack(rows) if rows else np.zeros((0, 32), np.uint8)


def _kept_apart(fingerprint: str | None) -> np.ndarray:
    """Return the hashes of data sets that bundles of earlier versions were trained on."""
    path = SHIPPED.parent / f"training_hashes_{(fingerprint or '')[:12]}.npy"
    return np.load(path, allow_pickle=False) if path.is_file() else np.zeros((0, 32), np.uint8)


EXTRA = "extra"
TRAINED_ON = ("train", EXTRA)
"""EXTRA is the split, in a bundle, of images that were trained on besides those of its data set."""


def with_hashes(data: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return the split a bundle is to keep, with the hashes of its training images.

    Args:
        data: The prepared data set.
        table: Columns image_id and split, and any others.
    """
    hashes = read_checks(data).set_index("image_id").perceptual_hash
    found = table.image_id.map(hashes).where(table.split.isin(TRAINED_ON))
    return table.assign(perceptual_hash=found)


def training_overlap(classifier: Any, data: Path, split: str) -> TrainingOverlap:
    """Find the images of a split of a prepared data set that a model was trained on.

    Raises:
        DataError: If the data set is not split or the split is empty.
    """
    table = read_manifest(data)
    hashes = dict(read_checks(data).loc[:, ["image_id", "perceptual_hash"]].to_numpy())
    return overlap_of(classifier, select_split(table, split), table, hashes)


def overlap_of(
    classifier: Any, rows: pd.DataFrame, table: pd.DataFrame, hashes: Mapping[str, str]
) -> TrainingOverlap:
    """Find the rows that a model was trained on.

    Args:
        classifier: A bundle; of other models nothing is known.
        rows: What is to be scored: image_id, lesion_id, perhaps patient_id.
        table: All images that are known beside them, likewise.
        hashes: Perceptual hash of each image.
    """
    nothing = pd.DataFrame({"image_id": [], "why": []}, dtype=object)
    seen = seen_images(classifier)
    if seen is None or table.empty:
        return TrainingOverlap(nothing, len(rows))
    by_id = table.image_id.isin(seen.images)
    copied = _copies([hashes.get(name) for name in table.image_id], seen.hashes)
    known = table[by_id | copied]
    lesion = rows.lesion_id if "lesion_id" in rows else pd.Series(None, rows.index, dtype=object)
    lesions = set(known.lesion_id.dropna()) if "lesion_id" in known else set()
    why = pd.Series(None, index=rows.index, dtype=object)
    why[patients(rows).isin(set(patients(known).dropna())) & patients(rows).notna()] = "patient"
    why[lesion.isin(lesions | seen.lesions) & lesion.notna()] = "lesion"
    why[rows.image_id.isin(set(table.image_id[copied]))] = "near-duplicate"
    why[rows.image_id.isin(seen.images)] = "image"
    found = pd.DataFrame({"image_id": rows.image_id, "why": why}).dropna()
    return TrainingOverlap(found.reset_index(drop=True), len(rows))


def are_copies(hashes: list[str | None], known: pd.Series) -> np.ndarray:
    """Return bool (N,): whether an image is one of known hashes (M) by its own, perhaps turned."""
    return _copies(hashes, _unpacked(known))


def _copies(hashes: list[str | None], seen: np.ndarray) -> np.ndarray:
    """Return bool (N,): whether an image is a training image by its hash, perhaps turned."""
    found = np.zeros(len(hashes), bool)
    rows = [number for number, one in enumerate(hashes) if isinstance(one, str)]
    if rows and len(seen):
        mine = _unpacked(pd.Series([hashes[number] for number in rows]))
        nearest = [hash_distances(turned, seen) for turned in turned_hashes(mine)]
        found[rows] = np.min(nearest, axis=0) <= MAX_HASH_DISTANCE
    return found

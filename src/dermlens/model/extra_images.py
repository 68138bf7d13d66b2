"""More images to train on, from other data sets, that serve training alone.

Validation and test stay what they are, so that figures stay comparable; whatever belongs to them,
by its id, its lesion, its patient or its looks, is left out of the extra images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from dermlens.data.cache import cached_images
from dermlens.data.manifest import class_counts, data_facts, fingerprint, patients, read_manifest
from dermlens.data.splits import read_checks
from dermlens.errors import DataError
from dermlens.labels import LabelSet
from dermlens.locks import folder_lock
from dermlens.model.training_overlap import are_copies
from dermlens.progress import say


@dataclass(frozen=True)
class ExtraImages:
    """A prepared data set of which some images are trained on besides.

    Attributes:
        folder: The data set; its own split, if it has one, means nothing here.
        table: Its whole manifest.
        rows: int64 (N,): which rows are trained on.
        fingerprint: Of the data set's content.
    """

    folder: Path
    table: pd.DataFrame
    rows: np.ndarray
    fingerprint: str

    def images(self, size: tuple[int, int]) -> np.ndarray:
        """Return all images of the data set at a size: uint8 (M, H, W, 3), a memory map."""
        with folder_lock(self.folder, shared=True):
            return cached_images(self.folder, self.table, size)

    @cached_property
    def chosen(self) -> pd.DataFrame:
        """The rows of the manifest that are trained on."""
        return self.table.iloc[self.rows].reset_index(drop=True)

    def facts(self, labels: LabelSet) -> dict[str, object]:
        """Return what a bundle keeps of it, as JSON types."""
        known = data_facts(self.folder)
        return {
            "name": known.name,
            "source": known.source,
            "synthetic": known.synthetic,
            "license": known.license,
            "fingerprint": self.fingerprint,
            "images": len(self.rows),
            "per_class": class_counts(self.chosen, labels),
        }


def read_extra(
    folder: Path, table: pd.DataFrame, hashes: dict[str, str], labels: LabelSet
) -> ExtraImages:
    """Choose the images of a prepared data set that may be trained on besides another.

    Left out are images of the other data set, whatever belongs to its validation and test images
    (the same lesion or patient, the same photograph under another id), and unknown classes.

    Args:
        folder: The prepared data set.
        table: Manifest of the data set that is trained on, split.
        hashes: Perceptual hash of each of its images.
        labels: Its classes.

    Raises:
        DataError: If no image is left.
    """
    more = read_manifest(folder)
    checks = read_checks(folder)
    held = table[table.split != "train"]
    looks = checks.set_index("image_id").perceptual_hash.reindex(more.image_id)
    known = pd.Series([hashes[one] for one in held.image_id], dtype=object)
    reasons = {
        "of the data set itself": more.image_id.isin(table.image_id),
        "of lesions that are validated or tested on": more.lesion_id.isin(held.lesion_id),
        "of patients that are validated or tested on": (
            patients(more).notna() & patients(more).isin(patients(held).dropna())
        ),
        "that look like validation or test images": pd.Series(
            are_copies(list(looks), known), index=more.index
        ),
        "of unknown classes": ~more.dx.isin(labels.codes),
    }
    usable, told = pd.Series(True, index=more.index), []
    for why, those in reasons.items():
        if found := int((usable & those).sum()):
            told.append(f"{found:,} {why}")
        usable &= ~those
    left_out = f"; left out: {', '.join(told)}" if told else ""
    if not usable.any():
        raise DataError(f"No image of {folder} can be trained on besides{left_out}.")
    say(f"{int(usable.sum()):,} of {len(more):,} images of {folder} are trained on{left_out}.")
    return ExtraImages(
        Path(folder), more, np.flatnonzero(usable.to_numpy()), fingerprint(more, checks)
    )


def read_extras(
    folders: Sequence[Path], table: pd.DataFrame, hashes: dict[str, str], labels: LabelSet
) -> tuple[ExtraImages, ...]:
    """Return the extra images of several data sets; what is in an earlier one counts once.

    Raises:
        DataError: If a data set gives no image.
    """
    found: list[ExtraImages] = []
    for folder in folders:
        known = pd.concat([table, *(one.chosen.assign(split="train") for one in found)])
        found.append(read_extra(folder, known, hashes, labels))
    return tuple(found)


class StackedImages:
    """Images of several data sets in one row, read like one array (M, H, W, 3).

    Only whole batches of rows are read; what is not asked for stays on the disk.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.shape = (int(self._starts[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        place = np.searchsorted(self._starts, rows, side="right") - 1
        for number, part in enumerate(self._parts):
            here = place == number
            if here.any():
                found[here] = part[rows[here] - self._starts[number]]
        return found

"""The training split and its companions, read once and handed around."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from dermlens.data.cache import cached_images
from dermlens.data.manifest import (
    SPLITS,
    class_counts,
    class_indices,
    data_labels,
    fingerprint,
    read_manifest,
    select_split,
)
from dermlens.data.pipeline import TrainingSet, sample_weights
from dermlens.data.splits import read_checks
from dermlens.errors import DataError
from dermlens.files import read_table
from dermlens.labels import LabelSet
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.extra_images import ExtraImages, StackedImages, read_extras
from dermlens.model.training_overlap import EXTRA, with_hashes


@dataclass(frozen=True)
class TrainingData:
    """A split data set, ready for training.

    Attributes:
        folder: The prepared data set.
        table: Its manifest.
        classes: Its label set.
        labels: int32 (N,), class positions in manifest order.
        rows: Manifest rows of each split.
        fingerprint: Of the data set's content.
        extras: Images of other data sets that are trained on besides.
    """

    folder: Path
    table: pd.DataFrame
    classes: LabelSet
    labels: np.ndarray
    rows: dict[str, np.ndarray]
    fingerprint: str
    extras: tuple[ExtraImages, ...] = ()
    _opened: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def images(self, size: tuple[int, int]) -> np.ndarray:
        """Return all images at a size: uint8 (N, H, W, 3), a memory map opened once."""
        # Pipelines of past epochs keep what they read from, so each epoch must get the same map.
        if size not in self._opened:
            self._opened[size] = cached_images(self.folder, self.table, size)
        return self._opened[size]

    @property
    def count(self) -> int:
        """Number of images that are trained on."""
        return len(self.rows["train"]) + sum(len(one.rows) for one in self.extras)

    @property
    def identity(self) -> str:
        """What training depends on: the fingerprints of the data set and of extra ones."""
        return "+".join([self.fingerprint, *(one.fingerprint for one in self.extras)])

    def stored_split(self, *columns: str) -> pd.DataFrame:
        """Return the split a bundle is to keep: image_id, ``columns``, split and hashes.

        Images of extra data sets stand behind those of the data set itself.
        """
        names = ["image_id", *columns, "split"]
        parts = [with_hashes(self.folder, self.table[names])]
        for one in self.extras:
            parts.append(with_hashes(one.folder, one.chosen.assign(split=EXTRA)[names]))
        return pd.concat(parts, ignore_index=True)


def load_training_data(data: Path, extra: Sequence[Path] = ()) -> TrainingData:
    """Read a split data set.

    Args:
        data: The prepared and split data set.
        extra: Prepared data sets that serve training alone.

    Raises:
        DataError: If it is not split, a class is missing from train or validation, or an extra
            data set gives no image.
    """
    table, classes = read_manifest(data), data_labels(data)
    for split in ("train", "validation"):
        counts = class_counts(select_split(table, split), classes)
        lacking = [code for code, count in counts.items() if count == 0]
        if lacking:
            raise DataError(
                f"The {split} split holds no image of {', '.join(lacking)}. Add images of it and "
                "run 'dermlens data split DATA' again."
            )
    split_column = table.split.to_numpy()
    rows = {split: np.flatnonzero(split_column == split) for split in SPLITS}
    checks = read_checks(data)
    hashes = dict(zip(checks.image_id, checks.perceptual_hash, strict=True)) if extra else {}
    return TrainingData(
        Path(data),
        table,
        classes,
        class_indices(table, classes),
        rows,
        fingerprint(table, checks),
        read_extras(extra, table, hashes, classes),
    )


def require_same_data(bundle_path: Path, fingerprint: str | None, data: TrainingData) -> None:
    """Refuse a bundle that was trained on other images or another split.

    Args:
        bundle_path: Its folder.
        fingerprint: Of the data it was trained on, as the bundle tells.
        data: The data set it must have been trained on.

    Raises:
        DataError: If it was not.
    """
    stored = read_table(bundle_path / "split.csv", ("image_id", "split"), dtype=str)
    same_split = _splits(stored[stored.split != EXTRA]) == _splits(data.table)
    if fingerprint != data.fingerprint or not same_split:
        raise DataError(
            f"{data.folder} is not the data set {bundle_path} was trained on (other images or "
            "another split). Prepare and split it as then."
        )


def _splits(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table.image_id, table.split, strict=True))


def training_set(
    data: TrainingData, configuration: TrainingConfiguration, size: tuple[int, int]
) -> TrainingSet:
    """Return the training split and extra images at a size, with their loss weights."""
    rows, labels, images = (
        [data.rows["train"]],
        [data.labels[data.rows["train"]]],
        data.images(size),
    )
    parts = [images]
    for one in data.extras:
        rows.append(one.rows + sum(map(len, parts)))
        labels.append(class_indices(one.chosen, data.classes))
        parts.append(one.images(size))
    classes = len(configuration.architecture.classes)
    joined = np.concatenate(labels)
    weights = sample_weights(joined, configuration.imbalance, classes)
    pixels = StackedImages(parts) if data.extras else images
    return TrainingSet(pixels, np.concatenate(rows), joined, weights)

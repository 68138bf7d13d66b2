"""The training split and its companions, read once and handed around."""

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
    """

    folder: Path
    table: pd.DataFrame
    classes: LabelSet
    labels: np.ndarray
    rows: dict[str, np.ndarray]
    fingerprint: str
    _opened: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def images(self, size: tuple[int, int]) -> np.ndarray:
        """Return all images at a size: uint8 (N, H, W, 3), a memory map opened once."""
        # Pipelines of past epochs keep what they read from, so each epoch must get the same map.
        if size not in self._opened:
            self._opened[size] = cached_images(self.folder, self.table, size)
        return self._opened[size]


def load_training_data(data: Path) -> TrainingData:
    """Read a split data set.

    Raises:
        DataError: If it is not split, or a class is missing from train or validation.
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
    return TrainingData(
        Path(data),
        table,
        classes,
        class_indices(table, classes),
        rows,
        fingerprint(table, read_checks(data)),
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
    same_split = _splits(stored) == _splits(data.table)
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
    """Return the training split at a size, with its loss weights."""
    rows = data.rows["train"]
    labels = data.labels[rows]
    classes = len(configuration.architecture.classes)
    weights = sample_weights(labels, configuration.imbalance, classes)
    return TrainingSet(data.images(size), rows, labels, weights)

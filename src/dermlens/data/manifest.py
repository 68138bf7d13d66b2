"""The manifest: one row per image of a prepared data set.

A prepared data set is a folder::

    DATA/manifest.csv      image_id, path, mask_path, lesion_id, dx, dx_type, age, sex,
                           localization, split   (paths relative to DATA; missing stays empty);
                           patient_id, image_type where they are known
    DATA/dataset.json      label set, counts, fingerprint, where it came from
    DATA/images.csv        image_id, width, height, bytes, crc32, perceptual_hash
    DATA/images/           <image_id>.jpg
    DATA/masks/            <image_id>_segmentation.png          (where known)
    DATA/structures/       <image_id>_structure.png             (synthetic data only)
    DATA/cache/            decoded pixels at training sizes, made on demand
    DATA/.dermlens         what the folder is, and what was written into it
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from dermlens.errors import DataError
from dermlens.files import write_csv
from dermlens.folders import Kind
from dermlens.labels import HAM10000, LabelSet
from dermlens.schema import Count, OpenSection, Share, checked_file

COLUMNS: tuple[str, ...] = (
    "image_id",
    "path",
    "mask_path",
    "lesion_id",
    "dx",
    "dx_type",
    "age",
    "sex",
    "localization",
    "split",
)
OPTIONAL_COLUMNS: tuple[str, ...] = ("patient_id", "image_type")
"""Columns that stand behind the others where they are known."""
SPLITS: tuple[str, ...] = ("train", "validation", "test")
AS_WRITTEN: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
"""How our own tables are read: an image may be called ``null`` or ``NA``."""
_TEXT_COLUMNS = tuple(column for column in (*COLUMNS, *OPTIONAL_COLUMNS) if column != "age")


def data_set_kind(name: str) -> Kind:
    """Return what a data set is as a folder that is written as a whole."""
    return Kind(
        name,
        "dataset.json",
        _listed,
        later=(
            *("manifest.csv", "dataset.json", "near_duplicates.csv", "audit.csv"),
            *("cache/*x*/images.npy", "cache/*x*/index.json"),
        ),
        repaired=True,
    )


def _listed(data: Path) -> set[str]:
    """Return the files that a data set's own manifest lists, and its tables."""
    try:
        table = read_manifest(data)
    except DataError:
        return {"images.csv"}
    structures = {f"structures/{image_id}_structure.png" for image_id in table.image_id}
    return {"images.csv", *table.path, *table.mask_path.dropna(), *structures}


class SplitFacts(OpenSection):
    """What ``dataset.json`` says of a split; every field may be missing."""

    seed: Count = 0
    fractions: dict[str, Share] = Field(default_factory=dict)
    images: dict[str, Count] = Field(default_factory=dict)
    per_class: dict[str, dict[str, Count]] = Field(default_factory=dict)


class DataFacts(OpenSection):
    """What ``dataset.json``, and a bundle of its data, says; every field may be missing."""

    name: str = ""
    source: str = ""
    synthetic: bool = False
    license: str = ""
    fingerprint: str = ""
    n_images: Count = 0
    n_lesions: Count = 0
    per_class: dict[str, Count] = Field(default_factory=dict)
    split: SplitFacts | None = None
    labels: LabelSet = HAM10000

    def without(self, *names: str) -> dict[str, Any]:
        """Return what it says, as JSON types, less some fields and the label set."""
        told = set(DataFacts.model_fields) - {"labels", *names}
        return self.model_dump(include=told, exclude_unset=True)


def data_facts(data: Path) -> DataFacts:
    """Return what ``dataset.json`` says; what it does not say counts as HAM10000's.

    Raises:
        DataError: If a field of it has another form.
    """
    path = Path(data) / "dataset.json"
    if not path.is_file():
        return DataFacts()
    return checked_file(DataFacts, path, "Prepare the data set again.")


def data_labels(data: Path) -> LabelSet:
    """Return the label set of a prepared data set; HAM10000's where an earlier version made it.

    Raises:
        DataError: If ``dataset.json`` holds something else.
    """
    return data_facts(data).labels


def read_manifest(data: Path) -> pd.DataFrame:
    """Read the manifest of a prepared data set.

    Args:
        data: Folder written by ``data prepare`` or ``data synthetic``.

    Returns:
        One row per image with the columns in ``COLUMNS``; ``age`` in years as float,
        the others text; missing values are NaN. ``split`` is NaN before ``data split``.

    Raises:
        DataError: If the folder holds no manifest, a column is missing, an image is
            listed twice, or a diagnosis is unknown.
    """
    path = Path(data) / "manifest.csv"
    if not path.is_file():
        raise DataError(
            f"{data} is not a prepared data set: it holds no manifest.csv. Make one with "
            "'dermlens data prepare SOURCE --out DATA' or 'dermlens data synthetic --out DATA'."
        )
    table = pd.read_csv(path, dtype=dict.fromkeys(_TEXT_COLUMNS, "object"), **AS_WRITTEN)
    check_manifest(table, data_labels(data), str(path))
    return table


def check_manifest(table: pd.DataFrame, labels: LabelSet, name: str = "manifest.csv") -> None:
    """Raise DataError unless the table is a usable manifest."""
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise DataError(f"{name} lacks the column {missing[0]!r}. Prepare the data set again.")
    if table.empty:
        raise DataError(f"{name} lists no image. Prepare the data set again.")
    twice = table.loc[table.image_id.duplicated(), "image_id"]
    if len(twice):
        raise DataError(f"{name} lists image {twice.iloc[0]} twice. Prepare the data set again.")
    unknown = sorted(set(table.dx.dropna()) - set(labels.codes))
    if unknown or table.dx.isna().any():
        raise DataError(
            f"{name} holds the diagnosis {unknown[0] if unknown else '(empty)'!r}, which is none "
            f"of {', '.join(labels.codes)}. Correct the metadata and prepare the data set again."
        )


def write_manifest(data: Path, table: pd.DataFrame, labels: LabelSet) -> Path:
    """Check the table and write it as ``DATA/manifest.csv``, sorted by image_id."""
    check_manifest(table, labels)
    ordered = table.loc[:, present_columns(table)].sort_values("image_id", kind="stable")
    return write_csv(Path(data) / "manifest.csv", ordered)


def present_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of a manifest, of the optional ones those that hold anything."""
    more = [one for one in OPTIONAL_COLUMNS if one in table and table[one].notna().any()]
    return [*COLUMNS, *more]


def patients(table: pd.DataFrame) -> pd.Series:
    """Return the patient of each row, missing where it is not known."""
    if "patient_id" in table:
        return table.patient_id
    return pd.Series(None, index=table.index, dtype=object)


def select_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the rows of one split, with a fresh index.

    Raises:
        DataError: If the data set has not been split, or the split is unknown or empty.
    """
    if split == "all":
        return table.reset_index(drop=True)
    if split not in SPLITS:
        raise DataError(f"Unknown split {split!r}. Use one of: {', '.join(SPLITS)}, all.")
    if table.split.isna().any():
        raise DataError("The data set is not split yet. Run 'dermlens data split DATA' first.")
    rows = table[table.split == split]
    if rows.empty:
        raise DataError(f"The split {split!r} holds no image. Run 'dermlens data split DATA'.")
    return rows.reset_index(drop=True)


def sample_in_proportion(table: pd.DataFrame, limit: int, seed: int = 0) -> pd.DataFrame:
    """Return about ``limit`` rows, of every diagnosis its share and at least one."""
    if len(table) <= limit:
        return table
    generator = np.random.default_rng(seed)
    kept: list[int] = []
    for _, rows in table.groupby("dx"):
        count = max(1, round(limit * len(rows) / len(table)))
        kept += list(generator.choice(rows.index, min(count, len(rows)), replace=False))
    return table.loc[sorted(kept)]


def class_counts(table: pd.DataFrame, labels: LabelSet) -> dict[str, int]:
    """Return the number of images per class, in class order, zeros included."""
    counts = table.dx.value_counts()
    return {code: int(counts.get(code, 0)) for code in labels.codes}


def class_indices(table: pd.DataFrame, labels: LabelSet) -> np.ndarray:
    """Return the class of each row as int32 positions in the label set, shape (N,)."""
    return np.asarray([labels.codes.index(code) for code in table.dx], dtype=np.int32)


def fingerprint(table: pd.DataFrame, checks: pd.DataFrame) -> str:
    """Return a SHA-256 over ids, labels and pixel checksums, independent of row order and split.

    Args:
        table: Manifest.
        checks: Columns ``image_id`` and ``crc32`` (the content of ``images.csv``).
    """
    crc = dict(zip(checks.image_id, checks.crc32, strict=True))
    lines = sorted(
        f"{row.image_id},{row.lesion_id},{row.dx},{int(crc[row.image_id]):08x}"
        for row in table.itertuples()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

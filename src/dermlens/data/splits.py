"""Stratified splits by patient or lesion, and the audit that proves they do not leak."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dermlens.data.duplicates import near_duplicates
from dermlens.data.manifest import (
    AS_WRITTEN,
    SPLITS,
    class_counts,
    data_labels,
    patients,
    read_manifest,
    write_manifest,
)
from dermlens.errors import DataError, UsageError
from dermlens.files import read_json, write_csv, write_json
from dermlens.locks import folder_lock

FRACTIONS: dict[str, float] = {"train": 0.70, "validation": 0.15, "test": 0.15}


def split_data_set(
    data: Path, *, seed: int = 0, fractions: Mapping[str, float] = FRACTIONS
) -> pd.DataFrame:
    """Assign every image of a prepared data set to train, validation or test, and store it.

    Images of one lesion, of one patient where patients are known, and near-duplicate images of
    different lesions stay together; each diagnosis is divided in the same proportions. The same
    seed gives the same split on every machine.

    Returns:
        The manifest with its ``split`` column filled.

    Raises:
        DataError: If a diagnosis has fewer lesions, or patients, than there are splits.
        UsageError: If the seed is negative, or another run uses the data set.
    """
    if seed < 0:
        raise UsageError(f"The seed must not be negative, but is {seed}.")
    data = Path(data)
    with folder_lock(data):
        table, labels = read_manifest(data), data_labels(data)
        pairs = near_duplicates(data, table, read_checks(data))
        groups = connected_groups(table, zip(pairs.image_a, pairs.image_b, strict=True))
        table["split"] = assign(table, groups, seed=seed, fractions=fractions)
        write_csv(data / "near_duplicates.csv", pairs)
        write_manifest(data, table, labels)
        summary = read_json(data / "dataset.json")
        summary["split"] = {
            "seed": seed,
            "fractions": dict(fractions),
            "near_duplicate_pairs": len(pairs),
            "images": {s: int((table.split == s).sum()) for s in SPLITS},
            "per_class": {s: class_counts(table[table.split == s], labels) for s in SPLITS},
        }
        if patients(table).notna().any():
            summary["split"]["grouped_by"] = "patient"
        write_json(data / "dataset.json", summary)
    return table


def read_checks(data: Path) -> pd.DataFrame:
    """Read ``images.csv`` of a prepared data set.

    Raises:
        DataError: If it is missing.
    """
    path = Path(data) / "images.csv"
    if not path.is_file():
        raise DataError(f"{path} is missing. Prepare the data set again.")
    return pd.read_csv(path, dtype={"image_id": str, "perceptual_hash": str}, **AS_WRITTEN)


def connected_groups(table: pd.DataFrame, pairs: Iterable[tuple[str, str]] = ()) -> np.ndarray:
    """Return a group name per row: one for images of a lesion, a patient, a near-duplicate pair.

    Args:
        table: Manifest.
        pairs: Pairs of image ids that must stay together.

    Returns:
        Object array (N,): the alphabetically first lesion id of each row's group.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    lesions, lesion = np.unique(table.lesion_id.to_numpy(dtype=str), return_inverse=True)
    row_of = dict(zip(table.image_id, lesion, strict=True))
    linked = [(row_of[a], row_of[b]) for a, b in pairs]
    first_of: dict[str, int] = {}
    for patient, one in zip(patients(table), lesion, strict=True):
        if isinstance(patient, str):
            linked.append((first_of.setdefault(patient, one), one))
    ends = np.array(linked, int).reshape(-1, 2).T
    links = coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), (len(lesions), len(lesions)))
    group = connected_components(links, directed=False)[1]
    # The names are sorted, so the first of each group is the alphabetically first.
    first = np.unique(group, return_index=True)[1]
    return lesions[first][group][lesion].astype(object)


def assign(
    table: pd.DataFrame,
    groups: np.ndarray,
    *,
    seed: int = 0,
    fractions: Mapping[str, float] = FRACTIONS,
) -> np.ndarray:
    """Assign groups to splits, diagnosis by diagnosis, always to the split that lacks most.

    Groups come in the order of a hash of seed and name, so the result depends neither on row
    order nor on any library's random generator. A patient with several diagnoses counts for the
    rarest of them: the few patients with a melanoma among many nevi must not all end in one split.

    Returns:
        Object array (N,) of split names.

    Raises:
        DataError: If a diagnosis has fewer groups than there are splits.
    """
    frame = pd.DataFrame({"group": groups, "dx": table.dx.to_numpy()})
    sizes = frame.groupby("group").size()
    counts, by_patient = pd.crosstab(frame.group, frame.dx), patients(table).notna().any()
    if by_patient:
        rarest_first = counts.sum().sort_values(kind="stable").index
        main_dx = (counts.loc[:, rarest_first] > 0).idxmax(axis=1)
    else:
        # The commonest diagnosis of a group, the first in class order where two are equally common.
        main_dx = counts.idxmax(axis=1)
    chosen: dict[str, str] = {}
    for code in sorted(set(main_dx)):
        names = [str(name) for name in main_dx.index[main_dx == code]]
        if len(names) < len(fractions):
            raise DataError(
                f"The diagnosis {code} has only {len(names)} "
                f"{'patient' if by_patient else 'lesion'}(s); {len(fractions)} are "
                "needed so that no split lacks the class. Add images of it."
            )
        names.sort(key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        chosen.update(_fill(names, sizes, fractions))
    return np.array([chosen[group] for group in groups], dtype=object)


def _fill(
    names: list[str], sizes: "pd.Series[int]", fractions: Mapping[str, float]
) -> dict[str, str]:
    total = int(sum(sizes[name] for name in names))
    lack = {split: share * total for split, share in fractions.items()}
    empty = list(fractions)
    chosen = {}
    for position, name in enumerate(names):
        must_fill = len(names) - position <= len(empty)
        candidates = empty if must_fill else list(fractions)
        split = max(candidates, key=lambda s: (lack[s] / fractions[s], fractions[s]))
        chosen[name] = split
        lack[split] -= int(sizes[name])
        if split in empty:
            empty.remove(split)
    return chosen


def audit(data: Path, *, trials: int = 100, seed: int = 0) -> tuple[pd.DataFrame, dict[str, int]]:
    """Measure leakage: what an image-level split would leak, and what this split leaks.

    Args:
        data: Prepared data set with a split.
        trials: Random image-level splits averaged.
        seed: Seed of those splits.

    Returns:
        A table with one row per diagnosis and ``all``: images, lesions, images sharing their
        lesion with another image, percentage of test images whose lesion would also be in
        train under an image-level split of the same proportions, the same for this split; where
        patients are known, all of it for patients too. And counts for this split:
        ``lesions_in_two_splits``, ``near_duplicates_in_two_splits``, ``images_in_two_splits``
        (identical file content), and ``patients_in_two_splits`` where patients are known.

    Raises:
        DataError: If the data set is not split.
    """
    data = Path(data)
    table = read_manifest(data)
    if table.split.isna().any():
        raise DataError(f"{data} is not split yet. Run 'dermlens data split {data}' first.")
    checks = read_checks(data)
    pairs = near_duplicates(data, table, checks)
    leaks = _leaks(table, checks, pairs)
    generator, codes = np.random.default_rng(seed), data_labels(data).codes
    random = [_image_level(table, codes, generator) for _ in range(trials)]
    rows = [*codes, "all"]
    parts = [(table.dx == code) | (code == "all") for code in rows]
    columns: dict[str, list] = {"dx": rows, "images": [int(part.sum()) for part in parts]}
    columns |= _leakage(table, "lesion_id", "lesion", parts, random, codes)
    if "patient_id" in table:
        columns |= _leakage(table, "patient_id", "patient", parts, random, codes)
    return pd.DataFrame(columns), leaks


def _leakage(
    table: pd.DataFrame,
    column: str,
    name: str,
    parts: Sequence[pd.Series],
    random: Sequence[np.ndarray],
    codes: Sequence[str],
) -> dict[str, list]:
    """Return the columns of the audit about lesions or patients."""
    groups = table[column]
    sharing = groups.map(groups.value_counts()) > 1
    hypothetical = np.mean([_leaked_share(table, column, one, codes) for one in random], axis=0)
    actual = _leaked_share(table, column, table.split.to_numpy(), codes)
    prefix = "" if name == "lesion" else f"{name}s_"

    def percent(shares: np.ndarray) -> list[float]:
        return [round(float(share) * 100, 1) for share in shares]

    return {
        f"{name}s": [int(groups[part].nunique()) for part in parts],
        f"images_sharing_a_{name}": [int((part & sharing).sum()) for part in parts],
        f"{prefix}leaking_under_image_level_split_percent": percent(hypothetical),
        f"{prefix}leaking_here_percent": percent(actual),
    }


def _leaks(table: pd.DataFrame, checks: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, int]:
    split_of = dict(zip(table.image_id, table.split, strict=True))
    content = checks.set_index("image_id").crc32.reindex(table.image_id).to_numpy()
    by_content = pd.DataFrame({"crc": content, "split": table.split.to_numpy()})
    crossing = [
        split_of[a] != split_of[b] for a, b in zip(pairs.image_a, pairs.image_b, strict=True)
    ]
    leaks = {
        "lesions_in_two_splits": int((table.groupby("lesion_id").split.nunique() > 1).sum()),
        "near_duplicates_in_two_splits": int(sum(crossing)),
        "images_in_two_splits": int((by_content.groupby("crc").split.nunique() > 1).sum()),
    }
    if "patient_id" in table:
        several = table.groupby("patient_id").split.nunique() > 1
        leaks["patients_in_two_splits"] = int(several.sum())
    return leaks


def _image_level(
    table: pd.DataFrame, codes: Sequence[str], generator: np.random.Generator
) -> np.ndarray:
    """A split by image, stratified by diagnosis: what others do."""
    edges = np.cumsum([FRACTIONS[s] for s in SPLITS])
    split = np.empty(len(table), dtype=object)
    dx = table.dx.to_numpy()
    for code in codes:
        rows = generator.permutation(np.flatnonzero(dx == code))
        position = (np.arange(len(rows)) + 0.5) / max(len(rows), 1)
        split[rows] = np.array(SPLITS, dtype=object)[np.searchsorted(edges[:-1], position)]
    return split


def _leaked_share(
    table: pd.DataFrame, column: str, split: np.ndarray, codes: Sequence[str]
) -> np.ndarray:
    """Share of test images whose lesion or patient is also in train, per diagnosis and for all."""
    # Rows without a patient share theirs with nobody.
    groups = table[column].where(table[column].notna(), table.image_id).to_numpy(dtype=str)
    dx = table.dx.to_numpy()
    leaked = np.isin(groups, np.unique(groups[split == "train"])) & (split == "test")
    test = split == "test"
    shares = []
    for code in [*codes, "all"]:
        part = test & ((dx == code) | (code == "all"))
        shares.append(leaked[part].mean() if part.any() else 0.0)
    return np.array(shares)

"""Reading shards."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from dermlens.errors import DataError
from dermlens.files import sha256_of_file
from dermlens.scale.files import Manifest, ShardFiles, read_manifest_of, read_parquet


@dataclass(frozen=True)
class ReadShard:
    """One shard.

    Attributes:
        name: Such as ``"shard-00012"``.
        table: A row for each image.
        folder: Where its files are.
    """

    name: str
    table: pd.DataFrame
    folder: Path

    @cached_property
    def maps(self) -> dict[str, np.ndarray]:
        """Maps by method, float32 (N, H, W), in the order of the rows; NaN where one has an error.

        Empty for predictions.
        """
        path = self.folder / f"{self.name}.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as stored:
            return {name: self._restored(name, stored[name]) for name in stored.files}

    def _restored(self, name: str, stored: np.ndarray) -> np.ndarray:
        scales = self.table.get(f"{name}_scale")
        factors = np.ones(len(stored)) if scales is None else scales.to_numpy(np.float64)
        return stored.astype(np.float32) * factors.astype(np.float32)[:, None, None]


class Shards:
    """A folder of shards, read one after the other, so that it may be larger than memory.

    Args:
        folder: As ``dermlens predict`` and ``explain`` write it with ``--engine``.
        verify: Compare the files with their SHA-256 when they are read.

    Raises:
        DataError: If the folder is not complete; while reading, if a file has changed.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder, self.verify = Path(folder), verify
        self.manifest: Manifest = read_manifest_of(self.folder)

    def __len__(self) -> int:
        return len(self.manifest.shards)

    def __iter__(self) -> Iterator[ReadShard]:
        for one in self.manifest.shards:
            if self.verify:
                self._check(one)
            table = read_parquet(self.folder / f"{one.name}.parquet")
            yield ReadShard(one.name, table, self.folder)

    def _check(self, one: ShardFiles) -> None:
        for name, wanted in one.files.items():
            path = self.folder / name
            if not path.is_file() or sha256_of_file(path) != wanted:
                raise DataError(
                    f"{path} is missing or has changed. Remove {self.folder / 'manifest.json'} "
                    "and run the command again: it makes that shard again."
                )

    def table(self) -> pd.DataFrame:
        """Return the rows of all shards as one table; maps are not read."""
        tables = [read_parquet(self.folder / f"{o.name}.parquet") for o in self.manifest.shards]
        return pd.concat(tables, ignore_index=True)


def read_shards(folder: str | Path, *, verify: bool = True) -> Shards:
    """Open a folder of shards.

    Args:
        folder: As ``dermlens predict`` and ``explain`` write it with ``--engine``.
        verify: Compare the files with their SHA-256 when they are read.

    Returns:
        An iterable of shards with ``table`` and ``maps``; ``.table()`` is all rows at once.

    Raises:
        DataError: If the folder is not complete.

    Example:
        ::

            for shard in dl.read_shards("maps"):
                for image_id, map_ in zip(shard.table.image_id, shard.maps["grad_cam"]):
                    ...
    """
    return Shards(folder, verify=verify)

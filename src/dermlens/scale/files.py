"""The files of a shard, and the list of all of them.

::

    OUT/plan.json              of which images, model and settings
    OUT/shard-00012.npz        maps by method, float16 (N, H, W), each image's divided by its scale
    OUT/shard-00012.parquet    a row for each image; knows the SHA-256 of its maps
    OUT/manifest.json          SHA-256 of all files, when all are there

A shard is done when its table is there: it is written last, beside and renamed. Tables hold page
checksums, so that a damaged one is found and made again. Nothing in them depends on when, where or
by whom they were made.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from dermlens.errors import DataError
from dermlens.extras import optional
from dermlens.files import read_json, sha256_of_file, write_json, written_beside
from dermlens.scale.plan import Shard, ShardPlan
from dermlens.schema import Count, OpenSection, checked_file

MANIFEST = "manifest.json"
_KEY = b"dermlens"
_TEXTS = frozenset(
    ("image_id", "path", "model", "predicted", "prediction_set", "balanced_rule", "target", "error",
     "reasons", "remarks")
)  # fmt: skip
_TRUTHS = frozenset(("calibrated", "abstain"))


class ShardFiles(OpenSection):
    """What a manifest says of a shard: rows, how many of them are errors, SHA-256 by file."""

    name: str
    rows: Count
    errors: Count
    files: dict[str, str]


class Manifest(OpenSection):
    """The content of ``manifest.json``."""

    plan: str
    kind: str
    rows: Count
    errors: Count
    shards: list[ShardFiles] = Field(default_factory=list)


def write_shard(
    out: Path, shard: Shard, table: pd.DataFrame, maps: Mapping[str, np.ndarray] | None
) -> None:
    """Write a shard's maps, float16 (N, H, W) by method, and then its table."""
    about: dict[str, Any] = {"plan": shard.plan, "rows": len(table)}
    about["errors"] = int((table.error != "").sum())
    if maps is not None:
        arrays: dict[str, Any] = dict(maps)
        with written_beside(out / f"{shard.name}.npz") as temporary:
            np.savez_compressed(temporary, **arrays)
            about["maps_sha256"] = sha256_of_file(temporary)
    arrow, parquet = optional("pyarrow"), optional("pyarrow.parquet")
    columns = {
        name: arrow.array(table[name].tolist(), type=_type(arrow, str(name)), from_pandas=True)
        for name in table.columns
    }
    described = {_KEY: json.dumps(about, sort_keys=True).encode()}
    content = arrow.table(columns).replace_schema_metadata(described)
    with written_beside(out / f"{shard.name}.parquet") as temporary:
        parquet.write_table(content, temporary, compression="zstd", write_page_checksum=True)


def _type(arrow: Any, name: str) -> Any:
    """Return a column's type, which must not depend on what a shard happens to hold."""
    if name in _TEXTS:
        return arrow.string()
    if name in _TRUTHS or name.startswith("flag_"):
        return arrow.bool_()
    return arrow.float64()


def about_shard(out: Path, name: str) -> dict[str, Any] | None:
    """Return what a shard's table says of the shard, None if there is no such table."""
    parquet = optional("pyarrow.parquet")
    try:
        found = parquet.read_metadata(out / f"{name}.parquet").metadata or {}
        about = json.loads(found[_KEY])
    except (OSError, ValueError, KeyError, optional("pyarrow").ArrowException):
        return None
    return about if isinstance(about, dict) else None


def is_done(out: Path, shard: Shard) -> bool:
    """Tell whether a shard is there, whole and of this plan."""
    about = about_shard(out, shard.name)
    if about is None or about.get("plan") != shard.plan or about.get("rows") != len(shard.images):
        return False
    try:
        read_parquet(out / f"{shard.name}.parquet")
        maps = about.get("maps_sha256")
        return maps is None or maps == sha256_of_file(out / f"{shard.name}.npz")
    except (OSError, DataError):
        return False


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a shard's table; pages are checked.

    Raises:
        DataError: If it is missing or damaged.
    """
    parquet, broken = optional("pyarrow.parquet"), optional("pyarrow").ArrowException
    try:
        read = parquet.read_table(path, page_checksum_verification=True)
    except (OSError, broken) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({reason}). Make the shards again.") from error
    table: pd.DataFrame = read.to_pandas()
    return table


def write_manifest(out: Path, plan: ShardPlan, shards: Sequence[Shard]) -> Manifest | None:
    """Write the manifest if all shards are there, and return it; None if some are missing."""
    told = [about_shard(out, shard.name) for shard in shards]
    if any(one is None or one.get("plan") != plan.fingerprint for one in told):
        return None
    listed = []
    for shard, about in zip(shards, told, strict=True):
        assert about is not None
        files = {f"{shard.name}.parquet": sha256_of_file(out / f"{shard.name}.parquet")}
        if "maps_sha256" in about:
            files[f"{shard.name}.npz"] = about["maps_sha256"]
        facts = {"rows": about["rows"], "errors": about["errors"]}
        listed.append({"name": shard.name, **facts, "files": files})
    whole = {name: sum(one[name] for one in listed) for name in ("rows", "errors")}
    content = {"plan": plan.fingerprint, "kind": plan.job.kind, **whole, "shards": listed}
    write_json(out / MANIFEST, content)
    return read_manifest_of(out)


def read_manifest_of(out: Path) -> Manifest:
    """Read the manifest of a folder of shards.

    Raises:
        DataError: If there is none, or it is damaged.
    """
    path = out / MANIFEST
    if not path.is_file():
        unfinished = (out / "plan.json").is_file()
        raise DataError(
            f"{out} is not complete: run the command that began it again."
            if unfinished
            else f"{out} holds no shards. Make some with --engine."
        )
    read_json(path)
    return checked_file(Manifest, path, "Remove it, and run the command again.")

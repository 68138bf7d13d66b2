"""Preparing HAM10000: archives or folders become one checked data set.

Source: Tschandl, Rosendahl & Kittler (2018), doi:10.1038/sdata.2018.161, CC BY-NC 4.0.
"""

import os
import shutil
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dermlens.data.images import ImageChecks, inspect_bytes, opened_rgb
from dermlens.data.manifest import class_counts, fingerprint, read_manifest, write_manifest
from dermlens.data.sources import Member, MemberReader, Source, find_source, read_metadata
from dermlens.errors import DataError
from dermlens.files import read_json, write_csv, write_json
from dermlens.progress import progress

LICENSE = "HAM10000 is licensed CC BY-NC 4.0: non-commercial use, attribution required."


@dataclass(frozen=True)
class Prepared:
    """Outcome of ``prepare``: where, what, and how much was done this time."""

    data: Path
    summary: dict[str, Any]
    added: int
    reused: int


def prepare(source_folder: Path, data: Path, *, workers: int | None = None) -> Prepared:
    """Turn HAM10000 in any layout into a prepared data set.

    Every image is decoded completely. Images and masks that an earlier run brought in
    unchanged are kept; if nothing is new, nothing is written and the split stays.

    Args:
        source_folder: Folder with archives, folders of images, or both, and the metadata.
        data: Folder to write; see ``dermlens.data.manifest`` for its layout.
        workers: Threads; default one per processor.

    Raises:
        DataError: If metadata is missing or wrong, an image is damaged or has no metadata row,
            or an archive is damaged. Nothing is left under ``data`` that was not there before.
    """
    data = Path(data)
    source = find_source(source_folder)
    assert source.metadata is not None
    metadata = read_metadata(source.metadata)
    _refuse_unknown_images(source, metadata)
    _refuse_foreign_folder(data)
    known = _known_checks(data)
    table = _manifest(metadata, source)
    if known is not None and _unchanged(data, table, source, known):
        return Prepared(data, read_json(data / "dataset.json"), 0, len(table))
    building = data.with_name(f".{data.name}.building")
    try:
        checks, added = _bring_in(source, building, data, known or {}, workers)
        _write_tables(building, table, metadata, checks)
        _swap(building, data)
    except DataError:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return Prepared(data, read_json(data / "dataset.json"), added, len(table) - added)


def _refuse_unknown_images(source: Source, metadata: pd.DataFrame) -> None:
    strangers = sorted(set(source.images) - set(metadata.image_id))
    if strangers:
        raise DataError(
            f"{len(strangers)} image(s) have no metadata row, the first is {strangers[0]} "
            f"({source.images[strangers[0]].label()}). Add the rows or remove the images."
        )


def _refuse_foreign_folder(data: Path) -> None:
    if data.exists() and not (data / "dataset.json").is_file() and any(data.iterdir()):
        raise DataError(
            f"{data} exists and is not a prepared data set. Choose another folder for --out."
        )


def _known_checks(data: Path) -> dict[str, ImageChecks] | None:
    path = data / "images.csv"
    if not path.is_file() or not (data / "manifest.csv").is_file():
        return None
    table = pd.read_csv(path, dtype={"image_id": str, "perceptual_hash": str})
    return {
        str(row["image_id"]): ImageChecks(
            width=int(row["width"]),
            height=int(row["height"]),
            bytes=int(row["bytes"]),
            crc32=int(row["crc32"]),
            perceptual_hash=str(row["perceptual_hash"]),
        )
        for row in table.to_dict("records")
    }


def _image_path(image_id: str, member: Member) -> str:
    return f"images/{image_id}{Path(member.name).suffix.lower()}"


def _mask_path(image_id: str) -> str:
    return f"masks/{image_id}_segmentation.png"


def _manifest(metadata: pd.DataFrame, source: Source) -> pd.DataFrame:
    table = metadata[metadata.image_id.isin(list(source.images))].copy()
    table["path"] = [_image_path(i, source.images[i]) for i in table.image_id]
    table["mask_path"] = [_mask_path(i) if i in source.masks else None for i in table.image_id]
    table["split"] = None
    return table.sort_values("image_id", kind="stable").reset_index(drop=True)


def _unchanged(
    data: Path, table: pd.DataFrame, source: Source, known: dict[str, ImageChecks]
) -> bool:
    """Tell whether the prepared data set already holds exactly this."""
    try:
        old = read_manifest(data)
    except DataError:
        return False
    columns = [c for c in table.columns if c != "split"]
    same = old.loc[:, columns].astype(object).where(lambda t: t.notna(), None)
    new = table.loc[:, columns].astype(object).where(lambda t: t.notna(), None)
    if not same.equals(new):
        return False
    reader = MemberReader()
    return all(
        _is_known(source.images[i], known.get(i), reader) and (data / path).is_file()
        for i, path in zip(table.image_id, table.path, strict=True)
    )


def _is_known(member: Member, checks: ImageChecks | None, reader: MemberReader) -> bool:
    if checks is None or member.size != checks["bytes"]:
        return False
    crc32 = member.crc32 if member.crc32 is not None else zlib.crc32(reader.read(member))
    return crc32 == checks["crc32"]


def _bring_in(
    source: Source,
    building: Path,
    data: Path,
    known: dict[str, ImageChecks],
    workers: int | None,
) -> tuple[dict[str, ImageChecks], int]:
    """Copy and check images and masks into ``building``; return checks and how many were new."""
    for name in ("images", "masks"):
        (building / name).mkdir(parents=True, exist_ok=True)
    local = threading.local()
    added = 0

    def one(image_id: str) -> tuple[str, ImageChecks, bool]:
        if not hasattr(local, "reader"):
            local.reader = MemberReader()
        reader: MemberReader = local.reader
        member = source.images[image_id]
        relative = _image_path(image_id, member)
        mask = source.masks.get(image_id)
        if mask is not None:
            _bring_mask(reader, mask, building / _mask_path(image_id))
        if _is_known(member, known.get(image_id), reader) and (data / relative).is_file():
            _link(data / relative, building / relative)
            return image_id, known[image_id], False
        content = reader.read(member)
        checks = inspect_bytes(content, member.label())
        (building / relative).write_bytes(content)
        return image_id, checks, True

    checks: dict[str, ImageChecks] = {}
    with progress("Checking images", len(source.images)) as advance:
        for image_id, found, new in _in_parallel(one, sorted(source.images), workers):
            checks[image_id] = found
            added += new
            advance()
    return checks, added


def _in_parallel(function: Callable[[str], Any], items: list[str], workers: int | None) -> Any:
    """Map in threads (decoding releases the interpreter lock); stop at the first error."""
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _bring_mask(reader: MemberReader, member: Member, path: Path) -> None:
    content = reader.read(member)
    with opened_rgb(content, member.label()):
        path.write_bytes(content)


def _link(existing: Path, new: Path) -> None:
    new.unlink(missing_ok=True)
    try:
        os.link(existing, new)
    except OSError:
        shutil.copyfile(existing, new)


def _write_tables(
    building: Path,
    table: pd.DataFrame,
    metadata: pd.DataFrame,
    checks: dict[str, ImageChecks],
) -> None:
    rows = [{"image_id": image_id, **checks[image_id]} for image_id in table.image_id]
    checks_table = pd.DataFrame(rows)
    write_csv(building / "images.csv", checks_table)
    write_manifest(building, table)
    missing = sorted(set(metadata.image_id) - set(table.image_id))
    write_json(
        building / "dataset.json",
        {
            "name": "HAM10000",
            "source": "ham10000",
            "synthetic": False,
            "license": LICENSE,
            "n_metadata_rows": len(metadata),
            "n_images": len(table),
            "n_lesions": int(table.lesion_id.nunique()),
            "n_masks": int(table.mask_path.notna().sum()),
            "per_class": class_counts(table),
            "fingerprint": fingerprint(table, checks_table),
            "n_missing_images": len(missing),
            "missing_images": missing,
        },
    )


def _swap(building: Path, data: Path) -> None:
    retired = data.with_name(f".{data.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if data.exists():
        os.replace(data, retired)
    os.replace(building, data)
    shutil.rmtree(retired, ignore_errors=True)

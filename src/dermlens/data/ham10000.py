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
from dermlens.data.manifest import (
    class_counts,
    data_set_kind,
    fingerprint,
    read_manifest,
    write_manifest,
)
from dermlens.data.sources import Member, MemberReader, Source, find_source, read_metadata
from dermlens.errors import DataError
from dermlens.files import read_json, write_csv, write_json
from dermlens.folders import folder_beside
from dermlens.labels import HAM10000
from dermlens.locks import folder_lock
from dermlens.progress import progress

KIND = data_set_kind("a prepared data set")
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

    Every image is decoded completely. What an earlier run brought in is compared with the source
    byte by byte, masks included, and kept where it is the same; if nothing is new, nothing is
    written. The split stays as long as images, lesions and diagnoses do. Nothing of a run that was
    killed is taken up by a later one.

    Args:
        source_folder: Folder with archives, folders of images, or both, and the metadata.
        data: Folder to write; see ``dermlens.data.manifest`` for its layout.
        workers: Threads; default one per processor.

    Raises:
        DataError: If metadata is missing or wrong, an image is damaged or has no metadata row,
            an archive is damaged, or ``data`` holds something else than a prepared data set.
            Nothing is left under ``data`` that was not there before.
        UsageError: If another run uses ``data``.
    """
    data = Path(data)
    with folder_lock(data):
        source = find_source(source_folder, besides=data)
        assert source.metadata is not None
        metadata = read_metadata(source.metadata)
        _refuse_unknown_images(source, metadata)
        _refuse_foreign_folder(data)
        known = _known_checks(data)
        table = _manifest(metadata, source)
        if known is not None and _unchanged(data, table, source, known, workers):
            return Prepared(data, read_json(data / "dataset.json"), 0, len(table))
        with folder_beside(data, KIND) as building:
            checks, added = _bring_in(source, building, data, known or {}, workers)
            _write_tables(building, table, metadata, checks)
            _keep_split(building, data)
    return Prepared(data, read_json(data / "dataset.json"), added, len(table) - added)


def _refuse_unknown_images(source: Source, metadata: pd.DataFrame) -> None:
    strangers = sorted(set(source.images) - set(metadata.image_id))
    if strangers:
        raise DataError(
            f"{len(strangers)} image(s) have no metadata row, the first is {strangers[0]} "
            f"({source.images[strangers[0]].label()}). Add the rows or remove the images."
        )


def _refuse_foreign_folder(data: Path) -> None:
    if not data.exists() or not any(data.iterdir()):
        return
    path = data / "dataset.json"
    facts = read_json(path) if path.is_file() else {}
    if not (isinstance(facts, dict) and facts.get("source") == "ham10000"):
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
    data: Path,
    table: pd.DataFrame,
    source: Source,
    known: dict[str, ImageChecks],
    workers: int | None,
) -> bool:
    """Tell whether the prepared data set already holds exactly this, byte by byte."""
    try:
        old = read_manifest(data)
    except DataError:
        return False
    columns = [c for c in table.columns if c != "split"]
    same = old.loc[:, columns].astype(object).where(lambda t: t.notna(), None)
    new = table.loc[:, columns].astype(object).where(lambda t: t.notna(), None)
    if not same.equals(new):
        return False
    reader_of = _reader_of_thread()

    def held(image_id: str) -> bool:
        image, mask, reader = source.images[image_id], source.masks.get(image_id), reader_of()
        if not _is_known(image, known.get(image_id), data / _image_path(image_id, image), reader):
            return False
        return mask is None or _is_copy(data / _mask_path(image_id), mask, reader)

    return all(_in_parallel(held, list(table.image_id), workers))


def _is_known(member: Member, checks: ImageChecks | None, path: Path, reader: MemberReader) -> bool:
    """Tell whether an image was brought in and checked before, and is still whole."""
    if checks is None or member.size != checks["bytes"]:
        return False
    return _crc32(member, reader) == checks["crc32"] and _is_copy(path, member, reader)


def _is_copy(path: Path, member: Member, reader: MemberReader) -> bool:
    """Tell whether a file holds the same bytes as a member of the source."""
    if not path.is_file() or path.stat().st_size != member.size:
        return False
    return zlib.crc32(path.read_bytes()) == _crc32(member, reader)


def _crc32(member: Member, reader: MemberReader) -> int:
    return member.crc32 if member.crc32 is not None else zlib.crc32(reader.read(member))


def _reader_of_thread() -> Callable[[], MemberReader]:
    """Return a function that gives each thread its own reader."""
    local = threading.local()

    def reader() -> MemberReader:
        if not hasattr(local, "reader"):
            local.reader = MemberReader()
        return local.reader

    return reader


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
    reader_of = _reader_of_thread()
    added = 0

    def one(image_id: str) -> tuple[str, ImageChecks, bool]:
        reader, member = reader_of(), source.images[image_id]
        relative = _image_path(image_id, member)
        mask = source.masks.get(image_id)
        if mask is not None:
            _bring_mask(reader, mask, data / _mask_path(image_id), building / _mask_path(image_id))
        if _is_known(member, known.get(image_id), data / relative, reader):
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


def _bring_mask(reader: MemberReader, member: Member, old: Path, new: Path) -> None:
    if _is_copy(old, member, reader):
        _link(old, new)
        return
    content = reader.read(member)
    with opened_rgb(content, member.label()):
        new.write_bytes(content)


def _link(existing: Path, new: Path) -> None:
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
    write_manifest(building, table, HAM10000)
    missing = sorted(set(metadata.image_id) - set(table.image_id))
    write_json(
        building / "dataset.json",
        {
            "name": "HAM10000",
            "source": "ham10000",
            "synthetic": False,
            "license": LICENSE,
            "labels": HAM10000.to_json(),
            "n_metadata_rows": len(metadata),
            "n_images": len(table),
            "n_lesions": int(table.lesion_id.nunique()),
            "n_masks": int(table.mask_path.notna().sum()),
            "per_class": class_counts(table, HAM10000),
            "fingerprint": fingerprint(table, checks_table),
            "n_missing_images": len(missing),
            "missing_images": missing,
        },
    )


def _keep_split(building: Path, data: Path) -> None:
    """Carry the split over from the older data set if it has the same images, lesions and labels.

    So a mask that was replaced or an image that was restored does not undo the split that models
    were trained on.
    """
    try:
        old, facts = read_manifest(data), read_json(data / "dataset.json")
    except DataError:
        return
    new = read_json(building / "dataset.json")
    if facts.get("fingerprint") != new["fingerprint"] or "split" not in facts:
        return
    table = read_manifest(building)
    table["split"] = table.image_id.map(old.set_index("image_id").split)
    write_manifest(building, table, HAM10000)
    write_json(building / "dataset.json", {**new, "split": facts["split"]})
    for name in ("near_duplicates.csv", "audit.csv"):
        if (data / name).is_file():
            shutil.copyfile(data / name, building / name)

"""Preparing a data set: archives or folders of images and their table become one checked folder.

Which tables are understood is said in ``formats``, what files are looked for in ``sources``.
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

from dermlens.data.annotation_classes import Annotations
from dermlens.data.annotations import read_annotations
from dermlens.data.decoding import as_array
from dermlens.data.formats import CLASS_FOLDERS, COLUMNS, Wanted, format_names
from dermlens.data.images import ImageChecks, inspect_bytes, opened_mask
from dermlens.data.manifest import (
    AS_WRITTEN,
    class_counts,
    data_labels,
    data_set_kind,
    fingerprint,
    patients,
    present_columns,
    read_manifest,
    write_manifest,
)
from dermlens.data.masks import UNUSABLE, flaw_of
from dermlens.data.matching import Source, match
from dermlens.data.preparation_report import left_out_lines
from dermlens.data.sources import Member, MemberReader, Survey, survey
from dermlens.errors import DataError
from dermlens.files import plain, read_json, write_csv, write_json
from dermlens.folders import folder_beside
from dermlens.labels import LabelSet
from dermlens.locks import folder_lock
from dermlens.progress import progress

KIND = data_set_kind("a prepared data set")
Flaws = dict[str, dict[str, int]]
"""For each flaw of outlines the images that have it, with the checksum of the outline's file."""


@dataclass(frozen=True)
class Prepared:
    """Outcome of ``prepare``: where, what, how much was done this time, and what was left out."""

    data: Path
    summary: dict[str, Any]
    added: int
    reused: int
    left_out: tuple[str, ...] = ()


def prepare(
    source_folder: Path, data: Path, *, wanted: Wanted | None = None, workers: int | None = None
) -> Prepared:
    """Turn a folder of images with a table, or with folders named by class, into a data set.

    Every image is decoded completely. What an earlier run brought in is compared with the source
    byte by byte, masks included, and kept where it is the same; if nothing is new, nothing is
    written. The split stays as long as images, lesions, patients and diagnoses do. Nothing of a run
    that was killed is taken up by a later one.

    Args:
        source_folder: Folder with archives, folders of images, or both, and their table.
        data: Folder to write; see ``dermlens.data.manifest`` for its layout.
        wanted: Format, columns, classes and mapping; default to find out.
        workers: Threads; default one per processor.

    Raises:
        DataError: If the table is missing or wrong, an image is damaged, files of one name differ,
            an archive is damaged, or ``data`` holds something else than a prepared data set.
            Nothing is left under ``data`` that was not there before.
        UsageError: If another run uses ``data``, or what is wanted cannot be.
    """
    data, source_folder = Path(data), Path(source_folder)
    with folder_lock(data):
        found = survey(source_folder, besides=data)
        known = read_annotations(found, source_folder, wanted or Wanted())
        source = match(known, found, source_folder)
        known.keep_classes_of(set(source.images))
        _refuse_foreign_folder(data)
        checked = _known_checks(data)
        table = _manifest(known.table, source, _left_out_outlines(data))
        left_out = (*source.notes, *left_out_lines(found))
        summary = _summary(known, source, found, source_folder)
        same_classes = checked is not None and data_labels(data) == known.labels
        if (
            checked is not None
            and same_classes
            and _unchanged(data, table, source, checked, workers)
        ):
            stored = _updated(data, summary)
            return Prepared(data, stored, 0, len(table), left_out)
        with folder_beside(data, KIND) as building:
            checks, flaws, added = _bring_in(source, building, data, checked or {}, workers)
            table = _manifest(known.table, source, flaws)
            _write_tables(
                building, table, known.labels, checks, {**summary, "outline_flaws": flaws}
            )
            _keep_split(building, data)
    stored = read_json(data / "dataset.json")
    return Prepared(data, stored, added, len(table) - added, left_out)


def _updated(data: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Return what ``dataset.json`` says, brought up to date where the table has changed."""
    stored, new = read_json(data / "dataset.json"), plain(summary)
    facts = {**new, **stored, **{key: new[key] for key in new if key in stored}}
    if any(facts[key] != stored[key] for key in stored if key != "left_out_files"):
        write_json(data / "dataset.json", {key: facts[key] for key in {**stored, **new}})
    return facts


def _refuse_foreign_folder(data: Path) -> None:
    if not data.exists() or not any(data.iterdir()):
        return
    path = data / "dataset.json"
    facts = read_json(path) if path.is_file() else {}
    ours = (*format_names(), COLUMNS)
    if not (isinstance(facts, dict) and facts.get("source") in ours):
        raise DataError(
            f"{data} exists and is not a prepared data set. Choose another folder for --out."
        )


def _known_checks(data: Path) -> dict[str, ImageChecks] | None:
    path = data / "images.csv"
    if not path.is_file() or not (data / "manifest.csv").is_file():
        return None
    table = pd.read_csv(path, dtype={"image_id": str, "perceptual_hash": str}, **AS_WRITTEN)
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


def _mask_path(image_id: str, member: Member) -> str:
    return f"masks/{image_id}_segmentation{Path(member.name).suffix.lower()}"


def _left_out_outlines(data: Path) -> Flaws:
    """Return what an earlier run found wrong with outlines."""
    path = Path(data) / "dataset.json"
    facts = read_json(path) if path.is_file() else {}
    found = facts.get("outline_flaws") if isinstance(facts, dict) else None
    return found if isinstance(found, dict) else {}


def _manifest(known: pd.DataFrame, source: Source, flaws: Flaws) -> pd.DataFrame:
    """Return the manifest; outlines that cannot be used are no outlines."""
    table = known[known.image_id.isin(list(source.images))].copy()
    without = {image_id for flaw in UNUSABLE for image_id in flaws.get(flaw, {})}
    table["path"] = [_image_path(i, source.images[i]) for i in table.image_id]
    table["mask_path"] = [
        _mask_path(i, source.outlines[i]) if i in source.outlines and i not in without else None
        for i in table.image_id
    ]
    table["split"] = None
    table["age"] = table.age.astype(float)
    table = table.sort_values("image_id", kind="stable").reset_index(drop=True)
    return table.loc[:, present_columns(table)]


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
    if set(present_columns(old)) != set(table.columns):
        return False
    flaws = _left_out_outlines(data)
    without = {i: crc for flaw in UNUSABLE for i, crc in flaws.get(flaw, {}).items()}
    columns = [c for c in table.columns if c != "split"]
    same = old.loc[:, columns].astype(object).where(lambda t: t.notna(), None)
    new = table.loc[:, columns].astype(object).where(lambda t: t.notna(), None)
    if not same.equals(new):
        return False
    reader_of = _reader_of_thread()

    def held(image_id: str) -> bool:
        image, mask, reader = source.images[image_id], source.outlines.get(image_id), reader_of()
        if not _is_known(image, known.get(image_id), data / _image_path(image_id, image), reader):
            return False
        if image_id in without:
            return mask is not None and reader.crc32(mask) == without[image_id]
        return mask is None or _is_copy(data / _mask_path(image_id, mask), mask, reader)

    return all(_in_parallel(held, list(table.image_id), workers))


def _is_known(member: Member, checks: ImageChecks | None, path: Path, reader: MemberReader) -> bool:
    """Tell whether an image was brought in and checked before, and is still whole."""
    if checks is None or member.size != checks["bytes"]:
        return False
    return reader.crc32(member) == checks["crc32"] and _is_copy(path, member, reader)


def _is_copy(path: Path, member: Member, reader: MemberReader) -> bool:
    """Tell whether a file holds the same bytes as a member of the source."""
    if not path.is_file() or path.stat().st_size != member.size:
        return False
    return zlib.crc32(path.read_bytes()) == reader.crc32(member)


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
) -> tuple[dict[str, ImageChecks], Flaws, int]:
    """Copy and check images and masks into ``building``.

    Returns:
        Checks by image; for each flaw of outlines the images that have it, with the checksum of
        the outline's file; and how many images were new.
    """
    for name in ("images", "masks"):
        (building / name).mkdir(parents=True, exist_ok=True)
    reader_of = _reader_of_thread()
    added = 0

    def one(image_id: str) -> tuple[str, ImageChecks, tuple[str, int] | None, bool]:
        reader, member = reader_of(), source.images[image_id]
        relative, new = _image_path(image_id, member), False
        if _is_known(member, known.get(image_id), data / relative, reader):
            _link(data / relative, building / relative)
            checks = known[image_id]
        else:
            content, new = reader.read(member), True
            checks = inspect_bytes(content, member.label())
            (building / relative).write_bytes(content)
        mask, flaw = source.outlines.get(image_id), None
        if mask is not None:
            size = (checks["height"], checks["width"])
            flaw = _bring_mask(reader, mask, building / _mask_path(image_id, mask), size)
        return image_id, checks, flaw, new

    checks: dict[str, ImageChecks] = {}
    flaws: Flaws = {}
    with progress("Checking images", len(source.images)) as advance:
        for image_id, found, flaw, new in _in_parallel(one, sorted(source.images), workers):
            checks[image_id] = found
            if flaw is not None:
                flaws.setdefault(flaw[0], {})[image_id] = flaw[1]
            added += new
            advance()
    return checks, flaws, added


def _in_parallel(function: Callable[[str], Any], items: list[str], workers: int | None) -> Any:
    """Map in threads (decoding releases the interpreter lock); stop at the first error."""
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _bring_mask(
    reader: MemberReader, member: Member, new: Path, size: tuple[int, int]
) -> tuple[str, int] | None:
    """Copy an outline unless it cannot be used; return what is wrong with it, and its checksum."""
    content = reader.read(member)
    with opened_mask(content, member.label()) as mask:
        flaw = flaw_of(as_array(mask) >= 128, size)
    if flaw not in UNUSABLE:
        new.write_bytes(content)
    return None if flaw is None else (flaw, zlib.crc32(content))


def _link(existing: Path, new: Path) -> None:
    try:
        os.link(existing, new)
    except OSError:
        shutil.copyfile(existing, new)


def _summary(known: Annotations, source: Source, found: Survey, folder: Path) -> dict[str, Any]:
    """Return what ``dataset.json`` says about where the data set comes from."""
    named = known.format in (CLASS_FOLDERS, COLUMNS)
    missing = sorted(set(known.table.image_id) - set(source.images))
    here = known.table[known.table.image_id.isin(list(source.images))]
    several = here.groupby("lesion_id").dx.nunique()
    return {
        "name": folder.resolve().name if named else known.title,
        "source": known.format,
        "synthetic": False,
        "license": known.license,
        "labels": known.labels.to_json(),
        "n_metadata_rows": known.rows,
        "n_missing_images": len(missing),
        "missing_images": missing,
        "unmapped_labels": known.unmapped,
        "left_out_labels": known.left_out,
        "conflicting_lesions": sorted(several.index[several > 1]),
        "left_out_files": {why: len(names) for why, names in sorted(found.left_out.items())},
        "notes": known.notes,
    }


def _write_tables(
    building: Path,
    table: pd.DataFrame,
    labels: LabelSet,
    checks: dict[str, ImageChecks],
    summary: dict[str, Any],
) -> None:
    rows = [{"image_id": image_id, **checks[image_id]} for image_id in table.image_id]
    checks_table = pd.DataFrame(rows)
    write_csv(building / "images.csv", checks_table)
    write_manifest(building, table, labels)
    counts = {
        "n_images": len(table),
        "n_lesions": int(table.lesion_id.nunique()),
        "n_masks": int(table.mask_path.notna().sum()),
        "per_class": class_counts(table, labels),
        "fingerprint": fingerprint(table, checks_table),
        "conflicting_images": _conflicting_images(table, checks_table),
    }
    if "patient_id" in table:
        counts["n_patients"] = int(table.patient_id.nunique())
    write_json(building / "dataset.json", {**summary, **counts})


def _conflicting_images(table: pd.DataFrame, checks: pd.DataFrame) -> list[list[str]]:
    """Return groups of images that are the same file under different diagnoses."""
    joined = table.loc[:, ["image_id", "dx"]].merge(checks.loc[:, ["image_id", "crc32", "bytes"]])
    return [
        list(rows.image_id)
        for _, rows in joined.groupby(["crc32", "bytes"])
        if rows.dx.nunique() > 1
    ]


def _keep_split(building: Path, data: Path) -> None:
    """Carry the split over from the older data set if it has the same images, groups and labels.

    So a mask that was replaced or an image that was restored does not undo the split that models
    were trained on.
    """
    try:
        old, facts = read_manifest(data), read_json(data / "dataset.json")
    except DataError:
        return
    new = read_json(building / "dataset.json")
    table = read_manifest(building)
    if facts.get("fingerprint") != new["fingerprint"] or "split" not in facts:
        return
    before = table.image_id.map(patients(old).set_axis(old.image_id))
    if not patients(table).fillna("").equals(before.fillna("")):
        return
    table["split"] = table.image_id.map(old.set_index("image_id").split)
    write_manifest(building, table, data_labels(building))
    write_json(building / "dataset.json", {**new, "split": facts["split"]})
    for name in ("near_duplicates.csv", "audit.csv"):
        if (data / name).is_file():
            shutil.copyfile(data / name, building / name)

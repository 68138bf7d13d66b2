"""Pixels decoded once: every image of a data set at the training size, as uint8 on disk."""

import errno
import os
import shutil
from collections.abc import Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from dermlens.data.images import load_image
from dermlens.data.splits import read_checks
from dermlens.errors import DataError
from dermlens.files import read_json, write_json, written_beside
from dermlens.locks import folder_lock
from dermlens.progress import progress


def cached_images(data: Path, table: pd.DataFrame, size: tuple[int, int]) -> np.ndarray:
    """Return the images of a data set at a size, decoding them only the first time.

    The cache lives in ``DATA/cache/<height>x<width>/`` and is made again when the images change or
    it is damaged. Another run that needs it meanwhile waits for it.

    Args:
        data: Prepared data set.
        table: Its whole manifest.
        size: (height, width) in pixels.

    Returns:
        Read-only memory map, uint8, (N, height, width, 3), in the manifest's row order.

    Raises:
        DataError: If an image is missing or damaged, or the disk is too full.
    """
    data = Path(data)
    folder = data / "cache" / f"{size[0]}x{size[1]}"
    key = {"image_ids": list(table.image_id), "crc32": _checksums(data, table)}
    images = _stored(folder, key, size)
    if images is None:
        # Of two runs that need the same pixels the second waits, and finds them made.
        with folder_lock(folder, wait=True):
            images = _stored(folder, key, size)
            if images is None:
                _build(data, table, size, folder)
                write_json(folder / "index.json", key)
                images = _stored(folder, key, size)
    if images is None:
        raise DataError(f"The pixel cache in {folder} was damaged while it was made. Try again.")
    return images


def _stored(folder: Path, key: dict[str, Any], size: tuple[int, int]) -> np.ndarray | None:
    """Return the pixels that are stored under a key, or None if there are none or not all."""
    index = folder / "index.json"
    try:
        if not index.is_file() or read_json(index) != key:
            return None
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    except (DataError, OSError, ValueError, EOFError):
        return None
    right = images.shape == _shape(key["image_ids"], size) and images.dtype == np.uint8
    return images if right else None


def _shape(rows: Sized, size: tuple[int, int]) -> tuple[int, int, int, int]:
    return len(rows), size[0], size[1], 3


def _checksums(data: Path, table: pd.DataFrame) -> list[int]:
    checks = read_checks(data).set_index("image_id").crc32
    return [int(value) for value in checks.reindex(table.image_id)]


def _build(data: Path, table: pd.DataFrame, size: tuple[int, int], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
    (folder / "images.npy").unlink(missing_ok=True)
    shape = _shape(table, size)
    paths = [data / path for path in table.path]
    title = f"Decoding images at {size[0]}x{size[1]}"
    with written_beside(folder / "images.npy") as temporary, open(temporary, "wb") as stream:
        _write_header(stream, shape)
        _reserve(stream, int(np.prod(shape)), folder)
        with progress(title, len(paths)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                # Written, not mapped: a full disk is then an error and not the end of the process.
                for image in pool.map(lambda path: load_image(path, size), paths):
                    stream.write(np.ascontiguousarray(image, np.uint8).data)
                    advance()
            finally:
                pool.shutdown(cancel_futures=True)


def _write_header(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


def _reserve(stream: BinaryIO, needed: int, folder: Path) -> None:
    """Take the space at once, so that a disk too full is known before the long work."""
    stream.flush()
    try:
        if shutil.disk_usage(folder).free < needed * 1.05:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, stream.tell() + needed)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return  # A file system that cannot reserve; writing tells.
        raise DataError(
            f"The pixel cache needs {needed / 1e9:.1f} GB in {folder}, more than is free there. "
            "Free some space or train at a smaller --size."
        ) from error

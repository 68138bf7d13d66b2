"""Pixels decoded once: every image of a data set at the training size, as uint8 on disk."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from dermlens.data.images import load_image
from dermlens.data.splits import read_checks
from dermlens.errors import DataError
from dermlens.files import read_json, write_json
from dermlens.progress import progress


def cached_images(data: Path, table: pd.DataFrame, size: tuple[int, int]) -> np.ndarray:
    """Return the images of a data set at a size, decoding them only the first time.

    The cache lives in ``DATA/cache/<height>x<width>/`` and is made again when the images change.

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
    index = folder / "index.json"
    if not (index.is_file() and read_json(index) == key):
        _build(data, table, size, folder)
        write_json(index, key)
    return np.load(folder / "images.npy", mmap_mode="r")


def _checksums(data: Path, table: pd.DataFrame) -> list[int]:
    checks = read_checks(data).set_index("image_id").crc32
    return [int(value) for value in checks.reindex(table.image_id)]


def _build(data: Path, table: pd.DataFrame, size: tuple[int, int], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
    shape = (len(table), *size, 3)
    needed = int(np.prod(shape))
    if shutil.disk_usage(folder).free < needed * 1.05:
        raise DataError(
            f"The pixel cache needs {needed / 1e9:.1f} GB in {folder}, more than is free there. "
            "Free some space or train at a smaller --size."
        )
    temporary = folder / "images.npy.part"
    images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
    paths = [data / path for path in table.path]
    try:
        title = f"Decoding images at {size[0]}x{size[1]}"
        with progress(title, len(paths)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
            for row, image in enumerate(pool.map(lambda path: load_image(path, size), paths)):
                images[row] = image
                advance()
        images.flush()
        del images
        os.replace(temporary, folder / "images.npy")
    finally:
        temporary.unlink(missing_ok=True)

"""Image files that a command works through: each is read and fitted once, before the long work."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dermlens.data.images import fit_image, fit_mask, opened_mask, opened_rgb, read_bytes
from dermlens.errors import DataError, UsageError
from dermlens.folders import Kind, require_replaceable
from dermlens.model.bundle import Bundle


def check_numbers(batch_size: int, seed: int) -> None:
    """Raise UsageError for a batch size or a seed that cannot be used."""
    if batch_size < 1:
        raise UsageError(f"The batch size must be at least 1, not {batch_size}.")
    if seed < 0:
        raise UsageError(f"The seed must not be negative, but is {seed}.")


def fitted_photographs(
    bundle: Bundle,
    files: Sequence[Path],
    out: Path,
    kind: Kind,
    masks: Mapping[Path, Path] | None = None,
) -> tuple[np.ndarray, dict[Path, np.ndarray]]:
    """Read files, so that everything that is wrong with them is found before the long work.

    Args:
        bundle: Model whose input size they are fitted to.
        files: Images; each gets the folder ``OUT/<image_id>``.
        out: Folder to write into.
        kind: Of what will be written; nothing else may stand there.
        masks: Outline of some of the images.

    Returns:
        uint8 (N, H, W, 3) on disk, however many there are; and outlines, bool (H, W), by image.

    Raises:
        DataError: If a file cannot be read, two would share a folder, a folder holds something
            else, or an outline is not of its image's size.
    """
    by_name: dict[str, Path] = {}
    for path in files:
        if by_name.setdefault(path.stem, path) != path:
            raise DataError(
                f"{by_name[path.stem]} and {path} would both be written to the folder {path.stem}. "
                "Rename one, or write them into different folders."
            )
        require_replaceable(out / path.stem, kind)
    size, outlines = bundle.input_size, {}
    # The file has no name: it is gone when nobody holds it any more.
    with tempfile.TemporaryFile() as store:
        images = np.memmap(store, np.uint8, "w+", shape=(len(files), *size, 3))
    for place, path in zip(images, files, strict=True):
        with opened_rgb(read_bytes(path), str(path)) as picture:
            place[:], shape = fit_image(picture, size), picture.size
        if masks and path in masks:
            with opened_mask(read_bytes(masks[path]), str(masks[path])) as drawn:
                if drawn.size != shape:
                    raise DataError(
                        f"The outline {masks[path]} has {drawn.width}x{drawn.height} pixels, its "
                        f"image {shape[0]}x{shape[1]}. Draw it on the whole image."
                    )
                outlines[path] = fit_mask(drawn, size)
    return images, outlines

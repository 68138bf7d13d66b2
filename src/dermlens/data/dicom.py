"""Photographs stored as DICOM: their frames as pictures, and nothing of the patient.

Dermoscopic and other visible-light images (VL Photographic, Secondary Capture, Dermoscopic
Photography): uncompressed, JPEG and JPEG 2000, RGB, YBR, palette and gray. A file of several frames
counts as one picture each: ``lesion.dcm`` with three frames is listed as ``lesion@1.dcm`` to
``lesion@3.dcm``, paths that ``data.images`` reads though no such file exists.

pydicom's messages quote what stands in the file, so none of them is handed on.
"""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.errors import DataError
from dermlens.extras import optional

SUFFIXES = (".dcm", ".dicom")
_MAGIC = slice(128, 132)
_FRAME = re.compile(r"(?P<stem>.+)@(?P<number>[1-9]\d{0,5})")
_MAX_PIXELS = 100_000_000


def is_dicom(content: bytes) -> bool:
    """Tell whether bytes are a DICOM file, by its preamble."""
    return content[_MAGIC] == b"DICM"


def is_dicom_path(path: Path) -> bool:
    """Tell whether a path means a DICOM file or one of its frames, by its ending."""
    return Path(path).suffix.lower() in SUFFIXES


def split_frame(path: Path) -> tuple[Path, int | None]:
    """Return the file that a path means, and the number of its frame, 1 is the first.

    Example:
        >>> split_frame(Path("study/lesion@2.dcm"))
        (PosixPath('study/lesion.dcm'), 2)
        >>> split_frame(Path("study/lesion.dcm"))
        (PosixPath('study/lesion.dcm'), None)
    """
    path = Path(path)
    found = _FRAME.fullmatch(path.stem)
    if path.suffix.lower() not in SUFFIXES or found is None or path.exists():
        return path, None
    return path.with_name(f"{found['stem']}{path.suffix}"), int(found["number"])


def frame_paths(path: Path) -> list[Path]:
    """Return a path for each frame of a DICOM file; the file's own if there is one frame.

    Raises:
        UsageError: If pydicom is not installed.
        DataError: If the file is no DICOM file.
    """
    count = _frames(_dataset(path, pixels=False))
    if count == 1:
        return [Path(path)]
    return [path.with_name(f"{path.stem}@{k}{path.suffix}") for k in range(1, count + 1)]


def frames_of(path: Path) -> list[Path]:
    """Return what a photograph counts as: itself, or a path for each frame of a DICOM file.

    A damaged file is itself: what is wrong with it is said where it is read.
    """
    if path.suffix.lower() not in SUFFIXES:
        return [path]
    try:
        return frame_paths(path)
    except DataError:
        return [path]


def picture_bytes(path: Path) -> bytes:
    """Return one frame as the bytes of an uncompressed PNG file, upright as it is stored.

    Args:
        path: A DICOM file of one frame, or a path as ``frame_paths`` returns it.

    Raises:
        UsageError: If pydicom is not installed.
        DataError: If the file holds no picture that can be decoded, or not that frame.
    """
    from PIL import Image

    file, number = split_frame(path)
    stream = io.BytesIO()
    Image.fromarray(_pixels(file, number)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def pixel_spacing(path: Path) -> tuple[float, float] | None:
    """Return the (row, column) distance of pixel centers in mm, or None where it is not told."""
    dataset = _dataset(split_frame(path)[0], pixels=False)
    for holder in (dataset, *_measures(dataset)):
        for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
            found = _numbers(holder, name)
            if found is not None:
                return found
    return None


def _measures(dataset: Any) -> list[Any]:
    groups = dataset.get("SharedFunctionalGroupsSequence") or []
    return [one for group in groups for one in group.get("PixelMeasuresSequence") or []]


def _numbers(dataset: Any, name: str) -> tuple[float, float] | None:
    try:
        row, column = (float(value) for value in dataset.get(name))
    except Exception:  # It is missing, or not two numbers.
        return None
    usable = np.isfinite([row, column]).all() and min(row, column) > 0
    return (row, column) if usable else None


def read_source(path: Path) -> Any:
    """Return the data set of a DICOM file without its pixels, for objects derived from it.

    Raises:
        UsageError: If pydicom is not installed.
        DataError: If the file is no DICOM file.
    """
    return _dataset(split_frame(path)[0], pixels=False)


def _dataset(path: Path, *, pixels: bool) -> Any:
    dcmread = optional("pydicom").dcmread
    try:
        return dcmread(path, stop_before_pixels=not pixels)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Check the path.") from None
    except Exception:
        raise DataError(f"{path} is no DICOM file, or a damaged one. Get it again.") from None


def _frames(dataset: Any) -> int:
    try:
        return max(int(dataset.get("NumberOfFrames") or 1), 1)
    except (TypeError, ValueError):
        return 1


def _pixels(path: Path, number: int | None) -> np.ndarray:
    """Return one frame: uint8 RGB (H, W, 3)."""
    dataset = _dataset(path, pixels=True)
    count, size = _frames(dataset), _size(dataset)
    if size is None:
        raise DataError(f"{path} holds no picture. Choose a DICOM file with pixel data.")
    if size[0] * size[1] > _MAX_PIXELS:
        raise DataError(
            f"{path} has {size[1]}x{size[0]} pixels, more than the {_MAX_PIXELS:,} allowed. Scale "
            "it down first."
        )
    if number is None and count > 1:
        raise DataError(
            f"{path} holds {count} frames. Choose one, such as {path.stem}@1{path.suffix}."
        )
    if (number or 1) > count:
        raise DataError(f"{path} has no frame {number}; it holds {count}.")
    try:
        values = optional("pydicom.pixels").pixel_array(dataset, index=(number or 1) - 1)
        return _rgb(np.asarray(values), dataset)
    except Exception:
        raise DataError(
            f"The picture in {path} cannot be decoded: it is damaged, or stored in a way that "
            "needs another decoder (JPEG, JPEG 2000 and uncompressed pictures can be read). "
            "Convert it to one of these."
        ) from None


def _size(dataset: Any) -> tuple[int, int] | None:
    try:
        rows, columns = int(dataset.Rows), int(dataset.Columns)
    except (AttributeError, TypeError, ValueError):
        return None
    has_pixels = any(name in dataset for name in ("PixelData", "FloatPixelData"))
    return (rows, columns) if has_pixels and rows > 0 and columns > 0 else None


def _rgb(values: np.ndarray, dataset: Any) -> np.ndarray:
    """Return decoded values as uint8 RGB; pydicom has turned YBR into RGB already."""
    kind = str(dataset.get("PhotometricInterpretation", ""))
    if kind == "PALETTE COLOR":
        values = optional("pydicom.pixels").apply_color_lut(values, dataset)
    white = float((1 << int(dataset.BitsStored)) - 1)
    if kind == "PALETTE COLOR" and values.dtype == np.uint16:
        white = 65535.0
    if int(dataset.get("PixelRepresentation", 0)) == 1:
        values = values.astype(np.float64) - values.min()
        white = max(float(values.max()), 1.0)
    if values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=2)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError("neither gray nor three colors")
    scaled = values if white == 255.0 else np.round(np.clip(values / white, 0, 1) * 255)
    scaled = scaled.astype(np.uint8)
    return 255 - scaled if kind == "MONOCHROME1" else scaled

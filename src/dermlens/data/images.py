"""Reading image files: decoding, checking, fitting to the size a model takes."""

import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from dermlens.data import dicom
from dermlens.data.decoding import (
    FORMATS,
    as_array,
    check_memory,
    decode_upright,
    memory_needed,
    open_header,
    to_rgb,
)
from dermlens.data.masks import mask_of
from dermlens.errors import DataError, DermlensError

IMAGE_SUFFIXES: tuple[str, ...] = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"),
    *(".jp2", ".j2k", ".avif", ".heic", ".heif"),
)
PHOTOGRAPH_SUFFIXES = (*IMAGE_SUFFIXES, *dicom.SUFFIXES)
"""Of files that are predicted and explained; a data set is made of ``IMAGE_SUFFIXES`` alone."""
MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 500_000_000
"""Of one image file; an uncompressed one of ``MAX_PIXELS`` stays below."""
_LARGE_BYTES = 100_000_000
_LARGE = threading.Lock()
_HASH_SIDE = 64
_HASH_KEPT = 16


class ImageChecks(TypedDict):
    """What ``images.csv`` holds about one image file."""

    width: int
    height: int
    bytes: int
    crc32: int
    perceptual_hash: str


def open_rgb(content: bytes, name: str) -> Any:
    """Decode an image file completely into an upright RGB PIL image.

    EXIF orientation is applied where it is valid; palette, gray, CMYK and 16-bit images become
    RGB; an alpha channel is laid over white.

    Args:
        content: The bytes of the file.
        name: Name for the error message.

    Raises:
        DataError: If the bytes are no image of ``decoding.FORMATS``, are cut off or damaged, hold
            more than ``MAX_PIXELS``, or would take too much memory.
    """
    return _open(content, name, lambda image, _: to_rgb(image))


def open_mask(content: bytes, name: str) -> Any:
    """Decode the file of an outline into an upright gray PIL image 0..255; see ``masks.mask_of``.

    Raises:
        DataError: As ``open_rgb`` does.
    """
    return _open(content, name, mask_of)


def _open(content: bytes, name: str, convert: Callable[[Any, str | None], Any]) -> Any:
    try:
        image = open_header(content)
        _check_pixels(image, name)
        check_memory(image, content, name)
        kind = image.format
        image = decode_upright(image)
        return convert(image, kind)
    except DermlensError:
        raise
    except Exception as error:  # Damaged files make decoders fail in many ways.
        raise _undecodable(name, error) from error


def opened_rgb(content: bytes, name: str) -> AbstractContextManager[Any]:
    """Yield what ``open_rgb`` returns; large images are held by one thread at a time.

    Raises:
        DataError: As ``open_rgb`` does.
    """
    return _opened(content, name, open_rgb)


def opened_mask(content: bytes, name: str) -> AbstractContextManager[Any]:
    """Yield what ``open_mask`` returns; large ones are held by one thread at a time.

    Raises:
        DataError: As ``open_rgb`` does.
    """
    return _opened(content, name, open_mask)


@contextmanager
def _opened(content: bytes, name: str, read: Callable[[bytes, str], Any]) -> Iterator[Any]:
    with _LARGE if _is_large(content) else nullcontext():
        image = read(content, name)
        del content
        yield image


def _is_large(content: bytes) -> bool:
    try:
        return memory_needed(open_header(content), content) > _LARGE_BYTES
    except Exception:  # What is wrong with the file is said where it is decoded.
        return False


def _check_pixels(image: Any, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{name} has {image.width}x{image.height} pixels, more than the {MAX_PIXELS:,} "
            "allowed. Scale it down first."
        )


def _undecodable(name: str, error: Exception) -> DataError:
    from PIL import UnidentifiedImageError

    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = f"it is none of {', '.join(FORMATS)}, or its header is damaged"
    return DataError(
        f"{name} cannot be decoded as an image ({reason}). Replace or remove the file."
    )


def fit_image(image: Any, size: tuple[int, int]) -> np.ndarray:
    """Scale and center-crop an RGB PIL image to a model's input size, aspect ratio kept.

    The one geometry used for training, evaluation and serving. Cameras' 4:3 frames fill a
    3:4 input without loss; a landscape frame is never rotated, only its longer side trimmed.

    Args:
        image: RGB PIL image of any size.
        size: (height, width) in pixels.

    Returns:
        uint8 array (height, width, 3), antialiased.
    """
    from PIL import Image

    box = fit_box(image.height, image.width, size)
    fitted = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(fitted, dtype=np.uint8)


def fit_box(height: int, width: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the (left, top, right, bottom) part of an image that fills ``size`` undistorted.

    Example:
        >>> fit_box(300, 400, (192, 256))
        (0.0, 0.0, 400.0, 300.0)
        >>> fit_box(300, 400, (100, 100))
        (50.0, 0.0, 350.0, 300.0)
    """
    # One side is kept exactly: rounding must not push the box past the image's edge.
    kept_height, kept_width = float(height), float(width)
    if height * size[1] <= width * size[0]:
        kept_width = height * size[1] / size[0]
    else:
        kept_height = width * size[0] / size[1]
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return (left, top, left + kept_width, top + kept_height)


def fit_mask(mask: Any, size: tuple[int, int]) -> np.ndarray:
    """Bring a mask PIL image to a model's input size with the geometry of ``fit_image``.

    Its range in use counts, as ``masks.mask_of`` says.

    Returns:
        bool array (height, width).
    """
    from PIL import Image

    gray = mask_of(mask)
    box = fit_box(gray.height, gray.width, size)
    fitted = gray.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return np.asarray(fitted) >= 128


def load_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image file as uint8 RGB, (H, W, 3), fitted to ``size`` if given.

    Raises:
        DataError: If the file is missing or cannot be decoded.
    """
    with opened_rgb(read_bytes(path), str(path)) as image:
        return as_array(image) if size is None else fit_image(image, size)


def load_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask file as bool, (H, W), fitted to ``size`` if given.

    Raises:
        DataError: If the file is missing or cannot be decoded.
    """
    with opened_mask(read_bytes(path), str(path)) as mask:
        return as_array(mask) >= 128 if size is None else fit_mask(mask, size)


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image file, upright, decoding it completely.

    Raises:
        DataError: If the file is missing or cannot be decoded.
    """
    with opened_rgb(read_bytes(path), str(path)) as image:
        return image.height, image.width


def read_bytes(path: Path) -> bytes:
    """Read an image file; of DICOM the picture alone, as an uncompressed PNG file.

    Raises:
        DataError: If it is missing, is no file (a folder, a named pipe, a device), or holds more
            than ``MAX_FILE_BYTES``.
    """
    file, _ = dicom.split_frame(path)
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path} is a {kind_of(found.st_mode)}, not an image file.")
        if found.st_size > MAX_FILE_BYTES:
            raise DataError(
                f"{path} has {found.st_size / 1e6:,.0f} MB, more than the "
                f"{MAX_FILE_BYTES / 1e6:,.0f} MB allowed for an image. Scale it down first."
            )
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Check the path.") from error
    return dicom.picture_bytes(path) if dicom.is_dicom(content) else content


def kind_of(mode: int) -> str:
    """Say what the mode of a directory entry stands for.

    Example:
        >>> kind_of(stat.S_IFIFO)
        'named pipe'
    """
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def inspect_image(path: Path) -> ImageChecks:
    """Decode an image file completely and return its checks.

    Raises:
        DataError: If the file is missing or cannot be decoded.
    """
    return inspect_bytes(read_bytes(path), str(path))


def inspect_bytes(content: bytes, name: str) -> ImageChecks:
    """Decode the bytes of an image file completely and return its checks."""
    with opened_rgb(content, name) as image:
        return ImageChecks(
            width=image.width,
            height=image.height,
            bytes=len(content),
            crc32=zlib.crc32(content),
            perceptual_hash=perceptual_hash(image),
        )


@cache
def _cosines() -> np.ndarray:
    """First rows of the orthonormal DCT-II matrix, (kept, side)."""
    row = np.arange(_HASH_KEPT)[:, None]
    column = np.arange(_HASH_SIDE)[None, :]
    matrix = np.cos(np.pi * row * (2 * column + 1) / (2 * _HASH_SIDE))
    matrix[0] /= np.sqrt(2)
    return matrix * np.sqrt(2 / _HASH_SIDE)


def perceptual_hash(image: Any) -> str:
    """Return a 256-bit perceptual hash as 64 hexadecimal digits.

    The signs, relative to their median, of the lowest 16x16 DCT coefficients of the 64x64
    gray image (Zauner, "Implementation and benchmarking of perceptual image hash functions",
    2010). Small Hamming distances mean near-duplicates, whatever the file format and scale.
    """
    from PIL import Image

    side = (_HASH_SIDE, _HASH_SIDE)
    gray = np.asarray(image.convert("L").resize(side, Image.Resampling.BOX), dtype=np.float64)
    low = (_cosines() @ gray @ _cosines().T).ravel()
    bits = low > np.median(low[1:])
    return np.packbits(bits).tobytes().hex()

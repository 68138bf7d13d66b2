"""Reading an uploaded file: refused by size and kind before anything is decoded."""

from pathlib import Path
from typing import Any

from dermlens.data.decoding import check_memory, open_header
from dermlens.data.images import open_rgb, read_bytes
from dermlens.errors import DataError

MAX_BYTES = 20 * 2**20
"""Of one file."""
MAX_PIXELS = 50_000_000
"""Of one image; the cameras of phones reach about as many."""
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
"""Of ``decoding.FORMATS``; a GIF is no photograph."""
_KINDS = "JPEG, PNG, TIFF, BMP or WebP"


def read_upload(path: Path) -> Any:
    """Return an uploaded image as an upright RGB PIL image.

    Messages never hold a path, and the file's name is not used at all.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise DataError(
            "The upload is no longer here: uploads are deleted after 15 minutes. Upload it again."
        ) from None
    if size == 0:
        raise DataError("The file is empty (0 bytes). Choose another one.")
    if size > MAX_BYTES:
        raise DataError(
            f"The file has {size / 2**20:.0f} MB; up to {MAX_BYTES // 2**20} MB are taken. Scale "
            "the image down first."
        )
    content = read_bytes(path)
    _check_header(content)
    try:
        return open_rgb(content, "The file")
    except DataError:
        raise DataError(
            "The file cannot be decoded: it is damaged or cut off. Save the image again."
        ) from None


def _check_header(content: bytes) -> None:
    """Read format, pixel counts and the memory that decoding takes, which needs no decoding."""
    from PIL import Image

    try:
        header = open_header(content)
    except Image.DecompressionBombError:
        raise DataError(_too_many("far more")) from None
    except Exception:
        header = None
    if header is None or header.format not in FORMATS:
        raise DataError(f"The file cannot be decoded as an image. Choose a {_KINDS} file.")
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise DataError(_too_many(f"{width} x {height} pixels, more"))
    check_memory(header, content, "The file")


def _too_many(found: str) -> str:
    return (
        f"The image has {found} than the {MAX_PIXELS // 10**6} million pixels that are taken. "
        "Scale it down first."
    )

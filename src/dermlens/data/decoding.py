"""Decoding pictures that nobody has vetted: known formats only, bounded memory, any damage told.

Pillow's decoders fail on damaged files in many ways (``struct.error``, ``AttributeError``,
``TypeError``, ``SyntaxError``, ``MemoryError``, …) and can start other programs (Ghostscript for
PostScript). Here every failure is a ``DataError``, and only the formats of photographs are opened.
"""

import io
import struct
import sys
from typing import Any

import numpy as np

from dermlens.data.color_profiles import profile_transform
from dermlens.errors import DataError
from dermlens.extras import optional

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "AVIF")
"""What ``Image.open`` may try, the only such list in the package; and HEIC, by a package of its
own."""
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
MAX_MEMORY = 850_000_000
"""Bytes that decoding one picture may take, so that a process stays below 1 GiB."""
_BAND_PIXELS = 1 << 20
_ORIENTATION = 0x0112
_EXIF_LENGTH = 1 << 16
_EXIF_HEADER = b"Exif\x00\x00"
_MULTI_PICTURE_HEADER = b"MPF\x00"
# Of TIFF: size, depth, compression, color, strips, tiles, planes, predictor, palette, JPEG tables.
_PIXEL_TAGS = frozenset({254, *range(256, 260), 262, 266, 273, *range(277, 280), 284, 292, 293})
_PIXEL_TAGS |= {317, 320, *range(322, 326), 338, 339, 347, 529, 530, 532}
_MAX_PAGES = 64
# Bytes per pixel that decoders hold beside the picture itself, measured.
_DECODER_BYTES = {"WEBP": 13, "GIF": 2, "BMP": 1, "JPEG2000": 16, "AVIF": 8, "HEIF": 8}


def open_header(content: bytes) -> Any:
    """Open a picture of a known format without decoding its pixels.

    Broken descriptions (EXIF, resolution, multi-picture) do not matter: they are left out then. Of
    the pages of a TIFF file the largest is taken; smaller ones are previews.

    Args:
        content: The bytes of the file.

    Returns:
        A lazy PIL image.

    Raises:
        Exception: Whatever Pillow raises on what is no picture.
        ValueError: If the file holds several pages or frames, of which any could be meant.
    """
    try:
        image = _open(content)
    except Exception:
        if content.startswith(b"\xff\xd8"):
            return _open_jpeg_without_descriptions(content)
        if not content.startswith((b"II*\x00", b"MM\x00*")):
            raise
        content = _tiff_without_descriptions(content)
        image = _open(content)
    if image.format in ("GIF", "WEBP", "PNG", "AVIF") and getattr(image, "is_animated", False):
        raise ValueError("it is an animation, not one image")
    if image.format == "TIFF" and (page := _page(content)):
        image.seek(page)
    return image


def _page(content: bytes) -> int:
    """Return the number of the one full-sized page of a TIFF file, 0 is the first."""
    pages = _open(content)
    sizes: list[tuple[int, int]] = []
    for number in range(_MAX_PAGES + 1):
        try:
            pages.seek(number)
        except Exception:  # There are no more, or what follows is damaged.
            break
        # Marked as a reduced copy or as a mask of another page.
        minor = int(pages.tag_v2.get(254, 0)) & 5
        sizes.append((0 if minor else pages.width * pages.height, number))
    largest = max(sizes, default=(0, 0))[0]
    found = [number for size, number in sizes if size == largest]
    if len(sizes) > _MAX_PAGES or (largest and len(found) > 1):
        raise ValueError(f"it holds {len(sizes)} pages; save the one that is meant as a file")
    return found[0] if largest else 0


def _open(content: bytes) -> Any:
    from PIL import Image

    if content[4:8] == b"ftyp" and content[8:12] in _HEIC_BRANDS:
        optional("pi_heif").register_heif_opener()
        return Image.open(io.BytesIO(content), formats=("HEIF", "AVIF"))
    return Image.open(io.BytesIO(content), formats=FORMATS)


def _open_jpeg_without_descriptions(content: bytes) -> Any:
    plain = content
    for header in (_EXIF_HEADER, _MULTI_PICTURE_HEADER):
        plain = plain.replace(header, b"-" * len(header), 1)
    image = _open(plain)
    start = content.find(_EXIF_HEADER)
    if start >= 0:
        image.info["exif"] = content[start : start + _EXIF_LENGTH]
    return image


def _tiff_without_descriptions(content: bytes) -> bytes:
    """Give every entry that pixels do not depend on the type 0, which readers skip.

    One entry that points outside the file makes Pillow miss all that come after it.
    """
    order = "<" if content.startswith(b"II") else ">"
    patched = bytearray(content)
    (start,) = struct.unpack_from(f"{order}L", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(f"{order}HHL", content, entry)
        if tag not in _PIXEL_TAGS and (tag, kind, values) != (_ORIENTATION, 3, 1):
            struct.pack_into(f"{order}HL", patched, entry + 2, 0, 0)
    return bytes(patched)


def memory_needed(image: Any, content: bytes) -> int:
    """Return how many bytes it takes, at most, to make an opened picture upright RGB.

    Args:
        image: From ``open_header``, not decoded yet.
        content: The bytes of the file, which stay in memory meanwhile.
    """
    stored = _stored_bytes(image.mode)
    loading = stored + _DECODER_BYTES.get(str(image.format), 0)
    if image.format in ("JPEG", "MPO") and _in_several_scans(image, content):
        # The decoder keeps all coefficients, 16 bits each, until the last scan.
        loading += 2 * len(image.getbands())
    if _second_bytes(image):
        loading *= 2
    # Of PNG the orientation may stand behind the pixels.
    turned = image.format == "PNG" or orientation(image) > 1
    turning = 2 * stored if turned else stored
    converting = stored + 4 if image.mode != "RGB" else stored
    pixels = image.width * image.height
    strip = _strip_bytes(image) if image.format == "TIFF" else 0
    return len(content) + pixels * max(loading, turning, converting) + strip


def _stored_bytes(mode: str) -> int:
    """Bytes per pixel in Pillow's memory."""
    if mode.startswith("I;16"):
        return 2
    return 1 if mode in ("1", "L", "P") else 4


def _in_several_scans(image: Any, content: bytes) -> bool:
    # Pillow has read up to the first scan; inside of scans the marker's bytes cannot occur.
    return "progressive" in image.info or content.find(b"\xff\xda", image.fp.tell()) >= 0


def _strip_bytes(image: Any) -> int:
    """Bytes of one strip or tile of a TIFF file, which is unpacked as a whole."""
    tags = image.tag_v2
    if tags.get(259, 1) == 1:
        return 0
    bits = np.max(tags.get(258, 1)) * tags.get(277, 1)
    if 322 in tags and 323 in tags:
        pixels = tags[322] * tags[323]
    else:
        pixels = image.width * min(tags.get(278, image.height), image.height)
    return int(pixels * bits) // 8


def orientation(image: Any) -> int:
    """Return the EXIF orientation of a picture, 1..8; 1 where the tag is missing or broken."""
    try:
        tags = image.tag_v2 if image.format == "TIFF" else image.getexif()
        value = tags.get(_ORIENTATION, 1)
    except Exception:  # Whatever is wrong with a description is no reason to refuse the picture.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decode_upright(image: Any) -> Any:
    """Decode an opened picture completely and turn it upright.

    ``ImageOps.exif_transpose`` writes the whole EXIF block again and fails if any tag is broken.
    Colors of 10, 12 or 14 bits in a file of 16 come out in their whole brightness.

    Raises:
        Exception: Whatever Pillow raises on damaged files.
    """
    stream, is_tiff = image.fp, image.format == "TIFF"
    if is_tiff:
        # Pillow turns TIFF files itself while decoding, and reads every tag for it.
        turn, image.getexif = orientation(image), _no_tags
    second, page = _second_bytes(image), image.tell()
    image.load()
    if second and _brightest(image) < 64:
        _brighten(image, _loaded_low_bytes(stream.getvalue(), page, second))
    stream.close()  # Else the file's bytes would stay in memory as long as the picture.
    if not is_tiff:
        turn = orientation(image)
    return image if turn == 1 else image.transpose(_turns()[turn])


def _second_bytes(image: Any) -> list[Any]:
    """Return tiles that read the lower bytes of colors of 16 bits; empty where there are none.

    Pillow keeps the upper bytes alone. Read in the other byte order, they are the lower ones.
    """
    other = "16B" if sys.byteorder == "little" else "16L"
    turned = {"16B": "16L", "16L": "16B", "16N": other}
    tiles = []
    for tile in image.tile if image.mode in ("RGB", "RGBA") else ():
        several = isinstance(tile[3], tuple)
        mode = tile[3][0] if several else tile[3]
        name, _, order = str(mode).partition(";")
        if order not in turned:
            return []
        mode = f"{name};{turned[order]}"
        tiles.append(tile._replace(args=(mode, *tile[3][1:]) if several else mode))
    return tiles


def _loaded_low_bytes(content: bytes, page: int, tiles: list[Any]) -> Any:
    image = _open(content)
    if page:
        image.seek(page)
    image.tile, image.getexif = tiles, _no_tags
    image.load()
    return image


def _brightest(image: Any) -> int:
    """Return the largest value of the colors, without alpha."""
    return max(high for _, high in image.getextrema()[:3])


def _brighten(image: Any, low: Any) -> None:
    """Put upper and lower bytes together and scale them to 0..255, in place."""
    from PIL import Image

    boxes = _bands(image)
    tops = [65535.0] * len(image.getbands())
    tops[:3] = [_white(max(_joined(image, low, box)[..., :3].max() for box in boxes))] * 3
    for box in boxes:
        scaled = np.minimum(_joined(image, low, box) / tops, 1) * 255 + 0.5
        image.paste(Image.fromarray(scaled.astype(np.uint8)), box)


def _joined(image: Any, low: Any, box: tuple[int, int, int, int]) -> np.ndarray:
    upper = np.asarray(image.crop(box), dtype=np.float32)
    return upper * 256 + np.asarray(low.crop(box), dtype=np.float32)


def _no_tags() -> Any:
    from PIL import Image

    return Image.Exif()


def _turns() -> dict[int, Any]:
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }


def to_rgb(image: Any) -> Any:
    """Turn a decoded picture of any mode into RGB, band by band.

    16-bit and floating-point pictures are scaled to 0..255 (``_range_in_use``); an alpha channel is
    laid over white; colors of another profile, such as a telephone's Display P3, become sRGB.
    """
    from PIL import Image

    profile = profile_transform(image)
    if image.mode == "RGB" and profile is None:
        return image
    deep = image.mode.startswith(("I", "F"))
    values = _range_in_use(image) if deep else (0.0, 255.0)
    whole = image if image.mode == "RGB" else Image.new("RGB", image.size)
    for box in _bands(image):
        part = image.crop(box)
        if profile is None:
            part = _deep_to_rgb(part, *values) if deep else _part_to_rgb(part)
        else:
            part = profile(part if part.mode in ("RGB", "CMYK") else _part_to_rgb(part))
        whole.paste(part, box[:2])
    return whole


def _bands(image: Any) -> list[tuple[int, int, int, int]]:
    rows = max(1, _BAND_PIXELS // image.width)
    return [
        (0, start, image.width, min(start + rows, image.height))
        for start in range(0, image.height, rows)
    ]


def _range_in_use(image: Any) -> tuple[float, float]:
    """Return the values that are black and white.

    0..1 or -1..1 for fractions, else the first of 8, 10, 12, 14 and 16 bits that holds all; for
    what is below zero or above 16 bits, its own smallest and largest value.

    Raises:
        ValueError: If no value is finite.
    """
    lows, highs = [], []
    for box in _bands(image):
        values = np.asarray(image.crop(box))
        values = values[np.isfinite(values)]
        if values.size:
            lows.append(float(values.min()))
            highs.append(float(values.max()))
    if not lows:
        raise ValueError("it holds no finite value")
    low, high = min(lows), max(highs)
    # Scaling leaves values a little outside of the range that is meant.
    slack = 0.1 if image.mode == "F" else 0.0
    if image.mode == "F" and low >= -1 - slack and high <= 1 + slack:
        return (0.0 if low >= -slack else -1.0), 1.0
    if low >= -slack * high and high <= 65535:
        return 0.0, _white(high)
    return low, max(high, low + 1)


def _white(largest: float) -> float:
    """Return the largest value of 8, 10, 12, 14 or 16 bits, whichever is the first to hold it."""
    return next(top for top in (255.0, 1023.0, 4095.0, 16383.0, 65535.0) if largest <= top)


def _deep_to_rgb(part: Any, low: float, high: float) -> Any:
    from PIL import Image

    values = np.nan_to_num(np.asarray(part, dtype=np.float64), nan=low)
    scaled = (np.clip((values - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


def _part_to_rgb(part: Any) -> Any:
    from PIL import Image

    if part.mode in ("RGBA", "LA", "PA") or "transparency" in part.info:
        upper = part.convert("RGBA")
        white = Image.new("RGBA", upper.size, "white")
        return Image.alpha_composite(white, upper).convert("RGB")
    return part.convert("RGB")


def as_array(image: Any) -> np.ndarray:
    """Return a decoded picture as a uint8 array, (H, W, 3) or (H, W), copied band by band."""
    channels = len(image.getbands())
    shape = (image.height, image.width, channels)[: 2 if channels == 1 else 3]
    array = np.empty(shape, np.uint8)
    for box in _bands(image):
        array[box[1] : box[3]] = np.asarray(image.crop(box))
    return array


def check_memory(image: Any, content: bytes, name: str) -> int:
    """Return the bytes that decoding an opened picture takes.

    Raises:
        DataError: If they are more than ``MAX_MEMORY``.
    """
    needed = memory_needed(image, content)
    if needed > MAX_MEMORY:
        raise DataError(
            f"{name} ({image.format}, {image.width}x{image.height} pixels) would take "
            f"{needed / 1e9:.2f} GB of memory to decode, more than the {MAX_MEMORY / 1e9:.2f} GB "
            "allowed. Scale it down first."
        )
    return needed

"""Predict and explain images with an exported artifact; nothing of dermlens is needed.

    python inference.py ARTIFACT IMAGE_OR_FOLDER_OR_GLOB... [--json F] [--csv F] [--explain DIR]

ARTIFACT is what 'dermlens export' wrote: the folder saved_model (needs tensorflow) or the file
model.tflite (needs ai-edge-litert). Besides, only numpy and pillow are needed.

Exit codes: 0 all went well; 1 something could not be read or written, the rest was; 2 nothing could
be done (no such artifact or a damaged one, a package is missing, no image found).

Research and education only, not a medical device.
"""

import argparse
import csv
import hashlib
import importlib
import io
import json
import os
import re
import stat
import struct
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".jp2", ".j2k", ".avif", ".heic", ".heif"),
)
MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 500_000_000
MAX_SIDE = 2048
MAX_STEM_BYTES = 200
_FORMULA = ("=", "+", "-", "@", "\t")
NOTE = "Research and education only, not a medical device."
FLAG_WORDS = {"malignant": "malignancy", "melanoma": "melanoma"}

# The perceptually uniform color map "viridis" (CC0), every fifth of its 256 colors.
_COLORS = (
    "44015446085c471063481769481d6f482475472a7a46307e453781433d844142873f48893d4e8a3a538b"
    "38598c355e8d33638d31688e2e6d8e2c718e2a768e297b8e27808e25848e23898e218e8d20928c1f978b"
    "1e9c891fa18821a58524aa8328ae802eb37c35b7793dbc7446c06f50c46a5ac86465cb5e70cf577cd250"
    "89d54895d840a2da37b0dd2fbddf26cae11fd8e219e5e419f1e51dfde725"
)

MapReader = Callable[[np.ndarray], np.ndarray]


class Stop(Exception):
    """Nothing can be done; the message says why and what to do."""


class Unreadable(Exception):
    """One image cannot be used; the message says why."""


# Reading images ------------------------------------------------------------------------------


def read_rgb(path: Path) -> Image.Image:
    """Decode an image file completely into an upright RGB image.

    EXIF orientation is applied where it is valid; palette, gray, CMYK and 16-bit images become RGB;
    transparency is laid over white.

    Raises:
        Unreadable: If the file is missing, no plain file, damaged, too large or an animation.
    """
    if reason := unusable(path):
        raise Unreadable(reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = path.read_bytes()
            image = open_header(content)
            check_size(image, content)
            return to_rgb(decode_upright(image))
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"has far more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise Unreadable("is empty, or no image of a known format") from None
    except Exception as error:  # Damaged files make decoders fail in many ways.
        reason = " ".join(str(error).replace(str(path), "the file").split())
        raise Unreadable(
            f"cannot be decoded as an image ({reason or type(error).__name__})"
        ) from error


def unusable(path: Path) -> str:
    """Return why a path is no file that can be read, without opening it; "" if it is one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
        return f"is a {kinds.get(stat.S_IFMT(found.st_mode), 'device')}, not an image file"
    if found.st_size > MAX_FILE_BYTES:
        return f"has more than {MAX_FILE_BYTES / 1e6:,.0f} MB"
    return ""


def check_size(image: Any, content: bytes) -> None:
    """Refuse an opened picture that has too many pixels or takes too much memory.

    Raises:
        Unreadable: If so.
    """
    if image.width * image.height > MAX_PIXELS:
        raise Unreadable(f"has {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    if (needed := memory_needed(image, content)) > MAX_MEMORY:
        raise Unreadable(
            f"would take {needed / 1e9:.2f} GB of memory to decode, more than the "
            f"{MAX_MEMORY / 1e9:.2f} GB allowed"
        )


def fit(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Scale and center-crop to (height, width), aspect ratio kept; uint8 (height, width, 3)."""
    height, width = size
    kept_width, kept_height = float(image.width), float(image.height)
    if image.height * width <= image.width * height:
        kept_width = image.height * width / height
    else:
        kept_height = image.width * height / width
    left, top = (image.width - kept_width) / 2, (image.height - kept_height) / 2
    box = (left, top, left + kept_width, top + kept_height)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def find_images(patterns: list[str]) -> list[Path]:
    """Return files for paths, folders (searched through) and globs; a missing path stays in.

    Raises:
        Stop: If there is no file at all, or an argument is empty, which would mean this folder.
    """
    if not all(pattern.strip() for pattern in patterns):
        raise Stop("An image is named by nothing. Give a path.")
    found = list(dict.fromkeys(path for pattern in patterns for path in matching(Path(pattern))))
    reasons = [unusable(path) for path in found]
    if all(reasons):
        why = f": {found[0]} {reasons[0]}" if found else ""
        raise Stop(f"No image found in {', '.join(patterns)}{why}. Check the path.")
    return found


def matching(path: Path) -> list[Path]:
    """Return what one argument stands for."""
    reason = unusable(path)
    if reason.startswith("is a folder"):
        return photographs_in(path)
    if reason != "does not exist":
        return [path]
    try:
        inside = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        return sorted(p for p in inside if not unusable(p)) or [path]
    except (OSError, ValueError, NotImplementedError):  # No pattern either.
        return [path]


def photographs_in(folder: Path) -> list[Path]:
    """Return the image files below a folder, without those that show outlines of lesions."""
    inside = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    files = sorted(p for p in inside if not unusable(p).startswith("is a folder"))
    stems = {path.stem for path in files}
    places = {path: PurePosixPath(path.relative_to(folder).as_posix()) for path in files}
    outlines = {path for path, place in places.items() if outline_owner(place, stems) is not None}
    if outlines:
        print(f"{len(outlines)} outlines of lesions in {folder} are left out.")
    return [path for path in files if path not in outlines]


# Telling outlines from photographs, as in dermlens.data.sources ---------------------------------

_OUTLINE_WORDS = r"segmentation|segmentation[ _-]?mask|mask|ground[ _-]?truth"
_OUTLINE_NAME = re.compile(rf"(.+?)[ _.-]({_OUTLINE_WORDS})", re.IGNORECASE)
# These may belong to a photograph's own name, and count only beside the photograph.
_PERHAPS_OUTLINE_NAME = re.compile(r"(.+?)[ _.-](lesion|seg|gt|outline|contour)", re.IGNORECASE)
_OTHER_NAME = re.compile(r".+_(superpixels|attribute_\w+)", re.IGNORECASE)
_OUTLINE_FOLDER = re.compile(
    r"(.*[ _.-])?(segmentations?|masks?|ground[ _-]?truths?|outlines?|contours?)([ _.-].*)?"
    r"|(.*[ _.-])?gt(\.zip)?",
    re.IGNORECASE,
)


def outline_owner(place: PurePosixPath, stems: Iterable[str]) -> str | None:
    """Tell by its name and folders whether an image file is no photograph but an outline.

    Args:
        place: Path below the folder that is looked through.
        stems: Names, without ending, of all image files there.

    Returns:
        The name of the photograph that the outline belongs to, without ending; "" for pictures of
        superpixels and attributes; None for photographs.

    Example:
        >>> outline_owner(PurePosixPath("a/ISIC_1_Segmentation.PNG"), [])
        'ISIC_1'
        >>> outline_owner(PurePosixPath("gt/ISIC_1.png"), [])
        'ISIC_1'
        >>> outline_owner(PurePosixPath("latest/ISIC_1.png"), [])
    """
    stem = place.stem
    if _OTHER_NAME.fullmatch(stem):
        return ""
    if match := _OUTLINE_NAME.fullmatch(stem):
        return match[1]
    match = _PERHAPS_OUTLINE_NAME.fullmatch(stem)
    if match and match[1] in stems:
        return match[1]
    if any("superpixel" in part.lower() for part in place.parent.parts):
        return ""
    if any(_OUTLINE_FOLDER.fullmatch(part) for part in place.parent.parts):
        return match[1] if match else stem
    return None


# Decoding, as in dermlens.data.decoding --------------------------------------------------------

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "AVIF")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
MAX_MEMORY = 850_000_000
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
_STEPS = 6


def optional(name: str) -> Any:
    """Return a package that only some files need.

    Raises:
        Unreadable: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.replace("_", "-")
        raise Unreadable(f"needs a package to be read: pip install {package}") from None


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


def profile_transform(image: Any) -> Any:
    """Return a function to sRGB from parts of a picture, as RGB or CMYK; None if there is none.

    A profile that is broken, belongs to another kind of picture, or does not keep black, gray and
    white apart and gray is left out, as is one that is sRGB up to rounding.
    """
    space = {"RGB": "RGB ", "RGBA": "RGB ", "P": "RGB ", "CMYK": "CMYK"}.get(image.mode)
    stored = image.info.get("icc_profile")
    if space is None or not stored:
        return None
    from PIL import Image, ImageCms

    plain = "CMYK" if image.mode == "CMYK" else "RGB"
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(stored))
        if profile.profile.xcolor_space != space:
            return None
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), plain, "RGB")
        steps = np.linspace(0, 255, _STEPS).astype(np.uint8)
        grid = np.stack(np.meshgrid(*[steps] * len(plain)), axis=-1).reshape(_STEPS, -1, len(plain))
        colors = Image.fromarray(grid, plain)
        before, after = (
            np.asarray(one, dtype=int)
            for one in (colors.convert("RGB"), ImageCms.applyTransform(colors, transform))
        )
    except Exception:  # A profile is a description; what is wrong with it costs no picture.
        return None
    if np.abs(after - before).max() <= 3 or not keeps_grays(
        after.reshape(-1, 3)[:: sum(_STEPS**k for k in range(len(plain)))]
    ):
        return None

    def convert(part: Any) -> Any:
        return ImageCms.applyTransform(part, transform)

    return convert


def keeps_grays(colors: np.ndarray) -> bool:
    """Tell whether what goes from black to white, or back, does so in steps and without color."""
    steps = np.diff(colors.mean(axis=1))
    ends = sorted([int(colors[0].mean()), int(colors[-1].mean())])
    in_order = bool((steps > 0).all() or (steps < 0).all())
    return in_order and ends[0] < 64 and ends[1] > 224 and int(np.ptp(colors, axis=1).max()) < 64


# Running artifacts ---------------------------------------------------------------------------


class SavedModel:
    """A TensorFlow SavedModel written by 'dermlens export'."""

    batch = 16

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        try:
            import tensorflow as tf
        except ImportError:
            raise Stop(
                "A SavedModel needs TensorFlow. Install it: pip install tensorflow"
            ) from None
        self.facts = read_facts(path / "metadata.json")
        check_files(self.facts, {name: path / name for name in self.facts.get("sha256", {})}, path)
        try:
            self._signatures = tf.saved_model.load(str(path)).signatures
            self._signatures["serving_default"]
        except Exception as error:
            raise Stop(f"{path} is no valid SavedModel ({error}). Export it again.") from error
        self._tf, self.explains = tf, "explain_grad_cam" in self._signatures

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities (N, C) of uint8 images (N, H, W, 3)."""
        outputs = self._signatures["serving_default"](images=self._tf.constant(images))
        return outputs["probabilities"].numpy()

    def explained(self, images: np.ndarray) -> tuple[np.ndarray, MapReader]:
        """Return probabilities, and a function from targets (N,) to maps (N, H, W)."""

        def maps(targets: np.ndarray) -> np.ndarray:
            outputs = self._signatures["explain_grad_cam"](
                images=self._tf.constant(images), targets=self._tf.constant(targets)
            )
            return outputs["maps"].numpy()

        return self.probabilities(images), maps


class LiteRT:
    """A .tflite file written by 'dermlens export'."""

    batch = 1

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise Stop(
                "A .tflite file needs LiteRT. Install it: pip install ai-edge-litert"
            ) from None
        self.facts = read_facts(path.with_suffix(".json"))
        # The file may have been renamed, together with its metadata.
        check_files(self.facts, dict.fromkeys(self.facts.get("sha256", {}), path), path)
        shapes = {
            "image": (1, *self.facts["input_size"], 3),
            "probabilities": (1, len(self.facts["classes"])),
        }
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=os.cpu_count())
            self._run = self._interpreter.get_signature_runner()
            known = {**self._run.get_input_details(), **self._run.get_output_details()}
            found = {name: tuple(map(int, known[name]["shape"])) for name in shapes}
            self.explains = "maps" in known
        except (ValueError, RuntimeError, KeyError) as error:
            raise Stop(f"{path} is no valid .tflite file ({error}). Export it again.") from error
        if found != shapes:
            raise Stop(f"{path} and {path.with_suffix('.json')} do not belong together: {found}.")

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities (1, C) of one uint8 image (1, H, W, 3)."""
        return self._run(image=images.astype(np.float32))["probabilities"]

    def explained(self, images: np.ndarray) -> tuple[np.ndarray, MapReader]:
        """Return probabilities, and a function from the target (1,) to the map (1, H, W)."""
        outputs = self._run(image=images.astype(np.float32))
        return outputs["probabilities"], lambda targets: outputs["maps"][:, targets[0]]


def read_facts(path: Path) -> dict:
    """Read and check the metadata beside an artifact.

    Raises:
        Stop: If it is missing, damaged, or cannot be true.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise Stop(
            f"{path} is missing or damaged. Copy it together with the artifact, as "
            "'dermlens export' wrote it."
        ) from None
    if problem := flaw(facts):
        raise Stop(
            f"{path} is damaged: {problem}. Copy it again together with the artifact, as "
            "'dermlens export' wrote it."
        )
    return facts


def flaw(facts: Any) -> str:
    """Return what is wrong with the metadata of an artifact, or ""."""
    if not isinstance(facts, dict):
        return "it does not describe an artifact"
    if "checksum" in facts and facts["checksum"] != checksum(facts):
        return "it has changed since it was written"
    for field, sound in claims(facts):
        if not sound:
            return f"the field {field} is missing or has an impossible value"
    return ""


def claims(facts: dict) -> Iterator[tuple[str, bool]]:
    """Yield the fields of metadata and whether each can be true; later ones rely on earlier."""
    classes, size = facts.get("classes"), facts.get("input_size")
    yield "classes", isinstance(classes, list) and all(isinstance(one, dict) for one in classes)
    for k, one in enumerate(classes):
        for key in ("code", "name"):
            yield f"classes[{k}].{key}", isinstance(one.get(key), str)
    codes = [one["code"] for one in classes]
    yield "classes", len(set(codes)) == len(codes) > 1
    yield "input_size", isinstance(size, list) and len(size) == 2
    yield "input_size", all(type(side) is int and 1 <= side <= MAX_SIDE for side in size)
    yield "link", facts.get("link", "softmax") in ("softmax", "sigmoid")
    for name in ("calibrated", "synthetic"):
        yield name, isinstance(facts.get(name, True), bool)
    name = "decision_rule" if "balanced_rule" not in facts else "balanced_rule"
    yield name, isinstance(facts.get(name), dict)
    tau, prior = facts[name].get("tau"), facts[name].get("log_prior")
    yield f"{name}.tau", is_number(tau, 0)
    yield f"{name}.log_prior", isinstance(prior, list) and all(map(is_number, prior))
    yield f"{name}.log_prior", len(prior) == len(codes) or (tau == 0 and not prior)
    points = facts.get("operating_points")
    yield "operating_points", isinstance(points, dict)
    for name, point in points.items():
        yield f"operating_points.{name}", isinstance(point, dict)
        summed = point.get("codes")
        yield f"operating_points.{name}.threshold", is_number(point.get("threshold"), 0, 1 + 1e-6)
        yield f"operating_points.{name}.codes", isinstance(summed, list) and len(summed) > 0
        yield f"operating_points.{name}.codes", all(code in codes for code in summed)
    sets, sums = facts.get("prediction_sets"), facts.get("sha256", {"": "none"})
    if sets is not None:
        yield "prediction_sets", isinstance(sets, dict)
        level, known = sets.get("level"), sets.get("true_probabilities")
        yield "prediction_sets.level", is_number(level, 0, 1) and 0 < level < 1
        yield "prediction_sets.true_probabilities", isinstance(known, dict)
        for code in codes:
            field, listed = f"prediction_sets.true_probabilities.{code}", known.get(code)
            yield field, isinstance(listed, list) and all(is_number(p, 0, 1) for p in listed)
            yield field, listed == sorted(listed)
    yield "sha256", isinstance(sums, dict) and len(sums) > 0
    for name, value in sums.items():
        yield f"sha256.{name}", isinstance(value, str)


def is_number(value: Any, low: float = -1e300, high: float = 1e300) -> bool:
    """Tell whether a value is a finite number in a range."""
    return type(value) in (int, float) and low <= value <= high


def checksum(facts: dict) -> str:
    """Return the SHA-256 over all metadata that matters, as 'dermlens export' stored it."""
    left_out = ("checksum", "dermlens_version", "license")
    covered = {key: value for key, value in facts.items() if key not in left_out}
    canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_files(facts: dict, files: dict[str, Path], artifact: Path) -> None:
    """Compare the files of an artifact with their checksums in its metadata.

    Raises:
        Stop: If one is missing or has changed.
    """
    if not files:
        print(
            f"Note: {artifact} was exported by an earlier version, without checksums: it is taken "
            "as it is.",
            file=sys.stderr,
        )
    for name, path in files.items():
        try:
            with open(path, "rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            raise Stop(f"{artifact} is incomplete: {name} is missing. Copy it again.") from None
        if found != facts["sha256"][name]:
            raise Stop(
                f"{artifact} is no valid {'.tflite file' if path == artifact else 'SavedModel'}: "
                f"{name} has changed since it was exported. Copy it again."
            )


def load(path: Path) -> SavedModel | LiteRT:
    """Load an artifact.

    Raises:
        Stop: If there is none, or the package that runs it is missing.
    """
    if (path / "saved_model.pb").is_file():
        return SavedModel(path)
    if path.suffix == ".tflite" and path.is_file():
        return LiteRT(path)
    raise Stop(f"{path} is neither a SavedModel folder nor a .tflite file. Check the path.")


# Predicting ----------------------------------------------------------------------------------


def predict(
    artifact: SavedModel | LiteRT,
    files: list[Path],
    explain: Path | None = None,
    target: str | None = None,
    level: float | None = None,
) -> Iterator[dict]:
    """Yield one record per file, in order; a file that cannot be read has an ``error``.

    Args:
        artifact: From ``load``.
        files: Images.
        explain: Folder for Grad-CAM overlays, or None.
        target: Code of the class to explain; default the most probable one.
        level: Of the prediction sets, 0..1; default the stored one.
    """
    facts = artifact.facts
    size = (int(facts["input_size"][0]), int(facts["input_size"][1]))
    names: set[str] = set()
    batches = [files[at : at + artifact.batch] for at in range(0, len(files), artifact.batch)]
    for part, pictures in ahead(lambda part: [read_or_error(path, size) for path in part], batches):
        records = [
            {"path": str(path), "error": picture if isinstance(picture, str) else ""}
            for path, picture in zip(part, pictures, strict=True)
        ]
        good = [record for record in records if not record["error"]]
        if good:
            images = np.stack([picture for picture in pictures if not isinstance(picture, str)])
            predict_batch(artifact, images, good, explain, target, names, level)
        yield from records


def read_or_error(path: Path, size: tuple[int, int]) -> np.ndarray | str:
    """Return an image file as uint8 (height, width, 3), or the sentence that says why not."""
    try:
        return fit(read_rgb(path), size)
    except Unreadable as error:
        return f"{path} {error}."


def ahead(work: Callable, items: list) -> Iterator[tuple]:
    """Yield (item, work(item)) in order, worked out in another thread up to two items ahead.

    Files are decoded while the model computes, and never more than three batches are held.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = deque((item, pool.submit(work, item)) for item in items[:2])
        for item in [*items[2:], None, None][: len(items)]:
            first, future = waiting.popleft()
            if item is not None:
                waiting.append((item, pool.submit(work, item)))
            yield first, future.result()


def predict_batch(
    artifact: SavedModel | LiteRT,
    images: np.ndarray,
    records: list[dict],
    explain: Path | None,
    target: str | None,
    names: set[str],
    level: float | None = None,
) -> None:
    """Fill in the records of readable images and write their overlays."""
    codes = [entry["code"] for entry in artifact.facts["classes"]]
    if explain is None:
        probabilities = artifact.probabilities(images)
    else:
        probabilities, maps = artifact.explained(images)
    predicted = probabilities.argmax(axis=1).astype(np.int32)
    for record, row in zip(records, probabilities, strict=True):
        if np.isfinite(row).all():
            record |= describe(row.astype(float), artifact.facts, level)
        else:
            record["error"] = (
                f"{record['path']} has no answer: the model gives no finite numbers. Export it "
                "again."
            )
    if explain is not None:
        chosen = predicted if target is None else np.full_like(predicted, codes.index(target))
        for record, image, values, goal in zip(records, images, maps(chosen), chosen, strict=True):
            if record["error"]:
                continue
            path = explain / free_name(Path(record["path"]).stem, names)
            record["explained"] = codes[goal]
            record["overlay_error"] = save_overlay(path, overlay(image, values))
            record["overlay"] = "" if record["overlay_error"] else str(path)


def save_overlay(path: Path, image: np.ndarray) -> str:
    """Write an overlay under its name only when it is complete; return why it was not, or ""."""
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            Image.fromarray(image).save(part, "PNG")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        return f"{path} could not be written ({error.strerror or error})."
    return ""


def rule_of(facts: dict) -> dict:
    """Return the balanced rule; exports of earlier versions call it the decision rule."""
    return facts["balanced_rule"] if "balanced_rule" in facts else facts["decision_rule"]


def balanced(probabilities: np.ndarray, facts: dict) -> np.ndarray:
    """Return the class positions that the balanced rule chooses, int32 (N,)."""
    rule = rule_of(facts)
    shares = np.clip(probabilities.astype(np.float64), 1e-30, 1.0)
    adjusted = np.log(shares)
    if facts.get("link") == "sigmoid":
        adjusted -= np.log(np.maximum(1.0 - shares, 1e-30))
    if rule["tau"]:
        adjusted -= rule["tau"] * np.asarray(rule["log_prior"])
    return adjusted.argmax(axis=1).astype(np.int32)


def thresholds(facts: dict, level: float | None) -> np.ndarray | None:
    """Return the probability from which each class cannot be excluded, float64 (C,).

    Class-conditional conformal prediction, as dermlens fits it on validation images. None if the
    artifact carries no prediction sets.

    Args:
        facts: Metadata of the artifact.
        level: Share of images whose set is to hold the true class, 0..1; default the stored one.
    """
    sets = facts.get("prediction_sets")
    if sets is None:
        return None
    level = sets["level"] if level is None else level
    found = []
    for entry in facts["classes"]:
        known = sets["true_probabilities"][entry["code"]]
        # The small addition keeps products such as 10 * (1 - 0.9) from falling below 1.
        rank = int(np.floor((len(known) + 1) * (1 - level) + 1e-9))
        found.append(known[rank - 1] if rank else 0.0)
    return np.array(found)


def describe(probabilities: np.ndarray, facts: dict, level: float | None = None) -> dict:
    """Return the answer about one image: most probable class, prediction set, flags."""
    codes = [entry["code"] for entry in facts["classes"]]
    first, limits = int(probabilities.argmax()), thresholds(facts, level)
    flags = {}
    for name, point in facts["operating_points"].items():
        score = sum(probabilities[codes.index(code)] for code in point["codes"])
        flags[name] = bool(score >= point["threshold"])
    order = np.argsort(-probabilities, kind="stable")
    return {
        "predicted": codes[first],
        "name": facts["classes"][first]["name"],
        "prediction_set": (
            None
            if limits is None
            else [codes[k] for k in order if k == first or probabilities[k] >= limits[k]]
        ),
        "probabilities": dict(zip(codes, map(float, probabilities), strict=True)),
        "flags": flags,
        "balanced_rule": codes[int(balanced(probabilities[None], facts)[0])],
    }


# Overlays ------------------------------------------------------------------------------------


def overlay(image: np.ndarray, values: np.ndarray, opacity: float = 0.8) -> np.ndarray:
    """Lay an attribution map over an image: brighter means more evidence for the class.

    Where there is no evidence the image stays as it is.

    Args:
        image: uint8 RGB (H, W, 3).
        values: Raw map (H, W); the brightest 0.5 percent are clipped.
        opacity: Of the map where it is brightest, 0..1.
    """
    values = np.nan_to_num(values.astype(np.float64))
    values = values - values.min()
    top = np.percentile(values, 99.5) or values.max()
    level = np.clip(values / top, 0, 1) if top > 0 else values
    anchors = np.frombuffer(bytes.fromhex("".join(_COLORS)), np.uint8).reshape(-1, 3)
    places = np.arange(len(anchors)) * 5
    index = np.minimum(np.floor(level * 256), 255)
    colors = np.stack([np.interp(index, places, anchors[:, k]) for k in range(3)], axis=-1)
    share = opacity * level[..., None]
    mixed = (1 - share) * image + share * colors
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def free_name(stem: str, taken: set[str]) -> str:
    """Return a file name that no other image of this run has and that is not too long."""
    while len(os.fsencode(stem)) > MAX_STEM_BYTES:
        stem = stem[:-1]
    name, number = f"{stem}_grad_cam.png", 2
    while name.lower() in taken:
        name, number = f"{stem}_{number}_grad_cam.png", number + 1
    taken.add(name.lower())
    return name


# Command line --------------------------------------------------------------------------------


def line(record: dict, facts: dict, first_balanced: bool = False) -> str:
    """Return one line for people."""
    if record["error"]:
        return f"error: {record['error']}"
    names = {entry["code"]: entry["name"] for entry in facts["classes"]}

    def said(code: str) -> str:
        name = code if names[code] == code else f"{names[code]} ({code})"
        return f"{name}, {percent(record['probabilities'][code])}"

    note = "" if facts.get("calibrated", True) else " (not calibrated)"
    text = f"Most probable: {said(record['predicted'])}{note}."
    if first_balanced:
        text = f"Balanced rule: {said(record['balanced_rule'])}. {text}"
    if record["prediction_set"] is not None:
        others = [said(code) for code in record["prediction_set"] if code != record["predicted"]]
        text += f" Cannot be excluded: {', '.join(others) or 'nothing else'}."
    raised = [FLAG_WORDS.get(name, name) for name, up in record["flags"].items() if up]
    if raised:
        text += f" Flagged: {' and '.join(raised)}."
    if record.get("overlay_error"):
        text += f"\nerror: {record['overlay_error']}"
    return f"{record['path']}: {text}"


def percent(share: float) -> str:
    """Write a share for people."""
    rounded = f"{100 * share:.0f}"
    if rounded == "0" and share > 0:
        rounded = "under 1"
    elif rounded == "100" and share < 1:
        rounded = "over 99"
    return f"{rounded} %"


def csv_row(record: dict, facts: dict) -> dict:
    """Return a record as one flat row."""
    keys = ("path", "predicted", "name", "prediction_set", "balanced_rule")
    row = {key: record.get(key, "") for key in (*keys, "error", "overlay", "overlay_error")}
    row["prediction_set"] = " ".join(row["prediction_set"] or ())
    for entry in facts["classes"]:
        row[f"probability_{entry['code']}"] = record.get("probabilities", {}).get(entry["code"], "")
    for name in facts["operating_points"]:
        row[f"flag_{name}"] = record.get("flags", {}).get(name, "")
    row["calibrated"] = facts.get("calibrated", True)
    return {
        without_formula(key): without_formula(value) if isinstance(value, str) else value
        for key, value in row.items()
    }


def without_formula(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: an apostrophe goes before its start.

    Example:
        >>> without_formula("=HYPERLINK(1)"), without_formula("-12.5"), without_formula("back")
        ("'=HYPERLINK(1)", '-12.5', 'back')
    """
    # Where lines end in a line feed, a carriage return alone would not be quoted.
    text = text.replace("\r", "\\r")
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def write(path: Path, text: str) -> bool:
    """Write a text file under its final name only when it is complete; tell whether it was."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Names of files may be any bytes; in JSON this is their usual form.
            part.write_bytes(text.encode("utf-8", "backslashreplace"))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        print(f"Error: {path} could not be written ({error.strerror or error}).", file=sys.stderr)
        return False
    print(f"Wrote {path}")
    return True


def write_tables(options: argparse.Namespace, records: list[dict], facts: dict) -> bool:
    """Write the files asked for; tell whether all were written."""
    complete = True
    if options.json:
        about = {
            key: facts.get(key) for key in ("artifact", "model", "dermlens_version", "license")
        }
        about["calibrated"] = facts.get("calibrated", True)
        content = {**about, "note": NOTE, "images": records}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        complete = write(Path(options.json), text)
    if options.csv:
        stream = io.StringIO()
        rows = [csv_row(record, facts) for record in records]
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        complete = write(Path(options.csv), stream.getvalue()) and complete
    return complete


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", metavar="ARTIFACT", help="saved_model folder or .tflite file")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image, folder or glob")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write the results as a table")
    parser.add_argument("--explain", metavar="DIR", help="write Grad-CAM overlays")
    parser.add_argument("--target", metavar="CODE", help="explain this class, such as mel")
    parser.add_argument(
        "--level",
        type=float,
        metavar="SHARE",
        help="share of images whose prediction set is to hold the true class, 0..1",
    )
    parser.add_argument(
        "--decision",
        choices=("most_probable", "balanced"),
        default="most_probable",
        help="what is said first: the most probable class, or the balanced rule",
    )
    return parser.parse_args(given)


def check_level(level: float | None, facts: dict) -> None:
    """Raise Stop if a level is out of range, or the artifact carries no prediction sets."""
    if level is None:
        return
    if not 0 < level < 1:
        raise Stop(f"The level lies between 0 and 1, such as 0.9, not {level:g}.")
    if facts.get("prediction_sets") is None:
        raise Stop("A level cannot be chosen: this export carries no prediction sets.")


def main(given: list[str] | None = None) -> int:
    """Run; return the exit code."""
    options = arguments(given)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        files = find_images(options.images)
        artifact = load(Path(options.artifact))
        codes = [entry["code"] for entry in artifact.facts["classes"]]
        if options.target is not None and options.target not in codes:
            raise Stop(f"Unknown class {options.target!r}. Use one of: {', '.join(codes)}.")
        check_level(options.level, artifact.facts)
        explain = Path(options.explain) if options.explain else None
        if explain is not None and not artifact.explains:
            raise Stop("This export has no Grad-CAM, so --explain cannot be given.")
        if explain is not None:
            explain.mkdir(parents=True, exist_ok=True)
        if model := artifact.facts.get("model"):
            print(f"Model: {model}")
        records = []
        first_balanced = options.decision == "balanced"
        for record in predict(artifact, files, explain, options.target, options.level):
            print(line(record, artifact.facts, first_balanced), flush=True)
            records.append(record)
        complete = write_tables(options, records, artifact.facts)
    except (Stop, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if artifact.facts.get("synthetic"):
        print("This model was trained on drawn images only; real images mean nothing to it.")
    if not artifact.facts.get("calibrated", True):
        print("Probabilities are not calibrated: they are the model's own, and may be far off.")
    if artifact.facts.get("prediction_sets") is None:
        print("This export carries no prediction sets: what cannot be excluded is not known.")
    print(NOTE)
    good = not any(record["error"] or record.get("overlay_error") for record in records)
    return 0 if good and complete else 1


if __name__ == "__main__":
    sys.exit(main())

"""Pictures that nobody has vetted: odd descriptions, damaged files, other formats, huge ones."""

import io
import os
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from dermlens.data import decoding, images, sources
from dermlens.data.images import image_size, load_image, open_rgb, read_bytes
from dermlens.data.sources import Member, MemberReader
from dermlens.errors import DataError

SIDES = (20, 32)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIDES, 3), dtype=np.uint8))
FAILURES = (struct.error, AttributeError, TypeError, SyntaxError, MemoryError, IndexError, OSError)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def description() -> bytes:
    """An EXIF block with an orientation, as cameras write it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0128], exif[0x011A], exif[0x011B] = 6, 2, 72.0, 72.0
    exif[0x010F], exif[0x0110], exif[0x0132] = "Maker", "Camera", "2020:01:01 00:00:00"
    exif.get_ifd(0x8769).update({0x9003: "2020:01:01 00:00:00", 0x829A: 0.01, 0xA002: 40})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    return exif.tobytes()


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A little-endian EXIF block of (tag, type, count, four bytes)."""
    body = b"".join(struct.pack("<HHL", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0\0\0\0"


def bent(block: bytes, generator: random.Random, first: int) -> bytes:
    """The block with bytes changed, left out, put in or cut off from ``first`` on."""
    found = bytearray(block)
    for _ in range(generator.choice([1, 1, 2, 4, 8, 30])):
        place, way = generator.randrange(first, len(found)), generator.random()
        if way < 0.75:
            found[place] = generator.choice([0, 255, 127, *(generator.randbytes(5))])
        elif way < 0.85:
            del found[place : place + generator.randrange(1, 9)]
        elif way < 0.95:
            found[place:place] = generator.randbytes(generator.randrange(1, 9))
        else:
            del found[place:]
        if len(found) <= first + 1:
            break
    return bytes(found)


def bent_tiff(generator: random.Random) -> bytes:
    """A TIFF file whose entries are bent, but for those that the pixels depend on."""
    content = bytearray(encoded(PICTURE, "TIFF", exif=description()))
    (start,) = struct.unpack_from("<L", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    places = [start + 2 + 12 * number for number in range(count)]
    free = [p for p in places if struct.unpack_from("<H", content, p)[0] not in PIXEL_TAGS]
    for _ in range(generator.choice([1, 2, 4])):
        content[generator.choice(free) + generator.randrange(2, 12)] = generator.randrange(256)
    return bytes(content)


PIXEL_TAGS = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 338, 339}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_no_bent_exif_block_costs_a_picture(kind: str) -> None:
    generator, block = random.Random(7), description()
    for _ in range(500):
        if kind == "TIFF":
            content = bent_tiff(generator)
        else:
            content = encoded(PICTURE, kind, exif=bent(block, generator, 6))
        image = open_rgb(content, "x")
        assert image.mode == "RGB" and sorted(image.size) == sorted(SIDES)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_valid_orientation_beside_a_broken_tag_is_kept(kind: str) -> None:
    upright = (0x0112, 3, 1, struct.pack("<L", 6))
    broken = (0x0128, 4, 1, b"abcd")
    for entries in ([upright, broken], [broken, upright]):
        content = encoded(PICTURE, kind, exif=exif_block(*entries))
        assert open_rgb(content, "x").size == SIDES, "turned by 90 degrees"
    for wrong in ((0x0112, 3, 1, struct.pack("<L", 99)), (0x0112, 2, 4, b"six\0")):
        content = encoded(PICTURE, kind, exif=exif_block(wrong))
        assert open_rgb(content, "x").size == SIDES[::-1], "an unknown orientation is left out"


@pytest.mark.filterwarnings("ignore:Truncated")
def test_a_tiff_file_is_turned_whatever_its_other_tags_say() -> None:
    content = encoded(PICTURE, "TIFF", tiffinfo={274: 6, 271: "Maker of cameras", 305: "Program"})
    expected = np.asarray(PICTURE.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(np.asarray(open_rgb(content, "x")), expected)
    (start,) = struct.unpack_from("<L", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    places = [start + 2 + 12 * number for number in range(count)]
    maker = next(p for p in places if struct.unpack_from("<H", content, p)[0] == 271)
    bent = bytearray(content)
    struct.pack_into("<LL", bent, maker + 4, 1 << 30, 1 << 30)  # a text far outside the file
    np.testing.assert_array_equal(np.asarray(open_rgb(bytes(bent), "x")), expected)


@pytest.mark.filterwarnings("ignore")
def test_no_damaged_file_raises_anything_but_the_sentence() -> None:
    generator = random.Random(3)
    kinds = [
        ("JPEG", "RGB", {}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "L", {}),
        ("WEBP", "RGB", {}),
        ("BMP", "P", {}),
        ("GIF", "P", {}),
    ]
    contents = [encoded(PICTURE.convert(mode), kind, **more) for kind, mode, more in kinds]
    outcomes = {"read": 0, "refused": 0}
    for number in range(2000):
        try:
            open_rgb(bent(contents[number % len(contents)], generator, 0), "bent.jpg")
            outcomes["read"] += 1
        except DataError as error:
            assert str(error).startswith("bent.jpg ") and "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 300, outcomes


@pytest.mark.parametrize("failure", FAILURES)
def test_whatever_a_decoder_raises_is_a_bad_file(
    failure: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise failure("odd")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(DataError, match=r"^a\.png cannot be decoded as an image \(odd\)\."):
        open_rgb(encoded(PICTURE, "PNG"), "a.png")


def test_other_formats_are_not_opened_and_start_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="none of JPEG, PNG, TIFF, WEBP, BMP, GIF"):
        load_image(photo)
    assert not (tmp_path / "started").exists()
    for kind in ("PPM", "ICO", "TGA", "PCX"):
        with pytest.raises(DataError, match="cannot be decoded"):
            open_rgb(encoded(PICTURE, kind), "photo.jpg")


def pictures_of_every_mode() -> dict[str, bytes]:
    wide = PICTURE.resize((96, 64))
    see_through = wide.copy()
    see_through.putalpha(Image.linear_gradient("L").resize(wide.size))
    deep = np.linspace(0, 65535, 64 * 96).reshape(64, 96)
    flat = deep.astype(np.float32) / 65535 * 200
    flat[3, 4] = np.nan
    return {
        "L": encoded(wide.convert("L"), "PNG"),
        "1": encoded(wide.convert("1"), "PNG"),
        "P": encoded(wide.convert("P"), "PNG"),
        "P transparent": encoded(wide.convert("P"), "PNG", transparency=5),
        "RGBA": encoded(see_through, "PNG"),
        "LA": encoded(see_through.convert("LA"), "PNG"),
        "CMYK": encoded(wide.convert("CMYK"), "TIFF"),
        "I;16": encoded(Image.fromarray(deep.astype(np.uint16)), "PNG"),
        "I": encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        "F": encoded(Image.fromarray(flat), "TIFF"),
    }


@pytest.mark.parametrize("name", list(pictures_of_every_mode()))
def test_bands_give_the_same_pixels_as_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pictures_of_every_mode()[name]
    whole = np.asarray(open_rgb(content, "x"))
    monkeypatch.setattr(decoding, "_BAND_PIXELS", 96 * 7)
    image = open_rgb(content, "x")
    np.testing.assert_array_equal(np.asarray(image), whole)
    np.testing.assert_array_equal(decoding.as_array(image), whole)
    np.testing.assert_array_equal(decoding.as_array(image.convert("L")), image.convert("L"))
    assert whole.std() > 10


def png_16_bits(height: int, width: int) -> bytes:
    """A black 16-bit PNG file of any size, which is small on the disk."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">L", len(content)) + checked + struct.pack(">L", zlib.crc32(checked))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 2 * width)) for _ in range(height)) + packer.flush()
    header = struct.pack(">LLBBBBB", width, height, 16, 0, 0, 0, 0)
    ends = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(ends)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_the_largest_16_bit_picture_stays_below_a_gibibyte(tmp_path: Path) -> None:
    photo = tmp_path / "deep.png"
    photo.write_bytes(png_16_bits(9_990, 10_000))
    assert photo.stat().st_size < 2_000_000
    # Of getrusage, the peak would include the parent's before the new program began.
    code = (
        "import re, sys; from pathlib import Path;"
        "from dermlens.data.images import load_image;"
        "brightest = load_image(Path(sys.argv[1]), (192, 256)).max();"
        "status = Path('/proc/self/status').read_text();"
        "print(brightest, int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, photo], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    brightest, peak = map(int, done.stdout.split())
    assert brightest == 0 and peak < 2**30


@pytest.mark.parametrize(
    ("kind", "mode", "options", "each"),
    [
        ("JPEG", "RGB", {}, 4),
        ("JPEG", "RGB", {"progressive": True}, 10),
        ("JPEG", "CMYK", {"progressive": True}, 12),
        ("JPEG", "RGB", {"exif": exif_block((0x0112, 3, 1, b"\x06\0\0\0"))}, 8),
        ("PNG", "L", {}, 5),
        ("PNG", "RGB", {}, 8),
        ("PNG", "RGBA", {}, 8),
        ("TIFF", "RGB", {"compression": "tiff_lzw", "tiffinfo": {278: 20}}, 7),
        ("WEBP", "RGB", {}, 17),
    ],
)
def test_what_decoding_takes_is_known_before_it_begins(
    kind: str, mode: str, options: dict, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(PICTURE.convert(mode), kind, **options)
    needed = len(content) + each * SIDES[0] * SIDES[1]
    assert decoding.memory_needed(decoding.open_header(content), content) == needed
    monkeypatch.setattr(decoding, "MAX_MEMORY", needed)
    open_rgb(content, "x")
    monkeypatch.setattr(decoding, "MAX_MEMORY", needed - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(DataError, match="of memory to decode, more than the"):
        open_rgb(content, "big.jpg")


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(PICTURE, "PNG")
    with images.opened_rgb(content, "x"):
        assert not images._LARGE.locked()
    monkeypatch.setattr(images, "_LARGE_BYTES", 0)
    with images.opened_rgb(content, "x"):
        assert images._LARGE.locked()
    with pytest.raises(DataError), images.opened_rgb(content[:60], "x"):
        pass
    assert not images._LARGE.locked()


def test_only_files_of_bearable_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "ten.jpg").write_bytes(bytes(10))
    with pytest.raises(DataError, match=r"pipe\.jpg is a named pipe, not an image file"):
        read_bytes(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match=r"folder\.jpg is a folder, not an image file"):
        read_bytes(tmp_path / "folder.jpg")
    with pytest.raises(DataError, match=r"null is a device, not an image file"):
        read_bytes(Path("/dev/null"))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    assert read_bytes(tmp_path / "ten.jpg") == bytes(10)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 9)
    with pytest.raises(DataError, match="MB allowed for an image"):
        read_bytes(tmp_path / "ten.jpg")


def test_archive_members_are_read_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(50_000))
    for declared in (50_000, 10):
        member = Member("bomb.jpg", path, True, declared, None)
        monkeypatch.setattr(sources, "MAX_FILE_BYTES", 50_000)
        assert MemberReader().read(member) == bytes(50_000)
        monkeypatch.setattr(sources, "MAX_FILE_BYTES", 49_999)
        with pytest.raises(DataError, match=r"images\.zip:bomb\.jpg is larger than"):
            MemberReader().read(member)


def test_the_size_of_an_image_is_that_of_the_upright_one(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.jpg", exif=description())
    assert image_size(tmp_path / "a.jpg") == SIDES[::-1]
    assert load_image(tmp_path / "a.jpg").shape == (*SIDES[::-1], 3)

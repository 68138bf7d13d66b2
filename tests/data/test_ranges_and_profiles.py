"""Pictures whose values do not mean what they seem to: depths, ranges, pages, color profiles."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from dermlens.data.decoding import memory_needed, open_header
from dermlens.data.images import open_rgb
from dermlens.errors import DataError
from pictures_support import DISPLAY_P3, png, profile

RAMP = np.linspace(0, 1, 24 * 32).reshape(24, 32)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def colors(top: int) -> np.ndarray:
    """Colors of a depth, with the whole range in use: uint16 (24, 32, 3)."""
    return np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1) * top + 0.5


@pytest.mark.parametrize("top", [1023, 4095, 16383, 65535])
def test_sensor_depths_in_16_bit_files_keep_their_brightness(top: int) -> None:
    expected = np.round(RAMP * 255)
    gray = (RAMP * top + 0.5).astype(np.uint16)
    for content in (
        png(gray, 0),
        encoded(Image.fromarray(gray), "PNG"),
        encoded(Image.fromarray(gray), "TIFF"),
    ):
        found = np.asarray(open_rgb(content, "x"), dtype=int)
        assert np.abs(found - expected[..., None]).max() <= 1


@pytest.mark.parametrize("top", [1023, 4095, 16383])
def test_color_of_12_bits_in_16_bit_png_is_not_black(top: int) -> None:
    values = colors(top).astype(np.uint16)
    expected = np.round(values / top * 255)
    content = png(values, 2)
    found = np.asarray(open_rgb(content, "x"), dtype=int)
    assert np.abs(found - expected).max() <= 1
    opaque = np.full((24, 32, 1), 65535)
    with_alpha = png(np.concatenate([values, opaque], axis=2), 6)
    assert np.abs(np.asarray(open_rgb(with_alpha, "x"), dtype=int) - expected).max() <= 1
    # Both halves are in memory at once, and that is reckoned with.
    pixels = 24 * 32
    assert memory_needed(open_header(content), content) == len(content) + 8 * pixels


def test_full_16_bit_color_is_what_it_was() -> None:
    values = colors(65535).astype(np.uint16)
    found = np.asarray(open_rgb(png(values, 2), "x"))
    np.testing.assert_array_equal(found, values >> 8)


@pytest.mark.parametrize("order", ["<", ">"])
def test_color_of_12_bits_in_16_bit_tiff_is_not_black(order: str) -> None:
    values = colors(4095).astype(np.uint16)
    found = np.asarray(open_rgb(tiff16(values, order), "x"), dtype=int)
    assert np.abs(found - np.round(values / 4095 * 255)).max() <= 1


def tiff16(values: np.ndarray, order: str) -> bytes:
    """An uncompressed RGB TIFF file of 16 bits per color."""
    height, width = values.shape[:2]
    pixels = values.astype(f"{order}u2").tobytes()
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, 8),
        (259, 4, 1, 1),
        (262, 4, 1, 2),
        (273, 4, 1, 14),
        (277, 4, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
    ]
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(
        struct.pack(f"{order}HHLL", *entry) for entry in entries
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        f"{order}HLHHH", 42, 14 + len(pixels), 16, 16, 16
    )
    return head + pixels + directory + bytes(4)


FLOATS = {
    "0..1": (RAMP, RAMP),
    "0..1 with ringing": (RAMP * 1.06 - 0.03, np.clip(RAMP * 1.06 - 0.03, 0, 1)),
    "-1..1": (RAMP * 2 - 1, RAMP),
    "0..255": (RAMP * 255, RAMP),
    "0..4095": (RAMP * 4095, RAMP),
    "0..1e6": (RAMP * 1e6, RAMP),
    "-500..500": (RAMP * 1000 - 500, RAMP),
}


@pytest.mark.parametrize("name", FLOATS)
def test_floating_point_tiff_uses_its_own_range(name: str) -> None:
    values, expected = FLOATS[name]
    found = np.asarray(open_rgb(encoded(Image.fromarray(values.astype("f4")), "TIFF"), "x"))
    assert np.abs(found[..., 0].astype(int) - np.round(expected * 255)).max() <= 1


def test_values_that_are_not_finite_are_black_and_nothing_but_them_is_refused() -> None:
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    found = np.asarray(open_rgb(encoded(Image.fromarray(values), "TIFF"), "x"))[..., 0]
    assert found[0, 0] == 0 and found[0, 1] == 255 and found[0, 2] == 0 and found[-1, -1] == 255
    empty = encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")
    with pytest.raises(DataError, match="it holds no finite value"):
        open_rgb(empty, "x")


def test_of_tiff_pages_the_full_sized_one_is_taken_and_two_are_refused() -> None:
    photo = Image.fromarray(colors(255).astype(np.uint8))
    black = Image.new("RGB", photo.size)
    small = Image.new("RGB", (8, 6))
    expected = np.asarray(photo)
    for pages in ([photo], [photo, small], [small, photo]):
        content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
        np.testing.assert_array_equal(np.asarray(open_rgb(content, "x")), expected)
    marked = Image.new("RGB", photo.size)
    marked.encoderinfo = {"tiffinfo": {254: 1}}
    content = encoded(photo, "TIFF", save_all=True, append_images=[marked])
    np.testing.assert_array_equal(np.asarray(open_rgb(content, "x")), expected)
    for pages in ([black, photo], [photo, small, black]):
        content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
        with pytest.raises(DataError, match=rf"it holds {len(pages)} pages; save the one"):
            open_rgb(content, "x.tif")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_no_photograph(kind: str) -> None:
    frames = [Image.new("RGB", (32, 24), color) for color in ("red", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="it is an animation, not one image"):
        open_rgb(content, "x")


SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))


def in_srgb(color: tuple[int, int, int]) -> np.ndarray:
    """What a color of the P3 profile above is in sRGB, by the definitions."""

    def matrix(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
        white = np.array([0.3127 / 0.329, 1, (1 - 0.3127 - 0.329) / 0.329])
        return columns * np.linalg.solve(columns, white)

    linear = np.linalg.solve(matrix(SRGB), matrix(DISPLAY_P3) @ (np.array(color) / 255) ** 2.2)
    linear = np.clip(linear, 0, 1)
    low = linear * 12.92
    return np.round(255 * np.where(linear <= 0.0031308, low, 1.055 * linear ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_display_p3_becomes_srgb(kind: str, mode: str) -> None:
    color = (200, 90, 60)
    if (mode == "P" and kind in ("JPEG", "WEBP")) or (mode == "RGBA" and kind == "JPEG"):
        pytest.skip("such files do not exist")
    picture = Image.new("RGB", (32, 24), color)
    picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    content = encoded(picture, kind, icc_profile=profile(DISPLAY_P3), **options)
    found = np.asarray(open_rgb(content, "x"))[12, 16].astype(int)
    expected = in_srgb(color)
    assert np.abs(expected - color).max() > 10
    assert np.abs(found - expected).max() <= 3, (found, expected)


def test_srgb_and_broken_profiles_change_nothing() -> None:
    picture = Image.fromarray(colors(255).astype(np.uint8))
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    good = profile(DISPLAY_P3)
    one_color = profile(((0.3127, 0.329), (0.31271, 0.329), (0.3127, 0.32901)), gamma=99.0)
    for stored in (
        own,
        lab,
        good[:200],
        b"nonsense",
        good[:300] + bytes(len(good) - 300),
        one_color,
    ):
        content = encoded(picture, "PNG", icc_profile=stored)
        np.testing.assert_array_equal(np.asarray(open_rgb(content, "x")), np.asarray(picture))


def test_a_picture_of_inks_with_a_profile_of_light_is_converted_as_without() -> None:
    picture = Image.fromarray(colors(255).astype(np.uint8)).convert("CMYK")
    plain, stored = (
        np.asarray(open_rgb(encoded(picture, "TIFF", **options), "x"))
        for options in ({}, {"icc_profile": profile(DISPLAY_P3)})
    )
    np.testing.assert_array_equal(plain, stored)


def test_bands_of_a_picture_with_a_profile_are_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    from dermlens.data import decoding

    picture = Image.fromarray(colors(255).astype(np.uint8))
    content = encoded(picture, "PNG", icc_profile=profile(DISPLAY_P3))
    whole = np.asarray(open_rgb(content, "x"))
    monkeypatch.setattr(decoding, "_BAND_PIXELS", 32 * 5)
    np.testing.assert_array_equal(np.asarray(open_rgb(content, "x")), whole)
    twelve = png(colors(4095).astype(np.uint16), 2)
    banded = np.asarray(open_rgb(twelve, "x"))
    monkeypatch.undo()
    np.testing.assert_array_equal(np.asarray(open_rgb(twelve, "x")), banded)

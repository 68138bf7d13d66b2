"""Decoding, orientation and geometry."""

import io

import numpy as np
import pytest
from PIL import Image

from dermlens.data.images import fit_box, fit_image, fit_mask, load_image, open_rgb
from dermlens.errors import DataError


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_fit_keeps_the_aspect_ratio():
    assert fit_box(450, 600, (192, 256)) == (0, 0, 600, 450)
    assert fit_box(450, 600, (224, 224)) == (75, 0, 525, 450)
    assert fit_box(600, 450, (192, 256)) == (0, 131.25, 450, 468.75)


def test_fit_scales_without_shift():
    """A left-right gradient stays one, symmetric about the center."""
    ramp = np.tile(np.linspace(0, 255, 400), (300, 1)).astype(np.uint8)
    fitted = fit_image(Image.fromarray(ramp).convert("RGB"), (30, 40))
    assert fitted.shape == (30, 40, 3)
    row = fitted[15, :, 0].astype(float)
    assert np.allclose(row + row[::-1], 255, atol=1.5)


def test_mask_and_image_share_their_geometry():
    square = np.zeros((300, 400), np.uint8)
    square[100:200, 150:250] = 255
    mask = fit_mask(Image.fromarray(square), (96, 96))
    image = fit_image(Image.fromarray(square).convert("RGB"), (96, 96))[..., 0] >= 128
    assert (mask == image).mean() > 0.999
    assert mask.any()


def test_orientation_tag_is_applied():
    picture = Image.new("RGB", (40, 30), "black")
    picture.paste("white", (0, 0, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    image = open_rgb(encoded(picture, "PNG", exif=exif), "x")
    assert image.size == (30, 40)
    assert np.asarray(image)[5, 15, 0] == 255 and np.asarray(image)[35, 15, 0] == 0


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "I;16"])
def test_every_mode_becomes_the_same_gray(mode):
    gray = np.full((30, 40), 128, np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(np.full((30, 40), 128 * 257, np.uint16))
    else:
        color = Image.fromarray(gray).convert("RGB")
        picture = color.quantize() if mode == "P" else color.convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = open_rgb(encoded(picture, kind), "x")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - 128).max() <= 2


def test_transparent_pixels_become_white():
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert np.asarray(open_rgb(encoded(picture, "PNG"), "x")).min() == 255


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(encoded(Image.new("RGB", (64, 64)), "JPEG")[:-40])
    with pytest.raises(DataError, match=r"broken\.jpg cannot be decoded"):
        load_image(path)
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match="cannot be decoded"):
        load_image(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_image(tmp_path / "absent.jpg")


def test_enormous_images_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr("dermlens.data.images.MAX_PIXELS", 100)
    with pytest.raises(DataError, match="more than the"):
        open_rgb(encoded(Image.new("RGB", (20, 20)), "PNG"), "big.png")

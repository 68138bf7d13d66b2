"""Damaged pictures, at random but the same every time: an answer or a sentence, no traceback.

Tables are damaged in tests/data/test_wild_tables.py, bundles in tests/model/test_tampering.py.
``DERMLENS_FUZZ=10`` runs ten times as many.
"""

import io
import os

import numpy as np
import pytest
from PIL import Image

from dermlens.data.images import fit_image, fit_mask, opened_mask, opened_rgb
from dermlens.errors import DermlensError

TIMES = int(os.environ.get("DERMLENS_FUZZ", "1"))


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """Damage bytes in one to four ways: flips, cuts, repeats, swaps, runs of one value."""
    changed = bytearray(content)
    for _ in range(random.integers(1, 5)):
        if not changed:
            break
        start = int(random.integers(len(changed)))
        length = int(random.integers(1, max(2, len(changed) // 8)))
        kind = random.integers(6)
        if kind == 0:
            changed[start] ^= 1 << int(random.integers(8))
        elif kind == 1:
            del changed[start:]
        elif kind == 2:
            del changed[start : start + length]
        elif kind == 3:
            changed[start:start] = changed[start : start + length]
        elif kind == 4:
            changed[start : start + length] = bytes([int(random.integers(256))]) * length
        else:
            other = int(random.integers(len(changed)))
            changed[start], changed[other] = changed[other], changed[start]
    return bytes(changed)


def pictures() -> list[bytes]:
    """One small picture of every kind that is read."""
    random = np.random.default_rng(7)
    colors = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    deep = Image.fromarray(random.integers(0, 4096, (24, 32), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a lesion"
    kinds: list[tuple[Image.Image, str, dict]] = [
        (colors, "JPEG", {"exif": exif, "quality": 90}),
        (colors, "JPEG", {"progressive": True}),
        (colors.convert("CMYK"), "JPEG", {}),
        (colors, "PNG", {"exif": exif}),
        (colors.convert("P"), "PNG", {}),
        (colors.convert("RGBA"), "PNG", {}),
        (deep, "PNG", {}),
        (deep, "TIFF", {}),
        (colors, "TIFF", {"compression": "tiff_deflate"}),
        (colors, "WEBP", {"lossless": True}),
        (colors, "BMP", {}),
        (colors.convert("L"), "GIF", {}),
    ]
    found = []
    for image, kind, options in kinds:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found.append(stream.getvalue())
    return found


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_picture_is_fitted_or_refused_with_a_sentence() -> None:
    random, originals = np.random.default_rng(20), pictures()
    read = 0
    for number in range(500 * TIMES):
        content = mutated(originals[number % len(originals)], random)
        try:
            with opened_rgb(content, "photo.bin") as image:
                fitted = fit_image(image, (12, 16))
            assert fitted.shape == (12, 16, 3) and fitted.dtype == np.uint8
            with opened_mask(content, "photo.bin") as mask:
                assert fit_mask(mask, (12, 16)).dtype == bool
            read += 1
        except DermlensError as error:
            assert str(error).startswith("photo.bin") and "\n" not in str(error)
    # Both happen often, else nothing was tried.
    assert 0.1 < read / (500 * TIMES) < 0.9

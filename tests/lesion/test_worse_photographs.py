"""What each change does to a photograph, to the digit where it can be told."""

import numpy as np
import pytest
from PIL import Image

from dermlens.lesion.worse_photographs import CHANGES, changed

SIZE = (60, 80)
BY_NAME = {one.name: one for one in CHANGES}


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """300x400, skin-colored with a dark disk and fine stripes."""
    rows, columns = np.mgrid[:300, :400]
    pixels = np.full((300, 400, 3), (200, 150, 130), np.float32)
    pixels[np.hypot(rows - 150, columns - 200) < 80] = (90, 60, 50)
    pixels += np.where(columns % 2, 20, -20)[..., None]
    return Image.fromarray(pixels.astype(np.uint8))


def test_nothing_is_nothing_and_a_change_keeps_size_and_type(photograph: Image.Image) -> None:
    plain = changed(photograph, None, SIZE)
    for change in CHANGES:
        found = changed(photograph, change, SIZE)
        assert found.shape == (60, 80, 3) and found.dtype == np.uint8
        assert (found != plain).any(), change.name
        again = changed(photograph, change, SIZE)
        np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("darker_10", (90, 135, 45)),
        ("brighter_10", (110, 165, 55)),
        ("warmer_10", (110, 150, 45)),
        ("cooler_10", (90, 150, 55)),
        ("darker_30", (70, 105, 35)),
        ("brighter_30", (130, 195, 65)),
    ],
)
def test_light_and_color_change_by_what_they_say(name: str, expected: tuple[int, ...]) -> None:
    plain = Image.new("RGB", (40, 30), (100, 150, 50))
    found = changed(plain, BY_NAME[name], (30, 40))
    assert (found == expected).all()


def test_what_is_too_bright_is_cut_off() -> None:
    plain = Image.new("RGB", (40, 30), (250, 250, 10))
    assert (changed(plain, BY_NAME["brighter_30"], (30, 40)) == (255, 255, 13)).all()


def test_blur_is_measured_in_pixels_of_the_input() -> None:
    """An edge blurred at twice the size looks the same to the network."""
    edge = np.zeros((60, 80, 3), np.uint8)
    edge[:, 40:] = 255
    small = changed(Image.fromarray(edge), BY_NAME["blur_3"], SIZE)
    large = changed(
        Image.fromarray(edge.repeat(4, axis=0).repeat(4, axis=1)), BY_NAME["blur_3"], SIZE
    )
    assert np.abs(small.astype(int) - large).max() <= 8
    profile = small[30, :, 0] / 255
    spread = np.diff(profile)
    center = (spread * np.arange(79)).sum()
    assert np.sqrt((spread * (np.arange(79) - center) ** 2).sum()) == pytest.approx(3, abs=0.25)


def test_reducing_takes_the_fine_stripes_and_keeps_the_disk(photograph: Image.Image) -> None:
    """Stripes two pixels wide are gone at 200x150; the shade of large parts is not."""
    size = (300, 400)
    plain = changed(photograph, None, size).astype(float)
    small = changed(photograph, BY_NAME["small"], size).astype(float)
    corner = (slice(5, 40), slice(5, 60))
    assert plain[corner].std(axis=(0, 1)).max() > 15
    assert small[corner].std(axis=(0, 1)).max() < 3
    assert np.abs(plain[corner].mean() - small[corner].mean()) < 2
    tiny = photograph.resize((120, 90))
    np.testing.assert_array_equal(changed(tiny, BY_NAME["small"], SIZE), changed(tiny, None, SIZE))


def test_hair_darkens_thin_lines_alone(photograph: Image.Image) -> None:
    size = (300, 400)
    difference = changed(photograph, BY_NAME["hair"], size).astype(int) - changed(
        photograph, None, size
    )
    touched = (np.abs(difference) > 8).any(axis=-1)
    assert 0.001 < touched.mean() < 0.15
    assert difference[touched].mean() < 0


def test_stronger_changes_are_stronger(photograph: Image.Image) -> None:
    plain = changed(photograph, None, SIZE).astype(float)

    def moved(name: str) -> float:
        return float(np.abs(changed(photograph, BY_NAME[name], SIZE) - plain).mean())

    assert moved("jpeg_10") > moved("jpeg_40")
    assert moved("blur_3") > moved("blur_1")
    assert moved("darker_30") > moved("darker_10")
    strong = {one.name for one in CHANGES if not one.mild}
    assert strong == {"jpeg_10", "blur_3", "darker_30", "brighter_30"}

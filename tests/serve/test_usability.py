"""Which photographs are called unusable, and why."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dermlens.data.synthetic import draw
from dermlens.errors import UsageError
from dermlens.lesion.outline import find_outline, fit_outline, outline_of_points, share_outside
from dermlens.serve.usability import usability


def drawn(seed: int = 4) -> Image.Image:
    return Image.fromarray(draw("mel", seed, (300, 400))[0])


def drawn_with_mask() -> tuple[Image.Image, np.ndarray]:
    image, mask, _ = draw("mel", 4, (300, 400))
    return Image.fromarray(image), mask


def first_words(image: Image.Image) -> list[str]:
    return [problem.split(":")[0] for problem in usability(image).problems]


def test_an_ordinary_photograph_is_usable() -> None:
    found = usability(drawn())
    assert found.problems == () and found.shorter_side == 300
    assert found.contrast > 20 and found.sharpness > 6


def test_resolution_does_not_decide() -> None:
    small, large = usability(drawn()), usability(drawn().resize((800, 600)))
    assert large.contrast == pytest.approx(small.contrast, rel=0.05)
    assert large.problems == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image.resize((80, 60)), ["Too small"]),
        (lambda image: image.filter(ImageFilter.GaussianBlur(8)), ["Blurred"]),
        (lambda image: image.point(lambda v: v // 6), ["Too dark"]),
        (lambda image: image.point(lambda v: 255 - (255 - v) // 20), ["Overexposed"]),
    ],
    ids=["small", "blurred", "dark", "bright"],
)
def test_what_is_wrong_is_said(change, words: list[str]) -> None:
    assert first_words(change(drawn()))[: len(words)] == words


def test_skin_alone_shows_no_lesion() -> None:
    noise = np.random.default_rng(0).normal(0, 12, (300, 400, 1))
    skin = np.clip(np.array([205, 165, 150]) + noise, 0, 255).astype(np.uint8)
    assert first_words(Image.fromarray(skin)) == ["No lesion stands out"]


def test_color_shape_and_place_are_judged() -> None:
    assert first_words(drawn().convert("L").convert("RGB"))[:1] == ["No color"]
    assert first_words(drawn().resize((800, 200)))[:1] == ["Stretched or cut to a strip"]
    # A lesion at the end of a wide picture, of which the middle is seen.
    skin = Image.new("RGB", (640, 300), drawn().getpixel((5, 5)))
    noise = np.random.default_rng(0).integers(-6, 7, (300, 640, 1))
    skin = Image.fromarray(np.clip(np.asarray(skin, int) + noise, 0, 255).astype(np.uint8))
    skin.paste(drawn().resize((200, 150)), (440, 75))
    found = usability(skin, size=(192, 256))
    assert found.outside is not None and found.outside > 0.5
    assert any(one.startswith("The lesion lies outside") for one in found.problems)
    centered = usability(drawn(), size=(192, 256))
    assert centered.outside is None and centered.remarks == ()
    cropped = usability(drawn().crop((0, 0, 400, 225)), size=(192, 256))
    assert any("the middle 75" in one for one in cropped.remarks)


def test_outlines_are_found_drawn_and_fitted() -> None:
    image, mask = drawn_with_mask()
    found = find_outline(image)
    truth = fit_outline(mask, (96, 128))
    assert found is not None
    fitted = fit_outline(found, (96, 128))
    assert (fitted & truth).sum() / (fitted | truth).sum() > 0.6
    assert find_outline(Image.new("RGB", (400, 300), (200, 160, 150))) is None
    square = outline_of_points([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]], (40, 80))
    assert square.mean() == pytest.approx(0.25, abs=0.03)
    assert share_outside(square, (0.0, 0.5, 1.0, 1.0)) == pytest.approx(0.5, abs=0.05)
    for wrong in ([[0, 0], [1, 1]], [[0, 0, 0]] * 9, [[float("nan"), 0]] * 9, [[0.5, 0.5]] * 9):
        with pytest.raises(UsageError):
            outline_of_points(wrong, (40, 80))


def test_doubts_of_files_come_before_their_explanation(tmp_path: Path) -> None:
    from dermlens.labels import HAM10000, Label, LabelSet
    from dermlens.serve.prediction import doubts_of

    tiny, damaged = tmp_path / "tiny.png", tmp_path / "damaged.png"
    Image.new("RGB", (40, 30), (200, 160, 150)).save(tiny)
    damaged.write_bytes(b"no picture")
    skin = SimpleNamespace(labels=HAM10000, input_size=(48, 64))
    (line,) = doubts_of(skin, [tiny, damaged])
    assert line.startswith(f"{tiny}: Too small: the shorter side has 30 pixels")
    other = SimpleNamespace(
        labels=LabelSet("pets", (Label("cat", "Cat"), Label("dog", "Dog"))), input_size=(48, 64)
    )
    assert doubts_of(other, [tiny]) == []

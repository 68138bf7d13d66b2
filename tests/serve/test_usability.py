"""Which photographs are called unusable, and why."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dermlens.data.synthetic import draw
from dermlens.serve.usability import usability


def drawn(seed: int = 4) -> Image.Image:
    return Image.fromarray(draw("mel", seed, (300, 400))[0])


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

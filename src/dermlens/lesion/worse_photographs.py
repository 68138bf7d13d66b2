"""Photographs made worse, as cameras, light and file formats do it.

Networks that are accurate on a test set can fail on the same pictures saved or lit otherwise
(Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019; on lesions: Maron et al., "Robustness of convolutional neural networks in
recognition of pigmented skin lesions", European Journal of Cancer 2021). Changes are made to the
photograph as it was stored, before it is scaled for the network.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dermlens.data.images import fit_box, fit_image
from dermlens.lesion.shortcuts import paste

Apply = Callable[[Any, float], Any]
"""A PIL photograph and its pixels per pixel of the network's input to a changed photograph."""

_SMALL = 150


@dataclass(frozen=True)
class Change:
    """One way in which a photograph gets worse.

    Attributes:
        name: Used in tables.
        title: For people.
        mild: Whether it happens every day, and a sound model should hardly mind.
        apply: Makes it.
        of_skin: Whether it only makes sense on photographs of skin.
    """

    name: str
    title: str
    mild: bool
    apply: Apply
    of_skin: bool = False


def _picture(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _jpeg(photograph: Any, scale: float, *, quality: int) -> Any:
    from PIL import Image

    stream = io.BytesIO()
    photograph.save(stream, "JPEG", quality=quality)
    stream.seek(0)
    return Image.open(stream).convert("RGB")


def _blur(photograph: Any, scale: float, *, pixels: float) -> Any:
    from PIL import ImageFilter

    return photograph.filter(ImageFilter.GaussianBlur(pixels * scale))


def _gains(photograph: Any, scale: float, *, red: float, green: float, blue: float) -> Any:
    return _picture(np.asarray(photograph, np.float32) * np.array([red, green, blue], np.float32))


def _small(photograph: Any, scale: float, *, side: int) -> Any:
    from PIL import Image

    share = side / min(photograph.size)
    if share >= 1:
        return photograph
    low = [max(1, round(length * share)) for length in photograph.size]
    return photograph.resize((low[0], low[1]), Image.Resampling.BICUBIC).resize(
        photograph.size, Image.Resampling.BICUBIC
    )


def _hair(photograph: Any, scale: float) -> Any:
    return _picture(paste(np.asarray(photograph, np.float32), "hair").image)


def _light(name: str, title: str, mild: bool, gain: float) -> Change:
    return Change(name, title, mild, partial(_gains, red=gain, green=gain, blue=gain))


CHANGES: tuple[Change, ...] = (
    Change("jpeg_40", "saved as JPEG of quality 40", True, partial(_jpeg, quality=40)),
    Change("blur_1", "blurred by 1 pixel of the input", True, partial(_blur, pixels=1.0)),
    _light("darker_10", "10 % darker", True, 0.9),
    _light("brighter_10", "10 % brighter", True, 1.1),
    Change(
        "warmer_10",
        "warmer: red +10 %, blue -10 %",
        True,
        partial(_gains, red=1.1, green=1.0, blue=0.9),
    ),
    Change(
        "cooler_10",
        "cooler: red -10 %, blue +10 %",
        True,
        partial(_gains, red=0.9, green=1.0, blue=1.1),
    ),
    Change("small", "reduced to 200x150 and enlarged", True, partial(_small, side=_SMALL)),
    Change("hair", "hair pasted in", True, _hair, of_skin=True),
    Change("jpeg_10", "saved as JPEG of quality 10", False, partial(_jpeg, quality=10)),
    Change("blur_3", "blurred by 3 pixels of the input", False, partial(_blur, pixels=3.0)),
    _light("darker_30", "30 % darker", False, 0.7),
    _light("brighter_30", "30 % brighter", False, 1.3),
)
"""What is asked of a model. Blur is the standard deviation of a Gaussian."""


def changed(photograph: Any, change: Change | None, size: tuple[int, int]) -> np.ndarray:
    """Return a photograph after a change, as the network takes it.

    Args:
        photograph: RGB PIL image of any size.
        change: What to do with it; None for nothing.
        size: (height, width) of the network's input.

    Returns:
        uint8 (height, width, 3), RGB 0..255.

    Example:
        >>> from PIL import Image
        >>> gray = Image.new("RGB", (40, 30), (100, 100, 100))
        >>> darker = next(one for one in CHANGES if one.name == "darker_10")
        >>> int(changed(gray, darker, (30, 40))[0, 0, 0])
        90
    """
    if change is None:
        return fit_image(photograph, size)
    left, _, right, _ = fit_box(photograph.height, photograph.width, size)
    return fit_image(change.apply(photograph, (right - left) / size[1]), size)

"""Color profiles: a telephone's Display P3, Adobe RGB or inks become sRGB.

A model sees numbers, not colors, and was trained on sRGB.
"""

import io
from typing import Any

import numpy as np

_STEPS = 6


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

"""Can anything be seen in this photograph? Checks that need no model.

Thresholds were set on 900 training images of HAM10000 at 192x256, so that fewer than one in a
hundred fails a check; of 2,412 others, 21 (0.9 %) are called unusable. They are about the
photograph, not about the skin.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.data.images import fit_image
from dermlens.explainers.baselines import border_color

SIZE = (192, 256)
"""(height, width) at which images are judged, whatever their own size."""
LEAST_SIDE = 96
"""Pixels of the shorter side below which no structure of a lesion can be seen."""
LEAST_SHARPNESS = 4.5
"""Gray levels: 99th percentile of the absolute Laplacian."""
LEAST_CONTRAST = 10.0
"""CIELAB units: 95th percentile of the color difference from the surrounding skin."""
DARKEST, BRIGHTEST = 60.0, 235.0
"""Mean gray level."""


@dataclass(frozen=True)
class Usability:
    """What was measured: gray levels and CIELAB units at ``SIZE``, and sentences on what is bad."""

    shorter_side: int
    sharpness: float
    contrast: float
    brightness: float
    problems: tuple[str, ...]


def usability(picture: Any, fitted: np.ndarray | None = None) -> Usability:
    """Measure whether a photograph shows a lesion sharply enough to be judged.

    Example:
        >>> from PIL import Image
        >>> found = usability(Image.new("RGB", (400, 300), (200, 160, 150)))
        >>> [problem.split(":")[0] for problem in found.problems]
        ['Blurred', 'No lesion stands out']
    """
    from scipy.ndimage import gaussian_filter, laplace
    from skimage.color import rgb2lab

    if fitted is None or fitted.shape[:2] != SIZE:
        fitted = fit_image(picture, SIZE)
    pixels = fitted.astype(np.float32)
    gray = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    rows, columns = (slice(side // 8, -(side // 8)) for side in SIZE)
    edges = np.abs(laplace(gaussian_filter(gray, 0.7)))[rows, columns]
    lab = rgb2lab(pixels / 255.0)
    skin = rgb2lab(border_color(pixels)[None, None] / 255.0)
    difference = np.linalg.norm(gaussian_filter(lab, (2, 2, 0)) - skin, axis=2)[rows, columns]
    side = min(picture.size)
    sharpness = float(np.percentile(edges, 99))
    contrast = float(np.percentile(difference, 95))
    brightness = float(gray.mean())
    return Usability(
        side, sharpness, contrast, brightness, _problems(side, sharpness, contrast, brightness)
    )


def _problems(side: int, sharpness: float, contrast: float, brightness: float) -> tuple[str, ...]:
    found = []
    if side < LEAST_SIDE:
        found.append(
            f"Too small: the shorter side has {side} pixels; at least {LEAST_SIDE} are needed to "
            "see any structure."
        )
    if brightness < DARKEST:
        found.append("Too dark: take the photograph with the dermatoscope's light on.")
    if brightness > BRIGHTEST:
        found.append("Overexposed: take the photograph with less light.")
    if sharpness < LEAST_SHARPNESS and side >= LEAST_SIDE:
        found.append("Blurred: no fine structure can be seen. Focus and take it again.")
    if contrast < LEAST_CONTRAST:
        found.append("No lesion stands out: nothing differs in color from the surrounding skin.")
    return tuple(found)

"""Can anything be seen in this photograph? Checks that need no model.

Thresholds were set on 900 training images of HAM10000 at 192x256, so that fewer than one in a
hundred fails a check; of 2,412 others, 21 (0.9 %) are called unusable. They are about the
photograph, not about the skin. The page and the command line ask the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.data.images import fit_box, fit_image
from dermlens.explainers.baselines import border_color
from dermlens.lesion.outline import find_outline, share_outside
from dermlens.report.facts import percent

SIZE = (192, 256)
"""(height, width) at which images are judged, whatever their own size."""
LEAST_SIDE = 96
"""Pixels of the shorter side below which no structure of a lesion can be seen."""
LEAST_SHARPNESS = 4.5
"""Gray levels: 99th percentile of the absolute Laplacian."""
LEAST_CONTRAST = 10.0
"""CIELAB units: 95th percentile of the color difference from the surrounding skin."""
LEAST_COLOR = 3.0
"""CIELAB units: 95th percentile of the distance from gray."""
DARKEST, BRIGHTEST = 60.0, 235.0
"""Mean gray level."""
LONGEST = 2.4
"""Longer side over the shorter one; what cameras take stays below."""
MOST_OUTSIDE, SOME_OUTSIDE = 0.5, 0.1
"""Share of the lesion outside what the network sees."""
LEAST_KEPT = 0.9
"""Share of the picture that the network sees, below which it is said."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Usability:
    """What was measured, and what is bad.

    Attributes:
        shorter_side: Pixels.
        sharpness: Gray levels at ``SIZE``.
        contrast: CIELAB units.
        brightness: Mean gray level.
        color: CIELAB units.
        outside: Share of the lesion outside what the network sees; None where none was found.
        problems: Sentences: nothing can be said about such a photograph.
        remarks: Sentences: doubts.
    """

    shorter_side: int
    sharpness: float
    contrast: float
    brightness: float
    color: float
    outside: float | None
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def seen_box(picture: Any, size: tuple[int, int]) -> Box:
    """Return what a network of an input size sees, in shares of the photograph."""
    left, top, right, bottom = fit_box(picture.height, picture.width, size)
    width, height = picture.size
    return (left / width, top / height, right / width, bottom / height)


def seen_remarks(picture: Any, size: tuple[int, int]) -> tuple[str, ...]:
    """Return what is lost between a photograph and an input size, whatever it shows."""
    left, top, right, bottom = seen_box(picture, size)
    kept, (height, width) = (right - left) * (bottom - top), size
    found = []
    if picture.height < height or picture.width < width:
        found.append(
            f"The picture has only {picture.width} x {picture.height} pixels; the network looks at "
            f"{width} x {height}. Fine structures are missing."
        )
    if kept < LEAST_KEPT:
        found.append(
            f"The network sees the middle {percent(kept)} of the picture; what lies outside is not "
            "judged."
        )
    return tuple(found)


def usability(
    picture: Any,
    fitted: np.ndarray | None = None,
    size: tuple[int, int] = SIZE,
    outline: np.ndarray | None = None,
) -> Usability:
    """Measure whether a photograph shows a lesion well enough to be judged.

    Args:
        picture: RGB PIL image.
        fitted: The same fitted to ``size``, uint8, if it is there already.
        size: (height, width) that the network sees.
        outline: Where the lesion lies, as ``find_outline`` returns it; looked for if left out and
            some of the picture is cut off.

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
    seen, lesion = seen_box(picture, size), outline
    if lesion is None and (seen[2] - seen[0]) * (seen[3] - seen[1]) < 0.999:
        lesion = find_outline(picture)
    measured = {
        "shorter_side": min(picture.size),
        "sharpness": float(np.percentile(edges, 99)),
        "contrast": float(np.percentile(difference, 95)),
        "brightness": float(gray.mean()),
        "color": float(np.percentile(np.linalg.norm(lab[..., 1:], axis=2), 95)),
        "outside": None if lesion is None else share_outside(lesion, seen),
    }
    problems = _problems(measured, max(picture.size) / min(picture.size))
    remarks = () if problems else (*_remarks(measured), *seen_remarks(picture, size))
    return Usability(**measured, problems=problems, remarks=remarks)


def _problems(measured: dict[str, Any], ratio: float) -> tuple[str, ...]:
    side, found = measured["shorter_side"], []
    if side < LEAST_SIDE:
        found.append(
            f"Too small: the shorter side has {side} pixels; at least {LEAST_SIDE} are needed to "
            "see any structure."
        )
    if ratio > LONGEST:
        found.append(
            f"Stretched or cut to a strip: one side is {ratio:.1f} times the other, which no "
            "dermatoscope takes. Use the photograph as it was taken."
        )
    if measured["brightness"] < DARKEST:
        found.append("Too dark: take the photograph with the dermatoscope's light on.")
    if measured["brightness"] > BRIGHTEST:
        found.append("Overexposed: take the photograph with less light.")
    if measured["color"] < LEAST_COLOR:
        found.append("No color: the model knows color photographs only.")
    if measured["sharpness"] < LEAST_SHARPNESS and side >= LEAST_SIDE:
        found.append("Blurred: no fine structure can be seen. Focus and take it again.")
    if measured["contrast"] < LEAST_CONTRAST:
        found.append("No lesion stands out: nothing differs in color from the surrounding skin.")
    if (measured["outside"] or 0.0) > MOST_OUTSIDE:
        found.append(
            f"The lesion lies outside: {percent(measured['outside'])} of it is beyond what the "
            "network sees. Center the lesion, or crop the photograph to it."
        )
    return tuple(found)


def _remarks(measured: dict[str, Any]) -> tuple[str, ...]:
    outside = measured["outside"] or 0.0
    if outside <= SOME_OUTSIDE:
        return ()
    return (
        f"{percent(outside)} of the lesion, as far as it was found by color, lies outside what the "
        "network sees.",
    )

"""An image under an attribution map as HTML: layers whose opacity and contour the page can change.

Everything is inside the page as ``data:`` addresses, so no picture is ever a file on the server.
"""

import base64
import io
from functools import lru_cache
from html import escape

import numpy as np

from dermlens.errors import UsageError
from dermlens.quality.agreement import smoothed
from dermlens.report.figures import SIGNED_MAP, UNSIGNED_MAP, colorize, normalize

COLOR_MAPS = (UNSIGNED_MAP, "viridis", "magma", "cividis")
"""Perceptually uniform maps to choose from; signed maps stay on the diverging one."""
STRONGEST = 0.2
_FAINTEST = 0.3
"""Opacity, relative to the slider, where a map is zero: the skin below stays visible."""


def checked_color_map(name: str) -> str:
    """Return the name of a color map that may be chosen.

    Raises:
        UsageError: If it is another one.
    """
    if name not in COLOR_MAPS:
        raise UsageError(f"Unknown color map. Use some of: {', '.join(COLOR_MAPS)}.")
    return name


def layers(
    display: np.ndarray,
    values: np.ndarray,
    *,
    signed: bool,
    text: str,
    color_map: str = UNSIGNED_MAP,
    ends: tuple[str, str] | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    """Return an image with an attribution map over it, and its color scale.

    Args:
        display: uint8 RGB (h, w, 3).
        values: Raw map (H, W) of the same part of the image.
        signed: Whether negative values speak against the target.
        text: Alternative text of the map.
        color_map: For unsigned maps.
        ends: Words at the ends of the scale.
        limits: Values at the ends of the scale; None scales the map to its own strongest values.
    """
    scaled = normalize(values, signed=signed) if limits is None else _between(values, limits)
    colors = SIGNED_MAP if signed else color_map
    words = ends or (("against", "for") if signed else ("no evidence", "most evidence"))
    return (
        f'<div class="dl-layers"><img src="{photograph(display)}" alt="The analyzed image">'
        f'<img class="dl-map" src="{_painted(scaled, signed, colors)}" '
        f'alt="{escape(text, quote=True)}">{contour(values)}</div>'
        f'<img class="dl-scale" src="{_scale(signed, colors)}" '
        f'alt="Color scale from {escape(words[0])} to {escape(words[1])}">'
        f'<div class="dl-ends"><span>{escape(words[0])}</span><span>{escape(words[1])}</span></div>'
    )


def _between(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    low, high = limits
    return np.clip((values - low) / (high - low), 0.0, 1.0).astype(np.float32)


def _painted(scaled: np.ndarray, signed: bool, color_map: str) -> str:
    colors = colorize(scaled, signed=signed, color_map=color_map)
    alpha = _FAINTEST + (1 - _FAINTEST) * np.clip(np.abs(scaled), 0, 1)
    return png(np.dstack([colors, np.round(255 * alpha).astype(np.uint8)]))


@lru_cache(maxsize=16)
def _scale(signed: bool, color_map: str) -> str:
    ramp = np.linspace(-1 if signed else 0, 1, 64, dtype=np.float32)[None]
    return png(colorize(ramp, signed=signed, color_map=color_map))


def contour(values: np.ndarray, share: float = STRONGEST) -> str:
    """Return the border of the strongest part of a map as SVG; empty for a constant map.

    The map is first smoothed to the resolution at which methods are compared: the strongest
    pixels of a gradient are thousands of specks otherwise.

    Args:
        values: Raw map (H, W).
        share: Of the pixels, 0..1.
    """
    from skimage.measure import find_contours

    smooth = smoothed(values[None])[0]
    low, high = float(smooth.min()), float(smooth.max())
    if not high > low:
        return ""
    level = float(np.quantile(smooth, 1 - share))
    # A map that is zero nearly everywhere: its strongest part is what is not zero.
    level = max(level, low + 1e-3 * (high - low))
    height, width = values.shape
    framed = np.pad(smooth, 1, constant_values=low)
    lines = find_contours(framed, level)
    path = "".join(_line(line) for line in lines if len(line) > 3)
    return (
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="dl-under" d="{path}"></path><path class="dl-over" d="{path}"></path></svg>'
    )


def _line(points: np.ndarray) -> str:
    # Rows and columns of pixel centers in the padded map; every second point is enough.
    steps = [f"{x - 0.5:.1f} {y - 0.5:.1f}" for y, x in points[::2]]
    return f"M{'L'.join(steps)}Z"


def png(image: np.ndarray) -> str:
    """Return an image, uint8 RGB or RGBA (H, W, 3 or 4), as a ``data:`` address."""
    return _address(image, "PNG", "image/png")


def photograph(image: np.ndarray) -> str:
    """Return a photograph, uint8 RGB (H, W, 3), as a ``data:`` address a tenth as large."""
    return _address(image, "JPEG", "image/jpeg", quality=88)


def _address(image: np.ndarray, kind: str, media_type: str, **options: int) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return f"data:{media_type};base64," + base64.b64encode(stream.getvalue()).decode()

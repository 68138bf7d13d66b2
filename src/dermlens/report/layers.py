"""An image under an attribution map as HTML: layers whose opacity and contour a page can change.

Everything is inside the HTML as ``data:`` addresses, so that it needs no file beside it.
"""

import base64
import io
from dataclasses import dataclass
from functools import lru_cache
from html import escape

import numpy as np

from dermlens.errors import UsageError
from dermlens.quality.agreement import smoothed
from dermlens.report.figures import SIGNED_MAP, UNSIGNED_MAP, colorize, normalize

COLOR_MAPS = (UNSIGNED_MAP, "viridis", "magma", "cividis")
"""Perceptually uniform maps to choose from; signed maps stay on the diverging one."""
_STRONGEST = 0.2
_FAINTEST = 0.3
"""Opacity, relative to the slider, where a map is zero: what is below stays visible."""


@dataclass(frozen=True)
class Canvas:
    """What maps are drawn over, and how."""

    image: np.ndarray
    color_map: str = UNSIGNED_MAP
    lesion: np.ndarray | None = None


def checked_color_map(name: str) -> str:
    """Return the name of a color map that may be chosen."""
    if name not in COLOR_MAPS:
        raise UsageError(f"Unknown color map. Use some of: {', '.join(COLOR_MAPS)}.")
    return name


def layers(
    canvas: Canvas,
    values: np.ndarray,
    *,
    signed: bool,
    text: str,
    ends: tuple[str, str] | None = None,
    limits: tuple[float, float] | None = None,
    color_map: str | None = None,
) -> str:
    """Return an image with a raw map (H, W) over it, and its color scale between two ``ends``.

    Without ``limits``, values at the ends, the map is scaled to its own strongest values.
    """
    if limits is None:
        scaled = normalize(values, signed=signed)
    else:
        scaled = np.interp(values, limits, (0.0, 1.0)).astype(np.float32)
    colors = SIGNED_MAP if signed else color_map or canvas.color_map
    low, high = map(escape, ends or (("against", "for") if signed else _EVIDENCE))
    return (
        f'<div class="dl-layers"><img src="{photograph(canvas.image)}" alt="The analyzed image">'
        f'<img class="dl-map" src="{_painted(scaled, signed, colors)}" '
        f'alt="{escape(text, quote=True)}">{contour(values)}{_lesion(canvas)}</div>'
        f'<img class="dl-scale" src="{_scale(signed, colors)}" '
        f'alt="Color scale from {low} to {high}">'
        f'<div class="dl-ends"><span>{low}</span><span>{high}</span></div>'
    )


_EVIDENCE = ("no evidence", "most evidence")


def outlined(canvas: Canvas) -> str:
    """Return the image alone, with the outline of the lesion if there is one."""
    return (
        f'<div class="dl-layers"><img src="{photograph(canvas.image)}" alt="The analyzed image">'
        f"{_lesion(canvas)}</div>"
    )


def _painted(scaled: np.ndarray, signed: bool, color_map: str) -> str:
    colors = colorize(scaled, signed=signed, color_map=color_map)
    alpha = _FAINTEST + (1 - _FAINTEST) * np.clip(np.abs(scaled), 0, 1)
    return png(np.dstack([colors, np.round(255 * alpha).astype(np.uint8)]))


@lru_cache(maxsize=16)
def _scale(signed: bool, color_map: str) -> str:
    ramp = np.linspace(-1 if signed else 0, 1, 64, dtype=np.float32)[None]
    return png(colorize(ramp, signed=signed, color_map=color_map))


def contour(values: np.ndarray) -> str:
    """Return the border of the strongest fifth of a map as SVG; empty for a constant map.

    The map is first smoothed to the resolution at which methods are compared: the strongest
    pixels of a gradient are thousands of specks otherwise.
    """
    smooth = smoothed(values[None])[0]
    low, high = float(smooth.min()), float(smooth.max())
    if not high > low:
        return ""
    level = float(np.quantile(smooth, 1 - _STRONGEST))
    # A map that is zero nearly everywhere: its strongest part is what is not zero.
    return _border(smooth, max(level, low + 1e-3 * (high - low)))


def _lesion(canvas: Canvas) -> str:
    return "" if canvas.lesion is None else _border(canvas.lesion.astype(float), 0.5, "dl-lesion")


def _border(values: np.ndarray, level: float, kind: str = "dl-contour") -> str:
    """Return where a map (H, W) crosses a level, as SVG."""
    from skimage.measure import find_contours

    height, width = values.shape
    lines = find_contours(np.pad(values, 1, constant_values=values.min()), level)
    # Rows and columns of pixel centers in the padded map; every second point is enough.
    path = "".join(
        f"M{'L'.join(f'{x - 0.5:.1f} {y - 0.5:.1f}' for y, x in line[::2])}Z"
        for line in lines
        if len(line) > 3
    )
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" preserveAspectRatio="none" '
        f'aria-hidden="true"><path class="dl-under" d="{path}"></path>'
        f'<path class="dl-over" d="{path}"></path></svg>'
    )


def png(image: np.ndarray) -> str:
    """Return an image, uint8 RGB or RGBA (H, W, 3 or 4), as a ``data:`` address."""
    return _address(image, "PNG")


def photograph(image: np.ndarray) -> str:
    """Return a photograph, uint8 RGB (H, W, 3), as a ``data:`` address a tenth as large."""
    return _address(image, "JPEG", quality=88)


def _address(image: np.ndarray, kind: str, **options: int) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    content = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"

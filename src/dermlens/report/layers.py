"""A photograph under an attribution map as HTML: layers that a page can fade, wipe and zoom.

Everything is inside the HTML as ``data:`` addresses, so that it needs no file beside it.
"""

import base64
import io
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from html import escape

import numpy as np

from dermlens.errors import UsageError
from dermlens.quality.agreement import smoothed
from dermlens.report.figures import (
    TWO_SIDED,
    UNSIGNED_MAP,
    colorize,
    normalize,
    opacities,
    strongest,
)

COLOR_MAPS = tuple(TWO_SIDED)
"""To choose from; each stands for a one-sided map and the two-sided one that goes with it."""
WHOLE = (0.0, 0.0, 1.0, 1.0)
_STRONGEST = 0.2


@dataclass(frozen=True)
class Canvas:
    """What maps are drawn over, and how.

    Attributes:
        image: The whole photograph, uint8 RGB (h, w, 3), at any size.
        color_map: One of ``COLOR_MAPS``.
        lesion: Outline of the lesion in what the network saw, bool (H, W), or None.
        box: (left, top, right, bottom) of what the network saw, as shares of the photograph.
    """

    image: np.ndarray
    color_map: str = UNSIGNED_MAP
    lesion: np.ndarray | None = None
    box: tuple[float, float, float, float] = WHOLE

    @cached_property
    def address(self) -> str:
        """The photograph as a ``data:`` address."""
        return photograph(self.image)


def checked_color_map(name: str) -> str:
    """Return the name of a color map that may be chosen."""
    if name not in COLOR_MAPS:
        raise UsageError(f"Unknown color map. Use one of: {', '.join(COLOR_MAPS)}.")
    return name


def layers(
    canvas: Canvas,
    values: np.ndarray,
    *,
    signed: bool,
    text: str,
    ends: tuple[str, str] | None = None,
    limits: tuple[float, float] | None = None,
    name: str = "",
    note: str = "",
) -> str:
    """Return a photograph with a raw map (H, W) over it, and its color scale between two ``ends``.

    Without ``limits``, values at the ends, the map is scaled to its own strongest values; the
    values at both ends are printed. ``name`` is a short one, ``text`` says what is drawn, ``note``
    stands below.
    """
    if limits is None:
        scaled, top = normalize(values, signed=signed), strongest(values)
        limits = (-top if signed else float(np.nan_to_num(values).min()), top)
    else:
        span = (-1.0, 1.0) if signed else (0.0, 1.0)
        scaled = np.interp(values, limits, span).astype(np.float32)
    low = "no evidence" if limits[0] == 0 else "least evidence"
    words = ends or (("against", "for") if signed else (low, "most evidence"))
    low, high = (escape(f"{word} ({_short(end)})") for word, end in zip(words, limits, strict=True))
    colors = colorize(scaled, signed=signed, color_map=canvas.color_map)
    alpha = np.round(255 * opacities(scaled)).astype(np.uint8)
    painted = png(np.dstack([colors, alpha]))
    return _view(
        canvas,
        name or text,
        f'<img class="dl-map" src="{painted}" alt="{escape(text, quote=True)}">{contour(values)}',
        f'<img class="dl-scale" src="{_scale(signed, canvas.color_map)}" '
        f'alt="Color scale from {low} to {high}">'
        f'<div class="dl-ends"><span>{low}</span><span>{high}</span></div>'
        + (f'<p class="dl-caption">{escape(note)}</p>' if note else ""),
    )


def smaller(canvas: Canvas, width: int = 420) -> Canvas:
    """Return a canvas whose photograph is at most as wide, for cards beside a large picture."""
    from PIL import Image

    picture = Image.fromarray(canvas.image)
    picture.thumbnail((width, 4 * width))
    return replace(canvas, image=np.asarray(picture))


def outlined(canvas: Canvas) -> str:
    """Return the photograph alone: what the network saw, and the outline of the lesion."""
    return _view(canvas, "Photograph", "", "")


def _view(canvas: Canvas, name: str, seen: str, legend: str) -> str:
    left, top, right, bottom = (100 * side for side in canvas.box)
    place = f"left:{left:.3f}%;top:{top:.3f}%;width:{right - left:.3f}%;height:{bottom - top:.3f}%"
    cropped = " dl-cropped" if canvas.box != WHOLE else ""
    return (
        f'<div class="dl-view" data-name="{escape(name, quote=True)}"><div class="dl-layers">'
        f'<img class="dl-photo" src="{canvas.address}" alt="The photograph">'
        f'<div class="dl-top"><div class="dl-seen{cropped}" style="{place}">'
        f"{seen}{_lesion(canvas)}</div></div></div>{legend}</div>"
    )


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


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
    return _address(image, "PNG", compress_level=3)


def photograph(image: np.ndarray) -> str:
    """Return a photograph, uint8 RGB (H, W, 3), as a ``data:`` address a tenth as large."""
    return _address(image, "JPEG", quality=88)


def _address(image: np.ndarray, kind: str, **options: int) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    content = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"

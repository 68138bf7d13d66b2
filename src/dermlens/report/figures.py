"""Rendering attributions: color maps, overlays, grids.

Unsigned maps use a perceptually uniform map, signed ones a diverging map centered at zero; both
can be read with any color vision, and neither has the colors of skin and pigment. How opaque a
place is drawn follows its value: where there is no evidence the photograph is untouched. Values are
normalized per image, never across a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.report.style import INK, new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNSIGNED_MAP = "viridis"
TWO_SIDED = {"viridis": "cyan_magenta", "cividis": "blue_yellow", "inferno": "green_violet"}
"""The two-sided map that goes with each one-sided one."""
SIGNED_MAP = TWO_SIDED[UNSIGNED_MAP]
_ENDS = {
    "cyan_magenta": ((0, 220, 255), (205, 0, 150)),
    "blue_yellow": ((20, 60, 220), (255, 225, 0)),
    "green_violet": ((0, 215, 90), (95, 0, 190)),
}
"""Colors of what speaks against and for; between them lies white."""
LESION_COLOR = (60, 255, 60)
_COLUMNS = 4


def strongest(values: np.ndarray, percentile: float = 99.5) -> float:
    """Return the size at which a map is drawn in full color; 0 for a map of zeros.

    A few extreme pixels would make everything else invisible, so it is a percentile of the
    absolute values.
    """
    size = np.abs(np.nan_to_num(np.asarray(values, np.float64)))
    return float(np.percentile(size, percentile)) or float(size.max())


def normalize(values: np.ndarray, *, signed: bool = False, percentile: float = 99.5) -> np.ndarray:
    """Scale one map to 0..1 (unsigned) or -1..1 (signed), zero staying zero where signed.

    Values beyond ``strongest`` are clipped. A constant map becomes zeros, never NaN.

    Example:
        >>> normalize(np.array([[0.0, 1.0, 2.0]]), percentile=100).tolist()
        [[0.0, 0.5, 1.0]]
        >>> normalize(np.array([[-2.0, 0.0, 1.0]]), signed=True, percentile=100).tolist()
        [[-1.0, 0.0, 0.5]]
    """
    values = np.nan_to_num(np.asarray(values, np.float64))
    if not signed:
        values = values - values.min()
    top = strongest(values, percentile)
    if top <= 0:
        return np.zeros(values.shape, np.float32)
    return np.clip(values / top, -1.0, 1.0).astype(np.float32)


def colorize(
    values: np.ndarray, *, signed: bool = False, color_map: str | None = None
) -> np.ndarray:
    """Return a normalized map in color: uint8 RGB (H, W, 3).

    ``color_map`` is one of ``TWO_SIDED``, which signed maps are drawn with the other side of, or
    another one-sided map of matplotlib.
    """
    chosen = color_map or UNSIGNED_MAP
    if signed:
        low, high = (np.array(end, float) for end in _ENDS[TWO_SIDED[chosen]])
        size = np.clip(np.abs(values), 0, 1)[..., None]
        colors = 255 + size * (np.where(values[..., None] < 0, low, high) - 255)
        return np.round(colors).astype(np.uint8)
    import matplotlib as mpl

    return np.round(mpl.colormaps[chosen](np.clip(values, 0, 1))[..., :3] * 255).astype(np.uint8)


def opacities(scaled: np.ndarray, opacity: float = 1.0) -> np.ndarray:
    """Return how opaque each place of a normalized map is drawn: in proportion to its size."""
    return opacity * np.clip(np.abs(scaled), 0, 1)


def overlay(
    image: np.ndarray, values: np.ndarray, *, opacity: float = 0.8, signed: bool = False
) -> np.ndarray:
    """Lay a raw attribution map over an image; where it is zero the image stays as it is.

    Args:
        image: uint8 RGB (H, W, 3).
        values: (H, W).
        opacity: Where the map is strongest, 0..1.
        signed: Whether negative values speak against the class.

    Raises:
        UsageError: If sizes differ or the opacity is outside 0..1.
    """
    if image.shape[:2] != values.shape:
        raise UsageError(f"A map of {values.shape} does not fit an image of {image.shape[:2]}.")
    if not 0 <= opacity <= 1:
        raise UsageError(f"The opacity {opacity} is outside 0..1.")
    scaled = normalize(values, signed=signed)
    share = opacities(scaled, opacity)[..., None]
    mixed = (1 - share) * image.astype(np.float32) + share * colorize(scaled, signed=signed)
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def overlay_on_photograph(
    photograph: np.ndarray,
    values: np.ndarray,
    box: tuple[float, float, float, float],
    *,
    opacity: float = 0.8,
    signed: bool = False,
) -> np.ndarray:
    """Lay a raw map over the photograph it was made of, at its own size, over a color bar.

    What the network did not see is darkened.

    Args:
        photograph: uint8 RGB (h, w, 3).
        values: (H, W), of what lies in ``box``.
        box: (left, top, right, bottom) of what the network saw, in pixels; ``images.fit_box``.
        opacity: Where the map is strongest, 0..1.
        signed: Whether negative values speak against the class.

    Returns:
        uint8 RGB (h + bar, w, 3).
    """
    from PIL import Image

    left, top, right, bottom = (round(side) for side in box)
    drawn = (photograph * 0.5).astype(np.uint8)
    seen = photograph[top:bottom, left:right]
    size = (seen.shape[1], seen.shape[0])
    fitted = Image.fromarray(np.asarray(values, np.float32)).resize(size, Image.Resampling.BILINEAR)
    drawn[top:bottom, left:right] = overlay(
        seen, np.asarray(fitted), opacity=opacity, signed=signed
    )
    return np.vstack([drawn, _bar(drawn.shape[1], signed, strongest(values))])


def _bar(width: int, signed: bool, top: float) -> np.ndarray:
    """Return a color bar with its words and the size at its end, uint8 RGB (rows, width, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    letter = max(10, width // 45)
    ramp = np.linspace(-1 if signed else 0, 1, width, dtype=np.float32)[None]
    colors = np.repeat(colorize(ramp, signed=signed), letter, axis=0)
    words = Image.new("RGB", (width, 2 * letter), "white")
    draw, font = ImageDraw.Draw(words), ImageFont.load_default(letter)
    low = f"against ({-top:.2g})" if signed else "no evidence (0)"
    high = f"for ({top:.2g})" if signed else f"most evidence ({top:.2g})"
    draw.text((4, letter // 3), low, "black", font)
    draw.text((width - 4, letter // 3), high, "black", font, anchor="ra")
    return np.vstack([colors, np.asarray(words)])


def outline(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Draw the border of a mask on an image, one pixel wide, inside the mask."""
    from skimage.segmentation import find_boundaries

    drawn = np.array(image, dtype=np.uint8, copy=True)
    drawn[find_boundaries(mask, mode="inner")] = color
    return drawn


@dataclass(frozen=True)
class Panel:
    """One map to draw."""

    title: str
    values: np.ndarray
    signed: bool = False
    note: str = ""


@style()
def attribution_figure(
    image: np.ndarray, panels: Sequence[Panel], *, opacity: float = 0.8, title: str = ""
) -> "Figure":
    """Draw the image and its maps side by side, each with a color bar."""
    height, width = image.shape[:2]
    rows = -(-(len(panels) + 1) // _COLUMNS)
    used = min(_COLUMNS, len(panels) + 1)
    tall = (2.3 * height / width + 0.5) * rows + 0.3
    figure, grid = new_axes(2.9 * used, tall, rows, used, squeeze=False)
    grid = grid.ravel()
    _show(grid[0], image, "image")
    for axes, panel in zip(grid[1:], panels, strict=False):
        drawn = overlay(image, panel.values, opacity=opacity, signed=panel.signed)
        _show(axes, drawn, panel.title)
        axes.set_xlabel(panel.note, fontsize=8)
        _color_bar(figure, axes, panel.signed)
    for axes in grid[len(panels) + 1 :]:
        axes.set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def _show(axes: "Axes", image: np.ndarray, title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)


def _color_bar(figure: "Figure", axes: "Axes", signed: bool) -> None:
    import matplotlib as mpl

    words = {-1.0: "against", 0.0: "0", 1.0: "for"} if signed else {0.0: "least", 1.0: "most"}
    ramp = colorize(np.linspace(min(words), 1, 256, dtype=np.float32)[None], signed=signed)[0]
    colors = mpl.colors.ListedColormap(ramp / 255)
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(min(words), max(words)), colors)
    bar: Any = figure.colorbar(scale, ax=axes, fraction=0.04, pad=0.02, ticks=list(words))
    bar.ax.set_yticklabels(words.values(), fontsize=7, color=INK)
    bar.outline.set_visible(False)


@style()
def attribution_grid(
    images: Sequence[np.ndarray],
    maps: Mapping[str, np.ndarray],
    *,
    signed: Mapping[str, bool],
    labels: Sequence[str],
    lesions: Sequence[np.ndarray | None] | None = None,
    opacity: float = 0.8,
) -> "Figure":
    """Draw a contact sheet: one row per image, one column per method."""
    height, width = images[0].shape[:2]
    shape = (len(images), len(maps) + 1)
    tall = 1.7 * height / width * shape[0] + 0.5
    figure, grid = new_axes(1.7 * shape[1], tall, *shape, squeeze=False)
    for row, image in enumerate(images):
        mask = None if lesions is None else lesions[row]
        shown = {"image": np.asarray(image, np.uint8)} | {
            name: overlay(image, values[row], opacity=opacity, signed=signed[name])
            for name, values in maps.items()
        }
        for axes, (name, drawn) in zip(grid[row], shown.items(), strict=True):
            if mask is not None:
                drawn = outline(drawn, mask, LESION_COLOR)
            _show(axes, drawn, name if row == 0 else "")
        grid[row, 0].set_ylabel(labels[row], fontsize=7)
    return figure

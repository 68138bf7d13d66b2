"""Rendering attributions: color maps, overlays, grids.

Unsigned maps use a perceptually uniform map, signed ones a diverging map centered at zero; both
can be read with any color vision. Values are normalized per image, never across a batch.
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

UNSIGNED_MAP = "inferno"
SIGNED_MAP = "PuOr_r"
LESION_COLOR = (0, 255, 255)
_COLUMNS = 4


def normalize(values: np.ndarray, *, signed: bool = False, percentile: float = 99.5) -> np.ndarray:
    """Scale one map to 0..1 (unsigned) or -1..1 (signed), zero staying zero where signed.

    A few extreme pixels would make everything else invisible, so values beyond a percentile of
    the absolute values are clipped. A constant map becomes zeros, never NaN.

    Example:
        >>> normalize(np.array([[0.0, 1.0, 2.0]]), percentile=100).tolist()
        [[0.0, 0.5, 1.0]]
        >>> normalize(np.array([[-2.0, 0.0, 1.0]]), signed=True, percentile=100).tolist()
        [[-1.0, 0.0, 0.5]]
    """
    values = np.nan_to_num(np.asarray(values, np.float64))
    if not signed:
        values = values - values.min()
    size = np.abs(values)
    top = np.percentile(size, percentile)
    top = top if top > 0 else size.max()
    if top <= 0:
        return np.zeros(values.shape, np.float32)
    return np.clip(values / top, -1.0, 1.0).astype(np.float32)


def colorize(
    values: np.ndarray, *, signed: bool = False, color_map: str | None = None
) -> np.ndarray:
    """Return a normalized map in color: uint8 RGB (H, W, 3)."""
    import matplotlib as mpl

    colors = mpl.colormaps[color_map or (SIGNED_MAP if signed else UNSIGNED_MAP)]
    place = (values + 1) / 2 if signed else values
    return np.round(colors(np.clip(place, 0, 1))[..., :3] * 255).astype(np.uint8)


def overlay(
    image: np.ndarray, values: np.ndarray, *, opacity: float = 0.5, signed: bool = False
) -> np.ndarray:
    """Lay a raw attribution map over an image.

    Raises:
        UsageError: If sizes differ or the opacity is outside 0..1.
    """
    if image.shape[:2] != values.shape:
        raise UsageError(f"A map of {values.shape} does not fit an image of {image.shape[:2]}.")
    if not 0 <= opacity <= 1:
        raise UsageError(f"The opacity {opacity} is outside 0..1.")
    colors = colorize(normalize(values, signed=signed), signed=signed)
    mixed = (1 - opacity) * image.astype(np.float32) + opacity * colors
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


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
    image: np.ndarray, panels: Sequence[Panel], *, opacity: float = 0.5, title: str = ""
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
    colors = mpl.colormaps[SIGNED_MAP if signed else UNSIGNED_MAP]
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
    opacity: float = 0.5,
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

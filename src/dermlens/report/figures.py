"""Rendering attributions: color maps, overlays, contours, grids.

Unsigned maps use a perceptually uniform map, signed ones a diverging map centered at zero; both
can be read with any color vision. Values are normalized per image, never across a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.report.style import INK, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNSIGNED_MAP = "inferno"
SIGNED_MAP = "PuOr_r"
LESION_COLOR = (0, 255, 255)
CONTOUR_COLOR = (255, 255, 255)


def normalize(values: np.ndarray, *, signed: bool = False, percentile: float = 99.5) -> np.ndarray:
    """Scale one map to 0..1 (unsigned) or -1..1 (signed), zero staying zero where signed.

    A few extreme pixels would make everything else invisible, so values beyond a percentile of
    the absolute values are clipped. A constant map becomes zeros, never NaN.

    Args:
        values: (H, W).
        signed: Whether negative values speak against the target.
        percentile: Of the absolute (signed) or shifted (unsigned) values; 100 clips nothing.

    Returns:
        float32 (H, W).

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
    """Return a normalized map in color: uint8 RGB (H, W, 3).

    Args:
        values: 0..1, or -1..1 where signed; (H, W).
        signed: Chooses the diverging map, with its neutral color at zero.
        color_map: Name of a matplotlib map to use instead.
    """
    import matplotlib as mpl

    colors = mpl.colormaps[color_map or (SIGNED_MAP if signed else UNSIGNED_MAP)]
    place = (values + 1) / 2 if signed else values
    return np.round(colors(np.clip(place, 0, 1))[..., :3] * 255).astype(np.uint8)


def overlay(
    image: np.ndarray,
    values: np.ndarray,
    *,
    opacity: float = 0.5,
    signed: bool = False,
    color_map: str | None = None,
) -> np.ndarray:
    """Lay a raw attribution map over an image.

    Args:
        image: uint8 or float RGB 0..255, (H, W, 3).
        values: Raw map, (H, W).
        opacity: Of the map, 0..1.
        signed: Whether negative values speak against the target.
        color_map: Name of a matplotlib map to use instead of the default.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        UsageError: If sizes differ or the opacity is outside 0..1.
    """
    if image.shape[:2] != values.shape:
        raise UsageError(f"A map of {values.shape} does not fit an image of {image.shape[:2]}.")
    if not 0 <= opacity <= 1:
        raise UsageError(f"The opacity {opacity} is outside 0..1.")
    colors = colorize(normalize(values, signed=signed), signed=signed, color_map=color_map)
    mixed = (1 - opacity) * image.astype(np.float32) + opacity * colors
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def outline(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Draw the border of a mask on an image, one pixel wide, inside the mask.

    Args:
        image: uint8 RGB (H, W, 3).
        mask: bool (H, W).
        color: RGB 0..255.

    Returns:
        uint8 RGB (H, W, 3), a copy.
    """
    edge = np.pad(mask, 1, mode="edge")
    inner = edge[:-2, 1:-1] & edge[2:, 1:-1] & edge[1:-1, :-2] & edge[1:-1, 2:]
    drawn = np.array(image, dtype=np.uint8, copy=True)
    drawn[mask & ~inner] = color
    return drawn


def contour(
    image: np.ndarray,
    values: np.ndarray,
    *,
    percentile: float = 80.0,
    color: tuple[int, int, int] = CONTOUR_COLOR,
) -> np.ndarray:
    """Draw the border of the strongest part of a map: pixels above a percentile of it.

    Pixels at the map's minimum never belong to it: in a map that is zero nearly everywhere the
    rest is the strongest part, and a constant map has none.
    """
    threshold = np.percentile(values, percentile)
    return outline(image, (values >= threshold) & (values > values.min()), color)


def segment_borders(
    image: np.ndarray, segments: np.ndarray, color: tuple[int, int, int] = (255, 255, 0)
) -> np.ndarray:
    """Draw the borders between superpixels (labels (H, W)) on an image."""
    border = np.zeros(segments.shape, bool)
    border[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    border[1:] |= segments[1:] != segments[:-1]
    drawn = np.array(image, dtype=np.uint8, copy=True)
    drawn[border] = color
    return drawn


@dataclass(frozen=True)
class Panel:
    """One map to draw.

    Attributes:
        title: Above the panel.
        values: Raw map, (H, W).
        signed: Whether negative values speak against the target.
        note: Small line below.
    """

    title: str
    values: np.ndarray
    signed: bool = False
    note: str = ""


def attribution_figure(
    image: np.ndarray,
    panels: Sequence[Panel],
    *,
    opacity: float = 0.5,
    lesion: np.ndarray | None = None,
    percentile: float | None = None,
    title: str = "",
    columns: int = 4,
) -> "Figure":
    """Draw the image and its maps side by side, each with a color bar.

    Args:
        image: uint8 RGB (H, W, 3).
        panels: Maps of the same size.
        opacity: Of the maps, 0..1.
        lesion: bool (H, W) to outline, or None.
        percentile: Draw the contour of values above this percentile, or None.
        title: Above all.
        columns: Panels per row, the image included.

    Returns:
        The figure; it is not shown.
    """
    height, width = image.shape[:2]
    rows = -(-(len(panels) + 1) // columns)
    used = min(columns, len(panels) + 1)
    with style():
        figure = new_figure(2.9 * used, (2.3 * height / width + 0.5) * rows + 0.3)
        grid = figure.subplots(rows, used, squeeze=False).ravel()
        show_panel(grid[0], with_lesion(image, lesion), "image")
        for axes, panel in zip(grid[1:], panels, strict=False):
            drawn = overlay(image, panel.values, opacity=opacity, signed=panel.signed)
            if percentile is not None:
                drawn = contour(drawn, panel.values, percentile=percentile)
            show_panel(axes, with_lesion(drawn, lesion), panel.title)
            axes.set_xlabel(panel.note, fontsize=8)
            _color_bar(figure, axes, panel.signed)
        for axes in grid[len(panels) + 1 :]:
            axes.set_visible(False)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        return figure


def with_lesion(image: np.ndarray, lesion: np.ndarray | None) -> np.ndarray:
    """Return an image with a lesion's outline drawn on it, if there is one."""
    image = np.asarray(image, np.uint8)
    return image if lesion is None else outline(image, lesion, LESION_COLOR)


def show_panel(axes: "Axes", image: np.ndarray, title: str) -> None:
    """Draw an image into axes, without ticks, under a small title."""
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)


def _color_bar(figure: "Figure", axes: "Axes", signed: bool) -> None:
    words = {-1.0: "against", 0.0: "0", 1.0: "for"} if signed else {0.0: "least", 1.0: "most"}
    color_bar(figure, axes, words, SIGNED_MAP if signed else UNSIGNED_MAP)


def color_bar(figure: "Figure", axes: Any, words: Mapping[float, str], color_map: str) -> None:
    """Add a color bar from the least to the greatest of the values that ``words`` names.

    Args:
        figure: Figure that the axes belong to.
        axes: Axes, or a list of them, beside which it stands.
        words: Text at each value, in rising order.
        color_map: Name of a matplotlib map.
    """
    import matplotlib as mpl

    scale = mpl.cm.ScalarMappable(
        mpl.colors.Normalize(min(words), max(words)), mpl.colormaps[color_map]
    )
    bar: Any = figure.colorbar(scale, ax=axes, fraction=0.04, pad=0.02, ticks=list(words))
    bar.ax.set_yticklabels(words.values(), fontsize=7, color=INK)
    bar.outline.set_visible(False)


def attribution_grid(
    images: Sequence[np.ndarray],
    maps: Mapping[str, np.ndarray],
    *,
    signed: Mapping[str, bool],
    labels: Sequence[str],
    lesions: Sequence[np.ndarray | None] | None = None,
    opacity: float = 0.5,
) -> "Figure":
    """Draw a contact sheet: one row per image, one column per method.

    Args:
        images: uint8 RGB (H, W, 3) each.
        maps: Raw maps (N, H, W) by column title.
        signed: By column title.
        labels: One per row.
        lesions: Masks to outline, bool (H, W), or None.
        opacity: Of the maps, 0..1.
    """
    height, width = images[0].shape[:2]
    with style():
        shape = (len(images), len(maps) + 1)
        figure = new_figure(1.7 * shape[1], 1.7 * height / width * shape[0] + 0.5)
        grid = figure.subplots(*shape, squeeze=False)
        for row, image in enumerate(images):
            lesion = None if lesions is None else lesions[row]
            show_panel(grid[row, 0], with_lesion(image, lesion), "image" if row == 0 else "")
            grid[row, 0].set_ylabel(labels[row], fontsize=7)
            for column, (name, values) in enumerate(maps.items(), start=1):
                drawn = overlay(image, values[row], opacity=opacity, signed=signed[name])
                show_panel(grid[row, column], with_lesion(drawn, lesion), name if row == 0 else "")
        return figure

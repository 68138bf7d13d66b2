"""Figures of a comparison; each returns a matplotlib Figure.

Maps on a fixed scale (consensus, disagreement) are drawn on it, so that two pages can be compared;
raw maps are normalized per map, since their units differ. Colors read with any color vision.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dermlens.explain.contrast import ClassContrast
from dermlens.explain.multiscale import KINDS, MultiScaleResult
from dermlens.report.comparison import Agreement
from dermlens.report.figures import (
    SIGNED_MAP,
    UNSIGNED_MAP,
    color_bar,
    colorize,
    overlay,
    show_panel,
    with_lesion,
)
from dermlens.report.style import INK, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DISAGREEMENT_MAP = "cividis"
MEASURE_TITLES = {
    "spearman": "Rank correlation",
    "ssim": "Structural similarity",
    "top_20_iou": "Overlap of strongest 20 %",
}
_RANGES = {"spearman": (-1.0, 1.0), "ssim": (0.0, 1.0), "top_20_iou": (0.0, 1.0)}
_KIND_TITLES = {"depth": "Depth of network", "patch": "Patch size", "superpixels": "Superpixels"}
_MOST_DISAGREEMENT = 0.5
_WIDTH = 2.1


def agreement_figure(agreement: Agreement, titles: Mapping[str, str]) -> "Figure":
    """Draw one matrix per measure, values written.

    Args:
        agreement: Of at least one method.
        titles: Names of methods for people, by registry name.
    """
    names = [titles.get(name, name) for name in agreement.methods]
    with style():
        side = 1.6 + 0.42 * len(names)
        figure = new_figure(side * len(agreement.matrices) + 0.6, side + 0.2)
        grid = np.ravel(figure.subplots(1, len(agreement.matrices), sharey=True))
        for axes, (measure, matrix) in zip(grid, agreement.matrices.items(), strict=True):
            _matrix(axes, matrix, names, _RANGES[measure], signed=measure == "spearman")
            axes.set_title(MEASURE_TITLES[measure])
        return figure


def _matrix(
    axes: "Axes",
    matrix: np.ndarray,
    names: Sequence[str],
    limits: tuple[float, float],
    signed: bool,
) -> None:
    shown: Any = axes.imshow(
        matrix, cmap=SIGNED_MAP if signed else "Blues", vmin=limits[0], vmax=limits[1]
    )
    places = range(len(names))
    axes.set_xticks(places, names, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row in places:
        for column in places:
            red, green, blue, _ = shown.to_rgba(matrix[row, column])
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{matrix[row, column]:.2f}"
            color = "white" if dark else INK
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)


def consensus_figure(
    image: np.ndarray,
    consensus: np.ndarray,
    disagreement: np.ndarray,
    *,
    lesion: np.ndarray | None = None,
    opacity: float = 0.6,
) -> "Figure":
    """Draw the image, where methods agree on evidence, and where they contradict each other.

    Args:
        image: uint8 RGB (H, W, 3).
        consensus: 0..1, (H, W).
        disagreement: 0..0.5, (H, W).
        lesion: Outline to draw, bool (H, W), or None.
        opacity: Of the maps, 0..1.
    """
    panels = (
        ("Consensus: mean rank", consensus, UNSIGNED_MAP, {0.0: "lowest", 0.5: "0.5", 1.0: "top"}),
        (
            "Disagreement: spread of ranks",
            disagreement / _MOST_DISAGREEMENT,
            DISAGREEMENT_MAP,
            {0.0: "none", 0.5: "0.25", 1.0: "0.5"},
        ),
    )
    with style():
        figure = new_figure(10.5, 10.5 / 3.2 * image.shape[0] / image.shape[1] + 0.5)
        grid = figure.subplots(1, 3)
        show_panel(grid[0], with_lesion(image, lesion), "image")
        for axes, (title, values, colors, words) in zip(grid[1:], panels, strict=True):
            painted = colorize(values, color_map=colors)
            mixed = np.round((1 - opacity) * image + opacity * painted).astype(np.uint8)
            show_panel(axes, with_lesion(mixed, lesion), title)
            color_bar(figure, axes, words, colors)
        return figure


def multiscale_figure(
    image: np.ndarray,
    scales: MultiScaleResult,
    *,
    lesion: np.ndarray | None = None,
    opacity: float = 0.55,
) -> "Figure":
    """Draw one row per kind of scale, coarse to fine, and the fused map beside the image.

    Args:
        image: uint8 RGB (H, W, 3).
        scales: Maps of the same size.
        lesion: Outline to draw, bool (H, W), or None.
        opacity: Of the maps, 0..1.
    """
    kinds = [kind for kind in KINDS if scales.of_kind(kind)]
    columns = 1 + max(len(scales.of_kind(kind)) for kind in kinds)
    rows = max(len(kinds), 2)
    with style():
        panel = _WIDTH * image.shape[0] / image.shape[1] + 0.3
        figure = new_figure(_WIDTH * columns + 0.9, panel * rows + 0.2)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.ravel():
            axes.set_visible(False)
        show_panel(_seen(grid[0, 0]), with_lesion(image, lesion), "image")
        fused = overlay(image, scales.fused, opacity=opacity, signed=True)
        show_panel(_seen(grid[1, 0]), with_lesion(fused, lesion), "all scales fused")
        for row, kind in enumerate(kinds):
            for column, one in enumerate(scales.of_kind(kind), start=1):
                drawn = overlay(image, one.values, opacity=opacity, signed=one.signed)
                show_panel(_seen(grid[row, column]), with_lesion(drawn, lesion), one.label)
            grid[row, 1].set_ylabel(_KIND_TITLES[kind], fontsize=9, fontweight="bold")
        unsigned = [k for k, kind in enumerate(kinds) if not scales.of_kind(kind)[0].signed]
        for row in range(len(kinds)):
            if row in unsigned:
                color_bar(figure, list(grid[row]), {0.0: "least", 1.0: "most"}, UNSIGNED_MAP)
            else:
                words = {-1.0: "against", 0.0: "0", 1.0: "for"}
                color_bar(figure, list(grid[row]), words, SIGNED_MAP)
        return figure


def _seen(axes: "Axes") -> "Axes":
    axes.set_visible(True)
    return axes


def contrast_figure(
    image: np.ndarray,
    contrasts: Sequence[ClassContrast],
    *,
    target: str,
    other: str,
    titles: Mapping[str, str],
    lesion: np.ndarray | None = None,
    opacity: float = 0.55,
) -> "Figure":
    """Draw, per method, what speaks for the target rather than the other, and the reverse alone.

    Args:
        image: uint8 RGB (H, W, 3).
        contrasts: At least one.
        target: Code of the explained diagnosis.
        other: Code of the diagnosis it is contrasted with.
        titles: Names of methods for people, by registry name.
        lesion: Outline to draw, bool (H, W), or None.
        opacity: Of the maps, 0..1.
    """
    count = len(contrasts)
    with style():
        panel = _WIDTH * image.shape[0] / image.shape[1] + 0.45
        figure = new_figure(_WIDTH * count + 1.0, panel * 2 + 0.2)
        grid = figure.subplots(2, count, squeeze=False)
        for column, one in enumerate(contrasts):
            title = titles.get(one.method, one.method)
            drawn = overlay(image, one.values, opacity=opacity, signed=True)
            show_panel(grid[0, column], with_lesion(drawn, lesion), title)
            grid[0, column].set_xlabel(f"discrimination {one.discrimination:.2f}", fontsize=8)
            reverse = np.maximum(-one.values, 0)
            drawn = overlay(image, reverse, opacity=opacity)
            show_panel(grid[1, column], with_lesion(drawn, lesion), "")
            share = f"{100 * one.share_for_other:.0f} % for {other}"
            grid[1, column].set_xlabel(share, fontsize=8)
        grid[0, 0].set_ylabel(f"{target} or {other}", fontsize=9, fontweight="bold")
        grid[1, 0].set_ylabel(f"for {other} only", fontsize=9, fontweight="bold")
        words = {-1.0: f"for {other}", 0.0: "0", 1.0: f"for {target}"}
        color_bar(figure, list(grid[0]), words, SIGNED_MAP)
        color_bar(figure, list(grid[1]), {0.0: "least", 1.0: "most"}, UNSIGNED_MAP)
        return figure

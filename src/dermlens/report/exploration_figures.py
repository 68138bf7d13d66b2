"""Figures of the exploration report; each takes tables and returns a matplotlib Figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dermlens.data.explore import ImageStatistics
from dermlens.report.style import INK, MUTED, new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colors = Mapping[str, str]
"""Hex color of each class, in class order."""


@style()
def class_balance(balance: pd.DataFrame, colors: Colors) -> "Figure":
    """Draw images and lesions per class, largest class on top."""
    figure, axes = new_axes(9, 3.6, 1, 2, sharey=True)
    ordered = balance.sort_values("images")
    for ax, column in zip(axes, ("images", "lesions"), strict=True):
        bars = ax.barh(ordered.dx, ordered[column], color=list(ordered.dx.map(colors)))
        total = max(int(ordered[column].sum()), 1)
        labels = [f"{count:,} ({count / total:.1%})" for count in ordered[column]]
        ax.bar_label(bars, labels, padding=4, color=INK, fontsize=9)
        ax.set(title=column.capitalize(), xlim=(0, ordered[column].max() * 1.32))
        ax.xaxis.set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.spines["bottom"].set_visible(False)
    return figure


@style()
def images_per_lesion(counts: pd.DataFrame) -> "Figure":
    """Draw how many lesions have 1, 2, ... images."""
    figure, ax = new_axes(5.5, 3)
    bars = ax.bar(counts.images.astype(str), counts.lesions, color=MUTED, width=0.7)
    ax.bar_label(bars, [f"{count:,}" for count in counts.lesions], padding=2, fontsize=9)
    ax.set(xlabel="images of the lesion", ylabel="lesions", yscale="log")
    ax.set_ylim(0.7, counts.lesions.max() * 2.2)
    return figure


@style()
def shares(counts: pd.DataFrame, column: str) -> "Figure":
    """Draw a heat map: how the images of each class spread over a column's values."""
    import seaborn

    values = counts.set_index(column).drop(columns="all")
    percent = 100 * values / values.sum(axis=0).replace(0, np.nan)
    percent["all"] = 100 * values.sum(axis=1) / max(int(values.to_numpy().sum()), 1)
    figure, ax = new_axes(8, 1.2 + 0.34 * len(values))
    seaborn.heatmap(
        percent, annot=True, fmt=".0f", cmap="Blues", vmin=0, vmax=100, linewidths=1,
        cbar_kws={"label": "percent"}, annot_kws={"fontsize": 9}, ax=ax,
    )  # fmt: skip
    ax.axvline(values.shape[1], color="white", linewidth=5)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    return figure


@style()
def sample_grid(samples: Mapping[str, Sequence[np.ndarray]], colors: Colors) -> "Figure":
    """Draw sample images, one row per class."""
    columns = max(len(images) for images in samples.values())
    figure, grid = new_axes(
        1.62 * columns + 0.5, 1.25 * len(samples), len(samples), columns, squeeze=False
    )
    for row, (code, images) in zip(grid, samples.items(), strict=True):
        for k, ax in enumerate(row):
            if k < len(images):
                ax.imshow(images[k])
            _bare(ax)
        row[0].set_ylabel(code, color=colors[code], fontweight="bold", fontsize=12)
    return figure


@style()
def mean_images(statistics: ImageStatistics, colors: Colors) -> "Figure":
    """Draw the mean image and the mean lesion mask of each class."""
    codes = list(statistics.mean_images)
    figure, grid = new_axes(1.55 * len(codes) + 0.9, 2.9, 2, len(codes), squeeze=False)
    shown = None
    for k, code in enumerate(codes):
        upper, lower = grid[:, k]
        upper.imshow(statistics.mean_images[code] / 255)
        upper.set_title(code, loc="center", color=colors[code])
        _bare(upper)
        _bare(lower)
        if code in statistics.mean_masks:
            mask = statistics.mean_masks[code]
            shown = lower.imshow(mask, cmap="viridis", vmin=0, vmax=1)
    grid[0, 0].set_ylabel("mean image")
    grid[1, 0].set_ylabel("mean mask")
    if shown is not None:
        bar = figure.colorbar(shown, ax=list(grid[1]), fraction=0.025, pad=0.01)
        bar.set_label("share covered", fontsize=9)
    return figure


@style()
def color_histograms(statistics: ImageStatistics, colors: Colors) -> "Figure":
    """Draw the distribution of each color channel by class."""
    figure, axes = new_axes(10, 3.1, 1, 3, sharey=True)
    for channel, (ax, name) in enumerate(zip(axes, ("red", "green", "blue"), strict=True)):
        for code, histogram in statistics.histograms.items():
            bins = histogram.shape[1]
            value = (np.arange(bins) + 0.5) * 256 / bins
            ax.plot(value, 100 * histogram[channel], color=colors[code], label=code, lw=1.6)
        ax.set(title=name.capitalize(), xlabel="value", xlim=(0, 255))
    axes[0].set_ylabel("percent of pixels")
    # Set last: a limit set earlier would stop the shared axis from growing.
    axes[0].set_ylim(0, None)
    axes[0].legend(fontsize=9, handlelength=1.4)
    return figure


@style()
def distribution(per_image: pd.DataFrame, column: str, label: str, colors: Colors) -> "Figure":
    """Draw the distribution of one statistic by class."""
    import seaborn

    figure, ax = new_axes(8, 3.4)
    known = per_image.dropna(subset=[column])
    seaborn.violinplot(
        known, x="dx", y=column, hue="dx", order=colors, hue_order=colors, palette=dict(colors),
        legend=False, inner="quart", cut=0, density_norm="width", linewidth=1, ax=ax,
        fill=False, width=0.85,
    )  # fmt: skip
    ax.set(xlabel="", ylabel=label)
    counts = known.dx.value_counts()
    labels = [f"{code}\nn = {int(counts.get(code, 0)):,}" for code in colors]
    ax.set_xticks(range(len(colors)), labels)
    ax.tick_params(axis="x", length=0)
    return figure


def _bare(ax: "Axes") -> None:
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)

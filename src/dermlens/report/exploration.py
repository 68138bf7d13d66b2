"""The exploration report: what a data set holds, in figures and tables on one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dermlens.data import explore as statistics_of
from dermlens.data.explore import ImageStatistics
from dermlens.data.manifest import data_labels, read_manifest
from dermlens.files import read_json, write_csv, written_beside
from dermlens.labels import LabelSet
from dermlens.report.facts import counted
from dermlens.report.html import Page, png_bytes
from dermlens.report.style import INK, MUTED, new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SAMPLES_PER_CLASS = 6

Colors = Mapping[str, str]
"""Hex color of each class, in class order."""


def explore(data: Path, out: Path) -> Path:
    """Explore a prepared data set and write figures, tables and one page about it.

    Raises:
        DataError: If the data set or one of its images cannot be read.
    """
    data, out = Path(data), Path(out)
    table, labels = read_manifest(data), data_labels(data)
    facts = read_json(data / "dataset.json")
    statistics = statistics_of.image_statistics(data, table)
    report = _Report(
        out, Page(f"Exploring {facts.get('name', data.name)}", _subtitle(table, labels)), labels
    )
    _about(report, facts)
    _balance(report, table)
    _people(report, table)
    _provenance(report, table)
    _pictures(report, data, table, statistics)
    _measures(report, statistics)
    write_csv(out / "images.csv", statistics.per_image)
    return report.page.write(out / "exploration.html")


class _Report:
    """A page whose figures and tables are also written as files of their own."""

    def __init__(self, out: Path, page: Page, labels: LabelSet) -> None:
        self._out, self.page, self.labels = out, page, labels
        self.colors = labels.colors()

    def figure(self, name: str, figure: "Figure", caption: str) -> None:
        content = png_bytes(figure)
        with written_beside(self._out / "figures" / f"{name}.png") as temporary:
            temporary.write_bytes(content)
        self.page.figure(content, caption)

    def table(self, name: str, table: pd.DataFrame, caption: str) -> None:
        write_csv(self._out / "tables" / f"{name}.csv", table)
        shown = table.rename(columns=lambda column: str(column).replace("_", " "))
        self.page.table(shown, caption)


def _subtitle(table: pd.DataFrame, labels: LabelSet) -> str:
    images = counted(len(table), "image")
    lesions = counted(table.lesion_id.nunique(), "lesion")
    return f"{images} of {lesions}, {table.dx.nunique()} of {len(labels)} classes."


def _about(report: _Report, facts: dict[str, object]) -> None:
    page = report.page.section("About these data")
    if facts.get("synthetic"):
        page.paragraph(
            "These images are drawn by a program. They show no patient, and nothing found on "
            "them says how real lesions look."
        )
    page.paragraph(str(facts.get("license", "The license is not recorded.")))
    missing = facts.get("n_missing_images", 0)
    if isinstance(missing, int) and missing:
        page.paragraph(
            f"{missing:,} rows of the metadata have no image here; they are left out of everything "
            "below."
        )
    page.paragraph("Patients are not identified: lesions of one person cannot be told apart.")


def _balance(report: _Report, table: pd.DataFrame) -> None:
    balance = statistics_of.class_balance(table, report.labels)
    rarest = balance[balance.images > 0].nsmallest(1, "images").iloc[0]
    most = balance.nlargest(1, "images").iloc[0]
    report.page.section(
        "Class balance",
        f"{most.dx} makes up {most.image_share:.0%} of the images and {most.lesion_share:.0%} of "
        f"the lesions; the rarest class, {rarest.dx}, has {rarest.images:,} images. Accuracy alone "
        "says little on such data; balanced accuracy counts every class alike.",
    )
    report.figure(
        "class_balance",
        class_balance(balance, report.colors),
        "Images and lesions of each class. A lesion may have several images.",
    )
    report.table("class_balance", balance, "Images and lesions of each class.")
    per_lesion = statistics_of.images_per_lesion(table)
    sharing = int((per_lesion.images * per_lesion.lesions)[per_lesion.images > 1].sum())
    report.page.paragraph(
        f"{sharing:,} images ({sharing / len(table):.0%}) share their lesion with another image, "
        "so a split must keep the images of one lesion together."
    )
    report.figure(
        "images_per_lesion",
        images_per_lesion(per_lesion),
        "Lesions by the number of their images (logarithmic).",
    )


def _people(report: _Report, table: pd.DataFrame) -> None:
    report.page.section("Age, sex and place on the body")
    if table.age.notna().any():
        drawn = distribution(table, "age", "age (years)", report.colors)
        report.figure("age", drawn, "Age in years, by class, with median and quartiles.")
        report.table("age", statistics_of.age_summary(table, report.labels), "Age in years.")
    _shares(report, table, "sex", "Sex")
    _shares(report, table, "localization", "Place on the body")


def _shares(report: _Report, table: pd.DataFrame, column: str, caption: str) -> None:
    counts, text = statistics_of.cross_table(table, column, report.labels), "share of the images"
    drawn = shares(counts, column)
    report.figure(column, drawn, f"{caption}: {text} of each class, percent.")
    report.table(column, counts, f"{caption}: images.")


def _provenance(report: _Report, table: pd.DataFrame) -> None:
    report.page.section(
        "How the labels were made, and what is missing",
        "Where labels were made in different ways in different classes, a model can pick up "
        "the way instead of the lesion.",
    )
    _shares(report, table, "dx_type", "Ground for the label")
    missing = statistics_of.missing_values(table, report.labels)
    report.table("missing_values", missing, "Images without a value, in all and by class.")


def _pictures(
    report: _Report, data: Path, table: pd.DataFrame, statistics: ImageStatistics
) -> None:
    report.page.section("What the images look like")
    path_of = dict(zip(table.image_id, table.path, strict=True))
    chosen = statistics_of.sample_ids(table, _SAMPLES_PER_CLASS)
    samples = {
        code: [statistics_of.read_small_image(data / path_of[i], (150, 200)) for i in ids]
        for code, ids in chosen.items()
    }
    report.figure(
        "samples",
        sample_grid(samples, report.colors),
        f"Up to {_SAMPLES_PER_CLASS} lesions of each class, chosen at random.",
    )
    report.figure(
        "mean_images",
        mean_images(statistics, report.colors),
        "Mean image of each class"
        + (", and how often the lesion covers each pixel" if statistics.mean_masks else "")
        + ". Lesions are large and centered: a map that always points at the center would already "
        "look right.",
    )


def _measures(report: _Report, statistics: ImageStatistics) -> None:
    report.page.section(
        "Color, brightness and size",
        "A class that can be told by color or brightness alone invites a shortcut.",
    )
    report.figure(
        "color",
        color_histograms(statistics, report.colors),
        "Distribution of red, green and blue over all pixels, by class.",
    )
    per_image, share = statistics.per_image, statistics.per_image.lesion_share
    drawn = distribution(per_image, "brightness", "mean luma (0 to 255)", report.colors)
    report.figure("brightness", drawn, "Mean brightness of the images.")
    summary = statistics_of.brightness_summary(statistics)
    report.table("brightness", summary, "Mean luma of the images, 0 to 255.")
    if not share.notna().any():
        return
    report.page.paragraph(
        f"The lesion covers {np.nanmedian(share):.0%} of the frame at the median; "
        f"{(share > 0.9).sum():,} lesions fill more than 90 % of it."
    )
    percent = per_image.assign(lesion_share=share * 100)
    drawn = distribution(percent, "lesion_share", "percent of the frame", report.colors)
    report.figure("lesion_size", drawn, "Size of the lesions.")
    sizes = statistics_of.lesion_sizes(statistics)
    report.table("lesion_size", sizes, "Share of the frame, 0 to 1.")


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
    """Draw the mean image of each class and, where outlines are known, their mean."""
    codes = list(statistics.mean_images)
    rows = 2 if statistics.mean_masks else 1
    size = (1.55 * len(codes) + 0.9, 1.45 * rows)
    figure, grid = new_axes(*size, rows, len(codes), squeeze=False)
    shown = None
    for k, code in enumerate(codes):
        grid[0, k].imshow(statistics.mean_images[code] / 255)
        grid[0, k].set_title(code, loc="center", color=colors[code])
        for axes in grid[:, k]:
            _bare(axes)
        if code in statistics.mean_masks:
            mask = statistics.mean_masks[code]
            shown = grid[1, k].imshow(mask, cmap="viridis", vmin=0, vmax=1)
    grid[0, 0].set_ylabel("mean image")
    if shown is not None:
        grid[1, 0].set_ylabel("mean outline")
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

"""The exploration report: what a data set holds, in figures and tables on one page."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dermlens.data import explore as statistics_of
from dermlens.data.explore import ImageStatistics
from dermlens.data.manifest import data_labels, read_manifest
from dermlens.files import read_json, write_csv, written_beside
from dermlens.labels import LabelSet
from dermlens.report import exploration_figures as figures
from dermlens.report.html import Page, png_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SAMPLES_PER_CLASS = 6


def explore(data: Path, out: Path) -> Path:
    """Explore a prepared data set and write figures, tables and one page about it.

    Args:
        data: Prepared data set, split or not.
        out: Folder; gets ``exploration.html``, ``figures/*.png``, ``tables/*.csv`` and
            ``images.csv`` with one row of statistics per image.

    Returns:
        Path of the page.

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
    present = table.dx.nunique()
    lesions = table.lesion_id.nunique()
    return f"{len(table):,} images of {lesions:,} lesions, {present} of {len(labels)} classes."


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
        figures.class_balance(balance, report.colors),
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
        figures.images_per_lesion(per_lesion),
        "Lesions by the number of their images (logarithmic).",
    )


def _people(report: _Report, table: pd.DataFrame) -> None:
    report.page.section("Age, sex and place on the body")
    if table.age.notna().any():
        drawn = figures.distribution(table, "age", "age (years)", report.colors)
        report.figure("age", drawn, "Age in years, by class, with median and quartiles.")
        report.table("age", statistics_of.age_summary(table, report.labels), "Age in years.")
    _shares(report, table, "sex", "Sex")
    _shares(report, table, "localization", "Place on the body")


def _shares(report: _Report, table: pd.DataFrame, column: str, caption: str) -> None:
    counts, text = statistics_of.cross_table(table, column, report.labels), "share of the images"
    drawn = figures.shares(counts, column)
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
        figures.sample_grid(samples, report.colors),
        f"Up to {_SAMPLES_PER_CLASS} lesions of each class, chosen at random.",
    )
    report.figure(
        "mean_images",
        figures.mean_images(statistics, report.colors),
        "Mean image of each class, and how often the lesion covers each pixel. Lesions are "
        "large and centered: a map that always points at the center would already look right.",
    )


def _measures(report: _Report, statistics: ImageStatistics) -> None:
    report.page.section(
        "Color, brightness and size",
        "A class that can be told by color or brightness alone invites a shortcut.",
    )
    report.figure(
        "color",
        figures.color_histograms(statistics, report.colors),
        "Distribution of red, green and blue over all pixels, by class.",
    )
    per_image, share = statistics.per_image, statistics.per_image.lesion_share
    drawn = figures.distribution(per_image, "brightness", "mean luma (0 to 255)", report.colors)
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
    drawn = figures.distribution(percent, "lesion_share", "percent of the frame", report.colors)
    report.figure("lesion_size", drawn, "Size of the lesions.")
    sizes = statistics_of.lesion_sizes(statistics)
    report.table("lesion_size", sizes, "Share of the frame, 0 to 1.")

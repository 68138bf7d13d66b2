"""What drawing class activation maps where the network looks gains, against plain enlarging.

    python benchmarks/registration.py DATA [--bundle BUNDLE] [--split test] [--figure FILE]

Grad-CAM of the most probable class on every image of a split that has an outline: localization
with cells at the centers of their receptive fields, and with the cells as equal tiles, enlarged
bilinearly as other packages do. Differences are paired, intervals resample lesions. The figure
needs no data: a bright patch on a dark image, before a network of even weights.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.cache import cached_images
from dermlens.data.images import load_mask
from dermlens.data.manifest import read_manifest
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.layers import find_features
from dermlens.explainers.registration import Drawing, tiles
from dermlens.model.bundle import find_bundle, load_bundle
from dermlens.model.classifier import Architecture, build_classifier
from dermlens.progress import progress
from dermlens.quality import metrics
from dermlens.quality.statistics import cluster_intervals
from dermlens.report.evaluation_report import write_figure
from dermlens.report.html import markdown_table
from dermlens.report.style import INK, WARNING, new_figure, style

KINDS = ("tiles", "receptive_field")
SHOWN = ("pointing_game", "pixel_auc", "relevance_mass", "relevance_rank", "best_iou")
PATCH = (112, 150)
"""Middle of the bright patch of the figure, (row, column)."""


def measured(bundle: Any, data: Path, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return localization by registration, float64 (N, M), and the lesion of each image."""
    table = read_manifest(data)
    images = cached_images(data, table, bundle.input_size)
    rows = np.flatnonzero((table.split == split) & table.mask_path.notna())
    explainers = {kind: GradCAM(bundle.model, registration=kind) for kind in KINDS}
    values: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    with progress("Measuring", len(rows)) as advance:
        for part in np.array_split(rows, max(1, len(rows) // 32)):
            paths = table.mask_path.iloc[part]
            masks = np.stack([load_mask(data / path, bundle.input_size) for path in paths]) > 0
            for kind, explainer in explainers.items():
                maps = explainer.attribute(images[part]).maps
                columns = metrics.measure(SHOWN, None, None, maps, masks=masks)
                values[kind].append(np.stack(list(columns.values()), axis=1))
            advance(len(part))
    return {k: np.concatenate(v) for k, v in values.items()}, table.lesion_id.to_numpy()[rows]


def table_of(values: dict[str, np.ndarray], lesions: np.ndarray) -> pd.DataFrame:
    """Return a row for each metric: both means and the paired difference with its interval."""
    gains = cluster_intervals(values["receptive_field"] - values["tiles"], lesions)
    return pd.DataFrame(
        {
            "metric": [name.replace("_", " ") for name in SHOWN],
            "equal tiles, bilinear": np.nanmean(values["tiles"], axis=0).round(3),
            "receptive fields": np.nanmean(values["receptive_field"], axis=0).round(3),
            "gain": [f"{g.mean:+.3f} [{g.low:+.3f}, {g.high:+.3f}]" for g in gains],
        }
    )


def even(model: Any) -> None:
    """Give every kernel equal positive weights and every normalization none."""
    for layer in model.layers:
        weights = []
        for variable in layer.weights:
            shape, name = tuple(variable.shape), variable.path.split("/")[-1]
            value = np.full(shape, float(name in ("kernel", "gamma", "moving_variance")))
            weights.append(value / np.prod(shape[:-1]) if name == "kernel" else value)
        layer.set_weights(weights)


def figure() -> Any:
    """Draw a bright patch, and where both ways of drawing the same cells put it."""
    size = (192, 256)
    model = build_classifier(Architecture("resnet50", size, classes=("one", "other")))
    even(model)
    features = find_features(model)
    images = np.zeros((2, *size, 3), np.float32)
    row, column = PATCH
    images[1, row - 3 : row + 4, column - 3 : column + 4] = 5_000.0
    dark, lit = np.asarray(features.run(images)[0]).sum(axis=-1)
    with style():
        made = new_figure(10.5, 3.2)
        panels = made.subplots(1, 3)
        panels[0].imshow(np.clip(images[1], 0, 255).astype(np.uint8))
        panels[0].set_title("A bright patch on a dark image")
        titles = ("Cells as equal tiles, enlarged", "Cells where the network looks")
        for axes, kind, title in zip(panels[1:], KINDS, titles, strict=True):
            drawing = Drawing(features, [features.step], kind)
            weights, grid = drawing.weights(size)[0], drawing.grids(size)[0]
            axes.imshow(weights[0] @ np.maximum(lit - dark, 0) @ weights[1].T, cmap="inferno")
            axes.set_title(title)
            tiled = kind == "tiles"
            rows, columns = (
                tiles(a.cells, a.pixels) if tiled else a for a in (grid.rows, grid.columns)
            )
            places = np.meshgrid(columns.centers, rows.centers)
            axes.plot(*places, ".", color="white", markersize=2.5)
        for axes in panels:
            axes.plot(column, row, "+", color=WARNING, markersize=12, markeredgewidth=2)
            axes.set(xticks=[], yticks=[], xlim=(-0.5, 255.5), ylim=(191.5, -0.5))
            axes.spines[:].set(visible=True, color=INK)
        return made


def main() -> None:
    """Print the table as Markdown, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if options.figure is not None:
        write_figure(options.figure, figure())
    if options.data is not None:
        bundle = load_bundle(find_bundle(options.bundle))
        values, lesions = measured(bundle, options.data, options.split)
        print(f"{len(lesions)} images of {len(set(lesions))} lesions")
        print(markdown_table(table_of(values, lesions)))


if __name__ == "__main__":
    main()

"""How should maps of pixels be read? Every ranked metric, for several readings of the same maps.

    python benchmarks/readings.py DATA [--bundle BUNDLE] [--images 14] [--split validation]
        [--out readings]

Integrated Gradients of validation images are measured as they are, by size and by positive part,
each also smoothed, and as means over superpixels; the centered Gaussian stands beside them, and how
far a pixel's color is from the skin's, which asks no network at all. Can be interrupted; the same
command goes on. Prints a table as Markdown.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.manifest import read_manifest, select_split
from dermlens.explainers.baselines import border_color
from dermlens.explainers.integrated_gradients import IntegratedGradients
from dermlens.explainers.superpixels import superpixels
from dermlens.model.bundle import load_bundle
from dermlens.model.bundle_choice import find_bundle
from dermlens.progress import progress
from dermlens.quality.benchmark_measure import Bench
from dermlens.quality.benchmark_plan import BenchmarkPlan, Loaded, load, select_items
from dermlens.quality.benchmark_tables import Store
from dermlens.quality.controls import CONTROLS
from dermlens.quality.metrics import METRICS, metric
from dermlens.quality.readings import SMOOTHING
from dermlens.quality.statistics import cluster_intervals
from dermlens.report.benchmark_report import interval_text
from dermlens.report.html import markdown_table

STEPS, REGIONS = 24, 50
RANKED = [name for name, one in METRICS.items() if one.ranked]


def smoothed(map_: np.ndarray) -> np.ndarray:
    """Return a map (H, W) after a Gaussian, as ``quality.readings`` smooths."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(map_, min(map_.shape) * SMOOTHING, mode="nearest")


def by_region(map_: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean of a map (H, W) over each superpixel of labels (H, W)."""
    sums = np.bincount(labels.ravel(), map_.ravel())
    return (sums / np.bincount(labels.ravel()))[labels]


def positive(map_: np.ndarray) -> np.ndarray:
    """Return what speaks for the class."""
    return np.maximum(map_, 0.0)


READ: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "as it is": lambda m, labels: m,
    "size": lambda m, labels: np.abs(m),
    "positive part": lambda m, labels: positive(m),
    "as it is, smoothed": lambda m, labels: smoothed(m),
    "size, smoothed": lambda m, labels: smoothed(np.abs(m)),
    "positive part, smoothed": lambda m, labels: smoothed(positive(m)),
    "mean of superpixels": by_region,
    "size, mean of superpixels": lambda m, labels: by_region(np.abs(m), labels),
}


def measured(bench: Bench, gradients: IntegratedGradients, loaded: Loaded) -> dict[str, Any]:
    """Return every ranked metric of every reading of one image."""
    case, _ = bench.case(loaded)
    image = loaded.image
    map_ = gradients.attribute(image[None], case.targets).maps[0]
    labels = superpixels(image, REGIONS)
    maps = {name: read(map_, labels) for name, read in READ.items()}
    maps["distance from the skin's color"] = np.abs(image - border_color(image)).sum(axis=-1)
    maps["centered Gaussian"] = CONTROLS["centered_gaussian"][1](image, 0)
    return {
        name: {n: float(METRICS[n].measure(case.with_map(one))[0]) for n in RANKED}
        for name, one in maps.items()
    }


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=int, default=14)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--out", type=Path, default=Path("readings"))
    options = parser.parse_args()
    bundle = load_bundle(find_bundle(options.bundle))
    table = select_split(read_manifest(options.data), options.split)
    items = select_items(table, options.data, bundle.classes, options.images, 0)
    store = Store(options.out / "pieces", {"bundle": bundle.identity, "split": options.split})
    bench = Bench(bundle, BenchmarkPlan(("grad_cam",), n=len(items), controls=False))
    gradients = IntegratedGradients(bundle, n_steps=STEPS, tolerance=None)
    make = partial(measured, bench, gradients)
    with progress("Readings (images)", len(items)) as advance:
        for item in items:
            if not store.has("images", item.image_id):
                store.write("images", item.image_id, make(load(item, bundle.input_size)))
            advance(1, item.image_id)
    pieces = [store.read("images", item.image_id) for item in items]
    lesions = [item.lesion_id for item in items]
    rows = []
    for name in pieces[0]:
        values = np.array([[one[name][n] for n in RANKED] for one in pieces], np.float64)
        found = cluster_intervals(values, lesions)
        texts = {
            metric(n).title: interval_text(vars(i)) for n, i in zip(RANKED, found, strict=True)
        }
        rows.append({"reading": name, **texts})
    print(f"\n{len(items)} images of {len(set(lesions))} lesions.\n")
    print(markdown_table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()

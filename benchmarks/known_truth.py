"""Does the benchmark find the truth where it is known?

    python benchmarks/known_truth.py DATA --bundle BUNDLE [--images 150] [--masks 250]
        [--out known_truth]

On drawn data every class is decided by one structure, whose outline is kept. That outline is
planted among the methods as an explanation: it must come first, a random map last, and methods must
beat a Gaussian in the middle of the image. Enhanced maps stand beside the plain ones that they are
made from. DATA and BUNDLE come from ``dermlens demo``. Can be
interrupted; the same command goes on.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.manifest import read_manifest, select_split
from dermlens.errors import DataError
from dermlens.explainers.base import Explainer
from dermlens.explainers.registry import SIX
from dermlens.files import read_json
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.model.scorers import choose_scorers
from dermlens.quality.benchmark import run_benchmark
from dermlens.quality.benchmark_plan import BenchmarkPlan, load, select_items
from dermlens.quality.controls import ModelFreeMap, title
from dermlens.quality.metrics import STRUCTURE_PREFIX, metric
from dermlens.report.benchmark_report import (
    describe,
    interval_text,
    ranking_table,
    write_benchmark_report,
)
from dermlens.report.html import markdown_table

RIVAL = "centered_gaussian"
PLAIN = {
    "fused_cam": "grad_cam",
    "gated_cam": "grad_cam",
    "finer_cam": "grad_cam",
    "multi_occlusion": "occlusion",
    "region_gradients": "integrated_gradients",
    "consensus": "grad_cam",
}
"""Enhanced maps, and what each is compared with."""


class Oracle(ModelFreeMap):
    """The outline of the structure that decides the class, looked up by the image's pixels.

    Args:
        bundle: Trained on the drawn data.
        structures: bool (H, W) by the bytes of the float32 image.
    """

    name = "oracle"

    def __init__(self, bundle: Bundle, structures: dict[bytes, np.ndarray]) -> None:
        super().__init__(bundle)
        self.structures = structures

    def draw(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return 1 on the structure, 0 elsewhere."""
        return self.structures[image.tobytes()].astype(np.float32)


def planted(bundle: Bundle, data: Path, plan: BenchmarkPlan) -> dict[str, Explainer]:
    """Return the oracle, which knows the images that the plan measures.

    Raises:
        DataError: If an image has no known structure.
    """
    table = select_split(read_manifest(data), plan.split)
    items = select_items(table, data, bundle.classes, plan.n, plan.seed)
    structures = {}
    for item in items:
        loaded = load(item, bundle.input_size)
        if loaded.structure is None:
            raise DataError(
                f"{data} holds no structure of {item.image_id}. Give the data of dermlens demo."
            )
        structures[loaded.image.tobytes()] = loaded.structure
    return {Oracle.name: Oracle(bundle, structures)}


def structure_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Return every metric on the structures with its interval: a row per method, best first."""
    names = [name for name in summary["metrics"] if name.startswith(STRUCTURE_PREFIX)]
    order = [row["method"] for row in summary["ranking"]["localization"]]
    return pd.DataFrame(
        {
            "method": title(method),
            **{metric(n).title: interval_text(summary["metrics"][n][method]) for n in names},
        }
        for method in order
    )


def against_rival(summary: dict[str, Any]) -> pd.DataFrame:
    """Return, for each method, on which structure metrics it differs from the Gaussian (Holm)."""
    rows: dict[str, dict[str, str]] = {}
    for name, found in summary["comparisons"].items():
        if not name.startswith(STRUCTURE_PREFIX) or not metric(name).ranked:
            continue
        for one in found:
            if one["second"] != RIVAL:
                continue
            verdict = {None: "no difference", RIVAL: "worse"}.get(one["better"], "better")
            rows.setdefault(one["first"], {})[metric(name).title] = verdict
    return pd.DataFrame({"method": title(m), **verdicts} for m, verdicts in rows.items())


def gains(summary: dict[str, Any]) -> pd.DataFrame:
    """Return how much better enhanced maps are than plain ones on the structures, with intervals.

    Positive is better; * marks differences with p < 0.05 after Holm's correction.
    """
    rows: dict[str, dict[str, str]] = {}
    for name, found in summary["comparisons"].items():
        if not name.startswith(STRUCTURE_PREFIX) or not metric(name).ranked:
            continue
        for one in found:
            pair = (one["first"], one["second"])
            for enhanced, plain in (pair, pair[::-1]):
                if PLAIN.get(enhanced) != plain:
                    continue
                sign = metric(name).sign * (1 if enhanced == one["first"] else -1)
                low, high = sorted((sign * one["low"], sign * one["high"]))
                text = f"{sign * one['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
                row = f"{title(enhanced)} against {title(plain)}"
                mark = "" if one["better"] is None else "*"
                rows.setdefault(row, {})[metric(name).title] = text + mark
    return pd.DataFrame({"maps": pair, **columns} for pair, columns in rows.items())


def main() -> None:
    """Run the benchmark and print its tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--masks", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path("known_truth"))
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    methods = (*SIX, *PLAIN)
    plan = BenchmarkPlan(
        methods, n=options.images, n_samples=options.masks, robustness=0, randomization=0
    )
    run_benchmark(
        bundle,
        options.data,
        options.out,
        plan,
        scorers=choose_scorers(bundle, plan.methods, images=plan.n),
        extra=planted(bundle, options.data, plan),
        about={"synthetic_model": bundle.synthetic},
    )
    write_benchmark_report(options.out)
    summary = read_json(options.out / "summary.json")
    shown = (ranking_table, structure_table, against_rival, gains)
    for table in shown:
        print(f"\n{markdown_table(table(summary))}")
    print(f"\n{describe(summary)}")


if __name__ == "__main__":
    main()

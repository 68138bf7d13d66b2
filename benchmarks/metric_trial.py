"""Which metrics deserve a place in the ranking? The trial that docs/metric_trial.md tells of.

    python benchmarks/metric_trial.py DATA --benchmark BENCHMARK --truth KNOWN_TRUTH
        [--bundle BUNDLE] [--images 12] [--split validation] [--out metric_trial]

Maps of real images are changed, harmlessly and to destruction, and measured again. BENCHMARK, a
folder that ``dermlens benchmark`` wrote, says which metrics order methods alike, KNOWN_TRUTH, one
that ``benchmarks/known_truth.py`` wrote, whether metrics prefer a planted truth. Can be
interrupted; the same command goes on. Prints tables as Markdown and writes a figure.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.manifest import read_manifest, select_split
from dermlens.explainers.integrated_gradients import IntegratedGradients
from dermlens.files import read_json
from dermlens.lesion.consistency import CONSISTENCY
from dermlens.model.bundle import load_bundle
from dermlens.model.bundle_choice import find_bundle
from dermlens.model.scorers import choose_scorers
from dermlens.progress import progress
from dermlens.quality.benchmark_measure import Bench
from dermlens.quality.benchmark_plan import BenchmarkPlan, Item, load, select_items
from dermlens.quality.benchmark_tables import Store
from dermlens.quality.controls import title
from dermlens.quality.metric_trial import (
    DESTROYED,
    OTHER_CLASS,
    Verdict,
    correlations,
    shared_votes,
    truth_preferred,
    try_image,
    verdicts,
)
from dermlens.quality.metrics import METRICS, STRUCTURE_PREFIX, metric
from dermlens.quality.ranking import Values, mean_ranks, ranked_metrics, ranking, stability
from dermlens.report.html import markdown_table

METHODS = ("grad_cam", "integrated_gradients", "occlusion")
STEPS = 24
"""Of Integrated Gradients."""
KNOWN = {**METRICS, **CONSISTENCY}


def run_trial(options: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """Try every image that is not done yet; return trials and lesions."""
    bundle = load_bundle(find_bundle(options.bundle))
    table = select_split(read_manifest(options.data), options.split)
    items = select_items(table, options.data, bundle.classes, options.images, 0)
    store = Store(options.out / "pieces", {"bundle": bundle.identity, "split": options.split})
    missing = [item for item in items if not store.has("trial", item.image_id)]
    if missing:
        _make(bundle, missing, store)
    trials = [store.read("trial", item.image_id) for item in items]
    return trials, [item.lesion_id for item in items]


def _make(bundle: Any, items: Sequence[Item], store: Store) -> None:
    plan = BenchmarkPlan(METHODS, n=len(items), robustness=0, randomization=0)
    bench = Bench(bundle, plan, scorers=choose_scorers(bundle, METHODS, images=len(items)))
    # The metrics are on trial, not the map's last digits.
    short = IntegratedGradients(bundle, n_steps=STEPS, tolerance=None)
    bench.explainers["integrated_gradients"] = short
    with progress("Trial (images)", len(items)) as advance:
        for item in items:
            store.write("trial", item.image_id, try_image(bench, load(item, bundle.input_size)))
            advance(1, item.image_id)


def values_of(folder: Path) -> tuple[Values, list[str]]:
    """Return what a benchmark measured, by metric, and its methods and controls."""
    summary = read_json(folder / "summary.json")
    names = [*summary["methods"], *summary["controls"]]
    rows = pd.read_csv(folder / "measurements.csv")
    lesions = pd.read_csv(folder / "images.csv").set_index("image_id").lesion_id
    found = {}
    for name in rows.metric.unique():
        if name.removeprefix(STRUCTURE_PREFIX) in METRICS:
            wide = rows[rows.metric == name].pivot(
                index="image_id", columns="method", values="value"
            )
            found[name] = (wide.reindex(columns=names).to_numpy(), lesions[wide.index].to_numpy())
    return found, names


def verdict_table(found: Mapping[str, Verdict]) -> pd.DataFrame:
    """Return a row for each metric: what moves it, what it notices, and whether it is kept."""
    return pd.DataFrame(
        {
            "metric": metric(name).title,
            "harmless": one.moved,
            **{c: _share(one.reacts[c]) for c in (*DESTROYED, OTHER_CLASS)},
            "truth against controls": one.preference,
            "kept": "yes" if one.kept else "no",
        }
        for name, one in found.items()
    )


def _share(one: Any) -> str:
    return f"{one.mean:.2f} ({one.low:.2f} to {one.high:.2f})"


def correlation_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the correlations with titles, one column more for the names."""
    titles = {name: metric(str(name)).title for name in table}
    return table.rename(index=titles, columns=titles).round(2).reset_index(names="metric")


def rankings_table(values: Values, names: Sequence[str], rejected: Sequence[str]) -> pd.DataFrame:
    """Return overall mean ranks with intervals: all metrics, and without those rejected."""
    left = {name: one for name, one in values.items() if name not in rejected}
    kept = {row["method"]: row for row in ranking(left, names)["overall"]}
    return pd.DataFrame(
        {
            "method": title(row["method"]),
            "control": "yes" if row["control"] else "",
            "all metrics": _rank(row),
            "without the rejected": _rank(kept[row["method"]]),
        }
        for row in ranking(values, names)["overall"]
    )


def _rank(row: Mapping[str, Any]) -> str:
    return f"{row['mean_rank']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def figure(found: Mapping[str, Verdict], values: Values, names: Sequence[str]) -> Any:
    """Draw what metrics notice, and where each puts methods."""
    from dermlens.report.style import ACCENT, MUTED, new_axes, style

    with style():
        drawn, panels = new_axes(11, 5, 1, 2)
        left, right = np.ravel(panels)
        order = list(found)[::-1]
        for place, name in enumerate(order):
            one = found[name]
            color = ACCENT if one.kept else "#D55E00"
            left.plot([0.5, one.reaction], [place, place], color=color, linewidth=2)
            left.plot(one.reaction, place, "o", color=color)
            left.plot(one.preference, place, "|", color="black", markersize=12)
        left.set_yticks(range(len(order)), [metric(name).title for name in order])
        left.set_xlim(0.45, 1.02)
        left.axvline(0.75, color=MUTED, linestyle=":")
        left.set_xlabel("how often a destroyed map is worse (dot), the truth better (bar)")
        ranks = mean_ranks(values, ranked_metrics(values, KNOWN), KNOWN)
        table = np.stack([ranks[name][0] for name in order if name in ranks])
        image = right.imshow(table, cmap="cividis_r", aspect="auto", origin="lower")
        right.set_yticks(range(len(table)), [""] * len(table))
        short = [title(name).partition(" (")[0] for name in names]
        right.set_xticks(range(len(names)), short, rotation=60, ha="right")
        drawn.colorbar(image, ax=right, label="mean rank, 1 is best")
    return drawn


def main() -> None:
    """Run the trial and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--benchmark", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--out", type=Path, default=Path("metric_trial"))
    options = parser.parse_args()
    trials, lesions = run_trial(options)
    measurements = pd.read_csv(options.truth / "measurements.csv")
    drawn = pd.read_csv(options.truth / "images.csv").set_index("image_id").lesion_id.to_dict()
    found = verdicts(trials, lesions, truth_preferred(measurements, drawn, "oracle"))
    values, names = values_of(options.benchmark)
    print(f"\n{len(trials)} images of {len(set(lesions))} lesions.\n")
    print(markdown_table(verdict_table(found)))
    table = correlations(values, KNOWN)
    print(f"\n{markdown_table(correlation_table(table))}")
    groups = [[metric(name).title for name in group] for group in shared_votes(table, known=KNOWN)]
    print("\nVotes: " + "; ".join(" + ".join(group) for group in groups) + ".\n")
    rejected = [name for name, one in found.items() if not one.kept]
    print(markdown_table(rankings_table(values, names, rejected)))
    rows = [
        {"without": metric(n).title, "correlation": one["tau"],
         "first three": ", ".join(title(m) for m in one["order"][:3])}
        for n, one in stability(values, names).items()
    ]  # fmt: skip
    print(f"\n{markdown_table(pd.DataFrame(rows))}")
    figure(found, values, names).savefig(options.out / "metric_trial.png", dpi=110)


if __name__ == "__main__":
    main()

"""How often do changes of the picture change the answer, and how small are the regions?

    python benchmarks/changes.py DATA [--bundle BUNDLE] [--images 100] [--out changes]

DATA is a prepared and split data set. The greedy search is measured beside the same search that
tries pieces in the order of Grad-CAM alone, and in random orders as long as the same number of
passes lasts. Can be interrupted; the same command goes on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench_tools import markdown

from dermlens.data.manifest import read_manifest, select_split
from dermlens.explainers.base import image_generator
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.superpixels import superpixels
from dermlens.files import read_json, write_csv, write_json, written_beside
from dermlens.lesion.counterfactuals import (
    COLOR,
    ERASED,
    KINDS,
    NECESSARY,
    PIECES,
    SUFFICIENT,
    ChangeFinder,
    Changes,
)
from dermlens.lesion.criteria_reference import read_reference
from dermlens.model.bundle import find_bundle, load_bundle
from dermlens.quality.benchmark_plan import Item, Loaded, load, select_items
from dermlens.quality.statistics import cluster_intervals, holm, paired_tests
from dermlens.report.evidence_files import change_finder, changes_numbers

GREEDY, CAM, RANDOM = "greedy", "grad_cam", "random"
RESTARTS = 12


def orders_of(image: np.ndarray, labels: np.ndarray, cam: np.ndarray) -> dict[str, Any]:
    """Return maps by strategy; None for the greedy search."""
    generator = image_generator(0, image)
    count = int(labels.max()) + 1
    drawn = [generator.permutation(count)[labels].astype(float) for _ in range(RESTARTS)]
    return {GREEDY: None, CAM: [cam], RANDOM: drawn}


def measure(
    finder: ChangeFinder, cam: GradCAM, loaded: Loaded, known: dict[str, Any]
) -> dict[str, Any]:
    """Return what each strategy finds in one image; strategies that are known are kept."""
    image, outline = loaded.image, loaded.mask if loaded.mask.any() else None
    heat = cam.attribute(image[None]).maps[0]
    labels = superpixels(image, PIECES)
    found = dict(known)
    for name, maps in orders_of(image, labels, heat).items():
        if name in known:
            continue
        kinds = KINDS if name == GREEDY else (NECESSARY, SUFFICIENT)
        changes = finder.changes(image, outline, kinds=kinds, orders=maps)
        found[name] = numbers(finder, changes)
    item = loaded.item
    about = {"image_id": item.image_id, "lesion_id": item.lesion_id, "dx": item.dx}
    return {**about, "outline_area": float(loaded.mask.mean()), "strategies": found}


def numbers(finder: ChangeFinder, changes: Changes) -> dict[str, Any]:
    """Return what is kept of the changes of one image."""
    content = changes_numbers(finder.classifier, changes)
    del content["model"], content["note"]
    return content


def rows_of(stored: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return a row for each image, strategy and kind of change."""
    rows = []
    for one in stored:
        for strategy, found in one["strategies"].items():
            plain = max(found["everything_erased"], key=found["everything_erased"].__getitem__)
            for kind, change in found["changes"].items():
                rows.append({
                    "image_id": one["image_id"], "lesion_id": one["lesion_id"], "dx": one["dx"],
                    "strategy": strategy, "kind": kind, "answer": found["answer"],
                    "total_passes": found["passes"], "outline_area": one["outline_area"],
                    **{k: change[k] for k in ("found", "changed", "area", "inside_outline",
                                              "passes", "strength", "irreducible")},
                    # Plain skin alone has this answer: no region is needed to keep it.
                    "trivial": kind == SUFFICIENT and plain == found["answer"],
                })  # fmt: skip
    return pd.DataFrame(rows)


def _interval(values: pd.Series, lesions: pd.Series) -> dict[str, float]:
    one = cluster_intervals(values.to_numpy(np.float64)[:, None], lesions)[0]
    return {"mean": one.mean, "low": one.low, "high": one.high, "images": one.count}


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Return validity, sizes and passes with intervals over lesions, and paired differences."""
    found: dict[str, Any] = {"images": int(table.image_id.nunique())}
    greedy = table[table.strategy == GREEDY]
    found["validity"] = {
        kind: _interval(of.changed if kind != SUFFICIENT else of.found, of.lesion_id)
        for kind in KINDS
        if len(of := greedy[(greedy.kind == kind) & ~greedy.trivial])
    }
    found["plain_skin_has_the_answer"] = _interval(
        greedy[greedy.kind == SUFFICIENT].trivial, greedy[greedy.kind == SUFFICIENT].lesion_id
    )
    found["total_passes"] = {
        name: {"mean": float(of.total_passes.mean()), "most": int(of.total_passes.max())}
        for name, of in table.groupby("strategy")
    }
    erased = greedy[greedy.kind == ERASED]
    found["erased_by_answer"] = erased.groupby("answer").changed.agg(["mean", "size"]).to_dict()
    colored = greedy[(greedy.kind == COLOR) & greedy.changed]
    found["color_strength"] = colored.strength.value_counts(normalize=True).to_dict()
    for kind in (NECESSARY, SUFFICIENT):
        found[kind] = regions(table[(table.kind == kind) & ~table.trivial])
    return found


def regions(table: pd.DataFrame) -> dict[str, Any]:
    """Return sizes by strategy; a region that was not found counts as the whole picture."""
    sizes = {}
    result: dict[str, Any] = {"strategies": {}}
    for name, of in table.groupby("strategy"):
        of = of.set_index("image_id")
        area = of.area.where(of.found, 1.0)
        sizes[name] = area
        result["strategies"][name] = {
            "found": _interval(of.found, of.lesion_id),
            "area": _interval(area, of.lesion_id),
            "median_area": float(area.median()),
            "area_to_outline": _interval(area / of.outline_area, of.lesion_id),
            "inside_outline": _interval(of.inside_outline, of.lesion_id),
            "passes": _interval(of.passes, of.lesion_id),
            "irreducible": _interval(of.irreducible, of.lesion_id),
        }
    lesions = table.drop_duplicates("image_id").set_index("image_id").lesion_id
    others = [name for name in (CAM, RANDOM) if name in sizes]
    gaps = np.column_stack([(sizes[GREEDY] - sizes[name])[lesions.index] for name in others])
    tests = holm(paired_tests(gaps, lesions.to_numpy()))
    result["greedy_minus"] = {
        name: {
            **_interval(pd.Series(gaps[:, k]), lesions),
            "p_holm": float(tests[k]),
            "smaller": float((gaps[:, k] < -1e-9).mean()),
            "same": float((np.abs(gaps[:, k]) <= 1e-9).mean()),
        }
        for k, name in enumerate(others)
    }
    return result


_NAMES = {GREEDY: "dermlens", CAM: "order of Grad-CAM alone", RANDOM: "random orders"}
_CHANGED = {
    ERASED: "lesion erased: another answer",
    COLOR: "colors of the runner-up: another answer",
    NECESSARY: "a necessary region was found",
    SUFFICIENT: "a sufficient region was found, where plain skin has another answer",
}


def told(one: dict[str, float], percent: bool = True) -> str:
    """Write a mean with its interval.

    Example:
        >>> told({"mean": 0.5, "low": 0.4, "high": 0.61})
        '50.0 % (40.0 to 61.0)'
    """
    scale, unit = (100.0, " %") if percent else (1.0, "")
    return (
        f"{scale * one['mean']:.1f}{unit} ({scale * one['low']:.1f} to {scale * one['high']:.1f})"
    )


def tables(result: dict[str, Any]) -> str:
    """Return what the page on changes shows, as Markdown."""
    validity = [
        {"change": _CHANGED[kind], "share of images": told(one), "images": one["images"]}
        for kind, one in result["validity"].items()
    ]
    parts = [markdown(pd.DataFrame(validity))]
    for kind in (NECESSARY, SUFFICIENT):
        rows = []
        for name, label in _NAMES.items():
            one = result[kind]["strategies"][name]
            row = {
                f"{kind} region": label,
                "found": told(one["found"]),
                "share of the picture": told(one["area"]),
                "median": f"{100 * one['median_area']:.1f} %",
                "of it inside the outline": told(one["inside_outline"]),
                "irreducible": told(one["irreducible"]),
                "passes": told(one["passes"], percent=False),
            }
            gap = result[kind]["greedy_minus"].get(name)
            row["dermlens less this"] = "" if gap is None else told(gap)
            row["p"] = "" if gap is None else f"{gap['p_holm']:.4f}"
            row["dermlens smaller / same"] = (
                "" if gap is None else f"{gap['smaller']:.0%} / {gap['same']:.0%}"
            )
            rows.append(row)
        parts.append(markdown(pd.DataFrame(rows)))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="prepared and split data set")
    parser.add_argument("--bundle", type=Path, help="default: the model that comes with dermlens")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, default=Path("changes"), help="folder to write")
    parser.add_argument("--reference", type=Path, help="table of benchmarks/criteria.py")
    given = parser.parse_args()
    classifier = load_bundle(find_bundle(given.bundle))
    finder = change_finder(classifier, read_reference(given.reference), images=given.images)
    table = select_split(read_manifest(given.data), given.split)
    items: list[Item] = select_items(table, given.data, classifier.classes, given.images, 0)
    cam, stored = GradCAM(classifier), []
    for number, item in enumerate(items):
        path = given.out / "images" / f"{item.image_id}.json"
        known = read_json(path)["strategies"] if path.is_file() else {}
        if set(known) != {GREEDY, CAM, RANDOM}:
            write_json(path, measure(finder, cam, load(item, classifier.input_size), known))
            print(f"{number + 1} of {len(items)}: {item.image_id}", flush=True)
        stored.append(read_json(path))
    rows = rows_of(stored)
    write_csv(given.out / "changes.csv", rows)
    result = summary(rows)
    write_json(given.out / "summary.json", result)
    with written_beside(given.out / "tables.md") as building:
        building.write_text(tables(result))
    for kind in (NECESSARY, SUFFICIENT):
        print(kind, pd.DataFrame(result[kind]["strategies"]).to_string(), sep="\n")
        print(pd.DataFrame(result[kind]["greedy_minus"]).round(4).to_string())


if __name__ == "__main__":
    main()

"""``parity.json`` as a Markdown table, for documents."""

from typing import Any

import pandas as pd

from dermlens.report.benchmark_report import markdown_table

TITLES = {
    "saved_model": "SavedModel",
    "float32": "LiteRT float32",
    "float16": "LiteRT float16",
    "dynamic": "LiteRT int8, dynamic ranges",
    "int8": "LiteRT int8, fixed ranges",
}


def parity_markdown(report: dict[str, Any]) -> str:
    """Return what was measured of each artifact as Markdown."""
    rows = [_row(name, found) for name, found in report["artifacts"].items()]
    known = report["balanced_accuracy"]
    accuracy = "" if known is None else f" Balanced accuracy of the Keras model: {known:.4f}."
    return (
        f"Compared on {report['compared_on']}.{accuracy}\n\n{markdown_table(pd.DataFrame(rows))}\n"
    )


def _row(name: str, found: dict[str, Any]) -> dict[str, str]:
    change = found["balanced_accuracy_change"]
    return {
        "artifact": TITLES[name],
        "size": f"{found['bytes'] / 1e6:.1f} MB",
        "probabilities, max (mean) difference": f"{found['max_probability_difference']:.1e} "
        f"({found['mean_probability_difference']:.1e})",
        "same top class": f"{100 * found['top1_agreement']:.1f} %",
        "same prediction set": _share(found["same_prediction_sets"]),
        "same flags": _share(found["same_flags"]),
        "balanced accuracy": "–" if change is None else f"{change:+.4f}",
        "Grad-CAM correlation, mean (least)": "–"
        if found["mean_map_correlation"] is None
        else f"{found['mean_map_correlation']:.6f} ({found['min_map_correlation']:.4f})",
    }


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"

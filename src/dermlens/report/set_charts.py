"""Figures of prediction sets and of the balanced rule, from ``metrics.json`` alone."""

from typing import TYPE_CHECKING, Any

import numpy as np

from dermlens.report.style import ACCENT, INK, MUTED, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def prediction_sets(result: dict[str, Any]) -> "Figure":
    """Draw the coverage of the sets per class, and coverage and size over the level.

    Args:
        result: ``metrics.json["prediction_sets"]``.
    """
    codes = [code for code, block in result["per_class"].items() if block["n_images"]]
    blocks = [result["per_class"][code] for code in codes]
    values = np.array([block["coverage"] for block in blocks], float)
    low, high = np.array([block["interval"] for block in blocks], float).T
    with style():
        figure = new_figure(10.5, 3.8)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        places = np.arange(len(codes))
        error = np.nan_to_num(np.clip(np.stack([values - low, high - values]), 0, None))
        left.bar(places, values, 0.6, color=ACCENT, alpha=0.85)
        left.errorbar(places, values, error, fmt="none", color=INK, capsize=2)
        left.axhline(result["level"], color=INK, linewidth=1, linestyle="--")
        names = [f"{c}\nn = {b['n_images']}" for c, b in zip(codes, blocks, strict=True)]
        left.set_xticks(places, names)
        left.set(
            title=f"Share of images whose {100 * result['level']:g} % set holds the true class",
            ylabel="coverage",
            ylim=(0, 1.05),
        )
        levels = [row["level"] for row in result["levels"]]
        right.plot(levels, [row["mean_size"] for row in result["levels"]], "o-", color=ACCENT)
        right.set(title="Classes per set", xlabel="level", ylabel="mean size")
        right.set_ylim(bottom=0)
        return figure


def balanced_rule(result: dict[str, Any]) -> "Figure":
    """Draw the balanced accuracy over the strength of the balanced rule, with its interval.

    Args:
        result: Content of ``metrics.json``.
    """
    curve = result["balanced_rule_curve"]
    taus = [point["tau"] for point in curve]
    with style():
        figure = new_figure(6.5, 3.8)
        axes = figure.subplots()
        axes.fill_between(
            taus,
            [point["low"] for point in curve],
            [point["high"] for point in curve],
            color=MUTED,
            alpha=0.25,
            label="95 % interval over lesions",
        )
        axes.plot(taus, [point["balanced_accuracy"] for point in curve], color=ACCENT)
        axes.axvline(result["tau"], color=INK, linewidth=1, linestyle="--", label="stored rule")
        axes.set(
            title="Balanced rule: 0 is the most probable class",
            xlabel="strength of the prior correction",
            ylabel="balanced accuracy",
        )
        axes.legend(loc="lower right")
        return figure

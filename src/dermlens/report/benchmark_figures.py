"""Figures of a benchmark of explanations; each returns a matplotlib Figure.

All are drawn from the content of ``summary.json`` alone.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.lesion.consistency import CONSISTENCY
from dermlens.quality.controls import is_control, title
from dermlens.quality.metric import Metric
from dermlens.quality.metrics import METRICS, STRUCTURE_PREFIX
from dermlens.quality.metrics import metric as known_metric
from dermlens.report.style import ACCENT, INK, MUTED, WARNING, new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_LEAST_COST = 0.1
_LETTER_DECADES = 0.055
"""How much of the axis of cost a letter takes."""
_LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def metric(name: str) -> Metric:
    """Return what a metric of a benchmark declares about itself."""
    return known_metric(name, {**METRICS, **CONSISTENCY})


def methods_of(summary: dict[str, Any]) -> list[str]:
    """Return methods, then controls, in the order of the tables."""
    return [*summary["methods"], *summary["controls"]]


def color_of(name: str) -> str:
    """Return blue for methods and gray for controls."""
    return MUTED if is_control(name) else ACCENT


@style()
def quality_versus_cost(summary: dict[str, Any]) -> "Figure":
    """Draw the overall mean rank against what a map costs; up and left is better.

    Bars are 95 % intervals over lesions. Methods that no other method beats in both are joined by
    a line.
    """
    rows = {row["method"]: row for row in summary["ranking"].get("overall", [])}
    ranks = {name: row["mean_rank"] for name, row in rows.items()}
    if not ranks:
        raise UsageError("The benchmark ranks nothing: no metric has a value for every method.")
    figure, axes = new_axes(9, 4.8)
    # A backward pass counts twice.
    costs = {n: c["forward"] + 2 * c["backward"] for n, c in summary["cost"]["per_image"].items()}
    places = {n: (max(float(costs[n]), _LEAST_COST), rank) for n, rank in ranks.items()}
    front, best = [], np.inf
    for place in sorted(p for name, p in places.items() if not is_control(name)):
        if place[1] < best:
            front.append(place)
            best = place[1]
    if front:
        axes.plot(*zip(*front, strict=True), color=ACCENT, alpha=0.25, linewidth=5, zorder=1)
    for name, place in places.items():
        low, high = rows[name].get("low"), rows[name].get("high")
        if low is not None and high is not None:
            axes.plot([place[0]] * 2, [low, high], color=color_of(name), linewidth=1.2, zorder=1)
        axes.plot(*place, "s" if is_control(name) else "o", color=color_of(name), zorder=2)
    _label_points(axes, places)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.margins(x=0.22, y=0.08)
    axes.set(
        title="Quality against cost",
        xlabel="passes through the network per image (a backward pass counts twice; none is "
        "drawn at 0.1)",
        ylabel="mean rank, faithfulness and localization (1 is best)",
    )
    return figure


def _label_points(axes: "Axes", places: dict[str, tuple[float, float]]) -> None:
    """Write names beside their points, moved apart where they would lie on each other."""
    span = max(p[1] for p in places.values()) - min(p[1] for p in places.values())
    least = max(span, 1e-6) / 16
    written: list[tuple[float, float, float]] = []
    for name, (cost, rank) in sorted(places.items(), key=lambda item: item[1][1]):
        start, height = np.log10(cost), rank
        end = start + _LETTER_DECADES * (len(title(name)) + 2)
        for low, high, other in sorted(written, key=lambda one: one[2]):
            if low < end and start < high and abs(height - other) < least:
                height = other + least
        written.append((start, end, height))
        axes.annotate(
            title(name),
            (cost, height),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=INK if not is_control(name) else MUTED,
        )


def family_metrics(summary: dict[str, Any], family: str) -> list[str]:
    """Return the measured metrics of a family, lesion masks before structure masks."""
    found = [name for name in summary["metrics"] if metric(name).family == family]
    return sorted(found, key=lambda name: name.startswith(STRUCTURE_PREFIX))


@style()
def metric_intervals(summary: dict[str, Any], family: str) -> "Figure":
    """Draw mean and 95 % interval of every method, a panel for each metric of a family."""
    names = family_metrics(summary, family)
    if not names:
        raise UsageError(f"No metric of the family {family!r} was measured.")
    order = methods_of(summary)
    rows = -(-len(names) // _COLUMNS)
    columns = min(len(names), _COLUMNS)
    width, height = 2.2 + 3.3 * columns, rows * (0.9 + 0.22 * len(order))
    figure, grid = new_axes(width, height, rows, columns, squeeze=False, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        _intervals(axes, summary["metrics"][name], order)
        about = metric(name)
        axes.set_title(about.title, fontsize=10)
        axes.set_xlabel(f"{about.direction} is better", fontsize=8.5)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    grid[0, 0].invert_yaxis()
    return figure


def _intervals(axes: "Axes", values: dict[str, Any], order: list[str]) -> None:
    for place, name in enumerate(order):
        _interval(axes, place, values.get(name), color_of(name), "s" if is_control(name) else "o")
    axes.set_yticks(range(len(order)), [title(name) for name in order], fontsize=8.5)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.6)


def _interval(
    axes: "Axes", place: int, one: dict[str, Any] | None, color: str, marker: str = "o"
) -> None:
    """Draw a mean with its interval, as far as they are known."""
    if one is None or one["mean"] is None or not np.isfinite(one["mean"]):
        return
    low, high = (one["mean"] if one[k] is None else one[k] for k in ("low", "high"))
    axes.plot([low, high], [place, place], color=color, linewidth=2.2)
    axes.plot(one["mean"], place, marker, color=color)


@style()
def randomization_curves(summary: dict[str, Any]) -> "Figure":
    """Draw how similarity falls while the network is destroyed, a panel for each order."""
    orders = summary["randomization"]
    if not orders:
        raise UsageError("Parameter randomization was not measured.")
    count = len(orders)
    figure, (panels,) = new_axes(5.2 * count, 3.8, 1, count, squeeze=False, sharey=True)
    for axes, (order, content) in zip(panels, orders.items(), strict=True):
        stages = ["intact", *content["stages"]]
        shown = [n for n in content["methods"] if not is_control(n)]
        for number, name in enumerate(shown):
            values = [1.0, *content["methods"][name]["spearman"]]
            style_ = "-" if number < len(_LINE_COLORS) else "--"
            color = _LINE_COLORS[number % len(_LINE_COLORS)]
            axes.plot(values, style_, marker=".", color=color, label=title(name))
        axes.set_xticks(range(len(stages)), stages, rotation=35, ha="right", fontsize=8.5)
        axes.axhline(0, color=MUTED, linestyle=":", linewidth=1)
        axes.set_title(f"{order.capitalize()} randomization")
    panels[0].set_ylabel("rank correlation with the intact map")
    panels[-1].legend(fontsize=8)
    return figure


@style()
def shortcut_chart(summary: dict[str, Any]) -> "Figure":
    """Draw flips and change of the watched class's probability for each probe, with intervals."""
    probes, watched = summary["shortcuts"], summary.get("watched")
    if not probes:
        raise UsageError("The shortcut probe was not run.")
    labels = {"flipped": "share of decisions that change"}
    if watched is None:
        labels["change_of_target"] = "change of p(predicted)"
    else:
        labels["change_of_watched"] = f"change of p({watched})"
    figure, panels = new_axes(9.5, 0.9 + 0.36 * len(probes), 1, 2, sharey=True)
    for axes, (column, label) in zip(panels, labels.items(), strict=True):
        for place, found in enumerate(probes.values()):
            _interval(axes, place, found[column], WARNING)
        axes.set_xlabel(label)
        axes.axvline(0, color=MUTED, linewidth=1)
    panels[0].set_yticks(range(len(probes)), [name.replace("_", " ") for name in probes])
    panels[0].invert_yaxis()
    return figure

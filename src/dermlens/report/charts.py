"""Figures about training and classification; each returns a matplotlib Figure."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermlens.labels import HAM10000, chosen
from dermlens.model import metrics
from dermlens.model.calibration import Link
from dermlens.model.calibration import probabilities as of_logits
from dermlens.report.facts import NOT_CALIBRATED
from dermlens.report.style import ACCENT, INK, MUTED, WARNING, new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@style()
def training_curves(history: pd.DataFrame, best_epoch: int | None = None) -> "Figure":
    """Draw loss, accuracy and balanced accuracy over epochs, and mark the kept epoch."""
    figure, (left, right) = new_axes(10, 3.4, 1, 2)
    epochs = np.arange(1, len(history) + 1)
    left.plot(epochs, history.train_loss, color=MUTED, label="training (augmented)")
    left.plot(epochs, history.validation_loss, color=ACCENT, label="validation")
    left.set(title="Loss", xlabel="epoch", ylabel="mean loss", ylim=(0, None))
    left.legend()
    lines = (
        ("validation_balanced_accuracy", ACCENT, "balanced accuracy"),
        ("validation_accuracy", INK, "accuracy"),
        ("validation_macro_auc", "#009E73", "macro AUC"),
    )
    for column, color, label in lines:
        right.plot(epochs, history[column], color=color, label=label)
    fine = np.flatnonzero((history.phase == "finetuning").to_numpy())
    # Epochs at a smaller size do not compete, so the kept one need not be the highest point.
    for kept in fine[history.epoch.to_numpy()[fine] == best_epoch][:1]:
        place = (epochs[kept], history.validation_balanced_accuracy.to_numpy()[kept])
        right.plot(*place, "o", color=ACCENT)
        shown: Any = {"textcoords": "offset points", "ha": "center", "color": ACCENT}
        right.annotate(f"{place[1]:.3f}", place, (0, 7), **shown)
    if 0 < len(fine) < len(history):
        for axes in (left, right):
            axes.axvline(epochs[fine[0]] - 0.5, color=MUTED, linestyle=":")
            where: Any = {"xycoords": ("data", "axes fraction"), "color": MUTED, "va": "top"}
            axes.annotate("fine-tuning", (epochs[fine[0]] - 0.4, 1), **where)
    right.set(title="Validation", xlabel="epoch", ylabel="share", ylim=(0, 1.02))
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _codes(table: pd.DataFrame) -> list[str]:
    """Return the classes of a predictions table, in the order of the logits."""
    prefix = "probability_"
    return [str(c).removeprefix(prefix) for c in table.columns if str(c).startswith(prefix)]


def _columns(table: pd.DataFrame, prefix: str) -> np.ndarray:
    return table[[f"{prefix}_{code}" for code in _codes(table)]].to_numpy(np.float64)


def _labels(table: pd.DataFrame, column: str = "dx") -> np.ndarray:
    return np.array(list(map(_codes(table).index, table[column])))


@style()
def reliability_diagram(table: pd.DataFrame) -> "Figure":
    """Draw accuracy against confidence, before and after temperature, over a histogram."""
    labels = _labels(table)
    one = np.ones((1, len(labels)))
    shown = _columns(table, "probability")
    # Under a sigmoid every class is judged for itself.
    link: Link = "softmax" if np.allclose(shown.sum(axis=1), 1, atol=1e-3) else "sigmoid"
    versions = [("Calibrated", shown, ACCENT)]
    if "calibrated" in table and not (table.calibrated.astype(str) == "True").all():
        versions = [(NOT_CALIBRATED.capitalize(), shown, MUTED)]
    else:
        before = of_logits(_columns(table, "logit"), link)
        versions.insert(0, ("Before temperature", before, MUTED))
    shape: Any = {"height_ratios": (4, 1), "sharex": True, "squeeze": False}
    figure, axes = new_axes(9, 4.6, 2, len(versions), **shape)
    for column, (title, probabilities, color) in enumerate(versions):
        confidence, accuracy, count = metrics.calibration_bins(probabilities, labels)
        error = metrics.expected_calibration_error(probabilities, labels, one)[0]
        upper, lower = axes[0, column], axes[1, column]
        upper.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1)
        full = count > 0
        area = 20 + 180 * count[full] / count.max()
        upper.scatter(confidence[full], accuracy[full], area, color=color, alpha=0.85)
        upper.plot(confidence[full], accuracy[full], color=color, linewidth=1)
        upper.set(title=f"{title}: ECE {error:.3f}", xlim=(0, 1), ylim=(0, 1.05))
        edges = np.linspace(0, 1, len(count) + 1)
        lower.bar(edges[:-1], count, np.diff(edges), align="edge", color=color, alpha=0.6)
        lower.set_xlabel("confidence (top probability)")
    axes[0, 0].set_ylabel("share correct")
    axes[1, 0].set_ylabel("images")
    return figure


@style()
def confusion_matrix(table: pd.DataFrame, column: str = "predicted") -> "Figure":
    """Draw the confusion matrix as counts and normalized by row."""
    counts = metrics.confusion_matrices(
        _labels(table), _labels(table, column), len(_codes(table)), np.ones((1, len(table)))
    )[0]
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)
    figure, (left, right) = new_axes(10.5, 4.8, 1, 2)
    _matrix(left, _codes(table), shares, [[f"{int(v)}" for v in row] for row in counts])
    left.set_title("Images")
    text = [["" if np.isnan(v) else f"{v:.2f}" for v in row] for row in shares]
    _matrix(right, _codes(table), shares, text)
    right.set_title("Share of each row (diagonal: recall)")
    return figure


def _matrix(axes: "Axes", codes: list[str], shade: np.ndarray, text: list[list[str]]) -> None:
    axes.imshow(np.nan_to_num(shade), cmap="Blues", vmin=0, vmax=1)
    places = range(len(codes))
    axes.set_xticks(places, codes)
    axes.set_yticks(places, codes)
    axes.set(xlabel="predicted", ylabel="true")
    axes.spines[:].set_visible(False)
    for row, column in np.ndindex(shade.shape):
        color = "white" if np.nan_to_num(shade[row, column]) > 0.55 else INK
        place: Any = {"ha": "center", "va": "center", "color": color, "fontsize": 9}
        axes.text(column, row, text[row][column], **place)


@style()
def roc_and_pr_curves(table: pd.DataFrame) -> "Figure":
    """Draw one-against-the-rest ROC and precision-recall curves of every class."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    labels, probabilities = _labels(table), _columns(table, "probability")
    one = np.ones((1, len(labels)))
    figure, (left, right) = new_axes(10.5, 4.6, 1, 2)
    colors = chosen(HAM10000, _codes(table)).colors()
    for k, (code, color) in enumerate(colors.items()):
        positive = labels == k
        if not positive.any() or positive.all():
            continue
        false_rate, true_rate, _ = roc_curve(positive, probabilities[:, k])
        area = metrics.roc_auc(probabilities[:, k], positive, one)[0]
        left.plot(false_rate, true_rate, color=color, label=f"{code}  {area:.3f}")
        precision, recall, _ = precision_recall_curve(positive, probabilities[:, k])
        average = metrics.average_precision(probabilities[:, k], positive, one)[0]
        label = f"{code}  {average:.3f}"
        right.plot(recall, precision, color=color, drawstyle="steps-post", label=label)
    left.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1)
    left.set(title="ROC", xlabel="1 - specificity", ylabel="sensitivity")
    right.set(title="Precision-recall", xlabel="recall", ylabel="precision")
    if right.lines:
        left.legend(title="AUC", loc="lower right")
        right.legend(title="average precision", loc="lower left")
    for axes in (left, right):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    return figure


@style()
def operating_points(table: pd.DataFrame, points: dict[str, Any]) -> "Figure":
    """Draw the score distribution of positives and negatives with each point's threshold."""
    figure, (axes,) = new_axes(10, 3.4, 1, max(len(points), 1), squeeze=False)
    for part, (name, point) in zip(axes, points.items(), strict=False):
        score = table[[f"probability_{code}" for code in point["codes"]]].sum(axis=1)
        positive = table.dx.isin(point["codes"])
        bins = np.linspace(0, 1, 31)
        positives = (score[positive], WARNING, ", ".join(point["codes"]))
        for values, color, label in ((score[~positive], MUTED, "others"), positives):
            if len(values):
                part.hist(values, bins, density=True, color=color, alpha=0.6, label=label)
        part.axvline(point["threshold"], color=INK, linestyle="--")
        part.set(
            title=f"{name}: sensitivity {point['sensitivity']:.3f}, "
            f"specificity {point['specificity']:.3f}",
            xlabel=f"summed probability (threshold {point['threshold']:.3f})",
            ylabel="density",
        )
        part.legend()
    return figure


@style()
def per_class_recall(result: dict[str, Any]) -> "Figure":
    """Draw recall per class of both readings, with 95 % lesion-level intervals."""
    figure, axes = new_axes(8, 3.6)
    codes = list(result["per_class"])
    places = np.arange(len(codes))
    versions = (
        ("most probable class", result["most_probable"], -0.18, ACCENT),
        ("balanced rule", result, 0.18, MUTED),
    )
    for label, block, shift, color in versions:
        values = np.array([block["per_class"][c]["recall"] for c in codes], float)
        ranges = [block["confidence_intervals"]["per_class"][c]["recall"] for c in codes]
        axes.bar(places + shift, values, 0.34, color=color, alpha=0.85, label=label)
        _intervals(axes, places + shift, values, ranges)
    names = [f"{code}\nn = {result['per_class'][code]['support']}" for code in codes]
    axes.set_xticks(places, names)
    axes.set(title="Recall per class", ylabel="recall", ylim=(0, 1.08))
    axes.legend(ncols=2, loc="upper right")
    return figure


def _intervals(axes: "Axes", places: np.ndarray, values: np.ndarray, ranges: list[Any]) -> None:
    low, high = np.array(ranges, float).T
    error = np.nan_to_num(np.clip(np.stack([values - low, high - values]), 0, None))
    axes.errorbar(places, values, error, fmt="none", color=INK, capsize=2)


@style()
def subgroups(result: dict[str, Any]) -> "Figure":
    """Draw balanced accuracy and macro AUC of every subgroup."""
    rows = [
        (f"{kind.replace('_', ' ')}: {group}  (n = {block['n_images']})", block)
        for kind, groups in result["subgroups"].items()
        for group, block in groups.items()
    ]
    figure, axes = new_axes(8.5, 1.2 + 0.24 * len(rows))
    places = np.arange(len(rows))[::-1]
    for name, color, marker in (("balanced_accuracy", ACCENT, "o"), ("macro_auc", "#009E73", "D")):
        values = [block[name] for _, block in rows]
        axes.plot(values, places, marker, color=color, label=name.replace("_", " "))
        axes.axvline(result[name], color=color, linewidth=1, linestyle=":")
    axes.set_yticks(places, [label for label, _ in rows], fontsize=8)
    axes.set(title="Subgroups (dotted: all images)", xlim=(0, 1.02), ylim=(-1, len(rows)))
    axes.legend(loc="lower left")
    return figure


@style()
def prediction_sets(result: dict[str, Any]) -> "Figure":
    """Draw the coverage of the sets per class, and coverage and size over the level."""
    codes = [code for code, block in result["per_class"].items() if block["n_images"]]
    blocks = [result["per_class"][code] for code in codes]
    values = np.array([block["coverage"] for block in blocks], float)
    figure, (left, right) = new_axes(10.5, 3.8, 1, 2, width_ratios=(3, 2))
    places = np.arange(len(codes))
    left.bar(places, values, 0.6, color=ACCENT, alpha=0.85)
    _intervals(left, places, values, [block["interval"] for block in blocks])
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


@style()
def balanced_rule(result: dict[str, Any]) -> "Figure":
    """Draw the balanced accuracy over the strength of the balanced rule, with its interval."""
    curve = result["balanced_rule_curve"]
    taus = [point["tau"] for point in curve]
    figure, axes = new_axes(6.5, 3.8)
    low, high = ([point[end] for point in curve] for end in ("low", "high"))
    band = "95 % interval over lesions"
    axes.fill_between(taus, low, high, color=MUTED, alpha=0.25, label=band)
    axes.plot(taus, [point["balanced_accuracy"] for point in curve], color=ACCENT)
    axes.axvline(result["tau"], color=INK, linewidth=1, linestyle="--", label="stored rule")
    axes.set(
        title="Balanced rule: 0 is the most probable class",
        xlabel="strength of the prior correction",
        ylabel="balanced accuracy",
    )
    axes.legend(loc="lower right")
    return figure


@style()
def stress_chart(facts: dict[str, Any]) -> "Figure":
    """Draw what each change of the photographs does to balanced accuracy, with its interval.

    ``facts`` is the content of ``stress.json``.
    """
    changes = facts["changes"]
    figure, (left, right) = new_axes(
        10, 1.2 + 0.32 * len(changes), 1, 2, sharey=True, width_ratios=(1, 1)
    )
    places = np.arange(len(changes))[::-1]
    titles = (
        ("balanced_accuracy", "Balanced rule"),
        ("most_probable_balanced_accuracy", "Most probable class"),
    )
    for axes, (figure_name, title) in zip((left, right), titles, strict=True):
        found = {row["name"]: row for row in facts["figures"] if row["figure"] == figure_name}
        rows = [found[change["name"]] for change in changes]
        values = np.array([row["difference"] for row in rows])
        colors = [ACCENT if change["mild"] else WARNING for change in changes]
        ends = np.array([[row["low"], row["high"]] for row in rows])
        axes.hlines(places, ends[:, 0], ends[:, 1], color=colors, linewidth=2)
        axes.scatter(values, places, color=colors, zorder=3)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set(title=title, xlabel="change of balanced accuracy")
    left.set_yticks(places, [change["title"] for change in changes])
    return figure

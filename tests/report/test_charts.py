"""Charts drawn from predictions.csv carry the numbers that the file holds."""

import re
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from dermlens.labels import HAM10000
from dermlens.model.balanced_rule import BalancedRule
from dermlens.model.calibration import Calibration, OperatingPoint
from dermlens.model.evaluation import metrics_from_predictions
from dermlens.model.prediction_table import predictions_table, read_predictions
from dermlens.report import charts
from dermlens.report.evaluation_report import evaluation_figures, summary_line, write_evaluation

CODES = HAM10000.codes

IMAGES = 140
THRESHOLD = {"malignant": 0.3, "melanoma": 0.2}


def calibration() -> Calibration:
    points = {
        "malignant": OperatingPoint("malignant", HAM10000.malignant, 0.3, 0.95, 0.95, 0.5, 9, 9),
        "melanoma": OperatingPoint("melanoma", ("mel",), 0.2, 0.95, 0.95, 0.5, 9, 9),
    }
    log_prior = tuple(np.log([0.05, 0.1, 0.1, 0.05, 0.1, 0.5, 0.1]))
    return Calibration(
        temperature=1.8,
        balanced_rule=BalancedRule(0.5, log_prior),
        operating_points=points,
    )


def predictions(images: int = IMAGES, only: str | None = None) -> pd.DataFrame:
    generator = np.random.default_rng(4)
    labels = np.arange(images) % 7 if only is None else np.full(images, CODES.index(only))
    logits = 2.0 * generator.normal(size=(images, 7)) + 2.5 * np.eye(7)[labels]
    rows = pd.DataFrame(
        {
            "image_id": [f"I{k:03d}" for k in range(images)],
            "lesion_id": [f"L{k // 2:03d}" for k in range(images)],
            "dx": np.array(CODES)[labels],
            "dx_type": "histo",
            "age": 30.0 + np.arange(images) % 50,
            "sex": np.where(np.arange(images) % 3 == 0, "male", "female"),
            "localization": "back",
        }
    )
    return predictions_table(rows, logits, calibration())


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Predictions that went through the file."""
    path = tmp_path_factory.mktemp("predictions") / "predictions.csv"
    predictions().to_csv(path, index=False)
    return read_predictions(path)


@pytest.fixture(scope="module")
def result(table: pd.DataFrame) -> dict[str, Any]:
    """What metrics.json holds."""
    return metrics_from_predictions(table, calibration(), resamples=50)


@pytest.fixture(autouse=True)
def no_open_figures() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def title(axes: Any) -> str:
    return axes.get_title(loc="left")


@pytest.mark.parametrize("column", ["predicted", "balanced_rule"])
def test_confusion_matrix_holds_hand_counts(table: pd.DataFrame, column: str) -> None:
    left, right = charts.confusion_matrix(table, column).axes
    shown = {
        axes: {tuple(map(round, t.get_position()[::-1])): t.get_text() for t in axes.texts}
        for axes in (left, right)
    }
    for axes in (left, right):
        assert [t.get_text() for t in axes.get_xticklabels()] == list(CODES)
        assert [t.get_text() for t in axes.get_yticklabels()] == list(CODES)
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
        assert len(axes.texts) == 49
    for row, actual in enumerate(CODES):
        of_class = table[table.dx == actual]
        for place, predicted in enumerate(CODES):
            count = int((of_class[column] == predicted).sum())
            assert shown[left][row, place] == str(count)
            assert shown[right][row, place] == f"{count / len(of_class):.2f}"
            shade = left.images[0].get_array()[row, place]
            assert shade == pytest.approx(count / len(of_class))


def test_confusion_matrix_leaves_the_row_of_an_absent_class_empty() -> None:
    left, right = charts.confusion_matrix(predictions(20, only="nv")).axes
    empty = [t.get_text() for t in right.texts if round(t.get_position()[1]) != CODES.index("nv")]
    assert empty == [""] * 42
    assert sum(int(t.get_text()) for t in left.texts) == 20


def test_roc_and_precision_recall_curves(table: pd.DataFrame) -> None:
    left, right = charts.roc_and_pr_curves(table).axes
    named = [text.get_text() for text in left.get_legend().get_texts()]
    averages = [text.get_text() for text in right.get_legend().get_texts()]
    for k, code in enumerate(CODES):
        positive, score = table.dx == code, table[f"probability_{code}"]
        area = reference.roc_auc_score(positive, score)
        assert named[k] == f"{code}  {area:.3f}"
        average = reference.average_precision_score(positive, score)
        assert averages[k] == f"{code}  {average:.3f}"
        x, y = left.lines[k].get_data()
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
        assert np.trapezoid(y, x) == pytest.approx(area)
        recall, precision = right.lines[k].get_data()
        assert recall.max() == 1 and precision[recall == 0][-1] == 1
        assert -np.sum(np.diff(recall) * precision[:-1]) == pytest.approx(average)
        assert left.lines[k].get_color() == right.lines[k].get_color() == HAM10000.of(code).color
    diagonal = left.lines[-1].get_data()
    assert [list(part) for part in diagonal] == [[0, 1], [0, 1]]


def test_reliability_diagram_shows_both_calibrations(table: pd.DataFrame) -> None:
    figure = charts.reliability_diagram(table)
    logits = table[[f"logit_{code}" for code in CODES]].to_numpy()
    labels = np.array([CODES.index(code) for code in table.dx])
    for column, temperature in ((0, 1.0), (1, 1.8)):
        shares = np.exp(logits / temperature)
        shares /= shares.sum(axis=1, keepdims=True)
        top, right = shares.max(axis=1), shares.argmax(axis=1) == labels
        upper, lower = figure.axes[column], figure.axes[2 + column]
        counts = np.array([bar.get_height() for bar in lower.patches])
        edges = np.linspace(0, 1, len(counts) + 1)
        bins = [(low < top) & (top <= high) for low, high in pairwise(edges)]
        assert counts.tolist() == [inside.sum() for inside in bins]
        assert counts.sum() == IMAGES
        points = np.asarray(upper.collections[0].get_offsets())
        expected = [(top[b].mean(), right[b].mean()) for b in bins if b.any()]
        assert points == pytest.approx(np.array(expected))
        gaps = [b.mean() * abs(top[b].mean() - right[b].mean()) for b in bins if b.any()]
        assert title(upper).endswith(f"ECE {sum(gaps):.3f}")


def test_operating_points(table: pd.DataFrame, result: dict[str, Any]) -> None:
    figure = charts.operating_points(table, result["operating_points"])
    for axes, (name, codes) in zip(
        figure.axes, {"malignant": HAM10000.malignant, "melanoma": ("mel",)}.items(), strict=True
    ):
        score = table[[f"probability_{code}" for code in codes]].sum(axis=1)
        positive, flagged = table.dx.isin(codes), score >= THRESHOLD[name]
        sensitivity, specificity = flagged[positive].mean(), 1 - flagged[~positive].mean()
        assert title(axes) == (
            f"{name}: sensitivity {sensitivity:.3f}, specificity {specificity:.3f}"
        )
        (line,) = axes.lines
        assert set(line.get_xdata()) == {THRESHOLD[name]}
        others, positives = (container.patches for container in axes.containers)
        for patches, values in ((others, score[~positive]), (positives, score[positive])):
            counts = np.histogram(values, np.linspace(0, 1, 31))[0]
            heights = np.array([patch.get_height() for patch in patches])
            assert heights * len(values) / 30 == pytest.approx(counts)
        texts = [text.get_text() for text in axes.get_legend().get_texts()]
        assert texts == ["others", ", ".join(codes)]


def test_recall_bars(table: pd.DataFrame, result: dict[str, Any]) -> None:
    (axes,) = charts.per_class_recall(result).axes
    bars = [c for c in axes.containers if type(c).__name__ == "BarContainer"]
    for container, column in zip(bars, ("predicted", "balanced_rule"), strict=True):
        heights = [patch.get_height() for patch in container.patches]
        expected = reference.recall_score(table.dx, table[column], labels=list(CODES), average=None)
        assert heights == pytest.approx(list(expected))
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == [f"{code}\nn = {(table.dx == code).sum()}" for code in CODES]


def test_intervals_on_recall_bars(result: dict[str, Any]) -> None:
    (axes,) = charts.per_class_recall(result).axes
    drawn = [c for c in axes.containers if type(c).__name__ == "ErrorbarContainer"]
    for container, block in zip(drawn, (result["most_probable"], result), strict=True):
        segments = container[2][0].get_segments()
        ranges = [block["confidence_intervals"]["per_class"][code]["recall"] for code in CODES]
        for segment, code, (low, high) in zip(segments, CODES, ranges, strict=True):
            value = block["per_class"][code]["recall"]
            assert segment[:, 1] == pytest.approx([min(low, value), max(high, value)])


def test_subgroups(table: pd.DataFrame, result: dict[str, Any]) -> None:
    (axes,) = charts.subgroups(result).axes
    labels = {
        text.get_text(): y
        for y, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    }
    women = table[table.sex == "female"]
    place = labels[f"sex: female  (n = {len(women)})"]
    accuracy = reference.balanced_accuracy_score(women.dx, women.balanced_rule)
    shares = women[[f"probability_{code}" for code in CODES]].to_numpy()
    auc = reference.roc_auc_score(women.dx, shares, multi_class="ovr", labels=list(CODES))
    by_label = {line.get_label(): line for line in axes.lines}
    for name, value in (("balanced accuracy", accuracy), ("macro auc", auc)):
        line = by_label[name]
        x = dict(zip(line.get_ydata(), line.get_xdata(), strict=True))
        assert x[place] == pytest.approx(value)


def history(phases: list[str], scores: list[float]) -> pd.DataFrame:
    count = len(phases)
    return pd.DataFrame(
        {
            "phase": phases,
            "epoch": [phases[: k + 1].count(phase) for k, phase in enumerate(phases)],
            "train_loss": np.linspace(2, 1, count),
            "validation_loss": np.linspace(2.2, 1.1, count),
            "validation_accuracy": np.linspace(0.3, 0.6, count),
            "validation_balanced_accuracy": scores,
            "validation_macro_auc": np.linspace(0.5, 0.9, count),
        }
    )


def test_training_curves_mark_the_kept_epoch_of_fine_tuning() -> None:
    # Neither the head phase nor a better epoch that did not compete is marked.
    recorded = history(["head"] * 2 + ["finetuning"] * 3, [0.3, 0.9, 0.85, 0.8, 0.7])
    left, right = charts.training_curves(recorded, best_epoch=2).axes
    assert (title(left), title(right)) == ("Loss", "Validation")
    for line, column in zip(left.lines, ("train_loss", "validation_loss"), strict=False):
        assert list(line.get_xdata()) == [1, 2, 3, 4, 5]
        assert list(line.get_ydata()) == list(recorded[column])
    columns = [f"validation_{name}" for name in ("balanced_accuracy", "accuracy", "macro_auc")]
    for line, column in zip(right.lines, columns, strict=False):
        assert list(line.get_ydata()) == list(recorded[column])
    best = right.lines[3]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([4], [0.8])
    assert [text.get_text() for text in right.texts] == ["0.800", "fine-tuning"]
    assert set(left.lines[-1].get_xdata()) == {2.5}


def test_training_curves_without_a_kept_epoch_mark_none() -> None:
    recorded = history(["head"] * 2 + ["finetuning"], [0.3, 0.9, 0.85])
    for best in (None, 2):
        _, right = charts.training_curves(recorded, best).axes
        assert [text.get_text() for text in right.texts] == ["fine-tuning"]


def test_training_curves_of_one_phase_have_no_boundary() -> None:
    left, right = charts.training_curves(history(["finetuning"] * 3, [0.5, 0.6, 0.4]), 2).axes
    assert len(left.lines) == 2 and len(right.lines) == 4
    assert [text.get_text() for text in right.texts] == ["0.600"]


def test_every_figure_copes_with_one_class_only(tmp_path: Path) -> None:
    table = predictions(12, only="nv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = write_evaluation(table, calibration(), tmp_path, resamples=5)
    for path in paths.values():
        assert path.stat().st_size > 0


def test_every_figure_is_written_as_png(
    table: pd.DataFrame, result: dict[str, Any], tmp_path: Path
) -> None:
    names = set(evaluation_figures(table, result))
    paths = write_evaluation(table, calibration(), tmp_path, resamples=50)
    assert names < set(paths)
    for name in names:
        assert paths[name] == tmp_path / f"{name}.png"
        assert paths[name].read_bytes().startswith(b"\x89PNG")
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


def test_summary_line(table: pd.DataFrame, result: dict[str, Any]) -> None:
    line = summary_line(result)
    assert line.startswith(f"{IMAGES} images: balanced accuracy ")
    numbers = [float(number) for number in re.findall(r"\d\.\d{3}", line)]
    low, high = result["confidence_intervals"]["balanced_accuracy"]
    assert numbers == pytest.approx(
        [
            reference.balanced_accuracy_score(table.dx, table.balanced_rule),
            *(low, high),
            reference.balanced_accuracy_score(table.dx, table.predicted),
            reference.accuracy_score(table.dx, table.predicted),
            *(result["macro_auc"], result["ece"]),
        ],
        abs=5e-4,
    )

"""Writing an evaluation: tables, metrics and figures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dermlens.files import write_csv, write_json, written_beside
from dermlens.model.calibration import Calibration
from dermlens.model.evaluation import RESAMPLES, isic_submission, metrics_from_predictions
from dermlens.progress import say
from dermlens.report import charts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_figure(path: Path, figure: "Figure") -> Path:
    """Write a figure as PNG, atomically."""
    with written_beside(path) as temporary:
        figure.savefig(temporary)
    return Path(path)


def evaluation_figures(
    table: pd.DataFrame, result: dict[str, Any]
) -> dict[str, Callable[[], "Figure"]]:
    """Return the figures of an evaluation by file name, each drawn when called."""
    figures: dict[str, Callable[[], Figure]] = {
        "confusion_matrix": lambda: charts.confusion_matrix(table),
        "roc_and_pr_curves": lambda: charts.roc_and_pr_curves(table),
        "reliability_diagram": lambda: charts.reliability_diagram(table),
        "per_class_recall": lambda: charts.per_class_recall(result),
        "subgroups": lambda: charts.subgroups(result),
    }
    if points := result["operating_points"]:
        figures["operating_points"] = lambda: charts.operating_points(table, points)
    if result["balanced_rule_curve"]:
        figures["balanced_rule"] = lambda: charts.balanced_rule(result)
    if (sets := result["prediction_sets"]) is not None:
        figures["prediction_sets"] = lambda: charts.prediction_sets(sets)
    return figures


def write_evaluation(
    table: pd.DataFrame,
    calibration: Calibration,
    out: Path,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    model: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Write ``metrics.json``, ``predictions.csv``, ``submission.csv`` and the figures.

    Args:
        table: Predictions table with known classes.
        calibration: Of the bundle.
        out: Folder to write.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.
        model: Name, backbone and fingerprint of the model (``Bundle.identity``).
        about: More facts for ``metrics.json``.

    Returns:
        Paths by name.
    """
    out = Path(out)
    result = metrics_from_predictions(table, calibration, resamples=resamples, seed=seed)
    if model is not None:
        result["model"] = dict(model)
    result.update(about or {})
    paths = {
        "predictions": write_csv(out / "predictions.csv", table),
        "calibration": write_json(out / "calibration.json", calibration.to_json()),
        "metrics": write_json(out / "metrics.json", result),
    }
    submission = isic_submission(table, calibration)
    if submission is not None:
        paths["submission"] = write_csv(out / "submission.csv", submission)
    for name, draw in evaluation_figures(table, result).items():
        paths[name] = write_figure(out / f"{name}.png", draw())
    say(summary_line(result))
    return paths


def summary_line(result: dict[str, Any]) -> str:
    """Return the main figures in one line."""
    low, high = result["confidence_intervals"]["balanced_accuracy"]
    plain, sets = result["most_probable"], result["prediction_sets"]
    line = (
        f"{result['n_images']:,} images: balanced accuracy {result['balanced_accuracy']:.3f} "
        f"({low:.3f} to {high:.3f}) by the balanced rule, {plain['balanced_accuracy']:.3f} by the "
        f"most probable class; accuracy {plain['accuracy']:.3f} by the most probable class; macro "
        f"AUC {result['macro_auc']:.3f}, ECE {result['ece']:.3f}"
    )
    if sets is None:
        return f"{line}. This bundle carries no prediction sets: 'dermlens pack' fits them."
    return (
        f"{line}; {100 * sets['level']:g} % prediction sets hold the true class of "
        f"{100 * sets['coverage']:.1f} % of the images, mean size {sets['mean_size']:.2f}"
    )

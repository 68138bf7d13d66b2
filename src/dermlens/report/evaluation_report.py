"""Writing what training and evaluation gave: tables, metrics and figures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermlens.data.augmentation import Augmentation, augment
from dermlens.data.cache import cached_images
from dermlens.data.manifest import read_manifest, select_split
from dermlens.files import write_csv, write_json, written_beside
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.model.calibration import Calibration
from dermlens.model.evaluation import RESAMPLES, isic_submission, metrics_from_predictions
from dermlens.progress import say
from dermlens.report import charts
from dermlens.report.charts import training_curves
from dermlens.report.style import new_axes, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VARIANTS = 6


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
    """Write ``metrics.json``, ``predictions.csv``, ``submission.csv`` and the figures."""
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


def write_training_figures(run: Path, data: Path) -> list[Path]:
    """Write ``training_curves.png`` and ``augmentation.png`` into a finished run."""
    bundle = load_bundle(Path(run) / "bundle")
    curves = training_curves(bundle.history, bundle.best_epoch)
    return [
        write_figure(Path(run) / "training_curves.png", curves),
        write_figure(Path(run) / "augmentation.png", augmentation_preview(bundle, data)),
    ]


@style()
def augmentation_preview(bundle: Bundle, data: Path, *, seed: int = 0) -> "Figure":
    """Draw one training image per class beside six augmented versions of it."""
    table = read_manifest(data)
    train = select_split(table, "train")
    images = cached_images(data, table, bundle.input_size)
    how = Augmentation(**bundle.facts["training"]["augmentation"])
    codes = [code for code in bundle.classes if (train.dx == code).any()]
    height, width = bundle.input_size
    shape = (len(codes), _VARIANTS + 1)
    tall = 1.5 * len(codes) * height / width + 0.4
    figure, grid = new_axes(1.5 * shape[1], tall, *shape, squeeze=False)
    for row, code in enumerate(codes):
        image_id = train.image_id[train.dx == code].iloc[0]
        original = np.asarray(images[int(np.flatnonzero(table.image_id == image_id)[0])])
        copies = np.repeat(original[None], _VARIANTS, axis=0)
        varied = augment(copies, np.array([seed, row], np.int32), how).numpy()
        for column, image in enumerate([original, *varied]):
            grid[row, column].imshow(np.uint8(image))
            grid[row, column].set(xticks=[], yticks=[])
            grid[row, column].spines[:].set_visible(False)
        grid[row, 0].set_ylabel(code)
    grid[0, 0].set_title("original")
    grid[0, 1].set_title("as trained on")
    return figure

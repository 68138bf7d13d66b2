"""The whole way on the embedded data set: draw, split, train, evaluate, explain, report."""

import time
from pathlib import Path

import numpy as np
import pandas as pd

from dermlens.data.images import load_image, load_mask
from dermlens.data.manifest import read_manifest, select_split
from dermlens.data.splits import audit, split_data_set
from dermlens.data.synthetic import make_synthetic
from dermlens.files import read_json, write_json
from dermlens.labels import HAM10000
from dermlens.model.baseline import color_histogram_baseline
from dermlens.model.bundle import Bundle
from dermlens.model.configuration import preset
from dermlens.model.training import train
from dermlens.progress import duration, say
from dermlens.report.evaluation_report import summary_line, write_evaluation, write_training_figures
from dermlens.report.figures import attribution_grid
from dermlens.report.html import Page
from dermlens.serve.prediction import predict_split

GOOD_BALANCED_ACCURACY = 0.80
GOOD_MARGIN = 0.15
SIZE = (96, 128)


def run_demo(
    out: Path, *, images: int = 1600, epochs: int | None = None, seed: int = 0
) -> tuple[Path, bool]:
    """Run everything on drawn images and write ``OUT/report.html``.

    A demo that was interrupted goes on where it stopped.

    Args:
        out: Folder to write: ``data/``, ``run/bundle/``, ``evaluation/``, ``report.html``.
        images: Drawn images.
        epochs: Training epochs; default those of the demo preset.
        seed: Sets everything random.

    Returns:
        The page, and whether the network did as well as it should.
    """
    out = Path(out)
    started = time.monotonic()
    configuration = preset("demo", seed=seed, **({} if epochs is None else {"epochs": epochs}))
    data = out / "data"
    say("1/5 Drawing the embedded data set")
    _draw(data, images, seed)
    say("2/5 Color-histogram baseline")
    baseline = color_histogram_baseline(data)
    say("3/5 Training ResNet50 from scratch")
    resume = (out / "run" / "configuration.json").is_file()
    bundle = train(data, out / "run", configuration, resume=resume)
    write_training_figures(out / "run", data)
    say("4/5 Evaluating")
    result = _evaluate(bundle, data, out / "evaluation", seed)
    say("5/5 Explaining and reporting")
    page = _report(out, bundle, baseline)
    score = result["balanced_accuracy"]
    good = score >= GOOD_BALANCED_ACCURACY and score >= baseline + GOOD_MARGIN
    summary = {
        "test_balanced_accuracy": score,
        "color_histogram_balanced_accuracy": baseline,
        "good": good,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(out / "demo.json", summary)
    say(
        f"Test balanced accuracy {score:.3f}; color histogram with logistic regression "
        f"{baseline:.3f}. Took {duration(summary['seconds'])}."
    )
    if not good:
        say(
            f"Expected at least {GOOD_BALANCED_ACCURACY} and {GOOD_MARGIN} above the histogram. "
            "Train longer with --epochs."
        )
    return page, good


def _draw(data: Path, images: int, seed: int) -> None:
    make_synthetic(data, images=images, size=SIZE, seed=seed)
    if read_manifest(data).split.isna().any():
        split_data_set(data, seed=seed)


def _evaluate(bundle: Bundle, data: Path, out: Path, seed: int) -> dict[str, float]:
    table = predict_split(bundle, data, "test")
    paths = write_evaluation(table, bundle.calibration, out, seed=seed, model=bundle.identity)
    return read_json(paths["metrics"])


def _report(out: Path, bundle: Bundle, baseline: float) -> Path:
    data, evaluation = out / "data", out / "evaluation"
    result = read_json(evaluation / "metrics.json")
    predictions = pd.read_csv(evaluation / "predictions.csv")
    page = Page(
        "dermlens demo",
        "A ResNet50 trained from scratch on drawn images. Nothing here says anything about "
        "patients.",
    )
    _data_section(page, data)
    page.section("Training", f"{bundle.history.seconds.sum():.0f} seconds of training.")
    for name, caption in (
        ("training_curves", "Loss and validation scores by epoch."),
        ("augmentation", "What training images look like."),
    ):
        page.figure((out / "run" / f"{name}.png").read_bytes(), caption)
    page.section(
        "How good is it?",
        f"{summary_line(result)}. A color histogram with logistic regression reaches a balanced "
        f"accuracy of {baseline:.3f}: the classes cannot be told by color alone. Intervals are "
        "95 %, by bootstrap over lesions.",
    )
    rows = [
        {"diagnosis": f"{one.code}: {one.name}", **result["per_class"][one.code]}
        for one in HAM10000.labels
    ]
    page.table(pd.DataFrame(rows), "Figures per diagnosis on the test split.")
    for name, caption in (
        ("confusion_matrix", "Confusion matrix, most probable class."),
        ("roc_and_pr_curves", "One class against the rest."),
        ("reliability_diagram", "Is the confidence honest?"),
        ("operating_points", "Thresholds chosen on validation, figures on test."),
    ):
        page.figure((evaluation / f"{name}.png").read_bytes(), caption)
    _explanations(page, bundle, data, predictions)
    return page.write(out / "report.html")


def _data_section(page: Page, data: Path) -> None:
    table = read_manifest(data)
    leak_table, leaks = audit(data)
    counts = pd.crosstab(table.dx, table.split).reindex(
        index=list(HAM10000.codes), columns=["train", "validation", "test"]
    )
    page.section(
        "Data",
        f"{len(table):,} synthetic images of {table.lesion_id.nunique():,} lesions, split by "
        f"lesion. Lesions in two splits: {leaks['lesions_in_two_splits']}; a split by image would "
        f"have put {leak_table.leaking_under_image_level_split_percent.iloc[-1]:.0f} % of the test "
        "images on lesions seen in training.",
    )
    page.table(counts.reset_index(), "Images per diagnosis and split.")


def _explanations(page: Page, bundle: Bundle, data: Path, predictions: pd.DataFrame) -> None:
    """One test image per class with its Grad-CAM maps, beside the structure that was drawn."""
    from dermlens.explainers.registry import create

    table = select_split(read_manifest(data), "test").set_index("image_id")
    right = predictions[predictions.predicted == predictions.dx]
    chosen = [
        right[right.dx == code].image_id.iloc[0]
        for code in HAM10000.codes
        if (right.dx == code).any()
    ]
    if not chosen:
        page.section("Why?", "No test image was classified correctly; there is nothing to show.")
        return
    size = bundle.input_size
    images = np.stack([load_image(data / table.path[i], size) for i in chosen])
    targets = [table.dx[i] for i in chosen]
    lesions = [load_mask(data / table.mask_path[i], size) for i in chosen]
    structures = np.stack(
        [load_mask(data / "structures" / f"{i}_structure.png", size) for i in chosen]
    )
    maps: dict[str, np.ndarray] = {"drawn structure": structures.astype(np.float32)}
    signed = {"drawn structure": False}
    for name in ("grad_cam", "grad_cam_plus_plus"):
        explainer = create(name, bundle)
        attribution = explainer.attribute(images, targets)
        maps[name], signed[name] = attribution.maps, attribution.signed
    page.section(
        "Why?",
        "Where the network found the evidence for its answer. Because the images are drawn, the "
        "structure that decides the class is known and stands beside it.",
    )
    figure = attribution_grid(
        list(images), maps, signed=signed, labels=targets, lesions=list(lesions)
    )
    page.figure(figure, "Correctly classified test images; the lesion is outlined in cyan.")

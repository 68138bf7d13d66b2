"""The whole way on the embedded data set: draw, split, train, evaluate, explain, report."""

import time
from pathlib import Path

import pandas as pd

from dermlens.data.manifest import read_manifest
from dermlens.data.splits import split_data_set
from dermlens.data.synthetic import make_synthetic
from dermlens.files import read_json, write_json
from dermlens.model.baseline import color_histogram_baseline
from dermlens.model.bundle import Bundle
from dermlens.model.configuration import preset
from dermlens.model.training import train
from dermlens.progress import duration, say
from dermlens.report.demo_report import demo_page, explain_one_per_class, overview, quality
from dermlens.report.evaluation_report import (
    write_evaluation,
    write_figure,
    write_training_figures,
)
from dermlens.serve.prediction import predict_split

GOOD_BALANCED_ACCURACY = 0.80
GOOD_MARGIN = 0.15
SIZE = (96, 128)
NEXT = (
    "Your own images next: 'dermlens predict photo.jpg', 'dermlens explain photo.jpg', 'dermlens "
    "app'. Your own model: 'dermlens adopt model.keras --classes a,b,c --out bundle'."
)


def run_demo(
    out: Path,
    *,
    images: int = 1600,
    epochs: int | None = None,
    from_scratch: bool = False,
    seed: int = 0,
) -> tuple[Path, bool]:
    """Run everything on drawn images and write ``OUT/report.html``.

    A demo that was interrupted goes on where it stopped.

    Args:
        out: Folder to write: ``data/``, ``run/bundle/``, ``evaluation/``,
            ``explanations.png``, ``report.html``, ``demo.json``.
        images: Drawn images.
        epochs: Fine-tuning epochs; default those of the recipe.
        from_scratch: Train the whole network from its initializer, in place of a new last layer on
            the shipped one.
        seed: Sets everything random.

    Returns:
        The page, and whether the network did as well as it should.
    """
    out = Path(out)
    started = time.monotonic()
    changes = {} if epochs is None else {"epochs": epochs}
    configuration = preset("scratch" if from_scratch else "demo", seed=seed, **changes)
    data = out / "data"
    say("1/6 Drawing the embedded data set")
    _draw(data, images, seed)
    say("2/6 Color-histogram baseline")
    baseline = color_histogram_baseline(data)
    say(
        "3/6 Training ResNet50 from scratch"
        if from_scratch
        else "3/6 Training a new last layer on the shipped network"
    )
    resume = (out / "run" / "configuration.json").is_file()
    bundle = train(data, out / "run", configuration, resume=resume)
    write_training_figures(out / "run", data)
    say("4/6 Evaluating")
    score = _evaluate(bundle, data, out / "evaluation", seed)["balanced_accuracy"]
    say("5/6 Explaining by six methods")
    predictions = pd.read_csv(out / "evaluation" / "predictions.csv")
    explained = explain_one_per_class(bundle, data, predictions, seed=seed)
    say("6/6 Measuring the explanations and reporting")
    measured = None
    if explained is not None:
        measured = quality(bundle, explained, seed=seed)
        write_figure(out / "explanations.png", overview(explained))
    page = demo_page(out, bundle, explained, measured, baseline).write(out / "report.html")
    good = score >= GOOD_BALANCED_ACCURACY and score >= baseline + GOOD_MARGIN
    seconds = round(time.monotonic() - started, 1)
    summary = {
        "test_balanced_accuracy": score,
        "color_histogram_balanced_accuracy": baseline,
        "explanations": measured,
        "good": good,
        "seconds": seconds,
    }
    write_json(out / "demo.json", summary)
    say(
        f"Test balanced accuracy {score:.3f}; color histogram with logistic regression "
        f"{baseline:.3f}. Took {duration(seconds)}."
    )
    if not good:
        say(
            f"Expected at least {GOOD_BALANCED_ACCURACY} and {GOOD_MARGIN} above the histogram. "
            "Train longer with --epochs."
        )
    say(NEXT)
    return page, good


def _draw(data: Path, images: int, seed: int) -> None:
    make_synthetic(data, images=images, size=SIZE, seed=seed)
    if read_manifest(data).split.isna().any():
        split_data_set(data, seed=seed)


def _evaluate(bundle: Bundle, data: Path, out: Path, seed: int) -> dict[str, float]:
    table = predict_split(bundle, data, "test")
    paths = write_evaluation(table, bundle.calibration, out, seed=seed, model=bundle.identity)
    return read_json(paths["metrics"])

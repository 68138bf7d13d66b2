"""Training and evaluation against the bare work of the network in them.

Run ``python benchmarks/training.py [--bundle BUNDLE] [--data DATA] [--images 1500] [--publish]``.

* One epoch of head training on cached features, against the frozen backbone's pass over the same
  images.
* A step of fine-tuning as an epoch runs it (pipeline, augmentation, clipping, running average),
  against ``train_on_batch`` of the same network with AdamW on a batch in memory.
* The predictions of ``dermlens evaluate``, against a plain function over batches in memory.

The sides of a comparison run in turn, so that other load meets both alike.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench_tools import (
    PAGE,
    alternating,
    arguments,
    given_images,
    given_model,
    machine,
    markdown,
    write_section,
)

from dermlens.cli_options import parse_size
from dermlens.data.pipeline import epoch_order, training_batches
from dermlens.labels import HAM10000
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.model.calibration import fit_calibration
from dermlens.model.classifier import PRECISIONS, Architecture, build_classifier
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.evaluation import RESAMPLES, metrics_from_predictions
from dermlens.model.finetuning import Finetuning
from dermlens.model.head import train_head
from dermlens.model.history import History
from dermlens.model.out_of_distribution import fit_ood_detector
from dermlens.model.prediction import Predictor
from dermlens.model.prediction_table import predictions_table
from dermlens.model.training_data import TrainingData, load_training_data, training_set
from dermlens.model.weights import full_coverage, load_by_name
from dermlens.progress import progress, say

QUICK_SIZE = "64x64"
TRAIN_FROM = {"conv4": "conv1 to conv3 frozen", "all": "all convolutions trained"}
LEAST_CHEAPER, MOST_STEP, MOST_EVALUATION = 50.0, 1.10, 1.05


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Attributes:
        images: Images evaluated.
        sample: Images of the backbone's pass that head training is compared with.
        head_epochs: Epochs of head training; the first, which traces, does not count.
        steps: Steps of fine-tuning per round.
        rounds: Rounds of fine-tuning that count.
        repeats: Evaluations that count.
        all_layers: Whether training all layers is measured too.
    """

    images: int
    sample: int = 320
    head_epochs: int = 6
    steps: int = 8
    rounds: int = 5
    repeats: int = 3
    all_layers: bool = False


@dataclass(frozen=True)
class Setting:
    """What all three comparisons share."""

    bundle: Path | None
    data: TrainingData
    architecture: Architecture
    batch: int
    budget: Budget
    folder: Path

    @property
    def images(self) -> np.ndarray:
        """The pixels of the data set."""
        return self.data.images(self.architecture.input_size)

    def configuration(self, **changes: Any) -> TrainingConfiguration:
        """Return the configuration that ``dermlens train`` would use, with changes."""
        base = TrainingConfiguration(architecture=self.architecture, batch_size=self.batch)
        return replace(base, **changes)


def drawn_data(folder: Path, count: int, size: tuple[int, int]) -> TrainingData:
    """Return a split data set of a few drawn images repeated, in a memory map as real ones are."""
    drawn = given_images(None, min(count, 10 * len(HAM10000.codes)), size)
    np.save(folder / "images.npy", drawn[np.arange(count) % len(drawn)])
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels = (np.arange(count) % len(HAM10000.codes)).astype(np.int32)
    table = pd.DataFrame({"image_id": [f"drawn_{number}" for number in range(count)]})
    table["lesion_id"] = table.image_id
    table["dx"] = [HAM10000.codes[label] for label in labels]
    edges = [int(0.7 * count), int(0.85 * count)]
    parts = np.split(np.arange(count), edges)
    rows = dict(zip(("train", "validation", "test"), parts, strict=True))
    return TrainingData(folder, table, labels, rows, "drawn", {size: images})


def head_epoch(setting: Setting) -> dict[str, str]:
    """Compare an epoch of head training with the backbone's pass over the same images."""
    import keras

    data, budget = setting.data, setting.budget
    model = given_model(setting.bundle, setting.architecture.input_size)
    predictor = Predictor(
        keras.Model(model.input, model.get_layer("pool").output), batch_size=setting.batch
    )
    used = np.concatenate([data.rows["train"], data.rows["validation"]])
    sample = used[: budget.sample]
    work = alternating([lambda: predictor.logits(setting.images, sample)], budget.repeats)
    forward = float(np.median(work)) / len(sample) * len(used)
    # Arbitrary features: what they hold does not change the work.
    shape = (len(data.labels), int(model.get_layer("pool").output.shape[-1]))
    features = np.random.default_rng(0).random(shape, np.float32)
    ends: list[float] = []
    train_head(
        model,
        features,
        data.labels,
        data.rows,
        setting.configuration(head_epochs=budget.head_epochs),
        lambda *_: ends.append(time.perf_counter()),
    )
    epoch = float(np.median(np.diff(ends)))
    cheaper = forward / epoch
    return {
        "what": f"epoch of head training, {len(used):,} images",
        "package": f"{epoch:.3f} s",
        "bare": f"{forward:.1f} s (pass of the backbone)",
        "ratio": f"{cheaper:.0f} times cheaper",
        "goal": _goal(f"at least {LEAST_CHEAPER:.0f} times", cheaper >= LEAST_CHEAPER),
    }


def _goal(text: str, reached: bool) -> str:
    return f"{text}: {'reached' if reached else '**not** reached'}"


class Steps:
    """Fine-tuning steps of the package, and bare ones of the same network.

    Args:
        setting: What to train on.
        train_from: First stage to train.
        precision: Of the network.
    """

    def __init__(self, setting: Setting, train_from: str, precision: str) -> None:
        import keras

        count = setting.budget.steps * setting.batch
        # An epoch is one round.
        rows = {**setting.data.rows, "train": setting.data.rows["train"][:count]}
        self._data = replace(setting.data, rows=rows)
        self._count = setting.budget.steps
        self._configuration = setting.configuration(
            precision=precision, train_from=train_from, epochs=2 * setting.budget.rounds + 5
        )
        self._model = build_classifier(setting.architecture, precision=precision, any_size=True)
        coverage = full_coverage(self._model)
        if setting.bundle is not None:
            coverage = load_by_name(self._model, setting.bundle / "weights.h5")
        history = History(setting.folder, self._data, keep=False)
        self._finetuning = Finetuning(
            self._model, coverage, self._configuration, self._data, setting.folder, history
        )
        self._model.compile(
            keras.optimizers.AdamW(
                self._configuration.pretrained_rate, weight_decay=self._configuration.weight_decay
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        self._epochs = self._prepared()
        self._fixed = next(iter(next(self._epochs)[1]))
        self._alone = [self._unwatched() for _ in range(setting.budget.rounds + 1)]
        self._training: tuple[int, Any]
        self.turn()

    def _unwatched(self) -> Any:
        """Return a pipeline to be run alone."""
        return iter(next(self._epochs)[1])

    def _prepared(self) -> Iterator[tuple[int, Any]]:
        """Yield epochs as fine-tuning makes them; built here, run when iterated."""
        configuration = self._configuration
        size = configuration.architecture.input_size
        training = training_set(self._data, configuration, size)
        classes, seed = len(configuration.architecture.classes), configuration.seed
        for epoch in range(configuration.epochs):
            order = epoch_order(training.labels, configuration.imbalance, classes, seed, epoch)
            batches = training_batches(
                training,
                order,
                batch_size=configuration.batch_size,
                augmentation=configuration.augmentation,
                seed=seed,
                epoch=epoch,
            )
            yield epoch, batches

    def turn(self) -> None:
        """End the epoch's pipeline and build the next, which a real epoch does once."""
        number, batches = next(self._epochs)
        # The name held the old iterator; giving it a new value ends that.
        self._training = number, iter(batches)

    def epoch(self) -> None:
        """Run the package's steps as an epoch does, with the input pipeline."""
        number, batches = self._training
        self._finetuning._steps(batches, number)

    def in_memory(self) -> None:
        """Run the package's steps on one batch in memory."""
        import tensorflow as tf

        for number in range(self._count):
            for value in self._finetuning._step(*self._fixed, tf.constant(number, tf.int32)):
                float(value)

    def bare(self) -> None:
        """Run Keras' own steps on one batch in memory."""
        images, labels, _ = self._fixed
        for _ in range(self._count):
            self._model.train_on_batch(images, labels)

    def pipeline(self) -> None:
        """Run the input pipeline alone."""
        for _ in self._alone.pop():
            pass


def step_rows(setting: Setting) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Compare steps in every precision and depth: rows of the main table, and of the parts."""
    rows, parts = [], []
    for precision in PRECISIONS:
        for train_from, depth in TRAIN_FROM.items():
            if train_from == "all" and not setting.budget.all_layers:
                continue
            name = f"{precision}, {depth}"
            say(f"Fine-tuning step: {name}")
            seconds = _step_seconds(setting, train_from, precision)
            rows.append(_compared(f"step of fine-tuning, {name}", seconds[:, [0, 2]], MOST_STEP))
            titles = ("as an epoch runs", "on a batch in memory", "bare", "pipeline alone")
            medians = np.median(seconds[:, :4], axis=0) * 1000
            part = {"step": name} | {t: f"{v:.0f}" for t, v in zip(titles, medians, strict=True)}
            turns = seconds[:, 4] * setting.budget.steps * 1000
            part["between epochs"] = f"{np.median(turns):.0f} (at most {turns.max():.0f})"
            parts.append(part)
    return rows, parts


def _step_seconds(setting: Setting, train_from: str, precision: str) -> np.ndarray:
    """Return seconds per step, (rounds, 5): epoch, in memory, bare, pipeline, between epochs."""
    import keras

    steps = Steps(setting, train_from, precision)
    # The pipeline is ended right after its epoch, as in training.
    works = [steps.epoch, steps.turn, steps.in_memory, steps.bare, steps.pipeline]
    seconds = alternating(works, setting.budget.rounds)[:, [0, 2, 3, 4, 1]] / setting.budget.steps
    # Optimizer slots and graphs of one setting are not to stay for the next.
    del steps, works
    keras.backend.clear_session()
    gc.collect()
    return seconds


def _compared(what: str, seconds: np.ndarray, most: float) -> dict[str, str]:
    """Return a row of the main table from seconds (rounds, 2) of package and bare."""
    package, bare = np.median(seconds, axis=0)
    ratios = seconds[:, 0] / seconds[:, 1]
    return {
        "what": what,
        "package": f"{package:.3f} s",
        "bare": f"{bare:.3f} s",
        "ratio": f"{package / bare:.3f} ({ratios.min():.3f} to {ratios.max():.3f})",
        "goal": _goal(f"at most {most:.2f}", bool(package / bare <= most)),
    }


def evaluated_bundle(setting: Setting) -> Bundle:
    """Return the given bundle at the given size, or an untrained one with all its parts."""
    architecture = setting.architecture
    model = given_model(setting.bundle, architecture.input_size)
    if setting.bundle is not None:
        return replace(load_bundle(setting.bundle), architecture=architecture, model=model)
    generator = np.random.default_rng(0)
    count, classes = 700, len(architecture.classes)
    labels = np.arange(count) % classes
    calibration = fit_calibration(
        generator.normal(size=(count, classes)), labels, np.bincount(labels), np.arange(count)
    )
    channels = int(model.get_layer("pool").output.shape[-1])
    features = generator.random((count, channels), np.float32)
    ood_detector = fit_ood_detector(features, labels, features, classes=classes)
    return Bundle(setting.folder, architecture, calibration, {"data": {}}, model, ood_detector)


def evaluation(setting: Setting) -> tuple[dict[str, str], str]:
    """Compare predictions with bare passes; return the row and what evaluating takes beside."""
    import tensorflow as tf

    bundle, images, batch = evaluated_bundle(setting), setting.images, setting.batch
    split = [setting.data.rows[name] for name in ("test", "validation", "train")]
    rows = np.concatenate(split)[: setting.budget.images]
    starts = range(0, len(rows), batch)
    batches = [tf.constant(images[rows[s : s + batch]], tf.float32) for s in starts]
    model = bundle.model
    passing = tf.function(lambda pixels: model(pixels, training=False), autograph=False)

    def predicted() -> tuple[np.ndarray, np.ndarray | None]:
        with progress("Predicting", len(rows)) as advance:
            return bundle.logits_and_ood_scores(images, rows, batch_size=batch, advance=advance)

    works: list[Callable[[], Any]] = [predicted, lambda: [passing(b).numpy() for b in batches]]
    seconds = alternating(works, setting.budget.repeats)
    what = f"predictions of an evaluation, {len(rows):,} images, one view"
    row = _compared(what, seconds, MOST_EVALUATION)
    return row, _after_predicting(setting, bundle, rows, *predicted())


def _after_predicting(
    setting: Setting,
    bundle: Bundle,
    rows: np.ndarray,
    logits: np.ndarray,
    scores: np.ndarray | None,
) -> str:
    """Say what metrics, tables and figures take."""
    from dermlens.report.evaluation_report import write_evaluation

    threshold = np.inf if bundle.ood_detector is None else bundle.ood_detector.threshold
    known, calibration = setting.data.table.iloc[rows], bundle.calibration
    start = time.perf_counter()
    table = predictions_table(known, logits, calibration, scores, threshold)
    metrics_from_predictions(table, calibration)
    measured = time.perf_counter() - start
    start = time.perf_counter()
    write_evaluation(table, calibration, setting.folder / "evaluation")
    written = time.perf_counter() - start - measured
    return (
        f"Not part of that comparison: the metrics with {RESAMPLES:,} resamples of lesions take "
        f"{measured:.1f} s more, tables and figures {max(written, 0.0):.1f} s."
    )


def report(setting: Setting) -> str:
    """Measure everything and return the section."""
    budget, size = setting.budget, setting.architecture.input_size
    first = machine()
    say("Head training")
    head = head_epoch(setting)
    steps, parts = step_rows(setting)
    say("Evaluation")
    predicted, beside = evaluation(setting)
    weights = "untrained" if setting.bundle is None else "a bundle's"
    return (
        f"{first} {setting.architecture.backbone} with {weights} weights at {size[0]}x{size[1]}, "
        f"batches of {setting.batch}. Medians, in turn; in brackets the range of the rounds. "
        f"The pass of the backbone was timed on {budget.sample} images and is stated for all; a "
        f"round of fine-tuning has {budget.steps} steps, {budget.rounds} rounds count.\n\n"
        f"{markdown(pd.DataFrame([head, *steps, predicted]))}\n\n{beside}\n\n"
        "Parts of a step, milliseconds. The first two columns differ by what the pipeline takes "
        "from the network, the second and third by clipping, weights of images, two learning "
        "rates and the running average. Ending an epoch's pipeline and building the next happens "
        f"once per epoch and is in no step.\n\n{markdown(pd.DataFrame(parts))}"
    )


def made_setting(given: Any, folder: Path) -> Setting:
    """Return what the command line asks for."""
    size = parse_size(QUICK_SIZE if given.quick else given.size)
    batch = min(given.batch_size, 8) if given.quick else given.batch_size
    budget = Budget(
        given.images,
        steps=given.steps,
        rounds=given.rounds,
        repeats=given.repeats,
        all_layers=given.all_layers,
    )
    if given.quick:
        budget = Budget(min(given.images, 56), 16, 3, 2, 1, 1)
    # Quick runs always draw: a data set would be decoded as a whole at their size.
    real = given.data is not None and not given.quick
    data = load_training_data(given.data) if real else drawn_data(folder, given.images, size)
    base = load_bundle(given.bundle).architecture if given.bundle else Architecture()
    return Setting(given.bundle, data, replace(base, input_size=size), batch, budget, folder)


def main() -> None:
    """Print, and publish if asked, what training and evaluation cost."""
    parser = arguments(__doc__)
    parser.add_argument("--size", default="192x256", help="HxW; with --quick 64x64, drawn")
    parser.add_argument("--images", type=int, default=1500, help="images evaluated")
    parser.add_argument("--steps", type=int, default=8, help="steps of fine-tuning per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of fine-tuning")
    parser.add_argument("--repeats", type=int, default=3, help="evaluations")
    parser.add_argument("--all-layers", action="store_true", help="also train all layers")
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = report(made_setting(given, Path(folder)))
    print(text)
    if given.publish:
        write_section(PAGE, "training", text)


if __name__ == "__main__":
    main()

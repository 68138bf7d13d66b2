"""Does a network learn more if its evidence is kept inside the lesion's outline?

    python benchmarks/outline_supervision.py DATA --extra EXTRA --start BUNDLE --out RUN
        [--share 0.3] [--rate 1.5e-4] [--epochs 8] [--early-epochs 4] [--bundle NAME=PATH ...]
        [--reference NAME]

Trains the network of BUNDLE again, taught by itself, with worse photographs and more images, as
``dermlens train`` does with the options that docs/results.md tells; but to the loss is added, times
SHARE, the part of the evidence for the diagnosis that lies outside the lesion's outline. Evidence
is what the last layer adds up to the logit, cell by cell, its positive part (the class activation
map of Zhou et al. 2016, which is Grad-CAM for such a network). With a share of 0 the loss is that
of ``dermlens train``. Writes RUN/bundle; a killed run goes on with the same command.

Then tells how much of the evidence for the most probable class lies inside on validation images,
and whether answers rest less on the surroundings (which become plain skin) or on the lesion (which
is filled in): for the network it started from ("start"), the trained one and other bundles, with
differences to one of them (intervals of 95 % over lesions).
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.api import explain
from dermlens.data.augmentation import STRONG_AUGMENTATION
from dermlens.data.degradation import degradation_named
from dermlens.data.images import load_mask
from dermlens.lesion.shortcuts import ABLATIONS, ablate
from dermlens.model import training
from dermlens.model.bundle import load_bundle
from dermlens.model.configuration import HAM10000, TrainingConfiguration
from dermlens.model.finetuning import Finetuning
from dermlens.model.training_data import TrainingData, load_training_data
from dermlens.quality.localization import pixel_auc, pointing_game, relevance_mass
from dermlens.quality.statistics import cluster_intervals
from dermlens.report.html import markdown_table

SIZE = (96, 128)
"""Of the outlines, which are compared with maps of 6 times 8 cells."""
LOCATED = (
    "relevance mass",
    "pixel AUC",
    "pointing game",
    *(f"{what}, {name.replace('_', ' ')}" for name in ABLATIONS for what in ("same", "moved")),
)
"""Of Grad-CAM on the lesion; with lesion or surroundings gone, how many answers stay the same and
what part of the probability moves to other diagnoses."""
TOUCHED = 0.25
"""Of a cell: from here on evidence in it counts as inside, for a cell sees far beyond itself."""


class Outlines:
    """Lesion outlines in the order of the training images, read like images (N, H, W, 3).

    Without an outline an image allows evidence everywhere.
    """

    def __init__(self, data: TrainingData) -> None:
        tables = [(data.folder, data.table), *((one.folder, one.table) for one in data.extras)]
        self._inside = np.stack(
            [
                load_mask(folder / path, SIZE) if isinstance(path, str) else np.ones(SIZE, bool)
                for folder, table in tables
                for path in table.mask_path
            ]
        )
        self.shape = (*self._inside.shape, 3)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.repeat(self._inside[rows][..., None], 3, axis=3).astype(np.uint8) * 255


class InsideTheOutline(Finetuning):
    """Fine-tuning that keeps evidence inside the outline."""

    share = 0.3

    def _other_images(self) -> list[Any]:
        # Turned and shifted with the images. Colors change too, but white stays above 128 and
        # black below; an erased part of a small lesion is outside, for there is nothing to see.
        return [*super()._other_images(), Outlines(self._data)]

    def _make_step(self) -> Any:
        import keras
        import tensorflow as tf

        model, optimizer, average = self._model, self._optimizer, self._average
        sources = [variable.value for variable in optimizer.trained]
        classes = len(self._configuration.architecture.classes)
        both = keras.Model(model.input, [model.get_layer("pool").input, model.output])
        last = model.get_layer("logits").kernel

        @tf.function(autograph=False, reduce_retracing=True)
        def step(images: Any, labels: Any, weights: Any, number: Any, *others: Any) -> Any:
            truth = tf.one_hot(labels, classes)
            *others, outlines = others
            others = self._mixed_too(tuple(others), number)
            inside = tf.cast(outlines[..., :1] > 128, tf.float32)
            (inside,) = self._mixed_too((inside,), number)
            images, truth, weights = self._mixed(images, truth, weights, number)
            taught = None if self._teach is None else self._teach(images, others)
            images = self._worse(images, number)
            with tf.GradientTape() as tape:
                features, logits = both(images, training=True)
                loss = self._loss(truth, logits, weights, taught)
                wanted = tf.matmul(truth, last, transpose_b=True)
                loss += self.share * tf.reduce_mean(outside(features, wanted, inside))
            optimizer.apply(tape.gradient(loss, sources))
            average.update(number)
            right = tf.argmax(logits, 1) == tf.argmax(truth, 1)
            return loss, tf.reduce_mean(tf.cast(right, tf.float32))

        return step


def outside(features: Any, wanted: Any, inside: Any) -> Any:
    """Return the part of the evidence that lies outside, 0..1, float32 (B,).

    Args:
        features: What the last layer averages, (B, H, W, K).
        wanted: Its weights for the diagnosis, float32 (B, K).
        inside: Float32 (B, ..., ..., 1): 1 inside the outline. In a mixed picture both outlines
            count, as far as both lesions can be seen.
    """
    import tensorflow as tf

    evidence = tf.nn.relu(tf.einsum("bhwk,bk->bhw", tf.cast(features, tf.float32), wanted))
    cells = tf.image.resize(inside, tf.shape(features)[1:3], method="area")[..., 0]
    allowed = tf.minimum(1.0, cells / TOUCHED)
    total = tf.reduce_sum(evidence, axis=(1, 2))
    return tf.reduce_sum(evidence * (1 - allowed), axis=(1, 2)) / tf.maximum(total, 1e-6)


def configuration(
    start: Path, rate: float = 1.5e-4, epochs: int = 8, early_epochs: int = 4
) -> TrainingConfiguration:
    """Return how to train; unless told otherwise as (1) of docs/results.md was."""
    return replace(
        HAM10000,
        weights=str(start / "weights.h5"),
        head_epochs=0,
        teachers=(str(start),),
        teacher_share=0.5,
        mixup=0.2,
        augmentation=STRONG_AUGMENTATION,
        degradation=degradation_named("normal"),
        label_smoothing=0.0,
        pretrained_rate=rate,
        fresh_rate=rate,
        early_epochs=early_epochs,
        epochs=epochs,
        precision="mixed_bfloat16",
        seed=21,
    )


def located(bundle: Path, pictures: dict[str, np.ndarray], masks: np.ndarray) -> np.ndarray:
    """Return where Grad-CAM lies and what answers rest on, float64 (N, 7), as LOCATED tells.

    Args:
        bundle: The network.
        pictures: Images as they are (""), and after each of ``ABLATIONS``.
        masks: Their outlines, bool (N, H, W).
    """
    loaded = load_bundle(bundle)
    maps = explain(loaded, pictures[""])["grad_cam"].maps
    found = [relevance_mass(maps, masks), pixel_auc(maps, masks), pointing_game(maps, masks)]
    said = {name: loaded.probabilities(loaded.logits(images)) for name, images in pictures.items()}
    answers = said[""].argmax(axis=1)
    for name in ABLATIONS:
        found.append((said[name].argmax(axis=1) == answers).astype(float))
        found.append(np.abs(said[name] - said[""]).sum(axis=1) / 2)
    return np.stack(found, axis=1)


def outlines(data: TrainingData) -> np.ndarray:
    """Return outlines of validation images, bool (N, H, W)."""
    paths = data.table.mask_path.iloc[data.rows["validation"]]
    size = HAM10000.architecture.input_size
    return np.stack([load_mask(data.folder / path, size) for path in paths])


def ablated(data: TrainingData, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Return validation images as they are and after each of ``ABLATIONS``, float32."""
    images = data.images(HAM10000.architecture.input_size)[data.rows["validation"]]
    pictures = {"": images.astype(np.float32)}
    for name in ABLATIONS:
        pairs = zip(images, masks, strict=True)
        pictures[name] = np.stack([ablate(image, mask, name).image for image, mask in pairs])
    return pictures


def locations(bundles: dict[str, Path], data: TrainingData, reference: str) -> str:
    """Return a Markdown table of where evidence lies, differences to the bundle of that name."""
    lesions = data.table.lesion_id.iloc[data.rows["validation"]].to_numpy()
    masks = outlines(data)
    pictures = ablated(data, masks)
    found = {name: located(path, pictures, masks) for name, path in bundles.items()}
    rows = []
    for name, values in found.items():
        cells = [f"{mean:.3f}" for mean in np.nanmean(values, axis=0)]
        if name != reference:
            between = cluster_intervals(values - found[reference], lesions)
            cells = [
                f"{cell} ({one.low:+.3f} to {one.high:+.3f})"
                for cell, one in zip(cells, between, strict=True)
            ]
        rows.append([name, *cells])
    return markdown_table(pd.DataFrame(rows, columns=["network", *LOCATED]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--extra", type=Path, action="append", default=[])
    parser.add_argument("--start", type=Path, required=True, help="bundle to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=InsideTheOutline.share)
    parser.add_argument("--rate", type=float, default=1.5e-4, help="peak learning rate")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--early-epochs", type=int, default=4, help="of small images")
    parser.add_argument("--bundle", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--reference", default="start", metavar="NAME")
    options = parser.parse_args()
    InsideTheOutline.share = options.share
    training.Finetuning = InsideTheOutline  # type: ignore[misc]
    resume = (options.out / "configuration.json").is_file()
    how = configuration(options.start, options.rate, options.epochs, options.early_epochs)
    training.train(options.data, options.out, how, extra=options.extra, resume=resume)
    bundles = {"start": options.start, "trained": options.out / "bundle"}
    bundles |= {name: Path(path) for name, path in (one.split("=", 1) for one in options.bundle)}
    print(locations(bundles, load_training_data(options.data), options.reference))


if __name__ == "__main__":
    main()

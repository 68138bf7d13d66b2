"""What makes a classifier better? Bundles and readings of one compared on validation images.

    python benchmarks/levers.py DATA --out run/levers [--reference BUNDLE] [--bundle NAME=PATH ...]
        [--sizes 224x304,...] [--worse]

DATA is the prepared and split data set that all bundles learned from. The reference, the shipped
model unless another is named, is what the others are compared with: paired, intervals of 95 % over
lesions. Of it are measured besides: four views, the middle of the picture as a second view, colors
evened out (shades of gray: Finlayson & Trezzi, CIC 2004) and other input sizes, both without
training, and what age, sex and place on the body add. Temperature and balanced rule are fitted on
the same images for every row, which flatters all alike. Logits are kept in OUT, so that a run that
was killed goes on. Writes levers.md and prints it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from bench_tools import given_model

from dermlens.cli_options import parse_size
from dermlens.data.cache import cached_images
from dermlens.data.images import opened_rgb, read_bytes
from dermlens.files import write_text, written_beside
from dermlens.lesion.worse_photographs import CHANGES, Change, changed
from dermlens.model.bundle import load_bundle
from dermlens.model.bundle_choice import SHIPPED
from dermlens.model.calibration import Calibration, fit_calibration
from dermlens.model.evaluation import compare_predictions
from dermlens.model.prediction import Predictor
from dermlens.model.prediction_table import predictions_table
from dermlens.model.training_data import TrainingData, load_training_data
from dermlens.report.html import markdown_table

FIGURES = {
    "macro_auc": "macro AUC",
    "most_probable_balanced_accuracy": "balanced accuracy, most probable class",
    "balanced_accuracy": "balanced rule",
    "nll": "log-likelihood, negative",
}
NORM = 6
"""Of the mean that tells how strong a color is: between the mean (1) and the largest value."""


def kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return stored logits, made the first time."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as temporary, open(temporary, "wb") as stream:
            np.save(stream, make())
    return np.load(path)


def logits_at(
    bundle: Path, data: TrainingData, size: tuple[int, int] | None = None, views: int = 1
) -> np.ndarray:
    """Return logits of the validation images, at another input size if one is given."""
    size = size or load_bundle(bundle).input_size
    images = cached_images(data.folder, data.table, size)
    predictor = Predictor(given_model(bundle, size))
    return predictor.logits(images, data.rows["validation"], tta_views=views)


def logits_of_the_middle(bundle: Path, data: TrainingData) -> np.ndarray:
    """Return logits of the middle four fifths of the validation images, enlarged to the input."""
    loaded = load_bundle(bundle)
    height, width = loaded.input_size
    top, left = height // 8, width // 8
    large = cached_images(data.folder, data.table, (height + 2 * top, width + 2 * left))
    middle = large[data.rows["validation"], top : top + height, left : left + width]
    return Predictor(loaded.model).logits(middle)


def strengths(images: np.ndarray) -> np.ndarray:
    """Return how strong each color of images (N, H, W, 3) is, float64 (N, 3): shades of gray."""
    values = np.maximum(images.reshape(len(images), -1, 3).astype(np.float64), 1.0)
    return np.asarray((values**NORM).mean(axis=1) ** (1 / NORM))


def logits_in_one_light(bundle: Path, data: TrainingData) -> np.ndarray:
    """Return logits of the validation images, all given the colors of the mean training image.

    Their lightness stays.
    """
    loaded = load_bundle(bundle)
    images = data.images(loaded.input_size)
    typical = np.exp(np.log(strengths(images[data.rows["train"][::4]])).mean(axis=0))
    wanted = images[data.rows["validation"]]
    gains = typical / strengths(wanted)
    gains /= gains.mean(axis=1, keepdims=True)
    even = np.clip(wanted * gains[:, None, None], 0, 255).astype(np.float32)
    return Predictor(loaded.model).logits(even)


def logits_when_worse(bundle: Path, data: TrainingData, change: Change) -> np.ndarray:
    """Return logits of the validation photographs after a change."""
    loaded, photographs = load_bundle(bundle), data.table.path.iloc[data.rows["validation"]]
    images = []
    for path in photographs:
        with opened_rgb(read_bytes(data.folder / path), path) as photograph:
            images.append(changed(photograph, change, loaded.input_size))
    return Predictor(loaded.model).logits(np.stack(images).astype(np.float32))


def calibrated(logits: np.ndarray, data: TrainingData) -> Calibration:
    rows = data.rows["validation"]
    counts = np.bincount(data.labels[data.rows["train"]], minlength=len(data.classes.codes))
    lesions = data.table.lesion_id.to_numpy()[rows]
    return fit_calibration(logits, data.labels[rows], counts, lesions, classes=data.classes)


def compared(variants: dict[str, np.ndarray], data: TrainingData, reference: str) -> pd.DataFrame:
    """Return a row per variant: figures with their differences to the reference."""
    rows = data.table.iloc[data.rows["validation"]]
    calibrations = {name: calibrated(one, data) for name, one in variants.items()}
    tables = {n: predictions_table(rows, one, calibrations[n]) for n, one in variants.items()}
    found = compare_predictions(tables, calibrations, reference=reference)
    found = found.set_index(["name", "figure"])
    shown = []
    for name in variants:
        row = {"": name}
        for figure, title in FIGURES.items():
            one = found.loc[(name, figure)]
            row[title] = f"{one.value:.3f}"
            if name != reference:
                row[title] += f" ({one.difference:+.3f}: {one.low:+.3f} to {one.high:+.3f})"
        shown.append(row)
    return pd.DataFrame(shown)


def when_worse(
    clean: dict[str, np.ndarray], worse: dict[str, dict[str, np.ndarray]], data: TrainingData
) -> pd.DataFrame:
    """Return a row per variant: means over changes, and the change that costs each reading most.

    Args:
        clean: Logits of the photographs as they are, by variant; calibrations are fitted to them.
        worse: Logits by title of the change and by variant.
    """
    rows = data.table.iloc[data.rows["validation"]]
    calibrations = {name: calibrated(one, data) for name, one in clean.items()}
    found = []
    for title, logits in {"": clean, **worse}.items():
        tables = {n: predictions_table(rows, one, calibrations[n]) for n, one in logits.items()}
        table = compare_predictions(tables, calibrations, reference=next(iter(clean)), resamples=1)
        found.append(table.assign(change=title))
    values = pd.concat(found).set_index(["name", "figure", "change"]).value.sort_index()
    shown = []
    for name in clean:
        row = {"": name}
        for figure, title in FIGURES.items():
            one = values[name, figure]
            row[f"{title}, mean of {len(worse)}"] = f"{one.loc[list(worse)].mean():.3f}"
            if "accuracy" in figure:
                lost = one.loc[list(worse)] - one[""]
                row[f"{title}, most lost"] = f"{lost.min():+.3f} ({lost.idxmin()})"
        shown.append(row)
    return pd.DataFrame(shown)


def other_readings(
    first: str, path: Path, data: TrainingData, base: np.ndarray, out: Path, sizes: list[str]
) -> dict[str, np.ndarray]:
    """Return logits of one bundle, those at first sight being ``base``, read in other ways."""
    found = {}
    found[f"{first}, 4 views"] = kept(
        out / f"{first}_4.npy", lambda: logits_at(path, data, views=4)
    )
    middle = kept(out / f"{first}_middle.npy", lambda: logits_of_the_middle(path, data))
    found[f"{first}, mean with its middle enlarged"] = (base + middle) / 2
    found[f"{first}, colors evened out"] = kept(
        out / f"{first}_light.npy", lambda: logits_in_one_light(path, data)
    )
    for text in sizes:
        found[f"{first} at {text}"] = kept(
            out / f"{first}_{text}.npy", lambda text=text: logits_at(path, data, parse_size(text))
        )
    if (facts := load_bundle(path).patient_facts) is not None:
        known = data.table.iloc[data.rows["validation"]]
        found[f"{first}, age, sex and place"] = facts.fused(base, known)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference", type=Path, default=SHIPPED)
    parser.add_argument("--bundle", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--sizes", default="144x192,240x320")
    parser.add_argument("--worse", action="store_true", help="worse photographs too")
    given = parser.parse_args()
    named = (one.partition("=") for one in given.bundle)
    reference = "shipped" if given.reference == SHIPPED else given.reference.name
    bundles = {reference: given.reference, **{name: Path(path) for name, _, path in named}}
    data, out = load_training_data(given.data), given.out
    variants = {
        name: kept(out / f"{name}.npy", lambda path=path: logits_at(path, data))
        for name, path in bundles.items()
    }
    first, path = next(iter(bundles.items()))
    base = variants[first]
    worse = {
        change.title: {
            name: kept(
                out / f"{name}_{change.name}.npy",
                lambda path=path, change=change: logits_when_worse(path, data, change),
            )
            for name, path in bundles.items()
        }
        for change in CHANGES
        if given.worse and change.mild
    }
    if len(bundles) > 1:
        for logits in (variants, *worse.values()):
            logits["mean of the logits of all"] = np.mean(list(logits.values()), axis=0)
    clean, sizes = dict(variants), list(filter(None, given.sizes.split(",")))
    variants |= other_readings(first, path, data, base, out, sizes)
    text = markdown_table(compared(variants, data, first))
    if worse:
        text += "\n\n" + markdown_table(when_worse(clean, worse, data))
    write_text(out / "levers.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()

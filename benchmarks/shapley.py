"""Shapley values from few masks: the Gaussian process against the published regression.

Both estimators get the same number of evaluated masks of an image, each with the masks it is best
served by, and with those that LIME shares. They are compared with two references: the regression
from 6,000 masks, which is unbiased but still noisy, and the process from 3,000 others.

    python benchmarks/shapley.py --bundle BUNDLE --data DATA [--images 8] [--scorer int8]
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench_tools import arguments, given_images, machine, markdown, model_and_scorer, publish

from dermlens.cli_options import parse_size
from dermlens.explainers.base import Cost
from dermlens.explainers.baselines import baseline_image
from dermlens.explainers.coalitions import Coalitions, coalitions
from dermlens.explainers.perturbation import MaskedModel
from dermlens.explainers.shap import constrained_values
from dermlens.explainers.shapley_process import process_values
from dermlens.explainers.superpixel_explainer import DEFAULT_SUPERPIXELS, superpixel_masks
from dermlens.explainers.superpixels import superpixels

BUDGETS = (125, 250, 500, 1000)
REFERENCES = {"regression": ("shap", 6000), "process": ("even", 3000)}
VARIANTS = (
    ("regression", "shap", "regression"),
    ("regression", "both", "regression, shared with LIME"),
    ("process", "even", "process"),
    ("process", "both", "process, shared with LIME"),
)
REFERENCE_SEED = 1000


class Game:
    """Scores of one image under masks, for one class."""

    def __init__(self, masked: MaskedModel, image: np.ndarray, goal: int, batch: int) -> None:
        self.masked, self.image, self.goal = masked, image.astype(np.float32), goal
        self.batch = batch
        self.labels = superpixels(self.image, DEFAULT_SUPERPIXELS)
        self.pieces = int(self.labels.max()) + 1
        self.baseline = baseline_image(self.image, "border")

    def play(self, design: str, samples: int, seed: int) -> tuple[Coalitions, np.ndarray]:
        """Return masks and their scores (n, 1)."""
        made = coalitions(self.pieces, samples, design, np.random.default_rng(seed))
        kept = made.masks.astype(np.float32)
        logits = self.masked.logits(self.image, self.baseline, self.labels, kept, self.batch)
        return made, logits[:, [self.goal]].astype(np.float64)


def estimate(
    estimator: str, masks: Coalitions, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return values (M,) and half widths of their 95 % intervals (M,)."""
    if estimator == "regression":
        values, half = constrained_values(masks, scores)
        return values[0], half[0]
    fit = process_values(masks, scores)
    return fit.values[0], 1.96 * fit.deviation[0]


def measure(game: Game, budgets: tuple[int, ...], shrink: int) -> list[dict[str, Any]]:
    """Return a row for every variant and budget on one image."""
    truth = {
        name: estimate(name, *game.play(design, samples // shrink, REFERENCE_SEED))[0]
        for name, (design, samples) in REFERENCES.items()
    }
    rows = []
    for estimator, design, title in VARIANTS:
        for budget in budgets:
            found, half = estimate(estimator, *game.play(design, budget, 0))
            row: dict[str, Any] = {"estimator": title, "passes": budget}
            for name, expected in truth.items():
                error = ((found - expected) ** 2).sum()
                row[f"error, {name}"] = error / ((expected - expected.mean()) ** 2).sum()
                pair = [values[game.labels].ravel() for values in (found, expected)]
                row[f"r, {name}"] = np.corrcoef(*pair)[0, 1]
            row["covered"] = np.mean(np.abs(found - truth["process"]) <= half)
            rows.append(row)
    return rows


def figure(mean: pd.DataFrame) -> Any:
    """Draw the squared error over passes."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 4.5), layout="constrained")
    axes = drawn.subplots()
    for title, part in mean.groupby("estimator", sort=False):
        axes.plot(part.passes, part["error, process"], marker="o", label=title)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(mean.passes.unique()), [str(n) for n in mean.passes.unique()])
    axes.minorticks_off()
    axes.set_xlabel("passes")
    axes.set_ylabel("squared error over variance of the values (median)")
    axes.grid(alpha=0.3)
    axes.legend()
    return drawn


def main() -> None:
    """Measure every image and write table and figure."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", default="192x256", help="HxW, where no bundle says")
    parser.add_argument("--scorer", choices=("float32", "int8"), default="float32")
    given = parser.parse_args()
    size = parse_size(given.size)
    model, scorer = model_and_scorer(given.bundle, size, given.scorer)
    images = given_images(given.data, 1 if given.quick else given.images, size)
    goals = model.predict(images.astype(np.float32), verbose=0).argmax(axis=1)
    masked = MaskedModel(model, superpixel_masks, Cost(), scorer)
    rows: list[dict[str, Any]] = []
    for image, goal in zip(images, goals, strict=True):
        budgets = BUDGETS[:2] if given.quick else BUDGETS
        game = Game(masked, image, int(goal), given.batch_size)
        rows += measure(game, budgets, 20 if given.quick else 1)
        print(f"{len(rows)} rows", flush=True)
    # Medians: one image of which nothing can be said would decide every mean.
    mean = pd.DataFrame(rows).groupby(["estimator", "passes"], sort=False).median().reset_index()
    text = (
        f"{machine()} {len(images)} images, scorer {given.scorer}, "
        "medians. *error*: squared error of the values over their variance, and *r* of the maps, "
        "by reference; *covered*: values of the process's reference inside the 95 % interval.\n\n"
    )
    out = given.out or (Path("bench-quick") if given.quick else None)
    publish(out, "shapley", text + markdown(mean.round(3)), figure(mean))


if __name__ == "__main__":
    main()

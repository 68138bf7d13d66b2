"""What more passes buy: quality of LIME, Shapley values, RISE and Integrated Gradients.

For every method and budget: Pearson's r and overlap of the strongest fifth with the map of ten
times the default budget (another seed, so that nothing is shared), and the areas under the deletion
and insertion curves. The knee is the budget after which more passes buy least.

Run ``python benchmarks/curves.py [--bundle BUNDLE] [--data DATA] [--images 10] [--quick]``. With
``--scorer int8`` changed images are evaluated by the bundle's int8 copy.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench_tools import arguments, given_images, machine, markdown, model_and_scorer, publish

from dermlens.cli_options import parse_size
from dermlens.errors import UsageError
from dermlens.explainers.registry import METHODS, create
from dermlens.quality import metrics
from dermlens.quality.agreement import TOP_SHARE, pearson, top_overlap
from dermlens.quality.evaluations import Evaluations

REFERENCE_SEED = 1000


@dataclass(frozen=True)
class Sweep:
    """Budgets of one method.

    Attributes:
        method: Name in the registry.
        option: Name of its argument that sets the budget.
        budgets: Values of it.
        reference: Arguments of ten times the default budget.
        options: More arguments, but not of the reference.
        title: What it is called; default the method's name.
    """

    method: str
    option: str
    budgets: tuple[int, ...]
    reference: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def name(self) -> str:
        """What it is called."""
        return self.title or METHODS[self.method].title


SWEEPS = (
    Sweep("lime", "n_samples", (60, 125, 250, 500, 1000, 2000), {"n_samples": 5000}),
    Sweep("gp_shap", "n_samples", (125, 250, 500, 1000, 2000), {"n_samples": 5000}),
    Sweep("kernel_shap", "n_samples", (125, 250, 500, 1000, 2000), {"n_samples": 5000}),
    Sweep("rise", "n_samples", (125, 250, 500, 1000, 2000, 4000), {"n_samples": 10000}),
    Sweep("integrated_gradients", "n_steps", (4, 8, 16, 32, 64), {"n_steps": 160}),
)
QUICK_SWEEPS = (
    Sweep("lime", "n_samples", (60, 120), {"n_samples": 240}),
    Sweep("gp_shap", "n_samples", (125, 250), {"n_samples": 300}),
    Sweep("rise", "n_samples", (40, 80), {"n_samples": 160}),
    Sweep("integrated_gradients", "n_steps", (2, 4), {"n_steps": 8}),
)


def measure(
    sweep: Sweep, model: Any, images: np.ndarray, goals: np.ndarray, batch: int, scorer: Any
) -> list[dict[str, Any]]:
    """Return a row for every image and budget of a method."""
    shared: dict[str, Any] = (
        {"scorer": scorer} if METHODS[sweep.method].family == "perturbation" else {}
    )
    evaluations, rows = Evaluations(model, batch_size=batch), []

    def explain(image: np.ndarray, goal: int, seed: int, explainer: Any) -> Any:
        return explainer.attribute(image[None], int(goal), batch_size=batch, seed=seed)

    shared |= METHODS[sweep.method].fixed
    best = create(sweep.method, model, **sweep.reference, **shared)
    shared |= sweep.options
    wanted = [explain(i, g, REFERENCE_SEED, best).maps for i, g in zip(images, goals, strict=True)]
    for budget in sweep.budgets:
        explainer = create(sweep.method, model, **{sweep.option: budget}, **shared)
        for position, (image, goal) in enumerate(zip(images, goals, strict=True)):
            try:
                made = explain(image, goal, 0, explainer)
            except UsageError as refused:
                print(f"{sweep.method} {budget}: {refused}")
                break
            worth = metrics.measure(
                ["deletion", "insertion"], model, image[None], made.maps, int(goal),
                evaluations=evaluations,
            )  # fmt: skip
            rows.append(
                {
                    "method": sweep.name,
                    "budget": f"{sweep.option} {budget}",
                    "image": position,
                    "forward": made.cost.forward,
                    "backward": made.cost.backward,
                    "r": float(pearson(made.maps, wanted[position])[0]),
                    "top_20_iou": float(top_overlap(made.maps, wanted[position], TOP_SHARE)[0]),
                    **{name: float(values[0]) for name, values in worth.items()},
                    "seconds": made.cost.seconds,
                }
            )
        print(f"{sweep.name} {sweep.option} {budget} done", flush=True)
    return rows


def knee(passes: np.ndarray, quality: np.ndarray) -> int:
    """Return the position of the point farthest above the line from the first to the last point.

    Passes count by their logarithm (the "kneedle" of Satopää et al., ICDCS Workshops 2011).
    """
    x, y = np.log(np.asarray(passes, float)), np.asarray(quality, float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return len(x) - 1
    return int(np.argmax((y - y[0]) / np.ptp(y) - (x - x[0]) / np.ptp(x)))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return means over images by method and budget, the knee marked."""
    mean = rows.groupby(["method", "budget"], sort=False).mean(numeric_only=True).reset_index()
    lowest = rows.groupby(["method", "budget"], sort=False).r.min().reset_index(name="lowest_r")
    mean = mean.merge(lowest, on=["method", "budget"]).drop(columns="image")
    mean["knee"] = ""
    for _, part in mean.groupby("method"):
        mean.loc[part.index[knee(part.forward.to_numpy(), part.r.to_numpy())], "knee"] = "knee"
    return mean


def figure(mean: pd.DataFrame) -> Any:
    """Draw agreement, and insertion minus deletion, over passes."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for name, part in mean.groupby("method", sort=False):
        left.plot(part.forward, part.r, marker="o", label=str(name))
        right.plot(part.forward, part.insertion - part.deletion, marker="o")
        marked = part[part.knee == "knee"]
        left.plot(marked.forward, marked.r, "o", markersize=12, fillstyle="none", color="0.2")
    for axes, title in ((left, "r with 10 times the budget"), (right, "insertion minus deletion")):
        axes.set_xscale("log")
        axes.set_xlabel("forward passes per image")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    left.legend()
    return drawn


def main() -> None:
    """Sweep every method and write table and figure."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--size", default="192x256", help="HxW, where no bundle says")
    parser.add_argument("--scorer", choices=("float32", "int8"), default="float32")
    parser.add_argument("--methods", default=",".join(sweep.method for sweep in SWEEPS))
    given = parser.parse_args()
    size = parse_size(given.size)
    model, scorer = model_and_scorer(given.bundle, size, given.scorer)
    count = 1 if given.quick else given.images
    images = given_images(given.data, count, size)
    goals = model.predict(images.astype(np.float32), verbose=0).argmax(axis=1)
    rows: list[dict[str, Any]] = []
    for sweep in QUICK_SWEEPS if given.quick else SWEEPS:
        if sweep.method in given.methods.split(","):
            rows += measure(sweep, model, images, goals, given.batch_size, scorer)
    mean = summary(pd.DataFrame(rows))
    out = given.out or (Path("bench-quick") if given.quick else None)
    intro = f"{machine()} {len(images)} images, scorer {given.scorer}, means over images."
    shown = mean.round({"forward": 0, "seconds": 2}).round(3)
    publish(out, "curves", f"{intro}\n\n{markdown(shown)}", figure(mean))


if __name__ == "__main__":
    main()

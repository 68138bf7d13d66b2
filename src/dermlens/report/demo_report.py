"""The page of the demo: what was asked, what was found, why, and how good the reasons are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermlens.data.images import load_image, load_mask
from dermlens.data.manifest import read_manifest, select_split
from dermlens.data.splits import audit
from dermlens.explainers.registry import SIX, create_several, shared_bank
from dermlens.files import read_json
from dermlens.labels import HAM10000
from dermlens.model.bundle import Bundle
from dermlens.quality.controls import create_controls, title
from dermlens.quality.evaluations import Evaluations
from dermlens.quality.metrics import STRUCTURE_PREFIX, measure, metric
from dermlens.quality.statistics import cluster_intervals
from dermlens.report.benchmark_figures import metric_intervals
from dermlens.report.evaluation_report import summary_line
from dermlens.report.figures import LESION_COLOR, attribution_grid, outline
from dermlens.report.html import Page
from dermlens.report.style import new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 150
"""Masks per image for LIME and Shapley values: three per piece, enough to see where."""
BASELINE_TITLE = "color histogram"
RIVAL = "centered_gaussian"
"""The hardest control: lesions lie in the middle."""
CONTROLS = ("random", RIVAL, "untrained_grad_cam")
_ON_STRUCTURE = ("pixel_auc", "relevance_rank")
_ON_ANSWER = ("deletion", "insertion")
_STRUCTURE = "drawn structure"
_NEXT = """<pre style="overflow-x: auto"><code>source .venv/bin/activate
dermlens predict photo.jpg                       # the shipped model: trained on real photographs
dermlens explain photo.jpg --methods six --out explanations
dermlens app                                     # the same in a web page
dermlens adopt model.keras --classes a,b,c --out bundle     # your own Keras classifier
dermlens data prepare path/to/HAM10000 --out data           # your own training
</code></pre>"""


@dataclass(frozen=True)
class Explained:
    """Test images that were classified correctly, one per class, and why.

    Attributes:
        codes: Their classes, (N,).
        images: uint8 (N, H, W, 3).
        structures: What was drawn for the class, bool (N, H, W).
        maps: float32 (N, H, W) of each method and control by name.
        signed: Whether negative values speak against the class, by name.
        methods: Names of the methods; what else is in ``maps`` is a control.
    """

    codes: list[str]
    images: np.ndarray
    structures: np.ndarray
    maps: dict[str, np.ndarray]
    signed: dict[str, bool]
    methods: tuple[str, ...] = SIX

    @property
    def controls(self) -> list[str]:
        """Names of the controls."""
        return [name for name in self.maps if name not in self.methods]


def explain_one_per_class(
    bundle: Bundle, data: Path, predictions: pd.DataFrame, *, seed: int = 0
) -> Explained | None:
    """Explain the first correctly classified test image of each class by six methods.

    Args:
        bundle: Trained on the drawn images.
        data: Their folder, with the structures that were drawn.
        predictions: Predictions table of the test split.
        seed: Sets everything random.

    Returns:
        None if no image was classified correctly.
    """
    table = select_split(read_manifest(data), "test").set_index("image_id")
    right = predictions[predictions.predicted == predictions.dx].groupby("dx").image_id.first()
    codes = [code for code in HAM10000.codes if code in right.index]
    if not codes:
        return None
    size = bundle.input_size
    images = np.stack([load_image(data / table.path[right[code]], size) for code in codes])
    structures = np.stack(
        [load_mask(data / "structures" / f"{right[code]}_structure.png", size) for code in codes]
    )
    bank = shared_bank(bundle, SIX, n_samples=SAMPLES)
    maps, signed = {}, {}
    explainers = create_several(SIX, bundle, bank=bank)
    for name, explainer in {**explainers, **create_controls(CONTROLS, bundle, seed=seed)}.items():
        attribution = explainer.attribute(images, codes, seed=seed)
        maps[name], signed[name] = attribution.maps, attribution.signed
    return Explained(codes, images, structures, maps, signed)


def quality(bundle: Bundle, explained: Explained, *, seed: int = 0) -> dict[str, Any]:
    """Measure every map against the structure that decides the class, and against the network.

    Returns:
        ``methods``, ``controls`` and ``metrics``, in the form of a benchmark's ``summary.json``:
        mean and 95 % interval over the images, by metric and method, and the interval of the
        paired difference from a Gaussian in the middle of the image.
    """
    names, evaluations = list(explained.maps), Evaluations(bundle)
    by_map = [
        measure(
            [*_ON_STRUCTURE, *_ON_ANSWER], bundle, explained.images, explained.maps[name],
            explained.codes, masks=explained.structures, evaluations=evaluations, seed=seed,
        )
        for name in names
    ]  # fmt: skip
    metrics = {}
    for one in by_map[0]:
        values = np.stack([measured[one] for measured in by_map], axis=1)
        found = cluster_intervals(values, explained.codes, seed=seed)
        beside = cluster_intervals(
            values - values[:, [names.index(RIVAL)]], explained.codes, seed=seed
        )
        metrics[f"{STRUCTURE_PREFIX if one in _ON_STRUCTURE else ''}{one}"] = {
            name: {"mean": mean.mean, "low": mean.low, "high": mean.high,
                   "above_gaussian": {"low": gain.low, "high": gain.high}}
            for name, mean, gain in zip(names, found, beside, strict=True)
        }  # fmt: skip
    return {
        "methods": list(explained.methods),
        "controls": explained.controls,
        "metrics": metrics,
    }


def demo_page(
    out: Path, bundle: Bundle, explained: Explained | None, measured: Mapping[str, Any] | None,
    baseline: float,
) -> Page:  # fmt: skip
    """Compose the page from what lies in the demo's folder.

    Args:
        out: Folder of the demo, evaluated.
        bundle: The trained network.
        explained: As ``explain_one_per_class`` returns it.
        measured: As ``quality`` returns it, None where nothing was explained.
        baseline: Balanced accuracy of the color histogram.
    """
    data, evaluation = out / "data", out / "evaluation"
    result = read_json(evaluation / "metrics.json")
    scratch = bundle.facts["training"].get("weights") == "none"
    origin = "trained from nothing" if scratch else "that knew photographs of skin, taught anew"
    page = Page(
        "dermlens demo",
        f"A ResNet50 {origin}, on drawn images. Nothing here says anything about patients.",
    )
    page.section(
        "What was asked",
        "Which of seven structures was drawn? Each decides the diagnosis of its image; colors, "
        "sizes and artifacts are shared by all seven, so that color alone does not tell.",
    )
    if explained is not None:
        page.figure(_question(explained), "One test image per diagnosis; what decides is outlined.")
    low, high = result["confidence_intervals"]["balanced_accuracy"]
    page.section(
        "What was found",
        f"The network finds the structure: balanced accuracy {result['balanced_accuracy']:.3f} "
        f"({low:.3f} to {high:.3f}) on {result['n_images']:,} test images. A {BASELINE_TITLE} with "
        f"logistic regression reaches {baseline:.3f}.",
    ).figure(
        _png(evaluation / "confusion_matrix.png"),
        "Rows are what was drawn, columns what the network answered.",
    )
    _reasons(page, explained, measured)
    page.section("Your own images").markup(_NEXT)
    _details(page, out, data, result)
    return page


def _reasons(
    page: Page, explained: Explained | None, measured: Mapping[str, Any] | None
) -> None:  # fmt: skip
    if explained is None or measured is None:
        page.section("Why?", "No test image was classified correctly; there is nothing to show.")
        return
    page.section(
        "Why?",
        "Six methods mark where the network found the evidence for its answer. A good reason lies "
        "on the drawn structure, in the second column.",
    )
    for names, words in ((SIX[:3], "From the network's inside"), (SIX[3:], "From what happens when "
                         "parts are covered")):  # fmt: skip
        page.figure(overview(explained, names), f"{words}: {_listed(list(map(title, names)))}.")
    page.section(
        "How good are the reasons?",
        f"Measured on {len(explained.codes)} images, with 95 % intervals. Gray rows are controls "
        "that know nothing of the image or of what was learned: a reason that is no better than "
        "they are says nothing. " + _verdict(measured),
    )
    page.figure(
        metric_intervals(dict(measured), "localization"),
        "Does the map lie on the drawn structure? Integrated Gradients marks single pixels for and "
        "against on the structure itself, which sorting by value cannot reward.",
    )
    page.figure(
        metric_intervals(dict(measured), "faithfulness"),
        "Does the answer depend on what is marked? Deletion takes the most important pixels away, "
        "insertion brings them back.",
    )
    page.table(
        quality_table(measured),
        "The same as numbers: mean (95 % interval); the arrow points to better.",
    )
    page.paragraph(
        "'dermlens benchmark demo/run/bundle demo/data' measures more images by all metrics, and "
        "tests which differences are more than chance."
    )


def _verdict(measured: Mapping[str, Any]) -> str:
    """Say which methods beat the hardest control, by paired differences."""
    parts = []
    for name, values in measured["metrics"].items():
        about = metric(name)
        better = [
            title(one)
            for one in measured["methods"]
            if (gain := values[one]["above_gaussian"])
            and (gain["low"] > 0 if about.direction == "higher" else gain["high"] < 0)
        ]
        if better:
            parts.append(f"{_listed(better)} by {about.title}")
    if not parts:
        return "On so few images no method is clearly better than a Gaussian in the middle."
    return f"Better than a Gaussian in the middle, image by image: {'; '.join(parts)}."


def quality_table(measured: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row per method and control, a column per metric, written for people."""
    rows = []
    for name in [*measured["methods"], *measured["controls"]]:
        row = {"map": title(name)}
        for measure_name, values in measured["metrics"].items():
            about, one = metric(measure_name), values[name]
            text = f"{one['mean']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
            arrow = "↑" if about.direction == "higher" else "↓"
            row[f"{about.title.removesuffix(' (structure)')} {arrow}"] = text
        rows.append(row)
    return pd.DataFrame(rows)


def _details(page: Page, out: Path, data: Path, result: dict[str, Any]) -> None:
    table = read_manifest(data)
    leak_table, leaks = audit(data)
    counts = pd.crosstab(table.dx, table.split).reindex(
        index=list(HAM10000.codes), columns=["train", "validation", "test"]
    )
    leak = leak_table.leaking_under_image_level_split_percent.iloc[-1]
    page.section(
        "The details",
        f"{len(table):,} synthetic images of {table.lesion_id.nunique():,} lesions, split by "
        f"lesion. Lesions in two splits: {leaks['lesions_in_two_splits']}; a split by image would "
        f"have put {leak:.0f} % of the test images on lesions seen in training. "
        f"{summary_line(result)}. Intervals are 95 %, by bootstrap over lesions.",
    )
    page.table(counts.reset_index(names="diagnosis"), "Images per diagnosis and split.")
    rows = [
        {"diagnosis": f"{one.code}: {one.name}", **result["per_class"][one.code]}
        for one in HAM10000.labels
    ]
    figures = pd.DataFrame(rows).rename(
        columns={"f1": "F1", "auc": "AUC", "average_precision": "average precision"}
    )
    page.table(figures, "Figures per diagnosis on the test split.")
    for folder, name, caption in (
        ("run", "training_curves", "Loss and validation scores by epoch."),
        ("run", "augmentation", "What training images look like."),
        ("evaluation", "roc_and_pr_curves", "One class against the rest."),
        ("evaluation", "reliability_diagram", "Is the confidence honest?"),
        ("evaluation", "operating_points", "Thresholds chosen on validation, figures on test."),
    ):
        page.figure(_png(out / folder / f"{name}.png"), caption)


def _png(path: Path) -> bytes:
    return path.read_bytes()


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _names(codes: Sequence[str]) -> list[str]:
    labels = {one.code: one.name for one in HAM10000.labels}
    return [labels[code].split(" / ")[0].capitalize() for code in codes]


def _question(explained: Explained, columns: int = 4) -> "Figure":
    """Draw the images with the deciding structure outlined, their diagnoses above them."""
    height, width = explained.images.shape[1:3]
    rows = -(-len(explained.codes) // columns)
    with style():
        figure = new_figure(2.3 * columns, (2.3 * height / width + 0.35) * rows)
        grid: Any = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, image, structure, name in zip(
            grid.flat, explained.images, explained.structures, _names(explained.codes), strict=False
        ):
            axes.imshow(outline(image, structure, LESION_COLOR), interpolation="nearest")
            axes.set_title(name, fontsize=9)
        return figure


def overview(explained: Explained, names: Sequence[str] = SIX) -> "Figure":
    """Draw a row per image: the image, what was drawn into it, and the maps of some methods."""
    maps = {_STRUCTURE: explained.structures.astype(np.float32)}
    short = {name: title(name).split(" (")[0] for name in names}
    maps |= {short[name]: explained.maps[name] for name in names}
    signed = {_STRUCTURE: False} | {short[name]: explained.signed[name] for name in names}
    return attribution_grid(
        list(explained.images), maps, signed=signed, labels=_names(explained.codes)
    )

"""What holds exactly on paper, measured on a real bundle and real test images.

    python benchmarks/real_images.py DATA [--bundle BUNDLE] [--images 20] [--sheet sheet.png]

Completeness of Integrated Gradients, additivity of Kernel SHAP, closed form against tape form of
class activation maps; and a contact sheet of all methods for people to look at (keep it to
yourself: it shows images of the data set).
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from dermlens.data.images import load_image, load_mask
from dermlens.data.manifest import read_manifest, select_split
from dermlens.explainers.grad_cam import GradCAM, GradCAMPlusPlus
from dermlens.explainers.integrated_gradients import IntegratedGradients
from dermlens.explainers.registry import METHODS, create_several
from dermlens.explainers.shap import GaussianProcessSHAP
from dermlens.model.bundle import Bundle, find_bundle, load_bundle
from dermlens.report.evaluation_report import write_figure
from dermlens.report.figures import attribution_grid
from dermlens.report.html import markdown_table


def chosen_images(data: Path, count: int) -> pd.DataFrame:
    """Return test rows, diagnoses in turn."""
    test = select_split(read_manifest(data), "test")
    turn = test.groupby("dx").cumcount()
    return test.assign(turn=turn).sort_values(["turn", "dx"]).head(count)


def completeness(bundle: Bundle, images: np.ndarray, targets: list[int]) -> pd.DataFrame:
    """Return the gap of Integrated Gradients and what it costs, fixed and adaptive."""
    rows = []
    for name, options in (
        ("16 points", {"tolerance": None}),
        ("64 points", {"n_steps": 64, "tolerance": None}),
        ("until the gap is 1 % (default)", {}),
    ):
        result = IntegratedGradients(bundle.model, **options).attribute(images, targets)
        gap = result.convergence_delta
        rows.append(
            {
                "Integrated Gradients": name,
                "mean gap, %": 100 * gap.mean(),
                "median gap, %": 100 * np.median(gap),
                "largest gap, %": 100 * gap.max(),
                "backward passes per image": result.cost.backward / len(images),
                "most points": int(result.n_steps.max()),
            }
        )
    return pd.DataFrame(rows)


def exactness(bundle: Bundle, images: np.ndarray, targets: list[int]) -> pd.DataFrame:
    """Return largest deviations from what must hold."""
    explainer = GaussianProcessSHAP(bundle.model, n_samples=200)
    result = explainer.attribute(images, targets)
    sums = np.nansum(result.weights, axis=1)
    missing = np.abs(sums - (result.values - result.baseline_output))
    rows = [("Kernel SHAP: sum of values - (score - score of the fill)", missing.max())]
    for kind in (GradCAM, GradCAMPlusPlus):
        closed = kind(bundle.model, form="closed").attribute(images, targets).maps
        taped = kind(bundle.model, form="tape").attribute(images, targets).maps
        rows.append(
            (
                f"{kind.name}: closed - tape, of the largest",
                np.abs(closed - taped).max() / closed.max(),
            )
        )
    return pd.DataFrame(rows, columns=["on these images", "largest deviation"])


def contact_sheet(
    bundle: Bundle, images: np.ndarray, lesions: list, rows: pd.DataFrame, path: Path
):
    """Write one row per image, one column per method."""
    targets = bundle.logits(images).argmax(axis=1).tolist()
    maps, signed = {}, {}
    for name, explainer in create_several(list(METHODS), bundle.model).items():
        result = explainer.attribute(images, targets)
        maps[METHODS[name].title], signed[METHODS[name].title] = result.maps, result.signed
        print(f"{name}: {result.cost.seconds / len(images):.1f} s per image", flush=True)
    labels = [f"{dx} as {bundle.classes[goal]}" for dx, goal in zip(rows.dx, targets, strict=True)]
    figure = attribution_grid(list(images), maps, signed=signed, labels=labels, lesions=lesions)
    print(f"Wrote {write_figure(path, figure)}")


def main() -> None:
    """Print tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    bundle = load_bundle(find_bundle(options.bundle))
    rows = chosen_images(options.data, options.images)
    images = np.stack([load_image(options.data / path, bundle.input_size) for path in rows.path])
    targets = bundle.logits(images).argmax(axis=1).tolist()
    print(markdown_table(completeness(bundle, images, targets).round(3)), flush=True)
    table = exactness(bundle, images, targets)
    table["largest deviation"] = [f"{value:.1e}" for value in table["largest deviation"]]
    print(markdown_table(table), flush=True)
    if options.sheet is not None:
        lesions = [load_mask(options.data / path, bundle.input_size) for path in rows.mask_path]
        contact_sheet(bundle, images, lesions, rows, options.sheet)


if __name__ == "__main__":
    main()

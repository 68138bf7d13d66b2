"""What other patches and fills than the default's would be worth for occlusion.

    python benchmarks/occlusion_patches.py --bundle BUNDLE --data DATA [--images 16]

Deletion, insertion and localization of the lesion on validation images, as ``defaults.py``
measures them, evaluated by the bundle's int8 copy.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from bench_tools import PAGE, machine, markdown, write_section
from defaults import LOCALIZATION, judged

from dermlens.data.manifest import read_manifest, sample_in_proportion, select_split
from dermlens.explainers.occlusion import Occlusion
from dermlens.model.bundle import Bundle, find_bundle, load_bundle
from dermlens.model.scorers import choose_scorers
from dermlens.quality.evaluations import Evaluations

PATCHES: dict[str, tuple[int, int] | None] = {
    "default": None,
    "24, stride 12": (24, 12),
    "16, stride 8": (16, 8),
    "8, stride 8": (8, 8),
}
VARIANTS = (
    ("default", "border"),
    ("default", "blur"),
    ("default", "black"),
    ("24, stride 12", "border"),
    ("16, stride 8", "border"),
    ("16, stride 8", "blur"),
    ("8, stride 8", "border"),
)


def variants(bundle: Bundle) -> dict[tuple[str, str], Occlusion]:
    """Return explainers by patch and fill."""
    scorer = choose_scorers(bundle, ["occlusion"], "int8")["occlusion"]
    made = {}
    for patch, fill in VARIANTS:
        side, stride = PATCHES[patch] or (None, None)
        made[patch, fill] = Occlusion(
            bundle.model,
            patch_size=side,
            stride=stride,
            baseline=fill,
            scorer=scorer,
            classes=bundle.classes,
        )
    return made


def measure(bundle: Bundle, rows: pd.DataFrame, data: Path, batch: int) -> pd.DataFrame:
    """Return one row for every image and variant."""
    explainers, evaluations = variants(bundle), Evaluations(bundle.model, batch_size=batch)
    found = []
    for item in rows.itertuples():
        for (patch, fill), explainer in explainers.items():
            explain = partial(_map_of, explainer, batch)
            worth = judged(bundle, item, data, evaluations, explainer.name, explain)
            passes = len(explainer.boxes(bundle.input_size)) + 1
            found.append({"patch": patch, "fill": fill, "passes": passes, **worth})
        print(item.image_id, flush=True)
    return pd.DataFrame(found)


def _map_of(
    explainer: Occlusion, batch: int, name: str, image: np.ndarray, goal: int
) -> tuple[np.ndarray]:
    return (explainer.attribute(image[None], goal, batch_size=batch).maps[0],)


def main() -> None:
    """Measure the variants and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--data", type=Path, required=True, help="prepared data set")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="a few images, and the page stays")
    parser.add_argument("--images", type=int, default=16)
    given = parser.parse_args()
    bundle = load_bundle(find_bundle(given.bundle))
    known = select_split(read_manifest(given.data), "validation")
    rows = sample_in_proportion(known[known.mask_path.notna()], 1 if given.quick else given.images)
    text = (
        f"{machine()} Means of {len(rows)} validation images, without intervals: small differences "
        "mean nothing."
    )
    found = measure(bundle, rows, given.data, given.batch_size)
    metrics = ["passes", "deletion", "insertion", *LOCALIZATION]
    table = found.groupby(["patch", "fill"], sort=False)[metrics].mean().round(3).reset_index()
    text += f"\n\n{markdown(table.astype({'passes': int}))}"
    print(text)
    if not given.quick:
        write_section(PAGE, "occlusion-patches", text)


if __name__ == "__main__":
    main()

"""How often does a bundle turn away images that it should not judge, and images that it should?

    python benchmarks/out_of_distribution.py DATA [--bundle BUNDLE] [--images 200]

Two independent checks are measured: the out-of-distribution score of the bundle (in feature space)
and the
checks of the photograph alone (too small, dark, blurred, no lesion). Ordinary images are the test
split of DATA; the others are made from them, drawn, or come with scikit-learn and scikit-image.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter, ImageOps

from dermlens.data.images import fit_image, open_rgb, read_bytes
from dermlens.data.manifest import read_manifest, select_split
from dermlens.data.synthetic import draw
from dermlens.labels import HAM10000
from dermlens.model.bundle import Bundle, find_bundle, load_bundle
from dermlens.report.html import markdown_table
from dermlens.serve.usability import usability

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blurred (8 pixels)": lambda image: image.filter(ImageFilter.GaussianBlur(8)),
    "colors inverted": ImageOps.invert,
    "gray": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "very dark": lambda image: image.point(lambda value: value // 8),
    "blue and red exchanged": lambda image: Image.fromarray(np.asarray(image)[..., ::-1]),
}


def photographs() -> list[Image.Image]:
    """Photographs of anything but skin."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    found = [Image.fromarray(image) for image in load_sample_images().images]
    names = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "text", "page", "moon")
    for name in names:
        try:
            image = np.asarray(getattr(skimage.data, name)())
        except Exception:  # Some of them are fetched from the internet.
            continue
        found.append(Image.fromarray(image).convert("RGB"))
    return found


def skin_only(data: Path, table: pd.DataFrame, count: int) -> list[Image.Image]:
    """Corners of images of small lesions, where there is skin and nothing else."""
    found = []
    for row in table.itertuples():
        mask = np.asarray(Image.open(data / str(row.mask_path)).convert("L")) > 127
        image = open_rgb(read_bytes(data / str(row.path)), str(row.path))
        height, width = (int(side * 0.36) for side in mask.shape)
        for top in (0, mask.shape[0] - height):
            for left in (0, mask.shape[1] - width):
                if not mask[top : top + height, left : left + width].any() and mask.mean() < 0.1:
                    found.append(image.crop((left, top, left + width, top + height)))
        if len(found) >= count:
            return found[:count]
    return found


def groups(data: Path, count: int) -> dict[str, list[Image.Image]]:
    """Return pictures by what they are."""
    table = select_split(read_manifest(data), "test")
    some = table.sample(min(count, len(table)), random_state=0)
    ordinary = [open_rgb(read_bytes(data / path), path) for path in table.path]
    chosen = [open_rgb(read_bytes(data / path), path) for path in some.path]
    noise = np.random.default_rng(0).integers(0, 256, (count, 300, 400, 3), dtype=np.uint8)
    drawn = [draw(HAM10000.codes[k % 7], k, (300, 400))[0] for k in range(min(count, 70))]
    return {
        "test images (should be judged)": ordinary,
        **{name: [change(image) for image in chosen] for name, change in CHANGES.items()},
        "skin without a lesion": skin_only(data, table, count),
        "drawn images": [Image.fromarray(image) for image in drawn],
        "photographs of other things": photographs(),
        "noise": [Image.fromarray(image) for image in noise[:50]],
    }


def shares(bundle: Bundle, pictures: list[Image.Image]) -> dict[str, float]:
    """Return the share of pictures that each check turns away."""
    images = np.stack([fit_image(picture, bundle.input_size) for picture in pictures])
    _, scores = bundle.logits_and_ood_scores(images)
    assert scores is not None and bundle.ood_detector is not None
    unlike = scores > bundle.ood_detector.threshold
    unusable = np.array([bool(usability(picture).problems) for picture in pictures])
    return {
        "images": len(pictures),
        "median out-of-distribution score": float(np.median(scores)),
        "out-of-distribution score": float(unlike.mean()),
        "photograph": float(unusable.mean()),
        "either": float((unlike | unusable).mean()),
    }


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    bundle = load_bundle(find_bundle(options.bundle))
    rows = [
        {"turned away by": name, **shares(bundle, pictures)}
        for name, pictures in groups(options.data, options.images).items()
    ]
    print(markdown_table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()

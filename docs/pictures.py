"""The pictures of the method pages, of one drawn image each; no photograph is shown.

    dermlens data synthetic --out drawn --images 600
    dermlens data split drawn
    dermlens train drawn --preset demo --size 192x256 --out run
    python docs/pictures.py run/bundle drawn

The shipped network with a new last layer, taught the drawings, is explained; each picture shows the
image with what decides its class outlined, what the method does, and what it gives.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skimage.segmentation import mark_boundaries

import dermlens as dl
from dermlens.data.images import load_image, load_mask
from dermlens.data.manifest import read_manifest, select_split
from dermlens.explainers.baselines import baseline_image
from dermlens.explainers.registry import METHODS, SIX, create_several
from dermlens.quality.controls import create_controls, title
from dermlens.report.figures import (
    LESION_COLOR,
    attribution_grid,
    colorize,
    normalize,
    outline,
    overlay,
)
from dermlens.report.style import new_figure, style

IMAGES = Path(__file__).parent / "images"
CODES = ("mel", "bcc", "vasc", "nv")
SHOWN = "vasc"
"""The drawn diagnosis of the method pages: red lagoons decide it."""
ENHANCED = (
    *("grad_cam", "fused_cam", "gated_cam", "finer_cam"),
    *("multi_occlusion", "region_gradients", "consensus"),
)
"""The enhanced maps, beside the plain one that most of them start from."""
OTHERS = ("layer_cam", "hires_cam", "kernel_shap", "smooth_grad", "gradient_shap", "rise")
LIMIT = 300_000
"""Bytes that a picture may take."""
Named = Sequence[tuple[str, np.ndarray]]


def main() -> None:
    """Draw and write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="trained on the drawn images")
    parser.add_argument("data", type=Path, help="the drawn images, split")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder to write into")
    given = parser.parse_args()
    classifier = dl.load(given.bundle)
    images, structures, codes = chosen_images(classifier, given.data)
    place = codes.index(SHOWN)
    found = {
        name: explainer.attribute(images, codes)
        for name, explainer in create_several(SIX, classifier).items()
    }
    image, structure = images[place], structures[place]
    first = ("what decides, outlined", outline(image, structure, LESION_COLOR))
    ways = {
        "grad_cam": cells(classifier, image, dl.GradCAM),
        "grad_cam_plus_plus": cells(classifier, image, dl.GradCAMPlusPlus),
        "integrated_gradients": path(image),
        "occlusion": covered(image, found["occlusion"], place),
        "lime": kept(image, found["lime"], place),
        "gp_shap": shares(image, found["gp_shap"], place),
    }
    for name, way in ways.items():
        result = found[name]
        shown = overlay(image, result.maps[place], opacity=0.85, signed=result.signed)
        words = "magenta: for, cyan: against" if result.signed else "bright: for"
        last = (f"the map ({words})", shown)
        save(strip([first, way, last]), given.out / f"method_{name}.png")
    for names, file in ((OTHERS, "method_others.png"), (ENHANCED, "method_enhanced.png")):
        panels = [first]
        for name, explainer in create_several(names, classifier).items():
            result = explainer.attribute(image[None], SHOWN)
            drawn = overlay(image, result.maps[0], opacity=0.85, signed=result.signed)
            panels.append((METHODS[name].title, drawn))
        save(strip(panels, columns=4), given.out / file)
    save(sheet(images, structures, codes, found), given.out / "six_methods.png")
    save(controls(classifier, image, first), given.out / "controls.png")
    save(changed(), given.out / "changes.png")
    save_favicon(found["grad_cam"].maps[place], given.out / "favicon.png")


def changed() -> Any:
    """Return what would change the shipped network's answer for a drawn lesion."""
    from dermlens.data.synthetic import draw
    from dermlens.report.evidence_view import BRIEF

    classifier = dl.load()
    image, lesion, _ = draw("mel", 4, classifier.input_size)
    found = dl.changes(classifier, image, lesion).found
    before = [
        (BRIEF[kind], outline(image, one.where, LESION_COLOR) if one.where.any() else image)
        for kind, one in found.items()
    ]
    after = []
    for one in found.values():
        shown = image if one.image is None else np.round(one.image).astype(np.uint8)
        said = "the answer is another one" if one.changed else "the answer stays"
        after.append(("no change found" if one.image is None else said, shown))
    return strip([*before, *after], columns=4)


def chosen_images(classifier: Any, data: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the first correctly classified test image of some classes, its structure, its class.

    Returns:
        uint8 (N, H, W, 3), bool (N, H, W), codes.
    """
    table = select_split(read_manifest(data), "test").sort_values("image_id")
    images, structures, codes = [], [], []
    for code in CODES:
        for row in table[table.dx == code].itertuples():
            image = load_image(data / row.path, classifier.input_size)
            if classifier.classes[int(classifier.logits(image[None]).argmax())] == code:
                mask = data / "structures" / f"{row.image_id}_structure.png"
                images.append(image)
                structures.append(load_mask(mask, classifier.input_size))
                codes.append(code)
                break
    return np.stack(images), np.stack(structures), codes


def cells(classifier: Any, image: np.ndarray, kind: Any) -> tuple[str, np.ndarray]:
    """The values of the last feature maps' places, as plain tiles."""
    tiles = kind(classifier, registration="tiles").attribute(image[None], SHOWN).maps[0]
    rows, columns = (side // 32 for side in image.shape[:2])
    values = tiles[16::32, 16::32][:rows, :columns]
    colors = colorize(normalize(values, percentile=100))
    drawn = np.kron(colors, np.ones((32, 32, 1), np.uint8))
    drawn[::32], drawn[:, ::32] = 90, 90
    return f"{rows} x {columns} cells of the last layer", drawn


def path(image: np.ndarray) -> tuple[str, np.ndarray]:
    """Four images on the way from the baseline to the image."""
    start = baseline_image(image, "border")
    steps = [start + share * (image - start) for share in (0, 1 / 3, 2 / 3, 1)]
    small = [np.round(step[::2, ::2]).astype(np.uint8) for step in steps]
    return "the way from bare skin to the image", np.block(
        [[[small[0]], [small[1]]], [[small[2]], [small[3]]]]
    )


def covered(image: np.ndarray, result: Any, place: int) -> tuple[str, np.ndarray]:
    """The image with the patch covered that costs the most."""
    top, left, bottom, right = result.boxes[int(result.effects[place].argmax())]
    drawn = image.copy()
    patch = baseline_image(image, "border")[top:bottom, left:right]
    drawn[top:bottom, left:right] = np.round(patch).astype(np.uint8)
    frame = np.zeros(image.shape[:2], bool)
    frame[top:bottom, left:right] = True
    return "the patch that costs the most", outline(drawn, frame, (255, 255, 255))


def kept(image: np.ndarray, result: Any, place: int) -> tuple[str, np.ndarray]:
    """One of the masked images: half of the pieces replaced by the color of the border."""
    labels = result.superpixels[place]
    keep = np.random.default_rng(0).random(labels.max() + 1) < 0.5
    drawn = np.where(keep[labels][..., None], image, baseline_image(image, "border"))
    return "one of 500 masked images", edges(drawn, labels)


def shares(image: np.ndarray, result: Any, place: int) -> tuple[str, np.ndarray]:
    """The pieces, and the three that bear the most in full color."""
    labels = result.superpixels[place]
    # Images with fewer pieces are filled up with NaN.
    weights = result.weights[place][: labels.max() + 1]
    strongest = np.argsort(weights)[-3:]
    dim = 0.3 * image + 0.7 * 235
    drawn = np.where(np.isin(labels, strongest)[..., None], image, dim)
    total = result.values[place] - result.baseline_output[place]
    share = weights[strongest].sum() / total
    return f"three pieces bear {share:.0%} of the score", edges(drawn, labels)


def edges(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw the borders of pieces."""
    scaled = np.clip(image, 0, 255).astype(np.uint8)
    marked = mark_boundaries(scaled, labels, color=(1, 1, 1), mode="inner")
    return np.round(marked * 255).astype(np.uint8)


def strip(panels: Named, columns: int = 3) -> Any:
    """Draw pictures side by side, each under its words."""
    rows = -(-len(panels) // columns)
    height, width = panels[0][1].shape[:2]
    with style():
        figure = new_figure(3.0 * columns, (3.0 * height / width + 0.3) * rows)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, (words, drawn) in zip(grid, panels, strict=False):
            axes.imshow(drawn, interpolation="nearest")
            axes.set_title(words, fontsize=9, fontweight="normal")
        return figure


def sheet(
    images: np.ndarray, structures: np.ndarray, codes: list[str], found: dict[str, Any]
) -> Any:
    """Draw all images by all six methods."""
    short = {name: title(name).split(" (")[0] for name in SIX}
    outlined = [outline(i, s, LESION_COLOR) for i, s in zip(images, structures, strict=True)]
    names = [dl.HAM10000.of(code).name for code in codes]
    return attribution_grid(
        outlined,
        {short[name]: found[name].maps for name in SIX},
        signed={short[name]: found[name].signed for name in SIX},
        labels=names,
        opacity=0.85,
    )


def controls(classifier: Any, image: np.ndarray, first: tuple[str, np.ndarray]) -> Any:
    """Draw maps that know nothing of the decision."""
    names = ("uniform", "random", "centered_gaussian", "darkness", "untrained_grad_cam")
    panels = [first]
    for name, one in create_controls(names, classifier).items():
        result = one.attribute(image[None], SHOWN)
        panels.append((title(name), overlay(image, result.maps[0], opacity=0.85)))
    return strip(panels)


def save(figure: Any, path: Path) -> None:
    """Write a figure; a large one smaller, and in 256 colors if that is not enough."""
    from PIL import Image

    figure.savefig(path, dpi=110)
    if path.stat().st_size > LIMIT:
        figure.savefig(path, dpi=80)
    if path.stat().st_size > LIMIT:
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    print(f"{path} {path.stat().st_size // 1000} kB")  # noqa: T201


def save_favicon(values: np.ndarray, path: Path) -> None:
    """Write a small square piece of a map as the site's icon."""
    from PIL import Image

    side = min(values.shape)
    Image.fromarray(colorize(normalize(values[:, :side]))).resize((32, 32)).save(path)


if __name__ == "__main__":
    main()

"""Figures of a training run: its curves, and what augmentation does to images."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dermlens.data.augmentation import Augmentation, augment
from dermlens.data.cache import cached_images
from dermlens.data.manifest import read_manifest, select_split
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.report.charts import training_curves
from dermlens.report.evaluation_report import write_figure
from dermlens.report.style import new_axes, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VARIANTS = 6


def write_training_figures(run: Path, data: Path) -> list[Path]:
    """Write ``training_curves.png`` and ``augmentation.png`` into a finished run."""
    bundle = load_bundle(Path(run) / "bundle")
    curves = training_curves(bundle.history, bundle.best_epoch)
    return [
        write_figure(Path(run) / "training_curves.png", curves),
        write_figure(Path(run) / "augmentation.png", augmentation_preview(bundle, data)),
    ]


@style()
def augmentation_preview(bundle: Bundle, data: Path, *, seed: int = 0) -> "Figure":
    """Draw one training image per class beside six augmented versions of it."""
    table = read_manifest(data)
    train = select_split(table, "train")
    images = cached_images(data, table, bundle.input_size)
    how = Augmentation(**bundle.facts["training"]["augmentation"])
    codes = [code for code in bundle.classes if (train.dx == code).any()]
    height, width = bundle.input_size
    shape = (len(codes), _VARIANTS + 1)
    tall = 1.5 * len(codes) * height / width + 0.4
    figure, grid = new_axes(1.5 * shape[1], tall, *shape, squeeze=False)
    for row, code in enumerate(codes):
        image_id = train.image_id[train.dx == code].iloc[0]
        original = np.asarray(images[int(np.flatnonzero(table.image_id == image_id)[0])])
        copies = np.repeat(original[None], _VARIANTS, axis=0)
        varied = augment(copies, np.array([seed, row], np.int32), how).numpy()
        for column, image in enumerate([original, *varied]):
            grid[row, column].imshow(np.uint8(image))
            grid[row, column].set(xticks=[], yticks=[])
            grid[row, column].spines[:].set_visible(False)
        grid[row, 0].set_ylabel(code)
    grid[0, 0].set_title("original")
    grid[0, 1].set_title("as trained on")
    return figure

"""Pack what later stages of the recipe are trained on for a machine with an accelerator.

    python benchmarks/accelerator/pack.py DATA --extra EXTRA --densenet FILE.h5 --start BUNDLE \
        --out FOLDER

Writes the pictures of the training and validation split (all 4:3, as HAM10000's are) as AVIF, their
labels and loss weights, drawn hair, settings, and the weights to start from: about 160 MB. No test
image is among them. ``train.py`` needs this folder, PyTorch, Pillow and NumPy, and nothing of
dermlens.
"""

import argparse
import io
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dermlens.data.augmentation import STRONG_AUGMENTATION
from dermlens.data.degradation import degradation_named, hairs
from dermlens.errors import DataError
from dermlens.model.bundle import load_bundle
from dermlens.model.classifier import Architecture, build_classifier
from dermlens.model.configuration import HAM10000
from dermlens.model.training_data import TrainingData, load_training_data, training_set
from dermlens.model.weights import load_by_name
from dermlens.progress import say

QUALITY = 72
"""Of AVIF, colors in full resolution: 12 kB per picture, off by 1.5 levels in the mean square."""


def encoded(path: Path) -> bytes:
    """Return a picture as AVIF."""
    with Image.open(path) as image:
        if 3 * image.width != 4 * image.height:
            raise DataError(f"{path} is not 4:3. Only such pictures can be packed.")
        content = io.BytesIO()
        image.convert("RGB").save(content, "AVIF", quality=QUALITY, subsampling="4:4:4", speed=6)
    return content.getvalue()


def by_name(model: Any) -> dict[str, np.ndarray]:
    """Return the weights of a model by ``layer__weight``, kernels in float16."""
    return {
        f"{layer.name}__{weight.name}": rounded
        for layer in model.layers
        for weight, rounded in zip(layer.weights, map(_stored, layer.get_weights()), strict=True)
    }


def _stored(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16) if value.ndim > 1 else value


def pack(data: TrainingData, out: Path) -> None:
    """Write pictures and labels: of training, extra images among them, then of validation."""
    drawn = training_set(data, HAM10000, HAM10000.architecture.input_size)
    paths = [data.folder / path for path in data.table.path.iloc[data.rows["train"]]]
    for extra in data.extras:
        paths += [extra.folder / path for path in extra.chosen.path]
    paths += [data.folder / path for path in data.table.path.iloc[data.rows["validation"]]]
    with ProcessPoolExecutor() as pool, open(out / "pictures.bin", "wb") as stream:
        lengths = [stream.write(content) for content in pool.map(encoded, paths, chunksize=32)]
    np.savez(
        out / "index.npz",
        lengths=np.array(lengths),
        labels=drawn.labels,
        weights=drawn.weights,
        validation_labels=data.labels[data.rows["validation"]],
    )


def settings() -> dict[str, Any]:
    """Return what the stages share with ``dermlens train``."""
    shared = ("weight_decay", "clip_norm", "teacher_temperature")
    return {
        "augmentation": asdict(STRONG_AUGMENTATION),
        "degradation": asdict(degradation_named("strong")),
        "dropout": HAM10000.architecture.dropout,
        **{name: getattr(HAM10000, name) for name in shared},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--extra", type=Path, action="append", default=[])
    parser.add_argument("--densenet", type=Path, required=True, help="ImageNet weights, .h5")
    parser.add_argument("--start", type=Path, required=True, help="bundle to start from")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pack(load_training_data(options.data, options.extra), options.out)
    opacities, colors = hairs()
    np.savez_compressed(options.out / "hairs.npz", opacities=opacities, colors=colors)
    densenet = build_classifier(Architecture("densenet169"), seed=31)
    load_by_name(densenet, options.densenet)
    np.savez(options.out / "densenet.npz", **by_name(densenet))
    np.savez(options.out / "start.npz", **by_name(load_bundle(options.start).model))
    (options.out / "settings.json").write_text(json.dumps(settings()))
    say(f"Packed: {options.out}")


if __name__ == "__main__":
    main()

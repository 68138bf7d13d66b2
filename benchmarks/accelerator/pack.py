"""Pack what later stages of the recipe are trained on for a machine with an accelerator.

    python benchmarks/accelerator/pack.py DATA --extra EXTRA --densenet FILE.h5 --start BUNDLE \
        --out FOLDER

Writes the pictures of the training and validation split (all 4:3, as HAM10000's are) as AVIF, their
labels and loss weights, drawn hair, and the weights to start from: about 160 MB. No test image is
among them. ``train.py`` needs this folder, PyTorch, Pillow and NumPy, and nothing of dermlens.
"""

import argparse
import io
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from dermlens.data.degradation import hairs
from dermlens.errors import DataError
from dermlens.model.configuration import HAM10000
from dermlens.model.training_data import TrainingData, load_training_data, training_set
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


def stored_weights(path: Path) -> dict[str, np.ndarray]:
    """Return the weights of a by-name file as they are stored, by ``layer__weight``."""
    import h5py

    found = {}
    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        for layer in root.attrs["layer_names"]:
            for name in root[layer].attrs["weight_names"]:
                key = os.fsdecode(name).split(":")[0].replace("/", "__")
                found[key] = np.asarray(root[layer][name])
    return found


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
    np.savez(options.out / "densenet.npz", **stored_weights(options.densenet))
    np.savez(options.out / "start.npz", **stored_weights(options.start / "weights.h5"))
    say(f"Packed: {options.out}")


if __name__ == "__main__":
    main()

"""Weights files: by layer name in HDF5, the form that ``keras.applications`` uses.

One format for pretrained weights and for our own bundles, so that a bundle's weights can start
another training, and any HDF5 tool can read them. Nothing is ever unpickled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.errors import ModelError
from dermlens.files import written_beside
from dermlens.model.classifier import backbone_layers, head_layers


@dataclass(frozen=True)
class Coverage:
    """Which backbone layers got pretrained weights, by name, from input to output."""

    covered: tuple[str, ...]
    uncovered: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """True if the whole backbone is covered."""
        return bool(self.covered) and not self.uncovered

    def sentence(self) -> str:
        """Say it in one sentence."""
        if not self.covered:
            return "No pretrained weights: the whole network starts at its initializer."
        if not self.uncovered:
            return f"Pretrained weights cover all {len(self.covered)} backbone layers."
        return (
            f"Pretrained weights cover {len(self.covered)} of "
            f"{len(self.covered) + len(self.uncovered)} backbone layers; not covered, and so "
            f"starting at the initializer: {', '.join(self.uncovered)}."
        )


def no_coverage(model: Any) -> Coverage:
    """Coverage of a model that starts at its initializer."""
    return Coverage((), tuple(layer.name for layer in backbone_layers(model)))


def full_coverage(model: Any) -> Coverage:
    """Coverage of a model whose backbone came complete."""
    return Coverage(tuple(layer.name for layer in backbone_layers(model)), ())


def save_by_name(model: Any, path: Path, *, dtype: str = "float32") -> Path:
    """Write all weights of a model by layer name, atomically.

    Args:
        model: From ``build_classifier``.
        path: ``.h5`` file to write.
        dtype: ``"float32"``, or ``"float16"`` to halve the file (kernels only: statistics and
            biases are small, and variances can leave the range of float16).
    """
    import h5py

    # Made in memory: where the disk is full, HDF5 itself would end the process when it closes.
    content = BytesIO()
    with h5py.File(content, "w") as file:
        layers = [layer for layer in model.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        file.attrs["backend"] = b"tensorflow"
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                stored = value.astype(_storage(value, dtype))
                group.create_dataset(name, data=stored, compression="gzip")
    with written_beside(Path(path)) as temporary:
        temporary.write_bytes(content.getbuffer())
    return Path(path)


def _storage(value: np.ndarray, dtype: str) -> str:
    return dtype if value.ndim > 1 else "float32"


def rounded(weights: Sequence[np.ndarray], dtype: str) -> list[np.ndarray]:
    """Return weights as they come back from a file that ``save_by_name`` wrote."""
    return [w.astype(_storage(w, dtype)).astype(np.float32) for w in weights]


def load_by_name(model: Any, path: Path) -> Coverage:
    """Copy weights from a by-name HDF5 file (the form ``keras.applications`` uses).

    Layers are matched by name; a file may hold only part of the network; float16 storage is
    widened. The last layer is copied too if the file has it. Nothing is copied unless everything
    that matches by name also matches in shape.

    Args:
        model: From ``build_classifier``.
        path: ``.h5`` file.

    Raises:
        ModelError: If the file cannot be read, holds no layer of this network, or holds layers of
            the same name but another shape.
    """
    stored = _read(Path(path))
    layers = backbone_layers(model)
    if not any(layer.name in stored for layer in layers):
        raise ModelError(
            f"{path} holds the weights of another network: none of its {len(stored)} layers "
            f"(such as {next(iter(stored), 'none')!r}) is in {model.name}. Choose the backbone "
            "the file was made for."
        )
    matching = [layer for layer in [*layers, *head_layers(model)] if layer.name in stored]
    for layer in matching:
        _check_shapes(layer, stored[layer.name], path)
    for layer in matching:
        layer.set_weights([np.asarray(w, dtype=np.float32) for w in stored[layer.name]])
    return Coverage(
        tuple(layer.name for layer in layers if layer.name in stored),
        tuple(layer.name for layer in layers if layer.name not in stored),
    )


def load_all_by_name(model: Any, path: Path) -> None:
    """Copy every weight of a model from a file that ``save_by_name`` wrote.

    Raises:
        ModelError: If the file lacks a layer of the model or has it in another shape.
    """
    stored = _read(Path(path))
    for layer in (layer for layer in model.layers if layer.weights):
        if layer.name not in stored:
            raise ModelError(f"{path} lacks layer {layer.name!r} of {model.name}. Copy it again.")
        _check_shapes(layer, stored[layer.name], path)
        layer.set_weights([np.asarray(w, dtype=np.float32) for w in stored[layer.name]])


def _read(path: Path) -> dict[str, list[np.ndarray]]:
    import h5py

    if not path.is_file():
        raise ModelError(f"The weights file {path} is missing. Check the path.")
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            if "layer_names" not in root.attrs:
                raise ModelError(
                    f"{path} is not a by-name weights file (it has no layer_names). Save it with "
                    "the legacy HDF5 format of keras.applications."
                )
            names = [_text(name) for name in root.attrs["layer_names"]]
            stored = {
                name: [root[name][_text(weight)][()] for weight in root[name].attrs["weight_names"]]
                for name in names
            }
    except (OSError, KeyError) as error:
        raise ModelError(
            f"{path} cannot be read as HDF5 weights ({error}). Get the file again."
        ) from error
    return {name: weights for name, weights in stored.items() if weights}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_shapes(layer: Any, weights: list[np.ndarray], path: Path) -> None:
    expected = [tuple(w.shape) for w in layer.weights]
    found = [tuple(w.shape) for w in weights]
    if expected != found:
        raise ModelError(
            f"{path} holds the weights of another network: layer {layer.name!r} has shapes {found} "
            f"there and {expected} here. Choose the backbone the file was made for."
        )

"""Loading pretrained weights by layer name, saying what was and was not covered."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.errors import ModelError
from dermlens.model.classifier import backbone_layers


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


def load_by_name(model: Any, path: Path) -> Coverage:
    """Copy weights from a by-name HDF5 file (the form ``keras.applications`` uses).

    Layers are matched by name; a file may hold only part of the network; float16 storage is
    widened. Nothing is copied unless everything that matches by name also matches in shape.

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
    for layer in layers:
        if layer.name in stored:
            _check_shapes(layer, stored[layer.name], path)
    for layer in layers:
        if layer.name in stored:
            layer.set_weights([np.asarray(w, dtype=np.float32) for w in stored[layer.name]])
    return Coverage(
        tuple(layer.name for layer in layers if layer.name in stored),
        tuple(layer.name for layer in layers if layer.name not in stored),
    )


def _read(path: Path) -> dict[str, list[np.ndarray]]:
    import h5py

    if not path.is_file():
        raise ModelError(f"The weights file {path} is missing. Check the path.")
    try:
        with h5py.File(path, "r") as file:
            root = file["model_weights"] if "model_weights" in file else file
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

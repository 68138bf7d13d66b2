"""Weights files: by layer name in HDF5, the form that ``keras.applications`` uses.

One format for pretrained weights and for our own bundles, so that a bundle's weights can start
another training, and any HDF5 tool can read them. Nothing is ever unpickled.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.errors import ModelError
from dermlens.files import written_beside
from dermlens.model.classifier import backbone_layers

_NUMBERED = re.compile(r"variable(_\d+)?(:0)?$")


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
    """Write all weights of a model by layer name to an ``.h5`` file, atomically.

    ``dtype`` is ``"float32"``, or ``"float16"`` to halve the file (kernels only: statistics and
    biases are small, and variances can leave the range of float16).
    """
    import h5py

    # Made in memory: where the disk is full, HDF5 itself would end the process when it closes.
    content = BytesIO()
    with h5py.File(content, "w") as file:
        layers = _stored_layers(model)
        file.attrs["layer_names"] = [name.encode() for name in layers]
        file.attrs["backend"] = b"tensorflow"
        for layer_name, layer in layers.items():
            group = file.create_group(layer_name)
            names = [f"{layer_name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                stored = value.astype(_storage(value, dtype))
                # A single number cannot be compressed.
                packed = "gzip" if value.ndim else None
                group.create_dataset(name, data=stored, compression=packed)
    with written_beside(Path(path)) as temporary:
        temporary.write_bytes(content.getbuffer())
    return Path(path)


def _stored_layers(model: Any) -> dict[str, Any]:
    """Return the layers with weights by a name that is the same in every process.

    Keras numbers layers without a name of their own through the life of a process
    (``layer_normalization_7``); here they are numbered within the network.
    """
    named: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for layer in model.layers:
        if not layer.weights:
            continue
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(layer).__name__).lower()
        name = layer.name
        if re.fullmatch(rf"{kind}(_\d+)?", name):
            number = counts.get(kind, 0)
            counts[kind] = number + 1
            name = f"{kind}_{number}" if number else kind
        named[name] = layer
    return named


def _storage(value: np.ndarray, dtype: str) -> str:
    return dtype if value.ndim > 1 else "float32"


def rounded(weights: Sequence[np.ndarray], dtype: str) -> list[np.ndarray]:
    """Return weights as they come back from a file that ``save_by_name`` wrote."""
    return [w.astype(_storage(w, dtype)).astype(np.float32) for w in weights]


def load_by_name(model: Any, path: Path, *, backbone_only: bool = False) -> Coverage:
    """Copy weights from a by-name HDF5 file (the form ``keras.applications`` uses).

    Layers are matched by name; a file may hold only part of the network; float16 storage is
    widened. The last layer is copied too if the file has it, unless it is not wanted. Nothing is
    copied unless everything that matches by name also matches in shape.

    Raises:
        ModelError: If the file cannot be read, holds no layer of this network, or holds layers of
            the same name but another shape.
    """
    layers, everything = backbone_layers(model), _stored_layers(model)
    if backbone_only:
        own = set(map(id, layers))
        everything = {name: layer for name, layer in everything.items() if id(layer) in own}
    with _opened(Path(path)) as root:
        stored = _listed(root, path)
        matching = {name: layer for name, layer in everything.items() if name in stored}
        found = {id(layer) for layer in matching.values()}
        if not any(id(layer) in found for layer in layers):
            raise ModelError(
                f"{path} holds the weights of another network: none of its {len(stored)} layers "
                f"(such as {next(iter(stored), 'none')!r}) is in {model.name}. Choose the backbone "
                "the file was made for."
            )
        _copy(matching, stored, path)
    return Coverage(
        tuple(layer.name for layer in layers if id(layer) in found),
        tuple(layer.name for layer in layers if id(layer) not in found),
    )


def load_all_by_name(model: Any, path: Path) -> None:
    """Copy every weight of a model from a file that ``save_by_name`` wrote.

    The file is not asked for names: damaged text in it can keep HDF5 busy forever.

    Raises:
        ModelError: If the file lacks a layer of the model, has it in another shape, or holds what
            is no finite number.
    """
    layers = _stored_layers(model)
    with _opened(Path(path)) as root:
        stored = {name: _known(root, name, layer) for name, layer in layers.items()}
        _copy(layers, stored, path)


def _copy(layers: Mapping[str, Any], stored: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Copy stored data sets into layers, once all shapes are known to match."""
    for name, layer in layers.items():
        expected, found = ([tuple(w.shape) for w in each] for each in (layer.weights, stored[name]))
        if expected != found:
            raise ModelError(
                f"{path} holds the weights of another network: layer {layer.name!r} has shapes "
                f"{found} there and {expected} here. Choose the backbone the file was made for."
            )
    read = {name: [np.asarray(part[()], np.float32) for part in stored[name]] for name in layers}
    for name, weights in read.items():
        if not all(np.isfinite(weight).all() for weight in weights):
            raise ModelError(
                f"{path} holds weights of layer {name!r} that are no finite numbers. Get the "
                "file again, or use another one."
            )
    for name, layer in layers.items():
        layer.set_weights(read[name])
        _settle(layer)


def set_weights(model: Any, weights: Sequence[np.ndarray]) -> None:
    """Give a model all its weights, in the model's order."""
    model.set_weights(weights)
    for layer in model.layers:
        _settle(layer)


def _settle(layer: Any) -> None:
    """Make a layer use weights that were set: ``Normalization`` computes with a copy of them."""
    if hasattr(layer, "finalize_state"):
        layer.finalize_state()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yield the group that holds the layers of a file; nothing of them is read yet."""
    import h5py

    if not path.is_file():
        raise ModelError(f"The weights file {path} is missing. Check the path.")
    try:
        with h5py.File(path, "r") as file:
            inside = "model_weights" in file
            yield _member(file, "model_weights", h5py.Group) if inside else file
    except ModelError:
        raise
    except Exception as error:  # Damaged files make HDF5 fail in many ways.
        raise ModelError(
            f"{path} cannot be read as HDF5 weights ({error}). Get the file again."
        ) from error


def _listed(root: Any, path: Path) -> dict[str, list[Any]]:
    """Return the data sets of each layer that has some, by the names that the file lists."""
    import h5py

    if "layer_names" not in root.attrs:
        raise ModelError(
            f"{path} is not a by-name weights file (it has no layer_names). Save it with "
            "the legacy HDF5 format of keras.applications."
        )
    stored = {}
    for name in map(_text, root.attrs["layer_names"]):
        group = _member(root, name, h5py.Group)
        stored[name] = [_plain_data(group, _text(part)) for part in group.attrs["weight_names"]]
    return {name: weights for name, weights in stored.items() if weights}


def _known(root: Any, name: str, layer: Any) -> list[Any]:
    """Return the data sets of a layer by the names of its weights.

    Keras numbers weights without a name through the life of a process (``variable_10``); those
    are matched in their order.
    """
    import h5py

    group, names = _member(root, f"{name}/{name}", h5py.Group), [w.name for w in layer.weights]
    if any(map(_NUMBERED.match, names)):
        numbered = iter(sorted(filter(_NUMBERED.match, group), key=lambda n: (len(n), n)))
        names = [next(numbered, n)[:-2] if _NUMBERED.match(n) else n for n in names]
    return [_plain_data(root, f"{name}/{name}/{part}:0") for part in names]


def _member(group: Any, name: str, kind: type) -> Any:
    """Return a member of a group that lies in this file: links could lead to any other file."""
    import h5py

    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is missing or a link")
        group = group[part]
    if not isinstance(group, kind):
        raise ValueError(f"{name} is not a {kind.__name__.lower()}")
    return group


def _plain_data(group: Any, name: str) -> Any:
    """Return a data set of numbers whose data lie in this file and take no more than its size."""
    import h5py

    found = _member(group, name, h5py.Dataset)
    if found.external or found.is_virtual:
        raise ValueError(f"the data of {name} lie in another file")
    if found.dtype.kind not in "fiu" or found.shape is None:
        raise ValueError(f"{name} holds no numbers")
    if found.chunks and np.prod(found.chunks, dtype=float) > max(found.size, 1 << 20):
        raise ValueError(f"{name} is stored in parts larger than itself")
    return found


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

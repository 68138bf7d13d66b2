"""What incremental occlusion could save, from the layers of the network alone.

A covered patch changes only the places of a feature map whose receptive field reaches it. Layer by
layer, this computes the rows and columns that change, for every patch of a sliding occlusion, and
the multiply-adds needed for them, against those of a full pass. Nothing is measured here: it is
the most that recomputing only what changes could save.

Run ``python benchmarks/receptive_fields.py [--size 192x256] [--patch 32] [--stride 16]``.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dermlens.cli_options import parse_size
from dermlens.explainers.layers import recorded_steps
from dermlens.explainers.occlusion import patch_starts
from dermlens.model.classifier import Architecture, build_classifier

Interval = tuple[int, int]
"""First place and the place after the last, along one side."""


@dataclass(frozen=True)
class Layer:
    """One operation, as far as its reach is concerned.

    Attributes:
        stage: Part of the network, such as ``"conv3"``.
        reads: Positions of the layers whose output it reads; -1 for the image.
        kernel, stride: (rows, columns).
        before: Places of padding above and left.
        size: (height, width) of the output.
        macs: Multiply-adds of a full pass, per place of the output.
    """

    stage: str
    reads: tuple[int, ...]
    kernel: Interval
    stride: Interval
    before: Interval
    size: Interval
    macs: float


def layers_of(model: Any) -> list[Layer]:
    """Return the operations of a network that have feature maps."""
    steps = recorded_steps(model)
    number = {step.writes: position for position, step in enumerate(steps)}
    kept: dict[int, int] = {}
    layers: list[Layer] = []
    sizes: list[Interval] = []
    for position, step in enumerate(steps):
        if len(step.shape) != 4 or step.shape[1] is None or step.shape[2] is None:
            continue
        reads = [kept.get(number.get(read, -1), -1) for read in step.reads]
        pairs = zip(reads, step.reads, strict=True)
        # Weights are read too; only other layers' outputs and the image are feature maps.
        reads = [read for read, value in pairs if read >= 0 or value not in number]
        size = (int(step.shape[1]), int(step.shape[2]))
        given = sizes[reads[0]] if reads and reads[0] >= 0 else tuple(model.input_shape[1:3])
        kept[position] = len(layers)
        layers.append(_layer(step, tuple(reads) or (-1,), given, size))
        sizes.append(size)
    return layers


def _layer(step: Any, reads: tuple[int, ...], given: Interval, size: Interval) -> Layer:
    operation = step.operation
    kernel, stride, before, macs = (1, 1), (1, 1), (0, 0), 0.0
    if hasattr(operation, "pool_size"):
        kernel, stride = tuple(operation.pool_size), tuple(operation.strides)
    elif hasattr(operation, "kernel_size"):
        kernel, stride = tuple(operation.kernel_size), tuple(operation.strides)
        macs = float(np.prod(operation.kernel.shape))
    elif type(operation).__name__ == "ZeroPadding2D":
        (top, _), (left, _) = operation.padding
        before = (top, left)
    if getattr(operation, "padding", None) == "same":
        total = [
            max((o - 1) * s + k - i, 0)
            for o, s, k, i in zip(size, stride, kernel, given, strict=True)
        ]
        before = (total[0] // 2, total[1] // 2)
    stage = operation.name.split("_")[0]
    return Layer(stage, reads, kernel, stride, before, size, macs)


def reached(changed: Interval, layer: Layer, side: int) -> Interval:
    """Return the places of a layer's output that see any of the changed places of its input.

    Args:
        changed: Of the input, along one side.
        layer: The layer.
        side: 0 for rows, 1 for columns.
    """
    kernel, stride, before = layer.kernel[side], layer.stride[side], layer.before[side]
    first = -(-(changed[0] + before - kernel + 1) // stride)
    last = (changed[1] - 1 + before) // stride
    return max(first, 0), min(last + 1, layer.size[side])


def read_by(needed: Interval, layer: Layer, side: int, given: int) -> Interval:
    """Return the places of a layer's input (``given`` long) that some places of its output read."""
    first = needed[0] * layer.stride[side] - layer.before[side]
    last = (needed[1] - 1) * layer.stride[side] - layer.before[side] + layer.kernel[side]
    return max(first, 0), min(last, given)


def changed_places(layers: list[Layer], covered: Interval, side: int) -> list[Interval]:
    """Return the places of every layer's output that change when an interval is covered."""
    changed: list[Interval] = []
    for layer in layers:
        ends = [reached(covered if r < 0 else changed[r], layer, side) for r in layer.reads]
        changed.append((min(e[0] for e in ends), max(e[1] for e in ends)))
    return changed


def with_context(layers: list[Layer], changed: list[Interval], side: int) -> list[Interval]:
    """Return the places that ordinary convolutions compute if only stages' ends are kept.

    What a stage starts from is cut out of kept maps, wide enough for what changes at its end; the
    layers between compute all of the cut, also what has not changed.
    """
    computed = list(changed)
    for position in range(len(layers) - 1, -1, -1):
        for read in layers[position].reads:
            if read >= 0 and layers[read].stage == layers[position].stage:
                wanted = read_by(
                    computed[position], layers[position], side, layers[read].size[side]
                )
                have = computed[read]
                computed[read] = min(have[0], wanted[0]), max(have[1], wanted[1])
    return computed


def shares(
    layers: list[Layer], patch: int, stride: int, size: Interval, *, context: bool
) -> np.ndarray:
    """Return the mean share of each layer's places that is computed, over all patches: (L,)."""
    along = []
    for side in (0, 1):
        rows = []
        for start in patch_starts(size[side], patch, stride):
            places = changed_places(layers, (int(start), int(start) + patch), side)
            if context:
                places = with_context(layers, places, side)
            lengths = [max(last - first, 0) for first, last in places]
            rows.append([n / layer.size[side] for n, layer in zip(lengths, layers, strict=True)])
        # Rows and columns are independent, so the mean over patches is a product of means.
        along.append(np.mean(rows, axis=0))
    return along[0] * along[1]


def costs(layers: list[Layer]) -> np.ndarray:
    """Return the multiply-adds of every layer in a full pass."""
    return np.array([layer.macs * np.prod(layer.size) for layer in layers])


def table(layers: list[Layer], least: np.ndarray, cut: np.ndarray) -> pd.DataFrame:
    """Return multiply-adds by stage: of a full pass, of what changes, of what is cut out."""
    full = costs(layers)
    weighted = [layer.stage for layer, macs in zip(layers, full, strict=True) if macs]
    rows = []
    for stage in [*dict.fromkeys(weighted), "all"]:
        chosen = np.array([stage in (layer.stage, "all") for layer in layers])
        parts = [values[chosen].sum() / 1e9 for values in (full, full * least, full * cut)]
        rows.append([stage, *parts, parts[0] / parts[1], parts[0] / parts[2]])
    names = ["stage", "full", "changing", "cut_out", "bound_changing", "bound_cut_out"]
    return pd.DataFrame(rows, columns=names)


def by_last_stage(layers: list[Layer], share: np.ndarray) -> dict[str, float]:
    """Return how many times fewer multiply-adds, if later stages are computed in full."""
    full, result = costs(layers), {}
    for stage in dict.fromkeys(layer.stage for layer in layers):
        last = max(i for i, layer in enumerate(layers) if layer.stage == stage) + 1
        result[stage] = float(full.sum() / ((full * share)[:last].sum() + full[last:].sum()))
    return result


def main() -> None:
    """Print the bound by stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="192x256", help="HxW")
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--backbone", default="resnet50")
    given = parser.parse_args()
    size = parse_size(given.size)
    layers = layers_of(build_classifier(Architecture(given.backbone, size)))
    least, cut = (
        shares(layers, given.patch, given.stride, size, context=context)
        for context in (False, True)
    )
    print(f"{given.backbone}, {given.size}, patch {given.patch}, stride {given.stride}; GMAC")
    print(table(layers, least, cut).round(3).to_string(index=False))
    for name, share in (("changing", least), ("cut out", cut)):
        bounds = by_last_stage(layers, share)
        print(f"{name}, incremental up to:", {k: round(v, 2) for k, v in bounds.items()})


if __name__ == "__main__":
    main()

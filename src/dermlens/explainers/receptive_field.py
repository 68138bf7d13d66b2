"""Where in the image each cell of a feature map looks: receptive-field centers from the graph.

A cell of a feature map reads a window of the layer before it. Strides, kernels and padding say
where that window lies, so the center of what cell j sees follows exactly from the operations on
the way: position = first + spacing * j, along each side, in pixels. Padding more at the end than
at the start (``same`` on even sizes) or reading every second place (strided 1x1 convolutions, as
in ResNet) puts these centers up to half a cell away from the middle of equal tiles, which a plain
resize of the map assumes.

Derivation: Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", 2016,
arXiv:1603.07285; Araujo, Norris & Sim, "Computing receptive fields of convolutional neural
networks", Distill 2019, doi:10.23915/distill.00021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.explainers.layers import Step, apply_operation

_ROWS, _COLUMNS = 1, 2


@dataclass(frozen=True)
class CellAxis:
    """The cells of a feature map along one side of the image, which is ``pixels`` long.

    ``first`` is the center of the receptive field of cell 0, in pixels, pixel i having its center
    at i; ``spacing`` leads to the next.
    """

    first: float
    spacing: float
    cells: int
    pixels: int

    @property
    def centers(self) -> np.ndarray:
        """Center of each cell, float64 (cells,), in pixels; may lie outside the image."""
        return self.first + self.spacing * np.arange(self.cells)


@dataclass(frozen=True)
class CellGrid:
    """Where the cells of a feature map look.

    ``assumed`` names operations on the way whose geometry is neither known nor could be measured,
    so that equal tiles were assumed for them; empty for exact grids.
    """

    rows: CellAxis
    columns: CellAxis
    assumed: tuple[str, ...] = ()


def tiles(cells: int, pixels: int) -> CellAxis:
    """Return the centers of ``cells`` equal tiles of a side of ``pixels``."""
    spacing = pixels / cells
    return CellAxis((spacing - 1) / 2, spacing, cells, pixels)


def cell_grids(
    steps: Sequence[Step], wanted: Sequence[int], size: tuple[int, int]
) -> list[CellGrid]:
    """Return where the cells of the feature maps of the wanted operations look.

    Where branches of different geometry meet, their mean counts. The steps are those that
    ``layers.recorded_steps`` returns for images of that (height, width).
    """
    steps = steps[: max(wanted) + 1]
    produced = {step.writes for step in steps}
    rows, columns = (CellAxis(0.0, 1.0, side, side) for side in size)
    known: dict[int, CellGrid] = {}
    grids: dict[int, CellGrid] = {}
    for position, step in enumerate(steps):
        # What has no places has no grid.
        sources = [
            (known[read] if read in produced else CellGrid(rows, columns), shape)
            for read, shape in zip(step.reads, step.read_shapes, strict=True)
            if len(shape) == 4 and (read in known or read not in produced)
        ]
        if len(step.shape) == 4:
            many = sum(len(shape) == 4 for shape in step.read_shapes) > 1
            grids[position] = known[step.writes] = _after(step, sources, size, many)
    return [grids[position] for position in wanted]


def _after(
    step: Step,
    sources: Sequence[tuple[CellGrid, tuple[int, ...]]],
    size: tuple[int, int],
    many: bool,
) -> CellGrid:
    """Return the grid of an operation's output; ``many``: several of its inputs have places."""
    names = dict.fromkeys(name for grid, _ in sources for name in grid.assumed)
    axes, exact = [], True
    for axis in (_ROWS, _COLUMNS):
        cells = int(step.shape[axis] or 1)
        found = []
        for grid, shape in sources:
            before = grid.rows if axis == _ROWS else grid.columns
            # A gate of one place per channel, as in squeeze and excitation, has no position.
            if many and shape[axis] != cells:
                continue
            offset, factor, sure = (0.0, 1.0, True) if many else _window(step, axis, shape, cells)
            exact = exact and sure
            found.append((before.first + before.spacing * offset, before.spacing * factor))
        if found:
            first, spacing = np.mean(found, axis=0)
            axes.append(CellAxis(float(first), float(spacing), cells, size[axis - 1]))
        else:
            exact = exact and cells == 1
            axes.append(tiles(cells, size[axis - 1]))
    own = () if exact else (step.path,)
    return CellGrid(axes[0], axes[1], tuple(dict.fromkeys((*own, *names))))


def _window(step: Step, axis: int, shape: tuple[int, ...], cells: int) -> tuple[float, float, bool]:
    """Return where output place j looks in the input: place offset + factor * j, and if sure."""
    import keras

    layers, operation, side, given = keras.layers, step.operation, axis - 1, shape[axis]
    window = getattr(operation, "pool_size", None) or getattr(operation, "kernel_size", None)
    if window is not None and hasattr(operation, "strides"):
        return *_strided(operation, window, side, given, cells), True
    if isinstance(operation, layers.ZeroPadding2D):
        return -float(operation.padding[side][0]), 1.0, True
    if isinstance(operation, layers.Cropping2D):
        return float(operation.cropping[side][0]), 1.0, True
    if isinstance(operation, layers.UpSampling2D | layers.Resizing):
        factor = given / cells
        return (factor - 1) / 2, factor, True
    if given == cells:
        return 0.0, 1.0, True
    if cells == 1:
        return (given - 1) / 2, float(given), True
    return _measured(step, axis, shape, cells)


def _strided(operation: Any, window: Any, side: int, given: int, cells: int) -> tuple[float, float]:
    """Convolutions and pooling: the middle of the window that place j reads."""
    import keras

    strides = operation.strides if operation.strides is not None else window
    dilations = getattr(operation, "dilation_rate", 1)
    # One number or two.
    reach, dilation, stride = (
        int(np.broadcast_to(one, 2)[side]) for one in (window, dilations, strides)
    )
    reach = (reach - 1) * dilation + 1
    transposed = isinstance(operation, keras.layers.Conv2DTranspose)
    padding = 0
    if operation.padding == "same":
        small, large = (given, cells) if transposed else (cells, given)
        padding = max((small - 1) * stride + reach - large, 0) // 2
    middle = (reach - 1) / 2 - padding
    if transposed:
        return -middle / stride, 1 / stride
    return middle, float(stride)


def _measured(
    step: Step, axis: int, shape: tuple[int, ...], cells: int
) -> tuple[float, float, bool]:
    """Find where an unknown operation looks from its gradient at two places in the middle."""
    import tensorflow as tf

    given = shape[axis]
    even = (given / cells - 1) / 2, given / cells, False
    # Positive and uneven, so that neither rectification nor equal values hide a place.
    values = np.random.default_rng(0).uniform(0.5, 1.5, shape).astype(np.float32)
    centers, first = [], max(cells // 2 - 1, 0)

    @tf.function(autograph=False)
    def gradient(pixels: Any, cell: Any) -> Any:
        output = apply_operation(step.operation, (pixels, *step.args[1:]), step.kwargs)
        return tf.gradients(tf.gather(output, cell, axis=axis), pixels)[0]

    others = tuple(k for k in range(4) if k != axis)
    for cell in (first, first + 1):
        try:
            slopes = gradient(tf.constant(values), tf.constant(cell))
        except Exception:  # An operation of somebody else's may fail in any way.
            return even
        weight = np.zeros(1) if slopes is None else np.abs(np.asarray(slopes, np.float64))
        if not weight.sum() > 0:
            return even
        weight = weight.sum(axis=others)
        centers.append(float((weight * np.arange(given)).sum() / weight.sum()))
    factor = centers[1] - centers[0]
    return (centers[0] - factor * first, factor, True) if factor > 0 else even

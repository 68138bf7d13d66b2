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

A coarse map is drawn at the image's size:

* ``"receptive_field"``: cell values stand at the centers of their receptive fields,
  and between them a quadratic B-spline (Unser, "Splines: a perfect fit for
  signal and image processing", IEEE Signal Processing Magazine 16, 1999) weighs the three nearest
  along each side. Its weights are positive and sum to 1, so no value appears that the cells do not
  bear out; its bell is nearly round, so no diamonds appear. Beyond the outermost centers the
  outermost cells go on. (Chosen on validation images among linear, quadratic, cubic and Keys
  kernels: the one that is no worse than the bilinear tiles by any measure of localization.)
* ``"tiles"``: what a plain bilinear resize about half-pixel centers draws, as other packages do:
  cell values in the middle of equal tiles.

Both are one matrix for the rows and one for the columns, and the same in NumPy, TensorFlow and
LiteRT.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.layers import Features, Step, apply_operation, recorded_steps, traced_size

Registration = Literal["receptive_field", "tiles"]
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


def check_registration(registration: str) -> None:
    """Raise UsageError if there is no such registration."""
    known = get_args(Registration)
    if registration not in known:
        raise UsageError(f"Unknown registration {registration!r}. Use one of: {', '.join(known)}.")


def interpolation(axis: CellAxis, registration: str = "receptive_field") -> np.ndarray:
    """Return the weights that turn cells into pixels along one side.

    float32 (pixels, cells); rows sum to 1, no weight is negative.

    Raises:
        UsageError: If there is no such registration.
    """
    check_registration(registration)
    drawn = axis if registration == "receptive_field" else tiles(axis.cells, axis.pixels)
    place = (np.arange(axis.pixels) - drawn.first) / drawn.spacing
    # Cells as fine as the pixels need nothing in between, and are not blurred.
    smooth = registration == "receptive_field" and drawn.spacing > 1
    nearest = np.rint(place).astype(int)
    weights = np.zeros((axis.pixels, axis.cells))
    for step in (-1, 0, 1):
        distance = np.abs(place - (nearest + step))
        weight = _bell(distance) if smooth else np.maximum(1 - distance, 0)
        cell = np.clip(nearest + step, 0, axis.cells - 1)
        np.add.at(weights, (np.arange(axis.pixels), cell), weight)
    return weights.astype(np.float32)


def _bell(distance: np.ndarray) -> np.ndarray:
    """The quadratic B-spline at a distance in cells."""
    far = np.maximum(1.5 - distance, 0) ** 2 / 2
    return np.where(distance < 0.5, 0.75 - distance**2, far)


class Drawing:
    """Draws feature maps of a model at the image's size; the geometry is worked out once a size.

    ``positions`` are those of the operations whose feature maps are drawn, as ``Features.step``.
    """

    def __init__(
        self, features: Features, positions: Sequence[int], registration: str = "receptive_field"
    ) -> None:
        check_registration(registration)
        self.features, self.positions = features, list(positions)
        self.registration = registration
        self._grids: dict[tuple[int, int], list[CellGrid]] = {}

    def grids(self, size: Sequence[int]) -> list[CellGrid]:
        """Return where the cells of each operation look in images of (height, width) pixels."""
        key = (int(size[0]), int(size[1]))
        if key not in self._grids:
            model = self.features.model
            known = key == traced_size(model)
            steps = self.features.steps if known else recorded_steps(model, key)
            self._grids[key] = cell_grids(steps, self.positions, key)
        return self._grids[key]

    def weights(self, size: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return for each operation the weights of rows, float32 (H, h), and columns, (W, w)."""
        drawn = partial(interpolation, registration=self.registration)
        return [(drawn(grid.rows), drawn(grid.columns)) for grid in self.grids(size)]


def registered(maps: Any, rows: Any, columns: Any) -> Any:
    """Draw maps (..., h, w) at the image's size, (..., H, W), by weights (H, h) and (W, w)."""
    import tensorflow as tf

    # Plain matrices: oneDNN's product of a matrix with a batch of them is wrong for some shapes.
    shape = tf.shape(maps)
    h, w = shape[-2], shape[-1]
    height, width = tf.shape(rows)[0], tf.shape(columns)[0]
    wide = tf.matmul(tf.reshape(maps, (-1, w)), columns, transpose_b=True)
    turned = tf.transpose(tf.reshape(wide, (-1, h, width)), (0, 2, 1))
    tall = tf.matmul(tf.reshape(turned, (-1, h)), rows, transpose_b=True)
    drawn = tf.transpose(tf.reshape(tall, (-1, width, height)), (0, 2, 1))
    return tf.reshape(drawn, tf.concat([shape[:-2], [height, width]], axis=0))

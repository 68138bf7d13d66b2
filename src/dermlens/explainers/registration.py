"""Drawing a coarse map at the image's size, every cell where the network looks.

* ``"receptive_field"``: cell values stand at the centers of their receptive fields
  (``receptive_field``), and between them a quadratic B-spline (Unser, "Splines: a perfect fit for
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
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.layers import Features, recorded_steps, traced_size
from dermlens.explainers.receptive_field import CellAxis, CellGrid, cell_grids, tiles

Registration = Literal["receptive_field", "tiles"]


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

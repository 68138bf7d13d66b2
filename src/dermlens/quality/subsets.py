"""How the score reacts when random parts of an image are covered: infidelity and MuFidelity.

Which parts are covered, and how the model reacts, does not depend on any explanation: one set of
evaluations per image serves every method. Methods are compared on identical draws, and the cost of
these metrics is paid once per image, not once per method.

* Normalized infidelity: Yeh et al., "On the (in)fidelity and sensitivity of explanations", NeurIPS
  2019, with square removal. I is the indicator of the covered square, so that I·a is the
  attribution inside it (for methods that answer "how much does this pixel contribute").
* MuFidelity: Bhatt, Weller & Moura, "Evaluating and aggregating feature-based model explanations",
  IJCAI 2020, on cells of a grid instead of single pixels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dermlens.explainers.base import image_generator
from dermlens.explainers.superpixels import grid_cells

if TYPE_CHECKING:
    from dermlens.quality.metric import Case

SQUARES = 60
SETS = 60
SIDES: tuple[float, ...] = (0.15, 0.25, 0.4)
CELLS_ALONG = 9
SET_SHARE = 0.2


@dataclass(frozen=True)
class Reactions:
    """How a model's logits fell (S, C), (K, C) when parts of one image were covered.

    Squares (S, 4): top, bottom, left, right; sets (K, M) of cells, labels (H, W) being the cell of
    each pixel.
    """

    boxes: np.ndarray
    box_drops: np.ndarray
    labels: np.ndarray
    sets: np.ndarray
    set_drops: np.ndarray


def draw_boxes(height: int, width: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Return random squares, int32 (count, 4): top, bottom, left, right."""
    boxes = np.zeros((count, 4), np.int32)
    for row in range(count):
        side = max(1, round(SIDES[row % len(SIDES)] * min(height, width)))
        # They may reach over the image's edge, so that it is covered as often as the middle.
        top, left = (int(random.integers(1 - side, length)) for length in (height, width))
        boxes[row] = (max(top, 0), min(top + side, height), max(left, 0), min(left + side, width))
    return boxes


def draw_sets(cells: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Return random sets of cells, bool (count, cells), all with the same number of cells."""
    size = min(max(1, round(SET_SHARE * cells)), cells)
    drawn = np.zeros((count, cells), bool)
    for row in range(count):
        drawn[row, random.permutation(cells)[:size]] = True
    return drawn


def covering_masks(labels: Any, jobs: Any) -> Any:
    """Return masks (B, H, W): jobs hold a box (4 numbers), then 1 for each covered cell."""
    import tensorflow as tf

    rows = tf.cast(tf.range(tf.shape(labels)[0]), tf.float32)[None, :, None]
    columns = tf.cast(tf.range(tf.shape(labels)[1]), tf.float32)[None, None, :]
    top, bottom, left, right = (jobs[:, k, None, None] for k in range(4))
    boxed = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    covered = tf.gather(jobs[:, 4:], labels, axis=1)
    return 1.0 - tf.maximum(tf.cast(boxed, tf.float32), covered)


def draw_covers(
    image: np.ndarray, squares: int, sets: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return cells (H, W), squares (S, 4) and sets of cells (K, M), set by seed and image alone."""
    random = image_generator(seed, image)
    height, width = image.shape[:2]
    along = min(CELLS_ALONG, min(height, width))
    cells = round(along * along * max(height, width) / min(height, width))
    labels = grid_cells(height, width, cells)
    boxes = draw_boxes(height, width, squares, random)
    return labels, boxes, draw_sets(int(labels.max()) + 1, sets, random)


def box_sums(attribution: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the sum of a map (H, W) inside boxes (S, 4), float64 (S,), by a summed-area table."""
    table = np.zeros((attribution.shape[0] + 1, attribution.shape[1] + 1))
    table[1:, 1:] = np.asarray(attribution, np.float64).cumsum(axis=0).cumsum(axis=1)
    top, bottom, left, right = boxes.T
    sums: np.ndarray = table[bottom, right] - table[top, right]
    return sums - table[bottom, left] + table[top, left]


def cell_sums(attribution: np.ndarray, labels: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Return the sum of a map (H, W) inside sets of cells (K, M), float64 (K,).

    A constant map gives every set the same, 0: cells differ by a row or column of pixels, and a map
    without content must not gain by their sizes.
    """
    values = np.asarray(attribution, np.float64)
    if values.max() == values.min():
        return np.zeros(len(sets))
    each = np.bincount(labels.ravel(), values.ravel(), minlength=sets.shape[1])
    return np.matmul(sets, each)


def infidelity(foretold: np.ndarray, drops: np.ndarray) -> float:
    """Return the share of the mean squared reaction that a map does not foretell, 0..1.

    E[(b I·a - (f(x) - f(x - I)))²] with the optimal scale b >= 0, divided by E[(f(x) - f(x - I))²]
    so that images with large and small reactions count alike. 0: foretold up to a factor; 1:
    nothing. A negative scale would make an inverted map as good as the map itself, so it is not
    allowed. A map of zeros foretells nothing (1). NaN where the score never reacts.
    """
    reaction = float(np.mean(drops**2))
    if reaction <= 1e-18:
        return float("nan")
    largest = np.abs(foretold).max()
    if largest == 0:
        return 1.0
    scaled = foretold / largest
    along = max(float(np.mean(scaled * drops)), 0.0)
    return max(0.0, 1.0 - along**2 / float(np.mean(scaled**2)) / reaction)


def mufidelity(foretold: np.ndarray, drops: np.ndarray) -> float:
    """Return Pearson's correlation of attribution in a set with the fall of the score, -1..1.

    A map that gives every set the same (a constant map) foretells nothing: 0. NaN where the score
    never reacts.
    """
    if np.abs(drops - drops[0]).max() <= 1e-9:
        return float("nan")
    centered, others = foretold - foretold.mean(), drops - drops.mean()
    if np.abs(centered).max() <= 1e-12 * np.abs(foretold).max():
        return 0.0
    centered = centered / np.abs(centered).max()
    scale = np.sqrt((centered**2).sum() * (others**2).sum())
    return float(np.clip((centered * others).sum() / scale, -1, 1))


def infidelities(case: "Case") -> np.ndarray:
    rows = ((one.reactions, map_, target) for one, map_, target in case.each())
    return np.array([infidelity(box_sums(m, r.boxes), r.box_drops[:, k]) for r, m, k in rows])


def mufidelities(case: "Case") -> np.ndarray:
    rows = ((one.reactions, map_, target) for one, map_, target in case.each())
    sums = ((cell_sums(m, r.labels, r.sets), r.set_drops[:, k]) for r, m, k in rows)
    return np.array([mufidelity(*row) for row in sums])

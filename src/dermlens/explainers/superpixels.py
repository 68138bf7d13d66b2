"""Superpixels: the pieces of an image that LIME and Shapley values switch on and off.

SLIC: Achanta et al., "SLIC superpixels compared to state-of-the-art superpixel methods", TPAMI
2012. Chosen because it cuts smooth areas into pieces of like size, where methods that follow edges
(quickshift, Felzenszwalb) return them as one piece.
"""

import numpy as np

from dermlens.errors import UsageError

SMOOTHING_SHARE = 0.006


def superpixels(image: np.ndarray, count: int = 50, *, compactness: float = 8.0) -> np.ndarray:
    """Cut an image, RGB 0..255, (H, W, 3), into about ``count`` pieces of similar color and size.

    SLIC starts from a regular grid, so nothing is random. Returns the piece of each pixel, int32
    (H, W), numbered 0..M-1 without gaps; a larger ``compactness`` gives squarer pieces.

    Raises:
        UsageError: If fewer than 2 pieces are asked for.
    """
    from skimage.segmentation import slic

    if count < 2:
        raise UsageError(f"An image is cut into at least 2 superpixels, not {count}.")
    image = np.asarray(image, np.float32)
    height, width = image.shape[:2]
    count = min(count, max(2, height * width // 2))
    labels = slic(
        np.clip(image, 0, 255) / 255.0,
        n_segments=count,
        compactness=compactness,
        sigma=SMOOTHING_SHARE * min(height, width),
        start_label=0,
        enforce_connectivity=True,
        channel_axis=-1,
    )
    if labels.max() < 1:
        labels = grid_cells(height, width, count)
    return np.unique(labels, return_inverse=True)[1].reshape(height, width).astype(np.int32)


def grid_cells(height: int, width: int, count: int) -> np.ndarray:
    """Cut a rectangle into about ``count`` cells, as square as possible: int32 (H, W)."""
    rows = min(height, max(1, round(np.sqrt(count * height / width))))
    columns = min(width, max(1, -(-count // rows)))
    row = np.arange(height) * rows // height
    column = np.arange(width) * columns // width
    return (row[:, None] * columns + column[None]).astype(np.int32)


def painted(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Give every pixel the value of its piece: (T, M) and (H, W) to float32 (T, H, W)."""
    return np.asarray(values, np.float32)[:, labels]

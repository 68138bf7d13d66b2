"""Removing pixels without leaving a trace of where they were.

Noisy linear imputation: Rong et al., "A consistent and efficient evaluation strategy for
attribution methods" (ROAD), ICML 2022. A removed pixel becomes the weighted mean of its eight
neighbors (1/6 for the four sides, 1/12 for the diagonals), themselves removed or not: a sparse
linear system (``multigrid.py``). A little noise hides that the result is smooth.
"""

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.base import image_generator
from dermlens.explainers.baselines import border_color
from dermlens.quality.multigrid import solve_removed


def impute(
    images: np.ndarray, removed: np.ndarray, *, noise: float = 0.01, seed: int = 0
) -> np.ndarray:
    """Replace removed pixels by what their surroundings suggest.

    Args:
        images: uint8 or float RGB 0..255, (N, H, W, 3).
        removed: bool (N, H, W).
        noise: Standard deviation of the noise as a share of the range 0..255.
        seed: Sets the noise; an image's noise does not depend on its neighbors in the batch.

    Returns:
        float32 (N, H, W, 3), 0..255; pixels that were not removed are unchanged.

    Raises:
        UsageError: If the shapes do not fit.
    """
    images = np.asarray(images)
    removed = np.asarray(removed, bool)
    if images.ndim != 4 or removed.shape != images.shape[:3]:
        raise UsageError(
            f"Images {images.shape} and removed pixels {removed.shape} must be (N, H, W, 3) and "
            "(N, H, W) of the same size."
        )
    pairs = zip(images.astype(np.float32), removed, strict=True)
    return np.stack([_impute_one(image, gone, noise, seed) for image, gone in pairs])


def _impute_one(image: np.ndarray, gone: np.ndarray, noise: float, seed: int) -> np.ndarray:
    result = image.copy()
    if not gone.any():
        return result
    if gone.all():
        filled = np.broadcast_to(border_color(image), (int(gone.sum()), 3))
    else:
        filled = solve_removed(image, gone)[gone]
    generator = image_generator(seed, image)
    jitter = generator.normal(0.0, noise * 255.0, filled.shape)
    result[gone] = np.clip(filled + jitter, 0, 255)
    return result

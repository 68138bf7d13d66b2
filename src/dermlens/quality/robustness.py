"""Does a map stay when the image hardly changes, and does it turn with the image?

* Sensitivity: Yeh et al., "On the (in)fidelity and sensitivity of explanations", NeurIPS 2019.
* Equivariance: Crabbé & van der Schaar, "Evaluating the robustness of interpretability methods
  through explanation invariance and equivariance", NeurIPS 2023, for the dihedral group.

Neither says that a map is right: a map that ignores image and model is perfectly robust. LIME,
the Shapley methods and RISE draw their masks anew for a changed image, so their values include what
sampling adds, which is what a user who explains two nearly equal photographs sees.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.base import image_generator
from dermlens.quality.agreement import spearman

if TYPE_CHECKING:
    from dermlens.quality.metric import Case, Explain

RADIUS = 5.0
DRAWS = 4


Move = Callable[[np.ndarray], np.ndarray]
"""Moves pictures (N, H, W) or (N, H, W, C) by one symmetry."""


def symmetries(height: int, width: int) -> dict[str, Move]:
    """Return the symmetries that keep the size: three for rectangles, seven for squares."""
    moves: dict[str, Move] = {
        "mirrored_left_right": lambda p: p[:, :, ::-1],
        "mirrored_up_down": lambda p: p[:, ::-1],
        "half_turn": lambda p: p[:, ::-1, ::-1],
    }
    if height == width:
        moves |= {
            "quarter_turn": lambda p: np.rot90(p, 1, axes=(1, 2)),
            "three_quarter_turn": lambda p: np.rot90(p, 3, axes=(1, 2)),
            "transposed": lambda p: p.swapaxes(1, 2),
            "anti_transposed": lambda p: p.swapaxes(1, 2)[:, ::-1, ::-1],
        }
    return moves


def two_sided_noise(image: np.ndarray, radius: float, draws: int, seed: int) -> np.ndarray:
    """Return noise within ``radius`` in every pixel and channel, float32 (draws, H, W, 3).

    Draws come in pairs d and -d, so that their mean is exactly zero. The noise depends on the seed
    and the image alone, so every method sees the same.
    """
    if draws < 2 or draws % 2 or radius <= 0:
        raise UsageError(
            f"Sensitivity needs an even number of draws and a radius above 0, not {draws} draws "
            f"within {radius}."
        )
    generator = image_generator(seed, image)
    half = generator.uniform(-radius, radius, (draws // 2, *image.shape)).astype(np.float32)
    return np.concatenate([half, -half])


def relative_changes(changed: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """Return ‖changed - map‖ / ‖map‖ of maps (n, H, W) against one (H, W), float64 (n,).

    A map of zeros that stays zero has not changed (0); where it does not stay, the relative change
    has no value (NaN).
    """
    changed, reference = np.asarray(changed, np.float64), np.asarray(map_, np.float64)
    length = np.sqrt((reference**2).sum())
    moved: np.ndarray = np.sqrt(((changed - reference) ** 2).sum(axis=(1, 2)))
    return np.where(moved == 0, 0.0, np.nan) if length == 0 else moved / length


def sensitivity(
    explain: "Explain",
    image: np.ndarray,
    target: int,
    map_: np.ndarray,
    *,
    radius: float = RADIUS,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the largest and the mean relative change of a map under weak noise.

    ``radius`` is the largest change of a pixel, in gray levels of 0..255. Noisy pixels are not
    clipped, since clipping would make the noise one-sided where the image is white or black.
    """
    image = np.asarray(image, np.float32)
    noisy = image + two_sided_noise(image, radius, draws, seed)
    changes = relative_changes(explain(noisy, np.full(draws, target, np.int32)), map_)
    # NaN where any is.
    return float(changes.max()), float(changes.mean())


def equivariance(explain: "Explain", image: np.ndarray, target: int, map_: np.ndarray) -> float:
    """Return the mean rank correlation of the moved image's map with the moved map, -1..1."""
    image = np.asarray(image, np.float32)
    moves = symmetries(*image.shape[:2]).values()
    moved = np.concatenate([move(image[None]) for move in moves])
    expected = np.concatenate([move(np.asarray(map_)[None]) for move in moves])
    maps = explain(moved, np.full(len(moves), target, np.int32))
    return float(spearman(maps, expected).mean())


def max_sensitivity(case: "Case") -> np.ndarray:
    return case.once(_sensitivities)[:, 0]


def average_sensitivity(case: "Case") -> np.ndarray:
    return case.once(_sensitivities)[:, 1]


def equivariances(case: "Case") -> np.ndarray:
    rows = ((one.image, target, map_) for one, map_, target in case.each())
    return np.array([equivariance(case.explain, *row) for row in rows])


def _sensitivities(case: "Case") -> np.ndarray:
    rows = ((one.image, target, map_) for one, map_, target in case.each())
    return np.array([sensitivity(case.explain, *row, seed=case.seed) for row in rows])

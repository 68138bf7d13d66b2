"""LIME for images (Ribeiro, Singh & Guestrin, KDD 2016).

Superpixels are kept or replaced at random; a ridge regression of the output on which were kept,
weighted by a proximity kernel around the whole image, gives each superpixel its weight. The kernel
is sqrt(exp(-d^2 / width^2)) with d the cosine distance between a mask and the full mask.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.attribution import PER_CLASS
from dermlens.explainers.coalitions import Coalitions, binomial_mass
from dermlens.explainers.superpixel_explainer import (
    NORMAL_95,
    Fit,
    SuperpixelAttribution,
    SuperpixelExplainer,
    sampling_variance,
)


def proximity_kernel(pieces: int, width: float) -> np.ndarray:
    """Return the exponential kernel by mask size 0..M: float64 (M + 1,), 1 for the full mask."""
    distance = 1.0 - np.sqrt(np.arange(pieces + 1) / pieces)
    return np.exp(-(distance**2) / (2 * width**2))


@dataclass(kw_only=True)
class LIMEAttribution(SuperpixelAttribution):
    """What LIME knows more.

    Attributes:
        r2: float64 (N,) or (N, C): share of the (weighted) variance of outputs that the linear
            model explains. A low value means that the weights do not describe the model.
    """

    r2: np.ndarray = field(metadata=PER_CLASS)


class LIME(SuperpixelExplainer[LIMEAttribution]):
    """LIME on superpixels.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        kernel_width: Of the proximity kernel, in cosine distance.
        ridge: Strength of the L2 penalty on the weights; 0 for none.
        **options: superpixels, n_samples, baseline, bank, scorer; see ``SuperpixelExplainer``.

    Returns results of the kind ``LIMEAttribution``.
    """

    name = "lime"
    design = "lime"
    kind = LIMEAttribution

    def __init__(
        self, model: Any, *, kernel_width: float = 0.25, ridge: float = 1.0, **options: Any
    ) -> None:
        super().__init__(model, **options)
        if kernel_width <= 0 or ridge < 0:
            raise UsageError("LIME needs a kernel_width above 0 and a ridge of 0 or more.")
        self.kernel_width, self.ridge = kernel_width, ridge

    def _fit(self, masks: Coalitions, values: np.ndarray) -> Fit:
        near = proximity_kernel(masks.pieces, self.kernel_width)
        weights = masks.weights(binomial_mass(masks.pieces) * near) * len(masks.masks)
        # The image itself is one sample like any other, at distance zero.
        weights[0] = max(weights[0], 1.0)
        kept = masks.masks.astype(np.float64)
        share = weights / weights.sum()
        centered = kept - share @ kept
        residual = values - share @ values
        spread = (share[:, None] * residual**2).sum(axis=0)
        normal = centered.T @ (weights[:, None] * centered) + self.ridge * np.eye(masks.pieces)
        inverse = np.linalg.pinv(normal, hermitian=True)
        fitted = inverse @ (centered.T @ (weights[:, None] * residual))
        error = residual - centered @ fitted
        influence = (weights[:, None] * error).T[:, :, None] * centered[None]
        variance = sampling_variance(inverse, influence, masks, masks.pieces + 1)
        left = (share[:, None] * error**2).sum(axis=0)
        explained = np.where(spread > 0, 1.0 - left / np.where(spread > 0, spread, 1.0), 1.0)
        return Fit(fitted.T, NORMAL_95 * np.sqrt(variance), {"r2": explained})

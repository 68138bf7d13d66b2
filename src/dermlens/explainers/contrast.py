"""Why this class and not that one: contrast maps and class discrimination.

A contrast explains logit A minus logit B. Every signed method is linear in the output, so its
contrast map is its map for A minus its map for B: positive where the image speaks for A rather
than B, negative where it speaks for B. Perturbation methods evaluate all logits anyway, and the
closed form of class activation maps gives all classes in one pass, so contrasts cost next to
nothing.

Discrimination asks whether the evidence for A and for B lies in different places: the total
variation distance between the two distributions of positive evidence. A method that draws the
same map whatever the class (Sixt, Granz & Landgraf, "When explanations lie", ICML 2020) gets 0.
Contrastive explanations: Prabhushankar et al., "Contrastive explanations in neural networks",
ICIP 2020; Jacovi et al., EMNLP 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.errors import ExplanationError, UsageError
from dermlens.explainers.grad_cam import GradCAM


class SignedCAM(GradCAM):
    """Grad-CAM before rectification: negative where features lower the output.

    The map is linear in the output, so contrasts of any two classes follow from one pass. At the
    size of the feature maps, with global average pooling and one Dense layer, it sums to the
    logit less its bias.
    """

    name = "grad_cam"
    signed = True

    def _rectified(self, maps: Any) -> Any:
        """Keep both signs."""
        return maps


@dataclass(frozen=True)
class ClassContrast:
    """One method's answer to: why A and not B?

    Attributes:
        method: Name in the registry.
        values: float32 (H, W): positive speaks for A rather than B, negative for B.
        discrimination: 0..1: how much of the evidence for A lies where B has none.
        share_for_other: 0..1: share of the contrast, by size, that speaks for B.
    """

    method: str
    values: np.ndarray
    discrimination: float
    share_for_other: float


def contrast(method: str, for_target: np.ndarray, for_other: np.ndarray) -> ClassContrast:
    """Compare one method's signed maps (H, W) for two classes of one image, in the same units.

    Raises:
        UsageError: If the maps differ in shape.
    """
    if np.shape(for_target) != np.shape(for_other):
        raise UsageError(
            f"Maps of shape {np.shape(for_target)} and {np.shape(for_other)} cannot be "
            "contrasted. Both must be (H, W) of the same image."
        )
    values = np.asarray(for_target, np.float64) - np.asarray(for_other, np.float64)
    apart = float(discrimination(np.asarray(for_target)[None], np.asarray(for_other)[None])[0])
    against = float(negative_share(values[None])[0])
    return ClassContrast(method, values.astype(np.float32), apart, against)


def discrimination(for_target: np.ndarray, for_other: np.ndarray) -> np.ndarray:
    """Return how far the evidence for two classes lies in different places: float64 (N,), 0..1.

    d = 1/2 sum |p - q|, with p and q the positive parts of the maps (N, H, W), each divided by its
    sum: the share of the evidence for A that would have to move to lie as that for B does. Where
    only one class has positive evidence d is 1, where neither has any it is 0.
    """
    p, q = _distribution(for_target), _distribution(for_other)
    one_empty = p.any(axis=1) != q.any(axis=1)
    return np.where(one_empty, 1.0, np.clip(np.abs(p - q).sum(axis=1) / 2, 0.0, 1.0))


def negative_share(maps: np.ndarray) -> np.ndarray:
    """Return the share of maps (N, H, W), by size of values, that is negative: float64 (N,), 0..1.

    0 where a map is zero everywhere.
    """
    flat = np.asarray(maps, np.float64).reshape(len(maps), -1)
    size = np.abs(flat).sum(axis=1)
    return np.maximum(-flat, 0).sum(axis=1) / np.where(size > 0, size, 1.0)


def strongest_other(values: np.ndarray, target: int, preferred: Sequence[int] | None = None) -> int:
    """Return the class with the highest value (C,) apart from the target.

    ``preferred`` positions come first, such as those of a prediction set.

    Raises:
        ExplanationError: If there is only one class.
    """
    if len(values) < 2:
        raise ExplanationError("A model with one class has no other class to compare with.")
    first = [one for one in preferred or () if one != target]
    others = first or [one for one in range(len(values)) if one != target]
    return max(others, key=lambda one: float(values[one]))


def _distribution(maps: np.ndarray) -> np.ndarray:
    """Return the positive parts of maps, each summing to 1 (or 0), float64 (N, H * W)."""
    maps = np.asarray(maps, np.float64)
    positive = np.maximum(maps.reshape(len(maps), -1), 0.0)
    largest = positive.max(axis=1, keepdims=True)
    # Divided by the largest first, so that tiny maps lose nothing to rounding.
    positive = positive / np.where(largest > 0, largest, 1.0)
    total = positive.sum(axis=1, keepdims=True)
    return positive / np.where(total > 0, total, 1.0)

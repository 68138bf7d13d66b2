"""What the four experiments on one image give: typed results, filled as they are ready."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dermlens.explainers.base import Attribution, Cost
from dermlens.explainers.contrast import ClassContrast, contrast
from dermlens.explainers.multiscale import MultiScaleResult
from dermlens.explainers.registry import method
from dermlens.labels import LabelSet
from dermlens.quality.agreement import (
    agreement_matrices,
    consensus_map,
    disagreement_map,
    mean_agreement,
    smoothed,
)
from dermlens.report.answer import Answer
from dermlens.report.summary import Summary


@dataclass(frozen=True)
class Reading(Answer):
    """What the model says about an image, and what is explained.

    Attributes:
        image: What the model saw, uint8 (H, W, 3).
        lesion: Outline of the lesion, bool (H, W), or None.
        target: Class position explained.
        others: Class positions it is contrasted with: the most probable other one of the
            prediction set, or the most probable other one where the set holds no other; then any
            chosen one.
        cost: What was paid.
    """

    image: np.ndarray
    lesion: np.ndarray | None
    target: int
    others: tuple[int, ...] = ()
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Agreement:
    """How far the methods agree on one image.

    Attributes:
        methods: Names in the registry.
        families: Family of each method.
        matrices: By measure (``quality.agreement.MEASURES``), float64 (M, M).
        consensus: Mean normalized rank, float64 (H, W), 0..1.
        disagreement: Its spread over methods, float64 (H, W), 0..0.5.
    """

    methods: tuple[str, ...]
    families: tuple[str, ...]
    matrices: Mapping[str, np.ndarray]
    consensus: np.ndarray
    disagreement: np.ndarray

    @property
    def between_families(self) -> float:
        """Mean Spearman correlation of methods of different families; NaN if there is one."""
        return mean_agreement(self.matrices["spearman"], self.families)

    def extremes(self) -> tuple[tuple[str, str, float], tuple[str, str, float]] | None:
        """Return the two methods that agree most and the two that agree least; None for one."""
        rows, columns = np.triu_indices(len(self.methods), k=1)
        if not len(rows):
            return None
        values = self.matrices["spearman"][rows, columns]

        def pair(at: int) -> tuple[str, str, float]:
            return self.methods[rows[at]], self.methods[columns[at]], float(values[at])

        return pair(int(values.argmax())), pair(int(values.argmin()))


@dataclass(frozen=True)
class Discrimination:
    """The target against other classes.

    Attributes:
        contrasts: By class position of the other, one entry per method that is linear in the
            logit.
        left_out: Methods that have no contrast, with the reason.
        cost: What was paid here.
    """

    contrasts: Mapping[int, tuple[ClassContrast, ...]]
    left_out: Mapping[str, str]
    cost: Cost


@dataclass(frozen=True)
class Comparison:
    """The experiments as far as they are ready; None stands for what is still to come.

    Attributes:
        labels: The classes, in the order of the logits.
        reading: What the model says.
        combined: One result per method, in the order asked for.
        agreement: Of the methods.
        scales: Maps at several scales.
        discrimination: Target against other classes.
        summary: Sentences and warnings; made last.
        model: Name, backbone and fingerprint of the model (``ImageClassifier.identity``).
        missing: Why a part cannot be had of this model, by the part's name.
    """

    labels: LabelSet
    reading: Reading
    combined: Mapping[str, Attribution] = field(default_factory=dict)
    agreement: Agreement | None = None
    scales: MultiScaleResult | None = None
    discrimination: Discrimination | None = None
    summary: Summary | None = None
    model: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Codes in the order of the logits."""
        return self.labels.codes

    @property
    def target(self) -> str:
        """Code of the explained class."""
        return self.classes[self.reading.target]

    def costs(self) -> dict[str, Cost]:
        """Return what was paid by part and method; shared work is counted where it was done."""
        paid = {"reading": self.reading.cost}
        paid |= {name: result.cost for name, result in self.combined.items()}
        if self.scales is not None:
            paid["scales"] = self.scales.cost
        if self.discrimination is not None:
            paid["discrimination"] = self.discrimination.cost
        return paid


def compare_methods(results: Mapping[str, Attribution]) -> Agreement:
    """Return how far methods agree on one image; maps are brought to a common resolution first."""
    maps = smoothed(np.stack([result.maps[0] for result in results.values()]))
    return Agreement(
        tuple(results),
        tuple(method(name).family for name in results),
        agreement_matrices(maps),
        consensus_map(maps),
        disagreement_map(maps),
    )


def agreement_with_others(names: Sequence[str], matrix: np.ndarray) -> dict[str, float]:
    """Return each method's mean rank correlation with the others; empty for fewer than two."""
    if len(names) < 2:
        return {}
    means = (matrix.sum(axis=1) - 1) / (len(matrix) - 1)
    return dict(zip(names, map(float, means), strict=True))


def contrast_by_area(name: str, for_target: np.ndarray, for_other: np.ndarray) -> ClassContrast:
    """Contrast two classes; shares and discrimination are measured by area, not by pixel.

    Gradients of neighboring pixels have opposite signs by noise alone, so both maps are smoothed
    to the common resolution before they are measured. The contrast map itself stays raw.
    """
    measured = contrast(name, *smoothed(np.stack([for_target, for_other])))
    return replace(measured, values=(for_target - for_other).astype(np.float32))

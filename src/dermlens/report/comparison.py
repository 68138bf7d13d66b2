"""What the four experiments on one image give: typed results, filled as they are ready."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from dermlens.explainers.base import Attribution, Cost
from dermlens.explainers.baselines import border_ring
from dermlens.explainers.contrast import ClassContrast, contrast, negative_share
from dermlens.explainers.multiscale import MultiScaleResult
from dermlens.explainers.nearest_cases import NearestCases
from dermlens.explainers.registry import method
from dermlens.labels import LabelSet
from dermlens.lesion.zones import RING_SHARE, ZONES, lesion_zones, zone_areas, zone_shares
from dermlens.quality.agreement import (
    agreement_matrices,
    consensus_map,
    disagreement_map,
    mean_agreement,
    smoothed,
    spearman,
)
from dermlens.quality.localization import relevance_mass
from dermlens.report.facts import Answer, ContrastFacts, Facts
from dermlens.report.summary import Summary

Maps = Mapping[str, np.ndarray]


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
        cases: The training lesions most like the image, where the model has an index of them.
        pictures: Of these, uint8 RGB (h, w, 3), by image id, where the data set is at hand.
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
    cases: NearestCases | None = None
    pictures: Maps = field(default_factory=dict)

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


def facts_of(comparison: Comparison, *, synthetic: bool = False) -> Facts:
    """Return the numbers of a comparison that a summary is made of."""
    reading, classes = comparison.reading, comparison.classes
    other = reading.others[0]
    maps = {name: result.maps[0] for name, result in comparison.combined.items()}
    # By area: gradients of neighboring pixels have opposite signs by noise alone.
    signed = {
        name: smoothed(result.maps)[0]
        for name, result in comparison.combined.items()
        if result.signed
    }
    agreement = comparison.agreement
    extremes = None if agreement is None else agreement.extremes()
    shown, contrasted = (max(reading.probabilities[k], 1e-12) for k in (reading.target, other))
    return Facts(
        labels=comparison.labels,
        target=comparison.target,
        other=classes[other],
        odds=float(shown / contrasted),
        agreement=float("nan") if agreement is None else agreement.between_families,
        closest=None if extremes is None else extremes[0],
        farthest=None if extremes is None else extremes[1],
        against={name: float(negative_share(one[None])[0]) for name, one in signed.items()},
        contrasts=_contrasts(comparison),
        scale_agreement=agreement_of_scales(comparison.scales),
        convergence_delta=_detail(comparison, "integrated_gradients", "convergence_delta"),
        r2=_detail(comparison, "lime", "r2"),
        synthetic=synthetic,
        titles={name: method(name).title for name in maps},
        **{name: value for name, value in reading.to_json(classes).items() if name != "logits"},
        **_places(reading.lesion, maps, {name: -one for name, one in signed.items()}),
    )


def agreement_of_scales(scales: MultiScaleResult | None) -> float:
    """Return the mean rank correlation of maps of different kinds of scale; NaN if not known."""
    if scales is None:
        return float("nan")
    maps = dict(enumerate(smoothed(np.stack([one.values for one in scales.maps]))))
    pairs = [
        (maps[a], maps[b])
        for a, b in combinations(maps, 2)
        if scales.maps[a].kind != scales.maps[b].kind
    ]
    if not pairs:
        return float("nan")
    first, second = (np.stack(side) for side in zip(*pairs, strict=True))
    return float(spearman(first, second).mean())


def _contrasts(comparison: Comparison) -> tuple[ContrastFacts, ...]:
    if comparison.discrimination is None:
        return ()
    lesion = comparison.reading.lesion
    zones = lesion_zones(lesion) if lesion is not None and lesion.any() else None
    return tuple(
        ContrastFacts(
            comparison.classes[other],
            {one.method: one.share_for_other for one in found},
            {one.method: one.discrimination for one in found},
            "" if zones is None else densest_zone([-one.values for one in found], zones),
        )
        for other, found in comparison.discrimination.contrasts.items()
        if found
    )


def _detail(comparison: Comparison, name: str, detail: str) -> float:
    if name not in comparison.combined:
        return float("nan")
    return float(comparison.combined[name].facts()[detail])


def _places(lesion: np.ndarray | None, maps: Maps, against: Maps) -> dict[str, Any]:
    """Return what is said about places; without an outline only the border ring is known."""
    if not maps:
        return {}
    size = next(iter(maps.values())).shape
    if lesion is None or not lesion.any():
        ring = border_ring(size, RING_SHARE)
        return {
            "ring": {n: float(relevance_mass(m[None], ring[None])[0]) for n, m in maps.items()},
            "ring_area": float(ring.mean()),
        }
    zones = lesion_zones(lesion)
    areas = zone_areas(zones)
    shares = {name: zone_shares(one, zones) for name, one in maps.items()}
    means = np.mean(list(shares.values()), axis=0)
    return {
        "inside": {n: float(relevance_mass(m[None], lesion[None])[0]) for n, m in maps.items()},
        "lesion_area": float(lesion.mean()),
        "zones": dict(zip(ZONES, map(float, means), strict=True)),
        "zone_areas": dict(zip(ZONES, map(float, areas), strict=True)),
        "ring": {name: float(share[ZONES.index("ring")]) for name, share in shares.items()},
        "ring_area": float(areas[ZONES.index("ring")]),
        "against_zone": densest_zone(list(against.values()), zones),
    }


def densest_zone(maps: list[np.ndarray], zones: np.ndarray) -> str:
    """Return the zone with most positive attribution per pixel, on average over maps.

    Empty if no map has any positive attribution.
    """
    found = [one for one in maps if (one > 0).any()]
    if not found:
        return ""
    shares = zone_shares(np.stack(found), zones).mean(axis=0)
    areas = zone_areas(zones)
    density = np.where(areas > 0, shares / np.where(areas > 0, areas, 1.0), -1.0)
    return ZONES[int(density.argmax())]

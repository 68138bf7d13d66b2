"""From the results of a comparison to the numbers of its summary."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from dermlens.explainers.baselines import border_ring
from dermlens.explainers.contrast import negative_share
from dermlens.explainers.multiscale import MultiScaleResult
from dermlens.explainers.registry import method
from dermlens.lesion.zones import RING_SHARE, ZONES, lesion_zones, zone_areas, zone_shares
from dermlens.quality.agreement import smoothed, spearman
from dermlens.quality.localization import relevance_mass
from dermlens.report.comparison import Comparison
from dermlens.report.facts import ContrastFacts, Facts

Maps = Mapping[str, np.ndarray]


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

"""Do two photographs of one lesion get the same explanation?

Photographs differ in place, scale, rotation and light. Both lesions are brought into one frame:
the outline's centroid in the middle, its equivalent radius as unit. An outline does not say which
way it is turned, so rotation (and, for drawn images, mirroring) is found by comparing the
*pictures*, never the maps: a method cannot gain by it. Maps of centered lesions resemble each other
anyway, so the resemblance of photographs of different lesions, aligned in the same way, is
subtracted.

A proposal of this project; see docs/metrics.md.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from dermlens.errors import UsageError
from dermlens.lesion.relevance import equivalent_radius, zone_profile
from dermlens.quality.agreement import pearson, spearman
from dermlens.quality.metric import Case, Metric

SIDE = 48
REACH = 1.6
ANGLES = 24


@dataclass(frozen=True)
class Framed:
    """A photograph in the lesion's own frame: picture (S, S), maps (M, S, S), what is valid (S, S).

    The picture is gray, less its mean, over its deviation; only what lies inside the photograph is
    valid.
    """

    picture: np.ndarray
    maps: np.ndarray
    valid: np.ndarray


def frame(image: np.ndarray, mask: np.ndarray, maps: np.ndarray, side: int = SIDE) -> Framed:
    """Bring an image and its maps (M, H, W) into the frame of the lesion: 1.6 radii to each side.

    An empty mask has no frame: nothing in it is valid.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    mask = np.asarray(mask, bool)
    if not mask.any():
        nothing = np.zeros((len(maps) + 1, side, side), np.float32)
        return Framed(nothing[0], nothing[1:], np.zeros((side, side), bool))
    center = np.argwhere(mask).mean(axis=0)
    radius = max(equivalent_radius(mask), 1.0)
    steps = ((np.arange(side) + 0.5) / side * 2 - 1) * REACH * radius
    places = np.stack(np.meshgrid(steps + center[0], steps + center[1], indexing="ij"))
    last = np.array(mask.shape)[:, None, None] - 1
    valid = np.all((places >= 0) & (places <= last), axis=0)
    # Smoothed by half a step of the frame, so that sampling does not miss what lies between.
    sigma = REACH * radius / side
    drawn = np.zeros((len(maps) + 1, side, side))
    for number, one in enumerate((np.asarray(image, np.float64).mean(axis=-1), *maps)):
        smooth = gaussian_filter(np.asarray(one, np.float64), sigma)
        drawn[number] = map_coordinates(smooth, places, order=1, mode="nearest")
    picture = drawn[0] - drawn[0][valid].mean()
    deviation = picture[valid].std()
    picture = picture / deviation if deviation > 0 else picture
    return Framed(picture.astype(np.float32), drawn[1:].astype(np.float32), valid)


def turned(pictures: np.ndarray, angle: float, mirror: bool) -> np.ndarray:
    """Turn pictures (M, S, S) about the middle of the frame, mirrored first if asked for."""
    from scipy.ndimage import map_coordinates

    side = pictures.shape[-1]
    steps = np.arange(side) - (side - 1) / 2
    rows, columns = np.meshgrid(steps, steps, indexing="ij")
    cosine, sine = np.cos(angle), np.sin(angle)
    places = np.stack([cosine * rows - sine * columns, sine * rows + cosine * columns])
    if mirror:
        places[1] = -places[1]
    places += (side - 1) / 2
    return np.stack([map_coordinates(p, places, order=1, mode="constant") for p in pictures])


def best_turn(first: Framed, second: Framed, *, mirrors: bool = False) -> tuple[float, bool]:
    """Return the rotation, and whether mirrored, that makes the second picture like the first.

    ``mirrors``: also try mirror images; photographs of skin are never mirrored.
    """
    best, chosen = -np.inf, (0.0, False)
    stack = np.stack([second.picture, second.valid.astype(np.float32)])
    for mirror, number in product((False, True) if mirrors else (False,), range(ANGLES)):
        angle = 2 * np.pi * number / ANGLES
        picture, valid = turned(stack, angle, mirror)
        shared = _disk(len(picture)) & first.valid & (valid > 0.99)
        likeness = _likeness(first.picture[shared], picture[shared])
        if likeness > best + 1e-9:
            best, chosen = likeness, (angle, mirror)
    return chosen


def _disk(side: int) -> np.ndarray:
    steps = (np.arange(side) + 0.5) / side * 2 - 1
    return np.asarray(np.hypot(steps[:, None], steps[None]) <= 1)


def _likeness(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(pearson(first[None, None], second[None, None])[0])


def aligned_agreement(first: Framed, second: Framed, *, mirrors: bool = False) -> np.ndarray:
    """Return the rank correlation of each method's maps after alignment, float64 (M,)."""
    stack = np.concatenate([second.valid[None].astype(np.float32), second.maps])
    moved = turned(stack, *best_turn(first, second, mirrors=mirrors))
    shared = _disk(first.picture.shape[0]) & first.valid & (moved[0] > 0.99)
    if shared.sum() < 3 or len(first.maps) == 0:
        return np.full(len(first.maps), np.nan)
    return spearman(first.maps[:, shared][:, None], moved[1:][:, shared][:, None])


def photo_consistency(
    pairs: list[tuple[Framed, Framed]], *, mirrors: bool = False, others: int = 3
) -> np.ndarray:
    """Return agreement within lesions less that between lesions, float64 (L, M).

    As a control, the first photograph of a lesion is compared with the second of up to ``others``
    following lesions, and their mean subtracted. With a single lesion there is none: NaN.
    """
    rows = []
    for number, (first, second) in enumerate(pairs):
        within = aligned_agreement(first, second, mirrors=mirrors)
        count = min(others, len(pairs) - 1)
        following = [pairs[(number + k) % len(pairs)][1] for k in range(1, count + 1)]
        usable = [other for other in following if other.valid.any()]
        between = [aligned_agreement(first, other, mirrors=mirrors) for other in usable]
        rows.append(within - np.mean(between, axis=0) if between else np.full_like(within, np.nan))
    return np.array(rows)


def zone_consistency(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the overlap of zone profiles (M, 4), float64 (M,): 1 for equal, 0 for disjoint.

    One minus the total variation distance of the shares of attribution in each zone.
    """
    return 1 - 0.5 * np.abs(np.asarray(first) - np.asarray(second)).sum(axis=1)


def _photo(case: Case) -> np.ndarray:
    """Return the consistency of each photograph's lesion; NaN without a second photograph."""
    assert case.images is not None and case.masks is not None
    pairs = _pairs(case)
    framed = [frame(*row) for row in zip(case.images, case.masks, case.maps[:, None], strict=True)]
    return _spread(case, photo_consistency([(framed[i], framed[k]) for i, k in pairs])[:, 0])


def _zone(case: Case) -> np.ndarray:
    assert case.masks is not None
    rows = zip(case.maps[:, None], case.masks, strict=True)
    zones = [zone_profile(map_, mask) for map_, mask in rows]
    found = [zone_consistency(zones[i], zones[k])[0] for i, k in _pairs(case)]
    return _spread(case, np.array(found))


def _pairs(case: Case) -> list[tuple[int, int]]:
    """Return the first two photographs of each lesion that has two."""
    shown: dict[object, list[int]] = {}
    for position, name in enumerate(case.groups or ()):
        shown.setdefault(name, []).append(position)
    pairs = [(found[0], found[1]) for found in shown.values() if len(found) > 1]
    if not pairs:
        raise UsageError("No two images are of one lesion. Give groups= that repeat.")
    return pairs


def _spread(case: Case, values: np.ndarray) -> np.ndarray:
    result = np.full(len(case.maps), np.nan)
    for (first, second), value in zip(_pairs(case), values, strict=True):
        result[[first, second]] = value
    return result


CONSISTENCY: dict[str, Metric] = {
    one.name: one
    for one in (
        Metric(
            "photo_consistency", "Consistency of photographs", "consistency", "higher", -2, 2,
            "this project, docs/metrics.md",
            "Rank correlation of the aligned maps of two photographs of one lesion, less that of "
            "photographs of different lesions.",
            _photo, frozenset({"images", "masks", "groups"}),
        ),
        Metric(
            "zone_consistency", "Zone consistency", "consistency", "higher", 0, 1,
            "this project, docs/metrics.md",
            "Overlap of the zone profiles (core, border, skin, image edge) of two photographs of "
            "one lesion.",
            _zone, frozenset({"masks", "groups"}), ranked=False,
        ),
    )
}  # fmt: skip
"""Metrics of photographs of one lesion, by name; ``groups`` are lesion ids."""

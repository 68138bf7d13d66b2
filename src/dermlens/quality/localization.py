"""Does the attribution lie where the object, or a known structure of it, is?

All functions take maps (N, H, W) and masks (N, H, W), bool or of two values, work on each image
alone, and return float64 (N,). An empty mask gives NaN: there is nothing to find, and neither hit
nor miss. A map without any preference (constant, or without positive values where only those
count) gets what chance would give.

* Pointing game: Zhang et al., IJCV 2018.
* Relevance mass and rank accuracy: Arras, Osman & Samek, Information Fusion 2022.
* Intersection over union: Jaccard, New Phytologist 1912.
"""

import numpy as np

from dermlens.quality.inputs import checked_maps, checked_masks, unit_scale


def _checked(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps = checked_maps(maps).astype(np.float64)
    masks = checked_masks(masks, maps.shape)
    return maps.reshape(len(maps), -1), masks.reshape(len(masks), -1)


def _unless_empty(values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return np.where(masks.any(axis=1), values, np.nan)


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return whether the highest value lies in the mask, 0..1; ties count by their share inside."""
    flat, inside = _checked(maps, masks)
    highest = flat == flat.max(axis=1, keepdims=True)
    return _unless_empty((highest & inside).sum(axis=1) / highest.sum(axis=1), inside)


def relevance_mass(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of positive attribution inside the mask, 0..1."""
    flat, inside = _checked(maps, masks)
    positive = unit_scale(np.maximum(flat, 0))
    return _unless_empty((positive * inside).sum(axis=1) / positive.sum(axis=1), inside)


def enrichment(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return relevance mass over the mask's share of the area: 1 is chance, more is better."""
    _, inside = _checked(maps, masks)
    with np.errstate(divide="ignore", invalid="ignore"):
        return relevance_mass(maps, masks) / inside.mean(axis=1)


def relevance_rank(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of the |mask| highest pixels that lie inside, 0..1; ties by chance."""
    flat, inside = _checked(maps, masks)
    results = np.full(len(flat), np.nan)
    for row, (values, mask) in enumerate(zip(flat, inside, strict=True)):
        wanted = int(mask.sum())
        if wanted == 0:
            continue
        threshold = np.partition(values, -wanted)[-wanted]
        above, tied = values > threshold, values == threshold
        places = wanted - above.sum()
        results[row] = ((above & mask).sum() + places * mask[tied].mean()) / wanted
    return results


def pixel_auc(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return how well values tell pixels inside from outside: ROC-AUC, 0.5 is chance.

    NaN also where the mask is full, since there is no pixel outside.
    """
    from scipy.stats import rankdata

    flat, inside = _checked(maps, masks)
    ranks = rankdata(flat, axis=1)
    hits, others = inside.sum(axis=1), (~inside).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((ranks * inside).sum(axis=1) - hits * (hits + 1) / 2) / (hits * others)


def best_iou(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the overlap of the mask and {map >= t} at the threshold t that suits best, 0..1.

    Every value of the map is tried as threshold, the lowest too, so the result is at least the
    mask's share of the area, which is what a constant map gets.
    """
    flat, inside = _checked(maps, masks)
    results = np.full(len(flat), np.nan)
    for row, (values, mask) in enumerate(zip(flat, inside, strict=True)):
        if not mask.any():
            continue
        order = np.argsort(-values, kind="stable")
        falling = values[order]
        # Equal values pass a threshold together: only the last of each is a place to cut.
        last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
        hits = np.cumsum(mask[order])[last]
        results[row] = (hits / (last + 1 + mask.sum() - hits)).max()
    return results


def equal_area_iou(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the overlap of the mask and the |mask| highest pixels, 0..1; ties by chance.

    With as many pixels drawn as the mask has, this is r / (2 - r) of the relevance rank r: an
    overlap that no choice of threshold can flatter.
    """
    rank = relevance_rank(maps, masks)
    return rank / (2 - rank)

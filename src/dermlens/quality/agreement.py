"""Do explanation methods agree, where do they agree, and where not?

Methods measure different things in different units, so their maps are compared in what they share:

* **Order** (Spearman, consensus, disagreement): raw values by rank, from what speaks most against
  the class to what speaks most for it. A rectified map's zeros are one tie.
* **Positive evidence** (SSIM, top-20 % IoU): values above zero. A class activation map knows no
  evidence against, so a signed map's negative values must not count against it.

Spearman, American Journal of Psychology 1904; SSIM: Wang et al., IEEE TIP 2004; comparing
explanations by both: Adebayo et al., NeurIPS 2018; that methods often disagree, and what that
means: Krishna et al., "The disagreement problem in explainable machine learning", TMLR 2024.

Maps are finite numbers (N, H, W). What compares two stacks takes them in equal shapes and returns
float64 (N,). All raise UsageError for anything else.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dermlens.errors import UsageError
from dermlens.quality.inputs import checked_maps

TOP_SHARE = 0.2
COMMON_DETAIL = 1 / 24
"""Of ``smoothed``: the Gaussian is then half as wide as a patch, a piece or a cell."""
_SSIM_SIGMA, _SSIM_REACH = 1.5, 5
"""Of the Gaussian window: its deviation and how far it reaches, in pixels."""
_DRAWN_PERCENTILE = 99.5


def smoothed(maps: np.ndarray) -> np.ndarray:
    """Return maps brought to a common resolution: float64 (N, H, W).

    Gradients give every pixel its own value, the other methods give values to patches, pieces and
    cells, each about a sixth of the image's shorter side wide. Compared pixel by pixel, a gradient
    map would agree with nothing; smoothed by a Gaussian, areas are compared. Far from any change,
    equal values stay equal, so ties survive.
    """
    from scipy.ndimage import gaussian_filter

    flat, shape = _checked(maps)
    sigma = COMMON_DETAIL * min(shape[1:])
    blurred: np.ndarray = gaussian_filter(flat.reshape(shape), (0, sigma, sigma), mode="nearest")
    return blurred


def normalized_ranks(maps: np.ndarray) -> np.ndarray:
    """Return the rank of every pixel within its own map: float64 (N, H, W), 0 lowest, 1 highest.

    Equal values share the mean of their ranks; a map that is constant everywhere is 0.5.
    """
    from scipy.stats import rankdata

    flat, shape = _checked(maps)
    if flat.shape[1] == 1:
        return np.full(shape, 0.5)
    return ((rankdata(flat, axis=1) - 1) / (flat.shape[1] - 1)).reshape(shape)


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of each pair of maps: float64 (N,), -1..1.

    Two constant maps agree fully (1); a constant map and another have nothing in common (0).

    Example:
        >>> one = np.array([[[1.0, 2.0, 3.0, 4.0]]])
        >>> spearman(one, -one).tolist(), spearman(one, one**3).tolist()
        ([-1.0], [1.0])
    """
    return pearson(normalized_ranks(first), normalized_ranks(second))


def pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each pair of maps: float64 (N,), -1..1.

    Two constant maps agree fully (1); a constant map and another have nothing in common (0).

    Example:
        >>> pearson(np.array([[[1.0, 2.0]]]), np.array([[[5.0, 9.0]]])).round(6).tolist()
        [1.0]
    """
    _same_shape(first, second)
    flat = [_checked(maps)[0] for maps in (first, second)]
    steady = [np.ptp(values, axis=1) == 0 for values in flat]
    one, other = (values - values.mean(axis=1, keepdims=True) for values in flat)
    scale = np.sqrt((one**2).sum(axis=1)) * np.sqrt((other**2).sum(axis=1))
    product = np.where(steady[0] | steady[1], 0.0, (one * other).sum(axis=1))
    correlation = np.clip(product / np.where(scale > 0, scale, 1.0), -1.0, 1.0)
    return np.where(steady[0] & steady[1], 1.0, correlation)


def structural_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the SSIM of the positive evidence of each pair of maps: float64 (N,), -1..1.

    Each map's positive part is scaled to 0..1 by its 99.5th percentile, as it is drawn, so that
    a few extreme pixels do not decide; a map without positive evidence is 0 everywhere. Gaussian
    window with sigma 1.5 and the constants of the paper; every pixel counts, the image continuing
    as its mirror image beyond the border, so that any size is defined.
    """
    from skimage.metrics import structural_similarity as ssim

    _same_shape(first, second)
    pads = ((0, 0), (_SSIM_REACH, _SSIM_REACH), (_SSIM_REACH, _SSIM_REACH))
    both = (np.pad(_scaled_evidence(maps), pads, mode="symmetric") for maps in (first, second))
    local = ssim(
        *both,
        data_range=1.0,
        gaussian_weights=True,
        sigma=_SSIM_SIGMA,
        use_sample_covariance=False,
        channel_axis=0,
        full=True,
    )[1]
    inner = slice(_SSIM_REACH, -_SSIM_REACH)
    return np.mean(local[:, inner, inner], axis=(1, 2))


def top_overlap(first: np.ndarray, second: np.ndarray, share: float = TOP_SHARE) -> np.ndarray:
    """Return the IoU of the strongest pixels of each pair of maps: float64 (N,), 0..1.

    The strongest are a ``share`` of all pixels, above 0 and below 1, by positive evidence. Where
    equal values compete for the last places, each gets its share of them, so the result does not
    depend on their order: overlap is the sum of the smaller memberships over that of the larger.
    A constant map belongs everywhere with ``share``; with another map it reaches what chance would,
    1/9 for a fifth.

    Example:
        >>> one = np.arange(10.0).reshape(1, 2, 5)
        >>> top_overlap(one, one).tolist(), top_overlap(one, one[:, ::-1, ::-1]).tolist()
        ([1.0], [0.0])
    """
    _same_shape(first, second)
    if not 0 < share < 1:
        raise UsageError(f"The share of strongest pixels is {share}. Use a number between 0 and 1.")
    a, b = _membership(first, share), _membership(second, share)
    return np.minimum(a, b).sum(axis=1) / np.maximum(a, b).sum(axis=1)


MEASURES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "spearman": spearman,
    "ssim": structural_similarity,
    "top_20_iou": top_overlap,
}
"""Every measure: two stacks of maps (N, H, W) to float64 (N,); 1 for equal maps."""


def agreement_matrices(maps: Sequence[np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
    """Return how far every two of M maps (M, H, W) of one image agree, by every measure.

    For each name of ``MEASURES`` a symmetric float64 (M, M) with 1 on the diagonal.
    """
    stack = _stack(maps)
    rows, columns = np.triu_indices(len(stack), k=1)
    matrices = {}
    for name, measure in MEASURES.items():
        matrix = np.eye(len(stack))
        if len(rows):
            values = measure(stack[rows], stack[columns])
            matrix[rows, columns] = matrix[columns, rows] = values
        matrices[name] = matrix
    return matrices


def consensus_map(maps: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return where M maps (M, H, W) of one image see most evidence: float64 (H, W), 0..1.

    The mean over methods of the normalized rank: near 1 where all rank a place high, near 0.5
    where they contradict each other or see nothing special.

    Example:
        >>> consensus_map(np.array([[[0.0, 1.0, 2.0]], [[0.0, 40.0, 20.0]]])).tolist()
        [[0.0, 0.75, 0.75]]
    """
    return np.mean(normalized_ranks(_stack(maps)), axis=0)


def disagreement_map(maps: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return where M maps (M, H, W) of one image disagree: float64 (H, W), 0..0.5.

    The standard deviation over methods of the normalized rank: 0 where all rank a place alike,
    0.5 where half of them rank it highest and half lowest. Unrelated maps reach about 0.29.

    Example:
        >>> disagreement_map(np.array([[[0.0, 1.0]], [[1.0, 0.0]]])).tolist()
        [[0.5, 0.5]]
    """
    return np.std(normalized_ranks(_stack(maps)), axis=0)


def mean_agreement(matrix: np.ndarray, groups: Sequence[str] | None = None) -> float:
    """Return the mean agreement of all pairs of methods; NaN where there is no pair.

    Args:
        matrix: (M, M), as ``agreement_matrices`` returns it.
        groups: Family of each method. If given, only pairs of different families count: two
            methods of one family agree by construction, which proves little.

    Example:
        >>> matrix = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]])
        >>> round(mean_agreement(matrix, ["cam", "cam", "gradient"]), 3)
        0.3
    """
    rows, columns = np.triu_indices(len(matrix), k=1)
    if groups is not None:
        names = np.asarray(groups)
        apart = names[rows] != names[columns]
        rows, columns = rows[apart], columns[apart]
    return float(matrix[rows, columns].mean()) if len(rows) else float("nan")


def _checked(maps: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    maps = checked_maps(maps).astype(np.float64)
    return maps.reshape(len(maps), -1), maps.shape


def _same_shape(first: np.ndarray, second: np.ndarray) -> None:
    if np.shape(first) != np.shape(second):
        raise UsageError(
            f"Maps of shape {np.shape(first)} and {np.shape(second)} cannot be compared. Both "
            "must be (N, H, W) of the same size."
        )


def _stack(maps: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    if len({np.shape(one) for one in maps}) != 1:
        raise UsageError("Agreement needs at least one map, and all maps of the same size.")
    return np.stack([np.asarray(one, np.float64) for one in maps])


def _scaled_evidence(maps: np.ndarray) -> np.ndarray:
    """Return the positive part of each map scaled to 0..1, (N, H, W)."""
    flat = np.maximum(_checked(maps)[0], 0.0)
    top = np.percentile(flat, _DRAWN_PERCENTILE, axis=1, keepdims=True)
    top = np.where(top > 0, top, flat.max(axis=1, keepdims=True))
    scaled = np.clip(flat / np.where(top > 0, top, 1.0), 0.0, 1.0)
    return scaled.reshape(np.shape(maps))


def _membership(maps: np.ndarray, share: float) -> np.ndarray:
    """Return how far each pixel belongs to the strongest, (N, H * W), ``share`` on average."""
    flat = np.maximum(_checked(maps)[0], 0.0)
    places = share * flat.shape[1]
    member = np.zeros_like(flat)
    for row, values in enumerate(flat):
        last = np.sort(values)[::-1][int(np.ceil(places)) - 1]
        above, tied = values > last, values == last
        member[row, above] = 1.0
        member[row, tied] = (places - above.sum()) / tied.sum()
    return member

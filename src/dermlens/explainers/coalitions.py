"""Which superpixels are kept in each evaluation, and what each evaluation then counts.

LIME and Kernel SHAP both fit a weighted linear model to outputs of masked images, and both weight
a mask by its *size* (how many pieces it keeps) alone. So one set of masks can serve both: a mask
of size s, drawn with a known probability, stands for all masks of that size. Masks are sampled in
pairs of a mask and its complement.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import comb, gammaln

from dermlens.errors import UsageError

DESIGNS = ("lime", "shap", "even", "both")
MOST_PIECES_ENUMERATED = 20
FEW_MASKS = 4
"""Per piece: below, the designs without an estimator of their own draw permutations. A Gaussian
process then knows too little of its covariance, and misses more than it says."""
_ROUNDS = 50


def shapley_mass(pieces: int) -> np.ndarray:
    """Return the Shapley kernel summed over all masks of each size: float64 (M + 1,).

    Lundberg & Lee, NIPS 2017, theorem 2. Sizes 0 and M, of infinite weight there, are 0 here: the
    additivity constraint stands for them.
    """
    sizes = np.arange(1, pieces)
    mass = np.zeros(pieces + 1)
    mass[1:-1] = (pieces - 1) / (sizes * (pieces - sizes))
    return mass


def binomial_mass(pieces: int) -> np.ndarray:
    """Return how likely each size is if every piece is kept with probability 1/2: (M + 1,)."""
    sizes = np.arange(pieces + 1)
    ways = gammaln(pieces + 1) - gammaln(sizes + 1) - gammaln(pieces - sizes + 1)
    return np.exp(ways - pieces * np.log(2.0))


@dataclass(frozen=True)
class Coalitions:
    """A set of masks with all that is needed to weight them.

    Attributes:
        masks: bool (n, M), True where a piece is kept. The first keeps all, the second none.
        complete: bool (M + 1,): sizes of which every mask is here.
        chances: float64 (M + 1,): probability of each size among the sampled masks.
        pairs: int (n,): equal for masks drawn together; -1 for masks that were not drawn.
        orders: int (P, M): the permutations whose beginnings the masks are, each followed by its
            reverse; None for other masks.
    """

    masks: np.ndarray
    complete: np.ndarray
    chances: np.ndarray
    pairs: np.ndarray
    orders: np.ndarray | None = None

    @property
    def pieces(self) -> int:
        """Number of pieces, M."""
        return self.masks.shape[1]

    @property
    def exhaustive(self) -> bool:
        """True if all 2^M masks are here."""
        return bool(self.complete.all())

    def weights(self, mass: np.ndarray) -> np.ndarray:
        """Return the weight of each mask, (n,), from that of all masks of each size, (M + 1,).

        Sums over the set then estimate, without bias, sums over all masks.
        """
        sizes = self.masks.sum(axis=1)
        each = mass / comb(self.pieces, np.arange(self.pieces + 1))
        drawn = self.pairs >= 0
        weights = np.where(drawn, 0.0, each[sizes])
        if drawn.any():
            weights[drawn] = mass[sizes[drawn]] / (drawn.sum() * self.chances[sizes[drawn]])
        return weights


def coalitions(
    pieces: int, n_samples: int, design: str, generator: np.random.Generator
) -> Coalitions:
    """Choose at most ``n_samples`` masks to evaluate, at least 4; all 2^M where they are no more.

    Designs: ``"lime"``: every piece kept with probability 1/2; ``"shap"``: sizes after the Shapley
    kernel, the extreme sizes completely; ``"even"``: all sizes alike and no mask twice, for fits
    that need no weights; ``"both"``: half after LIME, half with all sizes alike. Fewer than
    ``FEW_MASKS`` a piece are, with the last two, the beginnings of permutations and their reverses.

    Raises:
        UsageError: If there are too few pieces or samples, or the design is unknown.
    """
    if design not in DESIGNS:
        raise UsageError(f"Unknown design {design!r}. Use one of: {', '.join(DESIGNS)}.")
    if pieces < 2 or n_samples < 4:
        raise UsageError(
            f"{n_samples} samples of {pieces} superpixels explain nothing. Use at least 4 samples "
            "and 2 superpixels."
        )
    if pieces <= MOST_PIECES_ENUMERATED and 2**pieces <= n_samples:
        return _all(pieces)
    complete = np.zeros(pieces + 1, bool)
    complete[[0, pieces]] = True
    blocks = [np.ones((1, pieces), bool), np.zeros((1, pieces), bool)]
    left = n_samples - 2
    if design == "shap":
        for size in _worth_enumerating(pieces, left):
            blocks.append(_masks_of_size(pieces, size))
            complete[size] = True
            left -= len(blocks[-1])
    paths, orders = left // (2 * (pieces - 1)), None
    if design in ("even", "both") and n_samples < FEW_MASKS * pieces and paths:
        orders, drawn = _beginnings(pieces, paths, generator)
        chances = np.where(complete, 0.0, 1.0 / (pieces - 1))
    else:
        chances = _chances(pieces, design, complete)
        draw = _different if design == "even" else _independent
        drawn = draw(pieces, -(-left // 2), chances, generator)
    # Each mask is followed by its complement.
    both = np.stack([drawn, ~drawn], axis=1).reshape(-1, pieces)[:left]
    known = np.concatenate(blocks)
    pairs = np.concatenate([np.full(len(known), -1), np.arange(len(both)) // 2])
    return Coalitions(np.concatenate([known, both]), complete, chances, pairs, orders)


def _beginnings(
    pieces: int, paths: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return permutations, each followed by its reverse, and the beginnings of the former.

    The complement of a beginning is a beginning of the reverse, so both are permutations.
    """
    ahead = np.array([generator.permutation(pieces) for _ in range(paths)])
    orders = np.stack([ahead, ahead[:, ::-1]], axis=1).reshape(-1, pieces)
    ranks = ahead.argsort(axis=1)
    masks = (np.arange(1, pieces)[None, :, None] > ranks[:, None]).reshape(-1, pieces)
    return orders, masks


def _all(pieces: int) -> Coalitions:
    codes = np.arange(2**pieces)
    masks = (codes[:, None] >> np.arange(pieces)) & 1 == 1
    ordered = np.concatenate([masks[-1:], masks[:-1]])
    everything = np.ones(pieces + 1, bool)
    return Coalitions(ordered, everything, np.zeros(pieces + 1), np.full(len(codes), -1))


def _worth_enumerating(pieces: int, budget: int) -> list[int]:
    """Return sizes (each with its complement) that sampling would evaluate completely anyway."""
    chosen: list[int] = []
    remaining = shapley_mass(pieces)
    for size in range(1, pieces // 2 + 1):
        both = sorted({size, pieces - size})
        count = sum(comb(pieces, s, exact=True) for s in both)
        share = remaining[both].sum() / remaining.sum()
        if budget * share < count:
            break
        chosen += both
        remaining[both] = 0.0
        budget -= count
        if remaining.sum() <= 0:
            break
    return chosen


def _masks_of_size(pieces: int, size: int) -> np.ndarray:
    kept = np.array(list(combinations(range(pieces), size)))
    masks = np.zeros((len(kept), pieces), bool)
    masks[np.arange(len(kept))[:, None], kept] = True
    return masks


def _chances(pieces: int, design: str, complete: np.ndarray) -> np.ndarray:
    """Return the probability of each size among drawn masks; symmetric under complement."""
    even = np.ones(pieces + 1)
    masses = {"shap": shapley_mass(pieces), "lime": binomial_mass(pieces), "even": even}
    chances = np.zeros(pieces + 1)
    for name in ("lime", "even") if design == "both" else (design,):
        open_mass = np.where(complete, 0.0, masses[name])
        if open_mass.sum() > 0:
            chances += (0.5 if design == "both" else 1.0) * open_mass / open_mass.sum()
    return chances / chances.sum() if chances.sum() > 0 else chances


def _independent(
    pieces: int, count: int, chances: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Draw masks independently."""
    if count <= 0 or chances.sum() <= 0:
        return np.zeros((0, pieces), bool)
    return _masks_of(generator.choice(pieces + 1, size=count, p=chances), pieces, generator)


def _different(
    pieces: int, count: int, chances: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Draw masks of which none is another or its complement."""
    found = dict[bytes, np.ndarray]()
    for _ in range(_ROUNDS):
        missing = count - len(found)
        if missing <= 0:
            break
        # At even distances along the distribution: as many of each size as there should be.
        levels = (np.arange(missing) + generator.random()) / missing * chances.sum()
        sizes = np.searchsorted(chances.cumsum(), levels, side="right").clip(1, pieces - 1)
        for mask in _masks_of(generator.permutation(sizes), pieces, generator):
            if (~mask).tobytes() not in found:
                found.setdefault(mask.tobytes(), mask)
    return np.array(list(found.values()), bool).reshape(len(found), pieces)


def _masks_of(sizes: np.ndarray, pieces: int, generator: np.random.Generator) -> np.ndarray:
    """Return a random mask of each size: bool (n, M)."""
    rank = generator.random((len(sizes), pieces)).argsort(axis=1).argsort(axis=1)
    return rank < sizes[:, None]

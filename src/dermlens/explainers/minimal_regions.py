"""The smallest set of pieces that reaches a goal, found with a fixed number of passes.

Two goals share one search: pieces whose erasure changes the answer (a *necessary* region), and
pieces that keep the answer when all others are erased (a *sufficient* region). Which set is the
smallest of all cannot be known without trying all of them, so the search is greedy and says what it
has: a set that reaches the goal and from which no single piece can be dropped.

Pieces are added in a given order until the goal is reached. Pruning drops those that are not
needed, the least needed first, as delta debugging does (Zeller & Hildebrandt, IEEE Transactions on
Software Engineering 2002). With what passes are left, a set is grown from nothing, greedily: each
batch tries the pieces that gained most before (lazily: Minoux, "Accelerated greedy algorithms for
maximizing submodular set functions", 1978) and a few that were never tried, and keeps the best. At
last the first order is tried again with neighbors exchanged, as long as passes last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dermlens.errors import UsageError

Margins = Callable[[np.ndarray], np.ndarray]
"""Sets of pieces, bool (n, M), to how far each is beyond the goal, float (n,): reached above 0."""

BATCH = 8
_NEW = 3
"""Pieces of a batch that were never tried before, while there are any."""
_WELL_BEYOND = 0.3
"""Share of the largest margin from which on a set is well beyond the goal."""
_SHUFFLE = 0.15
"""How far pieces move in a shuffled order, as a share of its length."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        chosen: Pieces, bool (M,); None if no set that was tried reaches the goal.
        passes: Sets that were evaluated.
        irreducible: True if it was tried that no single piece can be dropped.
        safer: The smallest set well beyond the goal, and the one farthest beyond it, for whoever
            evaluates with something that is a little off.
    """

    chosen: np.ndarray | None
    passes: int
    irreducible: bool = False
    safer: tuple[np.ndarray, ...] = ()


@dataclass
class _Search:
    """Evaluates sets as long as there are passes, and keeps those that reach the goal."""

    margins: Margins
    sizes: np.ndarray
    left: int
    paid: int = 0
    reached: list[np.ndarray] = field(default_factory=list)
    beyond: list[float] = field(default_factory=list)
    irreducible: bool = False

    def try_sets(self, sets: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Return the margins of as many sets as passes allow; the others are not reached."""
        tried = np.asarray(sets, bool)[: self.left]
        values = np.full(len(sets), -np.inf)
        if len(tried):
            values[: len(tried)] = self.margins(tried)
            self.left -= len(tried)
            self.paid += len(tried)
            reached = values[: len(tried)] > 0
            self.reached += list(tried[reached])
            self.beyond += values[: len(tried)][reached].tolist()
        return values

    def smallest(self) -> np.ndarray | None:
        """Return the smallest set that reached the goal."""
        return min(self.reached, key=self._size, default=None)

    def minimal_size(self) -> float:
        """Return the size of the smallest set that reached the goal; infinite if none did."""
        smallest = self.smallest()
        return float("inf") if smallest is None else self._size(smallest)

    def take(self, other: "_Search", irreducible: bool) -> None:
        """Take over what a part of the search paid and found."""
        before = self.smallest()
        self.left, self.paid = other.left, self.paid + other.paid
        self.reached += other.reached
        self.beyond += other.beyond
        if self.smallest() is not before:
            self.irreducible = irreducible

    def found(self) -> Found:
        """Return the result."""
        chosen = self.smallest()
        irreducible = chosen is not None and (self.irreducible or int(chosen.sum()) == 1)
        return Found(chosen, self.paid, irreducible, tuple(self._safer()))

    def _safer(self) -> list[np.ndarray]:
        """Return the smallest set that is well beyond the goal, and the one farthest beyond it."""
        farthest = max(self.beyond, default=0.0)
        found = []
        for share in (_WELL_BEYOND, 1.0):
            far = [
                one
                for one, value in zip(self.reached, self.beyond, strict=True)
                if value >= share * farthest
            ]
            found += [min(far, key=self._size)] if far else []
        return found

    def _size(self, chosen: np.ndarray) -> float:
        return float(self.sizes[chosen].sum())


def smallest_set(
    margins: Margins,
    sizes: np.ndarray,
    passes: int,
    *,
    orders: Sequence[np.ndarray] | None = None,
    grow: bool = True,
    start: float = 0.0,
    seed: int = 0,
) -> Found:
    """Find a small set of pieces that reaches a goal, with a given number of evaluations.

    Args:
        margins: Evaluates sets.
        sizes: Size of each piece, (M,), such as its pixels.
        passes: Sets that may be evaluated, all together.
        orders: Orders of all pieces, int (M,), to add them in, the most promising first; one after
            the other as long as passes last. Without any, each piece is tried alone first.
        grow: Whether to use what passes are left to grow a set greedily, and to try the first
            order again with neighbors exchanged.
        start: Margin of the empty set, which is not evaluated here.
        seed: Sets the exchanges.

    Raises:
        UsageError: If there is no piece, or no pass.

    Example:
        Only pieces 1 and 3 together reach the goal::

            >>> both = lambda sets: sets[:, [1, 3]].sum(axis=1) - 1.5
            >>> smallest_set(both, np.ones(6), passes=40, start=-1.5).chosen.tolist()
            [False, True, False, True, False, False]
    """
    sizes = np.asarray(sizes, np.float64)
    if not len(sizes) or passes < 1:
        raise UsageError(f"A search takes pieces and passes, not {len(sizes)} and {passes}.")
    search = _Search(margins, sizes, passes)
    gains = np.full(len(sizes), np.nan)
    if orders is None:
        gains = search.try_sets(np.eye(len(sizes), dtype=bool)) - start
        orders = [np.argsort(-gains, kind="stable")]
    for order in orders:
        # Each for itself: what another order found must not be pruned once more.
        own = _Search(margins, sizes, search.left)
        _prefixes(own, np.asarray(order))
        irreducible = _prune(own)
        search.take(own, irreducible)
    if grow:
        own = _Search(margins, sizes, search.left)
        _grow(own, start, gains, np.asarray(orders[0]), search.smallest())
        irreducible = _prune(own)
        search.take(own, irreducible)
    generator = np.random.default_rng(seed)
    while grow and search.left > 0 and search.minimal_size() > sizes.min():
        before = search.left
        own = _Search(margins, sizes, search.left)
        _prefixes(own, _shuffled(np.asarray(orders[0]), generator))
        irreducible = _prune(own)
        search.take(own, irreducible)
        if search.left == before:
            break
    return search.found()


def _shuffled(order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return an order in which neighbors have changed places."""
    places = np.arange(len(order)) + generator.normal(0.0, _SHUFFLE * len(order), len(order))
    return order[np.argsort(places, kind="stable")]


def _with(chosen: np.ndarray, pieces: np.ndarray | Sequence[int]) -> np.ndarray:
    grown = chosen.copy()
    grown[pieces] = True
    return grown


def _grow(
    search: _Search, start: float, gains: np.ndarray, order: np.ndarray, known: np.ndarray | None
) -> None:
    """Add the piece that gains most until the goal is reached with fewer pieces than known.

    ``gains`` is what each piece gained when it was tried last, perhaps with fewer beside it; NaN
    for those never tried, which are taken in the given order.
    """
    gains, chosen, base = gains.copy(), np.zeros(len(gains), bool), start
    most = len(gains) if known is None else int(known.sum()) - 1
    while search.left > 0 and chosen.sum() < most and not search.reached:
        tried = np.flatnonzero(~chosen & np.isfinite(gains))
        tried = tried[np.argsort(-gains[tried], kind="stable")]
        new = [piece for piece in order if not chosen[piece] and not np.isfinite(gains[piece])]
        exploring = min(len(new), BATCH if chosen.sum() == 0 else max(_NEW, BATCH - len(tried)))
        few = np.array([*tried[: BATCH - exploring], *new[:exploring]], int)
        values = search.try_sets([_with(chosen, [one]) for one in few])
        gains[few] = np.where(np.isfinite(values), values - base, gains[few])
        best = int(values.argmax())
        chosen, base = _with(chosen, [few[best]]), float(values[best])


def _prefixes(search: _Search, order: np.ndarray) -> None:
    """Add pieces in an order until the goal is reached."""
    count = len(search.sizes)
    prefixes = [_with(np.zeros(count, bool), order[: k + 1]) for k in range(count)]
    for start in range(0, count, BATCH):
        if search.left < 1 or (search.try_sets(prefixes[start : start + BATCH]) > 0).any():
            return


def _prune(search: _Search) -> bool:
    """Drop pieces that are not needed; tell whether none can be dropped any more."""
    while (chosen := search.smallest()) is not None:
        pieces = np.flatnonzero(chosen)
        if len(pieces) == 1:
            return True
        without = np.repeat(chosen[None], len(pieces), axis=0)
        without[np.arange(len(pieces)), pieces] = False
        complete = search.left >= len(pieces)
        values = search.try_sets(without)
        order = np.argsort(-values, kind="stable")
        dispensable = pieces[order[values[order] > 0]]
        if not len(dispensable):
            return complete
        drops = [chosen & ~_with(np.zeros_like(chosen), dispensable[: k + 1])
                 for k in range(1, min(len(dispensable), BATCH + 1))]  # fmt: skip
        drops = [one for one in drops if one.any()]
        if drops:
            search.try_sets(drops)
    return False

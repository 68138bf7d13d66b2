"""The search for small sets of pieces: what it finds, what it pays, and what it says it has."""

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.minimal_regions import smallest_set

COUNT = 20


class Goal:
    """Reached by sets that hold all needed pieces; counts what it is asked."""

    def __init__(self, *needed: int, count: int = COUNT) -> None:
        self.weights = np.zeros(count)
        self.weights[list(needed)] = 1.0
        self.asked = 0

    def __call__(self, sets: np.ndarray) -> np.ndarray:
        self.asked += len(sets)
        return sets @ self.weights - self.weights.sum() + 0.5


def pieces(*which: int) -> list[int]:
    return sorted(which)


@pytest.mark.parametrize("needed", [(4,), (3, 11), (0, 7, 8, 19)])
def test_exactly_the_needed_pieces_are_found(needed: tuple[int, ...]) -> None:
    goal = Goal(*needed)
    found = smallest_set(goal, np.ones(COUNT), 66, start=0.5 - len(needed))
    assert found.chosen is not None and np.flatnonzero(found.chosen).tolist() == pieces(*needed)
    assert found.irreducible and found.passes == goal.asked <= 66


def test_an_order_is_pruned_to_the_needed_pieces_without_growing() -> None:
    goal = Goal(2, 9)
    order = np.array([5, 9, 1, 2, *[k for k in range(COUNT) if k not in (5, 9, 1, 2)]])
    found = smallest_set(goal, np.ones(COUNT), 66, orders=[order], grow=False)
    assert found.chosen is not None and np.flatnonzero(found.chosen).tolist() == [2, 9]
    # One batch of prefixes; dropping each of four; both at once; dropping each of two.
    assert found.passes == goal.asked == 8 + 4 + 1 + 2
    assert all(goal(one[None])[0] > 0 for one in found.safer)


def test_safer_sets_are_farther_beyond_the_goal() -> None:
    def goal(sets: np.ndarray) -> np.ndarray:
        return np.asarray(
            np.where(sets[:, 0], 0.1 + sets[:, 1] + 3.0 * sets[:, 1:6].all(axis=1), -1)
        )

    found = smallest_set(goal, np.ones(COUNT), 40, orders=[np.arange(COUNT)], start=-1.0)
    assert found.chosen is not None and np.flatnonzero(found.chosen).tolist() == [0]
    well, farthest = found.safer
    assert goal(well[None])[0] >= 0.3 * 4.1 > goal(found.chosen[None])[0]
    assert goal(farthest[None])[0] == pytest.approx(4.1) and farthest[:6].all()


def test_of_two_ways_the_smaller_one_counts_by_size_not_by_number() -> None:
    def either(sets: np.ndarray) -> np.ndarray:
        reached = sets[:, 0] | (sets[:, 1] & sets[:, 2])
        return np.where(reached, 1.0, -1.0 + 0.2 * sets[:, 1] + 0.2 * sets[:, 2])

    sizes = np.array([10.0, 2.0, 2.0, 5.0])
    found = smallest_set(either, sizes, 60, orders=[np.array([1, 2, 0, 3])], start=-1.0)
    assert found.chosen is not None and found.chosen.tolist() == [False, True, True, False]


def test_growing_finds_less_than_a_bad_order() -> None:
    """The order reaches the goal by a long way round, of which no single piece can be dropped."""

    def goal(sets: np.ndarray) -> np.ndarray:
        long_way = sets[:, :6].all(axis=1)
        return np.where(long_way | sets[:, 12], 1.0, -1.0)

    order = np.arange(COUNT)
    alone = smallest_set(goal, np.ones(COUNT), 66, orders=[order], grow=False, start=-1.0)
    both = smallest_set(goal, np.ones(COUNT), 66, orders=[order], start=-1.0)
    assert alone.chosen is not None and alone.chosen.sum() == 6
    assert both.chosen is not None and np.flatnonzero(both.chosen).tolist() == [12]
    assert both.passes <= 66


@pytest.mark.parametrize("passes", [1, 5, 13, 66])
def test_passes_are_never_exceeded_and_nothing_is_found_where_nothing_is(passes: int) -> None:
    asked = []

    def never(sets: np.ndarray) -> np.ndarray:
        asked.append(len(sets))
        return np.full(len(sets), -1.0)

    found = smallest_set(never, np.ones(COUNT), passes, start=-1.0)
    assert found.chosen is None and not found.irreducible
    assert found.passes == sum(asked) <= passes


def test_without_passes_to_try_it_irreducible_is_not_claimed() -> None:
    goal = Goal(*range(6))
    found = smallest_set(goal, np.ones(COUNT), 7, orders=[np.arange(COUNT)], grow=False)
    assert found.chosen is not None and found.chosen.sum() == 6 and not found.irreducible


def test_the_same_call_gives_the_same_set() -> None:
    def run() -> list[bool]:
        weights = np.sin(np.arange(COUNT))

        def margins(sets: np.ndarray) -> np.ndarray:
            return np.asarray(sets @ weights - 2.5)

        found = smallest_set(margins, np.ones(COUNT), 66, orders=[np.arange(COUNT)], start=-2.5)
        assert found.chosen is not None
        return found.chosen.tolist()

    assert run() == run()


@pytest.mark.parametrize(("sizes", "passes"), [(np.ones(0), 5), (np.ones(3), 0)])
def test_nothing_to_search_is_refused(sizes: np.ndarray, passes: int) -> None:
    with pytest.raises(UsageError, match="pieces and passes"):
        smallest_set(Goal(0, count=3), sizes, passes)

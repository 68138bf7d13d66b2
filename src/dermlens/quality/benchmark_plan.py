"""What a benchmark measures: which images, which methods, how thoroughly, and what besides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from dermlens.data.images import load_image, load_mask
from dermlens.errors import DataError, UsageError
from dermlens.explainers.registry import SIX, method
from dermlens.explainers.superpixel_explainer import DEFAULT_SAMPLES
from dermlens.explainers.target import PREDICTED
from dermlens.quality.metric import Metric
from dermlens.quality.removal import STEPS
from dermlens.quality.subsets import SETS, SQUARES
from dermlens.schema import Count, settings

if TYPE_CHECKING:
    from dermlens.quality.benchmark_measure import Bench
    from dermlens.quality.benchmark_tables import Store, Tables

TARGETS: tuple[str, ...] = (PREDICTED, "truth")
AtLeastOne = Annotated[int, Field(ge=1)]
Order = Literal["cascading", "independent"]


@settings
class BenchmarkPlan:
    """Settings of a benchmark. Results are resumed only under the same plan.

    Attributes:
        methods: Names in the registry.
        n: Images, as equally many of each class as the split holds.
        split: ``train``, ``validation``, ``test`` or ``all``.
        seed: Sets selection, draws and noise.
        target: Class to explain: the most probable one (``"predicted"``), or the ``"truth"``.
        batch_size: Images per pass; bounds memory. It is part of the plan because rounding in
            convolutions may depend on it.
        n_samples: Masks per image of LIME and Shapley values; a tenth as many superpixels, at
            most 50.
        steps: Removal steps of deletion and insertion.
        squares: Covered squares per image, for infidelity.
        sets: Covered sets of cells per image, for MuFidelity.
        robustness: Images, of the ``n``, for sensitivity, equivariance and the random logit.
        randomization: Images, of the ``n``, for parameter randomization.
        orders: Of parameter randomization.
        controls: Whether to measure the controls beside the methods.
    """

    methods: tuple[str, ...] = SIX
    n: AtLeastOne = 500
    split: str = "test"
    seed: Count = 0
    target: str = PREDICTED
    batch_size: AtLeastOne = 16
    n_samples: Annotated[int, Field(ge=4)] = DEFAULT_SAMPLES
    steps: AtLeastOne = STEPS
    squares: Annotated[int, Field(ge=2)] = SQUARES
    sets: Annotated[int, Field(ge=3)] = SETS
    robustness: Count = 14
    randomization: Count = 7
    orders: tuple[Order, ...] = ("cascading", "independent")
    controls: bool = True

    def __post_init__(self) -> None:
        """Raise UsageError for an unknown target or method."""
        if self.target not in TARGETS:
            raise UsageError(f"Unknown target {self.target!r}. Use one of: {', '.join(TARGETS)}.")
        for name in self.methods:
            method(name)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        content = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in content.items()}


@dataclass(frozen=True)
class Item:
    """One image to measure: paths of the photograph and of its masks, where there are any.

    ``lesion_id`` is the image's own id where the manifest misses it; the structure is what decides
    the class, and only drawn data sets have its mask.
    """

    image_id: str
    lesion_id: str
    dx: str
    image: Path
    mask: Path | None
    structure: Path | None


@dataclass(frozen=True)
class Loaded:
    """An item's pixels at the model's input size: RGB 0..255, float32 (H, W, 3), and bool masks.

    The mask is empty, the structure None where there is none.
    """

    item: Item
    image: np.ndarray
    mask: np.ndarray
    structure: np.ndarray | None


def load(item: Item, size: tuple[int, int]) -> Loaded:
    """Read an item's image and masks."""
    image = load_image(item.image, size).astype(np.float32)
    mask = np.zeros(size, bool) if item.mask is None else load_mask(item.mask, size)
    structure = None if item.structure is None else load_mask(item.structure, size)
    return Loaded(item, image, mask, structure)


def item_of(row: Any, data: Path) -> Item:
    """Return a row of a manifest as an item."""
    structure = data / "structures" / f"{row.image_id}_structure.png"
    lesion_id = row.lesion_id if isinstance(row.lesion_id, str) else row.image_id
    mask = data / row.mask_path if isinstance(row.mask_path, str) else None
    found = structure if structure.is_file() else None
    names = (str(row.image_id), str(lesion_id), str(row.dx))
    return Item(*names, data / str(row.path), mask, found)


def in_turn(groups: Sequence[Sequence[Any]], count: int) -> list[Any]:
    """Take one of each group in turn until there are enough or none is left."""
    taken: list[Any] = []
    for depth in range(max(map(len, groups), default=0)):
        taken += [group[depth] for group in groups if depth < len(group)]
    return taken[:count]


def select_items(
    table: pd.DataFrame, data: Path, codes: Sequence[str], n: int, seed: int
) -> list[Item]:
    """Choose up to ``n`` images, one class after the other in turn, at random within a class.

    The first k of a selection are the selection of k: subsets are stratified too, and a larger
    benchmark contains the smaller one. ``table`` holds rows of the manifest to choose from.

    Raises:
        DataError: If there is no image of these classes.
    """
    groups = []
    for number, code in enumerate(codes):
        rows = table[table.dx == code].sort_values("image_id")
        order = np.random.default_rng([seed, number]).permutation(len(rows))
        groups.append([item_of(row, data) for row in rows.iloc[order].itertuples()])
    chosen = in_turn(groups, n)
    if not chosen:
        raise DataError(f"The split holds no image to measure, of none of: {', '.join(codes)}.")
    return chosen


Tick = Callable[[str], None]
"""Called with a method's name when it is done, in pieces that take long."""


@dataclass(frozen=True)
class Piece:
    """One piece of work, kept in the folder ``kind`` under ``name``.

    Attributes:
        effort: About how many passes it takes.
        make: Measures it; JSON types, or arrays by name.
        parts: How often ``make`` calls back while it is at it.
    """

    kind: str
    name: str
    effort: int
    make: Callable[[Tick], Any]
    parts: int = 1


class Extension:
    """What is measured beside the metrics, where a data set holds more than images; here nothing.

    Another package derives from it and is given to ``run_benchmark``. ``metrics`` are its own.
    """

    metrics: Mapping[str, Metric] = {}
    """Metrics of its own, by name."""

    def settings(self) -> dict[str, Any]:
        """Return, as JSON types, what results depend on."""
        return {}

    def select(
        self, table: pd.DataFrame, data: Path, codes: Sequence[str], items: list[Item], seed: int
    ) -> list[str]:
        """Choose what to measure, as ``select_items`` does, and return names of what was chosen."""
        return []

    def of_image(
        self, loaded: Loaded, maps: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return facts of an image, and more values of each map (H, W) by method."""
        return {}, {}

    def pieces(self, bench: "Bench", efforts: Mapping[str, int]) -> list[Piece]:
        """Return more pieces of work."""
        return []

    def tables(self, store: "Store", names: Sequence[str]) -> dict[str, pd.DataFrame]:
        """Return more tables from finished pieces, by file name."""
        return {}

    def values(
        self, tables: "Tables", names: Sequence[str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return, for each metric of its own, values (L, methods) and the lesion of each row."""
        return {}

    def summarize(
        self, tables: "Tables", names: Sequence[str], resamples: int, seed: int
    ) -> dict[str, Any]:
        """Return more content of the summary."""
        return {}

"""What a benchmark measures: which images, which methods, how thoroughly."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.images import load_image, load_mask
from dermlens.diagnoses import CODES
from dermlens.errors import DataError, UsageError
from dermlens.explain.registry import SIX, method
from dermlens.explain.superpixel_bank import DEFAULT_SAMPLES
from dermlens.explain.target import PREDICTED
from dermlens.quality.randomization import ORDERS
from dermlens.quality.removal import STEPS
from dermlens.quality.subsets import SETS, SQUARES

TARGETS: tuple[str, ...] = (PREDICTED, "truth")


@dataclass(frozen=True)
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
        samples: Masks per image of LIME and Kernel SHAP; a tenth as many superpixels, up to 50.
        steps: Removal steps of deletion and insertion.
        squares: Covered squares per image, for infidelity.
        sets: Covered sets of cells per image, for MuFidelity.
        robustness: Images, of the ``n``, for sensitivity, equivariance and the random logit.
        randomization: Images, of the ``n``, for parameter randomization.
        orders: Of parameter randomization.
        pairs: Lesions with two photographs, for consistency.
        probes: Images, of the ``n``, for the shortcut probe.
        baselines: Whether to measure the baselines beside the methods.
        scorer: What evaluates changed images for occlusion, LIME, SHAP and RISE: ``"float32"``,
            ``"int8"``, or None for int8 where it was measured to give the same maps
            (``model.scorers``). Metrics and networks with random weights always use the model.
    """

    methods: tuple[str, ...] = SIX
    n: int = 500
    split: str = "test"
    seed: int = 0
    target: str = PREDICTED
    batch_size: int = 16
    samples: int = DEFAULT_SAMPLES
    steps: int = STEPS
    squares: int = SQUARES
    sets: int = SETS
    robustness: int = 14
    randomization: int = 7
    orders: tuple[str, ...] = ORDERS
    pairs: int = 14
    probes: int = 70
    baselines: bool = True
    scorer: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that make no sense."""
        least = {
            "n": 1,
            "seed": 0,
            "batch_size": 1,
            "samples": 4,
            "steps": 1,
            "squares": 2,
            "sets": 3,
            "robustness": 0,
            "randomization": 0,
            "pairs": 0,
            "probes": 0,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"{name} must be at least {bound}, not {getattr(self, name)}.")
        if self.target not in TARGETS:
            raise UsageError(f"Unknown target {self.target!r}. Use one of: {', '.join(TARGETS)}.")
        for order in self.orders:
            if order not in ORDERS:
                raise UsageError(f"Unknown order {order!r}. Use some of: {', '.join(ORDERS)}.")
        for name in self.methods:
            method(name)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        content = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in content.items()}


@dataclass(frozen=True)
class Item:
    """One image to measure.

    Attributes:
        image_id: From the manifest.
        lesion_id: From the manifest; the image's own id where it is missing.
        dx: Diagnosis code.
        image: Path of the photograph.
        mask: Path of the lesion mask, or None.
        structure: Path of the mask of the structure that decides the class, or None; drawn
            data sets have it.
    """

    image_id: str
    lesion_id: str
    dx: str
    image: Path
    mask: Path | None
    structure: Path | None


@dataclass(frozen=True)
class Loaded:
    """An item's pixels at the model's input size.

    Attributes:
        item: Where they come from.
        image: float32 RGB 0..255, (H, W, 3).
        mask: bool (H, W); empty where there is none.
        structure: bool (H, W), or None where the data set holds no structures.
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


def _item(row: Any, data: Path) -> Item:
    structure = data / "structures" / f"{row.image_id}_structure.png"
    return Item(
        str(row.image_id),
        str(row.lesion_id if isinstance(row.lesion_id, str) else row.image_id),
        str(row.dx),
        data / str(row.path),
        data / row.mask_path if isinstance(row.mask_path, str) else None,
        structure if structure.is_file() else None,
    )


def _in_turn(groups: Sequence[Sequence[Any]], count: int) -> list[Any]:
    """Take one of each group in turn until there are enough or none is left."""
    taken: list[Any] = []
    for depth in range(max(map(len, groups), default=0)):
        taken += [group[depth] for group in groups if depth < len(group)]
    return taken[:count]


def select_items(table: pd.DataFrame, data: Path, n: int, seed: int) -> list[Item]:
    """Choose images, one class after the other in turn, at random within a class.

    The first k of a selection are the selection of k: subsets are stratified too, and a larger
    benchmark contains the smaller one.

    Args:
        table: Rows of the manifest to choose from.
        data: Folder of the data set.
        n: How many; fewer if there are not so many.
        seed: Sets the choice.
    """
    groups = []
    for number, code in enumerate(CODES):
        rows = table[table.dx == code].sort_values("image_id")
        order = np.random.default_rng([seed, number]).permutation(len(rows))
        groups.append([_item(row, data) for row in rows.iloc[order].itertuples()])
    chosen = _in_turn(groups, n)
    if not chosen:
        raise DataError("The split holds no image to measure.")
    return chosen


def select_pairs(table: pd.DataFrame, data: Path, count: int, seed: int) -> list[tuple[Item, Item]]:
    """Choose lesions with at least two outlined photographs; of each the first two by id."""
    outlined = table[table.mask_path.notna() & table.lesion_id.notna()]
    groups = []
    for number, code in enumerate(CODES):
        pairs = [
            tuple(_item(row, data) for row in rows.sort_values("image_id").head(2).itertuples())
            for _, rows in outlined[outlined.dx == code].groupby("lesion_id", sort=True)
            if len(rows) > 1
        ]
        order = np.random.default_rng([seed, 100 + number]).permutation(len(pairs))
        groups.append([pairs[k] for k in order])
    return _in_turn(groups, count)

"""Sanity checks for explanations: does the map notice when the model is destroyed?

Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018. A layer is destroyed by putting
the values of each of its weights in random order: what was learned is gone while their
distribution stays, so activations keep their range and the check does not depend on how the
network was first initialized.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.base import image_generator
from dermlens.quality.agreement import spearman, structural_similarity

if TYPE_CHECKING:
    from dermlens.quality.metric import Case

ORDERS = ("cascading", "independent")
MOST_GROUPS = 8


def weighted_layers(model: Any) -> list[Any]:
    """Return the layers that hold weights, nested models opened, from input to output.

    A model whose layers do not hold all of its weights, as one may be that was subclassed, counts
    as one layer.
    """
    layers: list[Any] = []
    for layer in model.layers:
        inner = weighted_layers(layer) if hasattr(layer, "layers") else []
        opened = sum(len(one.weights) for one in inner) == len(layer.weights)
        layers += inner if opened else [layer]
    return list({id(layer): layer for layer in layers}.values())


def layer_groups(model: Any) -> list[tuple[str, list[Any]]]:
    """Return a network's layers in named groups, from output to input, the last layer alone first.

    Groups are the stages that layer names begin with (``conv5_block1_1_conv`` belongs to
    ``conv5``). Where names show no stages (a beginning comes back further down, as ``dense`` and
    ``dense_1`` may, or there are more than ``MOST_GROUPS``), the order of the graph alone counts:
    it is cut into that many parts of about equal length. A ResNet50 has six stages: logits,
    conv5, ..., conv1.
    """
    last, *others = weighted_layers(model)[::-1]
    stages = [(k, list(run)) for k, run in groupby(others, lambda one: one.name.split("_")[0])]
    if len(stages) >= MOST_GROUPS or len(dict(stages)) < len(stages):
        parts = np.array_split(np.arange(len(others)), min(MOST_GROUPS - 1, len(others)))
        stages = [(f"from {others[p[-1]].name}", [others[i] for i in p]) for p in parts]
    return [(last.name, [last]), *stages]


def stage_steps(model: Any, order: str = "cascading") -> list[tuple[str, list[Any]]]:
    """Return names and layers of what is destroyed at each step, see ``layer_groups``.

    The first step is always the last layer alone. ``"cascading"`` goes down from the output, each
    step with all before it; ``"independent"`` destroys one stage alone at each step.

    Raises:
        UsageError: If the order is unknown.
    """
    if order not in ORDERS:
        raise UsageError(f"Unknown order {order!r}. Use one of: {', '.join(ORDERS)}.")
    groups = layer_groups(model)
    if order == "independent":
        return groups
    reached = accumulate(layers for _, layers in groups)
    return [(name, layers) for (name, _), layers in zip(groups, reached, strict=True)]


def randomization_curves(
    model: Any,
    explain: Callable[[], np.ndarray],
    steps: Sequence[tuple[str, Sequence[Any]]],
    reference: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return how much maps (N, H, W) still resemble the originals after each of ``stage_steps``.

    ``explain`` makes the maps of fixed images and targets, ``reference`` are those of the intact
    network. ``spearman`` and ``ssim``, float64 (steps, N): low values show that the map depends on
    what the network has learned.
    """
    before = explain() if reference is None else reference
    curves: dict[str, list[np.ndarray]] = {"spearman": [], "ssim": []}
    for _, layers in steps:
        with randomized(model, layers, seed):
            maps = explain()
        curves["spearman"].append(spearman(before, maps))
        curves["ssim"].append(structural_similarity(before, maps))
    return {name: np.stack(values) for name, values in curves.items()}


def other_targets(targets: np.ndarray, classes: int, seeds: Sequence[Any]) -> np.ndarray:
    """Return for each image another class, drawn at random by a seed or generator each.

    Sixt, Granz & Landgraf, "When explanations lie", ICML 2020: a map that stays the same when
    another class is explained does not explain the class.
    """
    if classes < 2:
        raise UsageError("The random logit test needs at least two classes.")
    moves = [int(np.random.default_rng(seed).integers(1, classes)) for seed in seeds]
    return np.mod(np.asarray(targets) + np.array(moves), classes).astype(np.int32)


@contextmanager
def randomized(model: Any, layers: Sequence[Any], seed: int = 0) -> Iterator[Any]:
    """Destroy layers of a model in place, and put their weights back afterwards.

    Explainers that hold the model see the destroyed weights at once; nothing is copied. The order
    of a layer's values depends on the seed, and not on which others are destroyed.
    """
    kept = [(layer, layer.get_weights()) for layer in layers]
    position = {id(layer): number for number, layer in enumerate(weighted_layers(model))}
    try:
        for layer, weights in kept:
            generator = np.random.default_rng([seed, position[id(layer)]])
            layer.set_weights([generator.permutation(w.ravel()).reshape(w.shape) for w in weights])
        yield model
    finally:
        for layer, weights in kept:
            layer.set_weights(weights)


def randomization_spearman(case: "Case") -> np.ndarray:
    return spearman(case.maps, case.once(_destroyed_maps))


def randomization_ssim(case: "Case") -> np.ndarray:
    return structural_similarity(case.maps, case.once(_destroyed_maps))


def random_logit(case: "Case") -> np.ndarray:
    """Return the structural similarity of each map with that for another class."""
    assert case.images is not None and case.classifier is not None
    others = case.others
    if others is None:
        draws = [image_generator(case.seed, image) for image in case.images]
        others = other_targets(case.targets, len(case.classifier.classes), draws)
    return structural_similarity(case.maps, case.explain(case.images, others))


def _destroyed_maps(case: "Case") -> np.ndarray:
    assert case.images is not None and case.classifier is not None
    network = case.classifier.model
    with randomized(network, weighted_layers(network), case.seed):
        return case.explain(case.images, case.targets)

"""Sanity checks for explanations: does the map notice when the model is destroyed?

Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018. A layer is destroyed by putting
the values of each of its weights in random order: what was learned is gone while their
distribution stays, so activations keep their range and the check does not depend on how the
network was first initialized.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dermlens.errors import UsageError

ORDERS = ("cascading", "independent")
MOST_GROUPS = 8


def weighted_layers(model: Any) -> list[Any]:
    """Return the layers that hold weights, nested models opened, from input to output."""
    layers: list[Any] = []
    for layer in model.layers:
        if hasattr(layer, "layers"):
            layers += weighted_layers(layer)
        elif layer.weights:
            layers.append(layer)
    return layers


def randomization_steps(model: Any, order: str = "cascading") -> list[list[Any]]:
    """Return which layers are destroyed at each step.

    Args:
        model: Keras model.
        order: ``"cascading"``: the last layer, then the last two, and so on down to the input;
            ``"independent"``: one layer alone at each step, from the last to the first.

    Raises:
        UsageError: If the order is unknown.
    """
    if order not in ORDERS:
        raise UsageError(f"Unknown order {order!r}. Use one of: {', '.join(ORDERS)}.")
    top_down = weighted_layers(model)[::-1]
    if order == "independent":
        return [[layer] for layer in top_down]
    return [top_down[: step + 1] for step in range(len(top_down))]


def layer_groups(model: Any) -> list[tuple[str, list[Any]]]:
    """Return a network's layers in named groups, from output to input, the last layer alone first.

    Groups are the stages that layer names begin with (``conv5_block1_1_conv`` belongs to
    ``conv5``). A network whose names show more than ``MOST_GROUPS`` stages is cut into that many
    parts of about equal length instead. A ResNet50 has six: logits, conv5, ..., conv1.
    """
    last, *others = weighted_layers(model)[::-1]
    stages: dict[str, list[Any]] = {}
    for layer in others:
        stages.setdefault(layer.name.split("_")[0], []).append(layer)
    if len(stages) + 1 > MOST_GROUPS:
        parts = np.array_split(np.arange(len(others)), MOST_GROUPS - 1)
        stages = {f"from {others[p[-1]].name}": [others[i] for i in p] for p in parts}
    return [(last.name, [last]), *stages.items()]


def stage_steps(model: Any, order: str = "cascading") -> list[tuple[str, list[Any]]]:
    """Return which layers are destroyed at each step, stage by stage; see ``layer_groups``.

    Few steps instead of one for each layer. The first step is always the last layer alone.

    Args:
        model: Keras model.
        order: As in ``randomization_steps``.

    Returns:
        Name of the stage that is reached, and the layers to destroy.

    Raises:
        UsageError: If the order is unknown.
    """
    if order not in ORDERS:
        raise UsageError(f"Unknown order {order!r}. Use one of: {', '.join(ORDERS)}.")
    groups = layer_groups(model)
    if order == "independent":
        return groups
    steps: list[tuple[str, list[Any]]] = []
    reached: list[Any] = []
    for name, layers in groups:
        reached = reached + layers
        steps.append((name, reached))
    return steps


def randomization_curves(
    model: Any,
    explain: Callable[[], np.ndarray],
    steps: Sequence[tuple[str, Sequence[Any]]],
    *,
    reference: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return how much maps still resemble the originals after each step.

    Args:
        model: Network whose layers are destroyed and put back.
        explain: Makes the maps (N, H, W) of fixed images and targets with that network.
        steps: From ``stage_steps``.
        reference: Maps of the intact network; made if left out.
        seed: Sets the order of values.

    Returns:
        ``spearman`` and ``ssim``, float64 (steps, N): low values show that the map depends on
        what the network has learned.
    """
    from dermlens.quality.agreement import spearman, structural_similarity

    before = explain() if reference is None else reference
    curves: dict[str, list[np.ndarray]] = {"spearman": [], "ssim": []}
    for _, layers in steps:
        with randomized(model, layers, seed):
            maps = explain()
        curves["spearman"].append(spearman(before, maps))
        curves["ssim"].append(structural_similarity(before, maps))
    return {name: np.stack(values) for name, values in curves.items()}


def other_targets(targets: np.ndarray, classes: int, seeds: Sequence[int]) -> np.ndarray:
    """Return for each image another class, drawn at random: the random logit test.

    Sixt, Granz & Landgraf, "When explanations lie", ICML 2020: a map that stays the same when
    another class is explained does not explain the class.

    Args:
        targets: int (N,), explained classes.
        classes: Number of classes, at least 2.
        seeds: One per image.

    Raises:
        UsageError: If there is no other class.
    """
    if classes < 2:
        raise UsageError("The random logit test needs at least two classes.")
    moves = [int(np.random.default_rng(seed).integers(1, classes)) for seed in seeds]
    shifted: np.ndarray = (np.asarray(targets) + np.array(moves)) % classes
    return shifted.astype(np.int32)


@contextmanager
def randomized(model: Any, layers: Sequence[Any], seed: int = 0) -> Iterator[Any]:
    """Destroy layers of a model in place, and put their weights back afterwards.

    Explainers that hold the model see the destroyed weights at once; nothing is copied.

    Args:
        model: Keras model.
        layers: Layers of it, as ``randomization_steps`` returns them.
        seed: Sets the order of values; a layer's does not depend on which others are destroyed.
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

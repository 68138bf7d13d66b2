"""Sanity checks for explanations: does the map notice when the model is destroyed?

Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018. A layer is destroyed by putting
the values of each of its weights in random order: what was learned is gone while their
distribution stays, so activations keep their range and the check does not depend on how the
network was first initialized.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dermlens.errors import UsageError

ORDERS = ("cascading", "independent")


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

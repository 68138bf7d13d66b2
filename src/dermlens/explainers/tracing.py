"""Functions of a model, traced once however many explainers ask for them."""

from collections.abc import Callable, Hashable
from typing import Any

_KEPT = "_dermlens_traced"


class Traced:
    """A function of tensors, compiled when it is first called.

    Attributes:
        traces: How often it was traced.
    """

    def __init__(self, function: Callable[..., Any], signature: Any = None) -> None:
        import tensorflow as tf

        self.traces = 0

        def counted(*arguments: Any) -> Any:
            self.traces += 1
            return function(*arguments)

        self._compiled = tf.function(counted, autograph=False, input_signature=signature)

    def __call__(self, *arguments: Any) -> Any:
        return self._compiled(*arguments)


def traced_once(
    owner: Any, key: Hashable, function: Callable[..., Any], signature: Any = None
) -> Traced:
    """Return a function's compiled form, the same for everyone who asks with an equal key.

    Args:
        owner: What the function belongs to and lives as long as, such as a Keras model. Its
            weights are read at every call, so changing them is fine.
        key: Everything beside the owner that the function depends on.
        function: Of tensors, in a graph.
        signature: ``tf.TensorSpec`` of each argument; None to trace for every shape.
    """
    # Kept past Keras' attributes, which it would track and save; in a table of weak references the
    # functions, which hold their model, would keep it forever.
    kept: dict[Hashable, Traced] = vars(owner).setdefault(_KEPT, {})
    if key not in kept:
        kept[key] = Traced(function, signature)
    return kept[key]

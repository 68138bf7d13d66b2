"""Finding, in any Keras model, the feature maps to explain and the head above them.

The model's graph is run operation by operation, nested models opened on the way, and the wanted
feature maps are caught as they pass. Nothing is rebuilt, so shared layers, nested backbones and
mixed precision need no special treatment.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any

from dermlens.errors import ExplanationError
from dermlens.model.standard_network import graph_is_known


@dataclass
class Step:
    """One operation as it ran: its path, what it read and wrote (by identity), and shapes."""

    operation: Any
    path: str
    reads: list[int]
    read_shapes: list[tuple[int, ...]]
    writes: int
    shape: tuple[int | None, ...]
    output: Any = field(repr=False)
    args: Any = field(repr=False)
    kwargs: Any = field(repr=False)


@dataclass(frozen=True)
class Features:
    """Feature maps a class activation map is drawn from.

    Attributes:
        layer: Path of the operation that produces the maps, ``outer/inner`` where nested.
        step: Its position in the order in which operations run.
        dense: The last layer, where the head is global average pooling and one linear Dense
            layer (dropout between is allowed); else None.
        steps: All operations, as they ran for images of ``traced_size``.
    """

    model: Any
    layer: str
    step: int
    dense: Any | None
    steps: "list[Step]" = field(repr=False, compare=False)

    def run(self, images: Any, watch: Callable[[Any], None] | None = None) -> tuple[Any, Any]:
        """Return feature maps (n, h, w, K) in the model's precision, and float32 logits (n, C).

        ``watch`` is called with the feature maps when they appear, such as ``tape.watch``.
        """
        caught, logits = run_catching(self.model, images, {self.step}, watch)
        return caught[0], logits


def run_catching(
    model: Any, images: Any, wanted: Collection[int], watch: Callable[[Any], None] | None = None
) -> tuple[list[Any], Any]:
    """Return the outputs of the wanted steps, and logits; see ``Features.run``."""
    import tensorflow as tf

    caught: list[Any] = []
    position = count()

    def each(operation: Any, path: str, args: Any, kwargs: Any) -> Any:
        output = apply_operation(operation, args, kwargs)
        if next(position) in wanted:
            output = tf.identity(output)
            if watch is not None:
                watch(output)
            caught.append(output)
        return output

    logits = run_graph(model, images, each)
    return caught, tf.cast(logits, tf.float32)


def find_features(model: Any, layer: str | None = None) -> Features:
    """Find the last feature maps of a model, or those of a named layer.

    The last are the last four-dimensional output with more than one place: what the head pools or
    flattens, after the last activation, where the class evidence is gathered.

    Args:
        model: Keras functional or sequential model.
        layer: Name of a layer, ``outer/inner`` inside a nested model.

    Raises:
        ExplanationError: If there is no such layer or no feature map.
    """
    steps = _steps_of(model)
    position = _last(steps, model) if layer is None else _named(steps, layer, model)
    return Features(model, steps[position].path, position, _pool_dense(steps, position), steps)


def apply_operation(operation: Any, args: Any, kwargs: Any) -> Any:
    """Call one operation of a model in inference mode."""
    if getattr(operation, "_call_has_training_arg", False):
        kwargs = {**kwargs, "training": False}
    return operation(*args, **kwargs)


def run_graph(model: Any, inputs: Any, each: Callable[..., Any], prefix: str = "") -> Any:
    """Run a model, calling ``each`` for every operation that is not a model itself.

    It takes operation, path (after ``prefix``), positional and named arguments; gives the output.
    """
    import keras

    if isinstance(model, keras.Sequential):
        value = inputs
        for part in model.layers:
            value = _one(part, prefix, (value,), {}, each)
        return value
    return model._run_through_graph(
        inputs,
        operation_fn=lambda operation: (
            lambda *args, **kwargs: _one(operation, prefix, args, kwargs, each)
        ),
    )


def _one(operation: Any, prefix: str, args: Any, kwargs: Any, each: Callable[..., Any]) -> Any:
    path = f"{prefix}{operation.name}"
    if graph_is_known(operation):
        return run_graph(operation, args[0], each, f"{path}/")
    return each(operation, path, args, kwargs)


def recorded_steps(model: Any, size: tuple[int, int] | None = None) -> list[Step]:
    """Return every operation in the order in which they run, or raise ExplanationError."""
    import tensorflow as tf

    steps: list[Step] = []

    def each(operation: Any, path: str, args: Any, kwargs: Any) -> Any:
        output = apply_operation(operation, args, kwargs)
        read = [v for v in tf.nest.flatten((args, kwargs)) if tf.is_tensor(v)]
        shapes = [tuple(v.shape) for v in read]
        shape = tuple(output.shape) if tf.is_tensor(output) else ()
        seen = ([id(v) for v in read], shapes, id(output), shape)
        steps.append(Step(operation, path, *seen, output, args, kwargs))
        return output

    if not graph_is_known(model):
        raise ExplanationError(
            f"The model {getattr(model, 'name', model)!r} is no functional Keras model, so its "
            "layers cannot be found. Rebuild it with keras.Model(inputs, outputs)."
        )
    # Traced, not run: values are symbols and nothing is computed.
    shape = (1, *(size or traced_size(model)), model.input_shape[3])
    tf.function(
        lambda images: run_graph(model, images, each), autograph=False
    ).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    return steps


@lru_cache(maxsize=2)
def _steps_of(model: Any) -> list[Step]:
    """Return the recorded steps, once for all methods that explain a model."""
    return recorded_steps(model)


def traced_size(model: Any) -> tuple[int, int]:
    """Return the size for which a model is traced: its own, 64 where it takes any."""
    height, width = (int(side or 64) for side in model.input_shape[1:3])
    return height, width


def _last(steps: list[Step], model: Any) -> int:
    import keras

    spatial = [p for p, step in enumerate(steps) if _places(step) > 1]
    if any("Conv" in type(steps[p].operation).__name__ for p in spatial):
        return spatial[-1]
    models = [step for step in steps if isinstance(step.operation, keras.Model)]
    closed = [step.path for step in models if not graph_is_known(step.operation)]
    why = (
        f"what is inside of {closed[-1]!r} cannot be seen, since it is a subclassed model: rebuild "
        "it with keras.Model(inputs, outputs)"
        if closed
        else "it has no convolution with more than one place"
    )
    raise ExplanationError(
        f"The model {model.name!r} has no feature maps for a class activation map: {why}. Or use "
        "integrated_gradients, occlusion, lime, gp_shap or rise."
    )


def _places(step: Step) -> int:
    """Return how many places the maps of an operation have, 0 for what is no map."""
    if len(step.shape) != 4:
        return 0
    height, width = (1 if side is None else side for side in step.shape[1:3])
    return height * width


def _named(steps: list[Step], layer: str, model: Any) -> int:
    found = [p for p, step in enumerate(steps) if layer in (step.path, step.operation.name)]
    if not found:
        spatial = ", ".join([step.path for step in steps if len(step.shape) == 4][-6:])
        raise ExplanationError(
            f"The model {model.name!r} has no layer {layer!r}. Its last layers with feature maps "
            f"are {spatial}."
        )
    shape = steps[found[-1]].shape
    if len(shape) != 4:
        raise ExplanationError(f"Layer {layer!r} gives {shape}, not feature maps (N, h, w, K).")
    return found[-1]


def _pool_dense(steps: list[Step], position: int) -> Any | None:
    """Return the last layer if only pooling and it change the values above the feature maps."""
    import keras

    above = [step for step in steps[position + 1 :] if not _passes(step)]
    if len(above) != 2:
        return None
    pool, dense = (step.operation for step in above)
    if not isinstance(pool, keras.layers.GlobalAveragePooling2D):
        return None
    linear = isinstance(dense, keras.layers.Dense) and dense.activation is keras.activations.linear
    reads_features = steps[position].writes in above[0].reads
    return dense if linear and reads_features else None


def _passes(step: Step) -> bool:
    """Tell whether an operation of the head gives what it is given."""
    import keras

    if isinstance(step.operation, keras.layers.Dropout | keras.layers.Identity):
        return True
    if isinstance(step.operation, keras.layers.Activation):
        return step.operation.activation is keras.activations.linear
    widens = type(step.operation).__name__ == "Cast" and step.output.dtype == "float32"
    flat = isinstance(step.operation, keras.layers.Flatten | keras.layers.Reshape)
    return widens or (flat and list(step.read_shapes) == [step.shape])

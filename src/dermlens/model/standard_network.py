"""Any Keras image classifier as the one network that everything else works on.

That network takes photographs, RGB 0..255 as float32, and returns float32 logits. What a foreign
model wants instead stands before it (its range of values) and behind it (its last activation,
which is left out; one sigmoid becomes two classes). Its own layers are used as they are, not
copied: they keep their weights, their names and their nesting.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.errors import ModelError
from dermlens.model.calibration import Link

OUTPUTS: tuple[str, ...] = ("auto", "logits", "softmax", "sigmoid")
PREPROCESSINGS: tuple[str, ...] = ("inside", "caffe", "torch")
PHOTOGRAPH = (0.0, 255.0)
_TINY = 1e-30
_MARK = "dermlens_link"
_PROBES = 6


@dataclass(frozen=True)
class Standard:
    """A network from photographs, RGB 0..255 (N, H, W, 3), to logits (N, C), both float32.

    ``link`` turns the logits into the probabilities that the model itself would give; ``note`` says
    how the logits were found, where that is not exact.
    """

    network: Any
    link: Link
    note: str = ""


def standard_network(
    model: Any,
    *,
    input_size: tuple[int, int] | None = None,
    value_range: tuple[float, float] = PHOTOGRAPH,
    preprocessing: str = "inside",
    output: str = "auto",
) -> Standard:
    """Bring a Keras model into the standard form; settings are those of ``ImageClassifier``.

    Raises:
        ModelError: If the model is no image classifier, or a setting does not fit it.
    """
    import keras

    if hasattr(model, _MARK):
        return Standard(model, getattr(model, _MARK))
    for name, given, known in (
        ("output", output, OUTPUTS),
        ("preprocessing", preprocessing, PREPROCESSINGS),
    ):
        if given not in known:
            raise ModelError(f"Unknown {name} {given!r}. Use one of: {', '.join(known)}.")
    low, high = _checked_range(value_range, preprocessing)
    size = _input_size(model, input_size)
    if _is_standard(model, size, (low, high), preprocessing, output):
        return Standard(model, "softmax")
    photographs = keras.Input((*size, 3), name="photograph", dtype="float32")
    raw, kind, note = _without_last_activation(
        model, _prepared(photographs, low, high, preprocessing), output
    )
    _check_logits(raw, kind)
    logits, link = _logits(raw, kind)
    network = keras.Model(photographs, logits, name=f"standard_{getattr(model, 'name', 'model')}")
    # So that the network alone, handed on without its classifier, is known for what it is.
    setattr(network, _MARK, link)
    return Standard(network, link, note)


def _checked_range(value_range: Any, preprocessing: str) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        raise ModelError(
            f"A value range is two numbers, what black and white are, not {value_range!r}."
        ) from None
    if not (np.isfinite([low, high]).all() and low < high):
        raise ModelError(f"The value range {low:g} to {high:g} is empty. Give black, then white.")
    if preprocessing != "inside" and (low, high) != PHOTOGRAPH:
        raise ModelError(
            f"The preprocessing {preprocessing!r} starts from 0 to 255; leave the range."
        )
    return low, high


def _input_size(model: Any, given: tuple[int, int] | None) -> tuple[int, int]:
    """Return (height, width), or say why the model cannot be used."""
    name = getattr(model, "name", type(model).__name__)
    shape = _only_input(model, name)
    if shape is None:
        if given is None:
            raise ModelError(
                f"The model {name!r} does not say which images it takes. Give input_size=(height, "
                "width), or build it with keras.Input."
            )
        return int(given[0]), int(given[1])
    if len(shape) != 4 or shape[3] != 3:
        shown = ", ".join(["N", *("any" if side is None else str(side) for side in shape[1:])])
        raise ModelError(f"The model {name!r} takes ({shown}){_why(shape)}")
    sides = [own or wanted for own, wanted in zip(shape[1:3], given or (None, None), strict=True)]
    if given is not None and sides != [int(side) for side in given]:
        raise ModelError(
            f"The model {name!r} takes images of {shape[1]}x{shape[2]}, not {given}. Leave "
            "input_size out."
        )
    if None in sides:
        raise ModelError(
            f"The model {name!r} takes images of any size. Give input_size=(height, width), "
            "the size it was trained at."
        )
    height, width = (int(side) for side in sides if side is not None)
    return height, width


def _only_input(model: Any, name: str) -> tuple[int | None, ...] | None:
    inputs = getattr(model, "inputs", None)
    if inputs is not None and len(inputs) != 1:
        raise ModelError(
            f"The model {name!r} has {len(inputs)} inputs. An image classifier has one; wrap "
            "it in a model that fixes the others."
        )
    if inputs:
        return tuple(inputs[0].shape)
    if not callable(model):
        raise ModelError(f"{name!r} is no Keras model. Give a keras.Model, or the path of one.")
    shape = getattr(model, "input_shape", None)
    return tuple(shape) if isinstance(shape, tuple) else None


def _why(shape: tuple[int | None, ...]) -> str:
    if len(shape) != 4:
        return ", which are no images. Images are (N, height, width, 3)."
    if shape[1] == 3:
        return (
            ": channels first. Images must be (N, height, width, 3); rebuild it with channels last."
        )
    if shape[3] == 1:
        return (
            ", gray images. Put a layer before it that turns RGB (N, height, width, 3) into gray."
        )
    return ". Images must be (N, height, width, 3), RGB."


def _is_standard(
    model: Any,
    size: tuple[int, int],
    value_range: tuple[float, float],
    preprocessing: str,
    output: str,
) -> bool:
    """Tell whether a model has the standard form already, so that it is used itself."""
    import keras

    if not graph_is_known(model) or value_range != PHOTOGRAPH or preprocessing != "inside":
        return False
    if tuple(model.inputs[0].shape[1:3]) != size or output not in ("auto", "logits"):
        return False
    shape, last = model.outputs[0].shape, _last_operation(model)
    plain = len(model.outputs) == 1 and len(shape) == 2 and (shape[1] or 0) > 1
    linear = isinstance(last, keras.layers.Dense) and _name(last) == "linear"
    return plain and model.inputs[0].dtype == "float32" and linear


def graph_is_known(model: Any) -> bool:
    """Tell whether a model does nothing but what its graph says: a subclass might do more."""
    import keras

    functional = hasattr(model, "_run_through_graph") and type(model).__module__.startswith("keras")
    return functional or (type(model) is keras.Sequential and model.built)


def _prepared(photographs: Any, low: float, high: float, preprocessing: str) -> Any:
    import keras

    from dermlens.model.classifier import preprocess

    if preprocessing != "inside":
        return preprocess(photographs, preprocessing)
    if (low, high) == PHOTOGRAPH:
        return photographs
    scale = (high - low) / (PHOTOGRAPH[1] - PHOTOGRAPH[0])
    return keras.layers.Rescaling(scale, low, name="to_value_range", dtype="float32")(photographs)


def _without_last_activation(model: Any, inputs: Any, output: str) -> tuple[Any, str, str]:
    """Return what the model computes before its last activation, the kind of it, and a note."""
    if graph_is_known(model):
        if len(model.outputs) != 1:
            raise ModelError(
                f"The model {model.name!r} has {len(model.outputs)} outputs. Give "
                "keras.Model(model.inputs, model.outputs[k]) with the one that holds the classes."
            )
        cut, kind = _last_activation(model)
        if kind is not None:
            if output not in ("auto", kind):
                raise ModelError(
                    f"The model {model.name!r} ends in a {kind}, not in {output}. Leave output out."
                )
            return _run(model, inputs, cut), kind, ""
        outputs = _run(model, inputs, None)
        # What is known to end linearly has logits.
        if output == "logits" or (output == "auto" and cut is not None):
            return outputs, "logits", ""
    else:
        outputs = _inference(model, (inputs,), {})
    found = _measured_kind(model, inputs) if output == "auto" else output
    if found == "logits":
        return outputs, found, ""
    note = f"Logits are the logarithm of what the model's {found} gives, not its own."
    return _logarithm(outputs, found), found, note


def _logarithm(probabilities: Any, kind: str) -> Any:
    """Return logits that give the same probabilities again."""
    from keras import ops

    shares = ops.maximum(ops.cast(probabilities, "float32"), _TINY)
    if kind == "softmax":
        return ops.log(shares)
    return ops.log(shares) - ops.log(ops.maximum(1.0 - shares, _TINY))


def _last_operation(model: Any) -> Any:
    """Return the operation that makes the classes, behind what only changes the shape."""
    import keras

    passing = (
        keras.layers.Flatten, keras.layers.Reshape, keras.layers.Dropout, keras.layers.Identity,
    )  # fmt: skip
    tensor = model.outputs[0]
    while True:
        operation = tensor._keras_history.operation
        linear = isinstance(operation, keras.layers.Activation) and _name(operation) == "linear"
        if not isinstance(operation, passing) and not linear:
            return operation
        before = operation._inbound_nodes[tensor._keras_history.node_index].input_tensors
        if len(before) != 1:
            return operation
        tensor = before[0]


def _last_activation(model: Any) -> tuple[Any, str | None]:
    """Return the operation whose activation can be left out and its kind.

    (operation, None) where it is known to be linear, (None, None) where nothing is known.
    """
    import keras

    operation = _last_operation(model)
    if graph_is_known(operation) and len(operation.outputs) == 1:
        inner, kind = _last_activation(operation)
        return (operation if inner is not None else None), kind
    if _uses(model, operation) != 1:
        return None, None
    if isinstance(operation, keras.layers.Softmax):
        last = operation.axis in (-1, len(model.outputs[0].shape) - 1)
        return (operation, "softmax") if last else (None, None)
    name = _name(operation)
    alone = isinstance(operation, keras.layers.Activation | keras.layers.Dense)
    if type(operation).__name__ in ("Softmax", "Sigmoid") and not alone:
        return operation, type(operation).__name__.lower()
    if name in ("softmax", "sigmoid"):
        return (operation, name) if alone else (None, None)
    return (operation, None) if name == "linear" else (None, None)


def _name(operation: Any) -> str | None:
    """Return the name of an operation's activation, "linear" for none; None if it has no such."""
    import keras

    if not hasattr(operation, "activation"):
        return None
    found = operation.activation
    if found is None:
        return "linear"
    for name in ("linear", "softmax", "sigmoid"):
        if found is getattr(keras.activations, name):
            return name
    return "other"


def _uses(model: Any, operation: Any) -> int:
    levels = _functional(model)._nodes_by_depth.values()
    nodes = [node for level in levels for node in level]
    return sum(node.operation is operation for node in nodes)


def _run(model: Any, inputs: Any, cut: Any) -> Any:
    """Run a model's graph on a symbol, the activation of ``cut`` left out; nested models stay."""
    import keras

    def replaced(operation: Any) -> Callable[..., Any]:
        if operation is not cut:
            return lambda *args, **kwargs: _inference(operation, args, kwargs)
        if graph_is_known(operation):
            inner, _ = _last_activation(operation)
            return lambda *args, **kwargs: _run(operation, args[0], inner)
        if isinstance(operation, keras.layers.Dense):
            return _linear(operation)
        return lambda value, *args, **kwargs: value

    return _functional(model)._run_through_graph(inputs, operation_fn=replaced)


def _functional(model: Any) -> Any:
    import keras

    return model._functional if isinstance(model, keras.Sequential) else model


def _inference(operation: Any, args: Any, kwargs: Any) -> Any:
    if getattr(operation, "_call_has_training_arg", False):
        kwargs = {**kwargs, "training": False}
    return operation(*args, **kwargs)


def _linear(dense: Any) -> Any:
    """Return a layer that is ``dense`` without its activation and uses the same variables."""
    import keras

    class LinearDense(keras.layers.Dense):
        """A dense layer's product and bias, read from that layer."""

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            """Return a layer with variables of its own: that is what a copy of a network needs."""
            return keras.layers.Dense(**config)

        def build(self, input_shape: Any) -> None:
            self.of = dense
            self.built = True

        @property
        def kernel(self) -> Any:
            return dense.kernel

        def call(self, inputs: Any, training: Any = None) -> Any:
            product = keras.ops.matmul(inputs, dense.kernel)
            return product if dense.bias is None else keras.ops.add(product, dense.bias)

    options = {"use_bias": dense.use_bias, "dtype": dense.dtype_policy}
    return LinearDense(dense.units, name=f"{dense.name}_logits", **options)


def _measured_kind(model: Any, inputs: Any) -> str:
    """Find out by pictures what a model gives whose graph does not say it."""
    import keras

    probe = keras.Model(_source(inputs), inputs)
    shape = inputs.shape[1:]
    pictures = np.random.default_rng(0).uniform(0, 255, (_PROBES, *shape)).astype(np.float32)
    pictures[0], pictures[1] = 0.0, 255.0
    values = np.asarray(model(probe(pictures), training=False), np.float64)
    inside = values.min() >= 0 and values.max() <= 1
    if values.ndim == 2 and values.shape[1] > 1 and inside:
        if np.abs(values.sum(axis=1) - 1).max() < 1e-3:
            return "softmax"
    elif not inside:
        return "logits"
    raise ModelError(
        f"What the model {getattr(model, 'name', 'model')!r} gives cannot be told from its "
        "graph. Say output='logits', 'softmax' or 'sigmoid'."
    )


def _source(tensor: Any) -> Any:
    """Return the input a symbol was computed from by a chain of one operation at most."""
    history = tensor._keras_history
    node = history.operation._inbound_nodes[history.node_index]
    return tensor if node.is_input else _source(node.input_tensors[0])


def _check_logits(raw: Any, kind: str) -> None:
    shape = getattr(raw, "shape", None)
    if shape is None or len(shape) != 2 or shape[1] is None:
        raise ModelError(
            f"The model's output has the shape {shape}, not (N, classes): it gives no one answer "
            "per image. Pool it, or give the layer that does: keras.Model(model.inputs, "
            "layer.output)."
        )
    if shape[1] == 1 and kind == "softmax":
        raise ModelError(
            "The model ends in a softmax over one output, which is always 1. Use a sigmoid, or two "
            "outputs."
        )


def _logits(raw: Any, kind: str) -> tuple[Any, Link]:
    """Return float32 logits and the link, from outputs without (or with) their activation."""
    import keras

    values = raw if raw.dtype == "float32" else keras.ops.cast(raw, "float32")
    if raw.shape[1] == 1:
        return keras.ops.concatenate([-values, values], axis=1), "sigmoid"
    return values, "sigmoid" if kind == "sigmoid" else "softmax"

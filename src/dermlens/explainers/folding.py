"""Inference with every batch normalization folded into the convolution before it.

At inference a batch normalization multiplies every channel by a constant and adds another. Scaling
the convolution's kernel and adding a bias gives the same numbers (Jacob et al., "Quantization and
training of neural networks for efficient integer-arithmetic-only inference", CVPR 2018, section
3.2) without passing over the feature maps twice more. Kernels are scaled inside the graph, once per
batch, from the layers' present weights: a network whose weights are changed, as parameter
randomization does, is followed at once, and nothing has to be kept up to date.
"""

from typing import Any

from dermlens.explainers.layers import apply_operation, run_graph
from dermlens.model.standard_network import graph_is_known


def folded_logits(model: Any, images: Any) -> Any:
    """Return what ``model(images, training=False)`` gives, (n, C), up to rounding.

    Normalizations are folded; a model whose graph is not known is called as it is.
    """
    if not graph_is_known(model):
        return model(images, training=False)
    return _output(run_graph(model, images, _each))


class _Waiting:
    """A convolution that was not computed yet, because a normalization may follow."""

    def __init__(self, convolution: Any, images: Any) -> None:
        self.convolution, self.images = convolution, images
        self._alone: Any = None

    def alone(self) -> Any:
        """Return the convolution's own output, computed once however many operations read it."""
        if self._alone is None:
            self._alone = self.convolution(self.images)
        return self._alone

    def normalized(self, normalization: Any) -> Any:
        """Return the output of convolution and normalization together."""
        import tensorflow as tf

        layer = self.convolution
        scale = tf.math.rsqrt(normalization.moving_variance + normalization.epsilon)
        if normalization.scale:
            scale *= normalization.gamma
        bias = -normalization.moving_mean * scale
        if layer.use_bias:
            bias += layer.bias * scale
        if normalization.center:
            bias += normalization.beta
        maps = tf.nn.conv2d(
            self.images,
            tf.convert_to_tensor(layer.kernel) * scale,
            strides=layer.strides,
            padding=layer.padding.upper(),
            dilations=layer.dilation_rate,
        )
        return tf.nn.bias_add(maps, bias)


def _each(operation: Any, path: str, args: Any, kwargs: Any) -> Any:
    import keras

    # Normalizations are called with a mask of None; how they train makes no difference here.
    alone = len(args) == 1 and all(kwargs[name] is None for name in kwargs if name != "training")
    if alone and isinstance(args[0], _Waiting) and _folds(operation):
        return args[0].normalized(operation)
    args, kwargs = keras.tree.map_structure(_output, (args, kwargs))
    if alone and _waits(operation):
        return _Waiting(operation, args[0])
    return apply_operation(operation, args, kwargs)


def _waits(operation: Any) -> bool:
    """Tell whether an operation is a plain convolution in float32."""
    import keras

    return (
        type(operation) is keras.layers.Conv2D
        and operation.activation is keras.activations.linear
        and operation.data_format == "channels_last"
        and operation.groups == 1
        and operation.compute_dtype == "float32"
        and operation.quantization_mode is None
    )


def _folds(operation: Any) -> bool:
    """Tell whether an operation is a batch normalization of channels in float32."""
    import keras

    return (
        type(operation) is keras.layers.BatchNormalization
        and operation.axis in (-1, 3)
        and operation.compute_dtype == "float32"
    )


def _output(value: Any) -> Any:
    return value.alone() if isinstance(value, _Waiting) else value

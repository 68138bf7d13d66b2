"""Class activation maps: Grad-CAM, Grad-CAM++, Layer-CAM and HiRes-CAM.

* Grad-CAM: Selvaraju et al., ICCV 2017.
* Grad-CAM++: Chattopadhay et al., WACV 2018, in the closed form of the paper.
* Layer-CAM: Jiang et al., IEEE TIP 2021.
* HiRes-CAM: Draelos & Carin, 2020, arXiv:2011.08891.

Where the head is global average pooling and one Dense layer, the gradient of a logit with respect
to the feature maps is known without a backward pass: it is W[k, c] / (h * w) everywhere. One
forward pass then gives the maps of all classes (closed form). Any other head, layer or output takes
the gradient (tape form); both agree where both apply.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.errors import ExplanationError, UsageError
from dermlens.explainers.attribution import Attribution
from dermlens.explainers.base import Explainer, Progress, batches
from dermlens.explainers.layers import find_features
from dermlens.explainers.output import Output
from dermlens.explainers.registration import Drawing, Registration, registered
from dermlens.explainers.target import (
    PREDICTED,
    PREDICTED_POSITION,
    Targets,
    depend_on_answer,
    is_all,
    part_of,
)

FORMS = ("auto", "closed", "tape")


@dataclass(kw_only=True)
class ActivationAttribution(Attribution):
    """What class activation maps know more.

    Attributes:
        layer: Path of the operation whose feature maps were used.
    """

    layer: str


class ClassActivationMap(Explainer[ActivationAttribution]):
    """Base of the family: activations times weights from gradients, rectified, drawn in place.

    Args:
        model: ``ImageClassifier``, or a Keras model that ``ImageClassifier`` takes without more.
        layer: Layer whose feature maps are used; default the last.
        form: ``"auto"``: closed where possible; ``"closed"`` or ``"tape"`` to insist.
        registration: ``"receptive_field"``: every cell is drawn where the network looks
            (``explainers.registration``); ``"tiles"``: a plain bilinear resize, as other packages
            draw, which is up to half a cell off.

    Raises:
        ExplanationError: If the model has no feature maps, or ``form="closed"`` is not possible.
        UsageError: If the form or the registration is unknown.
    """

    signed = False
    kind = ActivationAttribution

    def __init__(
        self,
        model: Any,
        layer: str | None = None,
        *,
        form: str = "auto",
        registration: Registration = "receptive_field",
    ) -> None:
        super().__init__(model)
        if form not in FORMS:
            raise UsageError(f"Unknown form {form!r}. Use one of: {', '.join(FORMS)}.")
        self.features = find_features(self.model, layer)
        self.form = form
        self.drawing = Drawing(self.features, [self.features.step], registration)
        if form == "closed" and self.features.dense is None:
            raise ExplanationError(
                "The closed form needs global average pooling and one Dense layer above the "
                f"layer {self.features.layer!r}. Use form='tape'."
            )
        self._functions: dict[tuple[str, bool, bool], Any] = {}
        self.traces = 0

    @abstractmethod
    def _combine(self, activations: Any, gradients: Any) -> Any:
        """Return maps (n, T, h, w) from activations (n, h, w, K), gradients (n, T, h, w, K)."""

    @abstractmethod
    def _combine_uniform(self, activations: Any, gradients: Any) -> Any:
        """The same where gradients (n, T, K) are equal at every place."""

    def closed(self, output: Output) -> bool:
        """Tell whether the closed form is used for an output."""
        possible = self.features.dense is not None and output.linear
        if self.form == "closed" and not possible:
            raise ExplanationError(f"The closed form cannot explain a {output.name}. Use 'tape'.")
        return possible and self.form != "tape"

    def _attribute(
        self,
        images: np.ndarray,
        targets: Targets,
        output: Output,
        batch_size: int,
        seed: int,
        progress: Progress | None,
    ) -> ActivationAttribution:
        every, closed = is_all(targets), self.closed(output)
        sides = self.drawing.weights(images.shape[1:3])[0]
        maps, chosen, values = [], [], []
        for part in batches(len(images), batch_size):
            batch = images[part].astype(np.float32)
            count = len(batch)
            index = self._wanted(targets, part.start, batch, every)
            if closed:
                logits, drawn = self._function(output, closed, every)(batch, index, *sides)
                self.network.cost.pay(count)
            else:
                logits, drawn = self._taped(batch, index, sides, output, every)
            logits = np.asarray(logits)
            known = np.asarray(output.values(logits))
            maps.append(np.asarray(drawn))
            if every:
                values.append(known)
            else:
                index = self.resolve(targets, logits, part.start)
                chosen.append(index)
                values.append(known[np.arange(count), index])
            if progress is not None:
                progress(count)
        result = self.result(maps, chosen, values, output, layer=self.features.layer)
        if not every:
            result.maps = result.maps[:, 0]
        return result

    def _wanted(self, targets: Targets, start: int, batch: np.ndarray, every: bool) -> np.ndarray:
        """Return the targets of a batch; -1 stands for the most probable class."""
        if every or targets is None or (isinstance(targets, str) and targets == PREDICTED):
            return np.full(len(batch), PREDICTED_POSITION, np.int32)
        if depend_on_answer(part_of(targets, slice(start, start + len(batch)))):
            logits = np.asarray(self.network.logits(batch))
        else:
            logits = np.zeros((len(batch), len(self.classes)), np.float32)
        return self.resolve(targets, logits, start)

    def _taped(
        self,
        batch: np.ndarray,
        index: np.ndarray,
        sides: tuple[np.ndarray, np.ndarray],
        output: Output,
        every: bool,
    ) -> tuple[Any, np.ndarray]:
        function = self._function(output, False, every)
        goals = range(len(self.classes)) if every else [None]
        drawn, logits = [], None
        for goal in goals:
            chosen = index if goal is None else np.full(len(batch), goal, np.int32)
            logits, part = function(batch, chosen, *sides)
            drawn.append(np.asarray(part))
            self.network.cost.pay(len(batch), len(batch))
        return logits, np.concatenate(drawn, axis=1)

    def _function(self, output: Output, closed: bool, every: bool) -> Any:
        import tensorflow as tf

        key = (repr(output), closed and every, closed)
        if key not in self._functions:

            def traced(images: Any, index: Any, rows: Any, columns: Any) -> Any:
                self.traces += 1
                index = None if closed and every else index
                return self.graph(images, index, (rows, columns), output)[1:]

            self._functions[key] = tf.function(
                traced,
                input_signature=[
                    tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32),
                    tf.TensorSpec((None,), tf.int32),
                    tf.TensorSpec((None, None), tf.float32),
                    tf.TensorSpec((None, None), tf.float32),
                ],
            )
        return self._functions[key]

    def graph(
        self, images: Any, index: Any, sides: tuple[Any, Any], output: Output
    ) -> tuple[Any, Any, Any]:
        """Explain inside a graph: what ``attribute`` and exported files compute alike.

        Args:
            images: float32 tensor (n, H, W, 3), RGB 0..255.
            index: int32 tensor (n,): class positions, -1 for the most probable class; None for all
                classes.
            sides: Weights of rows (H, h) and columns (W, w), see ``registration.Drawing``.
            output: What is explained.

        Returns:
            Feature maps (n, h, w, K), logits (n, C), and maps (n, T, H, W) of T = 1 or C classes.
        """
        body = self._closed_graph if self.closed(output) else self._tape_graph
        activations, logits, maps = body(images, index, output)
        return activations, logits, registered(self._rectified(maps), *sides)

    def _rectified(self, maps: Any) -> Any:
        """Keep what speaks for the target, before the map is drawn at the image's size."""
        import tensorflow as tf

        return tf.nn.relu(maps)

    def _closed_graph(self, images: Any, index: Any, output: Output) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        dense: Any = self.features.dense
        mixing = tf.constant(output.weights(len(self.classes)))
        activations, logits = self.features.run(images)
        activations = tf.cast(activations, tf.float32)
        kernel = tf.cast(dense.kernel.value, tf.float32)
        places = tf.cast(tf.shape(activations)[1] * tf.shape(activations)[2], tf.float32)
        weights = tf.transpose(tf.matmul(kernel, mixing)) / places
        if index is None:
            shape = (tf.shape(images)[0], *weights.shape)
            gradients = tf.broadcast_to(weights[None], shape)
        else:
            gradients = tf.gather(weights, most_probable_or(index, logits))[:, None]
        return activations, logits, self._combine_uniform(activations, gradients)

    def _tape_graph(self, images: Any, index: Any, output: Output) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        with tf.GradientTape(persistent=index is None, watch_accessed_variables=False) as tape:
            activations, logits = self.features.run(images, tape.watch)
            known = output.values(logits)
            if index is None:
                values = tf.unstack(known, num=len(self.classes), axis=1)
            else:
                values = [tf.gather(known, most_probable_or(index, logits), axis=1, batch_dims=1)]
        none = tf.UnconnectedGradients.ZERO
        found = [tape.gradient(v, activations, unconnected_gradients=none) for v in values]
        gradients = tf.cast(tf.stack(found, axis=1), tf.float32)
        activations = tf.cast(activations, tf.float32)
        return activations, logits, self._combine(activations, gradients)


def most_probable_or(index: Any, logits: Any) -> Any:
    """Return class positions, int32 (n,), the most probable class for -1, in a graph."""
    import tensorflow as tf

    return tf.where(index < 0, tf.argmax(logits, axis=1, output_type=tf.int32), index)


class GradCAM(ClassActivationMap):
    """Grad-CAM: feature maps weighted by the mean gradient of the output.

    Example:
        >>> from dermlens.model.classifier import Architecture, build_classifier
        >>> model = build_classifier(Architecture("mobilenetv3small", (64, 96)))
        >>> result = GradCAM(model).attribute(np.zeros((2, 64, 96, 3)), targets=4)
        >>> result.maps.shape, result.cost.forward, result.cost.backward
        ((2, 64, 96), 2, 0)
    """

    name = "grad_cam"

    def _combine(self, activations: Any, gradients: Any) -> Any:
        import tensorflow as tf

        return self._combine_uniform(activations, tf.reduce_mean(gradients, axis=(2, 3)))

    def _combine_uniform(self, activations: Any, gradients: Any) -> Any:
        import tensorflow as tf

        return tf.einsum("nhwk,ntk->nthw", activations, gradients)


class GradCAMPlusPlus(ClassActivationMap):
    """Grad-CAM++: positive gradients, weighted so that every instance of a feature counts.

    alpha = g^2 / (2 g^2 + sum(A) g^3), weight = sum over places of alpha * relu(g). The paper's
    alpha depends on the scale of the logits, which is arbitrary; gradients are therefore divided
    by their largest value per image first, so that scaling the head changes nothing. Feature maps
    below zero (activations other than ReLU) count as absent in the sum.
    """

    name = "grad_cam_plus_plus"

    def _combine(self, activations: Any, gradients: Any) -> Any:
        import tensorflow as tf

        positive = _unit_scale(gradients, (2, 3, 4))
        total = tf.reduce_sum(tf.nn.relu(activations), axis=(1, 2))[:, None, None, None]
        weights = tf.reduce_sum(_alpha(positive, total) * positive, axis=(2, 3))
        return tf.einsum("nhwk,ntk->nthw", activations, weights)

    def _combine_uniform(self, activations: Any, gradients: Any) -> Any:
        import tensorflow as tf

        positive = _unit_scale(gradients, (2,))
        places = tf.cast(tf.shape(activations)[1] * tf.shape(activations)[2], tf.float32)
        total = tf.reduce_sum(tf.nn.relu(activations), axis=(1, 2))[:, None]
        weights = places * _alpha(positive, total) * positive
        return tf.einsum("nhwk,ntk->nthw", activations, weights)


def _unit_scale(gradients: Any, axes: tuple[int, ...]) -> Any:
    """Return positive gradients divided by the largest of each image and target."""
    import tensorflow as tf

    positive = tf.nn.relu(gradients)
    largest = tf.reduce_max(positive, axis=axes, keepdims=True)
    return tf.math.divide_no_nan(positive, largest)


def _alpha(gradients: Any, total: Any) -> Any:
    """Return g^2 / (2 g^2 + total g^3), zero where the gradient is zero."""
    import tensorflow as tf

    square = gradients**2
    return tf.math.divide_no_nan(square, 2 * square + total * gradients * square)


class LayerCAM(ClassActivationMap):
    """Layer-CAM: every place weighted by its own positive gradient; sharp at shallow layers."""

    name = "layer_cam"

    def _combine(self, activations: Any, gradients: Any) -> Any:
        import tensorflow as tf

        return tf.einsum("nhwk,nthwk->nthw", activations, tf.nn.relu(gradients))

    def _combine_uniform(self, activations: Any, gradients: Any) -> Any:
        import tensorflow as tf

        return tf.einsum("nhwk,ntk->nthw", activations, tf.nn.relu(gradients))


class HiResCAM(ClassActivationMap):
    """HiRes-CAM: activation times gradient, place by place; faithful to the output's gradient."""

    name = "hires_cam"

    def _combine(self, activations: Any, gradients: Any) -> Any:
        import tensorflow as tf

        return tf.einsum("nhwk,nthwk->nthw", activations, gradients)

    def _combine_uniform(self, activations: Any, gradients: Any) -> Any:
        import tensorflow as tf

        return tf.einsum("nhwk,ntk->nthw", activations, gradients)

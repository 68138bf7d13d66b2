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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.errors import ExplanationError, UsageError
from dermlens.explainers.attribution import Attribution
from dermlens.explainers.base import Explainer, Request
from dermlens.explainers.layers import find_features
from dermlens.explainers.output import Output
from dermlens.explainers.registration import Drawing, Registration, registered
from dermlens.explainers.target import PREDICTED, PREDICTED_POSITION
from dermlens.explainers.tracing import Traced, traced_once

FORMS = ("auto", "closed", "tape")
_SETTINGS = {
    "classifier",
    "model",
    "network",
    "classes",
    "features",
    "form",
    "drawing",
    "_functions",
}
"""Attributes of every class activation map."""


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
        self._functions: dict[tuple[str, bool, bool], Traced] = {}

    @property
    def traces(self) -> int:
        """How often the maps were traced."""
        return sum(one.traces for one in self._functions.values())

    @abstractmethod
    def _weights(self, activations: Any, gradients: Any) -> Any:
        """Return weights of activations (n, h, w, K) from gradients (n, T, h, w, K).

        In the closed form gradients are equal at every place, (n, T, 1, 1, K); weights may be too.
        """

    def closed(self, output: Output) -> bool:
        """Tell whether the closed form is used for an output."""
        linear = output.weights(len(self.classes)) is not None
        possible = self.features.dense is not None and linear
        if self.form == "closed" and not possible:
            raise ExplanationError(f"The closed form cannot explain a {output.name}. Use 'tape'.")
        return possible and self.form != "tape"

    def _parts(self, asked: Request) -> Iterator[ActivationAttribution]:
        closed = self.closed(asked.output)
        sides = self.drawing.weights(asked.images.shape[1:3])[0]
        for batch in asked.batches():
            wanted = self._wanted(batch)
            if closed:
                function = self._function(asked.output, True, asked.every)
                logits, drawn = function(batch.images, wanted[0], *sides)
                self.network.cost.pay(len(batch.images))
            else:
                logits, drawn = self._taped(batch, wanted, sides)
            logits = np.asarray(logits)
            goals = batch.goals(logits)
            known = np.take_along_axis(np.asarray(asked.output.values(logits)), goals, axis=1)
            asked.finished(len(goals))
            yield self._part(asked, drawn, goals, known, layer=self.features.layer)

    def _wanted(self, batch: Request) -> np.ndarray:
        """Return the positions to explain one after the other, int32 (T, n).

        Where it can, the graph finds the most probable class itself, -1.
        """
        predicted = isinstance(batch.targets, str) and batch.targets == PREDICTED
        if batch.targets is None or predicted:
            return np.full((1, len(batch.images)), PREDICTED_POSITION, np.int32)
        return batch.goals(self._answers(batch)).T

    def _taped(
        self, batch: Request, wanted: np.ndarray, sides: tuple[np.ndarray, np.ndarray]
    ) -> tuple[Any, np.ndarray]:
        function = self._function(batch.output, False, batch.every)
        drawn, logits = [], None
        for goals in wanted:
            logits, part = function(batch.images, goals, *sides)
            drawn.append(np.asarray(part))
            self.network.cost.pay(len(goals), len(goals))
        return logits, np.concatenate(drawn, axis=1)

    def _function(self, output: Output, closed: bool, every: bool) -> Any:
        import tensorflow as tf

        key = (repr(output), closed and every, closed)
        if key not in self._functions:

            def drawn(images: Any, index: Any, rows: Any, columns: Any) -> Any:
                index = None if closed and every else index
                return self.graph(images, index, (rows, columns), output)[1:]

            pixels = tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32)
            side = tf.TensorSpec((None, None), tf.float32)
            signature = [pixels, tf.TensorSpec((None,), tf.int32), side, side]
            # A class with settings of its own keeps its functions to itself.
            owner = self.model if set(vars(self)) <= _SETTINGS else self
            whole = (type(self), self.features.step, self.form, *key)
            self._functions[key] = traced_once(owner, whole, drawn, signature)
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
        import tensorflow as tf

        body = self._closed_gradients if self.closed(output) else self._taped_gradients
        activations, logits, gradients = body(images, index, output)
        activations = tf.cast(activations, tf.float32)
        weights = self._weights(activations, gradients)
        if weights.shape[2:4] == (1, 1):
            maps = tf.einsum("nhwk,ntk->nthw", activations, weights[:, :, 0, 0])
        else:
            maps = tf.einsum("nhwk,nthwk->nthw", activations, weights)
        return activations, logits, registered(self._rectified(maps), *sides)

    def _rectified(self, maps: Any) -> Any:
        """Keep what speaks for the target, before the map is drawn at the image's size."""
        import tensorflow as tf

        return tf.nn.relu(maps)

    def _closed_gradients(self, images: Any, index: Any, output: Output) -> tuple[Any, Any, Any]:
        """Return activations, logits and gradients (n, T, 1, 1, K) without a backward pass."""
        import tensorflow as tf

        dense: Any = self.features.dense
        mixing = tf.constant(output.weights(len(self.classes)))
        activations, logits = self.features.run(images)
        kernel = tf.cast(dense.kernel.value, tf.float32)
        places = tf.cast(tf.shape(activations)[1] * tf.shape(activations)[2], tf.float32)
        weights = tf.transpose(tf.matmul(kernel, mixing)) / places
        if index is None:
            shape = (tf.shape(images)[0], *weights.shape)
            gradients = tf.broadcast_to(weights[None], shape)
        else:
            gradients = tf.gather(weights, most_probable_or(index, logits))[:, None]
        return activations, logits, gradients[:, :, None, None]

    def _taped_gradients(self, images: Any, index: Any, output: Output) -> tuple[Any, Any, Any]:
        """Return activations, logits and gradients (n, T, h, w, K)."""
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
        return activations, logits, tf.cast(tf.stack(found, axis=1), tf.float32)


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

    def _weights(self, activations: Any, gradients: Any) -> Any:
        import tensorflow as tf

        return tf.reduce_mean(gradients, axis=(2, 3), keepdims=True)


class GradCAMPlusPlus(ClassActivationMap):
    """Grad-CAM++: positive gradients, weighted so that every instance of a feature counts.

    alpha = g^2 / (2 g^2 + sum(A) g^3), weight = sum over places of alpha * relu(g). The paper's
    alpha depends on the scale of the logits, which is arbitrary; gradients are therefore divided
    by their largest value per image first, so that scaling the head changes nothing. Feature maps
    below zero (activations other than ReLU) count as absent in the sum.
    """

    name = "grad_cam_plus_plus"

    def _weights(self, activations: Any, gradients: Any) -> Any:
        import tensorflow as tf

        positive = tf.nn.relu(gradients)
        largest = tf.reduce_max(positive, axis=(2, 3, 4), keepdims=True)
        positive = tf.math.divide_no_nan(positive, largest)
        total = tf.reduce_sum(tf.nn.relu(activations), axis=(1, 2))[:, None, None, None]
        square = positive**2
        alpha = tf.math.divide_no_nan(square, 2 * square + total * positive * square)
        # A gradient that is equal at every place counts at each.
        places, given = (tf.reduce_prod(tf.shape(a)[-3:-1]) for a in (activations, gradients))
        times = tf.cast(places // given, tf.float32)
        return tf.reduce_sum(times * alpha * positive, axis=(2, 3), keepdims=True)


class LayerCAM(ClassActivationMap):
    """Layer-CAM: every place weighted by its own positive gradient; sharp at shallow layers."""

    name = "layer_cam"

    def _weights(self, activations: Any, gradients: Any) -> Any:
        import tensorflow as tf

        return tf.nn.relu(gradients)


class HiResCAM(ClassActivationMap):
    """HiRes-CAM: activation times gradient, place by place; faithful to the output's gradient."""

    name = "hires_cam"

    def _weights(self, activations: Any, gradients: Any) -> Any:
        return gradients

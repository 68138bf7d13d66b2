"""The exported computation in TensorFlow operations alone: fit, decode, classify, explain.

Everything here is traced into a graph, so that it runs where neither this package nor Keras is
installed.
"""

from functools import partial
from typing import Any

import numpy as np

from dermlens.errors import ExplanationError, ModelError
from dermlens.explainers.base import call
from dermlens.explainers.baselines import border_color_in_graph
from dermlens.explainers.grad_cam import GradCAM, most_probable_or
from dermlens.explainers.gradients import gradients_between
from dermlens.explainers.integrated_gradients import LEAST_CHANGE, path_sum, quadrature
from dermlens.explainers.output import Logit, Probability
from dermlens.model.image_classifier import ImageClassifier
from dermlens.model.lite import frozen_function

IG_STEPS = 16
"""Evaluations on the path of the exported Integrated Gradients."""


def fit_in_graph(images: Any, size: tuple[int, int]) -> Any:
    """Scale and center-crop images as ``data.images.fit_image`` does.

    The same bicubic kernel, antialiased, the width first and rounded to whole levels between the
    two passes, as Pillow works.
    """
    import tensorflow as tf

    given = tf.shape(images)[1:3]
    sides = tf.cast(given, tf.float32)
    wanted = tf.constant(size, tf.float32)
    scale = tf.reduce_max(wanted / sides)
    offset = (wanted - sides * scale) / 2.0

    def one_way(pixels: Any, shape: Any, scales: Any, offsets: Any) -> Any:
        moved = tf.raw_ops.ScaleAndTranslate(
            images=pixels,
            size=shape,
            scale=scales,
            translation=offsets,
            kernel_type="keyscubic",
            antialias=True,
        )
        return tf.clip_by_value(tf.floor(moved + 0.5), 0.0, 255.0)

    pixels = tf.cast(images, tf.float32)
    across = tf.stack([given[0], size[1]])
    pixels = one_way(pixels, across, tf.stack([1.0, scale]), tf.stack([0.0, offset[1]]))
    fitted = one_way(pixels, tf.constant(size), tf.stack([scale, 1.0]), tf.stack([offset[0], 0.0]))
    return tf.ensure_shape(fitted, (None, *size, 3))


def decode_in_graph(content: Any, size: tuple[int, int]) -> Any:
    """Decode JPEG and PNG files and fit them.

    Gray and palette images become RGB and transparency is laid over white. The orientation that
    a camera notes in EXIF is not applied: TensorFlow does not read it.
    """
    import tensorflow as tf

    def jpeg(data: Any) -> Any:
        pixels = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        return tf.cast(pixels, tf.float32)

    def png(data: Any) -> Any:
        pixels = tf.cast(tf.io.decode_png(data, channels=4), tf.float32)
        alpha = pixels[..., 3:] / 255.0
        return tf.floor(pixels[..., :3] * alpha + 255.0 * (1.0 - alpha) + 0.5)

    def one(data: Any) -> Any:
        pixels = tf.cond(tf.io.is_jpeg(data), lambda: jpeg(data), lambda: png(data))
        return fit_in_graph(tf.ensure_shape(pixels, (None, None, 3))[None], size)[0]

    signature = tf.TensorSpec((*size, 3), tf.float32)
    return tf.map_fn(one, content, fn_output_signature=signature)


class ClassifierGraph:
    """Classification, Grad-CAM and Integrated Gradients as functions of TensorFlow operations."""

    def __init__(self, bundle: ImageClassifier) -> None:
        self.bundle, self.size = bundle, bundle.input_size
        try:
            self.cam = GradCAM(bundle)
        except ExplanationError as error:
            raise ModelError(f"This model cannot be exported. {error}") from None
        self.sides = self.cam.drawing.weights(bundle.input_size)[0]
        if bundle.model.dtype_policy.compute_dtype != "float32":
            raise ModelError(
                "A mixed-precision model cannot be exported. Load the bundle with load_bundle, "
                "which builds it in float32."
            )

    def outputs(self, fitted: Any) -> dict[str, Any]:
        """Return everything that follows from the logits of fitted images (N, H, W, 3), by name."""
        import tensorflow as tf

        logits = tf.cast(self.bundle.model(fitted, training=False), tf.float32)
        classes = self.bundle.classes
        names = [label.name for label in self.bundle.labels.labels]
        predicted = tf.argmax(logits, axis=1, output_type=tf.int32)
        count = tf.shape(logits)[0]
        return {
            "logits": logits,
            "probabilities": self.probabilities(logits),
            "classes": tf.tile(tf.constant(classes)[None], (count, 1)),
            "class_index": predicted,
            "class_code": tf.gather(tf.constant(classes), predicted),
            "class_name": tf.gather(tf.constant(names), predicted),
            **self.sets_and_flags(logits),
        }

    def sets_and_flags(self, logits: Any) -> dict[str, Any]:
        """Return ``prediction_set``, bool (N, C), if the bundle carries sets, and the flags, (N,).

        Flags are named ``flag_<operating point>``.
        """
        import tensorflow as tf

        bundle, calibration = self.bundle, self.bundle.calibration
        probabilities, found = self.probabilities(logits), {}
        if calibration.prediction_sets is not None:
            # Rounded down to float32, so that no class is lost to the rounding of its threshold.
            exact = calibration.prediction_sets.thresholds()
            limits = np.nextafter(exact.astype(np.float32), np.float32(-1))
            first = tf.reduce_max(probabilities, axis=1, keepdims=True)
            found["prediction_set"] = (probabilities >= limits) | (probabilities >= first)
        for name, point in calibration.operating_points.items():
            positions = [bundle.classes.index(code) for code in point.codes]
            score = tf.reduce_sum(tf.gather(probabilities, positions, axis=1), axis=1)
            found[f"flag_{name}"] = score >= point.threshold
        return found

    def probabilities(self, logits: Any) -> Any:
        """Return calibrated probabilities (N, C)."""
        calibration = self.bundle.calibration
        return Probability(link=calibration.link).values(logits / calibration.temperature)

    def all_maps_and_features(self, fitted: Any) -> tuple[Any, Any, Any]:
        """Return logits (N, C), Grad-CAM of all classes (N, C, H, W), pooled features (N, D)."""
        import tensorflow as tf

        activations, logits, maps = self.cam.graph(fitted, None, self.sides, Logit())
        return logits, maps, tf.reduce_mean(activations, axis=(1, 2))

    def explain(self, fitted: Any, targets: Any) -> dict[str, Any]:
        """Return the Grad-CAM maps of one class each."""
        _, logits, maps = self.cam.graph(fitted, targets, self.sides, Logit())
        return {"maps": maps[:, 0], **self._explained(logits, targets)}

    def integrated_gradients(
        self, fitted: Any, targets: Any, n_steps: int = IG_STEPS
    ) -> dict[str, Any]:
        """Return Integrated Gradients of the logit of one class each, from the border's color.

        As ``explain.IntegratedGradients`` with ``tolerance=None``.
        """
        import tensorflow as tf

        places, shares = (tf.constant(values, tf.float32) for values in quadrature(n_steps))
        model = self.bundle.model
        explained = self._explained(call(model, fitted), targets)

        def one(given: Any) -> Any:
            image, wanted = given
            plain = tf.broadcast_to(border_color_in_graph(image, self.size), tf.shape(image))
            goals = tf.fill([n_steps], wanted)
            slopes, _ = gradients_between(model, Logit(), plain, image, places, goals)
            mean = tf.tensordot(shares, slopes, 1)
            return path_sum(image, plain, mean), call(model, plain[None])[0, wanted]

        signature = (tf.TensorSpec(self.size, tf.float32), tf.TensorSpec((), tf.float32))
        given = (fitted, explained["target"])
        maps, lowest = tf.map_fn(one, given, fn_output_signature=signature)
        change = explained["output"] - lowest
        missing = tf.abs(tf.reduce_sum(maps, axis=(1, 2)) - change)
        delta = missing / tf.maximum(tf.abs(change), LEAST_CHANGE)
        return {"maps": maps, "baseline_output": lowest, "convergence_delta": delta, **explained}

    def _explained(self, logits: Any, targets: Any) -> dict[str, Any]:
        """Return what is said of the class that was explained, whatever the method."""
        import tensorflow as tf

        goal = most_probable_or(targets, logits)
        return {
            "output": tf.gather(logits, goal, axis=1, batch_dims=1),
            "target": goal,
            "target_code": tf.gather(tf.constant(self.bundle.classes), goal),
            "probabilities": self.probabilities(logits),
        }


def serving_module(bundle: ImageClassifier) -> tuple[Any, dict[str, Any]]:
    """Return the ``tf.Module`` to save and its named signatures."""
    import tensorflow as tf

    graph = ClassifierGraph(bundle)
    size = graph.size
    whole = tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")
    real = tf.TensorSpec((None, None, None, 3), tf.float32, name="images")
    files = tf.TensorSpec((None,), tf.string, name="content")
    goals = tf.TensorSpec((None,), tf.int32, name="targets")
    module = tf.Module(name="dermlens")
    # Keras keeps its variables in wrappers of its own; the module must own the bare ones.
    module.weights = [variable.value for variable in bundle.model.variables]

    compiled = partial(tf.function, autograph=False)
    module.predict = compiled(lambda images: graph.outputs(fit_in_graph(images, size)))
    module.explain_grad_cam = compiled(
        lambda images, targets: graph.explain(fit_in_graph(images, size), targets)
    )
    module.predict_bytes = compiled(lambda content: graph.outputs(decode_in_graph(content, size)))
    module.explain_bytes = compiled(
        lambda content, targets: graph.explain(decode_in_graph(content, size), targets)
    )
    module.explain_integrated_gradients = compiled(
        lambda images, targets: graph.integrated_gradients(fit_in_graph(images, size), targets)
    )
    module.integrate_bytes = compiled(
        lambda content, targets: graph.integrated_gradients(decode_in_graph(content, size), targets)
    )
    integrated = module.explain_integrated_gradients
    signatures = {
        "serving_default": module.predict.get_concrete_function(whole),
        "serving_float": module.predict.get_concrete_function(real),
        "serving_bytes": module.predict_bytes.get_concrete_function(files),
        "explain_grad_cam": module.explain_grad_cam.get_concrete_function(whole, goals),
        "explain_grad_cam_bytes": module.explain_bytes.get_concrete_function(files, goals),
        "explain_integrated_gradients": integrated.get_concrete_function(whole, goals),
        "explain_integrated_gradients_bytes": module.integrate_bytes.get_concrete_function(
            files, goals
        ),
    }
    module.explain_grad_cam.get_concrete_function(real, goals)
    return module, signatures


def mobile_outputs(bundle: ImageClassifier) -> list[str]:
    """Return the names of what ``frozen_mobile_function`` gives."""
    sets = [] if bundle.calibration.prediction_sets is None else ["prediction_set"]
    flags = [f"flag_{name}" for name in bundle.calibration.operating_points]
    return ["logits", "probabilities", "maps", *sets, *flags]


def frozen_mobile_function(bundle: ImageClassifier) -> Any:
    """Return a function without variables for one image at the model's size.

    From float32 (1, H, W, 3), 0..255, to ``logits`` and ``probabilities`` (1, C), ``maps``
    (1, C, H, W), the Grad-CAM maps of all classes, ``prediction_set``, bool (1, C), if the bundle
    carries sets, and ``flag_<operating point>``, bool (1,).
    """
    graph = ClassifierGraph(bundle)

    def run(image: Any) -> dict[str, Any]:
        logits, maps, _ = graph.all_maps_and_features(image)
        return {
            "logits": logits,
            "probabilities": graph.probabilities(logits),
            "maps": maps,
            **graph.sets_and_flags(logits),
        }

    return frozen_function(run, graph.size)

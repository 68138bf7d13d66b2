"""Converting a network to LiteRT, and running what comes out.

Used for artifacts that are handed out (``serve.export``) and for the int8 copy of a bundle that
methods which only look at scores may evaluate instead of the Keras model (``model.int8_copy``).
"""

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.errors import ModelError, UsageError
from dermlens.extras import optional
from dermlens.quiet import no_standard_error

KINDS: tuple[str, ...] = ("float32", "float16", "int8", "dynamic")


def frozen_function(run: Callable[[Any], dict[str, Any]], size: tuple[int, int]) -> Any:
    """Return ``run`` as a concrete function without variables, from one image ``image``.

    Args:
        run: From a float32 tensor (1, H, W, 3) to named tensors, made of TensorFlow operations;
            the function returns them in the order of their sorted names.
        size: (H, W).
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    image = tf.TensorSpec((1, *size, 3), tf.float32, name="image")
    traced = tf.function(run, autograph=False).get_concrete_function(image)
    return convert_variables_to_constants_v2(traced)


def to_litert(
    frozen: Any,
    outputs: Sequence[str],
    kind: str = "float32",
    images: Sequence[np.ndarray] = (),
    *,
    name: str = "The network",
    instead: str = "Use the Keras model.",
) -> bytes:
    """Return a ``.tflite`` file of a frozen function of one image, with builtin operations only.

    Converting variables directly can give NaN without a word; a frozen function has none.

    Args:
        frozen: From ``frozen_function``.
        outputs: Names of its results, sorted.
        kind: ``"float32"``; ``"float16"``: weights in half precision; ``"int8"``: weights and
            activations in whole numbers, images and results float32; ``"dynamic"``: weights in
            whole numbers, activations rounded to whole numbers while it runs, each image by its
            own range, results of every layer float32.
        images: For ``"int8"``: (H, W, 3) each, RGB 0..255 at the network's size, which set the
            ranges of the whole numbers.
        name: What is converted, for the error message.
        instead: What to do where it cannot be converted, for the error message.

    Raises:
        ModelError: If the network cannot be converted.
        UsageError: If the kind is unknown, or it is ``"int8"`` and there are no images.
    """
    import tensorflow as tf

    if kind not in KINDS:
        raise UsageError(f"Unknown kind {kind!r} of LiteRT file. Use one of: {', '.join(KINDS)}.")
    if kind == "int8" and len(images) == 0:
        raise UsageError("An int8 artifact needs representative images. Give some.")
    module = tf.Module()
    module.run = tf.function(
        lambda image: dict(zip(sorted(outputs), frozen(image), strict=True)),
        input_signature=[tf.TensorSpec(frozen.inputs[0].shape, tf.float32, name="image")],
        autograph=False,
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.run.get_concrete_function()], module
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        # Images come and answers leave as float32; everything between is whole numbers.
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: (
            {"image": np.asarray(image, np.float32)[None]} for image in images
        )
    try:
        return converter.convert()
    except Exception as error:
        raise ModelError(
            f"{name} cannot be converted to LiteRT {kind} ({str(error).splitlines()[0]}). {instead}"
        ) from error


class LiteClassifier:
    """A converted classifier: images to logits, each image by itself.

    ``path`` is a ``.tflite`` file from ``to_litert`` with one output, the logits; ``workers``
    images are evaluated at the same time, default one per processor core. Raises ModelError if the
    file cannot be read.
    """

    def __init__(self, path: Path, *, workers: int | None = None) -> None:
        Interpreter = optional("ai_edge_litert.interpreter").Interpreter
        count = workers or available_cores()
        try:
            # Images side by side, one thread each: threads that share an image wait for each other
            # after every layer, and a larger batch gains nothing over that.
            with no_standard_error():
                found = [Interpreter(model_path=str(path), num_threads=1) for _ in range(count)]
                for one in found:
                    one.allocate_tensors()
                self._runners = [one.get_signature_runner() for one in found]
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{path} is no LiteRT file that runs here ({error}).") from error
        self._pool = ThreadPoolExecutor(count) if count > 1 else None

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return float32 logits (n, C) of images (n, H, W, 3), RGB 0..255."""
        images = np.ascontiguousarray(images, np.float32)
        count = len(self._runners)
        classes = int(self._runners[0].get_output_details()["logits"]["shape"][-1])
        results = np.empty((len(images), classes), np.float32)

        def fill(lane: int) -> None:
            for position in range(lane, len(images), count):
                found = self._runners[lane](image=images[position : position + 1])
                results[position] = found["logits"][0]

        for _ in (map if self._pool is None else self._pool.map)(fill, range(count)):
            pass
        return results


def weights_checksum(model: Any) -> int:
    """Return a quick checksum of a model's weights as they are now."""
    checksum = 0
    for weight in model.get_weights():
        checksum = zlib.adler32(np.ascontiguousarray(weight).data, checksum)
    return checksum


def available_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1

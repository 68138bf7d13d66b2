"""Writing a bundle as artifacts that need neither this package nor Keras.

::

    OUT/saved_model/     TensorFlow SavedModel with named signatures, and metadata.json
    OUT/model.tflite     LiteRT: probabilities and the Grad-CAM maps of all classes
    OUT/model.json       metadata of the file above
    OUT/parity.json      measured agreement of each artifact with the Keras model
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermlens import __version__
from dermlens.diagnoses import by_code
from dermlens.errors import ModelError, UsageError
from dermlens.files import folder_beside, write_json, written_beside
from dermlens.model.bundle import Bundle
from dermlens.serve.parity import (
    Parity,
    drawn_images,
    measure,
    saved_model_runner,
    tflite_runner,
)

FORMATS: tuple[str, ...] = ("saved_model", "tflite")
_OUTPUTS = ("logits", "maps", "probabilities")


def metadata(bundle: Bundle, artifact: str) -> dict[str, Any]:
    """Return what a user of an artifact needs to know, as JSON types."""
    calibration = bundle.calibration.to_json()
    classes = [
        {"code": code, "name": by_code(code).name, "malignant": by_code(code).malignant}
        for code in bundle.classes
    ]
    return {
        "artifact": artifact,
        "dermlens_version": __version__,
        "input_size": list(bundle.input_size),
        "input": "RGB, 0..255, height x width; scaled and center-cropped, aspect ratio kept",
        **calibration,
        "classes": classes,
        "backbone": bundle.architecture.backbone,
        "explanation": "Grad-CAM of the logit, raw values, bilinear at the input's size",
        "data": bundle.facts["data"],
        "synthetic": bundle.synthetic,
        "license": bundle.facts.get("license", "MIT"),
        "note": "Research and education only, not a medical device.",
    }


def export_saved_model(
    bundle: Bundle, out: Path, images: Sequence[np.ndarray] | None = None
) -> Parity:
    """Write a SavedModel that predicts and explains, atomically.

    Signatures (all take batches and scale images themselves):

    * ``serving_default`` (``images`` uint8 (N, any, any, 3)), ``serving_float`` (the same in
      float32, 0..255) and ``serving_bytes`` (``content``: JPEG or PNG files, upright) give
      ``logits`` and ``probabilities`` (N, C), ``classes``, the decision of the stored rule as
      ``class_index``, ``class_code`` and ``class_name``, and ``flag_<operating point>``.
    * ``explain_grad_cam`` and ``explain_grad_cam_bytes`` also take ``targets`` int32 (N,), -1
      for the decision, and give ``maps`` (N, H, W) at the model's input size, ``score`` (the
      logit), ``target`` and ``target_code``.

    Args:
        bundle: Trained model.
        out: Folder to write; an older one is replaced.
        images: uint8 (H, W, 3) each, to measure the agreement on; default drawn ones.

    Returns:
        The measured agreement.

    Raises:
        ModelError: If the artifact is not finite or disagrees; then nothing is written.
    """
    import tensorflow as tf

    from dermlens.serve.export_graph import serving_module

    out = Path(out)
    if out.exists() and not (out / "saved_model.pb").is_file():
        raise UsageError(f"{out} exists and is no SavedModel. Choose another folder.")
    with folder_beside(out) as building:
        module, signatures = serving_module(bundle)
        tf.saved_model.save(module, str(building), signatures=signatures)
        write_json(building / "metadata.json", metadata(bundle, "saved_model"))
        run = saved_model_runner(building)
        return measure(bundle, _compared(images), run, building, fits_itself=True)


def export_tflite(bundle: Bundle, out: Path, images: Sequence[np.ndarray] | None = None) -> Parity:
    """Write a float32 LiteRT file that predicts and explains, and its metadata beside it.

    It takes ``image`` float32 (1, H, W, 3), 0..255, at the model's size, and gives ``logits`` and
    ``probabilities`` (1, C) and ``maps`` (1, C, H, W), the Grad-CAM maps of all classes, with
    builtin operations only.

    Args:
        bundle: Trained model.
        out: File to write, ``*.tflite``; the metadata is named ``*.json``.
        images: uint8 (H, W, 3) each, to measure the agreement on; default drawn ones.

    Returns:
        The measured agreement.

    Raises:
        ModelError: If the model cannot be converted, or the artifact is not finite or disagrees;
            then nothing is written.
    """
    out = Path(out)
    with written_beside(out) as building:
        building.write_bytes(_converted(bundle))
        parity = measure(
            bundle, _compared(images), tflite_runner(building), building, fits_itself=False
        )
        write_json(out.with_suffix(".json"), metadata(bundle, "tflite"))
    return parity


def _converted(bundle: Bundle) -> bytes:
    import tensorflow as tf

    from dermlens.serve.export_graph import frozen_mobile_function

    # Converting variables directly can give NaN without a word; a frozen function has none.
    frozen = frozen_mobile_function(bundle)
    module = tf.Module()
    image = tf.TensorSpec((1, *bundle.input_size, 3), tf.float32, name="image")

    @tf.function(input_signature=[image])
    def run(image: Any) -> dict[str, Any]:
        return dict(zip(_OUTPUTS, frozen(image), strict=True))

    module.run = run
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [run.get_concrete_function()], module
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        return converter.convert()
    except Exception as error:
        raise ModelError(
            f"{bundle.architecture.backbone} cannot be converted to LiteRT "
            f"({str(error).splitlines()[0]}). Use --formats saved_model."
        ) from error


def export(
    bundle: Bundle,
    out: Path,
    formats: Sequence[str] = FORMATS,
    images: Sequence[np.ndarray] | None = None,
) -> dict[str, Path]:
    """Write a bundle in several formats, and ``parity.json``.

    Args:
        bundle: Trained model.
        out: Folder to write into.
        formats: Some of ``FORMATS``.
        images: uint8 (H, W, 3) each, to measure the agreement on; default drawn ones.

    Returns:
        Path of each artifact by format, and of ``parity``.

    Raises:
        UsageError: If a format is unknown or none is given.
        ModelError: If an artifact disagrees with the Keras model; it is not kept.
    """
    wanted = list(dict.fromkeys(formats))
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        problem = f"Unknown format {unknown[0]!r}." if unknown else "No format given."
        raise UsageError(f"{problem} Use some of: {', '.join(FORMATS)}.")
    out, compared = Path(out), _compared(images)
    paths: dict[str, Path] = {}
    measured: dict[str, Any] = {}
    for name in wanted:
        if name == "saved_model":
            paths[name] = out / "saved_model"
            parity = export_saved_model(bundle, paths[name], compared)
        else:
            paths[name] = out / "model.tflite"
            parity = export_tflite(bundle, paths[name], compared)
        measured[name] = parity.to_json()
    report = {
        "compared_on": "drawn images" if images is None else "given images",
        "artifacts": measured,
    }
    paths["parity"] = write_json(out / "parity.json", report)
    return paths


def _compared(images: Sequence[np.ndarray] | None) -> Sequence[np.ndarray]:
    return drawn_images() if images is None else images

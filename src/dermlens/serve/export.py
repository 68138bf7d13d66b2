"""Writing a bundle as artifacts that need neither this package nor Keras.

::

    OUT/saved_model/          TensorFlow SavedModel with named signatures, and metadata.json
    OUT/model.tflite          LiteRT float32: probabilities and the Grad-CAM maps of all classes
    OUT/model_float16.tflite  the same with weights in half precision: half the size
    OUT/model_dynamic.tflite  weights in whole numbers, activations by each image's own range
    OUT/model_int8.tflite     all in whole numbers, ranges fixed beforehand by training images
    OUT/model*.json           metadata of each file above
    OUT/parity.json           measured agreement of each artifact with the Keras model
    OUT/parity.md             the same as a table
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermlens import __version__
from dermlens.data import manifest
from dermlens.data.images import fit_image, load_image
from dermlens.errors import UsageError
from dermlens.files import sha256_of_file, write_json, write_text, written_beside
from dermlens.folders import Kind, folder_beside, require_replaceable
from dermlens.locks import folder_lock
from dermlens.model.bundle import Bundle
from dermlens.model.bundle_description import write_description
from dermlens.model.lite import to_litert
from dermlens.report.html import NOTICE
from dermlens.serve.parity import (
    Reference,
    drawn_images,
    measure,
    parity_markdown,
    saved_model_runner,
    tflite_runner,
)
from dermlens.serve.prediction import find_images

FORMATS: tuple[str, ...] = ("saved_model", "float32", "float16", "dynamic", "int8")
GROUPS: dict[str, tuple[str, ...]] = {"tflite": ("float32", "float16", "dynamic")}
"""Names that stand for several formats."""
_FILES = {
    "saved_model": "saved_model",
    "float32": "model.tflite",
    "float16": "model_float16.tflite",
    "dynamic": "model_dynamic.tflite",
    "int8": "model_int8.tflite",
}
REPRESENTATIVE = 200
"""Training images that set the ranges of whole numbers."""
_BYTES_PER_PARAMETER = dict(zip(FORMATS, (4.2, 4.1, 2.1, 1.1, 1.1), strict=True))
_SAVED_MODEL = Kind(
    "a SavedModel of dermlens",
    "saved_model.pb",
    lambda _: (
        *("saved_model.pb", "fingerprint.pb", "metadata.json", "variables/variables.index"),
        "variables/variables.data-00000-of-00001",
    ),
)


@dataclass(frozen=True)
class ExportImages:
    """Images an export is measured on, uint8 (H, W, 3) of any size, and their classes if known.

    ``representative`` ones, of training, set the ranges of whole numbers.
    """

    compared: Sequence[np.ndarray]
    labels: np.ndarray | None
    representative: Sequence[np.ndarray]
    source: str


def images_of_data_set(data: Path, limit: int, *, seed: int = 0) -> ExportImages:
    """Return test images with their diagnoses to compare on, and training images for ranges."""
    table = manifest.read_manifest(data)
    test = manifest.sample_in_proportion(manifest.select_split(table, "test"), limit, seed)
    train = manifest.sample_in_proportion(
        manifest.select_split(table, "train"), REPRESENTATIVE, seed
    )
    return ExportImages(
        [load_image(Path(data) / path) for path in test.path],
        manifest.class_indices(test, manifest.data_labels(data)),
        [load_image(Path(data) / path) for path in train.path],
        f"{len(test)} test images",
    )


def export_images(
    data: Path | None = None, folder: Path | None = None, limit: int = 300
) -> ExportImages:
    """Return the images of a data set, of a folder, or drawn ones."""
    if data is not None:
        return images_of_data_set(data, limit)
    if folder is not None:
        given = [load_image(path) for path in find_images([folder])[:limit]]
        return ExportImages(given, None, given, f"{len(given)} given images")
    return ExportImages(drawn_images(), None, drawn_images(28, seed=500), "drawn images")


def metadata(bundle: Bundle, artifact: str) -> dict[str, Any]:
    """Return what a user of an artifact needs to know, as JSON types."""
    return {
        "artifact": artifact,
        "model": bundle.label,
        "dermlens_version": __version__,
        "input_size": list(bundle.input_size),
        "input": "RGB, 0..255, height x width; scaled and center-cropped, aspect ratio kept",
        **bundle.calibration.to_json(),
        "classes": [
            {"code": label.code, "name": label.name, "malignant": label.malignant}
            for label in bundle.labels.labels
        ],
        "calibrated": bundle.calibrated,
        "backbone": bundle.architecture.backbone,
        "explanation": "Grad-CAM of the logit, raw values, cells drawn where the network looks",
        "data": bundle.facts["data"],
        "synthetic": bundle.synthetic,
        "license": bundle.facts.get("license", "MIT"),
        "note": NOTICE,
    }


def write_metadata(path: Path, facts: dict[str, Any], artifact: Path, name: str = "") -> None:
    """Write what is known of an artifact, with checksums of its files and one over all of it."""
    files = {name: artifact}
    if artifact.is_dir():
        inside = sorted(file for file in artifact.rglob("*") if file.is_file())
        files = {file.relative_to(artifact).as_posix(): file for file in inside}
    sums = {name: sha256_of_file(file) for name, file in files.items()}
    write_description(path, {**facts, "sha256": sums})


def export_saved_model(out: Path, reference: Reference) -> dict[str, Any]:
    """Write a SavedModel that predicts and explains, atomically, and return its agreement.

    Its signatures, which take batches and scale images themselves, are listed in
    ``docs/deployment.md``.
    """
    import tensorflow as tf

    from dermlens.serve.export_graph import serving_module

    with folder_beside(out, _SAVED_MODEL) as building:
        module, signatures = serving_module(reference.bundle)
        tf.saved_model.save(module, str(building), signatures=signatures)
        facts = metadata(reference.bundle, "saved_model")
        write_metadata(building / "metadata.json", facts, building)
        run, integrate = saved_model_runner(building)
        return measure(reference, run, building, "saved_model", integrate=integrate)


def export_tflite(
    out: Path, reference: Reference, kind: str, representative: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Write a LiteRT file that predicts and explains, and its metadata; return its agreement.

    It takes ``image`` float32 (1, H, W, 3), 0..255, at the model's size, and gives ``logits`` and
    ``probabilities`` (1, C), ``maps`` (1, C, H, W), the Grad-CAM maps of all classes,
    ``prediction_set`` bool (1, C) where the bundle carries sets, and ``flag_<operating point>``,
    with builtin operations only.
    """
    from PIL import Image

    from dermlens.serve.export_graph import mobile_outputs

    bundle, ranging = reference.bundle, representative if kind == "int8" else ()
    with written_beside(out) as building:
        converted = to_litert(
            reference.mobile,
            mobile_outputs(bundle),
            kind,
            [fit_image(Image.fromarray(image), bundle.input_size) for image in ranging],
            name=bundle.architecture.backbone,
            instead="Use --formats saved_model.",
        )
        building.write_bytes(converted)
        parity = measure(reference, tflite_runner(building), building, kind)
        facts = metadata(bundle, f"tflite {kind}")
        write_metadata(out.with_suffix(".json"), facts, building, name=out.name)
    return parity


def parse_formats(names: Sequence[str]) -> list[str]:
    """Return the formats that names stand for, each once.

    Example:
        >>> parse_formats(["tflite", "float16"])
        ['float32', 'float16', 'dynamic']
    """
    wanted = [f for name in names for f in GROUPS.get(name, (name,))]
    unknown = [name for name in wanted if name not in FORMATS]
    if unknown or not wanted:
        problem = f"Unknown format {unknown[0]!r}." if unknown else "No format given."
        raise UsageError(f"{problem} Use some of: {', '.join((*FORMATS, *GROUPS))}.")
    return list(dict.fromkeys(wanted))


def export(
    bundle: Bundle,
    out: Path,
    formats: Sequence[str] = ("saved_model", "tflite"),
    images: ExportImages | None = None,
) -> dict[str, Path]:
    """Write a bundle in several formats, and ``parity.json``; return the paths by format and name.

    Raises:
        UsageError: If a format is unknown or none is given, or the disk is too full.
        DataError: If ``out/saved_model`` exists and is anything else.
        ModelError: If an artifact disagrees with the Keras model; it is not kept.
    """
    out, wanted, measured = Path(out), parse_formats(formats), {}
    paths = {name: out / _FILES[name] for name in wanted}
    if "saved_model" in wanted:
        require_replaceable(paths["saved_model"], _SAVED_MODEL)
    _require_space(bundle, out, wanted)
    images = images or export_images()
    with folder_lock(out):
        reference = Reference(bundle, images.compared, images.labels)
        for name, path in paths.items():
            if name == "saved_model":
                measured[name] = export_saved_model(path, reference)
            else:
                measured[name] = export_tflite(path, reference, name, images.representative)
        report = {
            "compared_on": images.source,
            "balanced_accuracy": reference.balanced_accuracy(reference.probabilities),
            "artifacts": measured,
        }
        paths["parity"] = write_json(out / "parity.json", report)
        paths["table"] = write_text(out / "parity.md", parity_markdown(report))
    return paths


def _require_space(bundle: Bundle, out: Path, formats: Sequence[str]) -> None:
    """Refuse a disk that is too small before the long work starts."""
    parameters = bundle.model.count_params()
    needed = sum(int(parameters * _BYTES_PER_PARAMETER[name]) for name in formats)
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UsageError(
            f"The export needs about {needed / 1e6:.1f} MB, but only {free / 1e6:.1f} MB are free "
            f"in {there}. Free some space, choose another --out or fewer --formats."
        )

"""Models that dermlens has not built: reading their files, and making bundles of them."""

import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermlens.errors import DataError, ModelError
from dermlens.folders import folder_beside
from dermlens.labels import LabelSet
from dermlens.model.bundle_description import describe
from dermlens.model.calibration import Calibration, fit_calibration
from dermlens.model.classifier import Architecture
from dermlens.model.image_classifier import ImageClassifier

if TYPE_CHECKING:
    from dermlens.model.bundle import Bundle

ADOPTED_SETTINGS = ("value_range", "preprocessing", "output")
allowed_layers: list[str] = []
"""Custom layers that the user of the command line has allowed, as ``module:Name``."""


def load_keras_model(path: Path, custom: Sequence[str] = (), *, needed: Sequence[str] = ()) -> Any:
    """Load a ``.keras`` file in Keras' safe mode: no code from the file is run.

    Args:
        path: The file.
        custom: Layers and functions of the user's own, as ``module:Name``. Importing them runs
            their module, so they are never taken from a file.
        needed: Those that are known to be in it.

    Raises:
        ModelError: If the file is no such file, needs a layer that is not given, or holds code.
    """
    import keras

    path, given = Path(path), [*custom, *allowed_layers]
    if path.suffix != ".keras" or not path.is_file():
        raise ModelError(
            f"{path} is not a .keras file. Save the model with model.save('model.keras'); older "
            "formats can hold code, and are not read."
        )
    missing = [name for name in needed if name not in given]
    if missing:
        raise ModelError(
            f"{path} holds layers of its author's own. If you trust that code, name it: --custom "
            f"{missing[0]} before the command, or custom=[{missing[0]!r}]."
        )
    try:
        return keras.models.load_model(
            path, compile=False, safe_mode=True, custom_objects=dict(map(_imported, given))
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{path} cannot be loaded ({reason[:300]}). Layers of your own are given with --custom "
            "module:Name; Lambda layers hold code and must be replaced."
        ) from error


def _imported(name: str) -> tuple[str, Any]:
    """Return the name and the object of ``module:Name``; modules of this folder are found too."""
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return attribute, getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"The custom layer {name!r} was not found ({error}). Write module:Name, with the "
            "module in this folder or installed."
        ) from None


def adopt(
    path: Path,
    labels: LabelSet,
    out: Path,
    *,
    data: Path | None = None,
    value_range: tuple[float, float] = (0.0, 255.0),
    preprocessing: str = "inside",
    output: str = "auto",
    input_size: tuple[int, int] | None = None,
    custom: Sequence[str] = (),
    batch_size: int = 32,
) -> "Bundle":
    """Make a bundle of a foreign Keras model, so that every command, the page and exports take it.

    Args:
        path: ``.keras`` file; it is copied into the bundle as it is.
        labels: What the outputs stand for, in their order.
        out: Folder to write.
        data: Prepared and split data set with some of these classes: temperature, prediction sets
            and operating points are fitted on its validation images. Without it the bundle is not
            calibrated, and says so wherever a probability is shown.
        value_range: What black and white are for the model.
        preprocessing: ``"inside"``, ``"caffe"`` or ``"torch"``; see ``ImageClassifier``.
        output: ``"logits"``, ``"softmax"``, ``"sigmoid"`` or ``"auto"``.
        input_size: (height, width), for a model that takes any.
        custom: Layers of the user's own, as ``module:Name``.
        batch_size: Images per pass.

    Raises:
        ModelError: If the model cannot be loaded or is no image classifier, or the names do not
            fit.
        DataError: If the data set is not split, has classes that the model does not know, or
            something else than a bundle stands at ``out``.
    """
    from dermlens.model.bundle import KIND, load_bundle

    settings: dict[str, Any] = dict(
        zip(ADOPTED_SETTINGS, (value_range, preprocessing, output), strict=True)
    )
    model = load_keras_model(path, custom)
    classifier = ImageClassifier(model, labels, input_size=input_size, **settings)
    facts: dict[str, Any] = {"source": "unknown", "synthetic": False}
    calibration = classifier.calibration
    if data is not None:
        calibration, facts = _calibrated(classifier, Path(data), batch_size)
    with folder_beside(Path(out), KIND) as folder:
        shutil.copyfile(path, folder / "model.keras")
        describe(
            folder,
            # There is no backbone of ours.
            Architecture("keras", classifier.input_size, classifier.classes, 0.0),
            labels,
            calibration,
            adopted={
                **settings,
                "value_range": list(classifier.value_range),
                "custom": list(custom),
                "file": Path(path).name,
                "note": classifier.note,
            },
            training={},
            data=facts,
            license="as the adopted model",
        )
    return load_bundle(Path(out), custom=custom)


def _calibrated(
    classifier: ImageClassifier, data: Path, batch_size: int
) -> tuple[Calibration, dict[str, Any]]:
    """Return what is fitted on a data set's validation images, and facts about them."""
    from dermlens.data.cache import cached_images
    from dermlens.data.manifest import class_counts, data_facts, read_manifest, select_split
    from dermlens.progress import progress

    table, known = read_manifest(data), data_facts(data).labels
    unknown = [code for code in known.codes if code not in classifier.classes]
    if unknown:
        raise DataError(
            f"{data} has the class {unknown[0]!r}, which the model does not know: it tells "
            f"{', '.join(classifier.classes)} apart. Name the outputs as the data set does."
        )
    validation = select_split(table, "validation")
    rows = np.flatnonzero(table.image_id.isin(validation.image_id))
    images = cached_images(data, table, classifier.input_size)
    with progress("Calibrating", len(rows)) as advance:
        logits = classifier.predictor(batch_size).logits(images, rows, advance=advance)
    counts = class_counts(select_split(table, "train"), classifier.labels)
    chosen = table.iloc[rows]
    calibration = fit_calibration(
        logits,
        np.array([classifier.classes.index(code) for code in chosen.dx]),
        np.array(list(counts.values())),
        chosen.lesion_id.fillna(chosen.image_id).to_numpy(),
        classes=classifier.labels,
        link=classifier.link,
    )
    return calibration, data_facts(data).without("n_lesions", "per_class", "split")

"""From trained weights to a bundle: everything that is fitted on features and on validation."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.errors import ModelError, UsageError
from dermlens.files import read_table
from dermlens.folders import require_replaceable
from dermlens.model.bundle import KIND, Bundle, load_bundle, save_bundle
from dermlens.model.calibration import Calibration, fit_calibration
from dermlens.model.classifier import Architecture
from dermlens.model.out_of_distribution import OODDetector, fit_ood_detector, with_threshold
from dermlens.model.prediction import Predictor, split_features, with_features
from dermlens.model.training_data import TrainingData, load_training_data, require_same_data
from dermlens.model.training_overlap import EXTRA
from dermlens.model.weights import rounded, set_weights
from dermlens.progress import progress


def fit_on_data(
    model: Any,
    architecture: Architecture,
    data: TrainingData,
    *,
    seed: int,
    batch_size: int = 32,
    dtype: str = "float32",
    features: np.ndarray | None = None,
) -> tuple[Calibration, OODDetector]:
    """Fit the calibration and the out-of-distribution detector of a classifier's final weights.

    ``dtype`` says how the detector will be stored; its threshold is that of the stored one.
    ``seed`` is of the resampling behind the balanced rule. ``features`` are the pooled ones of all
    images, float32 (N, D), where they are known.
    """
    rows = np.concatenate([data.rows["train"], data.rows["validation"]])
    classes = len(architecture.classes)
    if features is None:
        images = data.images(architecture.input_size)
        predictor = Predictor(with_features(model), batch_size=batch_size)
        with progress("Calibrating", len(rows)) as advance:
            joined = predictor.logits(images, rows, advance=advance)
        logits, features = split_features(joined, classes)
    else:
        features = features[rows]
        kernel, bias = model.get_layer("logits").get_weights()
        logits = features @ kernel + bias
    known, held = np.split(features, [len(data.rows["train"])])
    training, validation = (data.labels[data.rows[split]] for split in ("train", "validation"))
    calibration = fit_calibration(
        logits[len(known) :],
        validation,
        np.bincount(training, minlength=classes),
        data.table.lesion_id.to_numpy()[data.rows["validation"]],
        seed=seed,
        classes=data.classes,
    )
    detector = fit_ood_detector(known, training, held, classes=classes)
    return calibration, with_threshold(detector.stored_as(dtype), held)


def pack(
    bundle_path: Path,
    data: Path,
    out: Path,
    *,
    dtype: str = "float16",
    average_with: Path | None = None,
) -> Bundle:
    """Write a bundle with smaller weights, everything fitted again to the weights as stored.

    Args:
        bundle_path: Bundle of a finished run.
        data: The data set it was trained on, split as it was then.
        out: Folder to write.
        dtype: Storage of weights, ``"float16"`` or ``"float32"``.
        average_with: Bundle whose weights are averaged with these, half and half: the network
            this one was fine-tuned from, or another fine-tuned from the same (Wortsman et al.,
            ICML and CVPR 2022). Networks trained apart have nothing in common to be averaged.

    Raises:
        UsageError: If the storage is unknown.
        ModelError: If a bundle cannot be loaded, or the two are of other architectures.
        DataError: If the data set is not split, or not the one of both bundles, or something else
            than a bundle stands at ``out``.
    """
    if dtype not in ("float16", "float32"):
        raise UsageError(f"Unknown storage {dtype!r}. Use float16 or float32.")
    require_replaceable(out, KIND)
    bundle_path = Path(bundle_path)
    bundle = load_bundle(bundle_path)
    if bundle.adopted:
        raise ModelError(f"{bundle_path} is an adopted model, whose file is kept as it is.")
    training_data = load_training_data(data)
    require_same_data(bundle_path, bundle.facts["data"].get("fingerprint"), training_data)
    training = dict(bundle.facts["training"])
    if average_with is not None:
        training["averaged_with"] = _average(bundle, Path(average_with), training_data)
    set_weights(bundle.model, rounded(bundle.model.get_weights(), dtype))
    seed = int(training.get("seed", 0))
    calibration, ood_detector = fit_on_data(
        bundle.model, bundle.architecture, training_data, seed=seed, dtype=dtype
    )
    return save_bundle(
        out,
        model=bundle.model,
        architecture=bundle.architecture,
        calibration=calibration,
        training=training,
        data=bundle.facts["data"],
        history=bundle.history,
        # Ids and hashes alone: the data set's metadata is not ours to hand out.
        split=_split(bundle_path, training_data),
        labels=bundle.labels,
        ood_detector=ood_detector,
        dtype=dtype,
    )


def _split(bundle_path: Path, data: TrainingData) -> pd.DataFrame:
    """Return the split to keep, with the extra images that the bundle was trained on."""
    stored = read_table(bundle_path / "split.csv", ("image_id", "split"), dtype=str)
    mine = data.stored_split()
    return pd.concat([mine, stored[stored.split == EXTRA].reindex(columns=mine.columns)])


def _average(bundle: Bundle, path: Path, data: TrainingData) -> dict[str, Any]:
    """Give a bundle's network the mean of its weights and another's; return facts about that."""
    other = load_bundle(path)
    if other.architecture != bundle.architecture:
        raise ModelError(
            f"{path} cannot be averaged with {bundle.path}: it is a {other.architecture.backbone} "
            f"at {other.input_size[0]}x{other.input_size[1]}, of other classes or dropout. Use two "
            "runs of one architecture, one started from the other."
        )
    require_same_data(path, other.facts["data"].get("fingerprint"), data)
    pairs = zip(bundle.model.get_weights(), other.model.get_weights(), strict=True)
    set_weights(bundle.model, [(mine + theirs) / 2 for mine, theirs in pairs])
    names = ("weights", "uncovered_layers", "best_epoch", "epochs", "seed")
    return {name: other.facts["training"].get(name) for name in names}

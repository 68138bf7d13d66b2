"""Training in two phases, resumable after every epoch, ending in a bundle."""

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.manifest import data_facts
from dermlens.errors import ModelError
from dermlens.files import read_json, write_csv, write_json
from dermlens.locks import folder_lock
from dermlens.model.bundle import SHIPPED, Bundle, load_bundle, save_bundle
from dermlens.model.bundle_choice import is_bundle
from dermlens.model.bundle_description import NAME
from dermlens.model.classifier import build_classifier, stage_start
from dermlens.model.configuration import StoredRun, TrainingConfiguration
from dermlens.model.distillation import Teachers, load_teachers, teacher_facts
from dermlens.model.finetuning import Finetuning
from dermlens.model.finishing import fit_on_data
from dermlens.model.head import cached_features, train_head
from dermlens.model.history import History
from dermlens.model.replicas import Replicas, lost_workers
from dermlens.model.training_data import TrainingData, load_training_data
from dermlens.model.weights import (
    Coverage,
    full_coverage,
    load_by_name,
    no_coverage,
    set_weights,
)
from dermlens.progress import duration, progress, say
from dermlens.schema import checked_file


def train(
    data: Path,
    out: Path,
    configuration: TrainingConfiguration,
    *,
    extra: Sequence[Path] = (),
    resume: bool = False,
) -> Bundle:
    """Train a classifier and write ``OUT/bundle``.

    Phase one trains the last layer on cached features (only where the whole backbone is
    pretrained); phase two fine-tunes. State is stored after every epoch, so that a killed run
    continues with ``resume=True`` and ends where the uninterrupted run ends.

    Args:
        data: Prepared and split data set.
        out: Folder of the run: ``bundle/``, ``history.csv``, ``logs/`` (TensorBoard),
            ``checkpoint/``, ``configuration.json``.
        configuration: How to train.
        extra: Prepared data sets that serve training alone. Of them is left out what belongs to
            validation or test images of ``data``. Calibration and the out-of-distribution
            detector are fitted without them.
        resume: Continue an interrupted run in ``out`` with the configuration stored there.

    Returns:
        The loaded bundle.

    Raises:
        DataError: If the data set cannot be used, or a teacher was trained on another.
        ModelError: If weights or a teacher do not fit, ``out`` holds another run, or the loss is
            no longer a number.
        UsageError: If another run writes into ``out``, or changes the data set.
    """
    bundle = train_together(data, out, configuration, None, extra=extra, resume=resume)
    assert bundle is not None
    return bundle


def train_together(
    data: Path,
    out: Path,
    configuration: TrainingConfiguration,
    replicas: Replicas | None,
    *,
    extra: Sequence[Path] = (),
    resume: bool = False,
) -> Bundle | None:
    """Train as ``train`` does, as one of several workers or on several GPUs.

    Args:
        data: Prepared and split data set, the same on every worker.
        out: Folder of the run; only the first worker reads and writes it.
        configuration: How to train; the batch is shared equally by all replicas.
        replicas: ``replicas.join_workers`` or ``replicas_here``; None for this process alone.
        extra: As ``train`` takes it, the same on every worker.
        resume: Continue an interrupted run; all workers go on from the first one's last epoch.

    Returns:
        The loaded bundle, None on all workers but the first.

    Raises:
        DataError, ModelError, UsageError: As ``train`` does; also if another worker ends, has other
            options or other data, or the batch cannot be shared.
    """
    first = replicas is None or replicas.first
    with folder_lock(out) if first else nullcontext(), folder_lock(data, shared=True):
        training_data = load_training_data(data, extra)
        if replicas is None:
            return _train(training_data, Path(out), configuration, resume, None)
        replicas.check_batch(configuration.batch_size)
        with lost_workers():
            return _train(training_data, Path(out), configuration, resume, replicas)


def _train(
    training_data: TrainingData,
    out: Path,
    configuration: TrainingConfiguration,
    resume: bool,
    replicas: Replicas | None,
) -> Bundle | None:
    # A recipe says how, the data set what is told apart.
    architecture = replace(configuration.architecture, classes=training_data.classes.codes)
    configuration = replace(configuration, architecture=architecture)
    first = replicas is None or replicas.first
    if first:
        _refuse_other_run(out, configuration, training_data, resume)
    if _is_finished(out, configuration, training_data, resume, replicas):
        say(f"The run in {out} is finished; nothing to resume.")
        return load_bundle(out / "bundle") if first else None
    started = time.monotonic()
    model, coverage = _build(configuration)
    stage_start(model, configuration.train_from)
    if not configuration.epochs and not coverage.complete:
        raise ModelError(
            f"{coverage.sentence()} Training the last layer alone would leave them so. Use weights "
            "of the whole backbone, or --epochs of at least 1."
        )
    teach = load_teachers(configuration, training_data)
    for size in (configuration.architecture.input_size, *(teach.sizes if teach else ())):
        training_data.images(size)
    # All that was given has proved usable; only now does the run get its folder.
    if first:
        claim_folder(out, configuration, training_data)
    say(coverage.sentence())
    history = History(out, training_data, keep=resume and first)
    weights, best_epoch, features = _two_phases(
        model, coverage, configuration, training_data, out, history, teach, replicas
    )
    bundle = None
    if first:
        bundle = finish(
            out, weights, best_epoch, features, coverage, configuration, training_data, history
        )
        say(f"Trained in {duration(time.monotonic() - started)}. Bundle: {out / 'bundle'}")
    if replicas is not None:
        # The others stay until the bundle is written: where one has gone, TensorFlow ends all.
        replicas.from_first([np.zeros(1)])
    return bundle


def _two_phases(
    model: Any,
    coverage: Coverage,
    configuration: TrainingConfiguration,
    data: TrainingData,
    out: Path,
    history: History,
    teach: Teachers | None,
    replicas: Replicas | None,
) -> tuple[list[np.ndarray], int | None, np.ndarray | None]:
    """Train; return weights, the epoch they are of, and features if the backbone has not changed.

    On other workers than the first the weights mean nothing.
    """
    first = replicas is None or replicas.first
    if configuration.head_epochs and not coverage.complete:
        say("Skipping phase one: features of a backbone that is not wholly pretrained mean little.")
    began = (out / "checkpoint" / "state.npz").is_file()
    features = None
    if first and configuration.head_epochs and coverage.complete and not began:
        features = _head_phase(model, data, configuration, out, history)
    if not configuration.epochs:
        return model.get_weights(), None, features
    finetuning = Finetuning(model, coverage, configuration, data, out, history, teach, replicas)
    finetuning.run()
    weights = finetuning.best_weights() if first else model.get_weights()
    # Features change with the backbone.
    return weights, finetuning.best_epoch, None


def _is_finished(
    out: Path,
    configuration: TrainingConfiguration,
    data: TrainingData,
    resume: bool,
    replicas: Replicas | None,
) -> bool:
    """Tell whether there is nothing left to train; workers agree, and on what they train."""
    finished = resume and (out / "bundle").is_dir()
    if replicas is None:
        return finished
    # Paths may differ from machine to machine.
    settings = {**asdict(configuration), "weights": Path(configuration.weights).name}
    settings["teachers"] = [Path(path).name for path in configuration.teachers]
    replicas.require_same(f"{settings} {data.identity}", "other options or other data")
    return bool(replicas.from_first([np.array([finished])])[0][0])


def _refuse_other_run(
    out: Path, configuration: TrainingConfiguration, data: TrainingData, resume: bool
) -> None:
    """Raise ModelError if the folder holds a run that this one does not continue."""
    path = out / "configuration.json"
    if not path.is_file():
        return
    if not resume:
        raise ModelError(
            f"{out} already holds a run. Use --resume to continue it, or another --out."
        )
    stored = checked_file(StoredRun, path, "Use another --out.")
    differing = configuration.differences(stored.training)
    if differing:
        raise ModelError(
            f"The run in {out} was started with another {', '.join(differing)}. Resume it with "
            "the same options, or use another --out."
        )
    if stored.data_fingerprint != data.identity:
        raise ModelError(
            f"The run in {out} was started on other data. Use the same data set, or another --out."
        )


def claim_folder(out: Path, configuration: TrainingConfiguration, data: TrainingData) -> None:
    """Make the run's folder, with its configuration, unless it is there."""
    path = out / "configuration.json"
    if not path.is_file():
        mine = {"training": asdict(configuration), "data_fingerprint": data.identity}
        write_json(path, mine)


def _build(configuration: TrainingConfiguration) -> tuple[Any, Coverage]:
    """Build the network for training (any image size) with its starting weights."""
    imagenet = configuration.weights == "imagenet"
    model = build_classifier(
        configuration.architecture,
        precision=configuration.precision,
        seed=configuration.seed,
        imagenet=imagenet,
        any_size=True,
    )
    if imagenet:
        return model, full_coverage(model)
    if configuration.weights == "none":
        return model, no_coverage(model)
    if configuration.weights == "shipped":
        # Its last layer knows other classes, or knows these already; a new one is to be learned.
        return model, load_by_name(model, SHIPPED / "weights.h5", backbone_only=True)
    return model, load_by_name(model, Path(configuration.weights))


def _head_phase(
    model: Any,
    data: TrainingData,
    configuration: TrainingConfiguration,
    out: Path,
    history: History,
) -> np.ndarray:
    """Train the last layer; return the features of all images, float32 (N, channels)."""
    images = data.images(configuration.architecture.input_size)
    key = f"{data.fingerprint} {asdict(configuration.architecture)} {configuration.weights}"
    with progress("Backbone features", len(images)) as advance:
        features = cached_features(
            model,
            images,
            out / "checkpoint" / "features.npz",
            key,
            configuration.batch_size,
            advance,
        )

    def report(epoch: int, figures: dict[str, float], logits: np.ndarray) -> None:
        history.add("head", epoch, figures, logits)

    train_head(model, features, data.labels, data.rows, configuration, report)
    return features


def finish(
    out: Path,
    weights: list[np.ndarray],
    best_epoch: int | None,
    features: np.ndarray | None,
    coverage: Coverage,
    configuration: TrainingConfiguration,
    data: TrainingData,
    history: History,
) -> Bundle:
    """Build the float32 model, calibrate it on validation and save the bundle in ``out/bundle``.

    Args:
        out: Folder of the run, as ``claim_folder`` makes it.
        weights: Of the network, in Keras' order.
        best_epoch: Which epoch they are of, from 1; None if only the last layer was trained.
        features: Of all images, float32 (N, channels), if the backbone has not changed.
        coverage: What was pretrained at the start.
        configuration: How it was trained.
        data: On what.
        history: Its epochs.
    """
    architecture = configuration.architecture
    model = build_classifier(architecture, seed=configuration.seed)
    set_weights(model, weights)
    calibration, ood_detector = fit_on_data(
        model,
        architecture,
        data,
        seed=configuration.seed,
        batch_size=configuration.batch_size,
        features=features,
    )
    bundle = save_bundle(
        out / "bundle",
        model=model,
        architecture=architecture,
        calibration=calibration,
        training={
            **asdict(configuration),
            "weights": Path(configuration.weights).name,
            "weights_license": _terms_of(Path(configuration.weights)),
            "teachers": teacher_facts(configuration),
            "uncovered_layers": list(coverage.uncovered),
            "best_epoch": best_epoch,
            "extra": [one.facts(data.classes) for one in data.extras],
        },
        data={"fingerprint": data.fingerprint, **data_facts(data.folder).without("fingerprint")},
        history=history.table(),
        split=data.stored_split("lesion_id", "dx"),
        labels=data.classes,
        ood_detector=ood_detector,
    )
    write_csv(out / "split.csv", data.table.loc[:, ["image_id", "split"]])
    _remove_checkpoint(out / "checkpoint")
    return bundle


def _terms_of(weights: Path) -> str | None:
    """Return the terms of a file of weights that belongs to a bundle; else none are known."""
    if not is_bundle(weights.parent) or weights.name != "weights.h5":
        return None
    return str(read_json(weights.parent / NAME).get("license") or "") or None


def _remove_checkpoint(folder: Path) -> None:
    """Remove what training kept there; anything else in the folder is not ours."""
    for name in ("state.npz", "best.npz", "features.npz"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()

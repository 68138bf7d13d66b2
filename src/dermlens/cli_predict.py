"""The commands that ask a model for answers, and how good these are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermlens.cli_options import (
    AllowTrainingImages,
    BatchSize,
    BundleAndData,
    BundleAndImages,
    Decision,
    Seed,
    bundle_and_data,
    claim,
    load_named,
    say_written,
)
from dermlens.cli_scale import (
    Address,
    EngineChoice,
    Part,
    ShardSize,
    Workers,
    chosen_engine,
    finish_shards,
    folder_of_shards,
)
from dermlens.errors import UsageError
from dermlens.progress import say

if TYPE_CHECKING:
    import pandas as pd


_SHOWN = {
    "balanced_accuracy": "balanced accuracy by the balanced rule",
    "most_probable_balanced_accuracy": "by the most probable class",
    "macro_auc": "macro AUC",
    "nll": "negative log-likelihood",
}


def evaluate(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BUNDLE] [DATA]",
            help="A bundle, if it is not to be the one that comes with dermlens, and a prepared "
            "and split data set.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("evaluation"),
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    images: Annotated[Path | None, typer.Option(help="Instead of DATA: folder of images.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="With --images: ISIC one-hot columns, or image_id,dx.")
    ] = None,
    patient_facts: Annotated[
        bool,
        typer.Option(
            "--patient-facts", help="Let age, sex and place on the body count, where known."
        ),
    ] = False,
    tta_views: Annotated[int, typer.Option(help="Test-time tta_views: 1, 4 or 8.")] = 1,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples over lesions.")] = 2000,
    allow_training_images: AllowTrainingImages = False,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
) -> None:
    """Measure a bundle: metrics.json, predictions.csv, submission.csv and figures.

    Example: dermlens evaluate runs/first/bundle DATA --out evaluation
    """
    import pandas as pd

    from dermlens.model.bundle import bundle_and_rest
    from dermlens.model.patient_facts import facts_of
    from dermlens.model.training_overlap import training_overlap
    from dermlens.report.evaluation_report import write_evaluation
    from dermlens.serve.prediction import calibration_of, predict_external, predict_split

    given = paths or []
    # Of two paths the first can only be meant as a bundle, and is refused if it is none.
    bundle, rest = (given[0], given[1:]) if len(given) == 2 else bundle_and_rest(given)
    data = rest[0] if rest else None
    both = data is not None and images is not None
    if len(rest) > 1 or both or (data is None and (images is None or labels is None)):
        raise typer.BadParameter("Give either DATA, or both --images and --labels.")
    claim(out, reading=data)
    loaded = load_named(bundle)
    about: dict[str, Any] = {}
    facts = facts_of(loaded) if patient_facts else None
    if data is not None:
        overlap = training_overlap(loaded, data, split)
        leave_out = overlap.to_leave_out(allow_training_images)
        about = {"training_overlap": overlap.counts()}
        overlap.write(out)
        table = predict_split(
            loaded,
            data,
            split,
            leave_out=leave_out,
            facts=facts,
            tta_views=tta_views,
            batch_size=batch_size,
        )
    else:
        assert images is not None and labels is not None
        table = predict_external(
            loaded,
            images,
            labels,
            facts=facts,
            allow_training_images=allow_training_images,
            tta_views=tta_views,
            batch_size=batch_size,
        )
    if facts is not None:
        about["patient_facts"] = facts.summary(table, loaded.calibration)
        change = pd.DataFrame(about["patient_facts"]["change"])
        say(f"With facts, and against the photograph alone: {_change_text(change)}.")
    written = write_evaluation(
        table,
        calibration_of(loaded, facts),
        out,
        resamples=resamples,
        seed=seed,
        model=loaded.identity,
        about=about,
    )
    say_written(written.values())


def predict(
    paths: BundleAndImages,
    out: Annotated[
        Path, typer.Option(help="CSV file to write; with --engine, a folder of shards.")
    ] = Path("predictions.csv"),
    tta_views: Annotated[int, typer.Option(help="Test-time tta_views: 1, 4 or 8.")] = 1,
    level: Annotated[
        float | None,
        typer.Option(help="Share of images whose prediction set is to hold the diagnosis, 0..1."),
    ] = None,
    decision: Annotated[
        Decision,
        typer.Option(help="What is said first: the most probable diagnosis, or the balanced rule."),
    ] = Decision.MOST_PROBABLE,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Say what the model would have said where it abstains.")
    ] = False,
    patient: Annotated[
        str | None,
        typer.Option(
            help="What is known of the patient, and is to count: age=55,sex=female and "
            "localization=back, or some of these."
        ),
    ] = None,
    patients: Annotated[
        Path | None,
        typer.Option(help="The same in a table: image_id, age, sex, localization."),
    ] = None,
    batch_size: BatchSize = 32,
    engine: EngineChoice = None,
    address: Address = None,
    workers: Workers = None,
    shard_size: ShardSize = None,
    shard: Part = None,
) -> None:
    """Predict images or folders: most probable diagnosis, what cannot be excluded, flags.

    Example: dermlens predict photo.jpg folder/ --out predictions.csv
    """
    from dermlens.files import write_csv
    from dermlens.model.bundle import bundle_and_rest
    from dermlens.model.patient_facts import facts_of
    from dermlens.serve.prediction import describe_predictions, find_images, predict_files

    bundle, images = bundle_and_rest(paths)
    settings: dict[str, Any] = {"tta_views": tta_views, "batch_size": batch_size, "level": level}
    if (where := chosen_engine(engine, address, workers, shard_size, shard)) is not None:
        if patient is not None or patients is not None:
            raise UsageError("Facts about patients cannot be given in shards. Leave out --engine.")
        folder = folder_of_shards(out)
        finish_shards("predict", bundle, images, folder, where, shard_size, shard, settings)
        return
    files = find_images(images)
    told = _patients_of(files, patient, patients)
    loaded = load_named(bundle)
    facts = None if told is None else facts_of(loaded)
    if facts is not None:
        say("What is known of the patient counts.")
    table = predict_files(loaded, files, **settings, facts=facts, patients=told)
    balanced = decision is Decision.BALANCED
    for line in describe_predictions(table, loaded, balanced=balanced, anyway=anyway):
        say(line)
    say(f"Wrote {write_csv(out, table)}")
    if (table.error != "").any():
        raise typer.Exit(1)


def patient_facts(paths: BundleAndData, batch_size: BatchSize = 32) -> None:
    """Fit what age, sex and place on the body add, on the data set that a bundle learned from.

    Writes patient_facts.json into the bundle; answers use it only where asked to.

    Example: dermlens patient-facts runs/first/bundle DATA
    """
    from dermlens.model.patient_facts import fit_patient_facts, write_patient_facts

    bundle, data = bundle_and_data(paths)
    loaded = load_named(bundle)
    facts, change = fit_patient_facts(loaded, data, batch_size=batch_size)
    say(f"Strength of the facts: {facts.strength:.2f}")
    say(f"Validation, on which they were fitted: {_change_text(change)}.")
    say_written([write_patient_facts(bundle, facts)])


def _change_text(change: "pd.DataFrame") -> str:
    """Return the main figures with facts, and what they differ from the photograph alone."""
    found = change[change.name != "photograph"].set_index("figure")
    told = []
    for name, words in _SHOWN.items():
        row = found.loc[name]
        told.append(
            f"{words} {row.value:.3f} ({row.difference:+.3f}: {row.low:+.3f} to {row.high:+.3f})"
        )
    return ", ".join(told)


def _patients_of(
    files: Sequence[Path], patient: str | None, patients: Path | None
) -> "pd.DataFrame | None":
    """Return what was told about the patient of each file; None if nothing was."""
    import pandas as pd

    from dermlens.model.patient_facts import parse_patient, read_patients

    if patient is not None and patients is not None:
        raise UsageError("Give either --patient or --patients.")
    if patient is not None:
        return pd.DataFrame([parse_patient(patient)] * len(files))
    if patients is None:
        return None
    names = [path.stem for path in files]
    table = read_patients(patients).set_index("image_id")
    if not (known := table.index.isin(names)).any():
        raise UsageError(f"{patients} names none of the images. Its image_id is a file's name.")
    if absent := len(names) - int(known.sum()):
        say(f"{absent} of {len(names)} images are not in {patients}: the photograph alone counts.")
    return table.reindex(names).reset_index(drop=True)

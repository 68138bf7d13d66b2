"""The commands that explain images, and measure explanations."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dermlens.cli_options import (
    AllowTrainingImages,
    BatchSize,
    BundleAndData,
    BundleAndImages,
    Methods,
    ScorerChoice,
    Seed,
    Target,
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
    benchmark_maker,
    chosen_engine,
    finish_shards,
    folder_of_shards,
    refuse_in_shards,
)
from dermlens.progress import say


def explain(
    paths: BundleAndImages,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("explanations"),
    methods: Methods = "grad_cam",
    target: Target = None,
    output: Annotated[
        str, typer.Option(help="logit, probability, or contrast:CODE (target minus CODE).")
    ] = "logit",
    scorer: ScorerChoice = None,
    opacity: Annotated[
        float, typer.Option(help="Of the overlay where evidence is strongest, 0..1.")
    ] = 0.8,
    dicom: Annotated[
        bool,
        typer.Option(
            "--dicom",
            help="Of DICOM images, write the maps as Parametric Map and Segmentation and the "
            "answer as Structured Report, too.",
        ),
    ] = False,
    keep_patient: Annotated[
        bool, typer.Option("--keep-patient", help="Copy the patient's data into these objects.")
    ] = False,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    engine: EngineChoice = None,
    address: Address = None,
    workers: Workers = None,
    shard_size: ShardSize = None,
    shard: Part = None,
) -> None:
    """Explain images: attributions.npz, overlays and explanation.json for each.

    Example: dermlens explain photo.jpg --methods grad_cam,lime --target mel
    """
    from dermlens.model.bundle import bundle_and_rest
    from dermlens.report.explanation import explain_files
    from dermlens.serve.prediction import doubts_of, find_images

    bundle, images = bundle_and_rest(paths)
    if (where := chosen_engine(engine, address, workers, shard_size, shard)) is not None:
        refuse_in_shards(dicom=dicom, keep_patient=keep_patient)
        settings: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
        settings |= {"methods": methods, "target": target, "output": output, "scorer": scorer}
        folder = folder_of_shards(out)
        finish_shards("explain", bundle, images, folder, where, shard_size, shard, settings)
        return
    files = find_images(images)
    claim(out)
    classifier = load_named(bundle)
    for line in doubts_of(classifier, files):
        say(line)
    written = explain_files(
        classifier,
        files,
        out,
        methods=methods,
        target=target,
        output=output,
        scorer=scorer,
        opacity=opacity,
        dicom=dicom,
        keep_patient=keep_patient,
        batch_size=batch_size,
        seed=seed,
    )
    say_written(written)


def compare(
    paths: BundleAndImages,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("comparisons"),
    methods: Methods = "six",
    target: Target = None,
    against: Annotated[
        str | None, typer.Option(help="Diagnosis to contrast it with, beside the runner-up.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Outline of the lesion, white inside; or a folder of outlines."),
    ] = None,
    scales: Annotated[
        bool, typer.Option(help="Explain at several scales, too; takes most of the time.")
    ] = True,
    data: Annotated[
        Path | None,
        typer.Option(help="Prepared data set of the model: shows pictures of known cases."),
    ] = None,
    evidence: Annotated[
        bool,
        typer.Option(
            "--evidence", help="Add what would change the answer, and the measurable criteria."
        ),
    ] = False,
    scorer: ScorerChoice = None,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
) -> None:
    """Compare explanations of images: one HTML page each, raw maps and numbers beside it.

    Example: dermlens compare photo.jpg --against mel --mask outline.png --out comparisons
    """
    from dermlens.model.bundle import bundle_and_rest
    from dermlens.report.comparison_files import compare_files
    from dermlens.serve.prediction import doubts_of, find_images

    bundle, images = bundle_and_rest(paths)
    files = find_images(images)
    claim(out)
    classifier = load_named(bundle)
    for line in doubts_of(classifier, files):
        say(line)
    written = compare_files(
        classifier,
        files,
        out,
        methods=methods,
        target=target,
        against=against,
        mask=mask,
        scorer=scorer,
        scales=scales,
        data=data,
        evidence=evidence,
        batch_size=batch_size,
        seed=seed,
    )
    say_written(written)


def benchmark(
    context: typer.Context,
    paths: BundleAndData,
    n: Annotated[int, typer.Option("--n", help="Images, equally many of each class.")] = 500,
    out: Annotated[Path, typer.Option(help="Folder to write, or to go on in.")] = Path("benchmark"),
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    methods: Methods = "six",
    target: Annotated[
        str, typer.Option(help="Explain the most probable class ('predicted') or the 'truth'.")
    ] = "predicted",
    n_samples: Annotated[int, typer.Option(help="Masks per image of LIME and SHAP.")] = 500,
    steps: Annotated[int, typer.Option(help="Removal steps of deletion and insertion.")] = 10,
    robustness: Annotated[
        int, typer.Option(help="Images for sensitivity and equivariance; 0 for none.")
    ] = 14,
    randomization: Annotated[
        int, typer.Option(help="Images for parameter randomization; 0 for none.")
    ] = 7,
    pairs: Annotated[
        int, typer.Option(help="Lesions photographed twice, for consistency; 0 for none.")
    ] = 14,
    probes: Annotated[int, typer.Option(help="Images for the shortcut probe; 0 for none.")] = 70,
    controls: Annotated[
        bool, typer.Option(help="Measure maps that know nothing beside the methods.")
    ] = True,
    scorer: ScorerChoice = None,
    allow_training_images: AllowTrainingImages = False,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    engine: EngineChoice = None,
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Measure how good explanations are: tables, summary.json and one HTML page.

    Can be interrupted at any time; the same command goes on and ends with the same tables.

    Example: dermlens benchmark runs/first/bundle DATA --n 150 --out benchmark
    """
    from dermlens.data.manifest import data_labels
    from dermlens.explainers.registry import parse_methods
    from dermlens.lesion.benchmark import LesionMeasures
    from dermlens.model.scorers import choose_scorers
    from dermlens.model.training_overlap import training_overlap
    from dermlens.quality.benchmark import run_benchmark
    from dermlens.quality.benchmark_plan import BenchmarkPlan
    from dermlens.report.benchmark_report import write_benchmark_report

    options = {**context.params, "methods": tuple(parse_methods(methods))}
    for name in ("paths", "out", "pairs", "probes", "scorer", "allow_training_images"):
        del options[name]
    for name in ("engine", "address", "workers"):
        del options[name]
    where = chosen_engine(engine, address, workers)
    plan = BenchmarkPlan(**options)
    extension = LesionMeasures(pairs, probes)
    bundle, data = bundle_and_data(paths)
    claim(out, reading=data)
    loaded = load_named(bundle)
    overlap = training_overlap(loaded, data, split)
    leave_out = overlap.to_leave_out(allow_training_images)
    overlap.write(out)
    scorers = choose_scorers(loaded, plan.methods, scorer, images=plan.n)
    chosen = {name: one.name for name, one in scorers.items()}
    make = benchmark_maker(where, loaded, data, out, plan, (pairs, probes), chosen, leave_out)
    written = run_benchmark(
        loaded,
        data,
        out,
        plan,
        labels=data_labels(data),
        extension=extension,
        scorers=scorers,
        about={"synthetic_model": loaded.synthetic, "training_overlap": overlap.counts()},
        leave_out=leave_out,
        make=make,
    )
    say_written({**written, **write_benchmark_report(out)}.values())


def scorer(
    paths: BundleAndData,
    n: Annotated[int, typer.Option("--n", min=1, help="Images.")] = 100,
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "validation",
    methods: Annotated[
        str, typer.Option(help="Names separated by commas, of those that can use a scorer.")
    ] = "occlusion,lime,gp_shap,rise",
    batch_size: BatchSize = 16,
    seed: Seed = 0,
) -> None:
    """Make the int8 copy of a bundle and measure how far its maps agree with the model's.

    The result is kept with the copy. 'dermlens explain' then uses the copy for the methods whose
    maps correlate by 0.99 or more.

    Example: dermlens scorer runs/first/bundle DATA --n 100
    """
    from dermlens.explainers.registry import parse_methods
    from dermlens.serve import scorer_agreement as agreement

    bundle, data = bundle_and_data(paths)
    loaded = load_named(bundle)
    images = agreement.images_of_split(data, split, n, loaded.input_size, seed=seed)
    measured, path = agreement.measure_scorer(
        loaded,
        images,
        methods=parse_methods(methods),
        source=f"{len(images)} {split} images",
        batch_size=batch_size,
        seed=seed,
    )
    for line in agreement.agreement_lines(measured):
        say(line)
    say(f"Wrote {path}")

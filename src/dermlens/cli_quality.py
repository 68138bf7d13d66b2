"""The commands that measure explanations."""

from pathlib import Path
from typing import Annotated

import typer

from dermlens.cli_options import AllowTrainingImages, ScorerChoice, Seed, claim, load_named
from dermlens.progress import say


def benchmark(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[BUNDLE] DATA",
            help="Prepared and split data set; before it, a bundle if it is not to be the one "
            "that comes with dermlens.",
        ),
    ],
    n: Annotated[int, typer.Option("--n", help="Images, equally many of each class.")] = 500,
    out: Annotated[Path, typer.Option(help="Folder to write, or to go on in.")] = Path("benchmark"),
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    methods: Annotated[
        str, typer.Option(help="Names separated by commas; 'six' for the six methods; 'all'.")
    ] = "six",
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
    batch_size: Annotated[int, typer.Option(help="Images per pass; bounds memory.")] = 16,
    seed: Seed = 0,
) -> None:
    """Measure how good explanations are: tables, summary.json and one HTML page.

    Can be interrupted at any time; the same command goes on and ends with the same tables.

    Example: dermlens benchmark runs/first/bundle DATA --n 150 --out benchmark
    """
    from dermlens.data.manifest import data_labels
    from dermlens.errors import UsageError
    from dermlens.explainers.registry import parse_methods
    from dermlens.lesion.benchmark import LesionMeasures
    from dermlens.model.bundle import bundle_and_rest
    from dermlens.model.scorers import choose_scorers
    from dermlens.model.training_overlap import training_overlap
    from dermlens.quality.benchmark import run_benchmark
    from dermlens.quality.benchmark_plan import BenchmarkPlan
    from dermlens.report.benchmark_report import write_benchmark_report

    plan = BenchmarkPlan(
        methods=tuple(parse_methods(methods)),
        n=n,
        split=split,
        seed=seed,
        target=target,
        batch_size=batch_size,
        n_samples=n_samples,
        steps=steps,
        robustness=robustness,
        randomization=randomization,
        controls=controls,
    )
    extension = LesionMeasures(pairs, probes)
    # Of two paths the first can only be meant as a bundle, and is refused if it is none.
    bundle, rest = (paths[0], paths[1:]) if len(paths) == 2 else bundle_and_rest(paths)
    if len(rest) != 1:
        raise UsageError("Give one prepared data set, and before it at most one bundle.")
    claim(out, reading=rest[0])
    loaded = load_named(bundle)
    overlap = training_overlap(loaded, rest[0], split)
    leave_out = overlap.to_leave_out(allow_training_images)
    overlap.write(out)
    written = run_benchmark(
        loaded,
        rest[0],
        out,
        plan,
        labels=data_labels(rest[0]),
        extension=extension,
        scorers=choose_scorers(loaded, plan.methods, scorer, images=plan.n),
        about={"synthetic_model": loaded.synthetic, "training_overlap": overlap.counts()},
        leave_out=leave_out,
    )
    for path in {**written, **write_benchmark_report(out)}.values():
        say(f"Wrote {path}")


def scorer(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[BUNDLE] DATA",
            help="Prepared and split data set; before it, a bundle if it is not to be the one "
            "that comes with dermlens.",
        ),
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="Images.")] = 100,
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "validation",
    methods: Annotated[
        str, typer.Option(help="Names separated by commas, of those that can use a scorer.")
    ] = "occlusion,lime,gp_shap,rise",
    batch_size: Annotated[int, typer.Option(help="Images per pass; bounds memory.")] = 16,
    seed: Seed = 0,
) -> None:
    """Make the int8 copy of a bundle and measure how far its maps agree with the model's.

    The result is kept with the copy. 'dermlens explain' then uses the copy for the methods whose
    maps correlate by 0.99 or more.

    Example: dermlens scorer runs/first/bundle DATA --n 100
    """
    from dermlens.errors import UsageError
    from dermlens.explainers.registry import parse_methods
    from dermlens.model.bundle import bundle_and_rest
    from dermlens.serve.scorer_agreement import (
        agreement_lines,
        images_of_split,
        measure_scorer,
    )

    bundle, rest = (paths[0], paths[1:]) if len(paths) == 2 else bundle_and_rest(paths)
    if len(rest) != 1:
        raise UsageError("Give one prepared data set, and before it at most one bundle.")
    loaded = load_named(bundle)
    images = images_of_split(rest[0], split, n, loaded.input_size, seed=seed)
    measured, path = measure_scorer(
        loaded,
        images,
        methods=parse_methods(methods),
        source=f"{len(images)} {split} images",
        batch_size=batch_size,
        seed=seed,
    )
    for line in agreement_lines(measured):
        say(line)
    say(f"Wrote {path}")

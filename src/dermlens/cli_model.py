"""The commands that turn a finished run into something to hand out."""

from pathlib import Path
from typing import Annotated

import typer

from dermlens.cli_options import (
    AllowTrainingImages,
    BatchSize,
    BundleAndData,
    BundlePath,
    Seed,
    bundle_and_data,
    claim,
    load_named,
    parse_pairs,
    parse_range,
    parse_size,
    say_written,
)
from dermlens.progress import say


def recipe(
    data: Annotated[Path, typer.Argument(help="Prepared and split data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs, and of the bundle.")],
    name: Annotated[str, typer.Option(help="ham10000: that of the shipped model.")] = ("ham10000"),
    weights: Annotated[
        str | None,
        typer.Option(help="ImageNet weights, backbone=FILE.h5,…; the others are downloaded."),
    ] = None,
    extra: Annotated[
        list[Path] | None,
        typer.Option(help="Prepared data set that serves training alone; several times."),
    ] = None,
    precision: Annotated[str, typer.Option(help="float32 or mixed_bfloat16.")] = "float32",
) -> None:
    """Train in several stages, as the shipped model was: teachers, students, mean weights.

    Can be interrupted at any time; the same command goes on.

    Example: dermlens recipe DATA --out runs/mine --precision mixed_bfloat16
    """
    from dermlens.model.recipe import recipe_named, run_recipe

    claim(out, reading=data)
    files = {} if weights is None else parse_pairs(weights)
    bundle = run_recipe(
        data, out, recipe_named(name), weights=files, extra=extra or (), precision=precision
    )
    say(f"Bundle: {bundle.path}")


def pack(
    bundle: Annotated[Path, typer.Argument(help="Bundle of a finished run.")],
    data: Annotated[Path, typer.Argument(help="The data set it was trained on.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    storage: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    average_with: Annotated[
        Path | None,
        typer.Option(help="Bundle this one was fine-tuned from; weights are averaged with it."),
    ] = None,
) -> None:
    """Write a smaller bundle, calibrated again to its weights as they are stored.

    Example: dermlens pack runs/first/bundle DATA --out packed
    """
    from dermlens.model.finishing import pack as write_packed

    claim(out, reading=data)
    write_packed(bundle, data, out, dtype=storage, average_with=average_with)
    size = sum(file.stat().st_size for file in out.iterdir())
    say(f"Wrote {out} ({size / 1e6:.1f} MB)")


def adopt(
    model: Annotated[
        Path, typer.Argument(help="Keras model, as model.save('model.keras') writes it.")
    ],
    classes: Annotated[
        str,
        typer.Option(
            help="What the outputs stand for, in their order: names separated by commas; ham10000, "
            "isic2019 or binary; a JSON label set; or a text file with one name per line."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    value_range: Annotated[
        str, typer.Option(help="What black and white are for the model, such as 0,1 or -1,1.")
    ] = "0,255",
    preprocessing: Annotated[
        str, typer.Option(help="inside; caffe or torch for preprocess_input outside of the model.")
    ] = "inside",
    output: Annotated[str, typer.Option(help="auto, logits, softmax or sigmoid.")] = "auto",
    size: Annotated[
        str | None, typer.Option(help="Input size HxW, for a model that takes any.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Prepared and split data set; calibrates on its validation images."),
    ] = None,
    batch_size: BatchSize = 32,
) -> None:
    """Make a bundle of any Keras image classifier, for every other command, page and export.

    Example: dermlens adopt model.keras --classes benign,malignant --value-range 0,1 --out mine
    """
    from dermlens.labels import label_set
    from dermlens.model.foreign import adopt as adopt_model
    from dermlens.model.foreign import allowed_layers

    claim(out, reading=data)
    bundle = adopt_model(
        model,
        label_set(classes),
        out,
        data=data,
        value_range=parse_range(value_range),
        preprocessing=preprocessing,
        output=output,
        input_size=None if size is None else parse_size(size),
        custom=tuple(allowed_layers),
        batch_size=batch_size,
    )
    say(f"Model: {bundle.label}, classes {', '.join(bundle.classes)}")
    if bundle.note:
        say(bundle.note)
    if not bundle.calibrated:
        say("Not calibrated: probabilities are the model's own. Give --data to calibrate it.")
    say(f"Wrote {out}")


def export(
    bundle: BundlePath = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("exported"),
    formats: Annotated[
        str,
        typer.Option(
            help="Separated by commas: saved_model, float32, float16, dynamic, int8; tflite stands "
            "for float32, float16 and dynamic."
        ),
    ] = "saved_model,tflite",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Prepared data set: agreement is measured on its test images, int8 ranges are "
            "set by its training images."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Instead of --data: a folder of images.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 300,
) -> None:
    """Write artifacts that predict and explain without this package, and parity.json.

    Example: dermlens export --out exported --formats saved_model,tflite --data DATA
    """
    from dermlens.model.bundle import find_bundle, load_bundle
    from dermlens.serve import export as exporting

    if data is not None and images is not None:
        raise typer.BadParameter("Give either --data or --images.")
    names = exporting.parse_formats([name.strip() for name in formats.split(",") if name.strip()])
    claim(out, reading=data)
    loaded = load_bundle(find_bundle(bundle))
    written = exporting.export(loaded, out, names, exporting.export_images(data, images, limit))
    say_written(written.values())


def stress(
    paths: BundleAndData,
    out: Annotated[Path, typer.Option(help="Folder to write, or to go on in.")] = Path("stress"),
    split: Annotated[str, typer.Option(help="train, validation, test or all.")] = "test",
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples over lesions.")] = 2000,
    allow_training_images: AllowTrainingImages = False,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
) -> None:
    """Measure a bundle on photographs made worse: compression, blur, light, color, size, hair.

    Can be interrupted at any time; the same command goes on.

    Example: dermlens stress runs/first/bundle DATA --out stress
    """
    from dermlens.model.training_overlap import training_overlap
    from dermlens.serve.stress import stress_lines, stress_test

    bundle, data = bundle_and_data(paths)
    claim(out, reading=data)
    loaded = load_named(bundle)
    leave_out = training_overlap(loaded, data, split).to_leave_out(allow_training_images)
    found = stress_test(
        loaded,
        data,
        out,
        split,
        leave_out=leave_out,
        batch_size=batch_size,
        resamples=resamples,
        seed=seed,
    )
    for line in stress_lines(found.facts):
        say(line)
    say_written(out / name for name in ("stress.csv", "stress.json", "stress.png"))


def card(
    bundle: BundlePath = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Folder of 'dermlens evaluate': writes the model card.")
    ] = None,
    benchmark: Annotated[
        Path | None, typer.Option(help="Folder of 'dermlens benchmark', for the model card.")
    ] = None,
    stressed: Annotated[
        Path | None,
        typer.Option("--stress", help="Folder of 'dermlens stress', for the model card."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Prepared data set: writes the data card.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("docs"),
) -> None:
    """Write model_card.md and data_card.md from what was measured.

    Example: dermlens card --evaluation evaluation --data DATA --out docs
    """
    from dermlens.files import write_text
    from dermlens.model.bundle import find_bundle, load_bundle
    from dermlens.report.cards import benchmark_sections, data_card, model_card

    if evaluation is None and data is None:
        raise typer.BadParameter("Give --evaluation, --data or both.")
    claim(out, reading=data)
    cards = {}
    if evaluation is not None:
        measured = ("", "") if benchmark is None else benchmark_sections(benchmark)
        cards["model_card.md"] = model_card(
            load_bundle(find_bundle(bundle)),
            evaluation,
            stress=stressed,
            explanation=measured[0],
            shortcuts=measured[1],
        )
    if data is not None:
        cards["data_card.md"] = data_card(data)
    for name, text in cards.items():
        say(f"Wrote {write_text(out / name, text)}")

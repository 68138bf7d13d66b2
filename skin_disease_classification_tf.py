"""Prepare data, split it by lesion, train a classifier and evaluate it, in one go.

    python skin_disease_classification_tf.py                          (drawn images, no download)
    python skin_disease_classification_tf.py SOURCE --out runs/first --weights imagenet

SOURCE holds the archives of HAM10000 as downloaded (or their content), or is a data set that
'dermlens data prepare' wrote. Written are OUT/data, OUT/run/bundle and OUT/evaluation; a run that
was interrupted goes on where it stopped. Without SOURCE everything runs on the embedded data set
of drawn images, as 'dermlens demo' does.

Exit codes: 0 all went well; 1 the demo ran and its result is worse than expected; 2 bad input.
Research and education only, not a medical device.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

# Runs from a checkout, too, where the package is not installed.
sys.path.insert(0, str(Path(__file__).parent / "src"))


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", nargs="?", type=Path, help="real data")
    parser.add_argument("--out", type=Path, help="folder to write; default runs/first, or demo")
    parser.add_argument("--weights", help="imagenet (download), none, or a .h5 file")
    parser.add_argument("--backbone", help="such as resnet50 (default), densenet169")
    parser.add_argument("--size", help="input size HxW, such as 192x256")
    parser.add_argument("--epochs", type=int, help="training epochs")
    parser.add_argument("--train-from", help="first stage to train, such as conv4 (default); all")
    parser.add_argument("--images", type=int, default=1600, help="drawn images, without SOURCE")
    parser.add_argument("--seed", type=int, default=0, help="sets everything random")
    return parser.parse_args(given)


def run(options: argparse.Namespace) -> None:
    """Do it all on real data."""
    from dermlens.cli_options import parse_size
    from dermlens.data.manifest import read_manifest
    from dermlens.data.preparation import prepare
    from dermlens.data.splits import split_data_set
    from dermlens.model.configuration import preset
    from dermlens.model.training import train
    from dermlens.progress import say
    from dermlens.report.evaluation_report import write_evaluation, write_training_figures
    from dermlens.serve.prediction import predict_split

    out = options.out or Path("runs/first")
    data = options.source
    if not (data / "manifest.csv").is_file():
        data = prepare(options.source, out / "data").data
    if read_manifest(data).split.isna().any():
        split_data_set(data, seed=options.seed)
    base = preset("ham10000")
    network = {
        "backbone": options.backbone,
        "input_size": options.size and parse_size(options.size),
    }
    changes = {
        "architecture": replace(base.architecture, **{k: v for k, v in network.items() if v}),
        "seed": options.seed,
        "weights": options.weights,
        "train_from": options.train_from,
        "epochs": options.epochs,
    }
    configuration = preset("ham10000", **{k: v for k, v in changes.items() if v is not None})
    resume = (out / "run" / "configuration.json").is_file()
    bundle = train(data, out / "run", configuration, resume=resume)
    written = write_training_figures(out / "run", data)
    table = predict_split(bundle, data, "test")
    paths = write_evaluation(
        table, bundle.calibration, out / "evaluation", seed=options.seed, model=bundle.identity
    )
    for path in [*written, *paths.values()]:
        say(f"Wrote {path}")


def run_on_drawn_images(options: argparse.Namespace) -> bool:
    """Do it all on the embedded data set; return whether the result is as good as expected."""
    from dermlens.serve.demo import run_demo

    out = options.out or Path("demo")
    return run_demo(out, images=options.images, epochs=options.epochs, seed=options.seed)[1]


def main(given: list[str] | None = None) -> int:
    """Run; return the exit code."""
    options = arguments(given)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from dermlens.errors import DermlensError, UsageError

    try:
        if options.source is not None:
            run(options)
            return 0
        if options.weights or options.backbone or options.size:
            raise UsageError("--weights, --backbone and --size need SOURCE, the real data.")
        return 0 if run_on_drawn_images(options) else 1
    except (DermlensError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())

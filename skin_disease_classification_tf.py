"""Data preparation, splitting, exploration, training and evaluation in one go.

Run ``python skin_disease_classification_tf.py path/to/HAM10000 --out runs/first``, where the folder
holds the archives or images of HAM10000 and its metadata. Without arguments everything runs on
the embedded data set of drawn images, as ``dermlens demo`` does. Interrupted runs go on where they
stopped.
"""

import argparse
import sys
from pathlib import Path

from dermlens.cli import main

STAGES = """Stages, each also a command of its own:
  dermlens data prepare SOURCE --out OUT/data
  dermlens data split OUT/data
  dermlens data audit OUT/data
  dermlens data explore OUT/data --out OUT/exploration
  dermlens train OUT/data --out OUT/run --weights WEIGHTS
  dermlens evaluate OUT/run/bundle OUT/data --out OUT/evaluation"""


def run(*arguments: str | Path) -> None:
    """Run one command of dermlens; stop where it fails."""
    sys.argv[1:] = [str(argument) for argument in arguments]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise


def everything(source: Path, out: Path, options: list[str]) -> None:
    """Go all the way from archives to figures."""
    data, training = out / "data", out / "run"
    run("data", "prepare", source, "--out", data)
    run("data", "split", data)
    run("data", "audit", data)
    run("data", "explore", data, "--out", out / "exploration")
    resume = ["--resume"] if (training / "configuration.json").is_file() else []
    run("train", data, "--out", training, *options, *resume)
    run("evaluate", training / "bundle", data, "--out", out / "evaluation")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; options that are not known here go to ``dermlens train``."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=STAGES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", type=Path, help="folder with HAM10000")
    parser.add_argument("--out", type=Path, help="folder to write; default runs/ham10000 or demo")
    return parser.parse_known_args()


if __name__ == "__main__":
    given, training_options = parse()
    if given.source is None:
        run("demo", "--out", given.out or Path("demo"), *training_options)
    else:
        everything(given.source, given.out or Path("runs/ham10000"), training_options)

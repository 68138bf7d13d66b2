"""Options that several commands share."""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dermlens.errors import UsageError
from dermlens.locks import folder_lock
from dermlens.progress import say

if TYPE_CHECKING:
    from dermlens.model.bundle import Bundle


class Decision(StrEnum):
    """What stands first in an answer."""

    MOST_PROBABLE = "most_probable"
    BALANCED = "balanced"


BundlePath = Annotated[
    Path | None,
    typer.Argument(help="Folder of a trained model; default the one that comes with dermlens."),
]
Methods = Annotated[
    str, typer.Option(help="Names separated by commas; 'six' for the six methods; 'all'.")
]
Target = Annotated[
    str | None, typer.Option(help="A code, predicted (the default), runner_up or flagged.")
]
Seed = Annotated[int, typer.Option(help="Sets everything random.")]
BatchSize = Annotated[int, typer.Option(help="Images per pass; bounds memory.")]
AllowTrainingImages = Annotated[
    bool,
    typer.Option(
        "--allow-training-images", help="Keep images that the model was trained on; else left out."
    ),
]
ScorerChoice = Annotated[
    str | None,
    typer.Option(
        help="What evaluates changed images for occlusion, LIME, SHAP and RISE: float32, or "
        "int8 (faster); default int8 where 'dermlens scorer' found the maps to agree."
    ),
]

BundleAndImages = Annotated[
    list[Path],
    typer.Argument(
        metavar="[BUNDLE] IMAGE...",
        help="Images or folders of images; before them, a bundle if it is not to be the one that "
        "comes with dermlens.",
    ),
]
BundleAndData = Annotated[
    list[Path],
    typer.Argument(
        metavar="[BUNDLE] DATA",
        help="Prepared and split data set; before it, a bundle if it is not to be the one that "
        "comes with dermlens.",
    ),
]


def bundle_and_data(paths: list[Path]) -> tuple[Path, Path]:
    """Return the bundle, which may be left out, and the data set that were given."""
    from dermlens.model.bundle import bundle_and_rest

    # Of two paths the first can only be meant as a bundle, and is refused if it is none.
    bundle, rest = (paths[0], paths[1:]) if len(paths) == 2 else bundle_and_rest(paths)
    if len(rest) != 1:
        raise UsageError("Give one prepared data set, and before it at most one bundle.")
    return bundle, rest[0]


def load_named(path: Path) -> "Bundle":
    """Load a bundle and say which model it is, so that no output is of an unknown one."""
    from dermlens.model.bundle import load_bundle

    bundle = load_bundle(path)
    say(f"Model: {bundle.label}")
    return bundle


def say_written(paths: Iterable[Path]) -> None:
    """Say what was written, a line for each path."""
    for path in paths:
        say(f"Wrote {path}")


def parse_size(text: str) -> tuple[int, int]:
    """Turn ``"192x256"`` (height x width) into ``(192, 256)``.

    Example:
        >>> parse_size("192x256")
        (192, 256)
    """
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size. Write height x width, such as 192x256.")
    return int(match[1]), int(match[2])


def parse_range(text: str) -> tuple[float, float]:
    """Turn ``"0,1"`` into ``(0.0, 1.0)``.

    Example:
        >>> parse_range("-1,1")
        (-1.0, 1.0)
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} is no range. Write black,white, such as 0,1.") from None
    return low, high


def parse_pairs(text: str) -> dict[str, str]:
    """Turn ``"image=file,label=diagnosis"`` into a dictionary.

    Raises:
        UsageError: If a part has another form, or a word stands twice.

    Example:
        >>> parse_pairs("image=file,label=diagnosis")
        {'image': 'file', 'label': 'diagnosis'}
    """
    pairs: dict[str, str] = {}
    for part in text.split(","):
        word, sign, value = (one.strip() for one in part.partition("="))
        if not (word and sign and value) or word in pairs:
            raise UsageError(f"{part.strip()!r} cannot be used. Write word=column,word=column.")
        pairs[word] = value
    return pairs


held = ExitStack()
"""Locks of the command that runs; ``cli.main`` closes it."""


def claim(out: Path, *, reading: Path | None = None) -> None:
    """Keep other runs out of a folder until this command ends."""
    held.enter_context(folder_lock(out))
    if reading is not None:
        held.enter_context(folder_lock(reading, shared=True))

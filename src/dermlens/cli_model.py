"""The commands that turn a finished run into something to hand out."""

from pathlib import Path
from typing import Annotated

import typer

from dermlens.progress import say


def pack(
    bundle: Annotated[Path, typer.Argument(help="Bundle of a finished run.")],
    data: Annotated[Path, typer.Argument(help="The data set it was trained on.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    storage: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
) -> None:
    """Write a smaller bundle, calibrated again to its weights as they are stored.

    Example: dermlens pack runs/first/bundle DATA --out packed
    """
    from dermlens.model.finishing import pack as write_packed

    write_packed(bundle, data, out, dtype=storage)
    size = sum(file.stat().st_size for file in out.iterdir())
    say(f"Wrote {out} ({size / 1e6:.1f} MB)")

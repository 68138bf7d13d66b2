"""One look for every figure."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INK = "#1f2933"
MUTED = "#6b7280"
ACCENT = "#0072B2"
WARNING = "#D55E00"

_SETTINGS: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 130,
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the common look inside a ``with`` block, without touching global settings."""
    import matplotlib as mpl

    settings: Any = _SETTINGS
    with mpl.rc_context(settings):
        yield


def new_axes(
    width: float, height: float, rows: int = 1, columns: int = 1, **how: Any
) -> tuple[Any, Any]:
    """Return an empty figure, size in inches, and its axes, as ``Figure.subplots`` does."""
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, **how)


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib Figure, size in inches, that belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")

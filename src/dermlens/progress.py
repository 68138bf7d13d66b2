"""Progress of long work: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Advance = Callable[..., None]
"""Called as ``advance(steps=1, note="")`` after each piece of work."""

SECONDS_BETWEEN_LINES = 10.0


def say(text: str = "") -> None:
    """Print one line to standard output at once."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def printable(text: str) -> str:
    """Return a text that can be written as UTF-8: names of files may be any bytes.

    Example:
        >>> printable("mole_" + chr(0xDCFF))
        'mole_\\\\udcff'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def duration(seconds: float) -> str:
    """Write seconds for people.

    Example:
        >>> duration(75), duration(4.2), duration(7200)
        ('1 min 15 s', '4 s', '2 h 00 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def progress(title: str, total: int) -> AbstractContextManager[Advance]:
    """Show progress of ``total`` steps on standard error and yield ``advance(steps, note)``."""
    return (_bar if sys.stderr.isatty() else _lines)(title, total)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("ETA"),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[note]}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, note=note)

        yield advance


@contextmanager
def _lines(title: str, total: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        remaining = (now - start) / max(done, 1) * max(total - done, 0)
        print(
            f"{title}: {done}/{total}, ETA {duration(remaining)} {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )

    yield advance


def track(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Iterate over ``items`` while showing progress."""
    with progress(title, total) as advance:
        for item in items:
            yield item
            advance()

"""Stopping long work between two batches.

Whoever runs an explainer may say that its result is no longer wanted: each batch of changed images,
of gradients and of plain logits begins with a ``stop_point``. What explainers keep between calls is
only ever added to after a whole piece of work, so nothing is left half-made.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Stopped(Exception):
    """The work was no longer wanted. No error of anybody's, so never shown."""


_unwanted: ContextVar[Callable[[], bool] | None] = ContextVar("unwanted", default=None)


@contextmanager
def stoppable(unwanted: Callable[[], bool]) -> Iterator[None]:
    """End what runs inside with ``Stopped``, before its next batch, once ``unwanted()`` is true.

    Args:
        unwanted: Asked before every batch, in the thread that works.
    """
    token = _unwanted.set(unwanted)
    try:
        yield
    finally:
        _unwanted.reset(token)


def stop_point() -> None:
    """Raise ``Stopped`` if the work around is no longer wanted; else do nothing."""
    unwanted = _unwanted.get()
    if unwanted is not None and unwanted():
        raise Stopped

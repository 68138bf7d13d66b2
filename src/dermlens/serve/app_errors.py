"""Errors of the web interface: one sentence on the page, never a traceback anywhere."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from dermlens.errors import DermlensError
from dermlens.progress import say

_SECONDS_SHOWN = 20


def sentences(process: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Turn errors into one sentence on the page."""

    @wraps(process)
    async def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            return await process(*arguments, **options)
        except Exception as error:
            raise shown(error) from None

    return guarded


def shown(error: Exception) -> Exception:
    """Return the error to show; the terminal learns the kind of an unexpected one, no more.

    The message of an unexpected error may hold something of the visitor's, so it is not printed.
    """
    import gradio as gr

    if isinstance(error, DermlensError | gr.Error):
        text = error.message if isinstance(error, gr.Error) else str(error)
        return gr.Error(text, duration=_SECONDS_SHOWN, print_exception=False)
    say(f"Unexpected {type(error).__name__} in the web interface, in {place_of(error)}.")
    return gr.Error(
        "This did not work, and it is not your fault. Try another image.",
        duration=_SECONDS_SHOWN,
        print_exception=False,
    )


def place_of(error: Exception) -> str:
    """Return the function and line where an error was raised."""
    trace, where = error.__traceback__, "an unknown place"
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return where

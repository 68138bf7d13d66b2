"""Errors of the web interface: one sentence on the page, never a traceback."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from dermlens.errors import DermlensError
from dermlens.progress import say

_SECONDS_SHOWN = 20


def sentences(action: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors of an action into one sentence on the page."""

    @wraps(action)
    def guarded(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except Exception as error:
            raise shown(error) from None

    return guarded


def sentences_while_running(action: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """As ``sentences``, for actions that yield."""

    @wraps(action)
    def guarded(*arguments: Any) -> Iterator[Any]:
        try:
            yield from action(*arguments)
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
    trace, where = error.__traceback__, ""
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    say(f"Unexpected {type(error).__name__} in the web interface, in {where}.")
    return gr.Error(
        "This did not work, and it is not your fault. Try another image.",
        duration=_SECONDS_SHOWN,
        print_exception=False,
    )

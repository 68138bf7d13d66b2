"""Long jobs: one for each session, and none that nobody listens to.

A job is an event of Gradio's queue whose function yields. It runs in a thread, step by step, while
the server's loop looks whether somebody still reads its results. If not, or if it is canceled,
the work ends before its next batch (``explainers.stopping``), not at the end of the method that
runs.
"""

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from dermlens.errors import UsageError
from dermlens.explainers.stopping import Stopped, stoppable
from dermlens.serve.app_guard import Readers, sentences
from dermlens.serve.app_limits import client_of
from dermlens.serve.app_uploads import SECONDS_KEPT

SECONDS_UNREAD = 5.0
"""After which a job ends that nobody listens to: time to open the results after asking for them."""
JOBS_EACH = 4
"""Of one kind, running or waiting, from one address."""
_SECONDS_BETWEEN = 0.1
UNREAD = (
    "Nobody listened, so the work was ended. Read the results as soon as you have asked for them."
)
ONE_EACH = "Your last request of this kind is still running. Wait for it, or stop it first."
FEW_EACH = (
    f"{JOBS_EACH} requests of this kind from your address are running or waiting already. Try "
    "again when one of them is finished."
)
_END = object()


class Jobs:
    """Watches over the queue of a page."""

    def __init__(self, readers: Readers | None = None) -> None:
        self.readers = readers or Readers()
        self._queue: Any = None
        self._stops: weakref.WeakSet[threading.Event] = weakref.WeakSet()
        self._unread: dict[str, float] = {}
        self._stopped: dict[tuple[str, str], float] = {}

    def attach(self, page: Any) -> None:
        """Let a page, whose queue is made, ask here before it takes an event."""
        self._queue = page._queue
        self.readers.session_of = self._session_of
        page.process_api = self._noting_the_end(sentences(page.process_api))
        self._queue.push = self._refusing(self._queue.push)

    def stoppable(
        self, action: Callable[..., Iterator[Any]], stopped: Callable[..., Any] | None = None
    ) -> Callable[..., AsyncIterator[Any]]:
        """Return an action that yields as one that ends before its next batch if not wanted.

        What ``stopped`` returns, given the same arguments, is yielded last after a stop: Gradio
        shows the last result of an action once more when it ends.
        """

        @wraps(action)
        async def run(*arguments: Any) -> AsyncIterator[Any]:
            stop = threading.Event()
            self._stops.add(stop)
            steps, event = action(*arguments), self._event()
            heard = time.monotonic() if event is None else event.enqueue_time
            try:
                while not self._is_stopped(event):
                    step = asyncio.ensure_future(asyncio.to_thread(_next, steps, stop))
                    # Its end is seen below or, after a cancellation, by nobody.
                    step.add_done_callback(lambda done: done.cancelled() or done.exception())
                    while not (await asyncio.wait({step}, timeout=_SECONDS_BETWEEN))[0]:
                        heard = self._last_heard(event, heard)
                        if time.monotonic() - heard > SECONDS_UNREAD or self._is_stopped(event):
                            stop.set()
                    found = await step
                    if found is _END:
                        return
                    if not self._is_stopped(event):
                        yield found
            except Stopped:
                if not self._is_stopped(event):
                    raise UsageError(UNREAD) from None
            finally:
                stop.set()
            if stopped is not None:
                yield stopped(*arguments)

        return run

    def stop(self, session: str | None, kind: str) -> None:
        """End a session's jobs of a kind before their next batch, running or waiting.

        The next one may be asked for at once: nothing of those that end is waited for.
        """
        if session is not None:
            self._stopped[session, kind] = time.monotonic()

    def busy(self, session: str | None, kind: str) -> bool:
        """Tell whether a job of a session runs or waits."""
        return any(
            (one.session_hash, one.concurrency_id) == (session, kind) for one in self._events()
        )

    def _is_stopped(self, event: Any) -> bool:
        if event is None:
            return False
        when = self._stopped.get((str(event.session_hash), event.concurrency_id), float("-inf"))
        return bool(event.enqueue_time <= when)

    def stop_all(self) -> None:
        """End every job before its next batch."""
        for stop in list(self._stops):
            stop.set()

    def awaited_files(self, leaving: str | None = None) -> set[Path]:
        """Return the uploads that waiting and running events need."""
        return {
            Path(path).resolve()
            for event in self._events()
            if event.data is not None and event.session_hash != leaving
            for path in _paths(event.data.data)
        }

    def drop_unread(self, seconds: float = SECONDS_KEPT) -> None:
        """Forget results that have waited so long for somebody to read them."""
        if self._queue is None:
            return
        now, waiting = time.monotonic(), self._queue.pending_messages_per_session
        self._stopped = {key: when for key, when in self._stopped.items() if now - when < seconds}
        busy = {event.session_hash for event in self._events()}
        unread = {
            session
            for session in list(waiting)
            if session not in busy and session not in self.readers
        }
        self._unread = {session: self._unread.get(session, now) for session in unread}
        for session, since in self._unread.items():
            if now - since >= seconds:
                waiting.pop(session, None)
                self._queue.pending_event_ids_session.pop(session, None)

    def refusal(self, function: Any, session: str | None, address: str | None) -> str | None:
        """Return the sentence why an event is not taken, or None if it is."""
        from inspect import isasyncgenfunction

        if not isasyncgenfunction(function.fn):
            return None
        others = [one for one in self._events() if one.concurrency_id == function.concurrency_id]
        if session is not None and any(one.session_hash == session for one in others):
            return ONE_EACH
        client = client_of(address)
        theirs = [one for one in others if client_of(_address(one.request)) == client]
        return FEW_EACH if len(theirs) >= JOBS_EACH else None

    def _events(self) -> list[Any]:
        """Return the events that wait or run, as long as they are wanted."""
        if self._queue is None:
            return []
        queues = list(self._queue.event_queue_per_concurrency_id.values())
        waiting = [event for queue in queues for event in list(queue.queue)]
        running = [event for job in list(self._queue.active_jobs) if job for event in job]
        return [
            event
            for event in (*waiting, *running)
            if event.alive and not event.closed and not self._is_stopped(event)
        ]

    def _event(self) -> Any:
        from gradio.context import LocalContext

        if self._queue is None:
            return None
        return self._queue.event_ids_to_events.get(LocalContext.event_id.get())

    def _session_of(self, identity: str) -> str:
        event = self._queue.event_ids_to_events.get(identity)
        if event is not None:
            return str(event.session_hash)
        # One that has ended is still pending until its result is read.
        sessions = self._queue.pending_event_ids_session.items()
        return next((one for one, events in sessions if identity in events), identity)

    def _last_heard(self, event: Any, before: float) -> float:
        """Return when somebody last listened to an event."""
        if event is None or event.session_hash in self.readers:
            return time.monotonic()
        # Gradio has seen the reader leave, or the session end.
        return before if event.alive and not event.closed else float("-inf")

    def _noting_the_end(self, process: Callable[..., Any]) -> Callable[..., Any]:
        """Close an event before its last result is sent, so that the next may follow at once."""

        async def noted(*arguments: Any, **options: Any) -> Any:
            going_on = False
            try:
                found = await process(*arguments, **options)
                going_on = bool(found.get("is_generating"))
                return found
            finally:
                event = self._queue.event_ids_to_events.get(options.get("event_id"))
                if event is not None and not going_on:
                    event.closed = True

        return noted

    def _refusing(self, push: Callable[..., Any]) -> Callable[..., Any]:
        async def pushed(body: Any, request: Any, username: str | None) -> Any:
            from gradio.route_utils import get_fn

            function = get_fn(self._queue.blocks, None, body)
            refusal = self.refusal(function, body.session_hash, _address(request))
            if refusal is None:
                return await push(body, request, username)
            return True, self._answered(body, function, request, username, refusal), "success"

        return pushed

    def _answered(
        self, body: Any, function: Any, request: Any, username: str | None, sentence: str
    ) -> str:
        """Return an event that fails with a sentence, which every kind of client shows."""
        import gradio as gr
        from gradio.queueing import Event
        from gradio.server_messages import ProcessCompletedMessage
        from gradio.utils import error_payload

        queue, event = self._queue, Event(body.session_hash, function, request, username)
        session = event.session_hash
        queue.pending_messages_per_session.setdefault(session, asyncio.Queue())
        queue.pending_event_ids_session.setdefault(session, set()).add(event._id)
        content = error_payload(gr.Error(sentence), True)
        title = content.get("title", "Error")
        message = ProcessCompletedMessage(output=content, title=title, success=False)
        queue.send_message(event, message)
        identity: str = event._id
        return identity


def _next(steps: Iterator[Any], stop: threading.Event) -> Any:
    with stoppable(stop.is_set):
        return next(steps, _END)


def _address(request: Any) -> str | None:
    return None if request is None or request.client is None else str(request.client.host)


def _paths(value: Any) -> Iterator[str]:
    """Yield the paths of files that a request names, however deep."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _paths(one)

"""Long jobs: one for each session, and none that nobody listens to."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.stopping import stop_point
from dermlens.explainers.target import PREDICTED, RUNNER_UP
from dermlens.serve import app_jobs
from dermlens.serve.app_explaining import Explaining
from dermlens.serve.app_jobs import FEW_EACH, JOBS_EACH, ONE_EACH, UNREAD, Jobs
from serving_support import picture


async def long_job() -> AsyncIterator[int]:
    yield 1


def short_job() -> int:
    return 1


LONG = SimpleNamespace(fn=long_job, concurrency_id="explaining")
OTHER = SimpleNamespace(fn=long_job, concurrency_id="batch")
SHORT = SimpleNamespace(fn=short_job, concurrency_id="explaining")


def event(session: str, function: Any = LONG, address: str = "192.0.2.1", data: Any = None) -> Any:
    """What Gradio keeps of a call."""
    return SimpleNamespace(
        session_hash=session,
        concurrency_id=function.concurrency_id,
        request=SimpleNamespace(client=SimpleNamespace(host=address)),
        data=SimpleNamespace(data=data or []),
        alive=True,
        closed=False,
        enqueue_time=time.monotonic(),
    )


def watching(waiting: list[Any], running: list[Any]) -> Jobs:
    """Jobs that watch over a queue."""
    jobs = Jobs()
    jobs._queue = SimpleNamespace(
        event_queue_per_concurrency_id={"one": SimpleNamespace(queue=waiting)},
        active_jobs=[None, running],
        pending_messages_per_session={},
        pending_event_ids_session={},
        event_ids_to_events={},
    )
    return jobs


def test_a_session_has_one_job_of_a_kind() -> None:
    waiting, running = event("ann"), event("bob")
    jobs = watching([waiting], [running])
    assert jobs.refusal(LONG, "ann", "192.0.2.9") == ONE_EACH
    assert jobs.refusal(LONG, "bob", "192.0.2.9") == ONE_EACH
    for function, session in ((LONG, "cid"), (LONG, None), (OTHER, "ann"), (SHORT, "ann")):
        assert jobs.refusal(function, session, "192.0.2.9") is None
    # Neither what was left nor what has just ended stands in the way.
    waiting.alive, running.closed = False, True
    assert jobs.refusal(LONG, "ann", None) is None and jobs.refusal(LONG, "bob", None) is None


def test_an_address_has_few_jobs_of_a_kind() -> None:
    jobs = watching([event(str(number)) for number in range(JOBS_EACH)], [])
    assert jobs.refusal(LONG, "ann", "192.0.2.1") == FEW_EACH
    assert jobs.refusal(LONG, "ann", "192.0.2.2") is None
    assert jobs.refusal(OTHER, "ann", "192.0.2.1") is None
    jobs._queue.event_queue_per_concurrency_id["one"].queue.pop()
    assert jobs.refusal(LONG, "ann", "192.0.2.1") is None


def test_files_of_waiting_and_running_calls_are_awaited(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    file = {"path": first, "meta": {"_type": "gradio.FileData"}}
    jobs = watching(
        [event("ann", data=[file, ["grad_cam"], "mel"])], [event("bob", data=[[{"path": second}]])]
    )
    resolved = [Path(one).resolve() for one in (first, second)]
    assert jobs.awaited_files() == set(resolved)
    assert jobs.awaited_files("ann") == {resolved[1]}
    jobs._queue.active_jobs[1][0].closed = True
    assert jobs.awaited_files("ann") == set() == Jobs().awaited_files()


def test_unread_results_are_dropped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(app_jobs.time, "monotonic", lambda: now)
    jobs = watching([event("waiting")], [])
    queue = jobs._queue
    queue.pending_messages_per_session.update(dict.fromkeys(("waiting", "read", "left"), "results"))
    queue.pending_event_ids_session.update(read={"e1"}, left={"e2"})
    assert [jobs._session_of(one) for one in ("e1", "e2", "e3")] == ["read", "left", "e3"]
    with jobs.readers.reading("read"):
        jobs.drop_unread(100)
        now = 100.0
        jobs.drop_unread(100)
        assert set(queue.pending_messages_per_session) == {"waiting", "read"}
        assert set(queue.pending_event_ids_session) == {"read"}
    jobs.drop_unread(100)
    now = 199.0
    jobs.drop_unread(100)
    assert "read" in queue.pending_messages_per_session
    now = 200.0
    jobs.drop_unread(100)
    assert set(queue.pending_messages_per_session) == {"waiting"}
    Jobs().drop_unread()


class Batches:
    """An action of two results with batches between that never end by themselves."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self) -> Iterator[int]:
        yield 1
        try:
            while True:
                stop_point()
                self.begun.set()
                time.sleep(0.001)
        finally:
            self.ended.set()


def run(jobs: Jobs, action: Any, leave: Any, seen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an action as an event that is ``seen``, and call ``leave`` once its batches run."""
    monkeypatch.setattr(jobs, "_event", lambda: seen)

    async def all_of_it() -> None:
        results = jobs.stoppable(action)()
        assert await anext(results) == 1
        rest = asyncio.ensure_future(anext(results))
        await asyncio.to_thread(action.begun.wait, 20)
        leave(rest)
        await rest

    asyncio.run(all_of_it())


def test_jobs_that_nobody_listens_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_jobs, "SECONDS_UNREAD", 0.0)
    never_read, left = event("ann"), event("bob")
    for seen, leave in ((never_read, lambda _: None), (left, lambda _: setattr(left, "alive", 0))):
        jobs, action = watching([], [seen]), Batches()
        with pytest.raises(UsageError, match="Nobody listened"):
            run(jobs, action, leave, seen, monkeypatch)
        assert action.ended.is_set()


def test_jobs_end_as_soon_as_gradio_sees_the_reader_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_jobs, "SECONDS_UNREAD", 1e9)
    for name, value in (("alive", False), ("closed", True)):
        seen, action = event("ann"), Batches()
        jobs = watching([], [seen])
        leave = partial(setattr, seen, name, value)
        with pytest.raises(UsageError, match="Nobody listened"):
            run(jobs, action, lambda _, leave=leave: leave(), seen, monkeypatch)
        assert action.ended.is_set()


def test_canceled_jobs_end_although_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_jobs, "SECONDS_UNREAD", 1.0)
    for leave in (lambda rest: rest.cancel(), None):
        seen, action = event("ann"), Batches()
        jobs = watching([], [seen])
        stop = leave or (lambda _, jobs=jobs: jobs.stop_all())
        with (
            jobs.readers.reading("ann"),
            pytest.raises(asyncio.CancelledError if leave else UsageError),
        ):
            run(jobs, action, stop, seen, monkeypatch)
        assert action.ended.wait(20)


def test_stop_ends_what_runs_and_what_waits_and_admits_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, action = event("ann"), Batches()
    jobs = watching([event("bob")], [seen])
    monkeypatch.setattr(jobs, "_event", lambda: seen)
    assert jobs.refusal(LONG, "ann", None) == ONE_EACH and jobs.busy("ann", "explaining")

    async def stopped_on_the_way() -> list[Any]:
        results = jobs.stoppable(action, lambda: "stopped")()
        got = [await anext(results)]
        rest = asyncio.ensure_future(anext(results))
        await asyncio.to_thread(action.begun.wait, 20)
        jobs.stop("ann", "batch")
        jobs.stop("ann", "explaining")
        return [*got, await rest, *[one async for one in results]]

    async def never_begun(waiting: Batches) -> list[Any]:
        return [one async for one in jobs.stoppable(waiting, lambda: "stopped")()]

    with jobs.readers.reading("ann"):
        assert asyncio.run(stopped_on_the_way()) == [1, "stopped"]
        assert action.ended.wait(20)
        waiting = Batches()
        assert asyncio.run(never_begun(waiting)) == ["stopped"] and not waiting.begun.is_set()
    assert jobs.refusal(LONG, "ann", None) is None and not jobs.busy("ann", "explaining")
    assert jobs.refusal(LONG, "bob", None) == ONE_EACH


def test_jobs_that_are_read_come_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_jobs, "SECONDS_UNREAD", 0.05)
    jobs = watching([], [])
    monkeypatch.setattr(jobs, "_event", lambda: event("ann"))

    def action() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.15)
            stop_point()
            yield number

    async def all_of_it() -> list[int]:
        return [one async for one in jobs.stoppable(action)()]

    with jobs.readers.reading("ann"):
        assert asyncio.run(all_of_it()) == [0, 1, 2]


def started(url: str, endpoint: str, data: list[Any], **more: Any) -> str:
    """Start an action over plain HTTP and return its event."""
    address = f"{url}gradio_api/call/{endpoint}"
    return str(
        httpx.post(address, json={"data": data, **more}).raise_for_status().json()["event_id"]
    )


def last(url: str, endpoint: str, identity: str) -> str:
    """Read an event to its end; the last two lines."""
    answer = httpx.get(f"{url}gradio_api/call/{endpoint}/{identity}", timeout=60)
    return "\n".join(answer.text.strip().splitlines()[-2:])


@contextmanager
def messages_of(url: str, session: str) -> Iterator[Iterator[Any]]:
    """What a session is told."""
    address = f"{url}gradio_api/queue/data?session_hash={session}"
    with httpx.stream("GET", address, timeout=60) as stream:
        yield (json.loads(one[6:]) for one in stream.iter_lines() if one.startswith("data: "))


def wait_for(messages: Iterator[Any], kind: str, identity: str) -> Any:
    """The next message of a kind to an event."""
    return next(m for m in messages if (m["msg"], m.get("event_id")) == (kind, identity))


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Batches]]:
    """Explanations that do not end by themselves, as they begin."""
    begun: list[Batches] = []

    def explain(self: Any, analysis: Any, *_: Any, **__: Any) -> Iterator[Any]:
        begun.append(Batches())
        for _ in begun[-1]():
            pass
        yield

    monkeypatch.setattr(Explaining, "explain", explain)
    yield begun
    deadline = time.monotonic() + 20
    while not all(one.ended.is_set() for one in begun) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(one.ended.is_set() for one in begun)


def uploaded(url: str, folder: Path) -> dict[str, Any]:
    picture(3, 240, 320).save(folder / "lesion.png")
    files = {"files": ("lesion.png", (folder / "lesion.png").read_bytes())}
    path = httpx.post(f"{url}gradio_api/upload", files=files).json()[0]
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_unread_calls_do_not_hold_the_next_visitor(
    served: Any, endless: list[Batches], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_jobs, "SECONDS_UNREAD", 0.3)
    data = [uploaded(served.url, tmp_path), ["grad_cam"], PREDICTED, "inferno", "none", False]
    unread = [started(served.url, "explain", data) for _ in range(3)]
    monkeypatch.setattr(Explaining, "compare", lambda *_, **__: iter(()))
    request = [*data[:3], RUNNER_UP, False, "inferno", "none", False]
    visitor = started(served.url, "compare", request)
    # The visitor reads at once and is served, although nobody has ended the three.
    assert "event: complete" in last(served.url, "compare", visitor)
    for identity in unread:
        assert UNREAD in last(served.url, "explain", identity)


def test_the_second_job_of_a_session_is_refused_with_a_sentence(
    served: Any, endless: list[Batches], tmp_path: Path
) -> None:
    data = [uploaded(served.url, tmp_path), ["grad_cam"], PREDICTED, "inferno", "none", False]
    dependencies = httpx.get(f"{served.url}config").json()["dependencies"]
    number = next(one["id"] for one in dependencies if one["api_name"] == "explain")
    session = {"session_hash": "ann-jobs"}

    def cancel(identity: str) -> None:
        body = {**session, "fn_index": number, "event_id": identity}
        httpx.post(f"{served.url}gradio_api/cancel", json=body).raise_for_status()

    first = started(served.url, "explain", data, **session)
    with messages_of(served.url, "ann-jobs") as messages:
        wait_for(messages, "process_starts", first)
        request = [*data[:3], RUNNER_UP, False, "inferno", "none", False]
        for second in (
            started(served.url, "explain", data, **session),
            started(served.url, "compare", request, **session),
        ):
            refused = wait_for(messages, "process_completed", second)
            assert refused["success"] is False and refused["output"]["error"] == ONE_EACH
        assert not any(one.ended.is_set() for one in endless)
        cancel(first)
    # Stopped, it stands in nobody's way at once.
    third = started(served.url, "explain", data, **session)
    with messages_of(served.url, "ann-jobs") as messages:
        wait_for(messages, "process_starts", third)
        cancel(third)
        assert wait_for(messages, "process_completed", third)["success"]


def test_the_queue_cannot_be_passed_by(served: Any, tmp_path: Path) -> None:
    data = [uploaded(served.url, tmp_path), "inferno", "none"]
    for route in ("run", "api"):
        answer = httpx.post(f"{served.url}gradio_api/{route}/analyze", json={"data": data})
        assert answer.status_code in (404, 405)

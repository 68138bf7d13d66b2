"""Tasks on Ray: actors of one core that are given tasks as long as there are any.

The driver, this process, keeps the list. A task is given to an actor that is ready; if the actor is
lost with it (killed, out of memory, its machine gone) the task is given to another, three times at
most, and a new actor is started. So a task that ends its worker cannot stop the others, and an
actor that waits for a free core holds nothing.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from dermlens.errors import DermlensError, UsageError
from dermlens.extras import optional
from dermlens.model.lite import available_cores
from dermlens.quiet import quiet_tensorflow
from dermlens.scale.engines import Build, Task, one_thread
from dermlens.serve.app_uploads import RunFolder

ATTEMPTS = 3
"""How often a task may lose its actor; and how many actors in a row may fail to start."""
_HERE = "127.0.0.1"
_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_START_SECONDS, _REACH_SECONDS = 90.0, 10.0
_OBJECTS = 100 * 2**20  # Bytes; only paths are sent.


class _Actor:
    """A worker in a process of its own."""

    def ready(self, build: Build) -> None:
        """Build the worker: load the model, and whatever else it keeps."""
        one_thread()
        quiet_tensorflow()
        self._work = build()

    def do(self, what: Any) -> None:
        """Do a task."""
        self._work(what)


class _Driver:
    """Gives tasks to actors until all are done or given up."""

    def __init__(
        self, ray: Any, build: Build, tasks: Sequence[Task], finished: Callable[[Task], None]
    ) -> None:
        self._ray, self._finished = ray, finished
        # Stored once instead of sent with every actor.
        self._build = ray.put(build)
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
        self._kind = ray.remote(**options)(_Actor)
        self._waiting = deque(tasks)
        self._losses: Counter[str] = Counter()
        self._failed_starts = 0
        self._starting: dict[Any, Any] = {}
        self._working: dict[Any, tuple[Any, Task]] = {}
        self._idle: list[Any] = []
        self._given_up: list[Task] = []

    def run(self, workers: int) -> list[Task]:
        for _ in range(min(workers, len(self._waiting))):
            self._start()
        while self._waiting or self._working:
            done, _ = self._ray.wait([*self._starting, *self._working], num_returns=1)
            for reference in done:
                if reference in self._starting:
                    self._started(reference)
                else:
                    self._worked(reference)
        return self._given_up

    def _start(self) -> None:
        actor = self._kind.remote()
        self._starting[actor.ready.remote(self._build)] = actor

    def _started(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        if self._lost(reference):
            self._failed_starts += 1
            if self._failed_starts < ATTEMPTS:
                self._start()
            elif not (self._starting or self._working or self._idle):
                raise UsageError(
                    "No worker could be started: each ended while it loaded the model. Use fewer "
                    "--workers, so that each has 1.5 GB of memory."
                )
            return
        self._failed_starts = 0
        self._give(actor)

    def _worked(self, reference: Any) -> None:
        actor, task = self._working.pop(reference)
        if not self._lost(reference):
            self._finished(task)
            self._give(actor)
            return
        # It may only be out of reach; what it still writes is the same.
        with suppress(Exception):
            self._ray.kill(actor)
        self._losses[task.name] += 1
        if self._losses[task.name] >= ATTEMPTS:
            self._given_up.append(task)
        else:
            self._waiting.append(task)
        if self._waiting and self._idle:
            self._give(self._idle.pop())
        elif self._waiting:
            self._start()

    def _give(self, actor: Any) -> None:
        if not self._waiting:
            self._idle.append(actor)
            return
        task = self._waiting.popleft()
        self._working[actor.do.remote(task.what)] = (actor, task)

    def _lost(self, reference: Any) -> bool:
        """Tell whether the actor of a call is lost; raise what the call itself raised."""
        errors = self._ray.exceptions
        try:
            self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, DermlensError | OSError):
                raise cause from None
            raise
        except errors.RayError:
            return True
        return False


def run_on_ray(
    build: Build,
    tasks: Sequence[Task],
    finished: Callable[[Task], None],
    address: str | None,
    workers: int | None,
) -> list[Task]:
    """Make tasks on a Ray cluster; return those that were given up.

    Args:
        build: Makes a worker; called in each actor.
        tasks: What is to be made.
        finished: Called with each task that is done.
        address: ``HOST:PORT`` of a cluster; None to start one on this machine that only this
            machine reaches, and to end it afterwards.
        workers: Number of actors; default one per core of the cluster.

    Raises:
        UsageError: If Ray is not installed, or no cluster can be reached or started.
        DermlensError: What a worker raises.
    """
    with _cluster(address, workers or available_cores()) as ray:
        count = workers or int(ray.cluster_resources().get("CPU", 1))
        return _Driver(ray, build, tasks, finished).run(count)


@contextmanager
def _cluster(address: str | None, cores: int) -> Iterator[Any]:
    """Connect to a cluster and yield the module ``ray``."""
    with _local_head(cores) if address is None else _reached(address) as place:
        # Ray reads what the environment says when it is imported.
        ray = optional("ray")
        try:
            ray.init(address=place, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"The Ray cluster at {place} cannot be used ({reason}). Check the address, that "
                "its nodes run the same versions of Ray and Python, and RAY_AUTH_TOKEN."
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _reached(address: str) -> Iterator[str]:
    """Yield an address that somebody listens at; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"No Ray cluster can be reached at {address} ({error}). Give HOST:PORT of its head, "
            "such as head:6379."
        ) from error
    yield address


@cache
def _settings() -> dict[str, str]:
    """Return the environment of a cluster of this machine, the same for all of this process."""
    return {
        # A token that nobody else knows; and without this switch, named after other systems, Ray
        # takes 127.0.0.1 for the address that other machines know, and listens everywhere.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        _SWITCH: "0",
    }


@contextmanager
def _local_head(cores: int) -> Iterator[str]:
    """Start a cluster of this machine that listens on 127.0.0.1 alone and asks for a password."""
    # Deleted by the next run if this one is killed.
    place, port = RunFolder(), _free_port()
    folder = place.path
    known = sys.modules.get("ray._private.ray_constants")
    if getattr(known, "ENABLE_RAY_CLUSTER", False):
        raise UsageError(
            "Ray was imported before dermlens could tell it to stay on this machine. Start the "
            "work before importing ray, or give the address of a cluster."
        )
    before = {name: os.environ.get(name) for name in _settings()}
    os.environ.update(_settings())
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address", _HERE, "--port", str(port), "--num-cpus", str(cores)),
        *("--include-dashboard", "false", "--include-log-monitor", "false", "--no-monitor"),
        # Fixed ports would be in the way of another cluster of this machine.
        *("--min-worker-port", "0", "--max-worker-port", "0"),
        *("--ray-client-server-port", str(_free_port()), "--disable-usage-stats"),
        *("--object-store-memory", str(_OBJECTS), "--temp-dir", str(folder)),
    ]
    with open(folder / "start.log", "wb") as log:
        head = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform.startswith("linux") else None,
        )
    try:
        _wait_for(head, port, folder / "start.log")
        yield f"{_HERE}:{port}"
    finally:
        head.terminate()
        try:
            head.wait(20)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        place.close()


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind((_HERE, 0))
        return int(opened.getsockname()[1])


def _wait_for(head: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and head.poll() is None:
        with suppress(OSError), socket.create_connection((_HERE, port), 1):
            return
        time.sleep(0.2)
    lines = log.read_text(errors="replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    raise UsageError(f"Ray could not be started on this machine ({said.strip()[:200]}).")


def _end_with_parent() -> None:
    """Let the head be told to end when this process is killed."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

"""Who makes the tasks: this process, or actors of Ray. An engine knows nothing of what they are."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dermlens.errors import UsageError
from dermlens.progress import progress

ONE_THREAD = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
"""Environment variables by which TensorFlow and NumPy use one core."""


class EngineName(StrEnum):
    """Where the work is done."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True)
class Task:
    """A piece of work, and how much of it there is.

    Attributes:
        name: What people call it.
        what: What the worker gets; small and picklable, since it may be sent.
        passes: About how many passes through the network it takes.
        images: How many images it finishes.
    """

    name: str
    what: Any
    passes: int
    images: int = 1


Build = Callable[[], Callable[[Any], None]]
"""Makes a worker, which does one task after the other; picklable, and called where it works."""


@dataclass(frozen=True)
class Engine:
    """Where tasks are made.

    Attributes:
        name: Of the engine.
        address: ``HOST:PORT`` of a running Ray cluster; None for one of its own on this machine.
        workers: Actors of Ray; None for one per core of the cluster.
    """

    name: EngineName = EngineName.LOCAL
    address: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.name is not EngineName.RAY and (self.address, self.workers) != (None, None):
            raise UsageError("--address and --workers belong to --engine ray. Add it.")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"At least 1 worker is needed, not {self.workers}.")

    def run(self, build: Build, tasks: Sequence[Task], title: str) -> list[Task]:
        """Make all tasks, in any order, and return those that were given up.

        Args:
            build: Makes a worker.
            tasks: What is to be made.
            title: Of the progress, in passes.

        Raises:
            DermlensError: What a worker raises; tasks that are finished stay so.
        """
        if not tasks:
            return []
        with progress(f"{title} (passes)", sum(task.passes for task in tasks)) as advance:
            done, images = 0, sum(task.images for task in tasks)

            def finished(task: Task) -> None:
                nonlocal done
                done += task.images
                advance(task.passes, f"{done} of {images} images" if images else task.name)

            if self.name is EngineName.RAY:
                from dermlens.scale.ray_engine import run_on_ray

                return run_on_ray(build, tasks, finished, self.address, self.workers)
            one_thread()
            work = build()
            for task in tasks:
                work(task.what)
                finished(task)
            return []


def one_thread() -> None:
    """Let this process compute on one core, as every worker does; before TensorFlow is used.

    Several processes of one thread do more than one process of several, and results do not depend
    on how many threads there are.
    """
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")

"""Pictures, plans and workers for the tests of shards; workers of Ray import this module."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dermlens.scale.engines import Task
from dermlens.scale.plan import Job, Shard, ShardPlan, listed_images
from dermlens.scale.work import shard_maker
from serving_support import picture
from tests_support import register_tiny_backbone

HOW: dict[str, dict[str, Any]] = {
    "predict": {"tta_views": 1, "batch_size": 4, "level": None},
    "explain": {
        "methods": ["grad_cam", "occlusion"],
        "target": None,
        "output": "logit",
        "scorers": {},
        "batch_size": 4,
        "seed": 0,
    },
}


def pictures(folder: Path, count: int = 7) -> Path:
    """A folder of pictures, of which one is no image and one is cut off."""
    folder.mkdir()
    for number in range(count):
        picture(number).save(folder / f"p{number}.png")
    (folder / "p1.png").write_bytes(b"no image")
    whole = (folder / "p4.png").read_bytes()
    (folder / "p4.png").write_bytes(whole[: len(whole) // 2])
    return folder


def plan_of(kind: str, bundle: Path, images: Path, model: str, size: int = 3) -> ShardPlan:
    """A plan with shards of three images."""
    return ShardPlan(Job(kind, bundle.absolute(), model, HOW[kind]), listed_images([images]), size)


def tiny_shard_maker(job: Job, out: Path) -> Callable[[Shard], None]:
    """What an engine calls, in a process that does not know the tiny network yet."""
    register_tiny_backbone()
    return shard_maker(job, out)


def recorder(folder: Path) -> Callable[[str], None]:
    """A worker without a model: it notes what it did, and may end its own process."""
    return partial(_record, folder)


def _record(folder: Path, name: str) -> None:
    note = folder / f"{name}.{len(list(folder.glob(f'{name}.*')))}"
    note.write_text(str(os.getpid()))
    if name == "always" or (name == "once" and note.suffix == ".0"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "waits":
        time.sleep(300)
    if name == "wrong":
        from dermlens.errors import DataError

        raise DataError("The worker says why.")


def tasks(*names: str) -> list[Task]:
    """Tasks of the recorder."""
    return [Task(name, name, 1) for name in names]

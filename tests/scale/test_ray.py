"""Ray: actors that are killed, tasks that kill them, and the very files of one process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from cli_support import content
from dermlens.errors import DataError, UsageError
from dermlens.model.bundle import load_bundle
from dermlens.scale import ray_engine
from dermlens.scale.engines import Engine, EngineName, Task
from dermlens.scale.files import write_manifest
from dermlens.scale.jobs import run_shards
from scale_support import pictures, plan_of, recorder, tasks, tiny_shard_maker
from serving_support import save_untrained

pytest.importorskip("pyarrow")
if find_spec("ray") is None:
    # Not imported here: it reads the environment of its cluster then.
    pytest.skip("ray is not installed", allow_module_level=True)
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of this machine for all tests, of two cores, that only this machine reaches."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *([before] if before else [])])
    try:
        with ray_engine._local_head(2) as address:
            yield address
    finally:
        os.environ["PYTHONPATH"] = before or ""


def engine(cluster: str, workers: int = 2) -> Engine:
    return Engine(EngineName.RAY, cluster, workers)


def test_what_a_lost_actor_held_is_done_by_another_and_a_deadly_task_is_named(
    cluster: str, tmp_path: Path
) -> None:
    given = tasks("a", "once", "always", "b")
    lost = engine(cluster).run(partial(recorder, tmp_path), given, "Recording")
    assert [task.name for task in lost] == ["always"]
    attempts = {
        name: len(list(tmp_path.glob(f"{name}.*"))) for name in ("a", "once", "always", "b")
    }
    assert attempts == {"a": 1, "once": 2, "always": ray_engine.ATTEMPTS, "b": 1}
    pids = {path.read_text() for path in tmp_path.iterdir()}
    assert str(os.getpid()) not in pids and len(pids) >= 4


def test_what_a_worker_raises_is_raised_here(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"The worker says why\."):
        engine(cluster, 1).run(partial(recorder, tmp_path), tasks("wrong", "a"), "Recording")


def test_files_are_those_of_one_process(cluster: str, tmp_path: Path) -> None:
    bundle, images = save_untrained(tmp_path / "bundle"), pictures(tmp_path / "images")
    plan = plan_of("explain", bundle, images, load_bundle(bundle).identity["fingerprint"])
    run_shards(plan, tmp_path / "local", Engine())
    out = tmp_path / "ray"
    out.mkdir()
    plan.claim(out)
    shards = plan.shards()
    given = [Task(shard.name, shard, 1) for shard in shards]
    build = partial(tiny_shard_maker, plan.job, out)
    assert engine(cluster, 1).run(build, given, "Explaining") == []
    assert write_manifest(out, plan, shards) is not None
    assert content(out) == content(tmp_path / "local") and len(content(out)) == 8


DRIVER = """
import sys
from functools import partial
from pathlib import Path
from dermlens.extras import require
from dermlens.scale.engines import Engine, EngineName
from scale_support import recorder, tasks
require("ray")
# Ray reads the settings of a cluster when it is imported.
assert "ray" not in sys.modules
Engine(EngineName.RAY, None, 1).run(partial(recorder, Path({folder!r})), tasks("waits"), "Waiting")
"""


def test_a_cluster_of_its_own_listens_here_alone_and_ends_with_its_driver(tmp_path: Path) -> None:
    place = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [HERE.parent, *sys.path]))}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(folder=str(tmp_path))], env=place
    )
    wait_for(lambda: driver.poll() is not None or (tmp_path / "waits.0").is_file())
    assert driver.poll() is None
    listening, children = sockets_of_descendants(driver.pid), descendants(driver.pid)
    # Of the cluster's head, of its node, and of the actor.
    assert {host for host, _ in listening} == {"127.0.0.1"} and len(listening) >= 4, listening
    assert int((tmp_path / "waits.0").read_text()) in children
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait up to two minutes."""
    end = time.monotonic() + 120
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)


def descendants(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after[1]) == pid:
            child = int(path.parent.name)
            found += [child, *descendants(child)]
    return found


def sockets_of_descendants(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports on which the children of a process listen."""
    inodes = set()
    for child in descendants(pid):
        for link in Path(f"/proc/{child}/fd").glob("*"):
            try:
                target = str(link.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    here = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            host, port = fields[1].split(":")
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(("127.0.0.1" if host in here else host, int(port, 16)))
    return found


def test_an_address_without_a_cluster_is_a_sentence(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{ray_engine._free_port()}"
    for address in (nowhere, "head"):
        with pytest.raises(UsageError, match=r"can be reached at .*Give HOST:PORT"):
            engine(address).run(partial(recorder, tmp_path), tasks("a"), "Recording")

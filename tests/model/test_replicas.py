"""Training together: the same steps as alone, equal weights everywhere, and what a kill leaves."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli_support import refused
from dermlens.errors import UsageError
from dermlens.model.replicas import cluster_of

HERE = Path(__file__).resolve().parent

COMMON = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = {path!r}
from tests_support import register_tiny_backbone, tiny_configuration
"""

TWO_HERE = (
    COMMON
    + """
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
register_tiny_backbone()
from dermlens.model.replicas import Replicas
from dermlens.model.training import train_together
from dermlens.data.degradation import degradation_named
from dermlens.model.classifier import Architecture
worse = degradation_named("normal")
larger = tiny_configuration(epochs=1, architecture=Architecture("tiny", (40, 48)))
teacher = train_together(Path({data!r}), Path({out!r}) / "teacher", larger, None).path
how = tiny_configuration(
    epochs=1, batch_size=8, mixup=0.4, label_smoothing=0.1, degradation=worse,
    teachers=(str(teacher),), teacher_share=0.5,
)
weights = []
for number, devices in enumerate((None, ["CPU:0", "CPU:1"])):
    replicas = devices and Replicas(tf.distribute.MirroredStrategy(devices))
    assert not replicas or replicas.count == 2
    bundle = train_together(Path({data!r}), Path({out!r}) / f"{{number}}", how, replicas)
    weights.append(np.concatenate([w.ravel() for w in bundle.model.get_weights()]))
print("distance", np.linalg.norm(weights[1] - weights[0]) / np.linalg.norm(weights[0]))
"""
)

THREE_RUNS = (
    COMMON
    + """
import os, signal
import tensorflow  # Once for all workers, which are forked before it does anything.
from dermlens.errors import DermlensError
from dermlens.model import finetuning
from dermlens.model.replicas import join_workers
from dermlens.model.training import train_together
from dermlens.scale.ray_engine import _free_port

def work(name, addresses, rank, dies, resume):
    replicas = join_workers(addresses, rank)
    register_tiny_backbone()
    steps = finetuning.Finetuning._steps
    def dying(self, batches, epoch):
        if rank == 1 and epoch == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return steps(self, batches, epoch)
    finetuning.Finetuning._steps = dying
    # Only the first one writes.
    out = Path({out!r}) / (name if rank == 0 else "nowhere")
    how = tiny_configuration(epochs=2, batch_size=8, seed={seed})
    try:
        train_together(Path({data!r}), out, how, replicas, resume=resume)
    except DermlensError as error:
        print("Error:", error, flush=True)
        return 2
    return 0

for run, name, dies, resume in (
    ("whole", "whole", -1, False), ("killed", "killed", 1, False), ("resumed", "killed", -1, True)
):
    addresses = [f"127.0.0.1:{{_free_port()}}" for _ in range(2)]
    started = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            said = os.open(Path({out!r}) / f"{{run}}{{rank}}.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1)
            sys.exit(work(name, addresses, rank, dies, resume))
        started.append(child)
    print(run, *(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started))
"""
)


def script(text: str, **values: object) -> list[str]:
    path = [str(HERE), str(HERE.parent)]
    return [sys.executable, "-c", text.format(path=path, **values)]


def test_replicas_of_one_process_train_as_one_network_does(prepared: Path, tmp_path: Path) -> None:
    """Normalization, dropout, mixing, what makes images worse and clipping are of the batch.

    A teacher of another size looks at each replica's share.
    """
    line = script(TWO_HERE, data=str(prepared), out=str(tmp_path))
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"^distance (\S+)$", done.stdout, re.MULTILINE)
    assert found is not None and float(found[1]) < 1e-3, done.stdout


def test_killed_workers_go_on_to_the_very_weights_of_those_that_were_not(
    prepared: Path, tmp_path: Path
) -> None:
    line = script(THREE_RUNS, data=str(prepared), out=str(tmp_path), seed=0)
    done = subprocess.run(line, capture_output=True, text=True, timeout=400)
    said = {path.stem: path.read_text() for path in tmp_path.glob("*.txt")}
    ended = ["whole 0 0", f"killed 2 {-signal.SIGKILL}", "resumed 0 0"]
    assert done.stdout.splitlines() == ended, (said, done.stderr[-3000:])
    sums = [
        re.findall(r"^Weights after epoch .*$", said[f"whole{k}"], re.MULTILINE) for k in (0, 1)
    ]
    assert len(sums[0]) == 2 and sums[0] == sums[1], said
    assert "Another worker has ended or cannot be reached" in said["killed0"]
    assert "Resuming after epoch 1 of 2" in said["resumed0"]
    assert not (tmp_path / "nowhere").exists()
    from dermlens.model.bundle import load_bundle
    from tests_support import register_tiny_backbone

    register_tiny_backbone()
    ours, theirs = (
        load_bundle(tmp_path / name / "bundle").model.get_weights() for name in ("whole", "killed")
    )
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_addresses_and_the_environment_of_clusters() -> None:
    told = {
        "cluster": {"chief": ["a:1"], "worker": ["b:2"]},
        "task": {"type": "worker", "index": 0},
    }
    assert cluster_of(None, None, {"TF_CONFIG": json.dumps(told)}) == (["a:1", "b:2"], 1)
    alone = {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}
    assert cluster_of(None, None, {"TF_CONFIG": json.dumps(alone)}) is None
    for addresses, rank in (("a:1", 0), ("a:1,b:2", 2), ("a:1,b:2", None), (None, 0)):
        with pytest.raises(UsageError, match="Give all workers"):
            cluster_of(addresses, rank, {})
    with pytest.raises(UsageError, match="is no address"):
        cluster_of("a:1,b", 0, {})
    with pytest.raises(UsageError, match="same address"):
        cluster_of("a:1,a:1", 0, {})
    with pytest.raises(UsageError, match="cannot be read"):
        cluster_of(None, None, {"TF_CONFIG": "{"})


def test_the_command_refuses_half_an_address(prepared: Path, tmp_path: Path) -> None:
    from cli_support import dermlens

    refused(
        dermlens("train", prepared, "--out", tmp_path / "run", "--workers", "a:1,b:1"),
        "which of them this one is",
    )
    assert not (tmp_path / "run").exists()

"""Training together: the same steps as alone, equal weights everywhere, and what a kill leaves."""

import json
import re
import subprocess
import sys
import time
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
for name, more in (("plain", {{}}), ("mixed", {{"mixup": 0.4, "label_smoothing": 0.1}})):
    how = tiny_configuration(epochs=2, batch_size=8, **more)
    weights = []
    for number, devices in enumerate((None, ["CPU:0", "CPU:1"])):
        replicas = devices and Replicas(tf.distribute.MirroredStrategy(devices))
        assert not replicas or replicas.count == 2
        out = Path({out!r}) / f"{{name}}{{number}}"
        bundle = train_together(Path({data!r}), out, how, replicas)
        weights.append(np.concatenate([w.ravel() for w in bundle.model.get_weights()]))
        print(bundle.history.train_loss.tolist())
    print(name, np.linalg.norm(weights[1] - weights[0]) / np.linalg.norm(weights[0]))
"""
)

WORKER = (
    COMMON
    + """
import os, signal
addresses, rank, out = {addresses!r}.split(","), {rank}, Path({out!r})
dies, resume = {dies}, {resume}
from dermlens.errors import DermlensError
from dermlens.model.replicas import join_workers
replicas = join_workers(addresses, rank)
register_tiny_backbone()
from dermlens.model import finetuning
from dermlens.model.training import train_together
steps = finetuning.Finetuning._steps
def dying(self, batches, epoch):
    if epoch == dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return steps(self, batches, epoch)
finetuning.Finetuning._steps = dying
how = tiny_configuration(epochs=3, batch_size=8, seed={seed})
try:
    train_together(Path({data!r}), out, how, replicas, resume=resume)
except DermlensError as error:
    print("Error:", error, flush=True)
    sys.exit(2)
"""
)


def script(text: str, **values: object) -> list[str]:
    path = [str(HERE), str(HERE.parent)]
    return [sys.executable, "-c", text.format(path=path, **values)]


def test_replicas_of_one_process_train_as_one_network_does(prepared: Path, tmp_path: Path) -> None:
    """Normalization that learns, dropout, mixing and clipping are of the whole batch."""
    line = script(TWO_HERE, data=str(prepared), out=str(tmp_path))
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(re.findall(r"^(plain|mixed) (\S+)$", done.stdout, re.MULTILINE))
    assert set(found) == {"plain", "mixed"}
    assert all(float(distance) < 1e-3 for distance in found.values()), found


def workers(prepared: Path, out: Path, *, dies: int = -1, resume: bool = False, seeds=(0, 0)):
    """Start two workers; the second one ends itself at the start of an epoch."""
    from dermlens.scale.ray_engine import _free_port

    addresses = ",".join(f"127.0.0.1:{_free_port()}" for _ in range(2))
    return [
        subprocess.Popen(
            script(
                WORKER,
                addresses=addresses,
                rank=rank,
                data=str(prepared),
                # Only the first one writes.
                out=str(out if rank == 0 else out.with_name("nowhere")),
                dies=dies if rank == 1 else -1,
                resume=resume,
                seed=seeds[rank],
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def test_killed_workers_go_on_to_the_very_weights_of_those_that_were_not(
    prepared: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    said = [process.communicate(timeout=200) for process in workers(prepared, whole)]
    sums = [re.findall(r"^Weights after epoch .*$", out, re.MULTILINE) for out, _ in said]
    assert len(sums[0]) == 3 and sums[0] == sums[1], said
    first, second = workers(prepared, killed, dies=2)
    second.communicate(timeout=200)
    began = time.monotonic()
    out, err = first.communicate(timeout=200)
    assert first.returncode == 2, (out, err[-2000:])
    assert "Another worker has ended or cannot be reached" in out and "--resume" in out
    assert time.monotonic() - began < 60
    assert not (killed / "bundle").exists()
    for process in workers(prepared, killed, resume=True):
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, (out, err[-2000:])
    assert not (tmp_path / "nowhere").exists()
    from dermlens.model.bundle import load_bundle
    from tests_support import register_tiny_backbone

    register_tiny_backbone()
    ours, theirs = (load_bundle(one / "bundle").model.get_weights() for one in (whole, killed))
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

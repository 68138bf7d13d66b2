"""How fast an artifact answers and how much memory it takes, measured in a process of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dermlens.errors import ModelError

_RUN = {
    "tflite": """
from ai_edge_litert.interpreter import Interpreter
runner = Interpreter(model_path=path, num_threads=threads).get_signature_runner()
image = np.full((1, *size, 3), 128, np.float32)
call = lambda: runner(image=image)
""",
    "saved_model": """
import tensorflow as tf
loaded = tf.saved_model.load(path)
image = tf.constant(np.full((1, *size, 3), 128, np.uint8))
call = lambda: loaded.signatures["explain_grad_cam"](images=image, targets=tf.constant([-1]))
""",
}
_BODY = """
import json, os, resource, statistics, sys, threading, time
parent = os.getppid()
def end_with_parent():
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
path, size, repeats, threads = json.loads(sys.argv[1])
{run}
call(); call()
seconds = []
for _ in range(repeats):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
# On Linux getrusage gives the peak of the process that started this one, if that is larger.
try:
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak /= 1048576 if sys.platform == "darwin" else 1024
print(json.dumps([1000 * statistics.median(seconds), peak]))
"""


@dataclass(frozen=True)
class Footprint:
    """What one image costs.

    Attributes:
        latency_ms: Median time of prediction and Grad-CAM of one image, warm, milliseconds.
        peak_memory_mb: Largest memory of the process, its runtime included, MiB.
    """

    latency_ms: float
    peak_memory_mb: float


def footprint(
    path: Path, kind: str, size: tuple[int, int], *, repeats: int = 20, threads: int = 2
) -> Footprint:
    """Measure an artifact.

    Args:
        path: File or folder of the artifact.
        kind: ``"tflite"`` or ``"saved_model"``.
        size: (height, width) in pixels of the image it gets.
        repeats: Calls the median is taken over.
        threads: Of a LiteRT interpreter.

    Raises:
        ModelError: If the artifact does not run in a fresh process.
    """
    code = _BODY.format(run=_RUN[kind])
    given = json.dumps([str(path), list(size), repeats, threads])
    done = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ModelError(f"The exported {path.name} does not run in a new process ({reason[0]}).")
    latency, peak = json.loads(done.stdout.strip().splitlines()[-1])
    return Footprint(round(latency, 2), round(peak, 1))

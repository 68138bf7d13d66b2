"""How fast exported artifacts answer and how much memory they take, each in a process of its own.

    python benchmarks/exports.py EXPORTED [--repeats 20] [--threads 2] [--publish]

EXPORTED is a folder that ``dermlens export`` wrote. Measured is one image, prediction and Grad-CAM:
the median time, warm, and the largest memory of the process, its runtime included. Such figures are
about this machine; whether artifacts agree with the Keras model stands in ``parity.json``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
from bench_tools import machine, markdown, write_section

from dermlens.errors import ModelError
from dermlens.files import read_json
from dermlens.serve.parity import TITLES

PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"
FILES = {
    "saved_model": "saved_model",
    "float32": "model.tflite",
    "float16": "model_float16.tflite",
    "dynamic": "model_dynamic.tflite",
    "int8": "model_int8.tflite",
}
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


def footprint(path: Path, repeats: int, threads: int) -> tuple[float, float]:
    """Return the median milliseconds of one image and the peak MiB of an artifact.

    Raises:
        ModelError: If the artifact does not run in a fresh process.
    """
    kind = "saved_model" if path.is_dir() else "tflite"
    metadata = path / "metadata.json" if path.is_dir() else path.with_suffix(".json")
    given = json.dumps([str(path), read_json(metadata)["input_size"], repeats, threads])
    code = _BODY.format(run=_RUN[kind])
    done = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ModelError(f"The exported {path.name} does not run in a new process ({reason[0]}).")
    latency, peak = json.loads(done.stdout.strip().splitlines()[-1])
    return float(latency), float(peak)


def table(folder: Path, repeats: int, threads: int) -> pd.DataFrame:
    """Return one row per artifact that is there."""
    rows = []
    for name, file in FILES.items():
        if (folder / file).exists():
            latency, peak = footprint(folder / file, repeats, threads)
            rows.append((TITLES[name], f"{latency:.0f} ms", f"{peak:.0f} MiB"))
    return pd.DataFrame(rows, columns=["artifact", "one image, warm", "peak memory"])


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exported", type=Path, help="folder that 'dermlens export' wrote")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2, help="of a LiteRT interpreter")
    parser.add_argument("--publish", action="store_true", help="write docs/deployment.md")
    given = parser.parse_args()
    text = f"{machine()}\n\n{markdown(table(given.exported, given.repeats, given.threads))}"
    print(text)
    if given.publish:
        write_section(PAGE, "exports", text)


if __name__ == "__main__":
    main()

"""Peak memory of every method, each in a process of its own, and of a long benchmark.

    python benchmarks/memory.py [--size 192x256] [--publish]
    python benchmarks/memory.py --bundle BUNDLE --data DATA [--images 4000] [--publish]

The second form also runs ``dermlens benchmark`` on many images, of a small network if it is to be
done in time, and notes the memory it holds on the way. Linux only: figures come from ``/proc``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench_tools import PAGE, machine, markdown, write_section

from dermlens.cli_options import parse_size
from dermlens.explainers.registry import METHODS

BATCHES = (8, 32)
NOTHING = "nothing: TensorFlow and the network"
KIB_PER_GIB = 1024.0**2
_QUICK_PLAN = (
    "--methods", "grad_cam", "--no-controls", "--n-samples", "20", "--steps", "4",
    "--robustness", "0", "--randomization", "0", "--pairs", "0", "--probes", "0",
)  # fmt: skip


def peak_of(name: str, size: tuple[int, int], batch: int) -> float:
    """Explain some images in this process and return its peak memory in GiB."""
    import resource

    from dermlens.explainers.registry import create
    from dermlens.model.classifier import Architecture, build_classifier

    model = build_classifier(Architecture("resnet50", size))
    images = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)
    if name != NOTHING:
        count = batch if METHODS[name].family == "activation" else 2
        create(name, model).attribute(images[:count], 4, batch_size=batch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GIB


def methods_table(size: str) -> pd.DataFrame:
    """Return the peaks of all methods, GiB by batch size."""
    rows = []
    for name in (NOTHING, *METHODS):
        row: dict[str, Any] = {"method": name if name == NOTHING else METHODS[name].title}
        for batch in BATCHES:
            command = [sys.executable, __file__, "--size", size, "--child", name, str(batch)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row[f"batch {batch}"] = f"{json.loads(done.stdout.splitlines()[-1]):.2f}"
        print(row, flush=True)
        rows.append(row)
    return pd.DataFrame(rows)


def held(process: subprocess.Popen[bytes]) -> float:
    """Return the memory a process holds now, GiB; 0 once it is gone."""
    status = Path(f"/proc/{process.pid}/status")
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in lines if line.startswith("VmRSS")]
    return float(found[0]) / KIB_PER_GIB if found else 0.0


def benchmark_table(bundle: Path, data: Path, images: int) -> pd.DataFrame:
    """Run a benchmark and return what it holds after an eighth, a quarter and so on of its work."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "dermlens.cli", "benchmark", bundle, data, "--out", out]
        command += ["--n", images, "--split", "all", *_QUICK_PLAN]
        seen: dict[int, list[float]] = {}
        with subprocess.Popen([str(part) for part in command]) as process:
            while process.poll() is None:
                time.sleep(2)
                done = sum(1 for path in Path(out).rglob("*.json") if "image" in path.parent.name)
                seen.setdefault(8 * done // images, []).append(held(process))
            if process.returncode:
                raise SystemExit(f"The benchmark ended with {process.returncode}.")
    return pd.DataFrame(
        [
            {"images": f"from {part * images // 8:,}", "holds at most (GiB)": f"{max(values):.2f}"}
            for part, values in sorted(seen.items())
        ]
    )


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="192x256", help="HxW")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--child", nargs=2, metavar=("METHOD", "BATCH"), help=argparse.SUPPRESS)
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(peak_of(given.child[0], parse_size(given.size), int(given.child[1]))))
        return
    text = [
        f"{machine()} ResNet50 at {given.size}; peak of the whole process in GiB.",
        markdown(methods_table(given.size)),
    ]
    if given.bundle and given.data:
        table = benchmark_table(given.bundle, given.data, given.images)
        text += [f"A benchmark of {given.images:,} images holds:", markdown(table)]
    print("\n\n".join(text))
    if given.publish:
        write_section(PAGE, "memory", "\n\n".join(text))


if __name__ == "__main__":
    main()

"""Many visitors: nobody fails, and memory does not grow.

Run ``python benchmarks/app_load.py [BUNDLE] [--requests 200] [--clients 20]``. Every visitor has a
session of its own, as in a browser. Memory is that of the server's process after 20 requests and
at the end; the goal is at most 10 % more.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from app_latency import drawn_file, timed, visit

SERVE = """
import sys
from pathlib import Path
from dermlens.serve.app import launch
launch(Path(sys.argv[1]))
"""


def resident_mebibytes(process: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def address_of(server: Any) -> str:
    """Return the address that the server prints when it is ready."""
    for line in server.stdout:
        if " at http" in line:
            return line.split(" at ")[1].strip()
    raise SystemExit("The server did not start.")


def many(client: Any, address: str, content: bytes, count: int, at_once: int) -> list[float]:
    """Visit many times, some at once, and return the seconds that each visitor waited."""

    def one(number: int) -> float:
        # Another file for everybody, as visitors have.
        return timed(lambda: visit(client, address, content + number.to_bytes(4, "big")))

    with ThreadPoolExecutor(at_once) as visitors:
        return list(visitors.map(one, range(count)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    options = parser.parse_args()

    import httpx

    from dermlens.model.bundle import find_bundle

    with tempfile.TemporaryFile() as errors:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(find_bundle(options.bundle))],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            address, content = address_of(server), drawn_file()
            with httpx.Client(timeout=300, limits=httpx.Limits(max_connections=100)) as client:
                began = time.perf_counter()
                waited = many(client, address, content, 20, options.clients)
                early = resident_mebibytes(server.pid)
                waited += many(client, address, content, options.requests - 20, options.clients)
                late, took = resident_mebibytes(server.pid), time.perf_counter() - began
        finally:
            server.terminate()
            server.wait(30)
    print(
        f"{len(waited)} requests by {options.clients} visitors at once: none failed, {took:.0f} s"
    )
    print(f"waited: median {np.median(waited):.2f} s, longest {max(waited):.2f} s")
    growth = late / early - 1
    print(f"memory: {early:.0f} MiB after 20, {late:.0f} MiB at the end ({100 * growth:+.1f} %)")
    raise SystemExit(bool(growth > 0.1))


if __name__ == "__main__":
    main()

"""This process and others: who is still alive, and ending together with a parent."""

import os
import platform
import re
import threading
from multiprocessing import parent_process
from pathlib import Path


def _host() -> str:
    """Return a name for where process numbers mean the same: machine and, on Linux, namespace."""
    name = re.sub(r"[^A-Za-z0-9]", "_", platform.node())[:32] or "host"
    try:
        # Containers can share a host name and a folder, but count their processes apart.
        namespace = re.sub(r"\D", "", str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        namespace = ""
    return f"{name}_{namespace}"


HOST = _host()
"""Where this process runs; letters, digits and underscores."""


def is_alive(pid: int) -> bool:
    """Tell whether a process of this host runs, whoever's it is."""
    if os.name == "nt":  # os.kill would end the process there.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        # A process that was killed but not yet waited for writes nothing any more.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def end_with_parent() -> None:
    """Make this worker process end as soon as the process that started it is gone.

    A worker waits for tasks at a pipe that its siblings keep open, so that without this it would
    outlive a parent that was killed. Meant as ``initializer`` of a pool of processes.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()

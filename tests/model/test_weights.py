"""Weights files where the disk is full: an error, not the end of the process."""

import subprocess
import sys
from pathlib import Path

import pytest

SAVING = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from dermlens.model.weights import save_by_name

values = np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32)
layers = [
    SimpleNamespace(
        name=f"layer{n}", weights=[SimpleNamespace(name="kernel")], get_weights=lambda: [values]
    )
    for n in range(4)
]
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    save_by_name(SimpleNamespace(layers=layers), Path(sys.argv[1]))
except OSError as error:
    print("refused:", error.strerror)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    # A file that may not grow meets the same calls as a disk that is full.
    command = [sys.executable, "-c", SAVING, str(tmp_path / "new" / "weights.h5")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "refused: File too large\n"), done.stderr
    assert list(tmp_path.iterdir()) == []

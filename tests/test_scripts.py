"""The scripts at the root start, and say what they do."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "skin_disease_classification_tf.py": "Prepare data, split it by lesion",
    "explainability_module_tf.py": "Explain images",
    "deployment_script_tf.py": "Serve the web interface",
    "inference.py": "usage",
}


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_script_has_help(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert SCRIPTS[script] in done.stdout


def test_script_passes_errors_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "skin_disease_classification_tf.py"),
            str(tmp_path / "nothing"),
            "--out",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()

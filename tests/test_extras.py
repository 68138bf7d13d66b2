"""Optional packages: what works without them, and what is said where they are missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from dermlens import extras
from dermlens.cli import main
from dermlens.errors import UsageError
from dermlens.explainers.registry import SIX
from dermlens.extras import optional
from dermlens.model.bundle import find_bundle, load_bundle
from dermlens.model.lite import LiteClassifier
from dermlens.model.scorers import choose_scorers


@pytest.fixture
def nothing_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        return None

    monkeypatch.setattr(extras, "find_spec", missing)


def test_an_installed_package_is_imported() -> None:
    assert optional("ai_edge_litert.interpreter").Interpreter


@pytest.mark.usefixtures("nothing_optional")
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"Running LiteRT files needs ai-edge-litert.*\[export\]"):
        LiteClassifier(tmp_path / "model.tflite")
    with pytest.raises(SystemExit) as stop:
        main(["app"])
    assert stop.value.code == 2
    assert "The web page needs gradio" in (said := capsys.readouterr().err)
    assert "pip install 'dermlens[app]'" in said


@pytest.mark.usefixtures("nothing_optional")
def test_without_litert_the_model_itself_explains(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = load_bundle(find_bundle(None))
    assert choose_scorers(bundle, SIX, images=1000) == {}
    assert "pip install 'dermlens[export]'" in capsys.readouterr().out


def test_the_import_of_tensorflow_says_nothing_on_the_command_line() -> None:
    code = (
        "from dermlens.quiet import quiet_tensorflow; quiet_tensorflow(); quiet_tensorflow(); "
        "import sys, tensorflow; print('on', file=sys.stderr); print(tensorflow.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "on\n" and done.stdout.startswith("2.")

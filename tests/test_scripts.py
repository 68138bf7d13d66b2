"""The scripts at the root are thin: they pass on to the package and exit as it does."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import HamSource
from dermlens.model import bundle_choice as bundles
from dermlens.serve import app as serving
from dermlens.serve import demo
from serving_support import picture, save_untrained

ROOT = Path(__file__).parents[1]
SCRIPTS = (
    "deployment_script_tf.py",
    "explainability_module_tf.py",
    "inference.py",
    "skin_disease_classification_tf.py",
)


def load(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name.removesuffix(".py"), ROOT / name)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def run(name: str, *arguments: object) -> int:
    """Run a script that passes its arguments on, in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        patch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as stop:
            load(name).main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_works_from_anywhere(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / name), "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()
    assert list(tmp_path.iterdir()) == []


def test_explaining_writes_what_the_command_writes(tmp_path: Path) -> None:
    bundle = save_untrained(tmp_path / "bundle")
    picture(1).save(tmp_path / "mole.png")
    out = tmp_path / "out"
    code = run(SCRIPTS[1], bundle, tmp_path / "mole.png", "--target", "mel", "--out", out)
    assert code == 0
    assert json.loads((out / "mole" / "explanation.json").read_text())["target"] == "mel"
    assert run(SCRIPTS[1], tmp_path / "nowhere", tmp_path / "mole.png", "--out", out) == 2


def test_deployment_serves_the_bundle_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        serving, "launch", lambda *arguments, examples: calls.append((*arguments, examples))
    )
    monkeypatch.setenv("DERMLENS_PASSWORD", "kept secret")
    options = ["--port", 7999, "--auth", "ann", "--allow-host", "a.org", "--allow-host", "b.org"]
    options += ["--examples", "data"]
    assert run(SCRIPTS[0], tmp_path, *options) == 0
    signed_in = ("ann", "kept secret")
    assert calls == [
        (tmp_path, "127.0.0.1", 7999, False, signed_in, ("a.org", "b.org"), Path("data"))
    ]
    assert run(SCRIPTS[0], tmp_path, "--auth", "ann:kept secret") == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bundles, "SHIPPED", tmp_path / "shipped")
    assert run(SCRIPTS[0]) == 2
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "bundle.json").write_text("{}")
    assert run(SCRIPTS[0]) == 0
    assert calls[-1][0] == tmp_path / "shipped"


def test_classification_prepares_trains_and_evaluates_and_goes_on(
    ham_source: HamSource, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ham_source.write_archives().folder
    script, out = load(SCRIPTS[3]), tmp_path / "out"
    network = ["--backbone", tiny, "--size", "32x40", "--epochs", "1", "--train-from", "all"]
    given = [str(source), "--out", str(out), *network]
    assert script.main(given) == 0
    facts = json.loads((out / "run" / "bundle" / "bundle.json").read_text())
    assert facts["architecture"]["backbone"] == tiny
    assert facts["architecture"]["input_size"] == [32, 40]
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text())
    assert 0 <= metrics["balanced_accuracy"] <= 1
    assert f"Wrote {out / 'evaluation' / 'metrics.json'}" in capsys.readouterr().out
    history = (out / "run" / "bundle" / "history.csv").read_bytes()
    prepared = [str(out / "data"), *given[1:]]
    assert script.main(prepared) == 0
    assert (out / "run" / "bundle" / "history.csv").read_bytes() == history
    assert script.main([str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("Error: ")


def test_classification_without_data_is_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def run_demo(out: Path, **options: Any) -> tuple[Path, bool]:
        calls.append((out, options))
        return out / "report.html", out.name == "good"

    monkeypatch.setattr(demo, "run_demo", run_demo)
    script = load(SCRIPTS[3])
    assert script.main(["--out", str(tmp_path / "good"), "--images", "70", "--seed", "3"]) == 0
    assert calls == [(tmp_path / "good", {"images": 70, "epochs": None, "seed": 3})]
    assert script.main(["--out", str(tmp_path / "bad"), "--epochs", "1"]) == 1
    assert script.main(["--backbone", "resnet50"]) == 2
    assert "need SOURCE" in capsys.readouterr().err

"""The command ``dermlens benchmark``."""

from pathlib import Path

import pandas as pd

from cli_support import dermlens, printed_paths, refused
from serving_support import save_untrained


def test_benchmark_writes_tables_summary_and_page(prepared: Path, tmp_path: Path) -> None:
    bundle = save_untrained(tmp_path / "bundle")
    few = ["--robustness", 0, "--randomization", 0, "--pairs", 0, "--probes", 1, "--steps", 2]
    command = [
        "benchmark", bundle, prepared, "--n", 2, "--methods", "grad_cam", "--no-controls", *few,
        "--n-samples", 20,
    ]  # fmt: skip
    made = dermlens(*command, "--out", tmp_path / "out")
    assert made.code == 0, made.err
    written = printed_paths(made.out)
    assert {p.name for p in written} >= {"benchmark.csv", "summary.json", "benchmark.html"}
    assert all(path.is_file() for path in written)
    table = pd.read_csv(tmp_path / "out" / "benchmark.csv")
    assert table.method.tolist() == ["grad_cam"] * 2 and table.dx.nunique() == 2
    other = dermlens(*command, "--out", tmp_path / "out", "--seed", 1)
    refused(other, "differs in")


def test_bad_arguments_are_refused(prepared: Path, tmp_path: Path) -> None:
    bundle = save_untrained(tmp_path / "bundle")
    out = ["--out", tmp_path / "out"]
    refused(dermlens("benchmark", prepared, prepared, *out), "is not a bundle")
    refused(dermlens("benchmark", bundle, *out), "one prepared data set")
    refused(dermlens("benchmark", bundle, prepared, "--methods", "x", *out), "Unknown method")
    refused(dermlens("benchmark", bundle, prepared, "--n", 0, *out), "n must be at least 1")
    refused(dermlens("benchmark", bundle, tmp_path, *out), "is not a prepared data set")
    assert not (tmp_path / "out").exists()

"""No table that is written runs anything in a spreadsheet."""

import csv
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from cli_support import dermlens
from dermlens.data.formats import Wanted
from dermlens.data.manifest import read_manifest
from dermlens.data.preparation import prepare
from dermlens.files import write_csv
from serving_support import picture, untrained_bundle
from test_inference import artifacts, bundle, inference  # noqa: F401
from wild_datasets import own_table

FORMULAS = ("=HYPERLINK(1)", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1")


def test_texts_are_quoted_and_numbers_kept(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "text": [*FORMULAS, "\r=1", "-12.5", "+7", "a=b", None],
            "number": [-1.5, 2, np.nan, 4, 5, 6, 7, 8, 9, 10],
            "=name": range(10),
        }
    )
    before = table.copy()
    write_csv(tmp_path / "t.csv", table)
    pd.testing.assert_frame_equal(table, before)
    with (tmp_path / "t.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["text"] for row in rows] == [
        *(f"'{text}" for text in FORMULAS),
        *("\\r=1", "-12.5", "+7", "a=b", ""),
    ]
    assert rows[0]["number"] == "-1.5" and rows[3]["'=name"] == "3"


def test_tables_of_a_data_set_agree_with_each_other(tmp_path: Path) -> None:
    source = own_table(tmp_path / "own")
    table = pd.read_csv(source / "befunde.csv")
    table["Person"] = "=HYPERLINK(" + table.index.astype(str) + ")"
    table["Läsion"] = "@" + table.index.astype(str)
    table.to_csv(source / "befunde.csv", index=False)
    columns = {"image": "Datei", "label": "Befund", "lesion": "Läsion", "patient": "Person"}
    data = prepare(source, tmp_path / "data", wanted=Wanted(columns=columns)).data
    manifest = read_manifest(data)
    assert manifest.lesion_id.str.startswith("'@").all()
    assert manifest.patient_id.str.startswith("'=").all()
    assert prepare(source, data, wanted=Wanted(columns=columns)).added == 0


def test_file_names_in_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermlens.cli_predict.load_named", lambda _: untrained_bundle())
    monkeypatch.chdir(tmp_path)
    picture(1).save(tmp_path / "=HYPERLINK(1).png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "bundle.json").write_text("{}")
    outcome = dermlens("predict", "b", "=HYPERLINK(1).png", "--out", "p.csv")
    assert outcome.code == 0, outcome.err
    row = pd.read_csv("p.csv").iloc[0]
    assert row.path == "'=HYPERLINK(1).png" and row.image_id == "'=HYPERLINK(1)"


def test_file_names_in_the_standalone_program(
    inference: ModuleType,  # noqa: F811
    artifacts: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(1).save(tmp_path / "=HYPERLINK(1).png")
    given = [str(artifacts / "model.tflite"), "=HYPERLINK(1).png", "--csv", "r.csv"]
    assert inference.main(given) == 0
    assert pd.read_csv("r.csv").path[0] == "'=HYPERLINK(1).png"

"""Shards: the same files whoever makes them, whole or made again, and read back as they were."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dermlens as dl
from cli_support import content, dermlens, refused
from dermlens.data.images import load_image
from dermlens.errors import DataError, ModelError, UsageError
from dermlens.explainers.registry import create_several
from dermlens.model.bundle import load_bundle
from dermlens.scale.engines import Build, Engine, Task
from dermlens.scale.jobs import outcome_lines, run_shards
from dermlens.scale.work import scaled
from dermlens.serve.prediction import predict_files
from scale_support import pictures, plan_of
from serving_support import picture, save_untrained

pytest.importorskip("pyarrow")
METHODS = "grad_cam,occlusion"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "images")


@pytest.fixture(scope="module")
def explained(bundle: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images, two of them bad, explained in three shards by the command."""
    out = tmp_path_factory.mktemp("explained") / "maps"
    outcome = dermlens(*command("explain", bundle, images, out))
    assert outcome.code == 1, outcome
    assert "2 of 7 images could not be used" in outcome.out
    return out


def command(kind: str, bundle: Path, images: Path, out: Path) -> Sequence[object]:
    more = ("--methods", METHODS) if kind == "explain" else ()
    size = ("--shard-size", 3, "--batch-size", 4)
    return (kind, bundle, images, "--engine", "local", *size, *more, "--out", out)


def shard_files(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in content(folder).items() if name != ".dermlens.lock"}


def test_maps_and_rows_are_what_the_methods_say(
    bundle: Path, images: Path, explained: Path
) -> None:
    classifier, seen = load_bundle(bundle), []
    explainers = create_several(METHODS.split(","), classifier)
    for shard in dl.read_shards(explained):
        for row, record in enumerate(shard.table.to_dict("records")):
            seen.append(record["path"])
            if record["error"]:
                assert all(np.isnan(maps[row]).all() for maps in shard.maps.values())
                continue
            pixels = load_image(Path(record["path"]), classifier.input_size)[None]
            for name, explainer in explainers.items():
                own = explainer.attribute(pixels, record["target"], batch_size=4)
                stored, unit = shard.maps[name][row], max(float(np.abs(own.maps).max()), 1e-9)
                assert np.abs(stored - own.maps[0]).max() <= 2e-3 * unit, name
                assert record[f"{name}_output"] == pytest.approx(float(own.values[0]), abs=1e-4)
    assert seen == sorted(str(path) for path in images.iterdir())


def test_errors_of_images_are_rows_without_addresses(explained: Path) -> None:
    table = dl.read_shards(explained).table().set_index("image_id")
    assert list(table.index[table.error != ""]) == ["p1", "p4"]
    assert "p1.png cannot be decoded" in table.error["p1"]
    assert not any(re.search(r"0x[0-9a-f]", text) for text in table.error)
    assert table.target[table.error == ""].notna().all() and table.target[["p1", "p4"]].isna().all()


def test_explaining_four_images_in_one_call_traces_as_often_as_explaining_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dermlens.report import explanation

    made: list[dict[str, Any]] = []

    def noted(*given: Any, **options: Any) -> dict[str, Any]:
        made.append(create_several(*given, **options))
        return made[-1]

    monkeypatch.setattr(explanation, "create_several", noted)
    monkeypatch.setattr(explanation, "_write", lambda *_: None)
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(files):
        picture(number).save(path)
    for count in (1, 4):
        out, how = tmp_path / f"out{count}", {"methods": METHODS, "scorer": "float32"}
        explanation.explain_files(load_bundle(bundle), files[:count], out, **how)
    for name, one in made[0].items():
        assert made[1][name].traces == one.traces == 1
        assert made[1][name].network.cost.forward == 4 * one.network.cost.forward > 0


def test_predictions_are_those_of_the_command_without_shards(
    bundle: Path, images: Path, tmp_path: Path
) -> None:
    outcome = dermlens(*command("predict", bundle, images, tmp_path / "out"))
    assert outcome.code == 1, outcome
    table = dl.read_shards(tmp_path / "out").table()
    plain = predict_files(load_bundle(bundle), sorted(images.iterdir()), batch_size=4)
    shown = [name for name in plain if name.startswith(("probability_", "logit_"))]
    np.testing.assert_allclose(table[shown], plain[shown].astype(float), atol=1e-5)
    assert table.predicted.isna().tolist() == plain.predicted.isna().tolist()
    assert table.predicted.dropna().tolist() == plain.predicted.dropna().tolist()
    assert dl.read_shards(tmp_path / "out").manifest.rows == 7


def test_jobs_of_an_array_make_the_same_files_together(
    bundle: Path, images: Path, explained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "maps"
    whole = list(command("explain", bundle, images, out))
    whole[3:5] = []
    for part in ("2/2", "1/2"):
        assert not (out / "manifest.json").exists()
        outcome = dermlens(*whole, "--shard", part)
    assert outcome.code == 1 and "Wrote" in outcome.out
    assert shard_files(out) == shard_files(explained)


def test_only_what_is_missing_or_damaged_is_made_again(
    bundle: Path, images: Path, explained: Path, tmp_path: Path
) -> None:
    import shutil

    out = Path(shutil.copytree(explained, tmp_path / "maps"))
    before = shard_files(out)
    (out / "shard-00000.parquet").unlink()
    table = bytearray((out / "shard-00001.parquet").read_bytes())
    table[40] ^= 0xFF
    (out / "shard-00001.parquet").write_bytes(table)
    with pytest.raises(DataError, match=r"missing or has changed"):
        list(dl.read_shards(out))
    untouched = (out / "shard-00002.npz").stat().st_mtime_ns
    outcome = dermlens(*command("explain", bundle, images, out))
    assert "1 of 3 shards are there" in outcome.out
    assert shard_files(out) == before
    assert (out / "shard-00002.npz").stat().st_mtime_ns == untouched
    (out / "shard-00002.npz").write_bytes(b"cut off")
    assert "2 of 3" in dermlens(*command("explain", bundle, images, out)).out
    assert shard_files(out) == before


def test_another_plan_is_refused_and_names_what_differs(
    bundle: Path, images: Path, explained: Path, tmp_path: Path
) -> None:
    other = dermlens(*command("explain", bundle, images, explained), "--seed", 1)
    refused(other, "holds shards that differ in: settings")
    (tmp_path / "mine.txt").write_text("mine")
    refused(dermlens(*command("explain", bundle, images, tmp_path)), "mine.txt, which belongs to")
    # Another model under the same path, as on a machine that was not brought up to date.
    plan = plan_of("predict", bundle, images, "0" * 64)
    with pytest.raises(ModelError, match="another model"):
        run_shards(plan, tmp_path / "out", Engine())
    with pytest.raises(DataError, match="not complete"):
        dl.read_shards(tmp_path / "out")


def test_a_shard_that_is_given_up_is_named_and_made_by_the_next_run(
    bundle: Path, images: Path, tmp_path: Path
) -> None:
    class GivesUp(Engine):
        def run(self, build: Build, tasks: Sequence[Task], title: str) -> list[Task]:
            super().run(build, tasks[1:], title)
            return list(tasks[:1])

    plan = plan_of("predict", bundle, images, load_bundle(bundle).identity["fingerprint"])
    outcome = run_shards(plan, tmp_path, GivesUp())
    first, last = outcome_lines(outcome, plan, tmp_path)
    assert "shard-00000 was given up" in first and "p0 to p2" in first and "missing" in last
    assert len(list(tmp_path.glob("*.parquet"))) == 2 and not (tmp_path / "manifest.json").exists()
    whole = run_shards(plan, tmp_path, Engine()).manifest
    assert whole is not None and (whole.rows, whole.errors) == (7, 2)


def test_manifest_and_types_do_not_depend_on_what_a_shard_holds(explained: Path) -> None:
    import pyarrow.parquet

    told = json.loads((explained / "manifest.json").read_text())
    assert (told["rows"], told["errors"], len(told["shards"])) == (7, 2, 3)
    schemas = [pyarrow.parquet.read_schema(path) for path in explained.glob("*.parquet")]
    assert all(schema.equals(schemas[0]) for schema in schemas)
    stored = np.load(explained / "shard-00000.npz")
    assert {stored[name].dtype for name in stored.files} == {np.dtype(np.float16)}


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
def test_half_precision_keeps_three_digits_of_maps_of_any_size(size: float) -> None:
    map_ = (np.random.default_rng(0).normal(size=(8, 9)) * size).astype(np.float32)
    stored, scale = scaled(map_)
    assert np.abs(stored.astype(np.float64) * scale - map_).max() <= 5e-4 * np.abs(map_).max()
    nothing, one = scaled(np.zeros((2, 2), np.float32))
    assert not nothing.any() and one == 1.0


def test_options_that_do_not_go_together_are_sentences(
    bundle: Path, images: Path, tmp_path: Path
) -> None:
    def bad(words: str, *options: object, kind: str = "predict") -> None:
        refused(dermlens(kind, bundle, images, "--out", tmp_path / "o", *options), words)

    bad("need --engine", "--shard-size", 3)
    bad("belong to --engine ray", "--engine", "local", "--workers", 2)
    bad("is for jobs without Ray", "--engine", "ray", "--shard", "1/2")
    bad("no part of the work", "--shard", "3/2")
    bad("at least 1", "--engine", "local", "--shard-size", 0)
    bad("writes files for each image", "--engine", "local", "--dicom", kind="explain")
    bad("Unknown target", "--engine", "local", "--target", "x", kind="explain")
    bad("views are not possible", "--engine", "local", "--tta-views", 3)
    bad("is a folder", "--engine", "local", "--out", tmp_path / "o.csv")
    assert not (tmp_path / "o").exists()
    with pytest.raises(UsageError, match="at least 1"):
        plan_of("predict", bundle, images, "", 0)


def test_without_the_packages_a_sentence_says_which(
    bundle: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dermlens import extras

    found = extras.find_spec
    for module, words in (("pyarrow", "dermlens[shards]"), ("ray", "dermlens[ray]")):
        monkeypatch.setattr(extras, "find_spec", lambda n, m=module: None if n == m else found(n))
        line = ("predict", bundle, images, "--engine", "ray", "--out", tmp_path / "o")
        refused(dermlens(*line), words)
    assert not (tmp_path / "o").exists()


def test_a_prepared_data_set_gives_its_own_ids(prepared: Path) -> None:
    from dermlens.data.manifest import read_manifest
    from dermlens.scale.plan import listed_images

    table = read_manifest(prepared)
    listed = listed_images([prepared])
    assert [name for name, _ in listed] == sorted(table.image_id)
    assert all(Path(path).is_file() and Path(path).is_absolute() for _, path in listed)

"""Every surface says the same: most probable diagnosis, prediction set, flags, explained class.

The model here is one whose balanced rule would often put another diagnosis first.
"""

import csv
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cli_support import dermlens
from dermlens.data.images import load_image
from dermlens.explainers.grad_cam import GradCAM
from dermlens.labels import HAM10000
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.report.facts import NO_BREAK, class_name
from dermlens.report.verdict import verdict
from dermlens.serve.app_actions import Actions
from dermlens.serve.app_batch import as_csv, as_data, shown_table
from dermlens.serve.export import ExportImages, export
from serving_support import SIZE, picture, save_untrained, text_of, untrained_bundle
from test_inference import inference  # noqa: F401

CODES = HAM10000.codes

NAMES = tuple(f"photo{seed}" for seed in range(8))
Answers = dict[str, tuple[str, list[str] | None, dict[str, bool]]]
"""By photograph: most probable code, prediction set, flags."""


@dataclass(frozen=True)
class Case:
    """A bundle on disk, photographs, and what is right to say about them."""

    folder: Path
    bundle: Bundle
    files: list[Path]
    logits: np.ndarray
    right: Answers

    @property
    def path(self) -> Path:
        return self.folder / "bundle"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("answers")
    calibration = untrained_bundle().calibration
    points = dict(calibration.operating_points)
    points["melanoma"] = replace(points["melanoma"], threshold=0.185)
    calibration = replace(calibration, operating_points=points)
    bundle = load_bundle(save_untrained(folder / "bundle", calibration))
    files = [folder / "photos" / f"{name}.png" for name in NAMES]
    (folder / "photos").mkdir()
    for seed, file in enumerate(files):
        picture(seed).save(file)
    logits = bundle.logits(np.stack([load_image(file, SIZE) for file in files]))
    shares = bundle.calibration.probabilities(logits)
    right: Answers = {}
    for name, row in zip(NAMES, shares, strict=True):
        inside = bundle.calibration.prediction_sets.contain(row[None])[0]
        ordered = [CODES[k] for k in np.argsort(-row) if inside[k]]
        flags = {n: bool(p.score(row[None], CODES)[0] >= p.threshold) for n, p in points.items()}
        right[name] = (CODES[row.argmax()], ordered, flags)
    return Case(folder, bundle, files, logits, right)


def test_the_case_tells_readings_apart(case: Case) -> None:
    balanced = case.bundle.calibration.balanced(case.logits)
    assert (balanced != case.logits.argmax(axis=1)).sum() >= 2
    sizes = {len(inside) for _, inside, _ in case.right.values()}
    assert len(sizes) >= 2 and 1 not in {7 - size for size in sizes}
    assert {up for _, _, flags in case.right.values() for up in flags.values()} == {True, False}


def flags_of(row: Any) -> dict[str, bool]:
    names = ("malignant", "melanoma")
    return {name: str(row[f"flag_{name}"]) == "True" for name in names}


def test_predict(case: Case) -> None:
    out = case.folder / "predictions.csv"
    # The photographs are too small for an answer, so it has to be asked for.
    done = dermlens("predict", case.path, *case.files, "--out", out, "--anyway")
    assert done.code == 0, done
    table = pd.read_csv(out).set_index("image_id")
    found = {
        name: (row.predicted, row.prediction_set.split(), flags_of(row))
        for name, row in table.iterrows()
    }
    assert found == case.right
    for file in case.files:
        code = case.right[file.stem][0]
        (line,) = (one for one in done.out.splitlines() if one.startswith(f"{file}: "))
        assert f"Most probable: {class_name(HAM10000, code)}, " in line
    quiet = dermlens("predict", case.path, *case.files, "--out", out)
    assert quiet.out.count("the model abstains. Too small: the shorter side has 60 pixels") == 8
    assert not any(class_name(HAM10000, code) in quiet.out for code in CODES)


def test_predict_at_another_level_and_by_the_balanced_rule(case: Case) -> None:
    out = case.folder / "other.csv"
    given = ("predict", case.path, *case.files, "--out", out)
    done = dermlens(*given, "--level", "0.3", "--decision", "balanced", "--anyway")
    table = pd.read_csv(out).set_index("image_id")
    shares = case.bundle.calibration.probabilities(case.logits)
    inside = case.bundle.calibration.prediction_sets.contain(shares, 0.3)
    assert [len(codes.split()) for codes in table.prediction_set] == list(inside.sum(axis=1))
    assert inside.sum() < sum(len(one) for _, one, _ in case.right.values())
    assert list(table.predicted) == [case.right[name][0] for name in NAMES]
    balanced = [CODES[k] for k in case.bundle.calibration.balanced(case.logits)]
    assert list(table.balanced_rule) == balanced
    for file, code in zip(case.files, balanced, strict=True):
        (line,) = (one for one in done.out.splitlines() if one.startswith(f"{file}: "))
        assert f"Balanced rule: {class_name(HAM10000, code)}, " in line
    refused = dermlens(*given, "--level", "90")
    assert refused.code == 2 and "between 0 and 1" in refused.err


def test_explain(case: Case) -> None:
    out = case.folder / "explanations"
    assert dermlens("explain", case.path, *case.files, "--out", out).code == 0
    for name in NAMES:
        stored = json.loads((out / name / "explanation.json").read_text())
        answer = (stored["predicted"], stored["prediction_set"], stored["flags"])
        assert answer == case.right[name]
        assert stored["target"] == stored["predicted"]


@pytest.mark.parametrize("target", ["predicted", "runner_up", "flagged", "vasc"])
def test_explain_takes_every_kind_of_target(case: Case, target: str) -> None:
    out = case.folder / f"explained-{target}"
    done = dermlens("explain", case.path, case.files[0], "--out", out, "--target", target)
    assert done.code == 0, done
    stored = json.loads((out / NAMES[0] / "explanation.json").read_text())
    order = [CODES[k] for k in np.argsort(-case.logits[0])]
    malignant = next(code for code in order if HAM10000.of(code).malignant)
    expected = {"predicted": order[0], "runner_up": order[1], "flagged": malignant, "vasc": "vasc"}
    assert stored["target"] == expected[target]


def test_compare(case: Case) -> None:
    out = case.folder / "comparisons"
    files = case.files[:2]
    done = dermlens("compare", case.path, *files, "--out", out, "--methods", "grad_cam")
    assert done.code == 0, done
    for file in files:
        stored = json.loads((out / file.stem / "comparison.json").read_text())
        code, inside, flags = case.right[file.stem]
        assert (stored["predicted"], stored["prediction_set"], stored["flags"]) == (
            code,
            inside,
            flags,
        )
        assert stored["target"] == code
        order = [CODES[k] for k in np.argsort(-case.logits[case.files.index(file)])]
        others = [one for one in inside if one != code] or order[1:]
        assert stored["compared_with"] == others[:1]
        page = (out / file.stem / "comparison.html").read_text(encoding="utf-8")
        assert f"Most probable: {class_name(HAM10000, code)}, " in page


def test_page(case: Case) -> None:
    actions = Actions(case.bundle)
    for file in case.files:
        code, inside, flags = case.right[file.stem]
        found = actions.analyze_image(load_image(file, SIZE))
        facts = actions.facts(found)
        assert (facts["predicted"], facts["prediction_set"], facts["flags"]) == (
            code,
            inside,
            flags,
        )
        assert actions.target(found, "predicted") == CODES.index(code)
        said = text_of(verdict(case.bundle, found))
        assert said.startswith(f"Most probable: {HAM10000.of(code).name}, ")
        others = said.split("Cannot be excluded: ")[1].split(".")[0]
        named = [one.rsplit(", ", 1)[0] for one in others.split("; ")]
        assert named == (
            [class_name(HAM10000, one) for one in inside if one != code] or ["nothing else"]
        )


def test_page_batch(case: Case) -> None:
    from dermlens.serve.app_batch import analyze_many

    actions = Actions(case.bundle)
    *_, rows = analyze_many(actions, [(file.name, file) for file in case.files])
    read = list(csv.DictReader(io.StringIO(as_csv(actions, rows, anyway=True))))
    found = {
        Path(row["file"]).stem: (row["predicted"], row["prediction_set"].split(), flags_of(row))
        for row in read
    }
    assert found == case.right
    assert [row["predicted"] for row in as_data(actions, rows, anyway=True)] == [
        case.right[name][0] for name in NAMES
    ]
    table = shown_table(actions, rows, anyway=True)
    assert list(table["Most probable"]) == [HAM10000.of(case.right[n][0]).name for n in NAMES]


@pytest.fixture(scope="module")
def artifacts(case: Case) -> Path:
    images = ExportImages([np.asarray(picture(0))], None, [], "one")
    export(case.bundle, case.folder / "exported", ["saved_model", "float32"], images)
    return case.folder / "exported"


@pytest.mark.parametrize("name", ["saved_model", "model.tflite"])
def test_inference_script(case: Case, artifacts: Path, inference: Any, name: str) -> None:  # noqa: F811
    out = case.folder / f"{name}.json"
    given = [str(artifacts / name), str(case.folder / "photos"), "--json", str(out)]
    assert inference.main([*given, "--explain", str(case.folder / "overlays")]) == 0
    rows = json.loads(out.read_text())["images"]
    found = {
        Path(row["path"]).stem: (row["predicted"], row["prediction_set"], row["flags"])
        for row in rows
    }
    assert found == case.right
    assert [row["explained"] for row in rows] == [row["predicted"] for row in rows]
    assert inference.main([*given, "--level", "0.3"]) == 0
    smaller = [row["prediction_set"] for row in json.loads(out.read_text())["images"]]
    shares = case.bundle.calibration.probabilities(case.logits)
    inside = case.bundle.calibration.prediction_sets.contain(shares, 0.3)
    assert [len(one) for one in smaller] == list(inside.sum(axis=1))
    assert inference.main([*given, "--level", "2"]) == 2


def test_exported_graphs(case: Case, artifacts: Path) -> None:
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    images = np.stack([load_image(file, SIZE) for file in case.files])
    signatures = tf.saved_model.load(str(artifacts / "saved_model")).signatures
    whole = {k: v.numpy() for k, v in signatures["serving_default"](images=images).items()}
    codes = [code.decode() for code in whole["class_code"]]
    assert codes == [case.right[name][0] for name in NAMES]
    asked = np.full(len(NAMES), -1, np.int32)
    drawn = signatures["explain_grad_cam"](images=images, targets=asked)
    assert drawn["target"].numpy().tolist() == case.logits.argmax(axis=1).tolist()
    maps = GradCAM(case.bundle).attribute(images).maps
    np.testing.assert_allclose(drawn["maps"], maps, atol=1e-4)
    run = Interpreter(str(artifacts / "model.tflite")).get_signature_runner()
    for position, name in enumerate(NAMES):
        lite = run(image=images[position : position + 1].astype(np.float32))
        for out in ({k: v[position] for k, v in whole.items()}, {k: v[0] for k, v in lite.items()}):
            inside = {code for code, up in zip(CODES, out["prediction_set"], strict=True) if up}
            assert inside == set(case.right[name][1])
            flags = {n: bool(out[f"flag_{n}"]) for n in ("malignant", "melanoma")}
            assert flags == case.right[name][2]


def test_a_bundle_without_sets_says_so(case: Case) -> None:
    carried = replace(case.bundle.calibration, prediction_sets=None)
    old = save_untrained(case.folder / "old", carried)
    out = case.folder / "old.csv"
    done = dermlens("predict", old, case.files[0], "--out", out)
    assert "carries no prediction sets" in done.out.replace(NO_BREAK, " ").lower()
    assert pd.read_csv(out).prediction_set.isna().all()
    done = dermlens("predict", old, case.files[0], "--out", out, "--level", "0.8")
    assert done.code == 2 and "carries no prediction sets" in done.err
    actions = Actions(load_bundle(old))
    found = actions.analyze_image(load_image(case.files[0], SIZE))
    assert actions.facts(found)["prediction_set"] is None
    assert "is not known" in text_of(verdict(actions.bundle, found))

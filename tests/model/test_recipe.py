"""Recipes: what each stage starts from, learns from and counts as, and how they go on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli_support import dermlens, refused
from dermlens.errors import UsageError
from dermlens.model import recipe as recipes
from dermlens.model.bundle import load_bundle
from dermlens.model.classifier import build_classifier
from dermlens.model.recipe import RECIPES, Stage, check_recipe, run_recipe
from dermlens.model.weights import save_by_name
from tests_support import register_tiny_backbone, tiny_configuration

FIRST = tiny_configuration(epochs=2)
STAGES = (
    Stage("first", FIRST),
    Stage("teacher", replace(FIRST, seed=4)),
    Stage("taught", replace(FIRST, seed=5, mixup=0.2), start="first",
          teachers=("first", "teacher"), averaged=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    register_tiny_backbone()
    path = tmp_path_factory.mktemp("weights") / "tiny.h5"
    save_by_name(build_classifier(FIRST.architecture, seed=8), path)
    return path


@pytest.fixture(scope="module")
def run(prepared: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recipe") / "run"
    run_recipe(prepared, out, STAGES, weights={"tiny": str(pretrained)})
    return out


def test_stages_start_from_learn_from_and_are_averaged_with_earlier_ones(run: Path) -> None:
    facts = {
        name: json.loads((run / name / "configuration.json").read_text())["training"]
        for name in ("first", "teacher", "taught")
    }
    assert facts["first"]["weights"].endswith("tiny.h5") and facts["first"]["teachers"] == []
    assert facts["taught"]["weights"] == str(run / "first" / "bundle" / "weights.h5")
    assert facts["taught"]["teachers"] == [
        str(run / "first" / "bundle"),
        str(run / "teacher" / "bundle"),
    ]
    told = {name: load_bundle(run / name / "bundle").facts for name in ("first", "taught")}
    assert told["first"]["training"]["weights_license"] is None
    assert told["taught"]["training"]["weights_license"] == told["first"]["license"]
    first, taught, averaged, final = (
        load_bundle(run / path).model.get_weights()
        for path in ("first/bundle", "taught/bundle", "taught/averaged", "bundle")
    )
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(first, taught, strict=True))
    for mine, theirs, mean, last in zip(first, taught, averaged, final, strict=True):
        np.testing.assert_allclose(mean, (mine + theirs) / 2, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(mean, last)


def test_what_is_finished_is_kept_and_an_interrupted_stage_goes_on(
    run: Path, prepared: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("weights.h5")}
    trained = []
    train = recipes.train

    def watched(data, out, how, **rest):
        trained.append((out.name, rest["resume"]))
        return train(data, out, how, **rest)

    monkeypatch.setattr(recipes, "train", watched)
    run_recipe(prepared, run, STAGES, weights={"tiny": str(pretrained)})
    assert trained == [("first", True), ("teacher", True), ("taught", True)]
    assert before == {path: path.read_bytes() for path in run.rglob("weights.h5")}


@pytest.mark.parametrize(
    "stages",
    [
        (Stage("one", FIRST, start="two"), Stage("two", FIRST)),
        (Stage("one", FIRST, teachers=("one",)),),
        (Stage("one", FIRST), Stage("one", FIRST)),
    ],
)
def test_stages_refer_to_earlier_ones_alone(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(UsageError, match="is no earlier stage"):
        check_recipe(stages)


def test_known_recipes_are_complete() -> None:
    for stages in RECIPES.values():
        check_recipe(stages)
        assert not stages[0].averaged
        sizes = {stage.how.architecture.input_size for stage in stages}
        assert len(sizes) == 1


def test_the_command_refuses_what_it_cannot_do(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused(dermlens("recipe", prepared, "--out", out, "--name", "cake"), "Unknown recipe 'cake'")
    refused(
        dermlens("recipe", prepared, "--out", out, "--weights", "vgg16=file.h5"),
        "No stage of the recipe has the backbone 'vgg16'",
    )
    assert not out.exists()

"""Recipes of several stages: networks that start from, learn from and are averaged with others.

RUN/<stage>/          each stage, a run as ``training.train`` writes it
RUN/<stage>/averaged  where a stage counts as the mean of its weights and those it started from
RUN/bundle/           the last stage, packed: what is handed out
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dermlens.data.augmentation import STRONG_AUGMENTATION
from dermlens.errors import ModelError, UsageError
from dermlens.locks import folder_lock
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.model.classifier import Architecture
from dermlens.model.configuration import HAM10000, TrainingConfiguration
from dermlens.model.finishing import pack
from dermlens.model.training import train
from dermlens.progress import say

IMAGENET = "imagenet"


@dataclass(frozen=True)
class Stage:
    """One training of a recipe.

    Attributes:
        name: Of its folder.
        how: The training; where it starts and what teaches it is filled in.
        start: The stage whose weights it starts from, or ``"imagenet"``.
        teachers: Stages that teach it.
        averaged: Whether the mean of its weights and those it started from is what counts.
        extra: Whether it is trained on extra images too.
    """

    name: str
    how: TrainingConfiguration
    start: str = IMAGENET
    teachers: tuple[str, ...] = ()
    averaged: bool = False
    extra: bool = False


def check_recipe(stages: Sequence[Stage]) -> None:
    """Raise UsageError unless every stage refers to earlier ones alone."""
    known: set[str] = set()
    for stage in stages:
        unknown = {stage.start, *stage.teachers} - known - {IMAGENET}
        if unknown or stage.name in known:
            raise UsageError(
                f"The stage {stage.name!r} of a recipe refers to {sorted(unknown) or 'itself'}, "
                "which is no earlier stage."
            )
        known.add(stage.name)


def run_recipe(
    data: Path,
    out: Path,
    stages: Sequence[Stage],
    *,
    weights: Mapping[str, str] | None = None,
    extra: Sequence[Path] = (),
    precision: str = "float32",
) -> Bundle:
    """Train all stages one after the other, and pack the last one.

    What is finished is kept, and a stage that was interrupted goes on, so that the same call ends
    where an uninterrupted one ends.

    Args:
        data: Prepared and split data set.
        out: Folder to write.
        stages: In order.
        weights: ImageNet weights by backbone, paths of ``.h5`` files; what is not named is
            downloaded.
        extra: Prepared data sets that serve training alone.
        precision: ``"float32"`` or ``"mixed_bfloat16"``.

    Returns:
        The bundle in ``OUT/bundle``.

    Raises:
        DataError, ModelError, UsageError: As ``training.train`` does.
    """
    check_recipe(stages)
    weights, out = dict(weights or {}), Path(out)
    unknown = set(weights) - {stage.how.architecture.backbone for stage in stages}
    if unknown:
        raise UsageError(f"No stage of the recipe has the backbone {sorted(unknown)[0]!r}.")
    results: dict[str, Path] = {}
    with folder_lock(out):
        for number, stage in enumerate(stages, 1):
            say(f"Stage {number} of {len(stages)}: {stage.name}")
            results[stage.name] = _run(
                stage, data, out, results, weights, extra if stage.extra else (), precision
            )
        last = results[stages[-1].name]
        if not (out / "bundle").is_dir():
            pack(last, data, out / "bundle")
        return load_bundle(out / "bundle")


def _run(
    stage: Stage,
    data: Path,
    out: Path,
    results: Mapping[str, Path],
    weights: Mapping[str, str],
    extra: Sequence[Path],
    precision: str,
) -> Path:
    """Train one stage unless it is finished; return the bundle that counts."""
    folder = out / stage.name
    backbone = stage.how.architecture.backbone
    start = (
        weights.get(backbone, IMAGENET)
        if stage.start == IMAGENET
        else str(results[stage.start] / "weights.h5")
    )
    taught = tuple(str(results[name]) for name in stage.teachers)
    filled: dict[str, Any] = {"weights": start, "teachers": taught, "precision": precision}
    how = replace(stage.how, **filled)
    begun = (folder / "configuration.json").is_file()
    bundle = train(data, folder, how, extra=extra, resume=begun)
    if not stage.averaged:
        return folder / "bundle"
    if stage.start == IMAGENET:
        raise ModelError(f"The stage {stage.name!r} starts from ImageNet, which is no bundle.")
    averaged = folder / "averaged"
    if not averaged.is_dir():
        pack(bundle.path, data, averaged, average_with=results[stage.start])
    return averaged


_INPUT = HAM10000.architecture.input_size
_TEACHER = replace(
    HAM10000,
    architecture=Architecture("densenet169", _INPUT),
    train_from="conv3",
    early_epochs=7,
    epochs=9,
    seed=1,
)
_TAUGHT = replace(
    HAM10000,
    head_epochs=0,
    teacher_share=0.5,
    mixup=0.2,
    augmentation=STRONG_AUGMENTATION,
    pretrained_rate=2e-4,
    fresh_rate=2e-4,
    early_epochs=3,
    epochs=9,
    seed=2,
)

RECIPES: dict[str, tuple[Stage, ...]] = {
    "ham10000": (
        Stage("first", HAM10000),
        Stage("teacher", _TEACHER),
        Stage("taught", _TAUGHT, start="first", teachers=("teacher",), averaged=True),
    ),
}
"""``"ham10000"``: the shipped model (docs/results.md)."""


def recipe_named(name: str) -> tuple[Stage, ...]:
    """Return a recipe by its name.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in RECIPES:
        raise UsageError(f"Unknown recipe {name!r}. Use one of: {', '.join(RECIPES)}.")
    return RECIPES[name]

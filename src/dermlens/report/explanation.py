"""Explaining image files: attributions, overlays and a description for each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.images import image_size, load_image
from dermlens.errors import DataError, UsageError
from dermlens.explain.base import Attribution
from dermlens.explain.output import parse_output
from dermlens.explain.registry import METHODS, create_several, method, parse_methods
from dermlens.model.scorers import choose_scorers
from dermlens.explain.target import check_targets, resolve_targets
from dermlens.files import write_json
from dermlens.folders import Kind, folder_beside, require_replaceable
from dermlens.model.bundle import Bundle
from dermlens.model.prediction_table import set_codes
from dermlens.progress import printable, progress
from dermlens.report.evaluation_report import write_figure
from dermlens.report.figures import Panel, attribution_figure, overlay

KIND = Kind(
    "an explanation",
    "explanation.json",
    lambda _: (
        *("attributions.npz", "all_methods.png", "explanation.json"),
        *(f"{name}.png" for name in METHODS),
    ),
)


def explain_files(
    bundle: Bundle,
    files: Sequence[Path],
    out: Path,
    *,
    methods: str = "grad_cam",
    target: str | None = None,
    output: str = "logit",
    scorer: str | None = None,
    opacity: float = 0.5,
    batch_size: int = 16,
    seed: int = 0,
) -> list[Path]:
    """Explain image files and write one folder for each.

    Args:
        bundle: Trained model.
        files: Images.
        out: Folder to write ``<image_id>/`` into: ``attributions.npz`` (one array per method,
            float32 (H, W)), ``<method>.png``, ``all_methods.png``, ``explanation.json``.
        methods: Names separated by commas, ``"six"`` or ``"all"``.
        target: Diagnosis to explain; None for the most probable one, or another target of
            ``explain.target``.
        output: ``"logit"``, ``"probability"`` or ``"contrast:CODE"``.
        scorer: What evaluates changed images: ``"float32"``, ``"int8"``, or None for int8 where
            it was measured to give the same maps (``model.scorers``).
        opacity: Of the overlays, 0..1.
        batch_size: Images per pass.
        seed: Sets everything random.

    Returns:
        The folders written.

    Raises:
        UsageError: If a method, target, output or scorer is unknown, or a number is outside its
            range.
        DataError: If a file cannot be read, two would share a folder, or a folder holds something
            else than an explanation; nothing is written then.
    """
    _check_numbers(opacity, batch_size, seed)
    names = parse_methods(methods)
    explained = parse_output(output, bundle)
    check_targets(target, bundle.labels)
    _check_files(files)
    for path in files:
        require_replaceable(Path(out) / path.stem, KIND)
    scorers = choose_scorers(bundle, names, scorer, images=len(files))
    explainers = create_several(names, bundle, scorers=scorers)
    # One predictor for all images: it is traced once.
    predictor = bundle.predictor(batch_size=1)
    written = []
    with progress("Explaining", len(files) * len(names)) as advance:
        for path in files:
            image = load_image(path, bundle.input_size)
            logits = predictor.logits(image[None])
            goal = int(resolve_targets(target, logits, bundle.labels)[0])
            results = {}
            for name, explainer in explainers.items():
                results[name] = explainer.attribute(
                    image[None], goal, output=explained, batch_size=batch_size, seed=seed
                )
                advance(1, name)
            folder = Path(out) / path.stem
            _write(folder, bundle, path, image, logits, goal, results, opacity)
            written.append(folder)
    return written


def _check_numbers(opacity: float, batch_size: int, seed: int) -> None:
    if not 0 <= opacity <= 1:
        raise UsageError(f"The opacity {opacity} is outside 0..1.")
    if batch_size < 1:
        raise UsageError(f"The batch size must be at least 1, not {batch_size}.")
    if seed < 0:
        raise UsageError(f"The seed must not be negative, but is {seed}.")


def _check_files(files: Sequence[Path]) -> None:
    """Find out before the long work starts: two files of one name, or a damaged one."""
    by_name: dict[str, Path] = {}
    for path in files:
        other = by_name.setdefault(path.stem, path)
        if other != path:
            raise DataError(
                f"{other} and {path} would both be written to the folder {path.stem}. Rename one, "
                "or explain them into different folders."
            )
        image_size(path)


def _write(
    folder: Path,
    bundle: Bundle,
    path: Path,
    image: np.ndarray,
    logits: np.ndarray,
    goal: int,
    results: dict[str, Attribution],
    opacity: float,
) -> None:
    calibration = bundle.calibration
    probabilities = calibration.probabilities(logits)[0]
    inside = set_codes(calibration, probabilities[None])[0]
    flags = {name: bool(up[0]) for name, up in calibration.flags(probabilities[None]).items()}
    code = bundle.classes[goal]
    panels = [
        Panel(method(name).title, result.maps[0], result.signed, method(name).cost)
        for name, result in results.items()
    ]
    title = f"{printable(path.stem)}: {code}, p = {probabilities[goal]:.2f}"
    with folder_beside(folder, KIND) as building:
        maps: dict[str, Any] = {name: result.maps[0] for name, result in results.items()}
        np.savez_compressed(building / "attributions.npz", **maps)
        for name, result in results.items():
            _save_png(
                building / f"{name}.png",
                overlay(image, result.maps[0], opacity=opacity, signed=result.signed),
            )
        figure = attribution_figure(image, panels, opacity=opacity, title=title)
        write_figure(building / "all_methods.png", figure)
        write_json(
            building / "explanation.json",
            {
                "image": printable(path.name),
                "model": bundle.identity,
                "target": code,
                "predicted": bundle.classes[int(probabilities.argmax())],
                "prediction_set": None if inside is None else inside.split(),
                "flags": flags,
                "probabilities": dict(zip(bundle.classes, probabilities, strict=True)),
                "logits": dict(zip(bundle.classes, logits[0], strict=True)),
                "input_size": list(bundle.input_size),
                "methods": {name: describe(result) for name, result in results.items()},
                "note": "Research and education only, not a medical device.",
            },
        )


def describe(result: Attribution, position: int = 0) -> dict[str, Any]:
    """Return what is known about one image's attribution, as JSON types."""
    known = method(result.method)
    return {"question": known.question, "family": known.family, **result.facts(position)}


def _save_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(image).save(path)

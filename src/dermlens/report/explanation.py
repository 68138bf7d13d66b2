"""Explaining image files: attributions, overlays and a description for each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.base import Attribution
from dermlens.explainers.output import parse_output
from dermlens.explainers.registry import METHODS, create_several, method
from dermlens.explainers.target import check_targets, resolve_targets
from dermlens.files import write_json
from dermlens.folders import Kind, folder_beside
from dermlens.model.bundle import Bundle
from dermlens.model.scorers import choose_scorers
from dermlens.progress import printable, progress
from dermlens.report.answer import answer_of
from dermlens.report.comparer import chosen_methods
from dermlens.report.evaluation_report import write_figure
from dermlens.report.facts import NOT_CALIBRATED
from dermlens.report.figures import Panel, attribution_figure, overlay
from dermlens.report.html import NOTICE, png_bytes
from dermlens.report.photographs import check_numbers, fitted_photographs

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
        target: Class to explain; None for the most probable one, or another target of
            ``explainers.target``.
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
    check_numbers(batch_size, seed)
    if not 0 <= opacity <= 1:
        raise UsageError(f"The opacity {opacity} is outside 0..1.")
    names = chosen_methods(bundle, methods)
    explained = parse_output(output, bundle)
    check_targets(target, bundle.labels)
    images, _ = fitted_photographs(bundle, files, Path(out), KIND)
    scorers = choose_scorers(bundle, names, scorer, images=len(files))
    explainers = create_several(names, bundle, scorers=scorers)
    written, identity = [], bundle.identity
    # One predictor for all images: it is traced once.
    predictor = bundle.predictor(batch_size=1)
    with progress("Explaining", len(files) * len(names)) as advance:
        for path, image in zip(files, images, strict=True):
            logits = predictor.logits(image[None])
            goal = int(resolve_targets(target, logits, bundle.labels)[0])
            results = {}
            for name, explainer in explainers.items():
                results[name] = explainer.attribute(
                    image[None], goal, output=explained, batch_size=batch_size, seed=seed
                )
                advance(1, name)
            folder = Path(out) / path.stem
            said = answer_of(bundle, logits[0]).to_json(bundle.classes)
            answer = {"image": printable(path.name), "model": identity, **said}
            _write(folder, answer, bundle.classes[goal], image, results, opacity)
            written.append(folder)
    return written


def _write(
    folder: Path,
    answer: dict[str, Any],
    code: str,
    image: np.ndarray,
    results: dict[str, Attribution],
    opacity: float,
) -> None:
    panels = [
        Panel(method(name).title, result.maps[0], result.signed, method(name).cost)
        for name, result in results.items()
    ]
    note = "" if answer["calibrated"] else f" ({NOT_CALIBRATED})"
    title = f"{printable(folder.name)}: {code}, p = {answer['probabilities'][code]:.2f}{note}"
    with folder_beside(folder, KIND) as building:
        maps: dict[str, Any] = {name: result.maps[0] for name, result in results.items()}
        np.savez_compressed(building / "attributions.npz", **maps)
        for name, result in results.items():
            drawn = overlay(image, result.maps[0], opacity=opacity, signed=result.signed)
            (building / f"{name}.png").write_bytes(png_bytes(drawn))
        figure = attribution_figure(image, panels, opacity=opacity, title=title)
        write_figure(building / "all_methods.png", figure)
        described = {name: describe(result) for name, result in results.items()}
        facts = {"target": code, "input_size": list(image.shape[:2]), "methods": described}
        write_json(building / "explanation.json", {**answer, **facts, "note": NOTICE})


def describe(result: Attribution, position: int = 0) -> dict[str, Any]:
    """Return what is known about one image's attribution, as JSON types."""
    known = method(result.method)
    return {"question": known.question, "family": known.family, **result.facts(position)}

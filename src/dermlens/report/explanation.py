"""Explaining image files: attributions, overlays and a description for each."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.decoding import as_array
from dermlens.data.dicom import is_dicom_path, pixel_spacing
from dermlens.data.images import (
    fit_box,
    fit_image,
    fit_mask,
    opened_mask,
    opened_rgb,
    read_bytes,
)
from dermlens.errors import DataError, UsageError
from dermlens.explainers.base import Attribution
from dermlens.explainers.output import parse_output
from dermlens.explainers.registry import METHODS, create_several, method
from dermlens.explainers.target import check_targets, resolve_targets
from dermlens.files import write_json
from dermlens.folders import Kind, folder_beside, require_replaceable
from dermlens.model.bundle import Bundle
from dermlens.model.scorers import choose_scorers
from dermlens.progress import printable, progress
from dermlens.report.comparer import chosen_methods
from dermlens.report.dicom_objects import DICOM_OBJECTS, answer_in_words, write_dicom_objects
from dermlens.report.evaluation_report import write_figure
from dermlens.report.facts import NOT_CALIBRATED, answer_of, percent
from dermlens.report.figures import Panel, attribution_figure, overlay_on_photograph
from dermlens.report.html import NOTICE, png_bytes

KIND = Kind(
    "an explanation",
    "explanation.json",
    lambda _: (
        *("attributions.npz", "all_methods.png", "explanation.json"),
        *(f"{name}.png" for name in METHODS),
        *DICOM_OBJECTS,
    ),
)


_SHAPE_TOLERANCE = 0.02
"""Difference of the ratios of sides up to which an outline of another size fits its image."""
_LARGEST = 4096
"""Longer side, in pixels, up to which an overlay has the photograph's own size."""


def check_numbers(batch_size: int, seed: int) -> None:
    """Raise UsageError for a batch size or a seed that cannot be used."""
    if batch_size < 1:
        raise UsageError(f"The batch size must be at least 1, not {batch_size}.")
    if seed < 0:
        raise UsageError(f"The seed must not be negative, but is {seed}.")


def fitted_photographs(
    bundle: Bundle,
    files: Sequence[Path],
    out: Path,
    kind: Kind,
    masks: Mapping[Path, Path] | None = None,
) -> tuple[np.ndarray, dict[Path, np.ndarray]]:
    """Read files, so that everything that is wrong with them is found before the long work.

    Returns uint8 (N, H, W, 3) on disk, however many there are, and outlines, bool (H, W), by image.
    """
    by_name: dict[str, Path] = {}
    for path in files:
        if by_name.setdefault(path.stem, path) != path:
            raise DataError(
                f"{by_name[path.stem]} and {path} would both be written to the folder {path.stem}. "
                "Rename one, or write them into different folders."
            )
        require_replaceable(out / path.stem, kind)
    size, outlines = bundle.input_size, {}
    # The file has no name: it is gone when nobody holds it any more.
    with tempfile.TemporaryFile() as store:
        images = np.memmap(store, np.uint8, "w+", shape=(len(files), *size, 3))
    for place, path in zip(images, files, strict=True):
        with opened_rgb(read_bytes(path), str(path)) as picture:
            place[:], shape = fit_image(picture, size), picture.size
        if masks and path in masks:
            with opened_mask(read_bytes(masks[path]), str(masks[path])) as drawn:
                if abs(drawn.width * shape[1] / (drawn.height * shape[0]) - 1) > _SHAPE_TOLERANCE:
                    raise DataError(
                        f"The outline {masks[path]} has {drawn.width}x{drawn.height} pixels, its "
                        f"image {shape[0]}x{shape[1]}, which is another shape. Draw it on the "
                        "whole image."
                    )
                outlines[path] = fit_mask(drawn, size)
    return images, outlines


def explain_files(
    bundle: Bundle,
    files: Sequence[Path],
    out: Path,
    *,
    methods: str = "grad_cam",
    target: str | None = None,
    output: str = "logit",
    scorer: str | None = None,
    opacity: float = 0.8,
    dicom: bool = False,
    keep_patient: bool = False,
    batch_size: int = 16,
    seed: int = 0,
) -> list[Path]:
    """Explain image files; write one folder for each and return the folders.

    ``OUT/<image_id>/`` holds ``attributions.npz`` (one array per method, float32 (H, W)),
    ``<method>.png`` (over the photograph at its own size, with a color bar), ``all_methods.png``
    and ``explanation.json``; with ``dicom`` also what
    ``report.dicom_objects`` writes. Arguments are what ``dermlens explain`` takes.

    Raises:
        UsageError: If a method, target, output or scorer is unknown, or a number is outside its
            range.
        DataError: If a file cannot be read, two would share a folder, or a folder holds something
            else than an explanation; nothing is written then.
    """
    check_numbers(batch_size, seed)
    if not 0 <= opacity <= 1:
        raise UsageError(f"The opacity {opacity} is outside 0..1.")
    if dicom and (other := [path for path in files if not is_dicom_path(path)]):
        raise UsageError(f"{other[0]} is no DICOM file. Leave out --dicom, or that file.")
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
                advance(1, method(name).title)
            folder = Path(out) / path.stem
            said = answer_of(bundle, logits[0]).to_json(bundle.classes)
            answer = {"image": printable(path.name), "model": identity, **said}
            if is_dicom_path(path):
                answer["pixel_spacing_mm"] = pixel_spacing(path)
            with folder_beside(folder, KIND) as building:
                _write(building, answer, bundle, goal, image, results, opacity)
                _write_overlays(building, path, bundle.input_size, results, opacity)
                if dicom:
                    maps = {method(name).title: one.maps[0] for name, one in results.items()}
                    told = answer_in_words(answer, bundle.labels, bundle.classes[goal])
                    write_dicom_objects(building, path, maps, told, keep_patient=keep_patient)
            written.append(folder)
    return written


def _write(
    folder: Path,
    answer: dict[str, Any],
    bundle: Bundle,
    goal: int,
    image: np.ndarray,
    results: dict[str, Attribution],
    opacity: float,
) -> None:
    panels = [
        Panel(method(name).title, result.maps[0], result.signed, method(name).cost)
        for name, result in results.items()
    ]
    note = "" if answer["calibrated"] else f" ({NOT_CALIBRATED})"
    code, name = bundle.classes[goal], bundle.labels.labels[goal].name
    title = f"{Path(answer['image']).stem}: {name}, {percent(answer['probabilities'][code])}{note}"
    maps: dict[str, Any] = {name: result.maps[0] for name, result in results.items()}
    np.savez_compressed(folder / "attributions.npz", **maps)
    figure = attribution_figure(image, panels, opacity=opacity, title=title)
    write_figure(folder / "all_methods.png", figure)
    described = {name: describe(result) for name, result in results.items()}
    facts = {"target": code, "input_size": list(image.shape[:2]), "methods": described}
    write_json(folder / "explanation.json", {**answer, **facts, "note": NOTICE})


def _write_overlays(
    folder: Path,
    path: Path,
    size: tuple[int, int],
    results: dict[str, Attribution],
    opacity: float,
) -> None:
    photograph, box = photograph_of(path, size)
    height, width = photograph.shape[:2]
    pixels = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    for name, result in results.items():
        drawn = overlay_on_photograph(
            photograph, result.maps[0], pixels, opacity=opacity, signed=result.signed
        )
        (folder / f"{name}.png").write_bytes(png_bytes(drawn))


def photograph_of(
    path: Path, size: tuple[int, int], largest: int = _LARGEST
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Return a whole photograph, uint8 (h, w, 3), and what a network of an input size sees of it.

    The box is (left, top, right, bottom), in shares of the photograph; ``largest`` bounds its
    longer side in pixels.
    """
    with opened_rgb(read_bytes(path), str(path)) as picture:
        width, height = picture.size
        left, top, right, bottom = fit_box(height, width, size)
        picture.thumbnail((largest, largest))
        return as_array(picture), (left / width, top / height, right / width, bottom / height)


def describe(result: Attribution, position: int = 0) -> dict[str, Any]:
    """Return what is known about one image's attribution, as JSON types."""
    known = method(result.method)
    return {"question": known.question, "family": known.family, **result.facts(position)}

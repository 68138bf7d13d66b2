"""Comparing image files: a page, the raw maps and the numbers of each in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.errors import DataError, UsageError
from dermlens.explainers.target import check_targets
from dermlens.files import write_json
from dermlens.folders import Kind, folder_beside
from dermlens.model.bundle import Bundle
from dermlens.progress import printable, progress
from dermlens.report.comparer import STEPS, Comparer, chosen_methods
from dermlens.report.comparison import Comparison
from dermlens.report.comparison_page import comparison_page
from dermlens.report.explanation import describe
from dermlens.report.html import NOTICE
from dermlens.report.photographs import check_numbers, fitted_photographs

MASK_NAMES = ("{}.png", "{}_segmentation.png")
KIND = Kind(
    "a comparison",
    "comparison.json",
    lambda _: ("comparison.html", "attributions.npz", "comparison.json"),
)


def compare_files(
    bundle: Bundle,
    files: Sequence[Path],
    out: Path,
    *,
    methods: str = "six",
    target: str | None = None,
    against: str | None = None,
    mask: Path | None = None,
    scorer: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> list[Path]:
    """Run the four experiments on image files and write one folder for each.

    Args:
        bundle: Trained model.
        files: Images.
        out: Folder to write ``<image_id>/`` into: ``comparison.html`` (self-contained),
            ``attributions.npz`` (``comparison_maps``), ``comparison.json``.
        methods: Names separated by commas, ``"six"`` or ``"all"``.
        target: Class to explain; None for the most probable one, or another target of
            ``explainers.target``.
        against: A class to contrast it with, beside the most probable other one of the
            prediction set.
        mask: Outline of the lesion or object: an image file, white inside, for a single image; or
            a folder with ``<image_id>.png`` or ``<image_id>_segmentation.png`` for some of them.
        scorer: What evaluates changed images; see ``Comparer``.
        batch_size: Images per pass.
        seed: Sets everything random.

    Returns:
        The pages written.

    Raises:
        UsageError: If a method or class is unknown, a number is out of its range, or one mask is
            given for several images.
        DataError: If a file cannot be read, two would share a folder, or a folder holds something
            else than a comparison; nothing is written then.
    """
    check_numbers(batch_size, seed)
    names = chosen_methods(bundle, methods)
    check_targets([target, against], bundle.labels)
    out = Path(out)
    images, outlines = fitted_photographs(bundle, files, out, KIND, find_masks(files, mask))
    comparer = Comparer(bundle, names, batch_size=batch_size, scorer=scorer, images=len(files))
    written = []
    with progress("Comparing", len(files) * (len(names) + len(STEPS) - 1)) as advance:
        for path, image in zip(files, images, strict=True):
            comparison = comparer.compare(
                image,
                target=target,
                against=against,
                lesion=outlines.get(path),
                seed=seed,
                advance=lambda name: advance(1, name),
            )
            written.append(write_comparison(out / path.stem, comparison, printable(path.name)))
    return written


def write_comparison(folder: Path, comparison: Comparison, name: str) -> Path:
    """Write a complete comparison as a folder, atomically, and return its page."""
    with folder_beside(folder, KIND) as building:
        page = comparison_page(comparison, name)
        (building / "comparison.html").write_text(page, encoding="utf-8")
        np.savez_compressed(building / "attributions.npz", **comparison_maps(comparison))
        write_json(building / "comparison.json", comparison_numbers(comparison, name))
    return folder / "comparison.html"


def find_masks(files: Sequence[Path], mask: Path | None) -> dict[Path, Path]:
    """Return the outline file of each image that has one."""
    if mask is None:
        return {}
    if mask.is_dir():
        found = {
            path: mask / name.format(path.stem)
            for path in files
            for name in MASK_NAMES
            if (mask / name.format(path.stem)).is_file()
        }
        if not found:
            raise DataError(
                f"{mask} holds no outline of any image. Name outlines like the images: "
                "IMAGE.png or IMAGE_segmentation.png."
            )
        return found
    if len(files) != 1:
        raise UsageError(
            f"One outline was given for {len(files)} images. Give a folder of outlines, or one "
            "image."
        )
    return {files[0]: mask}


def comparison_numbers(comparison: Comparison, name: str) -> dict[str, Any]:
    """Return everything but the maps, for JSON."""
    reading, classes = comparison.reading, comparison.classes
    agreement, scales, found = comparison.agreement, comparison.scales, comparison.discrimination
    numbers: dict[str, Any] = {
        "image": name,
        "model": dict(comparison.model),
        "target": comparison.target,
        **reading.to_json(classes),
        "compared_with": [classes[other] for other in reading.others],
        "outline": None if reading.lesion is None else {"area": float(reading.lesion.mean())},
        "methods": {key: describe(result) for key, result in comparison.combined.items()},
    }
    if agreement is not None:
        numbers["agreement"] = {
            "methods": list(agreement.methods),
            "families": list(agreement.families),
            "between_families": agreement.between_families,
            "matrices": dict(agreement.matrices),
        }
    if scales is not None:
        numbers["scales"] = [
            {"kind": one.kind, "label": one.label, "pixels": one.pixels} for one in scales.maps
        ]
    if found is not None:
        numbers["discrimination"] = {
            classes[other]: {
                one.method: {
                    "discrimination": one.discrimination,
                    "share_for_other": one.share_for_other,
                }
                for one in contrasts
            }
            for other, contrasts in found.contrasts.items()
        }
    if comparison.summary is not None:
        numbers["summary"] = dict(comparison.summary.sentences)
        numbers["verdict"] = comparison.summary.verdict
        numbers["warnings"] = [vars(doubt) for doubt in comparison.summary.doubts]
    numbers["cost"] = {key: vars(cost) for key, cost in comparison.costs().items()}
    numbers["note"] = NOTICE
    return numbers


def comparison_maps(comparison: Comparison) -> dict[str, Any]:
    """Return every raw map by name, float32 (H, W).

    Names: methods; ``consensus``, ``disagreement``; ``scale__KIND__N`` coarse to fine and
    ``scale__fused``; ``contrast__CODE__METHOD``; and ``outline`` (bool) if one was given.
    """
    maps = {name: result.maps[0] for name, result in comparison.combined.items()}
    if comparison.agreement is not None:
        maps["consensus"] = comparison.agreement.consensus.astype(np.float32)
        maps["disagreement"] = comparison.agreement.disagreement.astype(np.float32)
    if comparison.scales is not None:
        for kind in dict.fromkeys(one.kind for one in comparison.scales.maps):
            for number, scale in enumerate(comparison.scales.of_kind(kind)):
                maps[f"scale__{kind}__{number}"] = scale.values
        maps["scale__fused"] = comparison.scales.fused
    if comparison.discrimination is not None:
        for other, contrasts in comparison.discrimination.contrasts.items():
            for one in contrasts:
                maps[f"contrast__{comparison.classes[other]}__{one.method}"] = one.values
    if comparison.reading.lesion is not None:
        maps["outline"] = comparison.reading.lesion
    return maps

"""Comparing image files: a page, the raw maps and the numbers of each in a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermlens import __version__
from dermlens.data.dicom import split_frame
from dermlens.errors import DataError, UsageError
from dermlens.explainers.registry import METHODS, method
from dermlens.explainers.target import check_targets
from dermlens.files import sha256_of_file, write_json
from dermlens.folders import Kind, folder_beside
from dermlens.model.bundle import Bundle
from dermlens.model.bundle_description import model_label
from dermlens.model.image_classifier import ImageClassifier
from dermlens.progress import printable, progress, say
from dermlens.report.cases_view import CasePictures
from dermlens.report.comparer import Comparer, chosen_methods
from dermlens.report.comparison import Comparison
from dermlens.report.comparison_view import Part, parts
from dermlens.report.explanation import (
    check_numbers,
    describe,
    fitted_photographs,
    photograph_of,
)
from dermlens.report.facts import class_name, words
from dermlens.report.html import NOTICE, Page
from dermlens.report.layers import Canvas, outlined
from dermlens.report.verdict import verdict

if TYPE_CHECKING:
    from dermlens.report.evidence_files import Evidence, EvidenceMaker

MASK_NAMES = ("{}.png", "{}_segmentation.png")
_DISPLAYED = 1200
"""Longer side of the photograph in a page, in pixels."""
KIND = Kind(
    "a comparison",
    "comparison.json",
    lambda _: ("comparison.html", "attributions.npz", "comparison.json"),
)

_PARTS = {
    "reading": "Reading the image",
    "scales": "Several scales, beyond what methods had computed",
    "discrimination": "Class discrimination, beyond what methods had computed",
}


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
    scales: bool = True,
    data: Path | None = None,
    evidence: bool = False,
    batch_size: int = 16,
    seed: int = 0,
) -> list[Path]:
    """Run the four experiments on image files; write one folder for each and return the pages.

    Interrupted, it writes what it has of the image at hand, and raises the interruption again.

    ``OUT/<image_id>/`` holds ``comparison.html`` (self-contained), ``attributions.npz``
    (``comparison_maps``) and ``comparison.json``. Arguments are what ``dermlens compare`` takes.

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
    pictures = CasePictures(data)
    masks = find_masks(files, mask)
    images, outlines = fitted_photographs(bundle, files, out, KIND, masks)
    comparer = Comparer(
        bundle,
        names,
        batch_size=batch_size,
        scorer=scorer,
        images=len(files),
        scales=scales,
        pictures=pictures,
    )
    maker = _evidence_maker(bundle, scorer, len(files)) if evidence else None
    written = []
    options: dict[str, Any] = {"target": target, "against": against, "seed": seed}
    with progress("Comparing", len(files) * len(comparer.pieces)) as advance:
        for path, image in zip(files, images, strict=True):
            photograph, _ = photograph_of(path, bundle.input_size, _DISPLAYED)
            steps = comparer.steps(
                image, lesion=outlines.get(path), photograph=photograph, **options
            )
            comparison: Comparison | None = None
            source = Source(path, {"seed": str(seed)})
            try:
                for name, state in zip(comparer.pieces, steps, strict=True):
                    comparison = state
                    advance(1, METHODS[name].title if name in METHODS else name)
            except KeyboardInterrupt:
                if comparison is not None and comparison.combined:
                    page = write_comparison(bundle, out / path.stem, comparison, source)
                    say(f"Interrupted. What was ready is in {page}.")
                raise
            assert comparison is not None
            more = None if maker is None else _evidence(maker, path, image, masks.get(path))
            written.append(write_comparison(bundle, out / path.stem, comparison, source, more))
    return written


@dataclass(frozen=True)
class Source:
    """The file that was compared, and what was set."""

    path: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's name for people."""
        return printable(self.path.name)


def _evidence_maker(bundle: Bundle, scorer: str | None, images: int) -> "EvidenceMaker":
    from dermlens.model.scorers import choose_scorers
    from dermlens.report.evidence_files import EvidenceMaker

    chosen = choose_scorers(bundle, ["occlusion"], scorer, images=images)
    return EvidenceMaker(bundle, chosen.get("occlusion"))


def _evidence(
    maker: "EvidenceMaker", path: Path, image: np.ndarray, outline: Path | None
) -> "Evidence":
    from dermlens.report.evidence_files import find_lesion

    return maker.make(image, find_lesion(path, outline))


def write_comparison(
    bundle: Bundle,
    folder: Path,
    comparison: Comparison,
    source: Source,
    evidence: "Evidence | None" = None,
) -> Path:
    """Write a comparison as a folder, atomically, and return its page."""
    name = source.name
    photograph, box = photograph_of(source.path, bundle.input_size, _DISPLAYED)
    canvas = Canvas(photograph, lesion=comparison.reading.lesion, box=box)
    told = About(name, sha256_of_file(split_frame(source.path)[0]), settings=source.settings)
    with folder_beside(folder, KIND) as building:
        more = () if evidence is None else evidence.parts
        page = comparison_page(bundle, comparison, canvas, told, more)
        (building / "comparison.html").write_text(page, encoding="utf-8")
        np.savez_compressed(building / "attributions.npz", **comparison_maps(comparison))
        numbers = comparison_numbers(comparison, name)
        numbers |= {} if evidence is None else evidence.numbers
        write_json(building / "comparison.json", numbers)
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
    if comparison.cases is not None:
        numbers["cases"] = comparison.cases.to_json()
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


@dataclass(frozen=True)
class About:
    """What a report says of where it comes from.

    Attributes:
        name: Of the file; empty to leave it out.
        sha256: Of the file; empty to leave it out.
        reasons: Why the model abstains; empty if it does not.
        remarks: Doubts about the photograph.
        settings: What was chosen, by name.
    """

    name: str = ""
    sha256: str = ""
    reasons: Sequence[str] = ()
    remarks: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


def comparison_page(
    classifier: ImageClassifier,
    comparison: Comparison,
    canvas: Canvas,
    about: About,
    evidence: Sequence[Part] = (),
) -> str:
    """Return the page as HTML text; parts that are not ready are left out.

    ``evidence`` are parts of other kinds, put behind the maps.

    The page loads nothing from elsewhere and runs no script.
    """
    labels = comparison.labels
    several = words(labels).several
    page = Page(
        f"{about.name or 'One image'}: why {class_name(labels, comparison.target)}?",
        "Experiments on one image: methods side by side, how far they agree, and this "
        f"{words(labels).one} against other {several}.",
    )
    drawn = parts(canvas, comparison)
    for part in drawn[: comparison.summary is not None]:
        page.section(part.title, part.text).markup(part.content)
    said = verdict(
        classifier, comparison.reading, reasons=about.reasons, remarks=about.remarks, anyway=True
    )
    page.section("What the model says").markup(
        f'<div class="dl-picture">{outlined(canvas)}</div>{said}'
    )
    for part in (*drawn[comparison.summary is not None :], *evidence):
        page.section(part.title, part.text).markup(part.content)
    page.section("How this was made").table(_made_table(comparison, about), "Origin and settings.")
    caption = "Images sent through the network, gradients taken, and time."
    copied = [
        method(key).title
        for key, result in comparison.combined.items()
        if result.facts().get("scorer") == "int8"
    ]
    if copied:
        caption += f" The network's int8 copy was used for {', '.join(copied)}."
    return page.table(costs_table(comparison), caption).html()


def _made_table(comparison: Comparison, about: About) -> pd.DataFrame:
    made = {
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "program": f"dermlens {__version__}",
        "model": model_label(comparison.model) if comparison.model else "",
        "model fingerprint": comparison.model.get("fingerprint", ""),
        "file": about.name,
        "SHA-256 of the file": about.sha256,
        "explained": class_name(comparison.labels, comparison.target),
        "methods": ", ".join(method(name).title for name in comparison.combined),
        "outline": "none" if comparison.reading.lesion is None else "given",
        **about.settings,
    }
    return pd.DataFrame([row for row in made.items() if row[1]], columns=["what", "value"])


def costs_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row per part and method, and the total."""
    rows = [
        (METHODS[name].title if name in METHODS else _PARTS[name], c.forward, c.backward, c.seconds)
        for name, c in comparison.costs().items()
    ]
    totals = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
    columns = ["part", "forward", "backward", "seconds"]
    return pd.DataFrame([*rows, ("total", *totals)], columns=columns)

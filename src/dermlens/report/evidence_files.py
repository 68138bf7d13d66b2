"""What would change the answer, and the measurable criteria, of image files.

::

    OUT/<image_id>/changes.html         before/after pairs, self-contained
    OUT/<image_id>/changes.json         probabilities, areas, passes
    OUT/<image_id>/changed_KIND.png     each changed picture
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.images import fit_image, load_mask, opened_rgb, read_bytes
from dermlens.errors import DataError
from dermlens.explainers.perturbation import Scorer
from dermlens.files import write_json
from dermlens.folders import Kind, folder_beside
from dermlens.lesion.counterfactuals import ChangeFinder, Changes
from dermlens.lesion.criteria import SIDE, Measured, measure_criteria
from dermlens.lesion.criteria_reference import Reference, criteria_rows, read_reference
from dermlens.lesion.outline import FoundOutline, examine_outline, fit_outline
from dermlens.model.bundle import Bundle
from dermlens.model.image_classifier import ImageClassifier
from dermlens.progress import printable, progress, say
from dermlens.report.comparison_files import find_masks
from dermlens.report.comparison_view import Part
from dermlens.report.evidence_view import change_lines, changes_part, criteria_part
from dermlens.report.explanation import fitted_photographs
from dermlens.report.facts import percent
from dermlens.report.html import NOTICE, Page, png_bytes

KIND = Kind(
    "a set of changed pictures",
    "changes.json",
    lambda _: ("changes.html", "changes.json", "changed_*.png"),
)
_GIVEN = "The outline was given."


@dataclass(frozen=True)
class Lesion:
    """A lesion's outline in a photograph.

    Attributes:
        picture: uint8 RGB (h, w, 3), the whole photograph at ``criteria.SIDE``.
        mask: bool (h, w); None where it was not given and cannot be found surely.
        about: Where it comes from, or why there is none; a sentence.
    """

    picture: np.ndarray
    mask: np.ndarray | None
    about: str


def find_lesion(path: Path, outline: Path | None = None) -> Lesion:
    """Read a photograph and the outline of its lesion, or find one.

    Args:
        path: Image file.
        outline: File of an outline on the whole photograph, white inside; None to find one.

    Raises:
        DataError: If a file cannot be read or an outline is empty.
    """
    drawn = None if outline is None else load_mask(outline)
    if drawn is not None and not drawn.any():
        raise DataError(f"The outline {outline} is empty. Draw the lesion white on black.")
    with opened_rgb(read_bytes(path), str(path)) as picture:
        return lesion_in(picture, drawn)


def lesion_in(picture: Any, outline: np.ndarray | None = None) -> Lesion:
    """Return the lesion of a photograph that is open already.

    Args:
        picture: RGB PIL image.
        outline: bool (h, w) on the whole photograph, at any size; None to find one.
    """
    scale = SIDE / min(picture.size)
    size = (max(1, round(picture.height * scale)), max(1, round(picture.width * scale)))
    pixels = fit_image(picture, size)
    if outline is None:
        return _found(pixels, examine_outline(picture), size)
    fitted = fit_outline(outline, size)
    if not fitted.any():
        return Lesion(pixels, None, "The outline that was given encloses nothing. Draw it again.")
    return Lesion(pixels, fitted, _GIVEN)


def _found(pixels: np.ndarray, found: FoundOutline | None, size: tuple[int, int]) -> Lesion:
    if found is None:
        return Lesion(pixels, None, "No lesion was found in the picture. Give an outline.")
    sure = percent(found.expected_dice)
    if not found.sure:
        why = (
            f"The outline that was found is not sure enough to be measured (expected overlap {sure}"
            "). Give an outline."
        )
        return Lesion(pixels, None, why)
    about = "The outline was found automatically; its expected overlap (Dice) with an expert's is "
    return Lesion(pixels, fit_outline(found.mask, size), f"{about}{sure}.")


def changes_files(
    bundle: Bundle,
    files: Sequence[Path],
    out: Path,
    *,
    reference: Reference,
    mask: Path | None = None,
    scorer: str | None = None,
) -> list[Path]:
    """Write what would change the answer for image files; return the pages.

    Args:
        bundle: Model.
        files: Images.
        out: Folder; each image gets one of its own in it.
        reference: Holds the average lesion colors by class.
        mask: Outline, or folder of outlines; else found where that is sure.
        scorer: ``"float32"``, ``"int8"`` or None for what agrees.

    Raises:
        UsageError: If one mask is given for several images, or a scorer is unknown.
        DataError: If a file cannot be read, or a folder holds something else.
    """
    masks = find_masks(files, mask)
    images, _ = fitted_photographs(bundle, files, out, KIND, masks)
    finder = change_finder(bundle, reference, scorer, images=len(files))
    pages = []
    with progress("Changing", len(files)) as advance:
        for path, image in zip(files, images, strict=True):
            lesion = find_lesion(path, masks.get(path))
            changes = finder.changes(image, seen_outline(lesion, bundle.input_size))
            pages.append(_write(bundle, out / path.stem, path, changes, lesion.about))
            advance(1)
            said = [f"{printable(path.name)}: {lesion.about}"]
            for line in said + change_lines(bundle.labels, changes):
                say(line)
    return pages


def change_finder(
    classifier: ImageClassifier, reference: Reference, scorer: str | None = None, images: int = 1
) -> ChangeFinder:
    """Return what finds changes, with the scorer that agrees with the network."""
    from dermlens.model.scorers import choose_scorers

    chosen = choose_scorers(classifier, ["occlusion"], scorer, images=images)
    colors = reference.lesion_colors()
    return ChangeFinder(classifier, scorer=chosen.get("occlusion"), colors=colors)


def _write(bundle: Bundle, folder: Path, path: Path, changes: Changes, about: str) -> Path:
    name = printable(path.name)
    part = changes_part(bundle.labels, changes)
    page = Page(f"{name}: what would change the answer?", NOTICE)
    page.section(part.title, f"{part.text} {about}").markup(part.content)
    with folder_beside(folder, KIND) as building:
        (building / "changes.html").write_text(page.html(), encoding="utf-8")
        numbers = changes_numbers(bundle, changes)
        write_json(building / "changes.json", {"image": name, "outline": about, **numbers})
        for kind, change in changes.found.items():
            if change.image is not None:
                pixels = np.clip(np.rint(change.image), 0, 255).astype(np.uint8)
                (building / f"changed_{kind}.png").write_bytes(png_bytes(pixels))
    return folder / "changes.html"


def changes_numbers(classifier: ImageClassifier, changes: Changes) -> dict[str, Any]:
    """Return everything but the pictures, for JSON."""
    classes = classifier.classes

    def named(values: np.ndarray | None) -> dict[str, float] | None:
        return None if values is None else dict(zip(classes, map(float, values), strict=True))

    return {
        "model": classifier.identity,
        "answer": classes[changes.answer],
        "runner_up": classes[changes.runner_up],
        "probabilities": named(changes.probabilities),
        "everything_erased": named(changes.plain),
        "passes": changes.passes,
        "scorer": changes.scorer,
        "changes": {
            kind: {
                "found": one.probabilities is not None,
                "changed": one.changed,
                "probabilities": named(one.probabilities),
                "area": one.area,
                "inside_outline": changes.inside(kind),
                "passes": one.passes,
                "strength": one.strength,
                "irreducible": one.irreducible,
                "note": one.note,
            }
            for kind, one in changes.found.items()
        },
        "left_out": dict(changes.missing),
        "note": "Changes of the picture, not of the skin.",
    }


@dataclass(frozen=True)
class Evidence:
    """Parts of a page beside maps, and their numbers for JSON."""

    parts: tuple[Part, ...]
    numbers: dict[str, Any]


class EvidenceMaker:
    """Makes changes and criteria of one image after the other.

    Args:
        classifier: Model.
        scorer: Evaluates changed pictures in searches in place of the model.
        reference: Table to compare criteria with; default the one that comes with the package.
    """

    def __init__(
        self,
        classifier: ImageClassifier,
        scorer: Scorer | None = None,
        reference: Reference | None = None,
    ) -> None:
        self.classifier, self.reference = classifier, reference or read_reference()
        colors = self.reference.lesion_colors()
        self.finder = ChangeFinder(classifier, scorer=scorer, colors=colors)
        self._fingerprint = classifier.identity["fingerprint"]

    def make(self, image: np.ndarray, lesion: Lesion) -> Evidence:
        """Return both of an image.

        Args:
            image: What the network sees, (H, W, 3).
            lesion: In the whole photograph; from ``find_lesion`` or ``lesion_in``.
        """
        changes, numbers = self.changes(image, lesion)
        criteria, values = self.criteria(lesion)
        more = {"criteria": values} if values else {}
        return Evidence((changes, criteria), {"changes": numbers, **more})

    def changes(self, image: np.ndarray, lesion: Lesion) -> tuple[Part, dict[str, Any]]:
        """Return what would change the answer, and its numbers; arguments as for ``make``."""
        seen = seen_outline(lesion, self.classifier.input_size)
        found = self.finder.changes(image, seen)
        return changes_part(self.classifier.labels, found), changes_numbers(self.classifier, found)

    def criteria(self, lesion: Lesion) -> tuple[Part, dict[str, float]]:
        """Return the criteria and their values; none where the outline is not sure."""
        if lesion.mask is None:
            return Part("Measurable criteria", f"Left out. {lesion.about}", ""), {}
        measured = measure_criteria(lesion.picture, lesion.mask)
        rows = criteria_rows(measured, self.reference, self._fingerprint)
        source, about = self.reference.source, lesion.about
        labels = self.classifier.labels
        part = criteria_part(labels, measured, rows, source=source, outline=about)
        return part, {row["criterion"]: row["value"] for row in rows}


def seen_outline(lesion: Lesion, size: tuple[int, int]) -> np.ndarray | None:
    """Return the outline as the network sees it, bool of ``size``; None where there is none."""
    if lesion.mask is None:
        return None
    fitted = fit_outline(lesion.mask, size)
    return fitted if fitted.any() else None


@dataclass(frozen=True)
class CriteriaOfFile:
    """Criteria of one file; ``measured`` is None where there is no sure outline."""

    path: Path
    lesion: Lesion
    measured: Measured | None
    rows: list[dict[str, Any]]


def criteria_of_files(
    fingerprint: str, files: Sequence[Path], reference: Reference, mask: Path | None = None
) -> list[CriteriaOfFile]:
    """Measure the criteria of image files.

    Args:
        fingerprint: Of the model whose following is told.
        files: Images.
        reference: Percentiles, and what the network does.
        mask: Outline, or folder of outlines; else found where that is sure.

    Raises:
        UsageError: If one mask is given for several images.
        DataError: If a file cannot be read.
    """
    masks, found = find_masks(files, mask), []
    for path in files:
        lesion = find_lesion(path, masks.get(path))
        measured = None if lesion.mask is None else measure_criteria(lesion.picture, lesion.mask)
        rows = [] if measured is None else criteria_rows(measured, reference, fingerprint)
        found.append(CriteriaOfFile(path, lesion, measured, rows))
    return found


def criteria_table(found: Sequence[CriteriaOfFile]) -> pd.DataFrame:
    """Return one row per image and criterion; an image without a sure outline has one row."""
    rows: list[Mapping[str, Any]] = []
    for one in found:
        about = {"image": printable(one.path.name), "outline": one.lesion.about}
        if not one.rows:
            rows.append(about)
        for row in one.rows:
            told = {
                f"{output}_{name}": values[name]
                for output, values in row["follows"].items()
                for name in ("correlation", "low", "high", "p", "step", "step_p", "tcav", "tcav_p")
            }
            kept = {k: row[k] for k in ("criterion", "value", "benign", "watched")}
            rows.append({**about, **kept, **told})
    columns = {"benign": "percentile_benign", "watched": "percentile_melanoma"}
    return pd.DataFrame(rows).rename(columns=columns)

"""Predictions on data sets, labelled folders and single files."""

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data import dicom
from dermlens.data.cache import cached_images
from dermlens.data.images import fit_image, inspect_image, load_image, opened_rgb, read_bytes
from dermlens.data.label_table import read_labels
from dermlens.data.manifest import read_manifest, select_split
from dermlens.data.sources import other_types, photographs_in
from dermlens.errors import DataError, UsageError
from dermlens.model.calibration import Calibration
from dermlens.model.conformal import check_level
from dermlens.model.image_classifier import ImageClassifier
from dermlens.model.patient_facts import FACTS, PatientFacts
from dermlens.model.prediction import Predictor, check_views
from dermlens.model.prediction_table import predictions_table
from dermlens.model.training_overlap import knows_looks, overlap_of
from dermlens.progress import Advance, printable, progress, say
from dermlens.report.facts import NO_SETS, answer_text, class_name, of_skin, percent
from dermlens.report.html import NOTICE
from dermlens.serve.usability import usability

_CHUNK = 256
UNLIKE = "Unlike the training images."


def predict_split(
    bundle: ImageClassifier,
    data: Path,
    split: str,
    *,
    leave_out: Collection[str] = (),
    facts: PatientFacts | None = None,
    tta_views: int = 1,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Predict one split of a prepared data set; see ``predictions_table`` for the columns.

    Images of ``leave_out``, as ``training_overlap`` finds them, are not predicted. With ``facts``,
    what the data set tells of the patients counts too.
    """
    table = read_manifest(data)
    chosen = select_split(table, split)
    wanted = table.image_id.isin(chosen.image_id) & ~table.image_id.isin(set(leave_out))
    rows = np.flatnonzero(wanted)
    images = cached_images(data, table, bundle.input_size)
    with progress("Predicting", len(rows)) as advance:
        found = bundle.logits_and_ood_scores(
            images, rows, tta_views=tta_views, batch_size=batch_size, advance=advance
        )
    return labeled_predictions(bundle, table.iloc[rows], *found, facts=facts)


def labeled_predictions(
    bundle: ImageClassifier,
    rows: pd.DataFrame,
    logits: np.ndarray,
    scores: np.ndarray | None,
    level: float | None = None,
    facts: PatientFacts | None = None,
) -> pd.DataFrame:
    """Put what a model says of images (N, C), and its distances (N,), beside what is known.

    With ``facts``, what is known of the patients counts too; logits are then those of the sum.
    """
    threshold = np.inf if bundle.ood_detector is None else bundle.ood_detector.threshold
    malignant, calibration = bundle.labels.malignant, calibration_of(bundle, facts)
    if facts is not None:
        if strange := facts.strange(rows):
            say(f"Not in the training images, so of no effect: {', '.join(strange)}.")
        logits = facts.fused(logits, rows)
    table = predictions_table(rows, logits, calibration, scores, threshold, level, malignant)
    return table.assign(calibrated=bundle.calibrated, model=bundle.label)


def calibration_of(bundle: ImageClassifier, facts: PatientFacts | None) -> Calibration:
    """Return what answers are read by: fitted to the photograph alone, or with facts."""
    return bundle.calibration if facts is None else facts.calibration


def predict_external(
    bundle: ImageClassifier,
    images: Path,
    labels: Path,
    *,
    facts: PatientFacts | None = None,
    allow_training_images: bool = False,
    tta_views: int = 1,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Predict a labelled folder; rows without an image are reported and left out.

    So are images that the model was trained on, unless they are allowed.
    """
    known = read_labels(labels, bundle.labels)
    files = _files_by_id(find_images([images]), set(known.image_id))
    here = known[known.image_id.isin(list(files))].reset_index(drop=True)
    if here.empty:
        raise DataError(f"None of the {len(known)} labelled images of {labels} is in {images}.")
    if len(here) < len(known):
        absent = sorted(set(known.image_id) - set(files))
        say(f"{len(absent)} labelled rows have no image and are left out, first {absent[0]}.")
    looked_at = here.image_id if knows_looks(bundle) else ()
    hashes = {i: inspect_image(files[i])["perceptual_hash"] for i in looked_at}
    overlap = overlap_of(bundle, here, here, hashes)
    leave_out = overlap.to_leave_out(allow_training_images)
    here = here[~here.image_id.isin(leave_out)].reset_index(drop=True)
    chosen = [files[i] for i in here.image_id]
    logits, scores, _, _ = _predicted(bundle, chosen, tta_views, batch_size, damaged=False)
    return labeled_predictions(bundle, here, logits, scores, facts=facts)


def _files_by_id(paths: Sequence[Path], wanted: set[str]) -> dict[str, Path]:
    """Return the file of each wanted image; copies of one file in several folders are one."""
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem not in wanted:
            continue
        other = files.setdefault(path.stem, path)
        if other != path and read_bytes(other) != read_bytes(path):
            raise DataError(
                f"{other} and {path} differ, and either could be the image {path.stem}. Remove "
                "or rename the wrong one."
            )
    return files


def _predicted(
    bundle: ImageClassifier,
    files: Sequence[Path],
    tta_views: int,
    batch_size: int,
    *,
    damaged: bool,
    advance: Advance | None = None,
    judged: bool = False,
) -> tuple[np.ndarray, np.ndarray | None, list[str], list[tuple[str, str]]]:
    """Return logits, out-of-distribution scores, and sentences per file.

    The first say what is wrong with damaged files; the others, if photographs are to be judged, why
    nothing can be said about one, and what is to be doubted.
    """
    logits, errors = np.zeros((len(files), len(bundle.classes))), [""] * len(files)
    found_out = [("", "")] * len(files)
    scores = None if bundle.ood_detector is None else np.zeros(len(files))
    shown = progress("Predicting", len(files)) if advance is None else nullcontext(advance)
    with shown as advance:
        for start in range(0, len(files), _CHUNK):
            images: dict[int, np.ndarray] = {}
            part = range(start, min(start + _CHUNK, len(files)))
            for k in part:
                try:
                    images[k], *told = _read(files[k], bundle, judged)
                    found_out[k] = (told[0], told[1])
                except DataError as error:
                    if not damaged:
                        raise
                    errors[k] = printable(str(error))
            if images:
                found, distances = bundle.logits_and_ood_scores(
                    np.stack(list(images.values())), tta_views=tta_views, batch_size=batch_size
                )
                logits[list(images)] = found
                if scores is not None:
                    scores[list(images)] = distances
            advance(len(part))
    return logits, scores, errors, found_out


def _read(path: Path, bundle: ImageClassifier, judged: bool) -> tuple[np.ndarray, str, str]:
    """Return what the network sees of a file, why nothing can be said about it, and doubts."""
    if not judged:
        return load_image(path, bundle.input_size), "", ""
    with opened_rgb(read_bytes(path), str(path)) as picture:
        image = fit_image(picture, bundle.input_size)
        found = usability(picture, image, bundle.input_size)
    return image, " ".join(found.problems), " ".join(found.remarks)


def doubts_of(bundle: ImageClassifier, files: Sequence[Path]) -> list[str]:
    """Return a line for each photograph of which little or nothing can be said, and why."""
    lines = []
    for path in files if of_skin(bundle.labels) else ():
        # A damaged file is told of by whoever reads it next.
        with suppress(DataError):
            _, problems, remarks = _read(path, bundle, judged=True)
            if problems or remarks:
                lines.append(f"{printable(str(path))}: {problems or remarks}")
    return lines


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the image files among files and folders, in order.

    Folders are searched through; hidden files and folders in them and outlines are left out.

    Raises:
        DataError: If a path does not exist or no image is found.
    """
    files = list(_image_files(paths))
    if not files:
        raise DataError(f"No image found in {', '.join(str(p) for p in paths)}.")
    return files


def _image_files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            photographs, outlines = photographs_in(path)
            if outlines:
                say(
                    f"{len(outlines)} outlines of lesions in {printable(str(path))} are left out, "
                    f"first {printable(outlines[0].name)}."
                )
            if other := other_types(path):
                say(f"Left out of {printable(str(path))} by type: {other}.")
            for photograph in photographs:
                yield from dicom.frames_of(photograph)
        elif path.is_file():
            yield from dicom.frames_of(path)
        elif path.exists():
            raise DataError(f"{path} is neither a file nor a folder. Give images.")
        else:
            raise DataError(f"{path} does not exist. Check the path.")


def check_prediction(
    bundle: ImageClassifier, tta_views: int, batch_size: int, level: float | None
) -> None:
    """Raise the errors of settings that ``predict_files`` would raise, before any work."""
    Predictor(bundle.model, batch_size=batch_size)
    check_views(tta_views)
    if level is not None:
        check_level(level)
        if bundle.calibration.prediction_sets is None:
            raise UsageError(f"A level cannot be chosen: {NO_SETS}")


def predict_files(
    bundle: ImageClassifier,
    files: Sequence[Path],
    *,
    tta_views: int = 1,
    batch_size: int = 32,
    level: float | None = None,
    advance: Advance | None = None,
    facts: PatientFacts | None = None,
    patients: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Predict files; a damaged file gets a row that says so, and the rest goes on.

    ``advance`` hears how many files are done, in place of the progress that is shown. With
    ``facts``, those of ``patients`` (a row per file, columns age, sex, localization) count too.

    Returns:
        One row per file: path, image_id, predictions, ``model``, ``flag_<point>`` for each
        operating point, ``abstain``, ``reasons`` (why) and ``remarks`` (doubts), as the page says
        them, ``error`` (empty where all went well).

    Raises:
        UsageError: If the level is out of range, or given for a bundle without prediction sets.
    """
    check_prediction(bundle, tta_views, batch_size, level)
    judged = of_skin(bundle.labels)
    logits, scores, errors, told = _predicted(
        bundle, files, tta_views, batch_size, damaged=True, judged=judged, advance=advance
    )
    names = pd.DataFrame({"path": [printable(str(path)) for path in files]})
    rows = pd.DataFrame({"image_id": [printable(path.stem) for path in files]})
    if facts is not None and patients is not None:
        rows[list(FACTS)] = patients.reindex(columns=FACTS).to_numpy(object)
    table = labeled_predictions(bundle, rows, logits, scores, level, facts)
    unknown = ["lesion_id", "dx", "dx_type", *(FACTS if facts is None else ())]
    table = table.drop(columns=unknown)
    probabilities = table[[f"probability_{c}" for c in bundle.classes]].to_numpy()
    for name, flagged in calibration_of(bundle, facts).flags(probabilities).items():
        table[f"flag_{name}"] = flagged
    reasons, remarks = ([one[side] for one in told] for side in (0, 1))
    if bundle.ood_detector is not None:
        unlike = table.abstain.to_numpy(bool)
        reasons = [
            f"{one} {UNLIKE}".strip() if up else one
            for one, up in zip(reasons, unlike, strict=True)
        ]
    if judged or bundle.ood_detector is not None:
        table["abstain"], table["reasons"] = np.array(reasons) != "", reasons
        table["remarks"] = remarks
    bad = np.array(errors) != ""
    if bad.any():
        filled = [c for c in table.columns if c != "image_id"]
        table[filled] = table[filled].astype(object)
        table.loc[bad, filled] = None
    return pd.concat([names, table, pd.DataFrame({"error": errors})], axis=1)


def describe_predictions(
    table: pd.DataFrame,
    bundle: ImageClassifier,
    *,
    balanced: bool = False,
    anyway: bool = False,
    limit: int = 20,
) -> list[str]:
    """Return one line per file, and a reminder of what this is.

    Where the model abstains, no class is named unless it is to be ``anyway``.
    """
    lines = []
    for row in table.head(limit).to_dict("records"):
        if row["error"]:
            lines.append(row["error"])
            continue
        lines.append(f"{row['path']}: {_answer(row, bundle, balanced, anyway=anyway)}")
    if len(table) > limit:
        lines.append(f"… and {len(table) - limit} more in the file.")
    if bundle.calibration.prediction_sets is None:
        lines.append(f"{NO_SETS[0].upper()}{NO_SETS[1:]}")
    if bundle.synthetic:
        lines.append(
            "This bundle was trained on drawn images only; real images mean nothing to it."
        )
    lines.append(NOTICE)
    return lines


def _answer(
    row: Mapping[Hashable, Any], bundle: ImageClassifier, balanced: bool, *, anyway: bool
) -> str:
    abstains = f"the model abstains. {row['reasons']}" if row.get("abstain") else ""
    if abstains and not anyway:
        return abstains
    text = answer_text(
        bundle.labels,
        {code: row[f"probability_{code}"] for code in bundle.classes},
        _codes(row["prediction_set"], bundle.classes),
        {name: bool(row[f"flag_{name}"]) for name in bundle.calibration.operating_points},
        calibrated=bundle.calibrated,
    )
    if balanced:
        code = str(row["balanced_rule"])
        share = percent(row[f"probability_{code}"])
        text = f"Balanced rule: {class_name(bundle.labels, code)}, {share}. {text}"
    if abstains:
        return f"{abstains} It would have said, not to be relied on: {text}"
    return f"{text} {row.get('remarks') or ''}".strip()


def _codes(joined: Any, classes: Sequence[str]) -> list[str] | None:
    """Return the codes that stand in a text with blanks between, though codes may hold some."""
    if not isinstance(joined, str):
        return None
    found = []
    while joined:
        starting = [code for code in classes if f"{joined} ".startswith(f"{code} ")]
        found.append(max(starting, key=len))
        joined = joined[len(found[-1]) + 1 :]
    return found

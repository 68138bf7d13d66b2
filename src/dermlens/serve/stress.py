"""The stress test: how a classifier's figures change when its photographs get worse.

OUT/stress.csv   a row for each change and figure: value, difference, its 95 % interval
OUT/stress.json  the same with what the changes are, and of which model and images
OUT/stress.png   balanced accuracy after each change
OUT/pieces/      answers after each change, by which a run goes on after a kill
"""

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.images import opened_rgb, read_bytes
from dermlens.data.manifest import read_manifest, select_split
from dermlens.errors import DataError
from dermlens.files import write_csv, write_json
from dermlens.lesion.worse_photographs import CHANGES, Change, changed
from dermlens.model.evaluation import RESAMPLES, compare_predictions
from dermlens.model.image_classifier import ImageClassifier
from dermlens.progress import Advance, progress, say
from dermlens.quality.benchmark_tables import Store
from dermlens.report.charts import stress_chart
from dermlens.report.evaluation_report import write_figure
from dermlens.report.facts import of_skin
from dermlens.serve.prediction import labeled_predictions

UNCHANGED = "unchanged"
_CHUNK = 128


@dataclass(frozen=True)
class Stress:
    """How figures of a classifier change with its photographs.

    Attributes:
        table: As ``model.evaluation.compare_predictions`` returns it, ``name`` being the change.
        facts: Of which model, which images and which changes; the content of ``stress.json``.
    """

    table: pd.DataFrame
    facts: dict[str, Any]


def stress_test(
    classifier: ImageClassifier,
    data: Path,
    out: Path,
    split: str = "test",
    *,
    leave_out: Collection[str] = (),
    batch_size: int = 32,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Stress:
    """Change photographs, predict them, and tell what became of each figure.

    Finished changes are kept in ``out``, so that a run that was killed goes on.

    Args:
        classifier: What is asked.
        data: Prepared and split data set.
        out: Folder to write.
        split: ``train``, ``validation``, ``test`` or ``all``.
        leave_out: Ids of images that are not predicted, as ``training_overlap`` finds them.
        batch_size: Images per pass.
        resamples: Bootstrap resamples over lesions.
        seed: Of the bootstrap.

    Raises:
        DataError: If the data set is not split, no image is left, or a diagnosis is unknown.
        UsageError: If ``out`` holds results of another model, data set or split.
    """
    data, out = Path(data), Path(out)
    table = select_split(read_manifest(data), split)
    table = table[~table.image_id.isin(set(leave_out))].reset_index(drop=True)
    if table.empty:
        raise DataError(f"No image of the split {split!r} is left to predict.")
    if unknown := sorted(set(table.dx) - set(classifier.classes)):
        raise DataError(f"The diagnosis {unknown[0]!r} is none of {', '.join(classifier.classes)}.")
    changes = [one for one in CHANGES if of_skin(classifier.labels) or not one.of_skin]
    plan = {"model": classifier.identity, "split": split, "images": list(table.image_id)}
    store = Store(out / "pieces", plan, "a stress test that differs")
    answers = _answers(classifier, data, table, [None, *changes], store, batch_size)
    predictions = {
        name: labeled_predictions(classifier, table, *found) for name, found in answers.items()
    }
    compared = compare_predictions(
        predictions, classifier.calibration, reference=UNCHANGED, resamples=resamples, seed=seed
    )
    facts = {
        "model": classifier.identity,
        "split": split,
        "n_images": len(table),
        "n_lesions": int(predictions[UNCHANGED].lesion_id.nunique()),
        "changes": [{"name": c.name, "title": c.title, "mild": c.mild} for c in changes],
        "figures": compared.to_dict("records"),
    }
    write_csv(out / "stress.csv", compared)
    write_json(out / "stress.json", facts)
    write_figure(out / "stress.png", stress_chart(facts))
    return Stress(compared, facts)


def _answers(
    classifier: ImageClassifier,
    data: Path,
    table: pd.DataFrame,
    changes: Sequence[Change | None],
    store: Store,
    batch_size: int,
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Return logits and out-of-distribution scores after each change by its name."""
    names = [UNCHANGED if change is None else change.name for change in changes]
    missing = [one for one in names if not store.has("answers", one)]
    if len(missing) < len(names):
        say(f"Resuming: {len(names) - len(missing)} of {len(names)} changes are there.")
    files = [data / path for path in table.path]
    with progress("Predicting changed photographs", len(missing) * len(files)) as advance:
        for name, change in zip(names, changes, strict=True):
            if name in missing:
                found = _predict(classifier, files, change, batch_size, advance)
                store.write("answers", name, found)
    answers = {}
    for name in names:
        arrays = store.read_arrays("answers", name)
        answers[name] = (arrays["logits"], arrays.get("ood_scores"))
    return answers


def _predict(
    classifier: ImageClassifier,
    files: Sequence[Path],
    change: Change | None,
    batch_size: int,
    advance: Advance,
) -> dict[str, np.ndarray]:
    def read(path: Path) -> np.ndarray:
        with opened_rgb(read_bytes(path), str(path)) as photograph:
            return changed(photograph, change, classifier.input_size)

    logits, scores = [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), _CHUNK):
            images = np.stack(list(pool.map(read, files[start : start + _CHUNK])))
            found, distances = classifier.logits_and_ood_scores(images, batch_size=batch_size)
            logits.append(found)
            scores.append(distances)
            advance(len(images))
    arrays = {"logits": np.concatenate(logits)}
    known = [one for one in scores if one is not None]
    return arrays | ({"ood_scores": np.concatenate(known)} if known else {})


def stress_lines(facts: dict[str, Any]) -> list[str]:
    """Return what came out in a few lines for people."""
    lines = []
    for kind, mild in (("everyday", True), ("strong", False)):
        named = {one["name"]: one["title"] for one in facts["changes"] if one["mild"] == mild}
        rows = [
            row
            for row in facts["figures"]
            if row["name"] in named and row["figure"] == "balanced_accuracy"
        ]
        if rows:
            worst = min(rows, key=lambda row: row["difference"])
            lines.append(
                f"The worst of {len(rows)} {kind} changes: {named[worst['name']]}; balanced "
                f"accuracy {worst['value']:.3f}, {worst['difference']:+.3f} "
                f"({worst['low']:+.3f} to {worst['high']:+.3f})."
            )
    return lines

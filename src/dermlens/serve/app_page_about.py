"""The About tab: model card facts of the bundle, as Markdown."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from dermlens import __version__
from dermlens.explainers.registry import METHODS
from dermlens.model.bundle import Bundle
from dermlens.report.comparison_view import glossary
from dermlens.report.facts import NOT_CALIBRATED, of_skin, percent, words
from dermlens.report.html import CLINICAL, NOTICE, markdown_table, templates
from dermlens.serve.app_actions import MAX_BYTES
from dermlens.serve.app_batch import MAX_FILES

_FIGURES = {
    "validation_accuracy": "Accuracy, most probable {one}",
    "validation_balanced_accuracy": "Balanced accuracy, most probable {one}",
    "validation_macro_auc": "AUC, mean over {several}",
}


def about(bundle: Bundle) -> str:
    """Return the facts of the bundle as Markdown."""
    detector = bundle.ood_detector
    about = templates(trim_blocks=True, lstrip_blocks=True).get_template("about.md.j2")
    return about.render(
        network="Keras model" if bundle.adopted else bundle.architecture.backbone,
        count=len(bundle.labels),
        called=words(bundle.labels),
        skin=of_skin(bundle.labels),
        calibrated=bundle.calibrated,
        model=_table(("Fact", "Value"), _model(bundle)),
        points=bundle.calibration.operating_points.values(),
        share=percent,
        detector=detector,
        false_rejects="" if detector is None else percent(detector.false_rejects),
        validation=_validation(bundle),
        notice=f"{NOTICE} {CLINICAL}" if of_skin(bundle.labels) else NOTICE,
        glossary={**glossary(), **{one.title: one.question for one in METHODS.values()}},
        megabytes=MAX_BYTES // 2**20,
        files=MAX_FILES,
    )


def _sets(bundle: Bundle) -> str:
    sets = bundle.calibration.prediction_sets
    if sets is None:
        return "not known: this model carries no prediction sets"
    counts = ", ".join(f"{code} {len(known)}" for code, known in sets.true_probabilities.items())
    always = ", ".join(sets.always_inside())
    return (
        f"class-conditional conformal prediction at {100 * sets.level:g} %, fitted on validation "
        f"images ({counts}){f'; too few for {always}, which is in every set' if always else ''}; "
        "how well it holds on test images stands in the model card"
    )


def _model(bundle: Bundle) -> list[tuple[str, ...]]:
    facts, data = bundle.facts, bundle.facts["data"]
    height, width = bundle.input_size
    adopted = facts.get("adopted", {})
    answer = f"the most probable {words(bundle.labels).one}"
    answer += ", what cannot be excluded" if bundle.calibration.prediction_sets else ""
    answer += ", and flags" if bundle.calibration.operating_points else ""
    temperature = f"temperature {bundle.calibration.temperature:.3g}"
    rows = [
        ("Network", f"{bundle.architecture.backbone}, {width} x {height} pixels"),
        ("Adopted from", str(adopted.get("file", "a Keras model")) if bundle.adopted else ""),
        ("Logits", str(adopted.get("note", ""))),
        ("Classes", ", ".join(bundle.classes[:50]) + (" …" if len(bundle.classes) > 50 else "")),
        (
            "Calibrated on" if bundle.adopted and bundle.calibrated else "Trained on",
            _data_line(bundle),
        ),
        ("Calibration", temperature if bundle.calibrated else f"none: {NOT_CALIBRATED}"),
        ("Answer", answer),
        ("What cannot be excluded", _sets(bundle)),
        ("License of the weights", str(facts.get("license", "MIT"))),
        ("License of the data", _data_license(data)),
        ("Version", f"dermlens {facts.get('dermlens_version', __version__)}"),
        ("Data fingerprint", f"`{data['fingerprint'][:12]}`" if "fingerprint" in data else ""),
    ]
    return [row for row in rows if row[1]]


def _data_license(data: dict[str, Any]) -> str:
    if data.get("license"):
        return str(data["license"])
    if data.get("source") == "ham10000":
        return "CC BY-NC 4.0 (HAM10000, Tschandl et al., Scientific Data 2018)"
    return "drawn by this program, MIT" if data.get("synthetic") else "unknown"


def _data_line(bundle: Bundle) -> str:
    data: dict[str, Any] = bundle.facts["data"]
    drawn = ", drawn by a program; no patient was involved" if bundle.synthetic else ""
    counted = ""
    if "n_images" in data and "n_lesions" in data:
        counted = f", {data['n_images']:,} images of {data['n_lesions']:,} lesions"
    return f"{data.get('name', 'unknown data')}{counted}{drawn}"


def _validation(bundle: Bundle) -> str:
    """Return what training recorded about validation at the kept epoch; nothing if it did not."""
    history, best = bundle.history, bundle.facts.get("training", {}).get("best_epoch")
    if not {"phase", "epoch", *_FIGURES} <= set(history.columns):
        return ""
    kept = history[(history.phase == "finetuning") & (history.epoch == best)]
    if kept.empty:
        return ""
    called = vars(words(bundle.labels))
    rows = [(text.format(**called), f"{kept[key].iloc[-1]:.3f}") for key, text in _FIGURES.items()]
    return _table(("Figure", "Value"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(pd.DataFrame(rows, columns=list(head)))

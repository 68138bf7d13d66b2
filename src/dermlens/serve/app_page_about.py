"""The About tab: model card facts of the bundle, as Markdown."""

from collections.abc import Sequence
from typing import Any

from dermlens import __version__
from dermlens.model.bundle import Bundle
from dermlens.serve.app_actions import NOTE
from dermlens.serve.app_batch import MAX_FILES
from dermlens.serve.app_page import percent
from dermlens.serve.app_reading import MAX_BYTES

_USE = """### Intended use
Research and teaching: to look at what a lesion classifier responds to, and to test methods that
claim to explain it. Not for diagnosis, triage or any decision about a person. The model was not
tested on patients, and nobody has approved it for clinical use."""

_FIGURES = {
    "validation_accuracy": "Accuracy, most probable diagnosis",
    "validation_balanced_accuracy": "Balanced accuracy, most probable diagnosis",
    "validation_macro_auc": "AUC, mean over diagnoses",
}

_LIMITS = """### Limits
* Seven diagnoses only. A rash, a wart or a healthy arm still gets one of them, unless the model
  abstains; and it cannot notice everything it has never seen.
* Skin tones, cameras and ages that were rare in training are judged worse; dark skin is rare in
  the public collections.
* Probabilities hold for images like those of the training hospitals. Elsewhere they can be wrong
  without any sign of it.
* A heat map shows where evidence was found. It is no proof that the evidence is medical: hair,
  rulers and ink can matter to a network. Methods disagree; look at several."""


def about(bundle: Bundle) -> str:
    """Return the facts of the bundle as Markdown."""
    parts = [
        "### What this is\n"
        f"A {bundle.architecture.backbone} that tells seven diagnoses apart on dermatoscopic "
        f"images, with the methods that show where its evidence lies. **{NOTE}**",
        _USE,
        "### The model\n" + _table(("Fact", "Value"), _model(bundle)),
        "### Operating points, measured on validation images\n" + _points(bundle),
        "### When it abstains\n" + _abstention(bundle),
        _validation(bundle),
        _LIMITS,
        _privacy(),
    ]
    return "\n\n".join(part for part in parts if part)


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
    return [
        ("Network", f"{bundle.architecture.backbone}, {width} x {height} pixels"),
        ("Trained on", _data_line(bundle)),
        ("Calibration", f"temperature {bundle.calibration.temperature:.3g}"),
        ("Answer", "the most probable diagnosis, what cannot be excluded, and two flags"),
        ("What cannot be excluded", _sets(bundle)),
        ("License of the weights", str(facts.get("license", "MIT"))),
        ("License of the data", _data_license(data)),
        ("Version", f"dermlens {facts.get('dermlens_version', __version__)}"),
        (
            "Data fingerprint",
            f"`{str(data['fingerprint'])[:12]}`" if "fingerprint" in data else "–",
        ),
    ]


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


def _points(bundle: Bundle) -> str:
    rows = [
        (
            name,
            ", ".join(point.codes),
            f"{point.threshold:.3g}",
            percent(point.sensitivity),
            percent(point.specificity),
            str(point.positives),
            str(point.negatives),
        )
        for name, point in bundle.calibration.operating_points.items()
    ]
    head = (
        "Flag",
        "Diagnoses",
        "Threshold",
        "Sensitivity",
        "Specificity",
        "Positives",
        "Negatives",
    )
    return _table(head, rows)


def _abstention(bundle: Bundle) -> str:
    photograph = (
        "The photograph is judged first: too small, too dark or bright, blurred, or nothing stands "
        "out from the skin."
    )
    detector = bundle.outlier
    if detector is None:
        return f"{photograph} This model has no detector of unusual images."
    return (
        f"{photograph} Then its features are compared with those of {detector.images:,} training "
        f"images: beyond a distance of {detector.threshold:.3g} the model abstains. On validation "
        f"images that turns {percent(detector.false_rejects)} of ordinary ones away."
    )


def _validation(bundle: Bundle) -> str:
    """Return what training recorded about validation at the kept epoch; nothing if it did not."""
    if "training" not in bundle.facts or bundle.best_epoch is None:
        return ""
    if not (bundle.path / "history.csv").is_file():
        return ""
    history = bundle.history
    if not {"phase", "epoch", *_FIGURES} <= set(history.columns):
        return ""
    kept = history[(history.phase == "finetuning") & (history.epoch == bundle.best_epoch)]
    if kept.empty:
        return ""
    rows = [(title, f"{kept[name].iloc[-1]:.3f}") for name, title in _FIGURES.items()]
    return (
        "### Measured on validation images\n"
        + _table(("Figure", "Value"), rows)
        + "\n\nThe kept epoch was chosen by them, so they are a little too good."
    )


def _privacy() -> str:
    return (
        "### Your images\n"
        "They go to the computer that runs this page and nowhere else. They are deleted when you "
        "close the page, at the latest 15 minutes after the upload, and when the program stops. "
        f"Nothing about them is logged. Up to {MAX_BYTES // 2**20} MB a file, and {MAX_FILES} "
        "files at once."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
    return "\n".join(lines)

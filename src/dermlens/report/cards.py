"""Model card and data card as Markdown, written from what was measured.

Model cards: Mitchell et al., "Model cards for model reporting", FAT* 2019. Checklist: CLEAR Derm,
Daneshjou et al., JAMA Dermatology 2022.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.manifest import SPLITS, data_labels, read_manifest
from dermlens.data.splits import audit, read_checks
from dermlens.errors import DataError
from dermlens.files import read_json
from dermlens.labels import LabelSet
from dermlens.model.bundle import Bundle
from dermlens.model.evaluation import SMALL_GROUP, age_band
from dermlens.model.prediction_table import read_predictions
from dermlens.report import benchmark_report as report
from dermlens.report.benchmark_figures import family_metrics
from dermlens.report.facts import of_skin, words
from dermlens.report.html import markdown_table, templates

_CONFIDENT, _CONFUSIONS, _MISSED = 10, 6, 12


def _number(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.3f}"


def _interval(bounds: Any) -> str:
    return f"{_number(bounds[0])}–{_number(bounds[1])}"


def _change(row: dict[str, Any]) -> str:
    """Write a difference with its interval; a dash where there is none."""
    if row["low"] is None or not row["low"] < row["high"]:
        return "–"
    return f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def _percent(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{100 * value:.1f} %"


def _render(template: str, **values: Any) -> str:
    environment = templates(keep_trailing_newline=True)
    environment.filters |= {
        "f": _number,
        "interval": _interval,
        "change": _change,
        "percent": _percent,
        "thousands": lambda value: f"{value:,}",
    }
    return environment.get_template(template).render(**values)


def model_card(
    bundle: Bundle,
    evaluation: Path,
    *,
    stress: Path | None = None,
    explanation: str = "",
    shortcuts: str = "",
) -> str:
    """Return the model card of a bundle as Markdown.

    Args:
        bundle: The model.
        evaluation: Folder of ``dermlens evaluate``.
        stress: Folder of ``dermlens stress``, if there is one.
        explanation: What is known of its explanations, Markdown.
        shortcuts: What the shortcut probe found, Markdown.

    Raises:
        DataError: If the evaluation is missing, was made with another balanced rule or with facts
            about patients; or the stress test was made with another model.
    """
    metrics = read_json(Path(evaluation) / "metrics.json")
    if metrics.get("balanced_rule") != bundle.calibration.rule:
        raise DataError(
            f"The evaluation in {evaluation} was made with another bundle (balanced rule "
            f"{metrics.get('balanced_rule')!r}). Run 'dermlens evaluate' again."
        )
    if "patient_facts" in metrics:
        raise DataError(
            f"The evaluation in {evaluation} let facts about patients count, and the card tells of "
            "photographs alone. Run 'dermlens evaluate' without --patient-facts."
        )
    facts, history = bundle.facts, bundle.history
    counted = facts["data"].get("split", {}).get("images", {})
    height, width = bundle.input_size
    return _render(
        "model_card.md.j2",
        title=f"{bundle.architecture.backbone} on {facts['data'].get('name', 'unknown data')}",
        bundle={
            "backbone": bundle.architecture.backbone,
            "height": height,
            "width": width,
            "calibrated": bundle.calibrated,
            "adopted": facts.get("adopted"),
        },
        called=words(bundle.labels),
        of_skin=of_skin(bundle.labels),
        data={"name": "unknown data", "synthetic": False, **facts["data"]},
        split={name: int(counted.get(name, 0)) for name in SPLITS},
        training={"early_size": None, **facts["training"]},
        epochs_run=0 if history.empty else int((history.phase == "finetuning").sum()),
        storage=facts.get("storage", "float32"),
        license=facts.get("license", "MIT"),
        version=facts["dermlens_version"],
        outlier=facts.get("outlier"),
        patient_facts=bundle.patient_facts,
        metrics={"abstention": None, **metrics},
        names={label.code: label.name for label in bundle.labels.labels},
        failures=_failures(read_predictions(Path(evaluation) / "predictions.csv"), metrics),
        small=SMALL_GROUP,
        stress=None if stress is None else _stress(bundle, Path(stress)),
        explanation=explanation,
        shortcuts=shortcuts,
    )


def _stress(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Return what each change of the photographs did: rows, each with its figures by name."""
    facts = read_json(folder / "stress.json")
    if facts["model"] != bundle.identity:
        raise DataError(
            f"The stress test in {folder} was made with another model. Run 'dermlens stress' again."
        )
    figures: dict[str, dict[str, Any]] = {}
    for row in facts["figures"]:
        figures.setdefault(row["name"], {})[row["figure"]] = row
    unchanged = {"name": "unchanged", "title": "as it is", "mild": True}
    rows = [{**one, "figures": figures[one["name"]]} for one in [unchanged, *facts["changes"]]]
    return {**facts, "rows": rows}


def _failures(table: pd.DataFrame, metrics: dict[str, Any]) -> dict[str, Any]:
    codes = list(metrics["per_class"])
    probabilities = table[[f"probability_{code}" for code in codes]].to_numpy(float)
    rows = np.arange(len(table))
    table = table.assign(
        wrong=probabilities[rows, list(map(codes.index, table.predicted))],
        right=probabilities[rows, list(map(codes.index, table.dx))],
    )
    errors = table[table.predicted != table.dx].sort_values("wrong", ascending=False)
    confusions = Counter(zip(errors.dx, errors.predicted, strict=True)).most_common(_CONFUSIONS)
    melanomas = table[table.dx == "mel"].sort_values("right")
    point = metrics["operating_points"].get("melanoma", {"threshold": 0.0})
    missed = melanomas[melanomas.right < point["threshold"]]
    return {
        "errors": len(errors),
        "confusions": [
            {"dx": dx, "predicted": predicted, "count": count}
            for (dx, predicted), count in confusions
        ],
        "confident": errors.head(_CONFIDENT).to_dict("records"),
        "missed": list(missed.image_id.head(_MISSED)),
        "missed_total": len(missed),
        "melanomas": len(melanomas),
    }


def data_card(data: Path) -> str:
    """Return the data card of a prepared and split data set as Markdown.

    Raises:
        DataError: If the data set is not prepared or not split.
    """
    data = Path(data)
    table, facts, labels = read_manifest(data), read_json(data / "dataset.json"), data_labels(data)
    leak, _ = audit(data)
    percent = leak.leaking_under_image_level_split_percent
    kinds = sorted(table.dx_type.dropna().unique())
    return _render(
        "data_card.md.j2",
        data={"n_missing_images": 0, "license": "", **facts},
        split={"grouped_by": "lesion", **facts["split"]},
        sizes=_sizes(read_checks(data)),
        classes=_classes(table, labels),
        called=words(labels),
        ham10000=facts.get("source") == "ham10000",
        leak={"images": percent.iloc[-1], "mel": percent[leak.iloc[:, 0] == "mel"].max()},
        tables=[
            _shares("sex", table.sex),
            _shares("age", table.age.astype(float).map(age_band), by_size=False),
            _shares("place on the body", table.localization),
            _shares("label from", table.dx_type),
        ],
        label_kinds=kinds,
        labels=[
            {
                "code": code,
                "counts": [int(((table.dx == code) & (table.dx_type == k)).sum()) for k in kinds],
            }
            for code in labels.codes
        ],
    )


def _sizes(checks: pd.DataFrame) -> str:
    counted = Counter(zip(checks.width, checks.height, strict=True)).most_common(2)
    return ", ".join(f"{width}x{height} ({count:,})" for (width, height), count in counted)


def _classes(table: pd.DataFrame, labels: LabelSet) -> list[dict[str, Any]]:
    rows = []
    for label in labels.labels:
        mine = table[table.dx == label.code]
        counts = {split: int((mine.split == split).sum()) for split in SPLITS}
        rows.append(
            {
                "code": label.code,
                "name": label.name,
                "images": len(mine),
                "lesions": int(mine.lesion_id.nunique()),
                **counts,
            }
        )
    return rows


def _shares(title: str, values: pd.Series, by_size: bool = True) -> dict[str, Any]:
    counted = Counter(values.astype(object).where(values.notna(), "missing"))
    names = counted.most_common() if by_size else sorted(counted.items())
    rows = [{"name": n, "count": c, "share": c / len(values)} for n, c in names]
    return {"title": title, "rows": rows}


def benchmark_sections(folder: Path) -> tuple[str, str]:
    """Return the parts on explanations and on shortcuts from a folder of ``dermlens benchmark``."""
    summary = read_json(Path(folder) / "summary.json")
    names = family_metrics(summary, "localization")
    parts = [
        report.describe(summary),
        "",
        "Mean ranks over images and metrics, 1 is best; controls know nothing of the model:",
        "",
        markdown_table(report.ranking_table(summary)),
        "",
        f"Localization on lesion outlines. {report.excluded_text(summary, names)}",
        "",
        markdown_table(report.interval_table(summary, names)),
    ]
    shortcuts = ""
    if summary.get("shortcuts"):
        shortcuts = (
            "Artifacts are pasted in, or the lesion is removed or isolated: an automated proxy, "
            "not validated by clinicians. Means with 95 % intervals over lesions.\n\n"
            f"{markdown_table(report.shortcut_table(summary))}\n"
        )
    return "\n".join(parts) + "\n", shortcuts

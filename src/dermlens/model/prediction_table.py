"""Predictions as a table: what is known of the images, logits, and the answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.errors import DataError
from dermlens.labels import MALIGNANT
from dermlens.model.calibration import Calibration

_DESCRIPTION = ("image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization")


def predictions_table(
    rows: pd.DataFrame,
    logits: np.ndarray,
    calibration: Calibration,
    ood_scores: np.ndarray | None = None,
    ood_threshold: float = np.inf,
    level: float | None = None,
    malignant: Sequence[str] = (),
) -> pd.DataFrame:
    """Put predictions beside what is known about the images.

    Args:
        rows: Manifest rows, or any table with at least image_id; (N).
        logits: (N, C).
        calibration: Of the bundle.
        ood_scores: Of the bundle's out-of-distribution detector, (N,), or None.
        ood_threshold: Of the detector.
        level: Of the prediction sets, 0..1; default the stored one.
        malignant: Codes of the classes that are declared malignant; default those of the operating
            point of that name.

    Returns:
        Columns image_id, lesion_id, dx, dx_type, age, sex, localization, then ``logit_<dx>`` and
        ``probability_<dx>`` per class, ``p_malignant`` (where malignancy is
        declared), ``predicted`` (the most probable class),
        ``prediction_set`` (codes that cannot be excluded, most probable first; missing if the
        bundle carries no sets), ``balanced_rule`` (the class that rule chooses) and, with a
        detector, ``ood_score`` and ``abstain`` (the image is unlike the training images). A
        missing lesion_id becomes the image_id.
    """
    table = pd.DataFrame({name: rows.get(name) for name in _DESCRIPTION}, index=rows.index)
    table["lesion_id"] = table.lesion_id.where(table.lesion_id.notna(), table.image_id)
    logits = np.asarray(logits, np.float64)
    probabilities = calibration.probabilities(logits)
    codes = np.array(calibration.classes, dtype=object)
    added: dict[str, Any] = {f"logit_{code}": logits[:, k] for k, code in enumerate(codes)}
    added |= {f"probability_{code}": probabilities[:, k] for k, code in enumerate(codes)}
    point = calibration.operating_points.get(MALIGNANT)
    summed = malignant or (() if point is None else point.codes)
    if summed:
        added["p_malignant"] = probabilities[:, np.isin(codes, summed)].sum(axis=1)
    added["predicted"] = codes[logits.argmax(axis=1)]
    added["prediction_set"] = set_codes(calibration, probabilities, level)
    added["balanced_rule"] = codes[calibration.balanced(logits)]
    if ood_scores is not None:
        added["ood_score"] = ood_scores
        added["abstain"] = ood_scores > ood_threshold
    return pd.concat([table, pd.DataFrame(added, index=rows.index)], axis=1).reset_index(drop=True)


def set_codes(
    calibration: Calibration, probabilities: np.ndarray, level: float | None = None
) -> list[str | None]:
    """Return the prediction set of each image: codes, most probable first, with blanks between.

    Args:
        calibration: Of the bundle; without sets every entry is None.
        probabilities: Calibrated, (N, C).
        level: 0..1; default the stored one.
    """
    if calibration.prediction_sets is None:
        return [None] * len(probabilities)
    inside = calibration.prediction_sets.contain(probabilities, level)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return [
        " ".join(calibration.classes[k] for k in row if chosen[k])
        for row, chosen in zip(order, inside, strict=True)
    ]


def read_predictions(path: Path) -> pd.DataFrame:
    """Read ``predictions.csv``.

    Raises:
        DataError: If it is missing or lacks a column.
    """
    if not Path(path).is_file():
        raise DataError(f"{path} is missing. Run 'dermlens evaluate' first.")
    table = pd.read_csv(path, dtype=object)
    numbers = [str(c) for c in table.columns]
    plain = ("age", "ood_score")
    numbers = [c for c in numbers if c.startswith(("logit_", "probability_", "p_")) or c in plain]
    for column in numbers:
        # Python's float reads exactly what was written; pandas' default parser need not.
        table[column] = [float("nan") if pd.isna(v) else float(v) for v in table[column]]
    if "abstain" in table.columns:
        table["abstain"] = table.abstain.astype(str) == "True"
    known = ("image_id", "lesion_id", "dx", "predicted", "balanced_rule")
    lacking = [name for name in known if name not in table.columns]
    if not any(str(name).startswith("logit_") for name in table.columns):
        lacking.append("logit_<class>")
    if lacking:
        raise DataError(f"{path} lacks the column {lacking[0]!r}. Run 'dermlens evaluate' again.")
    return table

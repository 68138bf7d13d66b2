"""Predictions as a table: what is known of the images, logits, and the answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.errors import DataError
from dermlens.files import read_table
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
        calibration: Of the model.
        ood_scores: Of its out-of-distribution detector, (N,), or None.
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
    """Return the set of each image: codes, most probable first, with blanks; None without sets."""
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
    known = ("image_id", "lesion_id", "dx", "predicted", "balanced_rule")
    table = read_table(Path(path), known, dtype=object)
    logits = [name for name in table.columns if name.startswith("logit_")]
    if not logits:
        raise DataError(f"{path} lacks the column 'logit_<class>'. Run 'dermlens evaluate' again.")
    numbers = [name for name in table.columns if name.startswith(("probability_", "p_"))]
    for column in (*logits, *numbers, *{"age", "ood_score"}.intersection(table.columns)):
        # Python's float reads exactly what was written; pandas' default parser need not.
        table[column] = [float("nan") if pd.isna(v) else float(v) for v in table[column]]
    if "abstain" in table.columns:
        table["abstain"] = table.abstain.astype(str) == "True"
    return table

"""Labels of any folder of images: ISIC one-hot columns, or image_id and dx."""

import csv
from pathlib import Path

import pandas as pd

from dermlens.errors import DataError
from dermlens.labels import LabelSet


def read_labels(path: Path, labels: LabelSet) -> pd.DataFrame:
    """Read labels in either of two forms.

    One-hot: a column ``image`` (or ``image_id``) and one column per class in any order and case,
    with a single 1 per row, as the ISIC challenges publish them. Or two columns ``image_id`` (or
    ``image``) and ``dx``. Columns lesion_id, age, sex, localization and dx_type are kept.

    Args:
        path: The table.
        labels: Classes that may stand in it; codes are compared without regard to case.

    Returns:
        image_id (without file ending), dx and the kept columns.

    Raises:
        DataError: If the file has neither form, a row has no or several classes, a diagnosis is
            unknown, or an image is listed twice.
    """
    try:
        table = pd.read_csv(path, sep=None, engine="python", dtype=object)
    except (OSError, ValueError, csv.Error, pd.errors.ParserError) as error:
        raise DataError(f"{path} cannot be read as a table of labels ({error}).") from error
    table.columns = [str(name).strip().lower() for name in table.columns]
    if "image_id" not in table.columns and "image" in table.columns:
        table = table.rename(columns={"image": "image_id"})
    if "image_id" not in table.columns:
        raise DataError(f"{path} has no column image_id or image. Add one.")
    codes, known = labels.codes, {code.lower(): code for code in labels.codes}
    if "dx" in table.columns:
        dx = table.dx.astype(str).str.strip().map(lambda text: known.get(text.lower(), text))
    elif all(code in table.columns for code in known):
        dx = _from_one_hot(table, path, known)
    else:
        raise DataError(
            f"{path} has neither a column dx nor one column for each of {', '.join(codes)}."
        )
    wrong = sorted(set(dx) - set(codes))
    if wrong:
        raise DataError(f"{path} holds the diagnosis {wrong[0]!r}, none of {', '.join(codes)}.")
    kept = [c for c in ("lesion_id", "age", "sex", "localization", "dx_type") if c in table]
    result = table[["image_id", *kept]].copy()
    result["image_id"] = result.image_id.astype(str).str.strip()
    result["image_id"] = result.image_id.str.replace(r"\.(jpe?g|png)$", "", case=False, regex=True)
    result["dx"] = dx
    twice = result.image_id[result.image_id.duplicated()]
    if len(twice):
        raise DataError(f"{path} lists image {twice.iloc[0]} twice. Keep one of its rows.")
    return result


def _from_one_hot(table: pd.DataFrame, path: Path, known: dict[str, str]) -> pd.Series:
    values = table[list(known)].apply(pd.to_numeric, errors="coerce").fillna(0.0).to_numpy()
    wrong = (values.max(axis=1) <= 0) | ((values > 0).sum(axis=1) != 1)
    if wrong.any():
        marked = int((values[wrong][0] > 0).sum())
        raise DataError(
            f"{path}: image {table.image_id[wrong].iloc[0]} has {marked} classes marked; exactly "
            "one is needed."
        )
    codes = list(known.values())
    return pd.Series([codes[k] for k in values.argmax(axis=1)], index=table.index)

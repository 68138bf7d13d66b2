"""Labels of any folder of images: a table of the field, one-hot columns, or image_id and dx."""

from collections import Counter
from pathlib import Path

import pandas as pd

from dermlens.data.annotation_rows import Row, image_name, rows_of
from dermlens.data.formats import COMPANION_IMAGES, FORMATS, TableFormat
from dermlens.data.tables import TextTable, read_table
from dermlens.data.vocabulary import Vocabulary
from dermlens.errors import DataError
from dermlens.labels import LabelSet
from dermlens.progress import say

_KEPT = ("lesion_id", "age", "sex", "localization", "dx_type")


def read_labels(path: Path, labels: LabelSet) -> pd.DataFrame:
    """Read labels in one of three forms.

    A table of ``formats`` (ISIC challenges, ISIC Archive, PAD-UFES-20, …), whose diagnoses without
    a class here are listed and left out. A column ``image`` (or ``image_id``, ``image_name``,
    ``isic_id``) and one column per class in any order and case, with a single 1 per row. Or
    ``image_id`` and ``dx``. Columns lesion_id, age, sex, localization and dx_type are kept.

    Args:
        path: The table; separators and encodings as ``tables`` reads them.
        labels: Classes that may stand in it; codes are compared without regard to case.

    Returns:
        image_id (without file ending), dx and the kept columns.

    Raises:
        DataError: If the file has none of the forms, a row has no or several classes, a diagnosis
            of the plain form is unknown, or an image is listed twice.
    """
    try:
        text = read_table(Path(path).read_bytes(), str(path))
    except (OSError, DataError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise DataError(f"{path} cannot be read as a table of labels ({reason}).") from error
    known = _format_of(text, labels)
    rows = rows_of(known, text)
    result = _with_classes(rows, known, text.name, labels)
    twice = result.image_id[result.image_id.duplicated()]
    if len(twice):
        raise DataError(f"{path} lists image {twice.iloc[0]} twice. Keep one of its rows.")
    return result


def _format_of(text: TextTable, labels: LabelSet) -> TableFormat:
    """Return how a table is read.

    Raises:
        DataError: If it has no form that is known.
    """
    columns = list(text.cells.columns)
    if "dx" not in columns:
        for known in FORMATS:
            if known.fits(columns):
                return known
    image = next((name for name in COMPANION_IMAGES if name in columns), None)
    if image is None:
        raise DataError(f"{text.name} has no column image_id or image. Add one.")
    codes = tuple(code.lower() for code in labels.codes)
    if "dx" not in columns and not set(codes) <= set(columns):
        raise DataError(
            f"{text.name} has neither a column dx nor one column for each of "
            f"{', '.join(labels.codes)}."
        )
    facts = {one: one if one in columns else "" for one in _KEPT}
    return TableFormat(
        "labels",
        "a table of labels",
        (image,),
        {image: ""},
        ("dx",) if "dx" in columns else (),
        () if "dx" in columns else codes,
        lesion=facts["lesion_id"],
        age=facts["age"],
        sex=facts["sex"],
        localization=facts["localization"],
        confirmation=facts["dx_type"],
        strict=False,
    )


def _with_classes(rows: list[Row], known: TableFormat, name: str, labels: LabelSet) -> pd.DataFrame:
    vocabulary, missing = Vocabulary(labels), Counter[str]()
    found = []
    for row in rows:
        code = next((c for one in row["labels"] if (c := vocabulary.code_of(one))), None)
        label = row["labels"][0] if row["labels"] else "(empty)"
        if code is not None:
            found.append({**row, "image_id": image_name(row["listed_as"], name), "dx": code})
        elif known.name == "labels":
            raise DataError(
                f"{name} holds the diagnosis {label!r}, none of {', '.join(labels.codes)}."
            )
        else:
            missing[label] += 1
    if missing:
        listed = ", ".join(f"{label!r} {count:,}" for label, count in missing.most_common())
        say(f"Left out: rows whose labels have no class here: {listed}.")
    if not found:
        raise DataError(f"No label of {name} is one of {', '.join(labels.codes)}.")
    there = ["image_id", *(one for one in _KEPT if any(row[one] is not None for row in found))]
    return pd.DataFrame(found).loc[:, [*there, "dx"]]

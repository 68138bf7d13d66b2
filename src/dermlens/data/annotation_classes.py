"""From words for diagnoses to the classes of a label set, with nothing lost in silence."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd

from dermlens.data.annotation_rows import FACTS, Row
from dermlens.data.formats import TableFormat, Wanted
from dermlens.data.tables import TextTable, read_table
from dermlens.data.vocabulary import BINARY, Vocabulary, plain
from dermlens.errors import DataError, UsageError
from dermlens.labels import LabelSet, chosen, label_set, label_set_names, named_classes

_MOST_CLASSES = 200
_LONGEST_ID = 180


@dataclass
class Annotations:
    """What is known of images.

    Attributes:
        format: Name of the format.
        title: What people call it.
        license: Terms of use.
        strict: Whether an image without a row is an error.
        table: A row for each image: ``listed_as`` (its name in the table, perhaps with folders),
            ``image_id``, ``lesion_id``, ``dx`` and ``FACTS``; missing values are None, age in
            years.
        labels: The classes.
        rows: Rows of the table, images or not.
        listed: Names, in lower case, of all images of the table, also of those without a class.
        unmapped: Labels without a class, by how many images they have.
        left_out: The same of labels that the user's mapping leaves out.
        notes: Sentences for people.
        whole_set: Whether classes without images stay.
    """

    format: str
    title: str
    license: str
    strict: bool
    table: pd.DataFrame
    labels: LabelSet
    rows: int
    listed: set[str] = field(default_factory=set)
    unmapped: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    whole_set: bool = False

    def keep_classes_of(self, image_ids: set[str]) -> None:
        """Leave out classes that none of these images has, unless the whole set is wanted."""
        if not self.whole_set:
            there = set(self.table.dx[self.table.image_id.isin(list(image_ids))])
            codes = [code for code in self.labels.codes if code in there]
            self.labels = chosen(self.labels, codes)


def read_mapping(path: Path) -> dict[str, str]:
    """Read what labels stand for: a JSON object, or a table with two columns, label and code.

    Raises:
        DataError: If the file has neither form.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".json":
            pairs = json.loads(content.decode("utf-8-sig"))
            if isinstance(pairs, dict) and all(isinstance(v, str | None) for v in pairs.values()):
                return {str(word): code or "" for word, code in pairs.items()}
            raise ValueError("it is no object of texts")
        cells = read_table(content, str(path)).cells
        if cells.shape[1] != 2:
            raise ValueError(f"it has {cells.shape[1]} columns instead of two")
        return {str(word): code or "" for word, code in cells.itertuples(index=False) if word}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"The mapping {path} cannot be used ({error}). Give a JSON object of label to code, or "
            "a table with the columns label and code."
        ) from None


def map_diagnoses(
    known: TableFormat,
    rows: list[Row],
    text: TextTable | None,
    wanted: Wanted,
    notes: list[str],
) -> Annotations:
    """Give each row its class and leave out those without one, counted by label."""
    labels = _label_set(known, rows, wanted)
    vocabulary = Vocabulary(labels, wanted.mapping)
    unmapped: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    kept = []
    for row in rows:
        code = _code(row["labels"], vocabulary)
        label = _telling(row["labels"])
        if known.strict and code is None:
            name = "" if text is None else f"{text.name}, line {row['line']}: "
            raise DataError(
                f"{name}the diagnosis {label!r} is none of {', '.join(labels.codes)}. Correct the "
                "file, or say with --mapping what it stands for."
            )
        if code:
            kept.append({**row, "dx": code})
        else:
            (unmapped if code is None else left_out)[label] += 1
    if not kept:
        listed = ", ".join(f"{label!r} ({n})" for label, n in unmapped.most_common(5))
        raise DataError(
            f"No label of {known.title} has a class among {', '.join(labels.codes)}; there are "
            f"{listed}. Give --mapping, or other --classes."
        )
    table = _without_repeats(kept, text.name if text else known.title, notes)
    result = Annotations(
        known.name, known.title, known.license, known.strict, table, labels, len(rows)
    )
    result.unmapped, result.left_out = dict(unmapped.most_common()), dict(left_out.most_common())
    result.notes, result.whole_set = notes, wanted.classes is not None or known.whole_set
    _name_lesions(result)
    return result


def _code(found: list[str], vocabulary: Vocabulary) -> str | None:
    """Return the class of the first label that has one; "" if it is left out on purpose."""
    for label in found:
        code = vocabulary.code_of(label)
        if code is not None:
            return code
    return None


def _telling(found: list[str]) -> str:
    """Return the label that says most, to be listed."""
    telling = [label for label in found if plain(label) not in (*BINARY, "0", "1", "0.0", "1.0")]
    return [*telling, *found, "(empty)"][0]


def _label_set(known: TableFormat, rows: list[Row], wanted: Wanted) -> LabelSet:
    """Return the classes: those asked for, the format's, or what the labels themselves are."""
    codes = [code for code in dict.fromkeys(wanted.mapping.values()) if code]
    if wanted.classes is not None:
        labels = label_set(wanted.classes)
    elif known.labels and all(code in label_set(known.labels).codes for code in codes):
        labels = label_set(known.labels)
    else:
        words = sorted({row["labels"][0] for row in rows if row["labels"]})
        labels = _declared(codes or words)
    wrong = [code for code in codes if code not in labels.codes]
    if wrong:
        raise UsageError(
            f"The mapping leads to {wrong[0]!r}, which is none of {', '.join(labels.codes)}."
        )
    return labels


def _declared(words: list[str]) -> LabelSet:
    """Return classes of these names; where a set of the package has all of them, its own."""
    if not words:
        raise DataError("The table holds no label. Check which column is the label.")
    if len(words) > _MOST_CLASSES:
        raise DataError(
            f"There are {len(words):,} different labels, such as {words[0][:40]!r}. Check which "
            "column is the label, or give --mapping or --classes."
        )
    lower = {word.lower() for word in words}
    for name in ("binary", "isic2019", *label_set_names()):
        known = label_set(name)
        if lower <= set(known.codes):
            return chosen(known, [code for code in known.codes if code in lower])
    return named_classes(words)


def _without_repeats(rows: list[Row], name: str, notes: list[str]) -> pd.DataFrame:
    """Return the table; an image may be listed again only with the same content."""
    seen: dict[str, Row] = {}
    repeated = 0
    names = _unique_names(rows)
    for row, image_id in zip(rows, names, strict=True):
        row["image_id"] = image_id
        other = seen.setdefault(image_id, row)
        if other is row:
            continue
        if any(other[k] != row[k] for k in ("dx", "lesion_id", "listed_as", *FACTS)):
            raise DataError(f"{name} lists image {image_id} twice. Keep one of its rows.")
        repeated += 1
    if repeated:
        notes.append(f"{repeated:,} rows of {name} repeat another one and were left out.")
    columns = ["listed_as", "image_id", "lesion_id", "dx", *FACTS]
    return pd.DataFrame(
        [[row[one] for one in columns] for row in seen.values()], columns=columns, dtype=object
    )


def _unique_names(rows: list[Row]) -> list[str]:
    """Return image names; with their folders where files of several folders share a name."""
    places: dict[str, set[str]] = {}
    for row in rows:
        places.setdefault(row["image_id"].lower(), set()).add(row["listed_as"].replace("\\", "/"))
    names = []
    for row in rows:
        parent = PurePosixPath(row["listed_as"].replace("\\", "/")).parent
        several = len({str(PurePosixPath(p).parent) for p in places[row["image_id"].lower()]}) > 1
        name = "_".join([*parent.parts, row["image_id"]]) if several else row["image_id"]
        if len(name.encode()) > _LONGEST_ID:
            raise DataError(
                f"The name {name[:60]}… is longer than {_LONGEST_ID} bytes. Shorten it."
            )
        names.append(name)
    return names


def _name_lesions(result: Annotations) -> None:
    """Make lesion ids unique over patients, and images without one a lesion of their own."""
    table = result.table
    known = table[table.lesion_id.notna() & table.patient_id.notna()]
    if len(known) and int(known.groupby("lesion_id").patient_id.nunique().max()) > 1:
        result.notes.append(
            "Lesion numbers begin anew with each patient; they are kept apart by the patient's id."
        )
        both = table.lesion_id.notna() & table.patient_id.notna()
        joined = table.patient_id.astype(str) + "_" + table.lesion_id.astype(str)
        table["lesion_id"] = joined.where(both, table.lesion_id)
    alone = int(table.lesion_id.isna().sum())
    if alone:
        result.notes.append(
            f"{alone:,} images have no lesion id; each is taken for a lesion of its own."
        )
    table["lesion_id"] = table.lesion_id.where(table.lesion_id.notna(), table.image_id)

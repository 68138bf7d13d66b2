"""The field's tables, each a short description that ``annotations`` reads by.

A format is known by its columns. Names of columns are in lower case.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from dermlens.errors import UsageError

CLASS_FOLDERS = "folders"
COLUMNS = "columns"
"""What data sets say they come from that have no format of the list."""
_NON_COMMERCIAL = "licensed CC BY-NC 4.0: non-commercial use, attribution required."


@dataclass(frozen=True)
class TableFormat:
    """How a table tells image, diagnosis, lesion and patient.

    Attributes:
        name: What ``--format`` calls it.
        title: What people call it.
        needs: Columns it is known by.
        any_of: Of these at least one.
        images: Columns of image names, several where a row describes several images; and the kind
            of image of each, or "".
        diagnoses: Columns of the diagnosis, the one that says most first.
        one_hot: Instead: a column for each class, with a 1 in one of them.
        lesion, patient, age, sex, localization, confirmation, kind: Columns, or "".
        labels: Label set that its classes are taken from unless another is asked for.
        whole_set: Whether all classes of the set are there, images or not.
        strict: Whether every image must have a row, and every row a lesion and a known diagnosis.
        license: Terms of use.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    images: Mapping[str, str]
    diagnoses: tuple[str, ...] = ()
    one_hot: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    lesion: str = ""
    patient: str = ""
    age: str = ""
    sex: str = ""
    localization: str = ""
    confirmation: str = ""
    kind: str = ""
    labels: str = "isic2019"
    whole_set: bool = False
    strict: bool = False
    license: str = ""

    def fits(self, columns: Collection[str]) -> bool:
        """Tell whether a table with these columns is of this format."""
        return all(one in columns for one in self.needs) and (
            not self.any_of or any(one in columns for one in self.any_of)
        )


_LEVELS = ("diagnosis_5", "diagnosis_4", "diagnosis_3", "diagnosis_2", "diagnosis_1")
_OLD_LEVELS = ("iddx_5", "iddx_4", "iddx_3", "iddx_2", "iddx_1")

FORMATS: tuple[TableFormat, ...] = (
    TableFormat(
        "ham10000",
        "HAM10000",
        ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"),
        {"image_id": ""},
        ("dx",),
        lesion="lesion_id",
        age="age",
        sex="sex",
        localization="localization",
        confirmation="dx_type",
        labels="ham10000",
        whole_set=True,
        strict=True,
        license=f"HAM10000 is {_NON_COMMERCIAL}",
    ),
    TableFormat(
        "isic2019",
        "ISIC 2019",
        ("image", "mel", "nv", "bcc", "ak", "bkl", "df", "vasc", "scc"),
        {"image": ""},
        one_hot=("mel", "nv", "bcc", "ak", "bkl", "df", "vasc", "scc", "unk"),
        license=f"ISIC 2019 is {_NON_COMMERCIAL}",
    ),
    TableFormat(
        "isic2018",
        "ISIC 2018, task 3",
        ("image", "mel", "nv", "bcc", "akiec", "bkl", "df", "vasc"),
        {"image": ""},
        one_hot=("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc", "unk"),
        labels="ham10000",
        license=f"ISIC 2018 is {_NON_COMMERCIAL}",
    ),
    TableFormat(
        "isic2020",
        "ISIC 2020",
        ("image_name", "patient_id"),
        {"image_name": ""},
        ("benign_malignant", "diagnosis", "target"),
        any_of=("benign_malignant", "target"),
        patient="patient_id",
        lesion="lesion_id",
        age="age_approx",
        sex="sex",
        localization="anatom_site_general_challenge",
        labels="binary",
        license=f"ISIC 2020 is {_NON_COMMERCIAL}",
    ),
    TableFormat(
        "isic_archive",
        "ISIC Archive",
        ("isic_id",),
        {"isic_id": ""},
        (*_LEVELS, *_OLD_LEVELS, "diagnosis", "benign_malignant", "target"),
        any_of=(*_LEVELS, *_OLD_LEVELS, "diagnosis", "benign_malignant", "target"),
        lesion="lesion_id",
        patient="patient_id",
        age="age_approx",
        sex="sex",
        localization="anatom_site_general",
        confirmation="diagnosis_confirm_type",
        kind="image_type",
        license="Each image of the ISIC Archive has terms of its own: see copyright_license.",
    ),
    TableFormat(
        "pad_ufes",
        "PAD-UFES-20",
        ("patient_id", "lesion_id", "img_id", "diagnostic"),
        {"img_id": "clinical"},
        ("diagnostic",),
        lesion="lesion_id",
        patient="patient_id",
        age="age",
        sex="gender",
        localization="region",
        license="PAD-UFES-20 is licensed CC BY 4.0: attribution required.",
    ),
    TableFormat(
        "derm7pt",
        "Derm7pt",
        ("case_num", "diagnosis", "clinic", "derm"),
        {"derm": "dermoscopic", "clinic": "clinical"},
        ("diagnosis",),
        lesion="case_num",
        sex="sex",
        localization="location",
        license="Derm7pt may be used for research only; see its own terms.",
    ),
)
COMPANION_IMAGES = ("image", "image_id", "image_name", "isic_id", "img_id")
COMPANION_FACTS: Mapping[str, tuple[str, ...]] = {
    "lesion_id": ("lesion_id",),
    "patient_id": ("patient_id",),
    "age": ("age_approx", "age"),
    "sex": ("sex", "gender"),
    "localization": (
        "anatom_site_general",
        "anatom_site_general_challenge",
        "localization",
    ),
    "dx_type": ("diagnosis_confirm_type", "dx_type"),
    "image_type": ("image_type",),
}
"""Columns of a second table, such as ``ISIC_2019_Training_Metadata.csv``, by what they tell."""


@dataclass(frozen=True)
class Wanted:
    """What a user asks of a data set.

    Attributes:
        format: Name of a format; None to find out.
        columns: Of a table of one's own: ``image``, ``label`` and any of ``lesion``, ``patient``,
            ``age``, ``sex``, ``localization``, by the names they have there.
        table: File name of the table; None to find it.
        classes: Name of, or file with, a label set; None for what the format or the labels say.
        mapping: What labels stand for, by the label: a code, or "" for what is left out.
        image_type: Only images of a type that begins so, such as ``dermoscopic``.
    """

    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    table: str | None = None
    classes: str | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    image_type: str | None = None


_OWN_COLUMNS = ("image", "label", "lesion", "patient", "age", "sex", "localization")


def format_names() -> tuple[str, ...]:
    """Return what ``--format`` may be."""
    return (*(one.name for one in FORMATS), CLASS_FOLDERS)


def format_of_own(columns: Mapping[str, str]) -> TableFormat:
    """Return the format of a table whose columns the user names.

    Raises:
        UsageError: If image or label is missing, or another word than those known is used.
    """
    unknown = sorted(set(columns) - set(_OWN_COLUMNS))
    missing = [one for one in ("image", "label") if not columns.get(one)]
    if unknown or missing:
        wrong = f"{unknown[0]!r} is none of them" if unknown else f"{missing[0]!r} is missing"
        raise UsageError(
            f"The columns cannot be used: {wrong}. Write image=…,label=… and, where they exist, "
            f"{', '.join(f'{one}=…' for one in _OWN_COLUMNS[2:])}."
        )
    named = {word: column.strip().lower() for word, column in columns.items()}
    return TableFormat(
        COLUMNS,
        "a table of one's own",
        tuple(named.values()),
        {named["image"]: ""},
        (named["label"],),
        lesion=named.get("lesion", ""),
        patient=named.get("patient", ""),
        age=named.get("age", ""),
        sex=named.get("sex", ""),
        localization=named.get("localization", ""),
        labels="",
    )


def format_called(name: str) -> TableFormat:
    """Return a format by its name.

    Raises:
        UsageError: If there is none.
    """
    for one in FORMATS:
        if one.name == name:
            return one
    raise UsageError(f"Unknown format {name!r}. Use one of: {', '.join(format_names())}.")

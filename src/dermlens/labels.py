"""Label sets: which classes there are, what people call them, and which of them are malignant.

A label set is data, not code. ``ham10000``, ``isic2019`` and ``binary`` come with the package;
anybody writes another one as a JSON file like those in ``dermlens/label_sets``. Data sets and
models carry theirs, so that no name is ever taken from anywhere else.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dermlens.errors import DermlensError, UsageError
from dermlens.files import read_json
from dermlens.schema import STRICT, Code, checked

_FOLDER = Path(__file__).parent / "label_sets"
_COLORS = (
    "#D55E00", "#E69F00", "#56B4E9", "#009E73", "#000000", "#0072B2", "#CC79A7", "#F0E442",
    "#7F7F7F", "#8C564B", "#17BECF", "#9467BD", "#BCBD22", "#AEC7E8", "#98DF8A", "#FF9896",
)  # fmt: skip
"""Okabe & Ito's eight, safe for the color-blind, and eight more for larger sets."""
_HEX = re.compile(r"#[0-9a-fA-F]{6}")
MALIGNANT = "malignant"


@dataclass(frozen=True)
class Label:
    """One class.

    Attributes:
        code: Short name in tables, files and on the command line, such as ``"mel"``.
        name: Full name for people.
        malignant: Whether the class counts as malignant or pre-malignant; None where that is not
            declared, or where the question makes no sense.
        plain: One line in plain language; may be empty.
        color: Hex color of the class in every figure.
    """

    __pydantic_config__ = STRICT
    code: Code
    name: str
    malignant: bool | None = None
    plain: str = ""
    color: str = _COLORS[0]


@dataclass(frozen=True)
class LabelSet:
    """The classes of a data set or a model, in the order of the logits.

    Attributes:
        name: What the set is called, such as ``"ham10000"``.
        labels: The classes.
        alerts: More groups of classes that a flag of their own is raised for, by name, such as
            ``{"melanoma": ("mel",)}``; the malignant ones always form one.
        source: Where the classes come from.
    """

    __pydantic_config__ = STRICT
    name: str
    labels: tuple[Label, ...]
    alerts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        """Raise UsageError for a set that cannot name classes."""
        codes = [label.code for label in self.labels]
        problem = None
        if not codes:
            problem = "it has no class"
        elif not all(code.strip() == code != "" for code in codes):
            problem = "a code is empty, or has spaces around it"
        elif len(set(codes)) < len(codes):
            problem = f"the code {max(codes, key=codes.count)!r} stands twice"
        elif unknown := sorted({c for group in self.alerts.values() for c in group} - set(codes)):
            problem = f"the alert code {unknown[0]!r} is none of {', '.join(codes)}"
        elif wrong := [label.color for label in self.labels if not _HEX.fullmatch(label.color)]:
            problem = f"the color {wrong[0]!r} is not like #0072B2"
        if problem:
            raise UsageError(f"The label set {self.name!r} cannot be used: {problem}.")

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes in the order of the logits."""
        return tuple(label.code for label in self.labels)

    @property
    def malignant(self) -> tuple[str, ...]:
        """Codes of the classes that are declared malignant."""
        return tuple(label.code for label in self.labels if label.malignant)

    @property
    def flags(self) -> dict[str, tuple[str, ...]]:
        """Groups of classes that a model raises a flag for, by name; may be empty."""
        groups = {MALIGNANT: self.malignant} if self.malignant else {}
        return {**groups, **self.alerts}

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.labels)

    def of(self, code: str) -> Label:
        """Return the class with a code.

        Raises:
            UsageError: If there is none.

        Example:
            >>> label_set("ham10000").of("mel").name
            'Melanoma'
        """
        for label in self.labels:
            if label.code == code:
                return label
        raise UsageError(f"Unknown class {code!r}. Use one of: {', '.join(self.codes)}.")

    def position(self, code: str) -> int:
        """Return the place of a class in the logits.

        Raises:
            UsageError: If there is no such class.
        """
        return self.labels.index(self.of(code))

    def colors(self) -> dict[str, str]:
        """Return the hex color of each class by its code."""
        return {label.code: label.color for label in self.labels}

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "name": self.name,
            "labels": [asdict(label) for label in self.labels],
            "alerts": {name: list(codes) for name, codes in self.alerts.items()},
            "source": self.source,
        }

    @classmethod
    def from_json(cls, content: Any) -> "LabelSet":
        """Build from what ``to_json`` returned, or a user wrote.

        Raises:
            UsageError: If a field is missing or cannot be true.
        """
        return checked(cls, _filled_in(content), _no_label_set)


def _filled_in(content: Any) -> Any:
    """Give every class of a set that a user wrote its name and color."""
    if not isinstance(content, dict) or not isinstance(content.get("labels"), list):
        return content
    labels = [
        {"name": one.get("code"), "color": _COLORS[k % len(_COLORS)]}
        | {name: value for name, value in one.items() if value not in (None, "")}
        if isinstance(one, dict)
        else one
        for k, one in enumerate(content["labels"])
    ]
    return {**content, "labels": labels}


def _no_label_set(problem: str) -> UsageError:
    return UsageError(
        f"This is no label set: {problem}. It needs a name and labels, each with a code, such as "
        '{"name": "mine", "labels": [{"code": "mel"}]}.'
    )


def named_classes(names: Iterable[str]) -> LabelSet:
    """Return a label set of classes of which nothing but the names is known.

    Example:
        >>> named_classes(["cat", "dog"]).codes
        ('cat', 'dog')
    """
    listed = [str(name) for name in names]
    return LabelSet(
        "classes",
        tuple(Label(n, n, color=_COLORS[k % len(_COLORS)]) for k, n in enumerate(listed)),
    )


def numbered_classes(count: int) -> LabelSet:
    """Return "class 0", "class 1", … where nobody has said what the classes are."""
    return named_classes(f"class {k}" for k in range(count))


@cache
def label_set(given: str | Path) -> LabelSet:
    """Return a label set by its name, from a JSON file, or from codes separated by commas.

    Args:
        given: ``"ham10000"``, ``"isic2019"``, ``"binary"``; a path ending in ``.json``, or to a
            text file with one class per line; or ``"benign,malignant"``.

    Raises:
        UsageError: If there is no such set, or the file holds none.

    Example:
        >>> label_set("binary").malignant
        ('malignant',)
    """
    path = Path(given)
    if (_FOLDER / f"{given}.json").is_file():
        return LabelSet.from_json(read_json(_FOLDER / f"{given}.json"))
    if path.is_file():
        return _from_file(path)
    codes = [part.strip() for part in str(given).split(",")]
    if len(codes) > 1:
        return _declared(named_classes(codes))
    raise UsageError(
        f"There is no label set {str(given)!r}. Use one of: {', '.join(label_set_names())}; a "
        "file; or the classes in the order of the model's outputs, separated by commas."
    )


def label_set_names() -> tuple[str, ...]:
    """Return the names of the sets that come with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def _from_file(path: Path) -> LabelSet:
    try:
        if path.suffix.lower() == ".json":
            return LabelSet.from_json(read_json(path))
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError, DermlensError) as error:
        raise UsageError(f"The label set {path} cannot be read: {error}") from None
    return _declared(named_classes(filter(None, names)))


def _declared(found: LabelSet) -> LabelSet:
    """Return the set of the package that has exactly these codes in this order, if there is one."""
    for name in label_set_names():
        known = label_set(name)
        if known.codes == found.codes:
            return known
    return found


def chosen(labels: LabelSet, codes: Sequence[str]) -> LabelSet:
    """Return some classes of a set in another order; unknown codes become classes of that name."""
    known = {label.code: label for label in labels.labels}
    fresh = {label.code: label for label in named_classes(codes).labels}
    alerts = {name: group for name, group in labels.alerts.items() if set(group) <= set(codes)}
    return LabelSet(
        labels.name, tuple(known.get(c, fresh[c]) for c in codes), alerts, labels.source
    )


HAM10000 = label_set("ham10000")
"""The seven diagnoses of HAM10000 (doi:10.1038/sdata.2018.161), in the one order used with it."""

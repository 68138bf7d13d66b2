"""What files and settings may say, declared with pydantic, and a sentence where they say else."""

import json
import math
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator
from pydantic.dataclasses import dataclass

from dermlens.errors import DataError, DermlensError, UsageError
from dermlens.files import read_json, write_json

Kind = TypeVar("Kind")
Refuse = Callable[[str], DermlensError]
"""Makes an error of what is wrong, such as ``"temperature must be greater than 0, not -1"``."""
Share = Annotated[float, Field(ge=0, le=1)]
ShareOrNaN = Annotated[Share, WrapValidator(lambda v, check: math.nan if v is None else check(v))]
"""JSON holds no NaN; it is stored as null."""
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Code = Annotated[str, Field(min_length=1)]
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
"""Exact types, finite numbers, nothing unknown; dataclasses bear it as ``__pydantic_config__``."""
_LONGEST = 60
_WORDS = (
    ("should be greater than or equal to", "must be at least"),
    ("should be less than or equal to", "must be at most"),
    ("should", "must"),
    (" after validation", ""),
)


class Section(BaseModel):
    """A part of a stored file."""

    model_config = STRICT


class OpenSection(Section):
    """A part that may hold more than is declared: what only informs, or what others add."""

    model_config = ConfigDict(extra="allow")


def checked(kind: type[Kind], content: Any, refuse: Refuse) -> Kind:
    """Return JSON content as a section or a dataclass.

    Raises:
        DermlensError: What ``refuse`` makes of the first field that is wrong.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content))
    except ValidationError as error:
        raise refuse(_problem(error)) from None
    except DermlensError as error:
        raise refuse(str(error).rstrip(".")) from None
    except (RecursionError, TypeError, ValueError) as error:
        raise refuse(f"the content is no JSON ({error})") from None


def checked_file(kind: type[Kind], path: Path, advice: str) -> Kind:
    """Return the content of a JSON file as a section.

    Raises:
        DataError: If the file is missing, no JSON, or says what it may not; ends with ``advice``.
    """
    return checked(kind, read_json(path), lambda wrong: DataError(f"{path}: {wrong}. {advice}"))


def _problem(error: ValidationError) -> str:
    """Name the first field that is wrong, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    where = ""
    for part in first["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    said = first["msg"]
    for theirs, ours in _WORDS:
        said = said.replace(theirs, ours)
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} is not known"
    if first["type"] == "value_error":
        # Ours begin with the field, seen from the section.
        return ".".join(part for part in (where, said.removeprefix("Value error, ")) if part)
    if not said.startswith("Input must"):
        return f"{where}: {said[0].lower()}{said[1:]}" if where else said
    given = repr(first["input"])
    given = given if len(given) <= _LONGEST else f"{given[:_LONGEST]}…"
    return f"{where or 'the content'} {said.removeprefix('Input ')}, not {given}"


@dataclass_transform(frozen_default=True, field_specifiers=(field, Field))
def settings(kind: type[Kind]) -> type[Kind]:
    """Make a frozen dataclass whose values are checked against their annotations.

    Raises:
        UsageError: From its constructor, naming the first field that is wrong.
    """
    made: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(kind)
    build = made.__init__

    def construct(self: Any, *values: Any, **named: Any) -> None:
        try:
            build(self, *values, **named)
        except ValidationError as error:
            raise UsageError(f"{_problem(error)}.") from None

    made.__init__ = construct
    return made


def hold_to_plan(recorded: Path, plan: dict[str, Any], what: str) -> None:
    """Record what a folder's results depend on, or see that it is what was recorded before.

    Args:
        recorded: File of the plan; written if it is missing.
        plan: JSON types.
        what: What the folder holds, for the sentence, such as ``"shards that differ"``.

    Raises:
        UsageError: If another plan was recorded.
    """
    # Through JSON and back, so that what is compared is what is stored.
    wanted = json.loads(json.dumps(plan))
    if not recorded.is_file():
        write_json(recorded, wanted)
    found = checked_file(dict[str, Any], recorded, "Choose another --out.")
    changed = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
    if changed:
        raise UsageError(
            f"{recorded.parent} holds {what} in: {', '.join(changed)}. Choose another "
            "--out, or remove that folder."
        )

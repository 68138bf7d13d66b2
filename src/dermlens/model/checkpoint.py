"""Training state on disk: one file per run, replaced whole after every epoch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dermlens.errors import ModelError
from dermlens.files import written_beside
from dermlens.schema import Count, Section, checked


class StoredState(Section):
    """Where a run stands after an epoch."""

    next_epoch: Count
    lowest_loss: Annotated[float, Field(ge=0)]
    best_epoch: Annotated[int, Field(ge=-1)]
    history: tuple[dict[str, int | float | str | None], ...]


def save_state(path: Path, groups: Mapping[str, Sequence[Any]], facts: dict[str, Any]) -> None:
    """Write named lists of variables or arrays, and facts, as one ``.npz``, atomically."""
    arrays = {
        f"{group}/{position:05d}": stored_value(variable)
        for group, variables in groups.items()
        for position, variable in enumerate(variables)
    }
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    with written_beside(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def stored_value(variable: Any) -> np.ndarray:
    """Return the value of a variable of Keras or TensorFlow, or an array as it is."""
    value = getattr(variable, "value", variable)
    return np.asarray(value() if callable(value) else value)


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Return the facts of a state file, and the arrays of its groups by name.

    Raises:
        ModelError: If the file is missing or damaged.
    """
    groups: dict[str, list[np.ndarray]] = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(stored["facts"].tobytes())
            for name in sorted(stored.files):
                groups.setdefault(name.split("/")[0], []).append(stored[name])
    except Exception as error:  # Damaged archives make their reader fail in many ways.
        raise _damaged(path, error) from error
    return facts, groups


def restore_state(path: Path, groups: Mapping[str, Sequence[Any]]) -> StoredState:
    """Assign the stored values to variables and return the facts.

    Raises:
        ModelError: If the file is damaged, or holds another number or other shapes of variables.
    """
    facts, stored = read_state(path)
    state = checked(StoredState, facts, lambda problem: _damaged(path, problem))
    for group, variables in groups.items():
        shapes = [tuple(variable.shape) for variable in variables]
        if shapes != [values.shape for values in stored.get(group, [])]:
            raise ModelError(
                f"The checkpoint {path} belongs to another network: its {group} variables have "
                "other shapes than those needed. Use another --out."
            )
    for group, variables in groups.items():
        for variable, values in zip(variables, stored[group], strict=True):
            variable.assign(values)
    return state


def _damaged(path: Path, problem: object) -> ModelError:
    return ModelError(f"The checkpoint {path} is damaged ({problem}). Delete it and train again.")

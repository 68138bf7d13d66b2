"""Training state on disk: one file per run, replaced whole after every epoch."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.errors import ModelError
from dermlens.files import written_beside


def save_state(path: Path, groups: Mapping[str, Sequence[Any]], facts: dict[str, Any]) -> None:
    """Write variables and facts as one ``.npz``, atomically.

    Args:
        path: File to write.
        groups: Named lists of variables (anything ``numpy.asarray`` takes).
        facts: JSON-able facts (epoch, history, best score, configuration).
    """
    arrays = {
        f"{group}/{position:05d}": _storable(variable)
        for group, variables in groups.items()
        for position, variable in enumerate(variables)
    }
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    with written_beside(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _storable(variable: Any) -> np.ndarray:
    value = getattr(variable, "value", variable)
    return np.asarray(value() if callable(value) else value)


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return the facts of a state file, or None if there is no file.

    Raises:
        ModelError: If the file is damaged.
    """
    if not Path(path).is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return json.loads(stored["facts"].tobytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"The checkpoint {path} is damaged ({error}). Delete it and train again."
        ) from error


def restore_state(path: Path, groups: Mapping[str, Sequence[Any]]) -> None:
    """Assign the stored values to variables.

    Raises:
        ModelError: If the file holds another number or other shapes of variables.
    """
    with np.load(path, allow_pickle=False) as stored:
        for group, variables in groups.items():
            names = sorted(name for name in stored.files if name.startswith(f"{group}/"))
            if len(names) != len(variables):
                raise ModelError(
                    f"The checkpoint {path} belongs to another network: it holds {len(names)} "
                    f"{group} variables and {len(variables)} are needed. Use another --out."
                )
            for name, variable in zip(names, variables, strict=True):
                variable.assign(stored[name])

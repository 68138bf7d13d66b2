"""Finished pieces of a benchmark on disk: what is there is done, what is not is made."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.files import read_json, write_json, written_beside


class Store:
    """A folder with one file for each finished piece, each written atomically.

    A run that is killed leaves only whole pieces; the next run with the same plan goes on where
    it stopped and ends with the same tables.

    Args:
        folder: Where pieces are kept.
        plan: Everything that results depend on.

    Raises:
        UsageError: If the folder holds pieces of another plan.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder = Path(folder)
        recorded = self.folder / "plan.json"
        # Through JSON and back, so that what is compared is what is stored.
        wanted = json.loads(json.dumps(plan))
        if recorded.is_file():
            found = read_json(recorded)
            if found != wanted:
                changed = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
                raise UsageError(
                    f"{self.folder} holds results of a benchmark that differs in: "
                    f"{', '.join(changed)}. Choose another --out, or remove that folder."
                )
        else:
            write_json(recorded, wanted)

    def path(self, kind: str, name: str, suffix: str = ".json") -> Path:
        """Return where a piece is kept; names of any characters get a safe file name."""
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        if safe != name or safe.startswith("."):
            safe = f"{safe.lstrip('.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return self.folder / kind / f"{safe}{suffix}"

    def has(self, kind: str, name: str, suffix: str = ".json") -> bool:
        """Tell whether a piece is finished."""
        return self.path(kind, name, suffix).is_file()

    def write(self, kind: str, name: str, content: Any) -> None:
        """Keep a piece of JSON types."""
        write_json(self.path(kind, name), content)

    def read(self, kind: str, name: str) -> Any:
        """Return a piece; missing numbers come back as None."""
        return read_json(self.path(kind, name))

    def write_arrays(self, kind: str, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep named arrays."""
        content: dict[str, Any] = dict(arrays)
        with written_beside(self.path(kind, name, ".npz")) as temporary:
            np.savez_compressed(temporary, **content)

    def read_arrays(self, kind: str, name: str) -> dict[str, np.ndarray]:
        """Return named arrays."""
        with np.load(self.path(kind, name, ".npz"), allow_pickle=False) as arrays:
            return dict(arrays)

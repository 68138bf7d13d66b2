"""Images to begin with: test images of a data set with their truth, or drawn ones.

Drawings are offered only where the model was trained on them: a model of photographs would abstain.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dermlens.data.manifest import data_labels, read_manifest
from dermlens.errors import DataError
from dermlens.files import write_text
from dermlens.model.bundle import Bundle
from dermlens.progress import say
from dermlens.report.facts import of_skin

DRAWN = {"mel": 4, "nv": 1, "bcc": 3, "vasc": 2, "bkl": 6, "akiec": 5, "df": 7}
"""Diagnosis of HAM10000 and seed of the drawn examples."""
EACH = 2
"""Test images of each class."""
_MOST = 24


@dataclass(frozen=True)
class Example:
    """A file, the name of its true class, and the SHA-256 that it is known by."""

    path: Path
    truth: str
    sha256: str


def offered(bundle: Bundle, data: Path | None, folder: Path) -> list[Example]:
    """Return what is offered to begin with, as files in a folder.

    Args:
        bundle: The model.
        data: A prepared data set, which is remembered; None for the one remembered last.
        folder: Where files are written.

    Raises:
        DataError: If a data set that was given cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if data is not None:
        found = list(_of_data(Path(data), folder))
        write_text(_memory(), f"{Path(data).resolve()}\n")
    elif bundle.synthetic and of_skin(bundle.labels):
        found = list(_drawn(folder, bundle.input_size))
    else:
        found = _remembered(folder)
    return found


def data_set(given: Path | None) -> Path | None:
    """Return the prepared data set that was given, or remembered and still there; else None."""
    if given is not None:
        return Path(given)
    try:
        found = Path(_memory().read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return None
    return found if (found / "manifest.csv").is_file() else None


def _remembered(folder: Path) -> list[Example]:
    try:
        data = Path(_memory().read_text(encoding="utf-8").strip())
        return list(_of_data(data, folder))
    except (OSError, ValueError):
        return []
    except DataError:
        say(f"No examples: {data} is not there any more. Name a data set with --examples.")
        return []


def _memory() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dermlens" / "examples.txt"


def _of_data(data: Path, folder: Path) -> Iterator[Example]:
    table, labels = read_manifest(data), data_labels(data)
    test = table[table.split == "test"].sort_values("image_id")
    if test.empty:
        raise DataError(f"{data} has no test images. Split it first: 'dermlens data split'.")
    each = max(1, min(EACH, _MOST // len(labels)))
    # Of different lesions, and in the order of the classes.
    chosen = test.drop_duplicates("lesion_id").groupby("dx").head(each)
    for code in labels.codes[:_MOST]:
        for row in chosen[chosen.dx == code].itertuples():
            source = data / str(row.path)
            path = folder / f"{code}_{row.image_id}{source.suffix}".replace("/", "_")
            shutil.copyfile(source, path)
            yield _example(path, labels.of(code).name)


def _drawn(folder: Path, size: tuple[int, int]) -> Iterator[Example]:
    from PIL import Image

    from dermlens.data.synthetic import draw
    from dermlens.labels import HAM10000

    scale = max(1, round(400 / size[1]))
    for code, seed in DRAWN.items():
        path = folder / f"drawn_{code}.jpg"
        drawn, _, _ = draw(code, seed, (size[0] * scale, size[1] * scale))
        Image.fromarray(drawn).save(path, quality=95)
        yield _example(path, HAM10000.of(code).name)


def _example(path: Path, truth: str) -> Example:
    return Example(path, truth, hashlib.sha256(path.read_bytes()).hexdigest())

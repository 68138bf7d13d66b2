"""Known cases like those of image files, with the page's rule: no diagnosis where it abstains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermlens.data.images import load_image
from dermlens.explainers.nearest_cases import EACH, CaseFinder, NearestCases
from dermlens.explainers.registry import create, method
from dermlens.model.bundle import Bundle
from dermlens.report.explanation import photograph_of
from dermlens.serve.prediction import predict_files

_DISPLAYED = 640
"""Longer side of the photograph, in pixels."""


@dataclass(frozen=True)
class FileCases:
    """One file: its photograph, uint8 RGB (h, w, 3), and its cases, None where there is no answer.

    ``said`` is why there is none, or what is to be doubted; empty if nothing. ``failed``: the file
    could not be read.
    """

    path: Path
    said: str = ""
    failed: bool = False
    photograph: np.ndarray | None = None
    cases: NearestCases | None = None


def region_of(bundle: Bundle, image: np.ndarray, name: str, seed: int = 0) -> np.ndarray:
    """Return the map, float32 (H, W), of a method for the most probable class of an image."""
    found: np.ndarray = create(name, bundle).attribute(image[None], seed=seed).maps[0]
    return found


def cases_of_files(
    finder: CaseFinder,
    files: Sequence[Path],
    *,
    region: str | None = None,
    count: int = EACH,
    anyway: bool = False,
    batch_size: int = 32,
    seed: int = 0,
) -> Iterator[FileCases]:
    """Find cases of image files one after the other.

    Args:
        finder: With the model.
        files: Images; a damaged one gives a sentence.
        region: Name of a method whose map marks the part to look at; default the whole image.
        count: Lesions of each diagnosis.
        anyway: Whether diagnoses are named where the model abstains.
        batch_size: Images per pass.
        seed: Of the method.

    Raises:
        UsageError: If the method is unknown.
        ExplanationError: If it cannot explain this model.
    """
    bundle = finder.bundle
    known = None if region is None else method(region)
    table = predict_files(bundle, files, batch_size=batch_size)
    for path, row in zip(files, table.to_dict("records"), strict=True):
        said = str(row["error"] or row.get("reasons") or row.get("remarks") or "")
        if row["error"] or (row.get("abstain") and not anyway):
            yield FileCases(path, said, failed=bool(row["error"]))
            continue
        image = load_image(path, bundle.input_size)
        marked = None if known is None else region_of(bundle, image, known.name, seed)
        photograph, _ = photograph_of(path, bundle.input_size, _DISPLAYED)
        found = finder.find(
            image,
            region=marked,
            named="" if known is None else known.title,
            photograph=photograph,
            count=count,
        )
        yield FileCases(path, said, photograph=photograph, cases=found)

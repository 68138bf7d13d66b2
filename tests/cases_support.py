"""A tiny bundle with an index of cases, made by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from dermlens.labels import HAM10000
from dermlens.model.bundle import load_bundle
from dermlens.model.case_index import (
    FILE,
    CaseIndex,
    Measured,
    Tally,
    Whitening,
    weights_of,
    write_index,
)

FEATURES = 8
"""Of the tiny network."""
PER_CLASS = 6


def plain_index() -> CaseIndex:
    """Five images of three lesions in two dimensions, without whitening: exact by hand."""
    return CaseIndex(
        Whitening(np.zeros(2, np.float32), np.eye(2, dtype=np.float32)),
        np.array([[1, 0], [0.6, 0.8], [0, 1], [0, -1], [0.8, 0.6]], np.float16),
        np.zeros((5, 32), np.uint8),
        np.array(["a1", "a2", "b1", "c1", "b2"]),
        np.array(["A", "A", "B", "C", "B"]),
        np.array(["nv", "nv", "mel", "mel", "mel"]),
        np.array(["histo", "histo", "", "histo", "follow_up"]),
    )


def random_index(weights: str) -> CaseIndex:
    """Six lesions of every diagnosis with random features, of which all count as close."""
    count = PER_CLASS * len(HAM10000.codes)
    generator = np.random.default_rng(5)
    whitening = Whitening(np.full(FEATURES, 0.5, np.float32), np.eye(FEATURES, dtype=np.float32))
    votes = tuple(Tally(images=10, right=k) for k in (1, 3, 5, 7, 8, 9))
    return CaseIndex(
        whitening,
        whitening(generator.normal(size=(count, FEATURES))).astype(np.float16),
        generator.integers(0, 256, (count, 32), dtype=np.uint8),
        np.array([f"ISIC_{k:07d}" for k in range(count)]),
        np.array([f"HAM_{k:07d}" for k in range(count)]),
        np.repeat(HAM10000.codes, PER_CLASS),
        np.full(count, "histo"),
        threshold=-1.0,
        weights=weights,
        measured=Measured(
            split="test",
            answers=Tally(images=60, right=33),
            agreeing=votes,
            without_close=Tally(images=8, right=2),
            own_without_close=4,
        ),
    )


def give_index(folder: Path, **changes: object) -> CaseIndex:
    """Write an index into a bundle's folder, with some fields changed, and return it."""
    index = random_index(weights_of(load_bundle(folder).facts))
    index = replace(index, **changes)  # type: ignore[arg-type]
    write_index(folder / FILE, index)
    return index

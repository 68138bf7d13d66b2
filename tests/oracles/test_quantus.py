"""Metrics against Quantus (Hedström et al., JMLR 2023), an independent implementation."""

import warnings
from typing import Any

import numpy as np
import pytest

from dermlens.quality.complexity import entropy, gini
from dermlens.quality.localization import relevance_mass, relevance_rank

SIZE = (12, 17)


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    """Positive maps without ties: Quantus takes other conventions for signs and ties."""
    generator = np.random.default_rng(0)
    return generator.gamma(0.7, size=(6, *SIZE)) * np.array([1, 3, 0.5, 1, 1, 40])[:, None, None]


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    generator = np.random.default_rng(1)
    rows, columns = np.indices(SIZE)
    centers = generator.uniform(3, 9, (6, 2))
    return np.stack([np.hypot(rows - r, columns - c) < 4 for r, c in centers])


def scores(name: str, maps: np.ndarray, masks: np.ndarray, **options: Any) -> np.ndarray:
    """What a metric of Quantus says about given maps; the model is not asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quantus

        metric = getattr(quantus, name)(
            normalise=False, abs=False, disable_warnings=True, display_progressbar=False, **options
        )
        images = np.zeros((len(maps), 3, *SIZE), np.float32)
        found = metric(
            model=None,
            x_batch=images,
            y_batch=np.zeros(len(maps), int),
            a_batch=maps[:, None],
            s_batch=masks[:, None],
            channel_first=True,
        )
    return np.array(found, float)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("RelevanceMassAccuracy", relevance_mass),
        ("RelevanceRankAccuracy", relevance_rank),
    ],
)
def test_localization(name: str, ours: Any, maps: np.ndarray, masks: np.ndarray) -> None:
    expected = scores(name, maps, masks)
    np.testing.assert_allclose(ours(maps, masks), expected, atol=1e-6)
    assert np.ptp(expected) > 0.05


@pytest.mark.parametrize(("name", "ours"), [("Sparseness", gini), ("Complexity", entropy)])
def test_complexity(name: str, ours: Any, maps: np.ndarray, masks: np.ndarray) -> None:
    expected = scores(name, maps, masks)
    np.testing.assert_allclose(ours(maps), expected, atol=1e-6)
    assert np.ptp(expected) > 0.001

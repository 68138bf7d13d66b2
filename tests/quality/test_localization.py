"""Localization metrics on maps whose score is known."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.quality.localization import (
    enrichment,
    pixel_auc,
    pointing_game,
    relevance_mass,
    relevance_rank,
)

ALL = (pointing_game, relevance_mass, enrichment, relevance_rank, pixel_auc)


def mask_and_maps() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    mask = np.zeros((1, 4, 6), bool)
    mask[0, 1:3, 2:5] = True
    spread = np.arange(24).reshape(1, 4, 6) / 100
    return mask, {"perfect": mask + spread * mask, "worst": 1 - mask - spread * mask}


def test_perfect_worst_and_constant_maps() -> None:
    mask, maps = mask_and_maps()
    share = mask.mean()
    known = {
        pointing_game: (1.0, 0.0, share),
        relevance_mass: (1.0, None, share),
        enrichment: (1 / share, None, 1.0),
        relevance_rank: (1.0, 0.0, share),
        pixel_auc: (1.0, 0.0, 0.5),
    }
    for metric, (best, worst, chance) in known.items():
        assert metric(maps["perfect"], mask)[0] == pytest.approx(best)
        if worst is not None:
            assert metric(maps["worst"], mask)[0] == pytest.approx(worst)
        for constant in (0.0, 3.0, -2.0):
            assert metric(np.full(mask.shape, constant), mask)[0] == pytest.approx(chance)


def test_hand_computed_mass_rank_and_auc() -> None:
    maps = np.array([[[4.0, 1.0, -3.0], [2.0, 3.0, 0.0]]])
    mask = np.array([[[True, True, True], [False, False, False]]])
    assert relevance_mass(maps, mask)[0] == pytest.approx(5 / 10)
    assert enrichment(maps, mask)[0] == pytest.approx(1.0)
    assert relevance_rank(maps, mask)[0] == pytest.approx(1 / 3)
    # Pairs (inside, outside) with the inside higher: 4 beats 2, 3, 0; 1 beats 0; -3 none.
    assert pixel_auc(maps, mask)[0] == pytest.approx(4 / 9)
    assert pointing_game(maps, mask)[0] == 1.0


@pytest.mark.parametrize("metric", ALL)
def test_batch_of_n_is_n_batches_of_one(metric: Any) -> None:
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(5, 8, 11)) * np.array([1e-6, 1, 50, 1e4, 3])[:, None, None]
    masks = generator.random((5, 8, 11)) < 0.3
    masks[2] = False
    alone = [metric(maps[i : i + 1], masks[i : i + 1])[0] for i in range(5)]
    np.testing.assert_array_equal(metric(maps, masks), alone)
    np.testing.assert_allclose(metric(maps * 7, masks), alone, rtol=1e-12)
    assert np.isnan(alone[2]), "an empty mask is neither hit nor miss"


def test_auc_equals_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(1)
    maps, masks = generator.integers(0, 5, (3, 9, 7)), generator.random((3, 9, 7)) < 0.4
    expected = [roc_auc_score(m.ravel(), a.ravel()) for a, m in zip(maps, masks, strict=True)]
    np.testing.assert_allclose(pixel_auc(maps, masks), expected)
    assert np.isnan(pixel_auc(maps[:1], np.ones((1, 9, 7), bool)))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="same size"):
        pointing_game(np.zeros((2, 4, 6)), np.zeros((2, 6, 4), bool))

"""Gini index and entropy of maps whose concentration is known."""

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.quality.complexity import entropy, gini


def test_one_pixel_is_perfectly_concentrated_and_a_constant_is_not_at_all() -> None:
    single = np.zeros((1, 5, 8))
    single[0, 2, 3] = -4.0
    assert gini(single)[0] == pytest.approx(1 - 1 / 40) and entropy(single)[0] == 0.0
    for constant in (0.0, 2.0, -1e-9, 1e30):
        flat = np.full((1, 5, 8), constant)
        assert gini(flat)[0] == pytest.approx(0.0, abs=1e-12)
        assert entropy(flat)[0] == pytest.approx(np.log(40))
    one_pixel = np.ones((1, 1, 1))
    assert gini(one_pixel)[0] == entropy(one_pixel)[0] == 0.0


def test_hand_computed() -> None:
    maps = np.array([[[1.0, -3.0], [0.0, 4.0]]])
    # Mean absolute difference of all pairs over twice the mean.
    values = np.array([1.0, 3.0, 0.0, 4.0])
    expected = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert gini(maps)[0] == pytest.approx(expected)
    shares = np.array([1, 3, 4]) / 8
    assert entropy(maps)[0] == pytest.approx(-(shares * np.log(shares)).sum())


def test_scale_sign_and_batch_mates_do_not_matter() -> None:
    maps = np.random.default_rng(0).normal(size=(4, 6, 9))
    scaled = maps * np.array([1e-20, -7, 1, 1e20])[:, None, None]
    for metric in (gini, entropy):
        alone = [metric(maps[k : k + 1])[0] for k in range(4)]
        np.testing.assert_array_equal(metric(maps), alone)
        np.testing.assert_allclose(metric(scaled), alone, rtol=1e-9)
    with pytest.raises(UsageError, match="not empty"):
        gini(np.zeros((3, 0, 4)))

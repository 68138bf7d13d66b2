"""Intervals, paired tests and corrections on cases computed by hand or by scipy."""

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.quality.statistics import (
    cluster_intervals,
    cluster_means,
    holm,
    paired_tests,
    wilcoxon_test,
)


def test_means_leave_out_missing_values_and_count_them() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    first, second = cluster_intervals(values, ["a", "b", "b"])
    assert (first.mean, first.count, first.excluded) == (2.0, 2, 1)
    assert 1.0 <= first.low <= first.high <= 3.0
    assert np.isnan([second.mean, second.low, second.high]).all() and second.excluded == 3
    alone = cluster_intervals(values[:1, :1], ["a"])[0]
    assert alone.mean == 1.0 and np.isnan(alone.low), "one lesion has no interval"
    assert np.isnan(cluster_intervals(np.zeros((0, 1)), [])[0].mean)


def test_whole_lesions_are_drawn() -> None:
    """Ten copies of each lesion's image say no more than one."""
    generator = np.random.default_rng(0)
    means = generator.normal(size=40)
    once = cluster_intervals(means[:, None], range(40), resamples=4000)[0]
    copies = cluster_intervals(np.repeat(means, 10)[:, None], np.repeat(range(40), 10))[0]
    naive = cluster_intervals(np.repeat(means, 10)[:, None], range(400))[0]
    assert copies.high - copies.low == pytest.approx(once.high - once.low, rel=0.1)
    assert naive.high - naive.low < 0.5 * (once.high - once.low)


def test_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(5, 2, size=(300, 1))
    one = cluster_intervals(values, range(300), resamples=5000, seed=2)[0]
    error = 1.96 * values.std() / np.sqrt(300)
    assert one.low == pytest.approx(values.mean() - error, abs=0.03)
    assert one.high == pytest.approx(values.mean() + error, abs=0.03)
    assert one == cluster_intervals(values, range(300), resamples=5000, seed=2)[0]


def test_exact_paired_test_by_hand() -> None:
    # Of the eight ways to flip three lesions, two reach |1 + 2 + 3|: all and none.
    assert paired_tests(np.array([[1.0], [2.0], [3.0]]), "abc")[0] == pytest.approx(2 / 8)
    # Two photographs of a lesion flip together: four ways, two reach the sum.
    pair = paired_tests(np.array([[1.0], [2.0], [3.0]]), ["a", "a", "b"])
    assert pair[0] == pytest.approx(2 / 4)
    columns = np.array([[0.0, np.nan], [0.0, np.nan]])
    np.testing.assert_array_equal(paired_tests(columns, "ab"), [1.0, np.nan])


def test_sampled_paired_test_agrees_with_the_exact_one_and_holds_its_level() -> None:
    from scipy.stats import permutation_test

    generator = np.random.default_rng(3)
    values = generator.normal(0.35, 1, size=60)
    expected = permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20000, rng=1
    ).pvalue
    found = paired_tests(values[:, None], range(60), flips=20000)[0]
    assert found == pytest.approx(expected, abs=0.01)
    null = generator.normal(size=(40, 400))
    rejected = (paired_tests(null, range(40), flips=999) < 0.05).mean()
    assert 0.02 < rejected < 0.085


def test_holm_against_a_hand_computed_table() -> None:
    corrected = holm([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(corrected, [0.03, 0.06, np.nan, 0.06, 0.02])
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0] and len(holm([])) == 0


def test_wilcoxon_and_cluster_means() -> None:
    from scipy.stats import wilcoxon

    values = np.array([0.3, -0.1, 0.5, 0.7, 0.2, np.nan])
    assert wilcoxon_test(values) == pytest.approx(wilcoxon(values[:5]).pvalue)
    assert wilcoxon_test(np.zeros(3)) == 1.0 and np.isnan(wilcoxon_test(np.full(2, np.nan)))
    means = cluster_means(np.array([1.0, 3.0, np.nan, 5.0]), ["b", "b", "c", "a"])
    np.testing.assert_array_equal(means, [5.0, 2.0, np.nan])


def test_bad_arguments() -> None:
    with pytest.raises(UsageError, match="one cluster"):
        cluster_intervals(np.zeros((3, 1)), ["a"])
    with pytest.raises(UsageError, match="at least 1 resample"):
        cluster_intervals(np.zeros((1, 1)), ["a"], resamples=0)

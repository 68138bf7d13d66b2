"""Agreement of maps whose agreement is known beforehand."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity as reference_ssim

from dermlens.errors import UsageError
from dermlens.quality.agreement import (
    MEASURES,
    agreement_matrices,
    consensus_map,
    disagreement_map,
    mean_agreement,
    normalized_ranks,
    smoothed,
    spearman,
    structural_similarity,
    top_overlap,
)

GENERATOR = np.random.default_rng(0)
MAPS = GENERATOR.normal(size=(5, 14, 18))
CONSTANT = np.full((1, 14, 18), 3.0)
ZERO = np.zeros((1, 14, 18))


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_equal_maps_agree_fully_whatever_their_units(measure) -> None:
    assert measure(MAPS, MAPS) == pytest.approx(1.0, abs=1e-12)
    assert measure(MAPS, MAPS * 250.0) == pytest.approx(1.0, abs=1e-12)
    rectified = np.maximum(MAPS, 0)
    assert measure(rectified, rectified) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_symmetric_and_image_by_image(measure) -> None:
    forward, back = measure(MAPS[:-1], MAPS[1:]), measure(MAPS[1:], MAPS[:-1])
    assert forward == pytest.approx(back, abs=1e-12)
    alone = [measure(MAPS[i : i + 1], MAPS[i + 1 : i + 2])[0] for i in range(4)]
    assert forward == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_constant_empty_and_one_pixel_maps_are_defined(measure) -> None:
    for one in (CONSTANT, ZERO):
        assert measure(one, one) == pytest.approx(1.0)
        assert np.isfinite(measure(one, MAPS[:1])).all()
    assert measure(np.ones((1, 1, 1)), np.ones((1, 1, 1))) == pytest.approx(1.0)


def test_spearman_by_hand() -> None:
    one = np.array([[[1.0, 2.0, 3.0, 4.0]]])
    other = np.array([[[10.0, 40.0, 20.0, 30.0]]])
    # 1 - 6 * (0 + 4 + 1 + 1) / (4 * 15)
    assert spearman(one, other) == pytest.approx([0.4])
    assert spearman(MAPS, -MAPS) == pytest.approx(-1.0)
    assert spearman(CONSTANT, MAPS[:1]) == pytest.approx([0.0])
    # A signed map and its rectified version keep the order of the positive part.
    assert 0.5 < spearman(MAPS, np.maximum(MAPS, 0))[0] < 1


def test_ssim_matches_the_public_implementation() -> None:
    positive = np.clip(MAPS, 0, None)
    scaled = np.stack([np.clip(m / np.percentile(m, 99.5), 0, 1) for m in positive])
    for first, second, a, b in zip(MAPS[:-1], MAPS[1:], scaled[:-1], scaled[1:], strict=True):
        _, local = reference_ssim(
            *(a, b),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        assert structural_similarity(first[None], second[None])[0] == pytest.approx(local.mean())


def test_ssim_looks_at_positive_evidence_only() -> None:
    changed = np.where(MAPS < 0, MAPS * 5 - 1, MAPS)
    assert structural_similarity(MAPS, changed) == pytest.approx(1.0)
    assert (structural_similarity(MAPS, -MAPS) < 0.2).all()


def test_top_overlap_by_hand() -> None:
    one = np.arange(20.0).reshape(1, 4, 5)
    half = one.copy()
    half[0, 3, 1:3] = -1.0  # two of the four highest fall out; 15 and 14 come in
    half[0, 3, 0] = 30.0
    # Strongest: {16, 17, 18, 19} against {15, 18, 19, 14}: 2 of 6.
    assert top_overlap(one, half) == pytest.approx([2 / 6])
    assert top_overlap(one, one, share=0.5) == pytest.approx([1.0])


def test_ties_share_the_last_places() -> None:
    tied = np.array([[[9.0, 1.0, 1.0, 1.0, 0, 0, 0, 0, 0, 0]]])  # 2 places, 3 compete for one
    crisp = np.array([[[9.0, 8.0, 0, 0, 0, 0, 0, 0, 0, 0]]])
    assert top_overlap(tied, crisp) == pytest.approx([(1 + 1 / 3) / (1 + 1 + 2 / 3)])
    # Values below zero are no evidence, so their order does not matter.
    weak = np.array([[[9.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0, -9.0]]])
    assert top_overlap(weak, np.maximum(weak, 0)) == pytest.approx([1.0])


def test_a_map_without_preference_reaches_what_chance_does() -> None:
    one = np.arange(100.0).reshape(1, 10, 10)
    assert top_overlap(one, np.ones_like(one)) == pytest.approx([1 / 9])
    assert top_overlap(one, np.zeros_like(one)) == pytest.approx([1 / 9])


def test_matrix_finds_the_planted_stranger() -> None:
    common = MAPS[0]
    maps = [common, 7 * common + 0.01 * MAPS[1], -common, MAPS[2]]
    matrices = agreement_matrices(maps)
    assert list(matrices) == list(MEASURES)
    for name, matrix in matrices.items():
        assert matrix.shape == (4, 4)
        assert np.array_equal(matrix, matrix.T) and np.array_equal(np.diag(matrix), np.ones(4))
        expected = MEASURES[name](common[None], MAPS[2][None])[0]
        assert matrix[0, 3] == pytest.approx(expected)
        assert matrix[0, 1] > 0.9 > 0.5 > matrix[0, 3]
    assert matrices["spearman"][0, 2] == pytest.approx(-1.0)
    assert matrices["spearman"][1, 3] == pytest.approx(spearman(maps[1][None], MAPS[2:3])[0])


def test_consensus_and_disagreement() -> None:
    ranks = normalized_ranks(MAPS)
    assert ranks.min() == 0 and ranks.max() == 1 and ranks.mean() == pytest.approx(0.5)
    assert consensus_map([MAPS[0], MAPS[0] * 9]) == pytest.approx(ranks[0])
    assert disagreement_map([MAPS[0], MAPS[0] * 9]) == pytest.approx(0.0)
    assert consensus_map([MAPS[0], -MAPS[0]]) == pytest.approx(0.5)
    assert disagreement_map([MAPS[0], -MAPS[0]]) == pytest.approx(np.abs(ranks[0] - 0.5))
    assert consensus_map(CONSTANT) == pytest.approx(0.5)
    assert disagreement_map(MAPS[:1]) == pytest.approx(0.0)


def test_disagreement_is_where_it_was_planted() -> None:
    base = np.arange(80.0).reshape(8, 10)
    moved = base.copy()
    moved[7] = -1000.0 - np.arange(10.0)  # what one map ranks highest, the other ranks lowest
    spread = disagreement_map([base, moved])
    assert spread[7].min() > 0.35 > 0.1 > spread[:7].max()
    # Large values of one method must not outvote the others.
    consensus = consensus_map([base, base, moved * 1e6])
    assert np.argmax(consensus) in range(60, 70)


def test_mean_agreement_across_families() -> None:
    matrix = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]])
    assert mean_agreement(matrix) == pytest.approx(0.5)
    assert mean_agreement(matrix, ["a", "a", "b"]) == pytest.approx(0.3)
    assert np.isnan(mean_agreement(matrix, ["a", "a", "a"]))
    assert np.isnan(mean_agreement(np.ones((1, 1))))


def test_smoothing_compares_areas_and_keeps_ties() -> None:
    area = np.zeros((1, 48, 64))
    area[0, 12:36, 16:48] = 1.0
    pixels = area * np.random.default_rng(1).integers(0, 2, area.shape) * 2
    assert spearman(area, pixels)[0] < 0.7
    assert spearman(smoothed(area), smoothed(pixels))[0] > 0.95
    constant = smoothed(np.full((1, 48, 64), 0.3))
    assert np.ptp(constant) == 0 and constant[0, 0, 0] == pytest.approx(0.3)
    soft = smoothed(area)
    assert soft[0, 0, 0] == 0 and soft[0, 24, 32] == pytest.approx(
        1
    )  # far from the edge nothing changes
    levels = np.full((1, 48, 160), 0.37)
    levels[:, :, 80:] = 1.0
    flat = smoothed(levels)
    assert len(np.unique(flat[:, :, :60])) == len(np.unique(flat[:, :, 100:])) == 1
    assert smoothed(1e6 * area) == pytest.approx(1e6 * soft)
    both = smoothed(np.concatenate([area, 5 * pixels]))
    assert np.array_equal(both[:1], soft)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be compared"):
        spearman(MAPS, MAPS[:2])
    with pytest.raises(UsageError, match="not finite"):
        top_overlap(MAPS, np.where(MAPS > 2, np.nan, MAPS))
    with pytest.raises(UsageError, match=r"\(N, H, W\)"):
        normalized_ranks(MAPS[0])
    with pytest.raises(UsageError, match="at least one map"):
        consensus_map([])
    with pytest.raises(UsageError, match="same size"):
        agreement_matrices([MAPS[0], MAPS[0, 1:]])
    with pytest.raises(UsageError, match="between 0 and 1"):
        top_overlap(MAPS, MAPS, share=1.0)

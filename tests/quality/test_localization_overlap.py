"""Intersection over union: at the best threshold, and at equal area."""

import numpy as np
import pytest

from dermlens.quality import metrics
from dermlens.quality.localization import best_iou, equal_area_iou


def test_perfect_worst_constant_and_empty() -> None:
    mask = np.zeros((1, 4, 6), bool)
    mask[0, 1:3, 2:5] = True
    spread = np.arange(24).reshape(1, 4, 6) / 100
    perfect, worst = mask + spread * mask, 1 - mask - spread * mask
    assert best_iou(perfect, mask)[0] == equal_area_iou(perfect, mask)[0] == 1.0
    # The worst map reaches the mask only when every pixel counts.
    assert best_iou(worst, mask)[0] == pytest.approx(mask.mean())
    assert equal_area_iou(worst, mask)[0] == 0.0
    for constant in (0.0, -3.0, 5.0):
        flat = np.full(mask.shape, constant)
        assert best_iou(flat, mask)[0] == pytest.approx(0.25)
        assert equal_area_iou(flat, mask)[0] == pytest.approx(0.25 / 1.75)
    empty, full = np.zeros_like(mask), np.ones_like(mask)
    assert np.isnan(best_iou(perfect, empty)[0]) and np.isnan(equal_area_iou(perfect, empty)[0])
    assert best_iou(perfect, full)[0] == equal_area_iou(perfect, full)[0] == 1.0


def test_every_threshold_is_tried_and_equal_values_pass_together() -> None:
    generator = np.random.default_rng(0)
    maps = generator.integers(0, 6, (5, 7, 9)).astype(float)
    masks = generator.random((5, 7, 9)) < 0.3
    expected = []
    for map_, mask in zip(maps, masks, strict=True):
        ious = [(mask & (map_ >= t)).sum() / (mask | (map_ >= t)).sum() for t in np.unique(map_)]
        expected.append(max(ious))
    np.testing.assert_allclose(best_iou(maps, masks), expected)


def test_equal_area_by_hand() -> None:
    mask = np.array([[[True, True, False, False]]])
    assert equal_area_iou(np.array([[[4.0, 1.0, 3.0, 2.0]]]), mask)[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", metrics.LOCALIZATION)
def test_one_pixel_images_and_batches(name: str) -> None:

    def metric(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
        return metrics.METRICS[name](None, None, maps, masks=masks)

    hit = metric(np.array([[[2.0]]]), np.array([[[True]]]))[0]
    assert np.isnan(hit) if name == "pixel_auc" else hit == pytest.approx(1.0)
    generator = np.random.default_rng(1)
    maps, masks = generator.normal(size=(4, 6, 5)), generator.random((4, 6, 5)) < 0.4
    alone = [metric(maps[k : k + 1], masks[k : k + 1])[0] for k in range(4)]
    np.testing.assert_array_equal(metric(maps, masks), alone)

"""Maps made of maps: fused, gated, contrasted, pooled; each against its formula."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.attribution import of_unit_size
from dermlens.explainers.contrast import SignedCAM
from dermlens.explainers.fused_cam import FinerCAM, FusedCAM, GatedCAM
from dermlens.explainers.integrated_gradients import IntegratedGradients
from dermlens.explainers.occlusion import MultiOcclusion, Occlusion
from dermlens.explainers.regions import Consensus, RegionGradients, pooled
from dermlens.explainers.stages import StageCAM
from dermlens.explainers.superpixels import superpixels
from explain_networks import pooled_network, smooth_images, trained_like

SIZE = (32, 48)


@pytest.fixture(scope="module")
def network() -> Any:
    return trained_like(SIZE)


def close(one: np.ndarray, other: np.ndarray) -> None:
    assert np.abs(other).max() > 0
    np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


def test_fused_and_gated_are_their_formulas(network: Any) -> None:
    images, goals = smooth_images(2, SIZE, seed=1), np.array([4, 2])
    stages = StageCAM(network).maps(images, goals)
    assert len(stages) >= 2
    found = FusedCAM(network, stages=2).attribute(images, goals)
    by_hand = [[of_unit_size(stage[row]) for stage in stages[-2:]] for row in (0, 1)]
    close(found.maps, np.mean(by_hand, axis=1))
    assert not found.signed and found.maps.min() >= 0
    found = GatedCAM(network).attribute(images, goals)
    gates = [np.sqrt(stages[-1][row] / stages[-1][row].max()) for row in (0, 1)]
    close(found.maps, stages[-2] * np.stack(gates))


def test_finer_cam_takes_away_what_the_most_similar_classes_share(network: Any) -> None:
    images = smooth_images(2, SIZE, seed=2)
    every = SignedCAM(network).attribute(images, "all")
    found = FinerCAM(network, strength=0.5, similar=2).attribute(images, 4)
    for row in (0, 1):
        others = [c for c in np.argsort(-every.values[row]) if c != 4][:2]
        shared = every.maps[row, others].mean(axis=0)
        close(found.maps[row], np.maximum(every.maps[row, 4] - 0.5 * shared, 0))
    plain = FinerCAM(network, strength=0).attribute(images, 4)
    close(plain.maps, np.maximum(every.maps[:, 4], 0))


def test_two_classes_that_share_everything_leave_nothing() -> None:
    """Both logits read the same feature map; at full strength nothing is left of it."""
    model = pooled_network(np.full((2, 2, 3, 1), 0.1), np.ones((1, 2)), (8, 8))
    images = np.full((1, 8, 8, 3), 90.0, np.float32)
    assert FinerCAM(model, strength=1.0).attribute(images, 0).maps.max() == 0
    assert FinerCAM(model, strength=0.5).attribute(images, 0).maps.max() > 0


def test_pooling_keeps_the_mean_of_every_piece() -> None:
    image = smooth_images(1, SIZE, seed=3)[0]
    map_ = np.random.default_rng(0).normal(size=SIZE)
    labels = superpixels(image, 20)
    once = pooled(map_, image, (20,))
    for piece in range(labels.max() + 1):
        inside = labels == piece
        np.testing.assert_allclose(once[inside], map_[inside].mean(), rtol=1e-5)
    both = pooled(map_, image, (20, 60))
    np.testing.assert_allclose(both, (once + pooled(map_, image, (60,))) / 2, atol=1e-6)
    with pytest.raises(UsageError, match="at least one number"):
        pooled(map_, image, ())


def test_regions_pool_the_sizes_of_both_paths(network: Any) -> None:
    from scipy.ndimage import gaussian_filter

    images = smooth_images(1, SIZE, seed=4)
    paths = [
        IntegratedGradients(network, n_steps=4, baseline=name, tolerance=None)
        for name in ("border", "blur")
    ]
    size = np.mean([np.abs(path.attribute(images, 1).maps[0]) for path in paths], axis=0)
    smooth = gaussian_filter(size.astype(np.float64), 0.1 * 32, mode="nearest")
    options: dict[str, Any] = {"n_steps": 4, "smoothing": 0.1, "regions": (15,)}
    found = RegionGradients(network, **options).attribute(images, 1)
    close(found.maps[0], pooled(smooth, images[0], (15,)))
    fused = FusedCAM(network).attribute(images, 1).maps[0]
    consensus = Consensus(network, **options).attribute(images, 1)
    both = of_unit_size(fused) + of_unit_size(smooth)
    close(consensus.maps[0], pooled(both, images[0], (15,)))


def test_several_patches_are_the_mean_of_each_alone(network: Any) -> None:
    images = smooth_images(1, SIZE, seed=5)
    explainer = MultiOcclusion(network)
    alone = []
    for fill, boxes in explainer.levels(SIZE):
        side = int(boxes[0, 2] - boxes[0, 0])
        step = side if side == 5 else side // 2
        one = Occlusion(network, patch_size=side, stride=step, baseline=fill)
        np.testing.assert_array_equal(one.boxes(SIZE), boxes)
        alone.append(of_unit_size(one.attribute(images, 0).maps[0]))
    found = explainer.attribute(images, 0)
    close(found.maps[0], np.mean(alone, axis=0))
    assert found.cost.forward <= len(Occlusion(network).boxes(SIZE)) + 1


def test_what_cannot_be_is_a_sentence(network: Any) -> None:
    for strength in (-0.1, 1.5):
        with pytest.raises(UsageError, match="within 0 to 1"):
            FinerCAM(network, strength=strength)
    with pytest.raises(UsageError, match="at least one baseline"):
        RegionGradients(network, baselines=())
    with pytest.raises(UsageError, match="whole number of at least 1"):
        FusedCAM(network, stages=0)

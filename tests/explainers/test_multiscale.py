"""Several scales: stages found by themselves, patches, granularities, and their fusion."""

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.base import Attribution
from dermlens.explainers.grad_cam import LayerCAM
from dermlens.explainers.layers import find_features
from dermlens.explainers.multiscale import (
    KINDS,
    MultiScale,
    MultiScaleResult,
    PatchPyramid,
    ScaleMap,
    fuse,
    fused_map,
)
from dermlens.explainers.occlusion import Occlusion
from dermlens.explainers.output import Contrast
from dermlens.explainers.shap import GaussianProcessSHAP
from dermlens.explainers.stages import StageCAM, stages_of
from dermlens.explainers.superpixel_explainer import SuperpixelBank
from explain_networks import function_network, linear_network, smooth_images, trained_like

SIZE = (32, 48)
IMAGES = smooth_images(3, SIZE)


@pytest.fixture(scope="module")
def model():
    """Two convolutions with stride 2 and a linear head."""
    return trained_like(SIZE)


@pytest.mark.parametrize("nested", [False, True])
def test_stages_of_a_small_network(nested: bool) -> None:
    stages = stages_of(find_features(trained_like(SIZE, nested=nested)))
    prefix = "backbone/" if nested else ""
    assert [(s.layer, s.size) for s in stages] == [
        (f"{prefix}relu1", (16, 24)),
        (f"{prefix}relu2", (8, 12)),
    ]


def test_side_branches_padding_and_squeezing_are_no_stages() -> None:
    import keras

    inputs = keras.Input((*SIZE, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="first")(inputs)
    kept = keras.layers.ReLU(name="everything")(x)
    side = keras.layers.Conv2D(4, 3, padding="same", name="side")(kept)
    side = keras.layers.ZeroPadding2D(1, name="padded")(side)
    side = keras.layers.Conv2D(4, 3, strides=2, padding="valid", name="side_down")(side)
    short = keras.layers.MaxPooling2D(2, name="short")(kept)
    x = keras.layers.Add(name="joined")([side, short])
    gate = keras.layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = keras.layers.Conv2D(4, 1, activation="sigmoid", name="excite")(gate)
    x = keras.layers.Multiply(name="gated")([x, gate])
    x = keras.layers.ZeroPadding2D(1, name="widened")(x)
    x = keras.layers.Conv2D(4, 3, strides=2, name="last")(x)
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    network = keras.Model(inputs, keras.layers.Dense(7)(pooled))
    # "side" is the last at 16 x 24, but the shortcut goes around it.
    assert [s.layer for s in stages_of(find_features(network))] == ["everything", "gated", "last"]


def test_deepest_stage_is_layer_cam_and_scores_can_be_chosen(model) -> None:
    cam = StageCAM(model)
    goals = np.array([4, 0, 6])
    maps = cam.maps(IMAGES, goals)
    expected = LayerCAM(model, form="tape").attribute(IMAGES, goals).maps
    assert maps[-1] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert [one.shape for one in maps] == [(3, *SIZE)] * 2
    assert (cam.cost.forward, cam.cost.backward, cam.traces) == (3, 3, 1)
    one_by_one = [cam.maps(IMAGES[i : i + 1], goals[i : i + 1])[0] for i in range(3)]
    assert maps[0] == pytest.approx(np.concatenate(one_by_one), rel=1e-4, abs=1e-5)
    against = cam.maps(IMAGES, goals, output=Contrast(5))
    assert not np.allclose(against[0], maps[0])


def test_a_shallow_map_leaves_no_grid_where_every_second_place_is_read() -> None:
    """A constant image must give a constant map, although three places of four get no gradient."""
    import keras

    inputs = keras.Input((*SIZE, 3))
    x = keras.layers.Conv2D(3, 1, strides=2, use_bias=False, name="kept")(inputs)
    x = keras.layers.Conv2D(3, 1, strides=2, use_bias=False, name="strided")(x)
    outputs = keras.layers.Dense(2, use_bias=False)(keras.layers.GlobalAveragePooling2D()(x))
    network = keras.Model(inputs, outputs)
    network.set_weights([np.full(w.shape, 0.5) for w in network.get_weights()])
    shallow, deep = StageCAM(network).maps(np.full((1, *SIZE, 3), 80.0), np.array([1]))
    assert deep.min() > 0 and shallow.min() > 0
    assert np.ptp(deep) < 1e-5 * deep.max() and np.ptp(shallow) < 1e-5 * shallow.max()


def test_patch_pyramid_is_occlusion_at_every_size(model) -> None:
    pyramid = PatchPyramid(model, (1 / 3, 1 / 6, 1 / 12))
    assert pyramid.sides(SIZE) == [10, 5, 2] and pyramid.sides((192, 256)) == [64, 32, 16]
    result = pyramid.attribute(IMAGES[:2], 3, batch_size=8)
    for patch, step, drawn in zip((10, 5, 2), (5, 2, 2), pyramid.split(result), strict=True):
        alone = Occlusion(model, patch_size=patch, stride=step).attribute(IMAGES[:2], 3)
        assert drawn == pytest.approx(alone.maps, rel=1e-4, abs=1e-4)
    assert pyramid.traces == 1
    with pytest.raises(UsageError, match="shares"):
        PatchPyramid(model, (0.5, 0.0))


def scales(model, **options) -> MultiScaleResult:
    return MultiScale(model, granularities=(6, 3), **options).explain(IMAGES[0], 2, batch_size=8)


def test_all_kinds_coarse_to_fine_with_the_cost_that_was_paid(model) -> None:
    result = scales(model)
    assert list(dict.fromkeys(one.kind for one in result.maps)) == list(KINDS)
    for kind in KINDS:
        sizes = [one.pixels for one in result.of_kind(kind)]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) >= 2
    assert all(one.values.shape == SIZE for one in result.maps)
    assert [one.signed for one in result.maps] == [False] * 2 + [True] * 3 + [True] * 2
    boxes = len(PatchPyramid(model).boxes(SIZE))
    pieces = [int(one.label.split()[0]) for one in result.of_kind("superpixels")]
    masks = sum(min(2**m, 10 * n) for m, n in zip(pieces, (3, 6), strict=True))
    assert (result.cost.forward, result.cost.backward) == (1 + 1 + boxes + masks, 1)
    assert result.cost.seconds > 0


def test_what_is_known_is_not_paid_again(model) -> None:
    full = scales(model)
    known = Occlusion(model).attribute(IMAGES[:1], 2)
    bank = SuperpixelBank(model, superpixels=6, n_samples=60)
    shap = GaussianProcessSHAP(model, bank=bank).attribute(IMAGES[:1], 2)
    explainer = MultiScale(model, granularities=(6, 3), bank=bank)
    result = explainer.explain(IMAGES[0], 2, known=known, batch_size=8)
    pieces = int(full.maps[-1].label.split()[0])
    saved = known.cost.forward - 1 + min(60, 2**pieces)
    assert full.cost.forward - result.cost.forward == saved
    assert np.array_equal(result.of_kind("patch")[1].values, known.maps[0])
    assert np.array_equal(result.of_kind("superpixels")[-1].values, shap.maps[0])
    for one, other in zip(full.maps[:5], result.maps[:5], strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-3, abs=1e-4)


def test_every_scale_finds_the_only_place_that_counts() -> None:
    import keras

    weights = np.zeros((24, 36, 3, 2), np.float32)
    weights[8:16, 12:24, :, 1] = 0.01
    network = linear_network(weights)
    image = np.full((24, 36, 3), 60, np.uint8)
    image[8:16, 12:24] = 220
    inside = np.zeros((24, 36), bool)
    inside[8:16, 12:24] = True
    pyramid = PatchPyramid(network)
    for drawn in pyramid.split(pyramid.attribute(image[None], 1)):
        assert drawn[0][inside].mean() > 3 * np.abs(drawn[0][~inside]).mean()
    convolution = keras.layers.Conv2D(1, 1, strides=2, use_bias=False)
    inputs = keras.Input((24, 36, 3))
    model = keras.Model(
        inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(convolution(inputs)))
    )
    convolution.set_weights([np.ones((1, 1, 3, 1))])
    model.layers[-1].set_weights([np.array([[-1.0, 1.0]]), np.zeros(2)])
    fused = MultiScale(model, granularities=(4, 12)).explain(image, 1).fused
    assert fused.max() == 1 and inside.ravel()[fused.argmax()]


def test_fusion_of_equal_maps_is_that_map() -> None:
    values = np.random.default_rng(0).normal(size=(5, 7))
    expected = values / np.abs(values).max()
    assert fuse([values, values, values]) == pytest.approx(expected, abs=1e-6)
    assert fuse([values, 1e6 * values]) == pytest.approx(expected, abs=1e-6)
    assert fuse([values, np.zeros((5, 7))]) == pytest.approx(expected, abs=1e-6)
    assert fuse([np.zeros((5, 7))]) == pytest.approx(0.0)
    assert fuse([values, -values]) == pytest.approx(0.0, abs=1e-6)
    assert fuse([1e-30 * values]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UsageError, match="at least one map"):
        fuse([])
    with pytest.raises(UsageError, match="same size"):
        fuse([values, values.T])


def test_kinds_count_alike_whatever_the_number_of_their_scales() -> None:
    left, right = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])

    def scale(kind: str, values: np.ndarray) -> ScaleMap:
        return ScaleMap(kind, "", 1.0, values, True)

    maps = [scale("depth", left)] * 5 + [scale("patch", right)]
    assert fused_map(maps) == pytest.approx(np.array([[1.0, 1.0]]))
    three = [*maps, scale("superpixels", right)]
    assert fused_map(three) == pytest.approx(np.array([[0.5, 1.0]]))


def test_a_network_without_feature_maps_is_refused() -> None:
    from dermlens.errors import ExplanationError

    network = function_network((8, 8), lambda x: x[:, 0, 0, :])
    with pytest.raises(ExplanationError, match="has no feature maps"):
        MultiScale(network)


def test_result_is_an_attribution_of_one_class_only(model) -> None:
    result: Attribution = PatchPyramid(model).attribute(IMAGES[:1], 4)
    assert result.maps.shape == (1, *SIZE) and result.targets.tolist() == [4]

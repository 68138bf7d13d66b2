"""Why A and not B: contrast maps, discrimination, results for one class out of all."""

import numpy as np
import pytest

from dermlens.errors import ExplanationError, UsageError
from dermlens.explainers.contrast import (
    SignedCAM,
    contrast,
    discrimination,
    negative_share,
    strongest_other,
)
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.lime import LIME
from dermlens.explainers.occlusion import Occlusion
from dermlens.explainers.output import Contrast
from dermlens.explainers.shap import GaussianProcessSHAP
from explain_networks import pooled_network, smooth_images, trained_like

SIZE = (32, 48)
IMAGES = smooth_images(2, SIZE)


@pytest.fixture(scope="module")
def model():
    """A small convolutional network with global average pooling and a linear head."""
    return trained_like(SIZE)


def test_signed_cam_by_hand() -> None:
    """One red and one green feature; class 0 likes red and dislikes green, class 1 the reverse."""
    kernel = np.zeros((2, 2, 3, 2), np.float32)
    kernel[:, :, 0, 0] = kernel[:, :, 1, 1] = 0.25
    network = pooled_network(kernel, np.array([[1.0, -1.0], [-3.0, 2.0]]), (4, 8))
    image = np.zeros((1, 4, 8, 3), np.float32)
    image[:, :, :4, 0], image[:, :, 4:, 1] = 8.0, 16.0
    cam = SignedCAM(network)
    result = cam.attribute(image, "all")
    # 2 x 4 feature places; a logit's gradient with respect to a place is the head's weight / 8.
    left, right = result.maps[0, :, :, 0], result.maps[0, :, :, -1]
    assert left == pytest.approx(np.array([[1.0] * 4, [-1.0] * 4]))
    assert right == pytest.approx(np.array([[-6.0] * 4, [4.0] * 4]))
    assert result.signed and (result.cost.forward, result.cost.backward) == (1, 0)


@pytest.mark.parametrize("form", ["closed", "tape"])
def test_signed_cam_rectified_is_grad_cam(model, form: str) -> None:
    signed = SignedCAM(model, form=form, registration="tiles").attribute(IMAGES, [2, 5])
    options = {"form": form, "registration": "tiles"}
    plain = GradCAM(model, **options).attribute(IMAGES, [2, 5], output=Contrast(1))
    both = SignedCAM(model, **options).attribute(IMAGES, [2, 5], output=Contrast(1))
    assert (signed.maps < 0).any() and (plain.maps >= 0).all()
    # Enlarging mixes neighbors: rectified before, a map is nowhere lower than rectified after.
    assert (plain.maps >= np.maximum(both.maps, 0) - 1e-5).all()
    assert plain.maps.max() == pytest.approx(both.maps.max(), rel=0.05)
    other = SignedCAM(model, **options).attribute(IMAGES, [1, 1])
    assert both.maps == pytest.approx(signed.maps - other.maps, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "explainer",
    [
        SignedCAM,
        Occlusion,
        lambda m: LIME(m, superpixels=6),
        lambda m: GaussianProcessSHAP(m, superpixels=6),
    ],
    ids=["grad_cam", "occlusion", "lime", "gp_shap"],
)
def test_difference_of_two_maps_is_the_map_of_the_contrast(model, explainer) -> None:
    method = explainer(model)
    every = method.attribute(IMAGES, "all").maps
    direct = method.attribute(IMAGES, 2, output=Contrast(5)).maps
    assert every[:, 2] - every[:, 5] == pytest.approx(direct, rel=1e-3, abs=2e-4)


def test_contrast_of_two_classes_is_antisymmetric() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 6, 9))
    forward, back = contrast("shap", a, b), contrast("shap", b, a)
    assert np.array_equal(forward.values, -back.values)
    assert forward.values == pytest.approx(a - b, abs=1e-6)
    assert forward.share_for_other == pytest.approx(1 - back.share_for_other)
    assert forward.discrimination == pytest.approx(back.discrimination)
    same = contrast("shap", a, a)
    assert (same.values == 0).all() and same.share_for_other == same.discrimination == 0
    with pytest.raises(UsageError, match="cannot be contrasted"):
        contrast("shap", a, b.T)


def test_discrimination_by_hand() -> None:
    a = np.array([[[1.0, 1.0, 0.0, -9.0]]])
    b = np.array([[[0.0, 4.0, 4.0, -1.0]]])
    assert discrimination(a, b) == pytest.approx([0.5])
    assert discrimination(a, 100 * a) == pytest.approx([0.0])
    assert discrimination(a, 1e-30 * a) == pytest.approx([0.0])
    assert discrimination(np.maximum(a, 0), a) == pytest.approx([0.0])
    apart = np.array([[[0.0, 0.0, 3.0, 5.0]]])
    assert discrimination(a, apart) == pytest.approx([1.0])
    nothing = -np.ones_like(a)
    assert discrimination(a, nothing) == pytest.approx([1.0])
    assert discrimination(nothing, np.zeros_like(a)) == pytest.approx([0.0])


def test_discrimination_does_not_depend_on_the_batch() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(size=(2, 4, 6, 9))
    together = discrimination(a, b)
    assert together == pytest.approx([discrimination(a[i][None], b[i][None])[0] for i in range(4)])
    assert ((together > 0) & (together < 1)).all()


def test_negative_share() -> None:
    maps = np.array([[[3.0, -1.0]], [[0.0, 0.0]], [[-2.0, -2.0]]])
    assert negative_share(maps) == pytest.approx([0.25, 0.0, 1.0])


def test_the_strongest_other_is_never_the_target_and_one_of_the_set_where_it_holds_one() -> None:
    values = np.array([0.1, 0.7, 0.2])
    assert [strongest_other(values, target) for target in range(3)] == [1, 2, 1]
    assert strongest_other(values, 1, preferred=(1, 0)) == 0
    assert strongest_other(values, 1, preferred=(1,)) == 2
    with pytest.raises(ExplanationError, match="one class"):
        strongest_other(np.array([1.0]), 0)


@pytest.mark.parametrize("method", [Occlusion, LIME, GaussianProcessSHAP])
def test_one_class_out_of_all_is_the_same_as_asked_for_alone(model, method) -> None:
    options = {} if method is Occlusion else {"superpixels": 7, "n_samples": 64}
    picked = method(model, **options).attribute(IMAGES, "all").of_class(4)
    alone = method(model, **options).attribute(IMAGES, 4)
    assert picked.maps == pytest.approx(alone.maps, rel=1e-4, abs=1e-5)
    assert picked.values == pytest.approx(alone.values, rel=1e-5)
    assert picked.targets.tolist() == alone.targets.tolist() == [4, 4]
    assert type(picked) is type(alone) and picked.scorer == alone.scorer == "float32"
    assert picked.arrays().keys() == alone.arrays().keys()
    for name, value in alone.arrays().items():
        if value.dtype.kind in "iuf":
            close = pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True)
            assert picked.arrays()[name] == close, name


def test_details_without_a_class_are_kept_even_if_their_shape_fits() -> None:
    """Seven rows of superpixel labels look like seven classes."""
    network = trained_like((7, 12))
    image = smooth_images(1, (7, 12))
    picked = LIME(network, superpixels=4, n_samples=20).attribute(image, "all").of_class(2)
    assert picked.superpixels.shape == (1, 7, 12)

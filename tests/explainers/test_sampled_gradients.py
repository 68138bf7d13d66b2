"""SmoothGrad and GradientSHAP on functions whose gradient is known."""

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.baselines import baseline_image
from dermlens.explainers.sampled_gradients import GradientSHAP, SmoothGrad
from explain_networks import function_network, linear_network, smooth_images


def test_linear_network_has_the_same_gradient_everywhere() -> None:
    weights = np.random.default_rng(0).normal(size=(6, 8, 3, 2))
    model, images = linear_network(weights), smooth_images(2, (6, 8))
    result = SmoothGrad(model, n_samples=4).attribute(images, 1)
    expected = np.abs(weights[..., 1]).max(axis=-1)
    np.testing.assert_allclose(result.maps, np.stack([expected] * 2), rtol=1e-4)
    assert not result.signed


def test_noise_is_centered() -> None:
    """The gradient of x^2 is 2 x: one-sided noise would shift its mean."""
    model = function_network((1, 1), lambda p: p[:, 0, 0, :2] ** 2)
    image = np.array([[[[100.0, 0.0, 0.0]]]])
    result = SmoothGrad(model, n_samples=4000, noise=0.5).attribute(image, 0, batch_size=2000)
    standard_error = 2 * 0.5 * 100 / np.sqrt(4000)
    assert result.maps[0, 0, 0] == pytest.approx(200.0, abs=4 * standard_error)


def test_gradient_shap_is_unbiased_on_a_linear_network() -> None:
    weights = np.random.default_rng(1).normal(size=(4, 5, 3, 2))
    model, images = linear_network(weights), smooth_images(1, (4, 5))
    result = GradientSHAP(model, n_samples=3, noise=0.0, baseline=["border"]).attribute(images, 0)
    change = images[0] - baseline_image(images[0], "border")
    np.testing.assert_allclose(result.maps[0], (change * weights[..., 0]).sum(-1), rtol=1e-3)


def test_gradient_shap_sums_to_the_change_of_score_on_average() -> None:
    model = function_network((1, 2), lambda p: p[:, 0, :, 0] ** 2)
    image = np.zeros((1, 1, 2, 3))
    image[0, 0, 0, 0] = 10.0
    shap = GradientSHAP(model, n_samples=3000, noise=0.0, baseline=["black"])
    result = shap.attribute(image, 0, batch_size=1000)
    assert result.maps.sum() == pytest.approx(100.0, rel=0.05)


def test_bad_settings_are_refused() -> None:
    model = linear_network(np.zeros((2, 2, 3, 2)))
    with pytest.raises(UsageError, match="number of samples"):
        SmoothGrad(model, n_samples=0)
    with pytest.raises(UsageError, match="At least one baseline"):
        GradientSHAP(model, baseline=[])

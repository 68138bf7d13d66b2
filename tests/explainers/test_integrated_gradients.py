"""Integrated and expected gradients against analysis."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.baselines import baseline_image
from dermlens.explainers.integrated_gradients import IntegratedGradients, quadrature
from dermlens.explainers.output import Contrast, Logit, Probability
from explain_networks import function_network, linear_network, smooth_images, trained_like


def analytic_network() -> Any:
    """f = 5 x + y^2 + sin z, where x, y, z are the red of three pixels."""
    import keras

    def value(pixels: Any) -> Any:
        x, y, z = (pixels[:, 0, i, 0] for i in range(3))
        return keras.ops.stack([5 * x + y**2 + keras.ops.sin(z), x * y], axis=1)

    return function_network((1, 3), value)


def red(*values: float) -> np.ndarray:
    image = np.zeros((1, 3, 3), np.float32)
    image[0, :, 0] = values
    return image


def test_analytic_function() -> None:
    n_steps = 8
    start, end = red(0.5, -1.0, 0.25), red(3.0, 2.0, 1.5)
    explainer = IntegratedGradients(
        analytic_network(), n_steps=n_steps, baseline=start, tolerance=None
    )
    result = explainer.attribute(end[None], 0)
    expected = [5 * 2.5, 4.0 - 1.0, np.sin(1.5) - np.sin(0.25)]
    np.testing.assert_allclose(result.maps[0, 0], expected, rtol=1e-5)
    assert result.convergence_delta[0] < 1e-5
    assert result.baseline_output[0] == pytest.approx(5 * 0.5 + 1 + np.sin(0.25))
    assert (result.cost.forward, result.cost.backward) == (n_steps + 2, n_steps)


def test_symmetric_inputs_get_the_same() -> None:
    explainer = IntegratedGradients(analytic_network(), n_steps=4, baseline=red(0, 0, 0))
    drawn = explainer.attribute(red(3.0, 3.0, 7.0)[None], 1).maps[0, 0]
    assert drawn[0] == pytest.approx(4.5) and drawn[1] == pytest.approx(4.5)
    assert drawn[2] == 0.0, "a pixel without influence gets nothing"


def test_equal_functions_get_equal_maps_however_they_are_written() -> None:
    import keras

    one = function_network((1, 3), lambda p: p[:, 0, :, 0] * 2.0)
    other = function_network(
        (1, 3), lambda p: 2.0 * (keras.ops.relu(p[:, 0, :, 0]) - keras.ops.relu(-p[:, 0, :, 0]))
    )
    image = red(1.0, -2.0, 3.0)[None]
    maps = [IntegratedGradients(m, baseline="black").attribute(image, 1).maps for m in (one, other)]
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-6)


def test_linear_network_exactly() -> None:
    weights = np.random.default_rng(0).normal(size=(5, 7, 3, 4))
    images = smooth_images(3, (5, 7))
    model = linear_network(weights, [1.0, 2.0, 3.0, 4.0])
    for baseline in ("border", "blur", "black", (200.0, 150.0, 120.0), images[0]):
        result = IntegratedGradients(model, n_steps=3, baseline=baseline).attribute(images, 2)
        baselines = np.stack([baseline_image(i, baseline) for i in images])
        expected = ((images - baselines) * weights[..., 2]).sum(axis=-1)
        np.testing.assert_allclose(result.maps, expected, rtol=1e-4, atol=1e-2)
        assert (result.convergence_delta < 1e-3).all()


def test_channels_are_summed_so_that_each_image_is_complete() -> None:
    """The mean over channels would give a third of the change of output."""
    model, images = trained_like((24, 36)), smooth_images(2, (24, 36))
    explainer = IntegratedGradients(model, n_steps=128, baseline="black", tolerance=None)
    for output in (Logit(), Contrast(1), Probability()):
        result = explainer.attribute(images, 4, output=output)
        change = result.values - result.baseline_output
        sums = result.maps.sum(axis=(1, 2))
        np.testing.assert_allclose(sums, change, rtol=0.02, atol=0.02 * np.abs(change).max())
        gap = np.abs(sums - change) / np.abs(change)
        np.testing.assert_allclose(result.convergence_delta, gap, atol=1e-3)


def test_expected_gradients_are_the_mean_over_baselines() -> None:
    model, images = trained_like((20, 28)), smooth_images(2, (20, 28))
    names = ["border", "blur", "black"]
    together = IntegratedGradients(model, n_steps=6, tolerance=None, baseline=names).attribute(
        images, 1
    )
    alone = [
        IntegratedGradients(model, n_steps=6, tolerance=None, baseline=n).attribute(images, 1).maps
        for n in names
    ]
    np.testing.assert_allclose(together.maps, np.mean(alone, axis=0), rtol=1e-4, atol=1e-5)
    assert together.cost.backward == 2 * 3 * 6


def test_the_worst_part_of_the_path_is_halved_until_the_gap_is_small() -> None:
    model, images = trained_like((24, 36)), smooth_images(2, (24, 36))
    options: dict[str, Any] = {"n_steps": 2, "baseline": "black"}
    loose = IntegratedGradients(model, tolerance=None, **options).attribute(images, 4)
    tight = IntegratedGradients(model, **options).attribute(images, 4)
    assert loose.convergence_delta.max() > 0.01
    assert tight.convergence_delta.max() <= 0.01
    used = tight.n_steps
    assert (used > 2).any()
    # Paid are the points of both images, of both halves of every halving, and the images, the
    # baselines and the places in the middle, where the output must be known.
    halvings, rest = divmod(tight.cost.backward - 2 * 2, 2)
    assert halvings > 0 and rest == 0
    assert tight.cost.forward - tight.cost.backward == 2 + 2 + halvings


def test_halving_looks_where_the_score_changes() -> None:
    """An output that bends only in the last tenth of the path is not refined elsewhere."""

    def value(pixels: Any) -> Any:
        import keras

        return keras.ops.relu(pixels[:, 0, :, 0] - 0.93)

    model, image = function_network((1, 3), value), red(1.0, 0.0, 0.0)[None]
    explainer = IntegratedGradients(model, n_steps=4, tolerance=1e-3, baseline="black")
    result = explainer.attribute(image, 0)
    np.testing.assert_allclose(result.maps.sum(), 0.07, atol=1e-4)
    assert result.convergence_delta[0] <= 1e-3
    assert result.n_steps[0] <= 4 + 2 * 10, "doubling everywhere would need over 1000"


def test_the_gap_holds_for_all_classes_and_several_baselines() -> None:
    model, images = trained_like((24, 36)), smooth_images(2, (24, 36))
    names = ["black", "blur"]
    explainer = IntegratedGradients(model, n_steps=4, tolerance=0.02, baseline=names)
    result = explainer.attribute(images, "all")
    change = result.values - result.baseline_output
    missing = np.abs(result.maps.sum(axis=(2, 3)) - change).max(axis=1)
    assert (missing <= 0.0201 * np.abs(change).max(axis=1)).all()
    one = explainer.attribute(images, 1)
    assert (one.convergence_delta <= 0.02).all()
    alone = explainer.attribute(images[1:], "all")
    np.testing.assert_allclose(alone.maps[0], result.maps[1], atol=1e-4)


def test_gauss_legendre_needs_fewer_points() -> None:
    def value(pixels: Any) -> Any:
        import keras

        return keras.ops.exp(pixels[:, 0, :, 0])

    model, image = function_network((1, 3), value), red(1.0, 2.0, 3.0)[None]
    explainer = IntegratedGradients(model, n_steps=6, baseline="black", tolerance=None)
    # The trapezoid rule at 50 places is still 8e-4 off.
    assert explainer.attribute(image, 2).convergence_delta[0] < 1e-5


def test_quadrature_weights_and_errors() -> None:
    for n_steps in (1, 20):
        positions, weights = quadrature(n_steps)
        assert weights.sum() == pytest.approx(1.0)
        assert (weights * positions).sum() == pytest.approx(0.5)
    for wrong in (0, 2.5, True):
        with pytest.raises(UsageError, match="number of steps must be a whole number"):
            IntegratedGradients(analytic_network(), n_steps=wrong)
    with pytest.raises(UsageError, match="At least one baseline"):
        IntegratedGradients(analytic_network(), baseline=[])
    with pytest.raises(UsageError, match="Unknown baseline 'white'"):
        IntegratedGradients(analytic_network(), baseline="white").attribute(red(1, 2, 3)[None], 0)
    with pytest.raises(UsageError, match="does not fit"):
        IntegratedGradients(analytic_network(), baseline=np.zeros((2, 2, 3))).attribute(
            red(1, 2, 3)[None], 0
        )

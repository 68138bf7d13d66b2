"""Explanations against public packages and an independent implementation."""

import sys
from importlib.util import find_spec
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from dermlens.explainers import integrated_gradients
from dermlens.explainers.baselines import baseline_image
from dermlens.explainers.grad_cam import GradCAM, LayerCAM
from dermlens.explainers.integrated_gradients import IntegratedGradients
from dermlens.explainers.lime import LIME
from dermlens.explainers.sampled_gradients import SmoothGrad
from dermlens.explainers.shap import GaussianProcessSHAP, shapley_values
from dermlens.explainers.superpixels import grid_cells, superpixels
from explain_networks import smooth_images, trained_like

SIZE = (48, 64)


@pytest.fixture(scope="module")
def model() -> Any:
    return trained_like(SIZE)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return smooth_images(3, SIZE, seed=1).astype(np.float32)


def enlarged(maps: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    return tf.image.resize(maps[..., None], SIZE).numpy()[..., 0]


def test_grad_cam_and_layer_cam_against_tf_keras_vis(model: Any, images: np.ndarray) -> None:
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.layercam import Layercam
    from tf_keras_vis.utils.scores import CategoricalScore

    for ours, theirs in ((GradCAM, Gradcam), (LayerCAM, Layercam)):
        oracle = theirs(model, clone=False)(
            CategoricalScore([4] * 3),
            images,
            penultimate_layer="relu2",
            seek_penultimate_conv_layer=False,
            expand_cam=False,
            normalize_cam=False,
        )
        expected = enlarged(np.asarray(oracle))
        for form in ("closed", "tape"):
            maps = ours(model, form=form, registration="tiles").attribute(images, 4).maps
            assert np.abs(maps - expected).max() <= 1e-4 * expected.max()


def test_saliency_against_tf_keras_vis(model: Any, images: np.ndarray) -> None:
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.utils.scores import CategoricalScore

    expected = Saliency(model, clone=False)(
        CategoricalScore([2] * 3), images, keepdims=False, normalize_map=False
    )
    maps = SmoothGrad(model, n_samples=1, noise=0.0).attribute(images, 2).maps
    assert np.abs(maps - expected).max() <= 1e-4 * np.max(expected)


def segment_function(model: Any, image: np.ndarray, labels: np.ndarray, target: int) -> Any:
    """The game both packages play: which superpixels are kept, to the logit."""
    baseline = baseline_image(image, "border")

    def evaluate(kept: np.ndarray) -> np.ndarray:
        results = []
        for part in np.array_split(np.asarray(kept), max(1, len(kept) // 256)):
            keep = part[:, labels][..., None] > 0.5
            pixels = np.where(keep, image, baseline)
            results.append(np.asarray(model(pixels, training=False))[:, target])
        return np.concatenate(results)

    return evaluate


def test_kernel_shap_against_shap_at_equal_budget(model: Any, images: np.ndarray) -> None:
    import shap

    for image in images[:2]:
        labels = superpixels(image, 24)
        pieces = int(labels.max()) + 1
        evaluate = segment_function(model, image, labels, 4)
        oracle = shap.KernelExplainer(evaluate, np.zeros((1, pieces)))
        expected = oracle.shap_values(np.ones((1, pieces)), nsamples=800, l1_reg=0, silent=True)
        ours = GaussianProcessSHAP(model, superpixels=labels, n_samples=800).attribute(
            image[None], 4
        )
        weights = ours.weights[0]
        assert np.corrcoef(weights, np.ravel(expected))[0, 1] > 0.99


def test_kernel_shap_against_exact_shapley_values(model: Any, images: np.ndarray) -> None:
    import shap

    labels = grid_cells(*SIZE, 8)
    evaluate = segment_function(model, images[0], labels, 1)
    masks = (np.arange(256)[:, None] >> np.arange(8)) & 1
    exact = shapley_values(evaluate(masks)[:, None])[0]
    oracle = shap.explainers.ExactExplainer(evaluate, shap.maskers.Independent(np.zeros((1, 8))))
    expected = oracle(np.ones((1, 8))).values[0]
    ours = GaussianProcessSHAP(model, superpixels=labels, n_samples=256).attribute(images[:1], 1)
    np.testing.assert_allclose(exact, expected, atol=1e-4)
    np.testing.assert_allclose(ours.weights[0], expected, atol=1e-4)


def test_lime_against_lime(model: Any, images: np.ndarray) -> None:
    from lime.lime_image import LimeImageExplainer
    from scipy.stats import spearmanr

    for image in images[:2]:
        labels = superpixels(image, 24)
        baseline = baseline_image(image, "border")

        def classify(batch: np.ndarray) -> np.ndarray:
            return np.asarray(model(np.asarray(batch, np.float32), training=False))

        explanation = LimeImageExplainer(random_state=0).explain_instance(
            image.astype(np.double),
            classify,
            labels=(4,),
            hide_color=tuple(baseline[0, 0]),
            top_labels=None,
            num_features=1000,
            num_samples=1200,
            batch_size=200,
            segmentation_fn=lambda _, labels=labels: labels,
        )
        expected = np.array([weight for _, weight in sorted(explanation.local_exp[4])])
        ours = LIME(model, superpixels=labels, n_samples=1200).attribute(image[None], 4)
        weights = ours.weights[0]
        assert spearmanr(weights, expected).statistic > 0.95
        assert ours.r2[0] == pytest.approx(explanation.score, abs=0.05)


CLOSE = 1e-3
"""Largest difference of any pixel, as a share of the largest attribution."""


def largest_difference(maps: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of any pixel, relative to the largest of its own map."""
    scale = np.abs(expected).max(axis=(-2, -1), keepdims=True)
    return float((np.abs(maps - expected) / scale).max())


def with_activation(model: Any, activation: str) -> Any:
    """Return a copy of a network, with the same weights, and another activation for its ReLUs."""
    import keras

    def replaced(layer: Any) -> Any:
        if isinstance(layer, keras.layers.ReLU):
            return keras.layers.Activation(activation, name=layer.name, dtype=layer.dtype_policy)
        return type(layer).from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=replaced)
    copy.set_weights(model.get_weights())
    return copy


def gradients_on_the_path(
    model: Any, image: np.ndarray, baseline: np.ndarray, target: int, places: np.ndarray
) -> list[np.ndarray]:
    """Return the gradient of a logit at each place, one image and one tape at a time, float64."""
    import tensorflow as tf

    start, whole = baseline.astype(np.float64), image.astype(np.float64)

    @tf.function
    def gradient(pixels: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            logit = model(pixels[None], training=False)[0, target]
        return tape.gradient(logit, pixels)

    return [gradient(tf.constant((1 - t) * start + t * whole)).numpy() for t in places]


@pytest.fixture
def trapezoid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The places and weights that other programs use, in place of Gauss-Legendre."""

    def rule(n_steps: int) -> tuple[np.ndarray, np.ndarray]:
        weights = np.full(n_steps, 1.0 / (n_steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, n_steps), weights

    monkeypatch.setattr(integrated_gradients, "quadrature", rule)


@pytest.mark.parametrize("baseline", ["black", "border"])
@pytest.mark.parametrize("dense_blocks", [False, True])
def test_integrated_gradients_against_a_loop_in_float64(
    dense_blocks: bool, baseline: str, images: np.ndarray, trapezoid: None
) -> None:
    """Every pixel equals what a loop in double precision makes of the same places on the path.

    The loop takes the mean of the left and the right Riemann sum, which is the trapezoid rule. So
    many points that a ReLU on whose side float32 and float64 disagree at one of them counts little.
    """
    network = trained_like(SIZE, dense_blocks=dense_blocks)
    precise = trained_like(SIZE, dense_blocks=dense_blocks, precision="float64")
    precise.set_weights(network.get_weights())
    explainer = IntegratedGradients(network, n_steps=401, baseline=baseline, tolerance=None)
    maps = explainer.attribute(images[:2], [3, 4]).maps
    expected = []
    for image, target in zip(images[:2], (3, 4), strict=True):
        start = baseline_image(image, baseline)
        slopes = gradients_on_the_path(precise, image, start, target, np.linspace(0, 1, 401))
        left, right = sum(slopes[:-1]) / 400, sum(slopes[1:]) / 400
        expected.append(((left + right) / 2 * (image - start)).sum(axis=-1))
    assert largest_difference(maps, np.stack(expected)) <= CLOSE


def test_integrated_gradients_against_the_integral(model: Any, images: np.ndarray) -> None:
    """Every pixel equals the integral itself, by the midpoint rule at places of its own.

    The network is smooth here: only then do moderate numbers of points reach the integral.
    """
    image, black = images[0], np.zeros_like(images[0])
    precise = trained_like(SIZE, precision="float64")
    precise.set_weights(model.get_weights())
    places = (np.arange(1000) + 0.5) / 1000
    slopes = gradients_on_the_path(with_activation(precise, "softplus"), image, black, 3, places)
    expected = (np.mean(slopes, axis=0) * image).sum(axis=-1)
    smooth = with_activation(model, "softplus")
    explainer = IntegratedGradients(smooth, n_steps=32, baseline="black", tolerance=None)
    maps = explainer.attribute(image[None], 3).maps
    assert largest_difference(maps, expected[None]) <= CLOSE


@pytest.fixture(scope="module")
def peer() -> Any:
    """xplique's class. It is not in requirements-test.txt, since it refuses this TensorFlow.

    ``pip install --no-deps xplique==2.0.2`` installs it all the same. What it imports for other
    methods, and what needs an older TensorFlow or is not installed, is stood in for.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tensorflow_probability", "einops"):
            if find_spec(name) is None:
                patch.setitem(sys.modules, name, MagicMock())
        return pytest.importorskip("xplique.attributions").IntegratedGradients


@pytest.mark.parametrize("shade", [0.0, 180.0])
@pytest.mark.parametrize("n_steps", [10, 64])
def test_integrated_gradients_against_xplique(
    n_steps: int, shade: float, peer: Any, model: Any, images: np.ndarray, trapezoid: None
) -> None:
    """Every pixel equals xplique's: the trapezoid rule at as many places, from the same gray.

    Left to itself xplique takes the mean over channels, a third of the sum.
    """
    targets = [3, 4, 2]
    wanted = np.eye(7, dtype=np.float32)[targets]
    options = {"batch_size": 64, "steps": n_steps, "baseline_value": shade}
    expected = np.asarray(peer(model, reducer="sum", **options)(images, wanted))[..., 0]
    explainer = IntegratedGradients(model, n_steps=n_steps, baseline=(shade,) * 3, tolerance=None)
    maps = explainer.attribute(images, targets).maps
    assert largest_difference(maps, expected) <= CLOSE
    averaged = np.asarray(peer(model, **options)(images, wanted))[..., 0]
    assert largest_difference(maps / 3, averaged) <= CLOSE

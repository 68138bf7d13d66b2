"""Explanations against public packages and an independent implementation."""

from typing import Any

import numpy as np
import pytest

from dermlens.explain.fills import fill_image
from dermlens.explain.grad_cam import GradCAM, LayerCAM
from dermlens.explain.integrated_gradients import IntegratedGradients
from dermlens.explain.lime import LIME
from dermlens.explain.sampled_gradients import SmoothGrad
from dermlens.explain.shap import KernelSHAP, shapley_values
from dermlens.explain.superpixels import grid_cells, superpixels
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
            maps = ours(model, form=form).attribute(images, 4).maps
            assert np.abs(maps - expected).max() <= 1e-4 * expected.max()


def test_saliency_against_tf_keras_vis(model: Any, images: np.ndarray) -> None:
    from tf_keras_vis.saliency import Saliency
    from tf_keras_vis.utils.scores import CategoricalScore

    expected = Saliency(model, clone=False)(
        CategoricalScore([2] * 3), images, keepdims=False, normalize_map=False
    )
    maps = SmoothGrad(model, samples=1, noise=0.0).attribute(images, 2).maps
    assert np.abs(maps - expected).max() <= 1e-4 * np.max(expected)


def segment_function(model: Any, image: np.ndarray, labels: np.ndarray, target: int) -> Any:
    """The game both packages play: which superpixels are kept, to the logit."""
    fill = fill_image(image, "mean_skin")

    def evaluate(kept: np.ndarray) -> np.ndarray:
        results = []
        for part in np.array_split(np.asarray(kept), max(1, len(kept) // 256)):
            keep = part[:, labels][..., None] > 0.5
            pixels = np.where(keep, image, fill)
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
        ours = KernelSHAP(model, segments=labels, samples=800).attribute(image[None], 4)
        weights = ours.details["segment_weights"][0]
        assert np.corrcoef(weights, np.ravel(expected))[0, 1] > 0.99


def test_kernel_shap_against_exact_shapley_values(model: Any, images: np.ndarray) -> None:
    import shap

    labels = grid_cells(*SIZE, 8)
    evaluate = segment_function(model, images[0], labels, 1)
    masks = (np.arange(256)[:, None] >> np.arange(8)) & 1
    exact = shapley_values(evaluate(masks)[:, None])[0]
    oracle = shap.explainers.ExactExplainer(evaluate, shap.maskers.Independent(np.zeros((1, 8))))
    expected = oracle(np.ones((1, 8))).values[0]
    ours = KernelSHAP(model, segments=labels, samples=256).attribute(images[:1], 1)
    np.testing.assert_allclose(exact, expected, atol=1e-4)
    np.testing.assert_allclose(ours.details["segment_weights"][0], expected, atol=1e-4)


def test_lime_against_lime(model: Any, images: np.ndarray) -> None:
    from lime.lime_image import LimeImageExplainer
    from scipy.stats import spearmanr

    for image in images[:2]:
        labels = superpixels(image, 24)
        fill = fill_image(image, "mean_skin")

        def classify(batch: np.ndarray) -> np.ndarray:
            return np.asarray(model(np.asarray(batch, np.float32), training=False))

        explanation = LimeImageExplainer(random_state=0).explain_instance(
            image.astype(np.double),
            classify,
            labels=(4,),
            hide_color=tuple(fill[0, 0]),
            top_labels=None,
            num_features=1000,
            num_samples=1200,
            batch_size=200,
            segmentation_fn=lambda _, labels=labels: labels,
        )
        expected = np.array([weight for _, weight in sorted(explanation.local_exp[4])])
        ours = LIME(model, segments=labels, samples=1200).attribute(image[None], 4)
        weights = ours.details["segment_weights"][0]
        assert spearmanr(weights, expected).statistic > 0.95
        assert ours.details["r2"][0] == pytest.approx(explanation.score, abs=0.05)


def test_integrated_gradients_against_a_plain_riemann_sum(model: Any, images: np.ndarray) -> None:
    import tensorflow as tf

    image, baseline = images[0], np.zeros_like(images[0])
    total = np.zeros_like(image, dtype=np.float64)
    places = (np.arange(2000) + 0.5) / 2000
    for part in np.split(places, 20):
        pixels = tf.constant(baseline + part[:, None, None, None] * (image - baseline), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            value = model(pixels, training=False)[:, 3]
        total += tape.gradient(value, pixels).numpy().sum(axis=0)
    expected = (total / 2000 * (image - baseline)).sum(axis=-1)
    explainer = IntegratedGradients(model, points=400, rule="trapezoid", baselines="black")
    drawn = explainer.attribute(image[None], 3).maps[0]
    assert np.corrcoef(drawn.ravel(), expected.ravel())[0, 1] > 0.999
    assert np.abs(drawn - expected).mean() <= 1e-2 * np.abs(expected).mean()
    assert drawn.sum() == pytest.approx(expected.sum(), rel=1e-3)

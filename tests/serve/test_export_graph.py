"""Exported graphs of any classifier: its link, its head and its names are used."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import ModelError
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.integrated_gradients import IntegratedGradients
from dermlens.model.calibration import Calibration
from dermlens.model.image_classifier import ImageClassifier
from dermlens.serve.export_graph import ClassifierGraph
from explain_networks import smooth_images

SIZE = (12, 16)


def classifier(*head: Any, names: Any = None) -> ImageClassifier:
    import keras

    some = keras.initializers.RandomNormal(stddev=0.5, seed=1)
    features = keras.layers.Conv2D(
        4, 3, strides=2, activation="relu", use_bias=False, kernel_initializer=some
    )
    body = [keras.Input((*SIZE, 3)), features]
    return ImageClassifier(keras.Sequential([*body, *head]), names, value_range=(0, 1))


@pytest.mark.parametrize("kind", ["sigmoid", "softmax", "flattened"])
def test_a_graph_explains_what_the_package_explains(kind: str) -> None:
    """One probability through a sigmoid; a softmax; a head that only gradients can explain."""
    from keras import layers

    def dense(units: int, **options: Any) -> Any:
        # Mostly for the target, so that no map is empty.
        import keras

        weights = keras.initializers.RandomUniform(-0.2, 0.6, seed=2)
        return layers.Dense(units, kernel_initializer=weights, **options)

    heads = {
        "sigmoid": [layers.GlobalAveragePooling2D(), dense(1, activation="sigmoid")],
        "softmax": [layers.GlobalAveragePooling2D(), dense(2), layers.Softmax()],
        "flattened": [layers.Flatten(), dense(2)],
    }
    model = classifier(*heads[kind], names="binary")
    link = "sigmoid" if kind == "sigmoid" else "softmax"
    assert model.link == link
    model.calibration = Calibration(temperature=2.0, classes=model.classes, link=link)
    images = smooth_images(3, SIZE)
    graph, pixels = ClassifierGraph(model), images.astype(np.float32)
    logits = model.logits(images)
    targets = np.array([-1, 0, 1], np.int32)
    goals = np.where(targets < 0, logits.argmax(axis=1), targets)

    out = graph.explain(pixels, targets)
    expected = GradCAM(model).attribute(images, goals.tolist())
    assert np.ptp(expected.maps) > 0
    np.testing.assert_allclose(out["maps"], expected.maps, atol=1e-4 * expected.maps.max())
    np.testing.assert_allclose(out["output"], expected.values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["probabilities"], model.probabilities(logits), rtol=1e-5)
    assert out["target"].numpy().tolist() == goals.tolist()
    assert out["target_code"].numpy()[1] == b"benign"

    every, maps, _ = graph.all_maps_and_features(pixels)
    np.testing.assert_allclose(every, logits, rtol=1e-4, atol=1e-5)
    whole = GradCAM(model).attribute(images, "all").maps
    np.testing.assert_allclose(maps, whole, atol=1e-4 * whole.max())
    assert graph.outputs(pixels)["class_name"].numpy()[0].decode() in ("Benign", "Malignant")

    path = graph.integrated_gradients(pixels, targets)
    wanted = IntegratedGradients(model, tolerance=None).attribute(images, goals.tolist())
    scale = np.abs(wanted.maps).max()
    np.testing.assert_allclose(path["maps"], wanted.maps, atol=1e-4 * scale)
    np.testing.assert_allclose(path["baseline_output"], wanted.baseline_output, atol=1e-4)
    np.testing.assert_allclose(path["convergence_delta"], wanted.convergence_delta, atol=1e-3)


def test_a_model_without_maps_cannot_be_exported() -> None:
    import keras

    flat = [keras.Input((*SIZE, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    with pytest.raises(ModelError, match=r"cannot be exported. The model .* has no feature maps"):
        ClassifierGraph(ImageClassifier(keras.Sequential(flat)))

"""Controls: maps that know nothing, through the interface of every method."""

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.registry import METHODS, create
from dermlens.labels import HAM10000
from dermlens.model.image_classifier import ImageClassifier
from dermlens.quality.controls import (
    CONTROLS,
    control_names,
    create_controls,
    is_control,
    title,
    untrained_copy,
)
from explain_networks import smooth_images, trained_like

SIZE = (20, 30)


def named() -> ImageClassifier:
    return ImageClassifier(trained_like(SIZE), HAM10000)


def test_maps_are_what_their_names_say() -> None:
    model, images = named(), smooth_images(3, SIZE)
    made = create_controls(list(CONTROLS), model)
    maps = {name: one.attribute(images, "mel", seed=4).maps for name, one in made.items()}
    assert all(m.shape == (3, *SIZE) and m.dtype == np.float32 for m in maps.values())
    assert np.ptp(maps["uniform"]) == 0
    np.testing.assert_allclose(maps["darkness"], 255 - images.mean(axis=-1), atol=1e-3)
    bell = maps["centered_gaussian"][0]
    np.testing.assert_allclose(bell, bell[::-1, ::-1], atol=1e-6)
    assert np.unravel_index(bell.argmax(), SIZE) in [(9, 14), (9, 15), (10, 14), (10, 15)]
    assert bell[10, 0] == pytest.approx(bell[0, 15], rel=0.1)
    noise = maps["random"]
    assert abs(noise.mean() - 0.5) < 0.03 and abs(noise.std() - 12**-0.5) < 0.02
    alone = made["random"].attribute(images[1:2], "mel", seed=4).maps[0]
    np.testing.assert_array_equal(noise[1], alone)
    assert not np.array_equal(noise[1], made["random"].attribute(images[1:2], 0, seed=5).maps[0])


def test_controls_cost_nothing_and_take_targets_like_methods() -> None:
    model, images = named(), smooth_images(2, SIZE)
    darkness = create_controls(["darkness"], model)["darkness"]
    result = darkness.attribute(images, ["nv", "mel"])
    assert result.cost.forward == 0 and result.targets.tolist() == [5, 4]
    assert not result.signed and result.method == "darkness"
    predicted = darkness.attribute(images)
    np.testing.assert_array_equal(predicted.targets, np.asarray(model.model(images)).argmax(axis=1))
    with pytest.raises(UsageError, match="knows no classes"):
        darkness.attribute(images, "all")
    with pytest.raises(UsageError, match="Unknown control"):
        create_controls(["brightness"], model)


def test_untrained_network_keeps_values_but_not_their_places() -> None:
    model = trained_like(SIZE)
    before = model.get_weights()
    made = untrained_copy(ImageClassifier(model), seed=1)
    assert made is not None
    copy = made.model
    for a, b, c in zip(before, copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(np.sort(a.ravel()), np.sort(b.ravel()))
        np.testing.assert_array_equal(a, c)
    kernels = [k for k, weight in enumerate(model.weights) if weight.path.endswith("kernel")]
    for k in kernels:
        assert not np.array_equal(before[k], copy.get_weights()[k])


@pytest.mark.parametrize("name", ["grad_cam", "integrated_gradients"])
def test_untrained_methods_explain_the_untrained_network(name: str) -> None:
    model, images = trained_like(SIZE), smooth_images(2, SIZE)
    made = create_controls([f"untrained_{name}"], model, seed=3)[f"untrained_{name}"]
    copy = untrained_copy(ImageClassifier(model), seed=3)
    expected = create(name, copy, **METHODS[name].fixed).attribute(images, 2).maps
    np.testing.assert_array_equal(made.attribute(images, 2).maps, expected)
    trained = create(name, model).attribute(images, 2).maps
    assert np.abs(trained - expected).max() > 0.1 * np.abs(trained).max()


@pytest.mark.parametrize("bias", [True, False])
def test_a_standard_network_whose_last_layer_lost_its_activation_is_copied(bias: bool) -> None:
    import keras

    inputs = keras.Input((*SIZE, 3))
    maps = keras.layers.Conv2D(4, 3, name="maps")(keras.layers.Rescaling(1 / 255.0)(inputs))
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    dense = keras.layers.Dense(3, activation="softmax", use_bias=bias, name="answer")
    classifier = ImageClassifier(keras.Model(inputs, dense(pooled)))
    before = classifier.model.get_weights()
    copy = untrained_copy(classifier)
    assert copy is not None
    assert not any(a is b for a in copy.model.layers for b in classifier.model.layers)
    for a, b in zip(before, classifier.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be_copied_has_no_untrained_controls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import keras

    class Own(keras.Model):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.maps = keras.layers.Conv2D(width, 3)

        def call(self, x: np.ndarray) -> np.ndarray:
            return self.maps(x)

    inputs = keras.Input((*SIZE, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(Own(4)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(pooled))
    made = create_controls(["uniform", "untrained_integrated_gradients"], model)
    assert list(made) == ["uniform"]
    said = capsys.readouterr()
    assert "left out" in said.out + said.err


def test_names() -> None:
    names = control_names(["lime", "grad_cam", "integrated_gradients"])
    assert names[-2:] == ["untrained_grad_cam", "untrained_integrated_gradients"]
    assert len(names) == 6 and all(is_control(name) for name in names)
    assert not is_control("grad_cam") and title("untrained_grad_cam") == "Grad-CAM, untrained"
    assert title("kernel_shap") == "Kernel SHAP" and title("oracle") == "oracle"

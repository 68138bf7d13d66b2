"""Destroying a network stage by stage, and what the curves say."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.registry import METHODS, create
from dermlens.model.image_classifier import ImageClassifier
from dermlens.quality.randomization import (
    MOST_GROUPS,
    layer_groups,
    other_targets,
    randomization_curves,
    randomized,
    stage_steps,
    weighted_layers,
)
from explain_networks import smooth_images, trained_like

SIZE = (24, 36)
GRADIENT = [name for name, one in METHODS.items() if one.family != "perturbation"]


@pytest.fixture(scope="module")
def model() -> Any:
    return trained_like(SIZE)


def changed_weights(model: Any, layers: list[Any]) -> set[str]:
    before = model.get_weights()
    with randomized(model, layers):
        after = model.get_weights()
    names = [weight.path for weight in model.weights]
    pairs = zip(names, before, after, strict=True)
    return {name.split("/")[0] for name, a, b in pairs if not np.array_equal(a, b)}


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_at_the_first_step_only_the_last_layer_differs(order: str, model: Any) -> None:
    name, layers = stage_steps(model, order)[0]
    assert name == "logits" and changed_weights(model, layers) == {"logits"}


def test_resnet_is_destroyed_in_six_stages() -> None:
    from dermlens.model.classifier import Architecture, build_classifier

    model = build_classifier(Architecture("resnet50", (32, 32)))
    steps = stage_steps(model)
    assert [name for name, _ in steps] == ["logits", "conv5", "conv4", "conv3", "conv2", "conv1"]
    assert len(steps[-1][1]) == len(weighted_layers(model))
    alone = stage_steps(model, "independent")
    assert all(layer.name.startswith("conv4") for layer in alone[2][1])
    with pytest.raises(UsageError, match="Unknown order"):
        stage_steps(model, "upwards")


def test_names_without_stages_are_cut_into_even_parts() -> None:
    import keras

    inputs = keras.Input((4,))
    x = inputs
    for number in range(20):
        x = keras.layers.Dense(4, name=f"layer{number}")(x)
    groups = layer_groups(keras.Model(inputs, x))
    assert len(groups) == MOST_GROUPS and len(groups[0][1]) == 1
    assert sum(len(layers) for _, layers in groups) == 20
    assert max(len(layers) for _, layers in groups[1:]) == 3


def test_a_beginning_that_comes_back_is_no_stage_and_the_order_of_the_graph_counts() -> None:
    import keras

    inputs = keras.Input((8, 12, 3))
    body = keras.Sequential([keras.layers.Conv2D(4, 3, name="conv_b"),
                             keras.layers.BatchNormalization(name="norm_a"),
                             keras.layers.Conv2D(4, 3, name="conv_a")])  # fmt: skip
    pooled = keras.layers.GlobalAveragePooling2D()(body(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="head_z")(pooled))
    found = [(name, [layer.name for layer in layers]) for name, layers in layer_groups(model)]
    assert found == [("head_z", ["head_z"]), ("from conv_a", ["conv_a"]),
                     ("from norm_a", ["norm_a"]), ("from conv_b", ["conv_b"])]  # fmt: skip


def test_steps_reach_into_nested_and_subclassed_models_of_a_standard_network() -> None:
    import keras

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.Conv2D(4, 3)
            self.gain = self.add_weight(shape=(4,), initializer="ones", name="gain")

        def call(self, x: Any) -> Any:
            return self.first(x) * self.gain

    inputs = keras.Input((8, 12, 3))
    maps = keras.Sequential([keras.layers.Conv2D(3, 3, name="inner")], name="nest")(Own()(inputs))
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    outputs = keras.layers.Dense(3, activation="softmax", name="answer")(pooled)
    model = ImageClassifier(keras.Model(inputs, outputs)).model
    layers = weighted_layers(model)
    assert sum(len(layer.weights) for layer in layers) == len(model.weights)
    assert [layer.name.split("_")[0] for layer in layers] == ["own", "inner", "answer"]
    for name, destroyed in stage_steps(model, "independent"):
        before = model.get_weights()
        with randomized(model, destroyed):
            after = model.get_weights()
        changed = sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        assert changed, name


@pytest.mark.parametrize("name", GRADIENT)
def test_full_randomization_lowers_the_similarity_of_gradient_methods(
    name: str, model: Any
) -> None:
    images = smooth_images(3, SIZE)
    targets = np.array([4, 1, 5])
    explainer = create(name, model)
    steps = stage_steps(model)
    curves = randomization_curves(
        model, lambda: explainer.attribute(images, targets).maps, [steps[-1]], seed=1
    )
    assert curves["spearman"].shape == curves["ssim"].shape == (1, 3)
    assert curves["spearman"].mean() < 0.7 and curves["ssim"].mean() < 0.8


def test_a_map_that_ignores_the_model_keeps_its_similarity_and_weights_come_back(
    model: Any,
) -> None:
    fixed = np.random.default_rng(0).random((2, *SIZE))
    before = model.get_weights()
    curves = randomization_curves(model, lambda: fixed, stage_steps(model))
    np.testing.assert_allclose(curves["spearman"], 1.0)
    np.testing.assert_allclose(curves["ssim"], 1.0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_class_is_drawn_for_the_random_logit() -> None:
    targets = np.arange(7).repeat(30)
    others = other_targets(targets, 7, range(210))
    assert (others != targets).all() and set(others) == set(range(7))
    np.testing.assert_array_equal(others, other_targets(targets, 7, range(210)))
    with pytest.raises(UsageError, match="two classes"):
        other_targets(targets, 1, range(210))

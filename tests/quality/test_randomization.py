"""Destroying layers: which, when, and back again."""

import numpy as np
import pytest

from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.sampled_gradients import SmoothGrad
from dermlens.quality.randomization import randomized, stage_steps, weighted_layers
from explain_networks import smooth_images, trained_like


def changed(model: object, layers: list, seed: int = 0) -> set[str]:
    before = {layer.name: layer.get_weights() for layer in weighted_layers(model)}
    with randomized(model, layers, seed):
        return {
            layer.name
            for layer in weighted_layers(model)
            if not all(
                np.array_equal(a, b)
                for a, b in zip(before[layer.name], layer.get_weights(), strict=True)
            )
        }


@pytest.mark.parametrize("nested", [False, True])
def test_cascade_starts_at_the_last_layer_and_goes_down(nested: bool) -> None:
    model = trained_like((24, 36), nested=nested)
    for layer in weighted_layers(model):
        layer.set_weights([np.random.default_rng(0).random(w.shape) for w in layer.get_weights()])
    names = [layer.name for layer in weighted_layers(model)]
    assert names == ["conv1", "norm1", "conv2", "norm2", "logits"]
    steps = [layers for _, layers in stage_steps(model)]
    assert [sorted(changed(model, s)) for s in steps[:2]] == [["logits"], ["logits", "norm2"]]
    assert changed(model, steps[-1]) == set(names)
    alone = [layers for _, layers in stage_steps(model, "independent")]
    assert [changed(model, s) for s in alone] == [{name} for name in names[::-1]]


def test_weights_come_back_even_after_an_error() -> None:
    model = trained_like((24, 36))
    before = model.get_weights()
    with pytest.raises(RuntimeError), randomized(model, weighted_layers(model)):
        raise RuntimeError
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_values_stay_and_only_their_order_changes() -> None:
    model = trained_like((24, 36))
    layer = weighted_layers(model)[0]
    before = layer.get_weights()[0]
    with randomized(model, [layer], seed=2):
        after = layer.get_weights()[0]
        np.testing.assert_array_equal(np.sort(after.ravel()), np.sort(before.ravel()))
    with randomized(model, weighted_layers(model), seed=2):
        np.testing.assert_array_equal(after, layer.get_weights()[0])


@pytest.mark.parametrize("kind", [GradCAM, SmoothGrad])
def test_explainers_see_the_destroyed_weights(kind: type) -> None:
    model, images = trained_like((24, 36)), smooth_images(2, (24, 36))
    explainer = kind(model)
    before = explainer.attribute(images, 4).maps
    with randomized(model, weighted_layers(model), seed=1):
        during = explainer.attribute(images, 4).maps
    after = explainer.attribute(images, 4).maps
    np.testing.assert_array_equal(before, after)
    for a, b in zip(before, during, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.95

"""What every method must keep, on every kind of network."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.output import Contrast, Logit, Probability
from dermlens.explainers.registry import METHODS, SIX, create
from dermlens.labels import HAM10000
from dermlens.model.image_classifier import ImageClassifier
from explain_networks import smooth_images, trained_like

SMALL: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"n_steps": 6, "tolerance": None},
    "smooth_grad": {"n_samples": 5},
    "gradient_shap": {"n_samples": 5},
    "occlusion": {"patch_size": 9, "stride": 6},
    "lime": {"superpixels": 12, "n_samples": 40},
    "gp_shap": {"superpixels": 12, "n_samples": 60},
    "kernel_shap": {"superpixels": 12, "n_samples": 40},
    "rise": {"n_samples": 23, "cells": 3},
    "region_gradients": {"n_steps": 3, "regions": (12, 30)},
    "consensus": {"n_steps": 3, "regions": (12, 30)},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "flat": {"size": (32, 32)},
    "nested": {"size": (32, 32), "nested": True},
    "dense blocks": {"size": (32, 32), "dense_blocks": True},
    "not square": {"size": (24, 40)},
    "odd": {"size": (29, 37)},
    "mixed_bfloat16": {"size": (24, 40), "precision": "mixed_bfloat16"},
    "mixed_float16": {"size": (24, 40), "precision": "mixed_float16"},
}
ALL = list(METHODS)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return {
        name: ImageClassifier(trained_like(**options), HAM10000)
        for name, options in NETWORKS.items()
    }


def build(name: str, model: Any) -> Any:
    return create(name, model, **SMALL.get(name, {}))


def expected_passes(name: str, explainer: Any, count: int, size: tuple[int, int]) -> tuple:
    """Forward and backward passes that a call with one target per image must pay."""
    if name in ("grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam", "finer_cam"):
        return count, 0
    if name in ("fused_cam", "gated_cam"):
        return 2 * count, count
    if name in ("region_gradients", "consensus"):
        # Two paths, each with the outputs at both of its ends; and the scale-fused CAM.
        fused = 1 if name == "consensus" else 0
        return count * (2 * 5 + 2 * fused), count * (2 * 3 + fused)
    if name == "multi_occlusion":
        return count * (1 + sum(len(boxes) for _, boxes in explainer.levels(size))), 0
    if name == "integrated_gradients":
        return count * (explainer.n_steps + 2), count * explainer.n_steps
    if name in ("smooth_grad", "gradient_shap"):
        return count * (explainer.n_samples + 1), count * explainer.n_samples
    if name == "occlusion":
        return count * (len(explainer.boxes(size)) + 1), 0
    if name == "rise":
        return count * (explainer.n_samples + 1), 0
    return count * explainer.bank.n_samples, 0


def largest(maps: np.ndarray) -> float:
    return max(float(np.abs(maps).max()), 1e-12)


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("name", ALL)
def test_method_keeps_the_contract(name: str, network: str, networks: dict[str, Any]) -> None:
    model, size = networks[network], NETWORKS[network]["size"]
    images = smooth_images(4, size)
    explainer = build(name, model)
    result = explainer.attribute(images, "mel", batch_size=4, seed=3)

    assert result.maps.shape == (4, *size) and result.maps.dtype == np.float32
    assert np.isfinite(result.maps).all()
    assert (np.ptp(result.maps, axis=(1, 2)) > 0).all(), "a blank map explains nothing"
    assert result.targets.tolist() == [4] * 4
    logits = np.asarray(model.model(images.astype(np.float32), training=False), np.float32)
    np.testing.assert_allclose(result.values, logits[:, 4], rtol=2e-2, atol=2e-2)
    assert (result.cost.forward, result.cost.backward) == expected_passes(name, explainer, 4, size)
    explainer.attribute(images[1:], "nv", batch_size=4, seed=3)
    assert explainer.traces == 1, "one traced function serves any images and targets"

    scale = largest(result.maps)
    # In batches of three, the fourth image is alone.
    again = build(name, model).attribute(images, "mel", batch_size=3, seed=3)
    assert np.abs(again.maps - result.maps).max() <= TOLERANCE * scale


@pytest.mark.parametrize("name", ALL)
def test_all_classes_at_once_equal_each_alone(name: str, networks: dict[str, Any]) -> None:
    model = networks["not square"]
    images = smooth_images(2, (24, 40), seed=1)
    together = build(name, model).attribute(images, "all", seed=5)
    assert together.maps.shape == (2, 7, 24, 40) and together.values.shape == (2, 7)
    for target in (0, 6):
        alone = build(name, model).attribute(images, target, seed=5)
        np.testing.assert_allclose(
            together.maps[:, target], alone.maps, atol=2e-5 * largest(alone.maps)
        )
        np.testing.assert_allclose(together.values[:, target], alone.values, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_deterministic_and_seeded(name: str, networks: dict[str, Any]) -> None:
    model, images = networks["flat"], smooth_images(2, (32, 32), seed=2)
    maps = [build(name, model).attribute(images, 4, seed=seed).maps for seed in (0, 0, 1)]
    np.testing.assert_array_equal(maps[0], maps[1])
    random = name in ("smooth_grad", "gradient_shap", "rise", "lime")
    assert (not np.array_equal(maps[0], maps[2])) == random or name.endswith("_shap")


@pytest.mark.parametrize("name", ALL)
def test_targets_by_image_and_predicted(name: str, networks: dict[str, Any]) -> None:
    model, images = networks["flat"], smooth_images(3, (32, 32), seed=4)
    predicted = np.asarray(model.model(images.astype(np.float32))).argmax(axis=1)
    explainer = build(name, model)
    assert explainer.attribute(images).targets.tolist() == predicted.tolist()
    mixed = explainer.attribute(images, ["akiec", 5, "vasc"], batch_size=2)
    assert mixed.targets.tolist() == [0, 5, 6]
    single = build(name, model).attribute(images[1:2], 5, batch_size=2)
    np.testing.assert_allclose(mixed.maps[1], single.maps[0], atol=2e-5 * largest(single.maps))


@pytest.mark.parametrize("name", ALL)
def test_every_score_gives_its_own_map(name: str, networks: dict[str, Any]) -> None:
    """An accepted output must not be ignored: logits and probabilities explain differently."""
    model, images = networks["flat"], smooth_images(1, (32, 32), seed=6)
    maps = {
        str(output): build(name, model).attribute(images, 4, output=output).maps[0]
        for output in (Logit(), Probability(), Contrast(5))
    }
    shapes = [m.ravel() / max(np.abs(m).max(), 1e-12) for m in maps.values()]
    assert np.abs(shapes[0] - shapes[1]).max() > 1e-3
    assert np.abs(shapes[0] - shapes[2]).max() > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_new_weights_change_the_map(name: str) -> None:
    """No explainer may keep a copy of the weights it was built with."""
    model, images = trained_like((24, 24)), smooth_images(1, (24, 24), seed=7)
    explainer = build(name, model)
    before = explainer.attribute(images, 4, seed=0).maps
    other = trained_like((24, 24), seed=5)
    model.set_weights([w + 0.3 * np.abs(w).mean() * i for i, w in enumerate(other.get_weights())])
    after = explainer.attribute(images, 4, seed=0).maps
    scaled = [m / largest(m) for m in (before, after)]
    assert np.abs(scaled[0] - scaled[1]).max() > 0.05


@pytest.mark.parametrize("name", ALL)
def test_progress_counts_every_image(name: str, networks: dict[str, Any]) -> None:
    told: list[int] = []
    images = smooth_images(5, (32, 32))
    build(name, networks["flat"]).attribute(images, 4, batch_size=2, progress=told.append)
    assert sum(told) == 5 and len(told) > 1


@pytest.mark.parametrize("name", ALL)
def test_wrong_images_and_targets_are_refused(name: str, networks: dict[str, Any]) -> None:
    explainer = build(name, networks["not square"])
    with pytest.raises(UsageError, match="do not fit the model"):
        explainer.attribute(smooth_images(1, (40, 24)))
    with pytest.raises(UsageError, match="at least one image"):
        explainer.attribute(np.zeros((0, 24, 40, 3), np.uint8))
    for size in (0, 2.5, "8", True):
        with pytest.raises(UsageError, match="The batch size must be a whole number"):
            explainer.attribute(smooth_images(1, (24, 40)), 4, batch_size=size)
    with pytest.raises(UsageError, match="Unknown target class 'melanoma'"):
        explainer.attribute(smooth_images(1, (24, 40)), "melanoma")


def test_registry_names_the_six_and_describes_all() -> None:
    assert set(SIX) <= set(METHODS)
    for name, method in METHODS.items():
        assert method.name == name
        assert method.question.endswith((".", "?")) and "\n" not in method.question
    with pytest.raises(UsageError, match="Unknown method 'gradcam'"):
        create("gradcam", None)

"""Every metric, called alike, on maps from anywhere."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.grad_cam import GradCAM
from dermlens.lesion.consistency import CONSISTENCY
from dermlens.model.image_classifier import ImageClassifier
from dermlens.quality import localization, metrics
from dermlens.quality.evaluations import Evaluations
from dermlens.quality.metrics import LOCALIZATION, METRICS, measure
from dermlens.quality.randomization import randomization_curves, stage_steps, weighted_layers
from dermlens.quality.removal import area_under, removal_places
from explain_networks import smooth_images, trained_like

SIZE = (24, 36)
KNOWN = {**METRICS, **CONSISTENCY}
GENERATOR = np.random.default_rng(0)
MAPS = GENERATOR.normal(size=(2, *SIZE))
MASKS = GENERATOR.random((2, *SIZE)) < 0.3
IMAGES = smooth_images(2, SIZE)


@pytest.fixture(scope="module")
def model() -> Any:
    return trained_like(SIZE)


def changing(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Somebody else's explainer: a map for each image and class."""
    return np.asarray(images)[..., 0] * 1.0 + 30 * np.asarray(targets)[:, None, None]


@pytest.mark.parametrize("name", KNOWN)
def test_every_metric_takes_the_same_call_and_gives_one_number_per_image(
    name: str, model: Any
) -> None:
    metric = KNOWN[name]
    more = {"masks": MASKS, "explainer": changing, "groups": ["a", "a"], "seed": 3}
    values = metric(model, IMAGES, MAPS, [4, 1], **more)
    assert values.shape == (2,) and values.dtype == np.float64
    found = values[np.isfinite(values)]
    assert (found >= metric.low).all() and (found <= metric.high).all()
    assert len(found) == 2 or name == "photo_consistency", "one lesion has no control"
    if name not in CONSISTENCY:
        alone = [
            metric(
                model, IMAGES[k : k + 1], MAPS[k : k + 1], t, **{**more, "masks": MASKS[k : k + 1]}
            )
            for k, t in enumerate((4, 1))
        ]
        np.testing.assert_allclose(values, np.concatenate(alone), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", KNOWN)
def test_maps_that_are_not_finite_or_do_not_fit_are_refused(name: str, model: Any) -> None:
    more = {"masks": MASKS, "explainer": changing, "groups": ["a", "a"]}
    for bad in (np.nan, np.inf):
        wrong = MAPS.copy()
        wrong[1, 3, 4] = bad
        with pytest.raises(UsageError, match="not finite"):
            KNOWN[name](model, IMAGES, wrong, 4, **more)
    with pytest.raises(UsageError, match=r"\(N, H, W\)"):
        KNOWN[name](model, IMAGES, MAPS[0], 4, **more)
    if KNOWN[name].needs:
        with pytest.raises(UsageError, match=r"same size|Give one for each"):
            KNOWN[name](model, IMAGES, MAPS[:1], 4, **more)


@pytest.mark.parametrize("name", [n for n, one in KNOWN.items() if one.needs])
def test_what_is_missing_is_named(name: str, model: Any) -> None:
    with pytest.raises(UsageError, match="Give"):
        KNOWN[name](None, None, MAPS)


@pytest.mark.parametrize("name", LOCALIZATION)
def test_masks_say_clearly_what_is_inside(name: str) -> None:
    expected = getattr(localization, name)(MAPS, MASKS)
    for same in (MASKS.astype(np.uint8) * 255, MASKS.astype(float), np.where(MASKS, 3, 1)):
        np.testing.assert_array_equal(METRICS[name](None, None, MAPS, masks=same), expected)
    empty = np.zeros(MASKS.shape, np.uint8)
    assert np.isnan(METRICS[name](None, None, MAPS, masks=empty)).all()
    soft = MASKS * 250 + (GENERATOR.random(MASKS.shape) < 0.01) * 3
    for vague in (soft, GENERATOR.random(MASKS.shape), np.full(MASKS.shape, np.nan)):
        with pytest.raises(UsageError, match="Threshold it"):
            METRICS[name](None, None, MAPS, masks=vague)
    with pytest.raises(UsageError, match="same size"):
        METRICS[name](None, None, MAPS, masks=MASKS[:, :4])


def test_values_are_those_of_the_formulas(model: Any) -> None:
    by, pixels = Evaluations(model), IMAGES.astype(np.float32)
    found = measure(["deletion", "insertion", "road"], model, IMAGES, MAPS, [4, 1], seed=2)
    for k, (one, target) in enumerate(zip(by.of(pixels, 2), (4, 1), strict=True)):
        places = removal_places(MAPS[k], 2)
        assert found["deletion"][k] == area_under(one.deletion(places, target))
        assert found["insertion"][k] == area_under(one.insertion(places, target))
        most, least = one.imputed(places, target)
        assert found["road"][k] == (least - most).mean() / 2
    np.testing.assert_array_equal(found["road"], metrics.road(model, IMAGES, MAPS, [4, 1], seed=2))


def test_the_most_probable_class_is_measured_unless_one_is_named(model: Any) -> None:
    predicted = np.asarray(model(IMAGES.astype(np.float32))).argmax(axis=1)
    for name in ("insertion", "mufidelity"):
        default = METRICS[name](model, IMAGES, MAPS)
        np.testing.assert_array_equal(default, METRICS[name](model, IMAGES, MAPS, predicted))
        other = METRICS[name](model, IMAGES, MAPS, (predicted + 1) % 7)
        assert (default != other).all()


def test_pixels_are_in_the_range_of_the_classifier() -> None:
    import keras

    inner = trained_like(SIZE)
    inputs = keras.Input((*SIZE, 3))
    outer = keras.Model(inputs, inner(keras.layers.Rescaling(255.0)(inputs)))
    unit = ImageClassifier(outer, value_range=(0, 1))
    names = [name for name, one in METRICS.items() if "weights" not in one.needs]
    seen: list[np.ndarray] = []

    def explain(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        seen.append(np.asarray(images))
        return changing(images, 0 * targets)

    more: dict[str, Any] = {"masks": MASKS, "explainer": explain}
    expected = measure(names, inner, IMAGES, MAPS, 4, **more)
    assert seen[0].max() > 100
    seen.clear()
    found = measure(names, unit, IMAGES / np.float32(255), MAPS, 4, **more)
    assert seen[0].max() < 1.1, "an explainer of this classifier gets its range of values"
    for name in names:
        if METRICS[name].family not in ("robustness", "randomization"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-3, err_msg=name)


def test_explainers_and_functions_serve_alike(model: Any) -> None:
    cam = GradCAM(model)
    maps = cam.attribute(IMAGES, 4).maps

    def explain(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return cam.attribute(images, targets).maps

    names = [name for name, one in METRICS.items() if "explainer" in one.needs]
    first, second = (measure(names, model, IMAGES, maps, 4, explainer=e) for e in (cam, explain))
    for name in names:
        np.testing.assert_array_equal(first[name], second[name])
    same = metrics.random_logit(model, IMAGES, maps, 4, explainer=cam, others=4)
    np.testing.assert_allclose(same, 1.0)
    assert (first["random_logit"] < 0.999).all()
    with pytest.raises(UsageError, match="not finite"):
        metrics.equivariance(model, IMAGES, maps, 4, explainer=lambda i, t: changing(i, t) * np.nan)


def test_randomization_is_the_end_of_the_cascade_and_the_weights_come_back(model: Any) -> None:
    cam, before = GradCAM(model), model.get_weights()
    maps = cam.attribute(IMAGES, 4).maps
    names = ["randomization_spearman", "randomization_ssim"]
    found = measure(names, model, IMAGES, maps, 4, explainer=cam, seed=5)
    last = stage_steps(model)[-1:]
    curves = randomization_curves(
        model, lambda: cam.attribute(IMAGES, 4).maps, last, reference=maps, seed=5
    )
    np.testing.assert_array_equal(found[names[0]], curves["spearman"][0])
    np.testing.assert_array_equal(found[names[1]], curves["ssim"][0])
    assert len(last[0][1]) == len(weighted_layers(model))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shared_evaluations_are_paid_once_for_all_maps(model: Any) -> None:
    by = Evaluations(model, squares=6, sets=5)
    for seed in range(3):
        maps = np.random.default_rng(seed).random((2, *SIZE))
        measure(["deletion", "infidelity", "mufidelity"], model, IMAGES, maps, 4, evaluations=by)
    assert by.cost.forward == 2 * (3 + 1 + 6 + 5) + 3 * 2 * 9
    with pytest.raises(UsageError, match="another model"):
        metrics.deletion(trained_like(SIZE, seed=1), IMAGES, MAPS, 4, evaluations=by)


@pytest.mark.parametrize("name", [n for n, one in METRICS.items() if one.needs == {"model"}])
def test_new_weights_are_asked_again(name: str) -> None:
    """Remembered by pixels alone, the old network would answer for the new one."""
    model = trained_like(SIZE)
    by = Evaluations(model)
    before = METRICS[name](model, IMAGES, MAPS, 4, evaluations=by)
    weights = model.get_weights()
    model.set_weights([w[..., ::-1] for w in weights])
    after = METRICS[name](model, IMAGES, MAPS, 4, evaluations=by)
    np.testing.assert_array_equal(after, METRICS[name](model, IMAGES, MAPS, 4))
    assert (after != before).all()
    model.set_weights(weights)
    np.testing.assert_array_equal(METRICS[name](model, IMAGES, MAPS, 4, evaluations=by), before)


def test_consistency_is_that_of_the_two_photographs_of_a_lesion() -> None:
    images = np.concatenate([IMAGES[:1], IMAGES[:1], IMAGES[1:], IMAGES[1:], IMAGES[:1]])
    masks = np.zeros((5, *SIZE), bool)
    masks[:, 6:18, 8:28] = True
    maps = np.concatenate([MAPS[:1], MAPS[:1], MAPS[1:], MAPS[1:], MAPS[:1]])
    groups = ["a", "a", "b", "b", "c"]
    zones = CONSISTENCY["zone_consistency"](None, None, maps, masks=masks, groups=groups)
    np.testing.assert_allclose(zones[:4], 1.0)
    photos = CONSISTENCY["photo_consistency"](None, images, maps, masks=masks, groups=groups)
    assert np.isnan([zones[4], photos[4]]).all() and (photos[:4] > 0.5).all()
    with pytest.raises(UsageError, match="of one lesion"):
        CONSISTENCY["zone_consistency"](None, None, maps, masks=masks, groups=range(5))

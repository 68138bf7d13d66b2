"""Deletion, insertion and ROAD against curves computed one image at a time."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.baselines import baseline_image
from dermlens.quality.evaluations import Evaluated, Evaluations
from dermlens.quality.removal import ROAD_LEVELS, area_under, removal_places
from explain_networks import function_network, smooth_images, trained_like

SIZE = (10, 14)


def evidence(image: np.ndarray) -> np.ndarray:
    """What the bright network reads: how much redder than 150 each pixel is."""
    return np.maximum(image[..., 0] - 150.0, 0)


def bright_network() -> Any:
    """Class 1 for red pixels, wherever they are; nothing else counts."""
    import tensorflow as tf

    def logits(pixels: Any) -> Any:
        red = tf.nn.relu(pixels[..., 0] - 150.0)
        total = tf.reduce_sum(red, axis=[1, 2]) / 300.0 - 2.0
        return tf.stack([tf.zeros_like(total), total], axis=1)

    return function_network(SIZE, logits)


def red_spot(seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).uniform(90, 110, (*SIZE, 3)).astype(np.float32)
    image[2:6, 3:9, 0] = np.random.default_rng(seed + 1).uniform(180, 250, (4, 6))
    return image


@pytest.fixture(scope="module")
def curves() -> Evaluations:
    return Evaluations(bright_network(), steps=5, batch_size=3)


def seen(by: Evaluations, image: np.ndarray, seed: int = 0) -> Evaluated:
    return by.of(image[None], seed)[0]


def test_places_follow_the_values_and_ties_favor_no_part_of_the_image() -> None:
    values = np.array([[3.0, 1.0, -2.0], [4.0, 2.0, -7.0]])
    expected = np.array([[1, 3, 4], [0, 2, 5]]) / 6
    np.testing.assert_allclose(removal_places(values), expected, atol=1e-6)
    places = np.stack([removal_places(np.full((20, 30), 7.0), seed) for seed in range(40)])
    for part in (places[:, :10], places[:, 10:], places[:, :, :15], places[:, :, 15:]):
        assert abs(part.mean() - 0.5) < 0.01
    assert np.abs(places.mean(axis=0) - 0.5).max() < 0.25, "no pixel always goes first"
    # A map with a plateau of zeros: its order is not that of rows.
    half = np.zeros((20, 30))
    half[0, 0] = 1.0
    rest = removal_places(half).ravel()[1:]
    assert abs(np.corrcoef(rest, np.arange(599))[0, 1]) < 0.15


@pytest.mark.parametrize("kind", ["deletion", "insertion"])
def test_curves_equal_those_of_images_made_one_by_one(kind: str, curves: Evaluations) -> None:
    image = np.random.default_rng(4).uniform(60, 215, (*SIZE, 3)).astype(np.float32)
    map_ = np.random.default_rng(3).normal(size=SIZE)
    places = removal_places(map_)
    first, fill = kind == "insertion", baseline_image(image, "blur")
    if not first:
        fill = baseline_image(image, "border")
    order = np.argsort(-map_.ravel())
    expected = []
    for step in range(6):
        changed = np.zeros(map_.size, bool)
        changed[order[: round(step / 5 * map_.size)]] = True
        keep = changed if first else ~changed
        mixed = np.where(keep.reshape(SIZE)[..., None], image, fill)
        expected.append(curves.classifier.probabilities(curves.network.logits(mixed[None]))[0, 1])
    found = getattr(seen(curves, image), kind)(places, 1)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.max() - found.min() > 0.1, "the curve must move to prove anything"


def test_perfect_and_worst_maps_have_the_extreme_areas(curves: Evaluations) -> None:
    image = red_spot()
    best, worst = evidence(image), -evidence(image)
    noise = np.random.default_rng(0).random(SIZE)
    areas = {}
    for name, map_ in (("best", best), ("noise", noise), ("worst", worst)):
        places = removal_places(map_)
        areas[name] = (
            area_under(seen(curves, image).deletion(places, 1)),
            area_under(seen(curves, image).insertion(places, 1)),
        )
    assert areas["best"][0] < areas["noise"][0] < areas["worst"][0]
    assert areas["best"][1] > areas["noise"][1] > areas["worst"][1]
    # The spot is 24 of 140 pixels: gone after the first fifth, last to go in the worst order.
    with_spot, without = seen(curves, image).deletion(removal_places(best), 1)[[0, 1]]
    assert with_spot > 0.9 and without < 0.2
    expected = (with_spot / 2 + 4 * without + without / 2) / 5
    assert areas["best"][0] == pytest.approx(expected, abs=1e-3)


def test_area_is_that_of_trapezoids() -> None:
    assert area_under(np.array([1.0, 1.0, 1.0])) == pytest.approx(1.0)
    assert area_under(np.array([0.9, 0.5, 0.3, 0.1, 0.1])) == pytest.approx(0.35)


def test_road_is_positive_for_the_truth_and_changes_sign_with_the_map(
    curves: Evaluations,
) -> None:
    image = red_spot(2)
    # Without ties the least important pixels of a map are the most important of its negative.
    map_ = evidence(image) + np.random.default_rng(0).random(SIZE)
    roads = []
    for sign in (1, -1):
        most, least = seen(curves, image).imputed(removal_places(sign * map_), 1)
        roads.append((least - most).mean() / 2)
    assert roads[0] > 0.2 and roads[1] == pytest.approx(-roads[0], abs=1e-6)
    chance = seen(curves, image).imputed(removal_places(np.ones(SIZE)), 1)
    assert abs((chance[1] - chance[0]).mean() / 2) < roads[0] / 3


def test_passes_are_counted_and_what_every_map_shares_is_paid_once() -> None:
    model = trained_like((12, 16))
    curves = Evaluations(model, steps=10, batch_size=8)
    images = smooth_images(2, (12, 16)).astype(np.float32)
    for image in images:
        for seed in range(3):
            places = removal_places(np.random.default_rng(seed).random((12, 16)))
            one = seen(curves, image)
            one.deletion(places, 2), one.insertion(places, 2), one.imputed(places, 2)
    assert curves.cost.forward == 2 * (3 + 3 * (2 * 9 + 2 * len(ROAD_LEVELS)))
    assert curves.traces == 2


def test_values_do_not_depend_on_other_images(curves: Evaluations) -> None:
    images = [red_spot(seed) for seed in range(3)]
    maps = [evidence(image) for image in images]

    def values(number: int, fresh: Evaluations) -> np.ndarray:
        places = removal_places(maps[number], 5)
        one = seen(fresh, images[number])
        return np.append(one.imputed(places, 1), one.deletion(places, 1))

    alone = [values(k, Evaluations(curves.classifier, steps=5, batch_size=3)) for k in range(3)]
    for k in (2, 0, 1, 2):
        np.testing.assert_array_equal(values(k, curves), alone[k])


def test_one_pixel_image_and_bad_arguments() -> None:
    import tensorflow as tf

    model = function_network((1, 1), lambda x: tf.reduce_mean(x, axis=[1, 2])[:, :2] / 100.0)
    image = np.full((1, 1, 3), 90, np.float32)
    places = removal_places(np.ones((1, 1)))
    one = seen(Evaluations(model), image)
    for curve in (one.deletion(places, 0), one.insertion(places, 0)):
        assert curve.shape == (11,) and np.isfinite(curve).all()
    assert np.isfinite(one.imputed(places, 0)).all()
    with pytest.raises(UsageError, match="removal step"):
        Evaluations(model, steps=0)
    with pytest.raises(UsageError, match="must be"):
        removal_places(np.zeros(4))

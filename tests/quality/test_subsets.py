"""Infidelity and MuFidelity on models whose reactions are known."""

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.explainers.baselines import baseline_image
from dermlens.quality.evaluations import Evaluations
from dermlens.quality.subsets import (
    Reactions,
    box_sums,
    cell_sums,
    draw_boxes,
    infidelity,
    mufidelity,
)
from explain_networks import linear_network, smooth_images, trained_like

SIZE = (12, 18)


def linear() -> tuple[Evaluations, np.ndarray, np.ndarray]:
    """A linear model, an image, and each pixel's exact contribution to logit 1, (H, W)."""
    weights = np.random.default_rng(0).normal(size=(*SIZE, 3, 2)) / 100
    image = smooth_images(1, SIZE, seed=1)[0].astype(np.float32)
    contribution = ((image - baseline_image(image, "border")) * weights[..., 1]).sum(axis=-1)
    return Evaluations(linear_network(weights), batch_size=16), image, contribution


def scores(map_: np.ndarray, reactions: Reactions, target: int = 1) -> tuple[float, float]:
    return (
        infidelity(box_sums(map_, reactions.boxes), reactions.box_drops[:, target]),
        mufidelity(
            cell_sums(map_, reactions.labels, reactions.sets), reactions.set_drops[:, target]
        ),
    )


def test_perfect_inverted_and_constant_maps_on_a_linear_model() -> None:
    subsets, image, contribution = linear()
    reactions = subsets.of(image[None])[0].reactions
    for scale in (1.0, 1e-6, 50.0):
        assert scores(scale * contribution, reactions) == pytest.approx((0.0, 1.0), abs=1e-5)
    assert scores(-contribution, reactions) == pytest.approx((1.0, -1.0), abs=1e-5)
    assert scores(np.zeros(SIZE), reactions) == (1.0, 0.0)
    assert scores(np.full(SIZE, 3.3), reactions)[1] == 0.0, "a constant map foretells nothing"
    noise = np.random.default_rng(5).normal(size=SIZE)
    assert scores(noise, reactions)[0] > 0.5 and abs(scores(noise, reactions)[1]) < 0.6


def test_drops_are_those_of_images_with_the_part_covered() -> None:
    subsets, image, _ = linear()
    reactions = subsets.of(image[None], seed=3)[0].reactions
    model, skin = subsets.classifier.model, baseline_image(image, "border")
    whole = np.asarray(model(image[None]))[0]
    for row in (0, 7, 31):
        top, bottom, left, right = reactions.boxes[row]
        covered = image.copy()
        covered[top:bottom, left:right] = skin[top:bottom, left:right]
        np.testing.assert_allclose(
            reactions.box_drops[row], whole - np.asarray(model(covered[None]))[0], atol=1e-4
        )
        gone = reactions.sets[row][reactions.labels]
        covered = np.where(gone[..., None], skin, image)
        np.testing.assert_allclose(
            reactions.set_drops[row], whole - np.asarray(model(covered[None]))[0], atol=1e-4
        )
    assert reactions.box_drops.shape == (60, 2) and reactions.set_drops.shape == (60, 2)
    assert subsets.cost.forward == 121 and subsets.traces == 1


def test_sums_in_boxes_and_cells_are_plain_sums() -> None:
    generator = np.random.default_rng(2)
    map_ = generator.normal(size=SIZE)
    boxes = draw_boxes(*SIZE, 50, generator)
    expected = [map_[t:b, a:z].sum() for t, b, a, z in boxes]
    np.testing.assert_allclose(box_sums(map_, boxes), expected, atol=1e-9)
    assert (boxes[:, 1] > boxes[:, 0]).all() and (boxes[:, 3] > boxes[:, 2]).all()
    labels = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 5
    sets = np.array([[True, False, True, False, False]])
    expected = map_[np.isin(labels, [0, 2])].sum()
    assert cell_sums(map_, labels, sets)[0] == pytest.approx(expected)


def test_edges_of_the_image_are_covered_as_often_as_its_middle() -> None:
    boxes = draw_boxes(20, 20, 3000, np.random.default_rng(0))
    hits = np.zeros((20, 20))
    for top, bottom, left, right in boxes:
        hits[top:bottom, left:right] += 1
    assert hits[0, 0] > 0.6 * hits[10, 10]


def test_hand_computed_values() -> None:
    # Foretold (1, 2), reactions (2, 2): b = 6 / 5, error ((2 - 1.2)² + (2 - 2.4)²) / 8.
    assert infidelity(np.array([1.0, 2.0]), np.array([2.0, 2.0])) == pytest.approx(0.8 / 8)
    assert np.isnan(infidelity(np.array([1.0, 2.0]), np.zeros(2)))
    assert mufidelity(np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 1.0])) == pytest.approx(
        np.corrcoef([1, 2, 4], [0, 1, 1])[0, 1]
    )
    assert np.isnan(mufidelity(np.array([1.0, 2.0, 4.0]), np.full(3, 0.2)))


def test_draws_depend_on_seed_and_image_alone_and_serve_every_class() -> None:
    model, images = trained_like(SIZE), smooth_images(2, SIZE)
    subsets = Evaluations(model, squares=6, sets=6, batch_size=5)
    first = subsets.of(images[:1], seed=1)[0].reactions
    between = subsets.of(images[1:], seed=1)[0].reactions
    subsets.forget()
    assert not np.array_equal(between.sets, first.sets)
    again = subsets.of(images[:1], seed=1)[0].reactions
    for one, other in zip(vars(first).values(), vars(again).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(first.sets, subsets.of(images[:1], seed=2)[0].reactions.sets)
    assert first.box_drops.shape == (6, 7)
    assert len(set(first.sets.sum(axis=1).tolist())) == 1, "sets are of one size"


def test_one_pixel_image_and_bad_arguments() -> None:
    subsets = Evaluations(linear_network(np.ones((1, 1, 3, 2)) / 9), squares=3, sets=3)
    reactions = subsets.of(np.full((1, 1, 1, 3), 80, np.float32))[0].reactions
    assert np.isfinite(reactions.box_drops).all() and reactions.sets.all()
    with pytest.raises(UsageError, match="3 sets"):
        Evaluations(trained_like(SIZE), sets=1)

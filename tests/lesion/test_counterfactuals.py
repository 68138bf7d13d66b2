"""Changes of pictures for networks of which is known what they look at."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.lesion.counterfactuals import MOST_PASSES, ChangeFinder, plain_skin
from dermlens.lesion.recoloring import LesionColors, lesion_colors, recolored
from dermlens.lesion.relevance import lab_colors
from dermlens.model.image_classifier import ImageClassifier
from explain_networks import function_network

SIZE = (48, 64)
PIECES = (np.arange(48)[:, None] // 8 * 8 + np.arange(64)[None] // 8).astype(np.int32)
SQUARE = np.zeros(SIZE, bool)
SQUARE[16:24, 24:32] = True
OUTLINE = np.zeros(SIZE, bool)
OUTLINE[12:34, 18:44] = True
SKIN, DARK = (220.0, 180.0, 160.0), (90.0, 55.0, 45.0)


def lesion() -> np.ndarray:
    image = np.empty((*SIZE, 3), np.float32)
    image[:] = SKIN
    image[OUTLINE] = DARK
    return image


def looks_at(where: np.ndarray, **more: Any) -> ImageClassifier:
    """Answers "dark" while the mean red inside a region is below 150."""
    import tensorflow as tf

    weight = tf.constant(where[..., None] * np.array([1.0, 0, 0]) / where.sum(), tf.float32)

    def logits(images: Any) -> Any:
        red = tf.reduce_sum(images * weight, axis=(1, 2, 3))
        return tf.stack([(150.0 - red) / 20.0, tf.zeros_like(red)], axis=1)

    return ImageClassifier(function_network(SIZE, logits), ["dark", "light"], **more)


@pytest.fixture(scope="module")
def finder() -> ChangeFinder:
    colors = {"light": LesionColors((90.0, 5.0, 15.0), (2.0, 1.0, 1.0))}
    return ChangeFinder(looks_at(SQUARE), pieces=PIECES, colors=colors)


def test_the_square_it_looks_at_is_necessary_and_sufficient(finder: ChangeFinder) -> None:
    changes = finder.changes(lesion(), OUTLINE)
    assert finder.classifier.classes[changes.answer] == "dark"
    for kind in ("necessary", "sufficient"):
        change = changes.found[kind]
        assert np.array_equal(change.where, SQUARE), kind
        assert change.irreducible and change.area == SQUARE.mean()
        assert changes.inside(kind) == 1.0
    necessary, sufficient = changes.found["necessary"], changes.found["sufficient"]
    assert necessary.changed and not sufficient.changed
    assert np.array_equal(np.asarray(necessary.image)[~SQUARE], lesion()[~SQUARE])
    assert np.array_equal(np.asarray(sufficient.image)[SQUARE], lesion()[SQUARE])
    assert changes.passes <= MOST_PASSES
    assert changes.scorer == "float32"


def test_probabilities_are_those_of_the_pictures_shown(finder: ChangeFinder) -> None:
    changes = finder.changes(lesion(), OUTLINE)
    for change in changes.found.values():
        assert change.image is not None and change.probabilities is not None
        logits = finder.classifier.logits(change.image[None])
        expected = finder.classifier.probabilities(logits)[0]
        np.testing.assert_allclose(change.probabilities, expected, atol=1e-6)
        assert change.changed == (int(expected.argmax()) != changes.answer)


def test_without_the_lesion_and_in_lighter_colors_the_answer_is_another(
    finder: ChangeFinder,
) -> None:
    changes = finder.changes(lesion(), OUTLINE)
    erased, color = changes.found["lesion_erased"], changes.found["color"]
    assert erased.changed and (erased.where >= OUTLINE).all()
    assert np.abs(np.asarray(erased.image)[OUTLINE].mean(axis=0) - SKIN).max() < 3
    # The least strength that changes the answer is shown, and what was tried before is counted.
    assert color.changed and color.strength in (0.5, 0.75) and color.passes == color.strength * 4
    assert (color.where <= OUTLINE).all()


def test_what_is_missing_is_said(finder: ChangeFinder) -> None:
    without = finder.changes(lesion())
    assert set(without.found) == {"necessary", "sufficient"}
    assert set(without.missing) == {"lesion_erased", "color"}
    unknown = ChangeFinder(finder.classifier, pieces=PIECES).changes(lesion(), OUTLINE)
    assert "light are not known" in unknown.missing["color"] and "color" not in unknown.found


def test_plain_skin_with_the_answer_needs_nothing_and_no_change_is_an_answer() -> None:
    import tensorflow as tf

    always = function_network(
        SIZE, lambda x: tf.stack([tf.reduce_sum(x, (1, 2, 3)) * 0 + 3.0] * 2, 1) * [1.0, 0.0]
    )
    finder = ChangeFinder(ImageClassifier(always, ["a", "b"]), pieces=PIECES, passes=50)
    changes = finder.changes(lesion(), OUTLINE)
    necessary, sufficient = changes.found["necessary"], changes.found["sufficient"]
    assert necessary.image is None and necessary.probabilities is None and not necessary.changed
    assert necessary.note == f"No change found within {necessary.passes} passes."
    assert necessary.passes == 50
    assert not sufficient.where.any() and "Plain skin alone" in sufficient.note
    assert sufficient.passes == 0


class _Liar:
    """A scorer that believes the network looks at another place."""

    name = "int8"

    def __init__(self, where: np.ndarray) -> None:
        self.where, self.checked = where, 0

    def logits(self, images: np.ndarray) -> np.ndarray:
        red = images[:, self.where, 0].mean(axis=1)
        return np.stack([(150.0 - red) / 20.0, np.zeros(len(red))], axis=1).astype(np.float32)

    def check(self, model: Any) -> None:
        self.checked += 1


def test_what_a_scorer_finds_counts_only_where_the_network_confirms_it() -> None:
    classifier = looks_at(SQUARE)
    honest, liar = _Liar(SQUARE), _Liar(np.roll(SQUARE, 8, axis=0))
    good = ChangeFinder(classifier, scorer=honest, pieces=PIECES).changes(lesion(), OUTLINE)
    assert honest.checked == 1 and good.scorer == "int8" and good.passes <= MOST_PASSES
    assert np.array_equal(good.found["necessary"].where, SQUARE)
    bad = ChangeFinder(classifier, scorer=liar, pieces=PIECES).changes(lesion(), OUTLINE)
    for kind in ("necessary", "sufficient"):
        change = bad.found[kind]
        # Whatever is shown holds for the network itself.
        assert change.image is None or change.changed == (kind == "necessary")
        assert not np.array_equal(change.where, liar.where)
        assert change.image is not None or "did not confirm" in change.note


def test_plain_skin_has_no_lesion_and_no_structure() -> None:
    image = lesion()
    image[2:4] = 0.0
    skin = plain_skin(image, OUTLINE)
    assert skin.shape == image.shape and np.abs(skin[OUTLINE] - SKIN).max() < 25
    assert np.abs(np.diff(skin, axis=0)).max() < 12
    bare = plain_skin(lesion(), None)
    np.testing.assert_allclose(bare, np.broadcast_to(SKIN, bare.shape), atol=1e-3)


def test_recoloring_reaches_its_goal_inside_and_leaves_the_skin() -> None:
    generator = np.random.default_rng(0)
    image = np.clip(lesion() + generator.normal(0, 6, (*SIZE, 3)), 0, 255).astype(np.float32)
    goal = LesionColors((60.0, 20.0, 10.0), (6.0, 4.0, 4.0))
    made = recolored(image, OUTLINE, goal)
    core = np.zeros(SIZE, bool)
    core[18:28, 25:37] = True
    np.testing.assert_allclose(lab_colors(made)[core].mean(axis=0), goal.mean, atol=1.5)
    assert np.array_equal(made[~OUTLINE], image[~OUTLINE])
    np.testing.assert_allclose(recolored(image, OUTLINE, goal, 0.0), image, atol=1e-3)
    same = recolored(image, OUTLINE, lesion_colors(image, OUTLINE))
    np.testing.assert_allclose(same, image, atol=0.05)


@pytest.mark.parametrize("passes", [0, 200])
def test_more_passes_than_allowed_are_refused(passes: int) -> None:
    with pytest.raises(UsageError, match="Each search may take 1 to"):
        ChangeFinder(looks_at(SQUARE), passes=passes)


@pytest.mark.parametrize("outline", [np.zeros(SIZE, bool), np.ones((5, 5), bool)])
def test_outlines_that_do_not_fit_are_refused(finder: ChangeFinder, outline: np.ndarray) -> None:
    with pytest.raises(UsageError, match="outline must be"):
        finder.changes(lesion(), outline)

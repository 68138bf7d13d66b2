"""How maps of pixels are read before they are measured."""

import numpy as np

from dermlens.explainers.registry import METHODS
from dermlens.quality.controls import title
from dermlens.quality.readings import AS_IT_IS, POSITIVE, as_it_is, positive_part, reading_of


def test_all_methods_of_pixels_are_read_alike_and_no_other() -> None:
    read = {name for name in METHODS if reading_of(name).name == POSITIVE}
    assert read == {"integrated_gradients", "smooth_grad", "gradient_shap"}
    assert reading_of("untrained_integrated_gradients").name == POSITIVE
    assert reading_of("centered_gaussian").name == reading_of("oracle").name == AS_IT_IS
    assert title(as_it_is("integrated_gradients")) == "Integrated Gradients, as it is"


def test_the_positive_part_keeps_its_sum_and_forgets_the_negative() -> None:
    maps = np.zeros((2, 64, 96), np.float32)
    maps[0, 32, 48], maps[0, 32, 50] = 4.0, -9.0
    maps[1] = -1.0
    read = positive_part(maps)
    assert read.shape == maps.shape and read.dtype == np.float32
    np.testing.assert_allclose(read[0].sum(), 4.0, rtol=1e-5)
    assert np.unravel_index(read[0].argmax(), read[0].shape) == (32, 48)
    # The standard deviation is 1/32 of the shorter side: two pixels.
    ratio = read[0, 32, 50] / read[0, 32, 48]
    np.testing.assert_allclose(ratio, np.exp(-0.5), rtol=1e-3)
    assert (read[1] == 0).all()


def test_each_map_is_read_alone() -> None:
    maps = np.random.default_rng(0).normal(size=(3, 32, 40)).astype(np.float32)
    np.testing.assert_array_equal(positive_part(maps)[1], positive_part(maps[1:2])[0])

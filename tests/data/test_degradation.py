"""How images are made worse in training: by how much, which ones, and always alike."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from dermlens.data.degradation import (
    DEGRADATIONS,
    NO_DEGRADATION,
    Degradation,
    degradation_named,
    degrade,
    hairs,
)
from dermlens.errors import UsageError

COUNT, SIZE = 400, (24, 32)


def batch(count: int = COUNT) -> tf.Tensor:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    texture = 15 * np.sin(rows / 2)[..., None] + 10 * np.cos(columns / 3)[..., None]
    one = np.array([150.0, 100.0, 80.0]) + texture
    return tf.constant(np.repeat(one[None], count, axis=0), tf.float32)


def worse(seed: int = 0, count: int = COUNT, **how: float) -> np.ndarray:
    return degrade(batch(count), tf.constant([seed, 3], tf.int32), Degradation(**how)).numpy()


def test_nothing_is_nothing_and_the_same_seed_gives_the_same() -> None:
    images = batch(3)
    assert degrade(images, tf.constant([0, 0]), NO_DEGRADATION) is images
    normal = DEGRADATIONS["normal"]
    first, again, other = (
        degrade(batch(6), tf.constant([k, 1], tf.int32), normal).numpy() for k in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1
    assert first.shape == (6, *SIZE, 3) and first.min() >= 0 and first.max() <= 255


def test_light_changes_all_channels_alike_within_its_bounds() -> None:
    gains = worse(exposure=0.25) / batch().numpy()
    per_image = gains.mean(axis=(1, 2, 3))
    assert gains.std(axis=(1, 2, 3)).max() < 1e-5
    assert 1 / 1.25 - 1e-4 <= per_image.min() < 0.82 and 1.22 < per_image.max() <= 1.25 + 1e-4
    assert np.log(per_image).mean() == pytest.approx(0, abs=0.03)


def test_temperature_moves_red_against_blue() -> None:
    gains = (worse(temperature=0.15) / batch().numpy()).mean(axis=(1, 2))
    np.testing.assert_allclose(gains[:, 1], 1, atol=1e-5)
    np.testing.assert_allclose(gains[:, 0] * gains[:, 2], 1, atol=1e-4)
    assert gains[:, 0].max() <= 1.15 + 1e-4 and gains[:, 0].max() > 1.13


@pytest.mark.parametrize("name", ["blur", "compression", "hair"])
def test_so_many_images_are_changed_as_was_asked(name: str) -> None:
    """Three standard deviations of a draw of 400 with the probability 0.3."""
    moved = np.abs(worse(**{name: 0.3}) - batch().numpy()).max(axis=(1, 2, 3))
    assert (moved > 0.01).mean() == pytest.approx(0.3, abs=0.07)


def test_blur_takes_texture_and_keeps_the_mean() -> None:
    changed = worse(blur=1.0)
    plain = batch().numpy()
    inner = (slice(None), slice(6, -6), slice(6, -6))
    assert (changed[inner].std(axis=(1, 2, 3)) <= plain[inner].std(axis=(1, 2, 3)) + 1e-4).all()
    assert changed[inner].std(axis=(1, 2)).min() < 0.8 * plain[inner].std(axis=(1, 2)).min()
    np.testing.assert_allclose(changed.mean(), plain.mean(), rtol=0.01)


def test_hair_is_dark_and_thin_and_of_both_mirror_images() -> None:
    opacities, colors = hairs()
    assert opacities.shape[1:] == (192, 256) and colors.max() < 100
    assert opacities.min() >= -1e-6 and opacities.max() <= 1
    covered = (opacities > 0.1).mean(axis=(1, 2))
    assert 0.005 < covered.mean() < 0.05 and covered.max() < 0.15
    difference = worse(hair=1.0) - batch().numpy()
    assert difference.max() < 1e-3 and (difference < -5).any(axis=(1, 2, 3)).mean() > 0.9


def test_compression_leaves_blocks() -> None:
    changed = worse(count=40, compression=1.0) - batch(40).numpy()
    assert 0.3 < np.abs(changed).mean() < 20


def test_sizes_may_change_from_batch_to_batch() -> None:
    """A step is traced for any size; hair is drawn at its own and scaled."""
    normal = replace(DEGRADATIONS["normal"], hair=1.0)

    @tf.function(input_signature=[tf.TensorSpec((4, None, None, 3)), tf.TensorSpec((2,), "int32")])
    def step(images, seed):
        return degrade(images, seed, normal)

    for height, width in ((24, 32), (48, 40)):
        found = step(tf.fill((4, height, width, 3), 150.0), tf.constant([1, 2]))
        assert found.shape == (4, height, width, 3)


def test_they_have_names_and_bounds() -> None:
    assert degradation_named("none") == NO_DEGRADATION
    with pytest.raises(UsageError, match="Unknown degradation 'awful'"):
        degradation_named("awful")
    with pytest.raises(UsageError, match="blur"):
        Degradation(blur=1.5)

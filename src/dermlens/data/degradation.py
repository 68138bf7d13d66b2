"""Photographs made worse while training, so that a network learns to bear it.

Light and white balance differ between cameras, pictures are blurred, compressed and hairy. Where
teachers look at the images as they are and the student at the worse ones, the student learns to
answer as if nothing had happened (consistency training; Xie et al., "Self-training with noisy
student improves ImageNet classification", CVPR 2020).
"""

from functools import cache
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dermlens.errors import UsageError
from dermlens.schema import Share, settings

_BLUR_SIGMA = 2.0
_QUALITIES = (20.0, 90.0)
_HAIRS, _HAIR_SIZE, _HAIR_SEED = 64, (192, 256), 7


@settings
class Degradation:
    """How strongly images are made worse.

    Attributes:
        exposure: Largest relative change of brightness; 0.25 draws gains from 1/1.25 to 1.25.
        temperature: Largest relative change of red, and at once of blue the other way.
        blur: Probability of blending with a blurred image (standard deviation 2 pixels).
        compression: Probability of JPEG compression with a quality from 20 to 90.
        hair: Probability of drawn hair.
    """

    exposure: Annotated[float, Field(ge=0)] = 0.0
    temperature: Annotated[float, Field(ge=0)] = 0.0
    blur: Share = 0.0
    compression: Share = 0.0
    hair: Share = 0.0


NO_DEGRADATION = Degradation()
DEGRADATIONS: dict[str, Degradation] = {
    "none": NO_DEGRADATION,
    "normal": Degradation(exposure=0.25, temperature=0.15, blur=0.3, compression=0.3, hair=0.3),
    "strong": Degradation(exposure=0.3, temperature=0.2, blur=0.4, compression=0.4, hair=0.4),
}


def degradation_named(name: str) -> Degradation:
    """Return a degradation by its name: none, normal or strong.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in DEGRADATIONS:
        raise UsageError(f"Unknown degradation {name!r}. Use one of: {', '.join(DEGRADATIONS)}.")
    return DEGRADATIONS[name]


def degrade(images: Any, seed: Any, how: Degradation) -> Any:
    """Make a batch of images worse; the same seed gives the same result.

    Args:
        images: float32 tensor (B, H, W, 3), 0..255.
        seed: int32 tensor (2,), as ``tf.random.stateless_uniform`` takes.
        how: What to do and how strongly.

    Returns:
        float32 tensor (B, H, W, 3), 0..255; ``images`` themselves where nothing is to be done.
    """
    import tensorflow as tf

    if how == NO_DEGRADATION:
        return images
    draws = tf.random.stateless_uniform((tf.shape(images)[0], 10), seed)
    if how.hair > 0:
        images = _with_hair(images, draws[:, 0:4], how.hair)
    if how.exposure > 0 or how.temperature > 0:
        images = _recolored(images, draws[:, 4:6], how)
    if how.blur > 0:
        images = _blurred(images, draws[:, 6:8], how.blur)
    images = tf.clip_by_value(images, 0.0, 255.0)
    return _compressed(images, draws[:, 8:10], how.compression) if how.compression > 0 else images


def _spread(draw: Any, largest: float) -> Any:
    """Turn draws 0..1 into factors from 1 / (1 + largest) to 1 + largest."""
    import tensorflow as tf

    return tf.exp((draw * 2 - 1) * float(np.log1p(largest)))


def _recolored(images: Any, draws: Any, how: Degradation) -> Any:
    import tensorflow as tf

    light, warmth = _spread(draws[:, 0], how.exposure), _spread(draws[:, 1], how.temperature)
    gains = tf.stack([light * warmth, light, light / warmth], axis=1)
    return images * gains[:, None, None, :]


def _blurred(images: Any, draws: Any, probability: float) -> Any:
    """Blend some images with a blurred copy, which looks like a weaker blur."""
    import tensorflow as tf

    reach = round(3 * _BLUR_SIGMA)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _BLUR_SIGMA) ** 2)
    kernel = np.repeat((kernel / kernel.sum())[:, None], 3, axis=1).astype(np.float32)
    padded = tf.pad(images, [[0, 0], [reach, reach], [reach, reach], [0, 0]], "REFLECT")
    once = tf.nn.depthwise_conv2d(padded, kernel[:, None, :, None], [1, 1, 1, 1], "VALID")
    soft = tf.nn.depthwise_conv2d(once, kernel[None, :, :, None], [1, 1, 1, 1], "VALID")
    share = tf.where(draws[:, 0] < probability, draws[:, 1], 0.0)[:, None, None, None]
    return images + (soft - images) * share


def _compressed(images: Any, draws: Any, probability: float) -> Any:
    import tensorflow as tf

    low, high = _QUALITIES
    quality = tf.cast(low + draws[:, 1] * (high - low), tf.int32)
    chosen = draws[:, 0] < probability

    def one(arguments: tuple[Any, Any, Any]) -> Any:
        image, how_well, wanted = arguments
        return tf.cond(
            wanted,
            lambda: 255.0 * tf.image.adjust_jpeg_quality(image / 255.0, how_well),
            lambda: image,
        )

    shape = images.shape
    found = tf.map_fn(one, (images, quality, chosen), fn_output_signature=tf.float32)
    return tf.ensure_shape(found, shape)


@cache
def hairs() -> tuple[np.ndarray, np.ndarray]:
    """Return drawn hair: opacities, float32 (N, H, W), and colors, float32 (N, 3), 0..255."""
    from dermlens.data.synthetic_distractors import with_artifact

    opacities, colors = [], []
    for number in range(_HAIRS):
        painted = [
            with_artifact(
                np.full((*_HAIR_SIZE, 3), shade),
                "hair",
                np.random.default_rng([_HAIR_SEED, number]),
            )
            for shade in (0.0, 1.0)
        ]
        # What shows through of white but not of black is what is not covered.
        opacity = 1 - (painted[1] - painted[0]).mean(axis=-1)
        place = np.unravel_index(opacity.argmax(), opacity.shape)
        opacities.append(opacity)
        colors.append(255 * painted[0][place] / opacity[place])
    return np.stack(opacities).astype(np.float32), np.stack(colors).astype(np.float32)


def _with_hair(images: Any, draws: Any, probability: float) -> Any:
    """Paint drawn hair over some images, mirrored at random."""
    import tensorflow as tf

    opacities, colors = hairs()
    number = tf.cast(draws[:, 1] * _HAIRS, tf.int32)
    opacity = tf.gather(tf.constant(opacities), number)[..., None]
    up, left = ((draws[:, k] < 0.5)[:, None, None, None] for k in (2, 3))
    opacity = tf.where(up, opacity[:, ::-1], opacity)
    opacity = tf.where(left, opacity[:, :, ::-1], opacity)
    opacity = tf.image.resize(opacity, tf.shape(images)[1:3])
    opacity *= tf.cast(draws[:, 0] < probability, tf.float32)[:, None, None, None]
    color = tf.gather(tf.constant(colors), number)[:, None, None, :]
    return images + (color - images) * opacity

"""Online augmentation of batches, inside the graph and reproducible.

A dermatoscope has no preferred direction, so every rotation and mirror image is as likely as the
photograph itself. Lighting and white balance differ between cameras; hence the color changes.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dermlens.errors import UsageError


@dataclass(frozen=True)
class Augmentation:
    """How strongly training images are varied.

    Attributes:
        dihedral: Mirror at random and turn by any angle (False: neither).
        zoom: Largest change of scale; 0.2 draws factors from 1/1.2 to 1.2.
        stretch: Largest change of aspect ratio, likewise.
        shift: Largest displacement as a share of the side.
        brightness: Largest change of brightness as a share of the full range.
        contrast: Largest relative change of contrast.
        saturation: Largest relative change of saturation.
        hue: Largest rotation of the hue circle in degrees.
        erasing: Probability of erasing one rectangle (Zhong et al. 2020).
        erased_area: Largest erased share of the image.
    """

    dihedral: bool = True
    zoom: float = 0.2
    stretch: float = 0.08
    shift: float = 0.06
    brightness: float = 0.08
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 8.0
    erasing: float = 0.25
    erased_area: float = 0.15

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


NO_AUGMENTATION = Augmentation(False, 0, 0, 0, 0, 0, 0, 0, 0, 0)
STRONG_AUGMENTATION = Augmentation(
    zoom=0.35,
    stretch=0.15,
    shift=0.1,
    brightness=0.12,
    contrast=0.3,
    saturation=0.35,
    hue=14.0,
    erasing=0.4,
    erased_area=0.25,
)
AUGMENTATIONS: dict[str, Augmentation] = {
    "none": NO_AUGMENTATION,
    "normal": Augmentation(),
    "strong": STRONG_AUGMENTATION,
}


def augmentation_named(name: str) -> Augmentation:
    """Return an augmentation by its name: none, normal or strong.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in AUGMENTATIONS:
        raise UsageError(f"Unknown augmentation {name!r}. Use one of: {', '.join(AUGMENTATIONS)}.")
    return AUGMENTATIONS[name]


def augment(images: Any, seed: Any, how: Augmentation) -> Any:
    """Vary a batch of images; the same seed gives the same result.

    Args:
        images: uint8 or float tensor (N, H, W, 3), 0..255.
        seed: int32 tensor (2,), as ``tf.random.stateless_uniform`` takes.
        how: What to vary and how strongly.

    Returns:
        float32 tensor (N, H, W, 3), 0..255.
    """
    import tensorflow as tf

    images = tf.cast(images, tf.float32)
    if how == NO_AUGMENTATION:
        return images
    draws = tf.random.stateless_uniform((tf.shape(images)[0], 16), seed)
    images = _move(images, draws[:, :7], how)
    images = _recolor(images, draws[:, 7:11], how)
    return _erase(images, draws[:, 11:16], how) if how.erasing > 0 else images


def _symmetric(draw: Any, largest: float) -> Any:
    return (draw * 2 - 1) * largest


def _move(images: Any, draws: Any, how: Augmentation) -> Any:
    """Mirror, rotate, scale, stretch and shift in one interpolation, borders reflected."""
    import tensorflow as tf

    angle = _symmetric(draws[:, 0], np.pi if how.dihedral else 0.0)
    mirror = tf.where((draws[:, 1] < 0.5) & how.dihedral, -1.0, 1.0)
    scale = tf.exp(_symmetric(draws[:, 2], float(np.log1p(how.zoom))))
    stretch = tf.exp(_symmetric(draws[:, 3], float(np.log1p(how.stretch)) / 2))
    height = tf.cast(tf.shape(images)[1], tf.float32)
    width = tf.cast(tf.shape(images)[2], tf.float32)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    a, b = cosine / scale * stretch * mirror, -sine / scale / stretch
    d, e = sine / scale * stretch * mirror, cosine / scale / stretch
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    shift_x = _symmetric(draws[:, 4], how.shift) * width
    shift_y = _symmetric(draws[:, 5], how.shift) * height
    c = center_x + shift_x - a * center_x - b * center_y
    f = center_y + shift_y - d * center_x - e * center_y
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, c, d, e, f, zero, zero], axis=1),
        output_shape=tf.shape(images)[1:3],
        interpolation="BILINEAR",
        fill_mode="REFLECT",
        fill_value=0.0,
    )


_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _recolor(images: Any, draws: Any, how: Augmentation) -> Any:
    """Brightness, contrast, saturation and hue as one 3x3 matrix and offset per image."""
    import tensorflow as tf

    brightness = _symmetric(draws[:, 0], how.brightness) * 255
    contrast = 1 + _symmetric(draws[:, 1], how.contrast)
    saturation = 1 + _symmetric(draws[:, 2], how.saturation)
    angle = _symmetric(draws[:, 3], float(np.deg2rad(how.hue)))
    gray = tf.constant(np.outer(np.ones(3, np.float32), _LUMA))[None]
    identity = tf.eye(3)[None]
    saturate = gray + (identity - gray) * saturation[:, None, None]
    # Rotation about the gray axis (Rodrigues), which keeps grays gray.
    axis = np.full(3, 1 / np.sqrt(3), np.float32)
    cross = np.array(
        [[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]], np.float32
    )
    cosine, sine = tf.cos(angle)[:, None, None], tf.sin(angle)[:, None, None]
    rotate = identity * cosine + cross[None] * sine + np.outer(axis, axis)[None] * (1 - cosine)
    matrix = tf.matmul(rotate, saturate) * contrast[:, None, None]
    mean = tf.reduce_mean(images, axis=(1, 2))
    offset = mean * (1 - contrast[:, None]) + brightness[:, None]
    shape = tf.shape(images)
    flat = tf.reshape(images, (shape[0], -1, 3))
    colored = tf.matmul(flat, matrix, transpose_b=True) + offset[:, None, :]
    return tf.clip_by_value(tf.reshape(colored, shape), 0.0, 255.0)


def _erase(images: Any, draws: Any, how: Augmentation) -> Any:
    """Replace a rectangle of some images by their mean color."""
    import tensorflow as tf

    height, width = tf.shape(images)[1], tf.shape(images)[2]
    chosen = draws[:, 0] < how.erasing
    area = (0.02 + draws[:, 1] * (how.erased_area - 0.02)) if how.erased_area > 0.02 else 0.0
    ratio = tf.exp(_symmetric(draws[:, 2], float(np.log(2.0))))
    half_y = tf.sqrt(area / ratio) / 2
    half_x = tf.sqrt(area * ratio) / 2
    y = tf.linspace(0.0, 1.0, height)[None] - draws[:, 3:4]
    x = tf.linspace(0.0, 1.0, width)[None] - draws[:, 4:5]
    inside_y = (tf.abs(y) <= half_y[:, None]) & chosen[:, None]
    # Colors side by side in each row: a choice spread over a last axis of three is slow.
    inside_x = tf.repeat(tf.abs(x) <= half_x[:, None], 3, axis=1)
    mean = tf.tile(tf.reduce_mean(images, axis=(1, 2))[:, None], (1, 1, width))
    rows = tf.reshape(images, (-1, height, 3 * width))
    erased = tf.where(inside_y[:, :, None] & inside_x[:, None, :], mean, rows)
    return tf.reshape(erased, tf.shape(images))


def mix(images: Any, truth: Any, weights: Any, seed: Any, alpha: float) -> tuple[Any, Any, Any]:
    """Mix each image of a batch with the next one (mixup, Zhang et al. 2018).

    Args:
        images: float32 tensor (B, H, W, 3).
        truth: float32 tensor (B, C), shares of classes.
        weights: float32 tensor (B,), loss weights.
        seed: int32 tensor (2,).
        alpha: Shares are drawn from Beta(alpha, alpha), > 0: small values leave most images
            almost as they are, 1 draws every share equally often.

    Returns:
        All three mixed with the same shares.
    """
    import tensorflow as tf

    count = tf.shape(images)[0]
    draws = tf.random.stateless_gamma((2, count), seed, alpha)
    # Both draws can underflow for small alpha; then the image stays as it is.
    share = draws[0] / tf.maximum(draws[0] + draws[1], 1e-30)
    share = tf.maximum(share, 1.0 - share)

    def blend(values: Any) -> Any:
        own = tf.reshape(share, tf.concat([[count], tf.ones(len(values.shape) - 1, "int32")], 0))
        return values * own + tf.roll(values, -1, axis=0) * (1.0 - own)

    return blend(images), blend(truth), blend(weights)

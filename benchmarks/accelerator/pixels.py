"""Variation, mixing and worsening of training images in PyTorch.

The arithmetic of ``dermlens.data.augmentation`` and ``dermlens.data.degradation``; given the same
draws single values differ by 0.002 of 255 at most in what is varied, and by 1.3 in the mean in what
is compressed, where roundings differ.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

Settings = Mapping[str, float]
_LUMA = (0.299, 0.587, 0.114)
_SIGMA = 2.0
_BRIGHT = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99
"""
"""Quantization of brightness, and below of color: ITU-T T.81 (JPEG), annex K.1."""
_COLOR = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""


def symmetric(draw: Tensor, largest: float) -> Tensor:
    """Turn draws 0..1 into values from -largest to largest."""
    return (draw * 2 - 1) * largest


def augment(images: Tensor, draws: Tensor, how: Settings) -> Tensor:
    """Vary images, float32 (N, 3, H, W), 0..255, by draws (N, 16), 0..1."""
    moved = _moved(images, draws[:, :7], how)
    return _erased(_recolored(moved, draws[:, 7:11], how), draws[:, 11:16], how)


def _moved(images: Tensor, draws: Tensor, how: Settings) -> Tensor:
    height, width = images.shape[2:]
    angle = symmetric(draws[:, 0], np.pi)
    mirror = torch.where(draws[:, 1] < 0.5, -1.0, 1.0)
    scale = torch.exp(symmetric(draws[:, 2], float(np.log1p(how["zoom"]))))
    stretch = torch.exp(symmetric(draws[:, 3], float(np.log1p(how["stretch"])) / 2))
    cosine, sine = torch.cos(angle), torch.sin(angle)
    a, b = cosine / scale * stretch * mirror, -sine / scale / stretch
    d, e = sine / scale * stretch * mirror, cosine / scale / stretch
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    c = center_x + symmetric(draws[:, 4], how["shift"]) * width - a * center_x - b * center_y
    f = center_y + symmetric(draws[:, 5], how["shift"]) * height - d * center_x - e * center_y
    x = torch.arange(width, device=images.device, dtype=torch.float32)[None, None]
    y = torch.arange(height, device=images.device, dtype=torch.float32)[None, :, None]
    a, b, c, d, e, f = (value[:, None, None] for value in (a, b, c, d, e, f))
    # Pixel places to -1..1 from edge to edge, as grid_sample wants them.
    right, down = (2 * (a * x + b * y + c) + 1) / width, (2 * (d * x + e * y + f) + 1) / height
    grid = torch.stack([right - 1, down - 1], -1)
    return functional.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)


def _recolored(images: Tensor, draws: Tensor, how: Settings) -> Tensor:
    contrast = 1 + symmetric(draws[:, 1], how["contrast"])
    saturation = 1 + symmetric(draws[:, 2], how["saturation"])
    angle = symmetric(draws[:, 3], float(np.deg2rad(how["hue"])))
    identity = torch.eye(3, device=images.device)[None]
    gray = torch.tensor(_LUMA, device=images.device).expand(1, 3, 3)
    saturate = gray + (identity - gray) * saturation[:, None, None]
    k = 3**-0.5
    cross = torch.tensor([[0, -k, k], [k, 0, -k], [-k, k, 0]], device=images.device)[None]
    cosine, sine = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    rotate = identity * cosine + cross * sine + (1 - cosine) / 3
    # Written out, and so below: products of matrices may be rounded on an accelerator.
    matrix = (rotate[:, :, :, None] * saturate[:, None]).sum(2) * contrast[:, None, None]
    offset = images.mean((2, 3)) * (1 - contrast[:, None])
    offset = offset + symmetric(draws[:, 0], how["brightness"])[:, None] * 255
    parts = matrix[..., None, None] * images[:, None]
    return (parts.sum(2) + offset[:, :, None, None]).clamp(0.0, 255.0)


def _erased(images: Tensor, draws: Tensor, how: Settings) -> Tensor:
    height, width = images.shape[2:]
    area = 0.02 + draws[:, 1] * (how["erased_area"] - 0.02)
    ratio = torch.exp(symmetric(draws[:, 2], float(np.log(2.0))))
    half_y, half_x = torch.sqrt(area / ratio) / 2, torch.sqrt(area * ratio) / 2
    rows = torch.linspace(0, 1, height, device=images.device)[None]
    columns = torch.linspace(0, 1, width, device=images.device)[None]
    y = ((rows - draws[:, 3:4]).abs() <= half_y[:, None]) & (draws[:, :1] < how["erasing"])
    x = (columns - draws[:, 4:5]).abs() <= half_x[:, None]
    inside = y[:, None, :, None] & x[:, None, None, :]
    return torch.where(inside, images.mean((2, 3), keepdim=True), images)


def mixed(values: Tensor, share: Tensor) -> Tensor:
    """Mix each of some values (N, ...) with the next one, of which it keeps a share (N,)."""
    own = share.reshape(-1, *[1] * (values.ndim - 1))
    return values * own + values.roll(-1, 0) * (1 - own)


def degrade(
    images: Tensor, draws: Tensor, how: Settings | None, hairs: tuple[Tensor, Tensor]
) -> Tensor:
    """Make images, float32 (N, 3, H, W), 0..255, worse by draws (N, 10), 0..1."""
    if how is None:
        return images
    images = _with_hair(images, draws[:, 0:4], how["hair"], hairs)
    light = torch.exp(symmetric(draws[:, 4], float(np.log1p(how["exposure"]))))
    warmth = torch.exp(symmetric(draws[:, 5], float(np.log1p(how["temperature"]))))
    images = images * torch.stack([light * warmth, light, light / warmth], 1)[:, :, None, None]
    images = _blurred(images, draws[:, 6:8], how["blur"]).clamp(0.0, 255.0)
    quality = torch.floor(20.0 + draws[:, 9] * 70.0)
    chosen = (draws[:, 8] < how["compression"])[:, None, None, None]
    return torch.where(chosen, compressed(images, quality), images)


def _with_hair(
    images: Tensor, draws: Tensor, probability: float, hairs: tuple[Tensor, Tensor]
) -> Tensor:
    opacities, colors = hairs
    number = (draws[:, 1] * len(colors)).long()
    opacity = opacities[number][:, None]
    up, left = ((draws[:, k] < 0.5)[:, None, None, None] for k in (2, 3))
    opacity = torch.where(up, opacity.flip(2), opacity)
    opacity = torch.where(left, opacity.flip(3), opacity)
    opacity = _enlarged(opacity, images.shape[2:])
    opacity = opacity * (draws[:, 0] < probability)[:, None, None, None]
    return images + (colors[number][:, :, None, None] - images) * opacity


def _enlarged(values: Tensor, size: tuple[int, ...]) -> Tensor:
    return functional.interpolate(values, tuple(size), mode="bilinear", align_corners=False)


def _blurred(images: Tensor, draws: Tensor, probability: float) -> Tensor:
    reach = round(3 * _SIGMA)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _SIGMA) ** 2)
    kernel = torch.tensor(bell / bell.sum(), dtype=torch.float32, device=images.device)
    padded = functional.pad(images, [reach] * 4, "reflect")
    once = functional.conv2d(padded, kernel.reshape(1, 1, -1, 1).repeat(3, 1, 1, 1), groups=3)
    soft = functional.conv2d(once, kernel.reshape(1, 1, 1, -1).repeat(3, 1, 1, 1), groups=3)
    share = torch.where(draws[:, 0] < probability, draws[:, 1], 0.0)[:, None, None, None]
    return images + (soft - images) * share


def compressed(images: Tensor, quality: Tensor) -> Tensor:
    """Return images (N, 3, H, W) as JPEG of a quality (N,), 1..100, gives them back.

    Brightness in full size, colors in half of it, as libjpeg does; both sides must be divisible by
    16.
    """
    red, green, blue = images.round().unbind(1)
    bright = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    colors = torch.stack([(blue - bright) / 1.772, (red - bright) / 1.402], 1)
    halves = _quantized(functional.avg_pool2d(colors, 2).round(), _COLOR, quality)
    bright = _quantized(bright.round()[:, None] - 128, _BRIGHT, quality)[:, 0] + 128
    to_blue, to_red = _enlarged(halves, images.shape[2:]).unbind(1)
    green = bright - 0.344136 * to_blue - 0.714136 * to_red
    result = torch.stack([bright + 1.402 * to_red, green, bright + 1.772 * to_blue], 1)
    return result.round().clamp(0.0, 255.0)


def _quantized(values: Tensor, table: str, quality: Tensor) -> Tensor:
    """Round the cosine transform of blocks of 8x8 in values (N, K, H, W), as JPEG stores it."""
    count, channels, height, width = values.shape
    place = np.arange(8)
    cosines = np.cos((2 * place[None] + 1) * place[:, None] * np.pi / 16) / 2
    cosines[0] /= np.sqrt(2)
    # One matrix of 64x64 for both directions.
    both = torch.tensor(np.kron(cosines, cosines), dtype=torch.float32, device=values.device)
    base = torch.tensor([float(step) for step in table.split()], device=values.device)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    steps = ((base * scale[:, None] + 50) / 100).floor().clamp(1, 255)[:, None]
    blocks = values.reshape(count, channels, height // 8, 8, width // 8, 8)
    blocks = blocks.permute(0, 1, 2, 4, 3, 5)
    found = blocks.reshape(count, -1, 64) @ both.T
    back = ((found / steps).round() * steps @ both).reshape(blocks.shape)
    return back.permute(0, 1, 2, 4, 3, 5).reshape(values.shape)

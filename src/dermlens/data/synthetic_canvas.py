"""The drawing surface of the embedded data set: coordinates, smooth noise, painting.

Everything that belongs to a lesion is drawn in *lesion coordinates*: origin at the lesion's
center, unit its mean radius. A second view of the lesion is the same drawing under another
``View``, so structures keep their shape and place relative to each other.
"""

from dataclasses import dataclass

import numpy as np

Color = tuple[float, float, float]
_TILE_SIDE = 192
_TILE_SIGMA = 4.0
_LINE_OVERSAMPLING = 2


@dataclass(frozen=True)
class View:
    """How the camera sees a lesion.

    Attributes:
        size: (height, width) in pixels.
        center: (x, y) of the lesion's center in pixels.
        scale: Pixels per lesion radius.
        angle: Rotation in radians.
        mirrored: True where the lesion is mirrored, as by a turned slide.
    """

    size: tuple[int, int]
    center: tuple[float, float]
    scale: float
    angle: float
    mirrored: bool

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lesion coordinates (u, v) of every pixel, float32 (H, W) each."""
        x = (np.arange(self.size[1], dtype=np.float32) - self.center[0]) / self.scale
        y = (np.arange(self.size[0], dtype=np.float32)[:, None] - self.center[1]) / self.scale
        cosine, sine = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        u, v = cosine * x + sine * y, cosine * y - sine * x
        return (-u if self.mirrored else u), v

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Return pixel positions (x, y) of lesion coordinates (u, v), both (N, 2)."""
        u, v = points[:, 0] * (-1 if self.mirrored else 1), points[:, 1]
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        x, y = cosine * u - sine * v, sine * u + cosine * v
        return np.stack([x, y], axis=1) * self.scale + np.asarray(self.center)


def smoothstep(low: float, high: float, values: np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 at ``low`` to 1 at ``high``; ``high`` below ``low`` falls instead.

    Example:
        >>> smoothstep(0.0, 1.0, np.array([-1.0, 0.5, 2.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


class SmoothNoise:
    """Smooth random fields with mean 0 and standard deviation 1, sampled at any coordinates.

    All fields come from one periodic tile, each from its own place and direction of it.
    """

    def __init__(self, random: np.random.Generator) -> None:
        from scipy.ndimage import gaussian_filter

        white = random.standard_normal((_TILE_SIDE, _TILE_SIDE)).astype(np.float32)
        tile = gaussian_filter(white, _TILE_SIGMA, mode="wrap")
        self._tile = (tile - tile.mean()) / tile.std()

    def __call__(
        self, u: np.ndarray, v: np.ndarray, period: float, random: np.random.Generator
    ) -> np.ndarray:
        """Return a field whose blobs are about ``period`` wide in the unit of ``u`` and ``v``."""
        from scipy.ndimage import map_coordinates

        angle, row, column = random.uniform(0, [2 * np.pi, _TILE_SIDE, _TILE_SIDE])
        step = np.float32(3 * _TILE_SIGMA / period)
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        rows = step * (cosine * u - sine * v) + np.float32(row)
        columns = step * (sine * u + cosine * v) + np.float32(column)
        places = np.stack([np.broadcast_to(rows, u.shape), np.broadcast_to(columns, u.shape)])
        return map_coordinates(self._tile, places, order=1, mode="grid-wrap")


class Canvas:
    """An image being painted, with the lesion coordinates of its pixels.

    Attributes:
        view: The camera's view.
        u: Lesion coordinate of every pixel, float32 (H, W).
        v: The other coordinate.
        image: float32 (H, W, 3), 0 to 1 (may leave that range until it is read).
        noise: Smooth random fields of this lesion.
    """

    def __init__(self, view: View, noise: SmoothNoise) -> None:
        self.view = view
        self.u, self.v = view.coordinates()
        self.image = np.zeros((*view.size, 3), np.float32)
        self.noise = noise

    def paint(self, color: Color | np.ndarray, alpha: np.ndarray) -> None:
        """Lay a color, or an image of colors, over the canvas with opacity ``alpha`` (H, W)."""
        layer = np.asarray(color, np.float32)
        self.image += (layer - self.image) * alpha[..., None].astype(np.float32)

    def shade(self, factor: Color | float, alpha: np.ndarray) -> None:
        """Multiply the image by ``factor`` where ``alpha`` (H, W) is 1, leave it where it is 0."""
        change = np.asarray(factor, np.float32) - 1
        self.image *= 1 + change * alpha[..., None].astype(np.float32)

    def field(self, period: float, random: np.random.Generator) -> np.ndarray:
        """Return a smooth random field in lesion coordinates, (H, W)."""
        return self.noise(self.u, self.v, period, random)

    def spots(self, centers: np.ndarray, radii: np.ndarray, softness: float = 0.35) -> np.ndarray:
        """Return the opacity of round spots, (H, W).

        Args:
            centers: Lesion coordinates, (N, 2).
            radii: Radii in lesion units, (N,).
            softness: Width of the soft rim as a share of the radius.
        """
        alpha = np.zeros(self.view.size, np.float32)
        for (x, y), radius in zip(
            self.view.to_pixels(centers), radii * self.view.scale, strict=True
        ):
            reach = radius * (1 + softness) + 1
            top, left = max(int(y - reach), 0), max(int(x - reach), 0)
            bottom = min(int(y + reach) + 2, self.view.size[0])
            right = min(int(x + reach) + 2, self.view.size[1])
            if top >= bottom or left >= right:
                continue
            rows, columns = np.ogrid[top:bottom, left:right]
            distance = np.sqrt((rows - y) ** 2 + (columns - x) ** 2)
            spot = smoothstep(radius * (1 + softness) + 0.5, radius * (1 - softness), distance)
            window = alpha[top:bottom, left:right]
            np.maximum(window, spot, out=window)
        return alpha

    def lines(
        self, paths: list[np.ndarray], widths: list[float], *, pixels: bool = False
    ) -> np.ndarray:
        """Return the antialiased opacity of polylines, (H, W).

        Args:
            paths: Points of each line, (N, 2), in lesion coordinates.
            widths: Width of each line in lesion units.
            pixels: True where points and widths are given in pixels instead.
        """
        from PIL import Image, ImageDraw

        height, width = self.view.size
        k = _LINE_OVERSAMPLING
        sheet = Image.new("L", (width * k, height * k), 0)
        pen = ImageDraw.Draw(sheet)
        for path, thickness in zip(paths, widths, strict=True):
            points = path if pixels else self.view.to_pixels(path)
            thick = thickness if pixels else thickness * self.view.scale
            places = [(float(x) * k + 0.5, float(y) * k + 0.5) for x, y in points]
            pen.line(places, fill=255, width=max(round(thick * k), 1), joint="curve")
        shrunk = sheet.resize((width, height), Image.Resampling.BOX)
        return np.asarray(shrunk, dtype=np.float32) / 255

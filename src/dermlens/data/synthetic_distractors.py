"""What the embedded data set shows in every class alike: skin, light, color smears, artifacts.

None of it depends on the diagnosis, so a model that looks at it learns nothing.
"""

import numpy as np

from dermlens.data.synthetic_canvas import Canvas, SmoothNoise, View, smoothstep
from dermlens.data.synthetic_structures import Lesion, structure_hues

_SKIN = np.array([[0.93, 0.76, 0.68], [0.86, 0.66, 0.55], [0.90, 0.68, 0.64], [0.70, 0.50, 0.39]])
_INK = np.array([[0.25, 0.20, 0.50], [0.20, 0.35, 0.62], [0.35, 0.15, 0.42]])


def paint_skin(canvas: Canvas, random: np.random.Generator) -> None:
    """Fill the canvas with skin: one tone, mottled, with fine furrows."""
    tone = random.dirichlet([1.2, 1.2, 1.0, 0.6]) @ _SKIN * random.uniform(0.92, 1.06)
    mottle = 0.035 * canvas.field(1.6, random) + 0.02 * canvas.field(0.35, random)
    redness = 0.03 * canvas.field(0.8, random)
    canvas.image[:] = tone * (1 + mottle[..., None])
    canvas.image[..., 1:] *= 1 - np.abs(redness)[..., None]
    furrows = smoothstep(0.16, 0.0, np.abs(canvas.field(0.5, random)))
    canvas.shade(1 - random.uniform(0.02, 0.07), furrows)


def smear_colors(canvas: Canvas, lesion: Lesion, random: np.random.Generator) -> None:
    """Smear a few structureless stains in the structures' hues over and around the lesion."""
    for _ in range(int(random.integers(3, 9))):
        hue = structure_hues()[random.integers(4)] * random.uniform(0.75, 1.25)
        place = lesion.place(
            np.array([random.uniform(0.2, 1.6)]), np.array([random.uniform(0, 2 * np.pi)])
        )[0]
        distance = np.hypot(canvas.u - place[0], canvas.v - place[1]) / random.uniform(0.15, 0.65)
        distance += 0.25 * canvas.field(0.6, random)
        canvas.paint(hue, smoothstep(1.4, 0.4, distance) * random.uniform(0.3, 0.85))


def light(canvas: Canvas, random: np.random.Generator) -> None:
    """Apply uneven light, white balance and, in some images, the dark corners of a round tube."""
    height, width = canvas.view.size
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    slope = random.uniform(-0.09, 0.09, 2)
    gradient = 1 + slope[0] * x + slope[1] * y - random.uniform(0.0, 0.10) * (x * x + y * y)
    balance = random.uniform(0.94, 1.06, 3) * random.uniform(0.84, 1.10)
    canvas.image *= (gradient[..., None] * balance).astype(np.float32)
    if random.uniform() < 0.25:
        radius = np.hypot(x * width / height, y)
        edge = random.uniform(1.18, 1.45)
        canvas.shade(0.06, smoothstep(edge - 0.05, edge + 0.05, radius))


def add_artifacts(canvas: Canvas, random: np.random.Generator) -> None:
    """Add hair, ruler marks, gel bubbles and ink, each in some of the images."""
    if random.uniform() < 0.40:
        _hair(canvas, random)
    if random.uniform() < 0.15:
        _ruler(canvas, random)
    if random.uniform() < 0.25:
        _bubbles(canvas, random)
    if random.uniform() < 0.12:
        _ink(canvas, random)


def _hair(canvas: Canvas, random: np.random.Generator) -> None:
    height, width = canvas.view.size
    paths, widths = [], []
    t = np.linspace(0, 1, 14)[:, None]
    for _ in range(int(random.integers(2, 12))):
        start = random.uniform([0, 0], [width, height])
        angle = random.uniform(0, 2 * np.pi)
        length = random.uniform(0.4, 1.1) * height
        ahead = np.array([np.cos(angle), np.sin(angle)])
        aside = np.array([-ahead[1], ahead[0]]) * random.uniform(-0.25, 0.25) * length
        paths.append(start + ahead * length * t + aside * t**2)
        widths.append(random.uniform(0.5, 1.1) * height / 192)
    color = np.array([0.15, 0.10, 0.08]) * random.uniform(0.6, 1.6)
    canvas.paint(color, canvas.lines(paths, widths, pixels=True) * random.uniform(0.7, 0.95))


def _ruler(canvas: Canvas, random: np.random.Generator) -> None:
    height, width = canvas.view.size
    gap = height / random.uniform(14, 22)
    paths, widths = [], []
    bottom = bool(random.integers(2))
    base = height * (0.97 if bottom else 0.03)
    for k, x in enumerate(np.arange(width * 0.04, width * 0.96, gap)):
        tick = gap * (1.5 if k % 5 == 0 else 0.8) * (-1 if bottom else 1)
        paths.append(np.array([[x, base], [x, base + tick]]))
        widths.append(height / 170)
    canvas.paint((0.08, 0.08, 0.09), canvas.lines(paths, widths, pixels=True) * 0.85)


def _bubbles(canvas: Canvas, random: np.random.Generator) -> None:
    height, width = canvas.view.size
    rows, columns = np.ogrid[:height, :width]
    for _ in range(int(random.integers(1, 6))):
        x, y = random.uniform(0, width), random.uniform(0, height)
        radius = random.uniform(0.02, 0.07) * height
        distance = np.hypot(columns - x, rows - y)
        rim = np.exp(-(((distance - radius) / (0.16 * radius + 0.5)) ** 2))
        glint = np.hypot(columns - x + 0.4 * radius, rows - y + 0.4 * radius)
        canvas.shade(0.85, rim)
        canvas.paint((0.97, 0.96, 0.95), smoothstep(0.3 * radius + 0.8, 0.1 * radius, glint) * 0.9)
        canvas.shade(1.08, smoothstep(radius, 0.7 * radius, distance))


def _ink(canvas: Canvas, random: np.random.Generator) -> None:
    height, width = canvas.view.size
    side = int(random.integers(4))
    along = np.linspace(0, 1, 12)
    wave = 0.05 * np.sin(2 * np.pi * along * random.uniform(0.5, 1.5) + random.uniform(0, 6))
    depth = random.uniform(0.03, 0.12) + wave
    low, high = sorted(random.uniform(0, 1, 2))
    run = low + (high + 0.3 - low) * along
    path = np.stack([run, depth] if side < 2 else [depth, run], axis=1)
    if side % 2:
        path = 1 - path
    points = path * np.array([width, height])
    stroke = canvas.lines([points], [random.uniform(0.03, 0.06) * height], pixels=True)
    patchy = np.clip(0.8 + 0.15 * canvas.field(0.3, random), 0, 1)
    canvas.paint(_INK[random.integers(len(_INK))], stroke * patchy * random.uniform(0.6, 0.9))


PAINTERS = {"hair": _hair, "ruler": _ruler, "gel_bubble": _bubbles, "ink": _ink}
"""Each artifact by name: paints it onto a canvas, with a random generator."""


def with_artifact(image: np.ndarray, name: str, random: np.random.Generator) -> np.ndarray:
    """Return an image, float (H, W, 3), 0 to 1, with one of ``PAINTERS`` painted over it."""
    height, width = image.shape[:2]
    view = View((height, width), (width / 2, height / 2), height * 0.35, 0.0, False)
    canvas = Canvas(view, SmoothNoise(random))
    canvas.image[:] = image
    PAINTERS[name](canvas, random)
    return canvas.image

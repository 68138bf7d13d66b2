"""Lesions of the embedded data set and the structures that decide their class.

The structures follow the dermoscopic criteria that the classes are known for (Kittler et al.,
"Standardization of terminology in dermoscopy", J Am Acad Dermatol 74, 2016,
doi:10.1016/j.jaad.2015.12.038), simplified. Colors of the classes overlap on purpose: it is the
shape and texture of the structures that tells the classes apart.
"""

from collections.abc import Callable

import numpy as np

from dermlens.data.synthetic_canvas import Canvas, Color, smoothstep

_BASES = np.array(
    [[0.64, 0.43, 0.31], [0.46, 0.29, 0.20], [0.71, 0.44, 0.40], [0.54, 0.43, 0.41]], np.float32
)
_HUES = np.array(
    [[0.86, 0.80, 0.76], [0.66, 0.20, 0.20], [0.47, 0.51, 0.60], [0.23, 0.15, 0.13]], np.float32
)
_STRENGTH = (0.62, 0.9)


def structure_hues() -> np.ndarray:
    """Return the hues that structures and distractors share: white, red, blue-gray, dark."""
    return _HUES


class Lesion:
    """Outline of one lesion in lesion coordinates, and its maps on a canvas.

    Attributes:
        rho: Distance from the center divided by the outline's in that direction, (H, W):
            below 1 inside the lesion.
        alpha: Opacity with the soft edge, (H, W).
        base: Mean color.
    """

    def __init__(self, canvas: Canvas, random: np.random.Generator) -> None:
        orders = np.arange(2, 8)
        self._orders = orders
        self._sizes = (
            random.uniform(0.3, 1.0) * random.uniform(-0.22, 0.22, orders.size) / (orders**0.7)
        )
        self._phases = random.uniform(0, 2 * np.pi, orders.size)
        weights = random.dirichlet([0.9] * len(_BASES)).astype(np.float32)
        self.base = np.clip(weights @ _BASES * random.uniform(0.88, 1.1), 0, 1)
        radius = np.hypot(canvas.u, canvas.v)
        rough = 0.05 * canvas.field(0.35, random)
        self.rho = radius / self.outline(np.arctan2(canvas.v, canvas.u)) + rough
        edge = random.uniform(0.05, 0.16)
        self.alpha = smoothstep(1 + edge, 1 - edge, self.rho)

    def outline(self, angle: np.ndarray) -> np.ndarray:
        """Return the distance of the outline from the center in the given directions."""
        waves = np.ones_like(angle)
        for order, size, phase in zip(self._orders, self._sizes, self._phases, strict=True):
            waves += np.float32(size) * np.cos(int(order) * angle + np.float32(phase))
        return waves

    def place(self, rho: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """Return points at the given shares of the way from the center to the outline, (N, 2)."""
        radius = rho * self.outline(angle)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

    def fill(self, canvas: Canvas, random: np.random.Generator) -> None:
        """Paint the lesion's body: its base color with two tones and a fine texture."""
        tone = 0.09 * canvas.field(1.1, random) + 0.05 * canvas.field(0.25, random)
        color = self.base * (1 + tone[..., None])
        canvas.paint(color, self.alpha * random.uniform(0.78, 0.95))


def _color(random: np.random.Generator, typical: Color) -> np.ndarray:
    """Return the typical color drawn toward another shared hue of about the same lightness."""
    typical_color = np.asarray(typical)
    other = _HUES[random.integers(len(_HUES))]
    # Darkening by a factor and lightening by a sum both keep the saturation natural.
    change = typical_color.mean() / other.mean()
    other = other * change if change < 1 else other + (typical_color.mean() - other.mean())
    share = 0.9 * random.uniform()
    color = (1 - share) * typical_color + share * other
    return np.clip(color * random.uniform(0.8, 1.25), 0, 1).astype(np.float32)


def _spread(
    lesion: Lesion, random: np.random.Generator, count: int, gap: float, reach: float
) -> np.ndarray:
    """Return up to ``count`` points inside the lesion, at least ``gap`` apart, (N, 2)."""
    candidates = lesion.place(
        reach * np.sqrt(random.uniform(0, 1, 12 * count)), random.uniform(0, 2 * np.pi, 12 * count)
    )
    kept: list[np.ndarray] = []
    for point in candidates:
        if all(np.hypot(*(point - other)) >= gap for other in kept):
            kept.append(point)
        if len(kept) == count:
            break
    return np.array(kept)


def _honeycomb(
    canvas: Canvas, random: np.random.Generator, spacing: float, warp: float
) -> np.ndarray:
    """Return a field of holes in a triangular lattice: 3 at hole centers, -1.5 on the mesh."""
    u = canvas.u + warp * canvas.field(0.9, random)
    v = canvas.v + warp * canvas.field(0.9, random)
    turn = random.uniform(0, np.pi)
    wave = 4 * np.pi / (np.sqrt(3) * spacing)
    total = np.zeros_like(u)
    for k in range(3):
        angle = turn + k * 2 * np.pi / 3
        total += np.cos(
            np.float32(wave) * (u * np.float32(np.cos(angle)) + v * np.float32(np.sin(angle)))
        )
    return total


def _patch(
    canvas: Canvas, lesion: Lesion, random: np.random.Generator, radius: float, offset: float
) -> np.ndarray:
    """Return a soft irregular patch inside the lesion, (H, W), 0 to 1."""
    place = lesion.place(np.array([offset]), np.array([random.uniform(0, 2 * np.pi)]))[0]
    distance = np.hypot(canvas.u - place[0], canvas.v - place[1]) / radius
    distance += 0.14 * canvas.field(0.5, random)
    return smoothstep(1.12, 0.88, distance) * smoothstep(1.0, 0.9, lesion.rho)


def pigment_network(canvas: Canvas, lesion: Lesion, random: np.random.Generator) -> np.ndarray:
    """Nevus: a regular mesh of dark lines over one large part of the lesion."""
    region = _patch(canvas, lesion, random, random.uniform(0.62, 0.82), random.uniform(0.0, 0.25))
    holes = _honeycomb(canvas, random, random.uniform(0.25, 0.33), 0.025)
    mesh = smoothstep(0.35, -0.75, holes)
    canvas.shade(1.12, region * (1 - mesh))
    color = _color(random, (0.25, 0.15, 0.11))
    canvas.paint(color, region * mesh * random.uniform(*_STRENGTH))
    return region > 0.5


def veil_and_streaks(canvas: Canvas, lesion: Lesion, random: np.random.Generator) -> np.ndarray:
    """Melanoma: a blue-white veil and thick irregular streaks across one arc of the border."""
    veil = _patch(canvas, lesion, random, random.uniform(0.42, 0.6), random.uniform(0.1, 0.45))
    haze = 1 + 0.10 * canvas.field(0.5, random)
    canvas.paint(
        _color(random, (0.52, 0.57, 0.67)) * haze[..., None], veil * random.uniform(*_STRENGTH)
    )
    start, arc = random.uniform(0, 2 * np.pi), random.uniform(2.4, 4.8)
    angles = (
        start + np.arange(0, arc, 0.21) + random.uniform(-0.04, 0.04, len(np.arange(0, arc, 0.21)))
    )
    paths, widths, tips = [], [], []
    for angle in angles:
        low, high = random.uniform(0.62, 0.8), random.uniform(1.03, 1.22)
        bend = random.uniform(-0.12, 0.12)
        steps = np.linspace(0, 1, 5)
        paths.append(lesion.place(low + (high - low) * steps, angle + bend * steps**2))
        widths.append(random.uniform(0.08, 0.13))
        tips.append(paths[-1][-1])
    streaks = np.maximum(
        canvas.lines(paths, widths), canvas.spots(np.array(tips), np.array(widths) * 0.62, 0.25)
    )
    canvas.paint(_color(random, (0.22, 0.15, 0.13)), streaks * random.uniform(*_STRENGTH))
    return (veil > 0.5) | _grown(canvas, streaks > 0.3, 0.05)


def cysts_and_openings(canvas: Canvas, lesion: Lesion, random: np.random.Generator) -> np.ndarray:
    """Benign keratosis: many bright milia-like cysts among dark comedo-like openings."""
    places = _spread(lesion, random, int(random.integers(20, 34)), 0.24, 0.86)
    radii = random.uniform(0.065, 0.105, len(places))
    dark = random.uniform(size=len(places)) < 0.35
    radii = np.where(dark, radii * 1.15, radii)
    cysts = canvas.spots(places[~dark], radii[~dark], 0.4)
    openings = canvas.spots(places[dark], radii[dark], 0.3)
    rims = canvas.spots(places[dark], radii[dark] * 1.5, 0.3)
    canvas.shade(1.15, rims)
    canvas.paint(_color(random, (0.27, 0.17, 0.11)), openings * random.uniform(*_STRENGTH))
    canvas.paint(_color(random, (0.93, 0.87, 0.77)), cysts * random.uniform(*_STRENGTH))
    return _grown(canvas, np.maximum(cysts, openings) > 0.4, 0.06)


def arborizing_vessels(canvas: Canvas, lesion: Lesion, random: np.random.Generator) -> np.ndarray:
    """Basal cell carcinoma: thick vessels that branch like a tree."""
    paths: list[np.ndarray] = []
    widths: list[float] = []

    def grow(start: np.ndarray, heading: float, width: float, length: float) -> None:
        turns = heading + np.cumsum(random.normal(0, 0.17, 9))
        steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * (length / 9)
        path = np.concatenate([start[None], start + np.cumsum(steps, axis=0)])
        paths.append(path)
        widths.append(width)
        if width < 0.035:
            return
        for k, side in ((3, 1), (6, -1), (9, 1), (9, -1)):
            bend = side * random.uniform(0.45, 0.95)
            grow(path[k], turns[k - 1] + bend, width * random.uniform(0.52, 0.68), length * 0.58)

    first = random.uniform(0, 2 * np.pi)
    for angle in first + np.linspace(0, 2 * np.pi, int(random.integers(2, 4)), endpoint=False):
        start = lesion.place(np.array([0.88]), np.array([angle]))[0]
        grow(start, angle + np.pi + random.uniform(-0.4, 0.4), random.uniform(0.085, 0.12), 0.95)
    vessels = canvas.lines(paths, widths) * smoothstep(1.05, 0.92, lesion.rho)
    canvas.shade(1.08, smoothstep(0.95, 0.8, lesion.rho))
    canvas.paint(_color(random, (0.60, 0.13, 0.15)), vessels * random.uniform(*_STRENGTH))
    return _grown(canvas, vessels > 0.3, 0.08)


def white_patch_and_ring(canvas: Canvas, lesion: Lesion, random: np.random.Generator) -> np.ndarray:
    """Dermatofibroma: a central white patch inside a ring of delicate network."""
    inner = random.uniform(0.40, 0.52)
    rough = lesion.rho + 0.05 * canvas.field(0.4, random)
    ring = smoothstep(inner, inner + 0.12, rough) * smoothstep(0.93, 0.82, lesion.rho)
    mesh = smoothstep(0.1, -0.8, _honeycomb(canvas, random, random.uniform(0.19, 0.23), 0.02))
    canvas.paint(_color(random, (0.34, 0.22, 0.16)), ring * mesh * 0.6)
    patch = smoothstep(inner + 0.04, inner - 0.1, rough)
    scar = 1 + 0.04 * canvas.field(0.15, random)
    canvas.paint(
        _color(random, (0.88, 0.81, 0.76)) * scar[..., None], patch * random.uniform(*_STRENGTH)
    )
    return (patch > 0.3) | (ring > 0.5)


def strawberry(canvas: Canvas, lesion: Lesion, random: np.random.Generator) -> np.ndarray:
    """Actinic keratosis: pale follicle circles, each with a plug, on a reddish net."""
    region = _patch(canvas, lesion, random, random.uniform(0.72, 0.9), random.uniform(0.0, 0.2))
    holes = _honeycomb(canvas, random, random.uniform(0.42, 0.5), 0.04)
    disc = smoothstep(0.75, 1.35, holes)
    plug = smoothstep(2.45, 2.75, holes)
    canvas.paint(
        _color(random, (0.66, 0.28, 0.25)), region * (1 - disc) * random.uniform(0.55, 0.75)
    )
    canvas.paint(_color(random, (0.90, 0.80, 0.69)), region * disc * random.uniform(*_STRENGTH))
    canvas.paint(_color(random, (0.45, 0.28, 0.17)), region * plug * random.uniform(*_STRENGTH))
    return region > 0.5


def lacunae(canvas: Canvas, lesion: Lesion, random: np.random.Generator) -> np.ndarray:
    """Vascular lesion: big rounded blobs separated by pale septa."""
    places = _spread(lesion, random, int(random.integers(8, 14)), 0.44, 0.72)
    warp_u, warp_v = 0.05 * canvas.field(0.6, random), 0.05 * canvas.field(0.6, random)
    first = np.full(canvas.view.size, 9.0, np.float32)
    second = first.copy()
    for u, v in places:
        distance = np.hypot(canvas.u + warp_u - u, canvas.v + warp_v - v)
        second = np.minimum(second, np.maximum(first, distance))
        first = np.minimum(first, distance)
    blob = smoothstep(0.05, 0.15, second - first) * smoothstep(0.36, 0.27, first)
    blob *= smoothstep(1.0, 0.93, lesion.rho)
    field = smoothstep(0.5, 0.42, first) * smoothstep(1.0, 0.93, lesion.rho)
    canvas.paint(_color(random, (0.82, 0.68, 0.62)), field * (1 - blob) * 0.7)
    depth = 1.1 - 0.35 * smoothstep(0.0, 0.3, first)
    color = _color(random, (0.50, 0.16, 0.20)) * depth[..., None]
    canvas.paint(color, blob * random.uniform(*_STRENGTH))
    return field > 0.5


def _grown(canvas: Canvas, mask: np.ndarray, margin: float) -> np.ndarray:
    """Return the mask with a margin in lesion units around it."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return mask
    return distance_transform_edt(~mask) <= margin * canvas.view.scale


STRUCTURES: dict[str, Callable[[Canvas, Lesion, np.random.Generator], np.ndarray]] = {
    "akiec": strawberry,
    "bcc": arborizing_vessels,
    "bkl": cysts_and_openings,
    "df": white_patch_and_ring,
    "mel": veil_and_streaks,
    "nv": pigment_network,
    "vasc": lacunae,
}
"""What each class shows: paints it and returns its mask, bool (H, W)."""

"""Shortcut probe: does the decision, or the attribution, follow artifacts instead of the lesion?

Known shortcuts of lesion classifiers (Winkler et al., JAMA Dermatology 2019: ink; Bissoto et al.,
CVPR Workshops 2019: lesion removed; Rieger et al., ICML 2020: color patches) are pasted into an
image one at a time. A sound model keeps its decision and does not move its attribution onto them;
without the lesion it should know nothing. An automated proxy, not validated by clinicians: pasted
artifacts are drawings, and a flip does not show that real ones flip decisions as often.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.base import image_generator
from dermlens.explainers.baselines import baseline_image
from dermlens.quality.imputation import impute
from dermlens.quality.localization import relevance_mass
from dermlens.quality.metric import Explain

ARTIFACTS: tuple[str, ...] = ("ruler", "ink", "gel_bubble", "hair", "dark_corner", "color_patch")
ABLATIONS: tuple[str, ...] = ("lesion_removed", "lesion_isolated")
_VISIBLE = 8.0
_PATCH_COLORS = ((64, 132, 214), (246, 190, 55), (94, 170, 90), (226, 100, 120))
_MARGIN_SHARE = 0.15

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Images (n, H, W, 3) to probabilities (n, C) and most probable classes (n,)."""


@dataclass(frozen=True)
class Probe:
    """A changed image, float32 RGB 0..255, (H, W, 3), and where (H, W) it visibly changed."""

    name: str
    image: np.ndarray
    where: np.ndarray


def paste(image: np.ndarray, name: str, seed: int = 0) -> Probe:
    """Paste one of ``ARTIFACTS`` into an image; place and look depend on seed and image alone."""
    if name not in ARTIFACTS:
        raise UsageError(f"Unknown artifact {name!r}. Use some of: {', '.join(ARTIFACTS)}.")
    original = np.asarray(image, np.float32)
    generator = image_generator(seed + 7919 * ARTIFACTS.index(name), original)
    drawn = {"dark_corner": _dark_corners, "color_patch": _color_patch}.get(name)
    changed = drawn(original, generator) if drawn else _drawn(original, name, generator)
    changed = np.clip(changed, 0, 255).astype(np.float32)
    return Probe(name, changed, np.abs(changed - original).max(axis=-1) >= _VISIBLE)


def _drawn(image: np.ndarray, name: str, generator: np.random.Generator) -> np.ndarray:
    """Draw what the embedded data set draws."""
    from dermlens.data.synthetic_distractors import with_artifact

    return np.clip(with_artifact(image / 255, name, generator), 0, 1) * 255


def _dark_corners(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Darken the corners, as the round tube of a dermatoscope does."""
    from dermlens.data.synthetic_canvas import smoothstep

    height, width = image.shape[:2]
    y = np.linspace(-1, 1, height)[:, None]
    x = np.linspace(-1, 1, width)[None] * width / height
    radius = np.hypot(y, x) / np.hypot(1, width / height)
    shade = 1 - 0.94 * smoothstep(0.80, 0.86, radius)
    return image * shade[..., None]


def _color_patch(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Stick a round colored plaster to one corner, as seen in photographs of children's nevi."""
    from dermlens.data.synthetic_canvas import smoothstep

    height, width = image.shape[:2]
    radius = 0.2 * min(height, width)
    row = generator.choice([0.06, 0.94]) * height
    column = generator.choice([0.06, 0.94]) * width
    rows, columns = np.ogrid[:height, :width]
    distance = np.hypot(rows - row, columns - column)
    opacity = smoothstep(radius + 1, radius - 1, distance)[..., None]
    color = np.array(_PATCH_COLORS[generator.integers(len(_PATCH_COLORS))], np.float32)
    return image + (color - image) * opacity


def ablate(image: np.ndarray, mask: np.ndarray, name: str, seed: int = 0) -> Probe:
    """Take the lesion away, or everything but the lesion.

    The lesion and a margin are imputed from the skin around, or everything outside becomes plain
    skin color; UsageError if there is no such ablation.
    """
    from scipy.ndimage import distance_transform_edt

    from dermlens.lesion.relevance import equivalent_radius

    if name not in ABLATIONS:
        raise UsageError(f"Unknown ablation {name!r}. Use some of: {', '.join(ABLATIONS)}.")
    original, mask = np.asarray(image, np.float32), np.asarray(mask, bool)
    if name == "lesion_isolated":
        kept = np.where(mask[..., None], original, baseline_image(original, "border"))
        return Probe(name, kept, ~mask)
    # The outline is drawn tight: a rim of pigment outside it would give the lesion away.
    where = mask.copy()
    if not mask.all():
        where = distance_transform_edt(~mask) <= max(1.0, _MARGIN_SHARE * equivalent_radius(mask))
    return Probe(name, impute(original[None], where[None], seed=seed)[0], where)


def probe_images(image: np.ndarray, mask: np.ndarray | None, seed: int = 0) -> list[Probe]:
    """Return all probes of an image, artifacts first; without a lesion mask only these."""
    probes = [paste(image, name, seed) for name in ARTIFACTS]
    if mask is not None and np.asarray(mask, bool).any():
        probes += [ablate(image, mask, name, seed) for name in ABLATIONS]
    return probes


def probe(
    image: np.ndarray,
    mask: np.ndarray | None,
    predict: Predict,
    *,
    explainers: Mapping[str, Explain] | None = None,
    watched: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return how decision, probabilities and attribution react to each probe.

    ``mask`` is the lesion (H, W), if it is known; explainers' maps explain the class predicted on
    the unchanged image; ``watched`` is the class whose probability is followed (melanoma).

    Returns:
        A row per probe: ``probe``, ``flipped`` (decision changed), ``change_of_target`` (in the
        probability of the original decision), ``change_of_watched``, ``area`` (share of pixels
        changed); for artifacts and each method ``moved_<method>``: share of positive attribution
        on the artifact's pixels, less what lay there before; negative if it moved away.

    Cost: 9 forward passes, and 7 explanations per method.
    """
    probes = probe_images(image, mask, seed)
    pictures = np.stack([np.asarray(image, np.float32), *(one.image for one in probes)])
    probabilities, predicted = predict(pictures)
    target, artifacts = int(predicted[0]), [one for one in probes if one.name in ARTIFACTS]
    moved = {
        name: _moved(explain, pictures[: len(artifacts) + 1], target, artifacts)
        for name, explain in (explainers or {}).items()
    }
    rows = []
    for number, one in enumerate(probes):
        after = probabilities[number + 1] - probabilities[0]
        row: dict[str, Any] = {
            "probe": one.name,
            "flipped": float(predicted[number + 1] != target),
            "change_of_target": float(after[target]),
            "change_of_watched": float("nan") if watched is None else float(after[watched]),
            "area": float(one.where.mean()),
        }
        rows.append(
            row | {f"moved_{name}": found.get(one.name, np.nan) for name, found in moved.items()}
        )
    return rows


def _moved(
    explain: Explain, pictures: np.ndarray, target: int, artifacts: list[Probe]
) -> dict[str, float]:
    """Return how much attribution moved onto each artifact; the first picture is unchanged."""
    maps = explain(pictures, np.full(len(pictures), target, np.int32))
    where = np.stack([one.where for one in artifacts])
    before = relevance_mass(np.repeat(maps[:1], len(artifacts), axis=0), where)
    found = (relevance_mass(maps[1:], where) - before).tolist()
    return dict(zip((one.name for one in artifacts), found, strict=True))

"""Do maps made with the int8 copy of a model agree with those of the model itself?

Same images, same classes, same random masks: what differs is the evaluator alone. Pearson's r of
the raw maps and the overlap of their strongest fifth are kept with the copy, and decide whether
it is used unasked (``model.scorers``).
"""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.images import load_image
from dermlens.data.manifest import read_manifest, sample_in_proportion, select_split
from dermlens.errors import UsageError
from dermlens.explainers.registry import METHODS, create, create_several
from dermlens.explainers.target import resolve_targets
from dermlens.files import read_json, write_json
from dermlens.model.bundle import Bundle
from dermlens.model.int8_copy import PARTIAL, int8_copy
from dermlens.model.scorers import SUFFICIENT_CORRELATION
from dermlens.progress import progress
from dermlens.quality.agreement import TOP_SHARE, pearson, top_overlap

SCORED: tuple[str, ...] = ("occlusion", "lime", "gp_shap", "rise")
"""Methods that can use another evaluator than the Keras model."""


def images_of_split(
    data: Path, split: str, n: int, size: tuple[int, int], *, seed: int = 0
) -> np.ndarray:
    """Return about ``n`` images of a split, of every diagnosis its share: uint8 (N, H, W, 3)."""
    table = sample_in_proportion(select_split(read_manifest(data), split), n, seed)
    return np.stack([load_image(Path(data) / path, size) for path in table.path])


def measure_scorer(
    bundle: Bundle,
    images: np.ndarray,
    *,
    methods: Sequence[str] = SCORED,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    source: str = "given images",
    batch_size: int = 16,
    seed: int = 0,
) -> tuple[dict[str, Any], Path]:
    """Make the int8 copy if need be, compare its maps with the model's, and keep the result.

    The most probable class of the model is explained, the same for both. Interrupted, it goes on
    where it was when called again with the same arguments.

    Returns:
        What was measured: ``images``, ``source`` and by method ``pearson`` (mean over images),
        ``lowest_pearson``, ``top_20_iou`` (mean), ``forward_passes`` and the seconds per image of
        both; and the file it was written to.

    Raises:
        UsageError: If a method cannot use a scorer, or there are no images.
        ModelError: If the copy cannot be made.
    """
    unable = [name for name in methods if METHODS[name].family != "perturbation"]
    if unable or not methods:
        raise UsageError(
            f"Only methods that look at changed images have a scorer, not {', '.join(unable)}. "
            f"Use some of: {', '.join(SCORED)}."
        )
    if len(images) == 0:
        raise UsageError("Agreement cannot be measured without images. Give at least one.")
    copy = int8_copy(bundle)
    scorer = copy.scorer(bundle.model)
    goals = resolve_targets(None, bundle.logits(images, batch_size=batch_size), bundle.labels)
    exact, copied = (_explainers(bundle, methods, one, options or {}) for one in (None, scorer))
    # What was measured before an interruption, by method and image, if all else was the same.
    partial = copy.folder / PARTIAL
    of = zlib.crc32(f"{methods} {options} {seed} {copy.facts}".encode())
    stored = read_json(partial) if partial.is_file() else {}
    kept: dict[str, Any] = stored["rows"] if stored.get("of") == of else {}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    with progress("Comparing scorers", len(methods) * len(images)) as advance:
        for image, goal in zip(images, goals, strict=True):
            for name in methods:
                key = f"{name} {zlib.crc32(np.ascontiguousarray(image).data)}"
                if key not in kept:
                    pair = (exact[name], copied[name])
                    kept[key] = _row(pair, image, int(goal), batch_size, seed)
                    write_json(partial, {"of": of, "rows": kept})
                rows[name].append(kept[key])
                advance(1, name)
    results = {name: _summary(found) for name, found in rows.items()}
    measured = {"source": source, "images": len(images), "seed": seed, "methods": results}
    path = copy.store_agreement(measured)
    partial.unlink(missing_ok=True)
    return measured, path


def _explainers(
    bundle: Bundle,
    methods: Sequence[str],
    scorer: Any | None,
    options: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return explainers as the command line builds them, LIME and Shapley values sharing masks."""
    scorers = {} if scorer is None else dict.fromkeys(methods, scorer)
    if not options:
        return dict(create_several(methods, bundle, scorers=scorers))
    return {name: create(name, bundle, scorer=scorer, **options.get(name, {})) for name in methods}


def _row(
    pair: Sequence[Any], image: np.ndarray, goal: int, batch_size: int, seed: int
) -> dict[str, float]:
    exact, copied = (
        one.attribute(image[None], goal, batch_size=batch_size, seed=seed) for one in pair
    )
    return {
        "pearson": float(pearson(exact.maps, copied.maps)[0]),
        "top_20_iou": float(top_overlap(exact.maps, copied.maps, TOP_SHARE)[0]),
        "forward_passes": exact.cost.forward,
        "float32_seconds": exact.cost.seconds,
        "int8_seconds": copied.cost.seconds,
    }


def _summary(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    lowest = min(row["pearson"] for row in rows)
    # The first image of each also pays for tracing.
    for name in ("float32_seconds", "int8_seconds"):
        mean[name] = float(np.median([row[name] for row in rows]))
    return {"pearson": mean.pop("pearson"), "lowest_pearson": lowest, **mean}


def agreement_lines(measured: Mapping[str, Any]) -> list[str]:
    """Say what was measured, one line per method."""
    lines = [f"int8 copy against the Keras model on {measured['source']}:"]
    for name, row in measured["methods"].items():
        used = "used unasked" if row["pearson"] >= SUFFICIENT_CORRELATION else "only on request"
        lines.append(
            f"{name}: r {row['pearson']:.4f} (lowest {row['lowest_pearson']:.4f}), strongest fifth "
            f"IoU {row['top_20_iou']:.3f}, {row['float32_seconds']:.2f} s and "
            f"{row['int8_seconds']:.2f} s an image; {used}"
        )
    return lines

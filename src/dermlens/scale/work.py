"""The unit of work: one shard, from paths to files. Engines call it, and know nothing of it."""

import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.images import load_image
from dermlens.errors import DataError, ModelError
from dermlens.explainers.attribution import Attribution
from dermlens.explainers.base import batches
from dermlens.explainers.output import parse_output
from dermlens.explainers.registry import METHODS, create_several, sharing_methods
from dermlens.explainers.target import resolve_targets
from dermlens.model.bundle import Bundle, load_bundle
from dermlens.model.scorers import scorers_named
from dermlens.progress import printable
from dermlens.scale.files import write_shard
from dermlens.scale.plan import Job, Shard
from dermlens.serve.prediction import predict_files

_ADDRESS = re.compile(r"( at)? 0x[0-9a-fA-F]+")

Content = tuple[pd.DataFrame, dict[str, np.ndarray] | None]
"""A row for each image, and maps by method, float16 (N, H, W)."""


def shard_maker(job: Job, out: Path) -> Callable[[Shard], None]:
    """Load what a job needs, once, and return the function that makes a shard of it.

    Args:
        job: What is done with every image.
        out: Folder to write.

    Raises:
        ModelError: If the bundle is another one than the plan was made for.
    """
    bundle = load_bundle(job.bundle, custom=job.custom)
    if bundle.identity["fingerprint"] != job.model:
        raise ModelError(
            f"{job.bundle} is another model than the one the shards were begun with. Use the same "
            "bundle on every machine."
        )
    if job.kind == "predict":
        return partial(make_shard, partial(predicted, bundle, job), out)
    return partial(make_shard, _explaining(bundle, job), out)


def make_shard(content: Callable[[Shard], Content], out: Path, shard: Shard) -> None:
    """Make one shard: the same files, whoever calls this and wherever."""
    write_shard(out, shard, *content(shard))


def passes_of(job: Job) -> int:
    """Return about how many passes through the network an image takes."""
    if job.kind == "predict":
        return int(job.settings["tta_views"])
    names = job.settings["methods"]
    shared = sharing_methods(names)[1:]
    each = [METHODS[name] for name in names if name not in shared]
    return 1 + sum(one.forward + one.backward for one in each)


def predicted(bundle: Bundle, job: Job, shard: Shard) -> Content:
    """Predict the images of a shard: the columns of ``dermlens predict``."""
    table = predict_files(
        bundle,
        [Path(path) for _, path in shard.images],
        **job.settings,
        advance=lambda *_: None,
    )
    table["image_id"] = [printable(name) for name, _ in shard.images]
    table["error"] = table.error.map(without_address)
    return table, None


def _explaining(bundle: Bundle, job: Job) -> Callable[[Shard], Content]:
    """Build the explainers of a job, which are traced once, and return what uses them."""
    scorers = scorers_named(bundle, job.settings["scorers"])
    explainers = create_several(job.settings["methods"], bundle, scorers=scorers)
    predictor = bundle.predictor(batch_size=job.settings["batch_size"])
    return partial(explained, bundle, job, explainers, predictor)


def explained(
    bundle: Bundle, job: Job, explainers: dict[str, Any], predictor: Any, shard: Shard
) -> Content:
    """Explain the images of a shard: what is explained, its probability, and maps."""
    how, size = job.settings, bundle.input_size
    count = len(shard.images)
    maps = {name: np.full((count, *size), np.nan, np.float16) for name in explainers}
    rows: list[dict[str, Any]] = [
        {"image_id": printable(name), "path": printable(path), "error": ""}
        for name, path in shard.images
    ]
    output = parse_output(how["output"], bundle)
    for part in batches(count, how["batch_size"]):
        opened = _opened(shard, part, size, rows)
        if not opened:
            continue
        places, images = list(opened), np.stack(list(opened.values()))
        logits = predictor.logits(images)
        goals = resolve_targets(how["target"], logits, bundle.labels)
        shares = bundle.probabilities(logits)
        for place, goal, share in zip(places, goals, shares, strict=True):
            rows[place] |= {"target": bundle.classes[goal], "model": bundle.label}
            named = zip(bundle.classes, share, strict=True)
            rows[place] |= {f"probability_{code}": float(p) for code, p in named}
        for name, explainer in explainers.items():
            result = explainer.attribute(
                images, goals, output=output, batch_size=how["batch_size"], seed=how["seed"]
            )
            for position, place in enumerate(places):
                maps[name][place], scale = scaled(result.maps[position])
                rows[place] |= {f"{name}_scale": scale, **_figures(name, result, position)}
    return pd.DataFrame(rows), maps


def _opened(
    shard: Shard, part: slice, size: tuple[int, int], rows: list[dict[str, Any]]
) -> dict[int, np.ndarray]:
    """Return the pixels of some images by position; what cannot be read gets its error."""
    opened = {}
    for place in range(part.start, part.stop):
        try:
            opened[place] = load_image(Path(shard.images[place][1]), size)
        except DataError as error:
            rows[place]["error"] = without_address(printable(str(error)))
    return opened


def scaled(map_: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a map as float16 in -1..1 and what to multiply it by.

    Values of maps differ by many powers of ten from method to method, and half precision holds few.
    """
    scale = float(np.abs(map_).max())
    if not np.isfinite(scale) or scale == 0:
        return map_.astype(np.float16), 1.0
    return (map_ / np.float32(scale)).astype(np.float16), scale


def _figures(name: str, result: Attribution, position: int) -> dict[str, float]:
    """Return the figures of one image's map: the output that is explained, accuracy, and so on."""
    found = {f"{name}_output": float(result.values[position])}
    for one in fields(result)[len(fields(Attribution)) :]:
        value = getattr(result, one.name)
        if one.metadata and isinstance(value, np.ndarray) and value.ndim == 1:
            found[f"{name}_{one.name}"] = float(value[position])
    return found


def without_address(text: str) -> str:
    """Return a text without the addresses of objects, which differ from run to run.

    Example:
        >>> without_address("cannot read <_io.BytesIO object at 0x7f52c8>")
        'cannot read <_io.BytesIO object>'
    """
    return _ADDRESS.sub("", text)

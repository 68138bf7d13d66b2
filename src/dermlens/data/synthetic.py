"""The embedded data set: drawn dermatoscopic-like images with known structures.

It needs no download, and it knows what decides the class of each image: next to the lesion mask
stands the mask of the structure that was drawn for the diagnosis, so explanations can be scored
against the truth. These are drawings, not photographs: nothing measured on them says how good a
model is on patients.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.images import inspect_image
from dermlens.data.manifest import (
    class_counts,
    data_set_kind,
    fingerprint,
    read_manifest,
    write_manifest,
)
from dermlens.data.synthetic_canvas import Canvas, SmoothNoise, View
from dermlens.data.synthetic_distractors import add_artifacts, light, paint_skin, smear_colors
from dermlens.data.synthetic_structures import STRUCTURES, Lesion
from dermlens.errors import DataError, UsageError
from dermlens.files import read_json, write_csv, write_json
from dermlens.folders import folder_beside
from dermlens.labels import HAM10000, LabelSet
from dermlens.leftovers import end_with_parent
from dermlens.locks import folder_lock
from dermlens.progress import progress

KIND = data_set_kind("a synthetic data set")
LICENSE = "Drawn by dermlens, MIT license: synthetic images that show no patient."
WEIGHTS: dict[str, float] = {
    "akiec": 0.11,
    "bcc": 0.12,
    "bkl": 0.13,
    "df": 0.10,
    "mel": 0.13,
    "nv": 0.30,
    "vasc": 0.11,
}
"""Share of each drawing among the images; those of other classes come as often as the mean."""
_ALIKE = {"ak": "akiec", "benign": "nv", "malignant": "mel"}
"""Classes of other label sets that are drawn like one of HAM10000."""

_JPEG_QUALITY = 95
_IMAGES_PER_TASK = 8
_VIEW_SHARES = (0.75, 0.17, 0.08)
_MEAN_AGES = {"akiec": 68, "bcc": 66, "bkl": 63, "df": 48, "mel": 60, "nv": 45, "vasc": 50}
_PLACES = ("back", "trunk", "lower extremity", "upper extremity", "abdomen", "face", "chest")


@dataclass(frozen=True)
class _Task:
    """One image to draw and write."""

    folder: str
    image_id: str
    shown: tuple[str, ...]
    lesion_seed: tuple[int, int]
    view_seed: tuple[int, int, int]
    size: tuple[int, int]


def draw(
    dx: str, seed: int, size: tuple[int, int] = (192, 256)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one dermatoscopic-like image of a diagnosis.

    Args:
        dx: Diagnosis of HAM10000.
        seed: Seed; the same seed draws the same image.
        size: (height, width) in pixels.

    Returns:
        Image uint8 (H, W, 3), mask of the lesion bool (H, W), and mask of the structure that
        decides the class bool (H, W), which lies inside the lesion's.

    Raises:
        UsageError: If the diagnosis is unknown.

    Example:
        >>> image, lesion, structure = draw("bcc", seed=3, size=(96, 128))
        >>> image.shape, image.dtype.name, bool(lesion[structure].all())
        ((96, 128, 3), 'uint8', True)
    """
    HAM10000.of(dx)
    return draw_view((dx,), (seed, 0), (seed, 0, 1), size)


def drawings(labels: LabelSet) -> dict[str, tuple[str, ...]]:
    """Return which structures each class of a label set is drawn with.

    Classes of HAM10000 have their own; others get those that are left, and, where none is left,
    two together that no other class shows together.

    Example:
        >>> from dermlens.labels import named_classes
        >>> drawings(named_classes(["benign", "malignant"]))
        {'benign': ('nv',), 'malignant': ('mel',)}
    """
    alone = {code: _ALIKE.get(code, code) for code in labels.codes}
    shown: dict[str, tuple[str, ...]] = {
        code: (one,) for code, one in alone.items() if one in STRUCTURES
    }
    left = [(one,) for one in STRUCTURES if (one,) not in shown.values()]
    pairs: Iterator[tuple[str, ...]] = iter([*left, *combinations(STRUCTURES, 2)])
    for code in labels.codes:
        if code not in shown:
            shown[code] = next(pairs)
    return {code: shown[code] for code in labels.codes}


def draw_view(
    shown: Sequence[str],
    lesion_seed: tuple[int, ...],
    view_seed: tuple[int, ...],
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one view of a lesion: ``lesion_seed`` fixes the lesion, skin and structures;
    ``view_seed`` the position, rotation, zoom, light, color smears and artifacts.

    Args:
        shown: Keys of ``STRUCTURES`` that the lesion shows.
        lesion_seed: Seed of the lesion.
        view_seed: Seed of the view.
        size: (height, width) in pixels.

    Returns:
        As ``draw``.
    """
    of_lesion, of_view = np.random.default_rng(lesion_seed), np.random.default_rng(view_seed)
    canvas = Canvas(camera_view(of_view, size), SmoothNoise(of_lesion))
    paint_skin(canvas, of_lesion)
    lesion = Lesion(canvas, of_lesion)
    lesion.fill(canvas, of_lesion)
    smear_colors(canvas, lesion, of_view)
    structure = np.logical_or.reduce([STRUCTURES[one](canvas, lesion, of_lesion) for one in shown])
    add_artifacts(canvas, of_view)
    light(canvas, of_view)
    grain = of_view.standard_normal((*size, 1), dtype=np.float32) * of_view.uniform(0.006, 0.016)
    image = (np.clip(canvas.image + grain, 0, 1) * 255 + 0.5).astype(np.uint8)
    return image, (lesion.rho < 1) | structure, structure


def camera_view(random: np.random.Generator, size: tuple[int, int]) -> View:
    """Return a random view: the lesion near the middle, turned and zoomed at will."""
    height, width = size
    return View(
        size=size,
        center=(
            width * (0.5 + random.uniform(-0.13, 0.13)),
            height * (0.5 + random.uniform(-0.08, 0.08)),
        ),
        scale=height * random.uniform(0.29, 0.40),
        angle=float(random.uniform(0, 2 * np.pi)),
        mirrored=bool(random.integers(2)),
    )


def make_synthetic(
    out: Path,
    *,
    images: int,
    size: tuple[int, int] = (192, 256),
    seed: int = 0,
    labels: LabelSet = HAM10000,
    workers: int | None = None,
) -> pd.DataFrame:
    """Draw the embedded data set into a prepared data set, not split yet.

    About a quarter of the lesions have two or three images. The files do not depend on the
    number of workers; a folder that already holds this very data set is left as it is.

    Args:
        out: Folder to write; see ``dermlens.data.manifest`` for its layout.
        images: Number of images.
        size: (height, width) in pixels.
        seed: Seed.
        labels: Classes to draw; structures of other sets than HAM10000's are chosen by
            ``drawings``.
        workers: Processes; default one per processor.

    Returns:
        The manifest.

    Raises:
        DataError: If ``out`` exists and is not a synthetic data set, or holds something else too.
        UsageError: If ``images`` or ``size`` is too small to draw, the seed is negative, or another
            run uses ``out``.
    """
    out = Path(out)
    if images < 1 or min(size) < 32:
        raise UsageError(
            f"Cannot draw {images} image(s) of {size[0]}x{size[1]} pixels. "
            "Ask for at least one image of at least 32x32 pixels."
        )
    if seed < 0:
        raise UsageError(f"The seed must not be negative, but is {seed}.")
    request = {"images": images, "size": list(size), "seed": seed, "labels": labels.to_json()}
    with folder_lock(out):
        if not _holds(out, request):
            _make(out, request, labels, size, workers)
        return read_manifest(out)


def _make(
    out: Path,
    request: dict[str, Any],
    labels: LabelSet,
    size: tuple[int, int],
    workers: int | None,
) -> None:
    table, tasks_of = _plan(request["images"], request["seed"], labels)
    with folder_beside(out, KIND) as folder:
        for name in ("images", "masks", "structures"):
            (folder / name).mkdir()
        tasks = [_Task(str(folder), *task, size) for task in tasks_of]
        checks = pd.DataFrame(_draw_all(tasks, workers))
        write_manifest(folder, table, labels)
        write_csv(folder / "images.csv", checks)
        write_json(folder / "dataset.json", _summary(table, checks, request, labels))


def _holds(out: Path, request: dict[str, Any]) -> bool:
    """Whether the folder holds exactly what is asked for; refuse a folder of something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    facts = read_json(out / "dataset.json") if (out / "dataset.json").is_file() else {}
    if not (isinstance(facts, dict) and facts.get("source") == "synthetic"):
        raise DataError(
            f"{out} exists and is not a synthetic data set. Choose another folder for --out."
        )
    held = {
        "images": facts.get("n_images"),
        **{k: facts.get(k) for k in ("size", "seed", "labels")},
    }
    return held == request and (out / "manifest.csv").is_file()


def _summary(
    table: pd.DataFrame, checks: pd.DataFrame, request: dict[str, Any], labels: LabelSet
) -> dict[str, Any]:
    return {
        "name": "dermlens synthetic",
        "source": "synthetic",
        "synthetic": True,
        "license": LICENSE,
        "n_images": len(table),
        "n_lesions": int(table.lesion_id.nunique()),
        "n_masks": len(table),
        "per_class": class_counts(table, labels),
        "fingerprint": fingerprint(table, checks),
        "n_missing_images": 0,
        "missing_images": [],
        "seed": request["seed"],
        "size": request["size"],
        "labels": request["labels"],
    }


def _plan(
    images: int, seed: int, labels: LabelSet
) -> tuple[pd.DataFrame, list[tuple[str, tuple[str, ...], tuple[int, int], tuple[int, int, int]]]]:
    """Lay out the data set: the manifest, and id, structures and seeds of every image."""
    random = np.random.default_rng((seed, 7))
    shown = drawings(labels)
    weights = {code: WEIGHTS.get(code, 1 / len(WEIGHTS)) for code in shown}
    counts = dict.fromkeys(shown, 0)
    rows: list[dict[str, Any]] = []
    tasks = []
    lesion = 0
    while len(rows) < images:
        # The class that lacks most comes next, so even small sets hold every class.
        dx = max(weights, key=lambda code: weights[code] * (len(rows) + 1) - counts[code])
        about = _metadata(shown[dx][0], random)
        views = 1 + int(random.choice(3, p=_VIEW_SHARES))
        for view in range(min(views, images - len(rows))):
            image_id = f"SYN_{len(rows):07d}"
            tasks.append((image_id, shown[dx], (seed, lesion), (seed, lesion, view + 1)))
            rows.append(
                {
                    "image_id": image_id,
                    "path": f"images/{image_id}.jpg",
                    "mask_path": f"masks/{image_id}_segmentation.png",
                    "lesion_id": f"SYNL_{lesion:07d}",
                    "dx": dx,
                    **about,
                    "split": np.nan,
                }
            )
            counts[dx] += 1
        lesion += 1
    return pd.DataFrame(rows), tasks


def _metadata(dx: str, random: np.random.Generator) -> dict[str, Any]:
    """Invent plausible metadata; some values are missing, as in real tables."""
    age = float(5 * round(np.clip(random.normal(_MEAN_AGES[dx], 14), 5, 85) / 5))
    proven = dx in ("mel", "bcc", "akiec") or random.uniform() < 0.5
    missing = random.uniform(size=3) < (0.02, 0.02, 0.03)
    sex = str(random.choice(["female", "male"]))
    place = str(random.choice(_PLACES))
    return {
        "dx_type": "histo" if proven else str(random.choice(["follow_up", "consensus"])),
        "age": np.nan if missing[0] else age,
        "sex": np.nan if missing[1] else sex,
        "localization": np.nan if missing[2] else place,
    }


def _draw_all(tasks: list[_Task], workers: int | None) -> list[dict[str, Any]]:
    processes = min(workers or os.cpu_count() or 1, -(-len(tasks) // _IMAGES_PER_TASK))
    checks: list[dict[str, Any]] = []
    with progress("drawing", len(tasks)) as advance:
        for done in _results(tasks, processes):
            checks.append(done)
            advance()
    return checks


def _results(tasks: list[_Task], processes: int) -> Iterator[dict[str, Any]]:
    done = 0
    if processes > 1:
        # A fresh interpreter per worker: a fork would copy the locks of TensorFlow's threads.
        with (
            suppress(BrokenProcessPool),
            ProcessPoolExecutor(
                processes, mp_context=get_context("spawn"), initializer=end_with_parent
            ) as pool,
        ):
            for row in pool.map(_draw_and_write, tasks, chunksize=_IMAGES_PER_TASK):
                done += 1
                yield row
    # Workers cannot start from a script read from standard input or without a main guard.
    yield from map(_draw_and_write, tasks[done:])


def _draw_and_write(task: _Task) -> dict[str, Any]:
    """Draw one image, write its three files, and return its row of ``images.csv``."""
    from PIL import Image

    image, lesion, structure = draw_view(task.shown, task.lesion_seed, task.view_seed, task.size)
    folder = Path(task.folder)
    path = folder / "images" / f"{task.image_id}.jpg"
    Image.fromarray(image).save(path, quality=_JPEG_QUALITY)
    for name, suffix, mask in (
        ("masks", "segmentation", lesion),
        ("structures", "structure", structure),
    ):
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        picture.save(folder / name / f"{task.image_id}_{suffix}.png")
    return {"image_id": task.image_id, **inspect_image(path)}

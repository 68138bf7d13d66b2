"""What a data set holds: tables and image statistics, without any drawing."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dermlens.data.decoding import open_header, orientation
from dermlens.data.images import MAX_PIXELS, fit_image, load_mask, opened_rgb, read_bytes
from dermlens.labels import LabelSet
from dermlens.progress import progress

FIELDS: tuple[str, ...] = ("age", "sex", "localization", "dx_type", "mask_path")
SIZE = (96, 128)
_BINS = 32


def class_balance(table: pd.DataFrame, labels: LabelSet) -> pd.DataFrame:
    """Count images and lesions of each diagnosis.

    Args:
        table: Manifest.
        labels: Of the data set.

    Returns:
        One row per diagnosis in class order: dx, name, malignant, images, image_share, lesions,
        lesion_share, images_per_lesion; shares from 0 to 1.
    """
    rows = []
    for label in labels.labels:
        code = label.code
        part = table[table.dx == code]
        lesions = part.lesion_id.nunique()
        rows.append(
            {
                "dx": code,
                "name": label.name,
                "malignant": label.malignant,
                "images": len(part),
                "image_share": len(part) / len(table),
                "lesions": lesions,
                "lesion_share": lesions / table.lesion_id.nunique(),
                "images_per_lesion": len(part) / lesions if lesions else np.nan,
            }
        )
    return pd.DataFrame(rows)


def images_per_lesion(table: pd.DataFrame) -> pd.DataFrame:
    """Count lesions by the number of their images: columns images, lesions."""
    counts = table.lesion_id.value_counts().value_counts().sort_index()
    return pd.DataFrame({"images": counts.index, "lesions": counts.to_numpy()})


def missing_values(table: pd.DataFrame, labels: LabelSet) -> pd.DataFrame:
    """Count what is missing, field by field.

    Ages of 0 years are counted apart: in HAM10000 they stand for unknown ages.

    Returns:
        One row per field: field, missing, share (0 to 1), and missing images per diagnosis.
    """
    rows = []
    absent = {field: table[field].isna() for field in FIELDS}
    absent["age of 0"] = table.age == 0
    for field, where in absent.items():
        per_class = {code: int((where & (table.dx == code)).sum()) for code in labels.codes}
        rows.append(
            {"field": field, "missing": int(where.sum()), "share": float(where.mean()), **per_class}
        )
    return pd.DataFrame(rows)


def cross_table(table: pd.DataFrame, column: str, labels: LabelSet) -> pd.DataFrame:
    """Count images by the values of a column and diagnosis.

    Returns:
        One row per value, the most frequent first, ``unknown`` last: the column, one column per
        diagnosis, and ``all``.
    """
    values = table[column].fillna("unknown").astype(str)
    counts = pd.crosstab(values, table.dx).reindex(columns=list(labels.codes), fill_value=0)
    counts["all"] = counts.sum(axis=1)
    counts = counts.sort_values("all", ascending=False, kind="stable")
    known = [value for value in counts.index if value != "unknown"]
    order = known + (["unknown"] if "unknown" in counts.index else [])
    return counts.loc[order].rename_axis(index=column, columns=None).reset_index()


def age_summary(table: pd.DataFrame, labels: LabelSet) -> pd.DataFrame:
    """Summarize age in years per diagnosis: n, median, quartiles, minimum, maximum."""
    rows = []
    for code in labels.codes:
        age = table.age[table.dx == code].dropna()
        low, middle, high = age.quantile([0.25, 0.5, 0.75])
        rows.append(
            {
                "dx": code,
                "n": len(age),
                "median": middle,
                "lower_quartile": low,
                "upper_quartile": high,
                "minimum": age.min(),
                "maximum": age.max(),
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class ImageStatistics:
    """What the pixels of a data set are like; images at 96x128 pixels.

    Attributes:
        per_image: One row per image in manifest order: image_id, dx, red, green, blue (means, 0
            to 255), brightness (mean of Rec. 601 luma, 0 to 255), contrast (its standard
            deviation), lesion_share (0 to 1, NaN without mask), lesion_contrast (luma of the
            surrounding skin minus luma of the lesion).
        mean_images: Mean image of each diagnosis, float32 (H, W, 3), 0 to 255.
        mean_masks: Share of images whose lesion covers each pixel, float32 (H, W), 0 to 1; only
            diagnoses that have masks.
        histograms: Share of pixels in 32 bins of each of red, green and blue, (3, 32), averaged
            over the images of each diagnosis.
    """

    per_image: pd.DataFrame
    mean_images: dict[str, np.ndarray]
    mean_masks: dict[str, np.ndarray]
    histograms: dict[str, np.ndarray]


def image_statistics(
    data: Path, table: pd.DataFrame, *, workers: int | None = None
) -> ImageStatistics:
    """Read every image once, in threads, and gather its statistics.

    Args:
        data: Prepared data set.
        table: Its manifest, or some rows of it.
        workers: Threads; default one per processor.

    Raises:
        DataError: If an image or mask is missing or damaged.
    """
    sums: dict[str, list[np.ndarray]] = {}
    mask_sums: dict[str, np.ndarray] = {}
    mask_counts: dict[str, int] = {}
    rows = []

    def read(item: tuple[str, str | float]) -> tuple[np.ndarray, np.ndarray | None]:
        image = read_small_image(data / item[0], SIZE)
        known = isinstance(item[1], str)
        return image, read_small_mask(data / str(item[1]), SIZE) if known else None

    items = list(zip(table.path, table.mask_path, strict=True))
    with (
        ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        progress("reading images", len(items)) as advance,
    ):
        for row, (image, mask) in zip(table.itertuples(), pool.map(read, items), strict=True):
            code = str(row.dx)
            if code not in sums:
                sums[code] = [np.zeros((*SIZE, 3)), np.zeros((3, _BINS))]
            sums[code][0] += image
            sums[code][1] += _histogram(image)
            if mask is not None:
                mask_sums[code] = mask_sums.get(code, np.zeros(SIZE)) + mask
                mask_counts[code] = mask_counts.get(code, 0) + 1
            rows.append({"image_id": row.image_id, "dx": code, **measure_image(image, mask)})
            advance()
    counts = {code: int((table.dx == code).sum()) for code in sums}
    present = sorted(sums)
    return ImageStatistics(
        per_image=pd.DataFrame(rows),
        mean_images={c: (sums[c][0] / counts[c]).astype(np.float32) for c in present},
        mean_masks={
            c: (mask_sums[c] / mask_counts[c]).astype(np.float32)
            for c in present
            if c in mask_counts
        },
        histograms={c: sums[c][1] / counts[c] for c in present},
    )


def measure_image(image: np.ndarray, mask: np.ndarray | None) -> dict[str, float]:
    """Return color, brightness and lesion size of one image.

    Args:
        image: uint8 (H, W, 3).
        mask: bool (H, W), or None where the lesion is not outlined.

    Returns:
        The numeric columns of ``ImageStatistics.per_image``.
    """
    luma = image @ np.array([0.299, 0.587, 0.114])
    red, green, blue = image.reshape(-1, 3).mean(axis=0)
    share = float(mask.mean()) if mask is not None else np.nan
    contrast = np.nan
    if mask is not None and 0 < share < 1:
        contrast = float(luma[~mask].mean() - luma[mask].mean())
    return {
        "red": float(red),
        "green": float(green),
        "blue": float(blue),
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "lesion_share": share,
        "lesion_contrast": contrast,
    }


def read_small_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read an image for statistics and overviews, uint8 (height, width, 3).

    JPEG files are decoded at reduced size (draft mode), several times faster than in full.

    Raises:
        DataError: If the file is missing or damaged.
    """
    content = read_bytes(path)
    with suppress(Exception):  # What is wrong with the file is said where it is decoded in full.
        image = open_header(content)
        small = image.width * image.height <= MAX_PIXELS
        if image.format == "JPEG" and image.mode == "RGB" and orientation(image) == 1 and small:
            image.draft("RGB", (size[1], size[0]))
            return fit_image(image, size)
    with opened_rgb(content, str(path)) as image:
        return fit_image(image, size)


def read_small_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a mask for statistics, bool (height, width).

    Raises:
        DataError: If the file is missing or damaged.
    """
    return load_mask(path, size)


def lesion_sizes(statistics: ImageStatistics) -> pd.DataFrame:
    """Summarize the share of the frame that lesions cover, per diagnosis."""
    return _summary(statistics.per_image, "lesion_share")


def brightness_summary(statistics: ImageStatistics) -> pd.DataFrame:
    """Summarize brightness, 0 to 255, per diagnosis."""
    return _summary(statistics.per_image, "brightness")


def _summary(per_image: pd.DataFrame, column: str) -> pd.DataFrame:
    rows = []
    for code in sorted(set(per_image.dx)):
        values = per_image.loc[per_image.dx == code, column].dropna()
        if len(values):
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            rows.append(
                {"dx": code, "n": len(values), "mean": values.mean(), "median": middle}
                | {"lower_quartile": low, "upper_quartile": high}
            )
    columns = ["dx", "n", "mean", "median", "lower_quartile", "upper_quartile"]
    return pd.DataFrame(rows, columns=columns)


def sample_ids(table: pd.DataFrame, count: int, seed: int = 0) -> dict[str, Sequence[str]]:
    """Choose up to ``count`` images of different lesions per diagnosis; returns image ids."""
    generator = np.random.default_rng(seed)
    chosen: dict[str, Sequence[str]] = {}
    for code in sorted(set(table.dx)):
        ids = table[table.dx == code].drop_duplicates("lesion_id").image_id.to_numpy()
        if len(ids):
            picked = generator.choice(len(ids), size=min(count, len(ids)), replace=False)
            chosen[code] = [str(ids[k]) for k in sorted(picked)]
    return chosen


def _histogram(image: np.ndarray) -> np.ndarray:
    """Return the share of pixels in 32 bins of each channel, (3, 32)."""
    bins = image.reshape(-1, 3) // (256 // _BINS)
    counts = [np.bincount(bins[:, k], minlength=_BINS) for k in range(3)]
    return np.asarray(counts) / len(bins)

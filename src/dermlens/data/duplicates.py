"""Near-duplicate photographs filed under different lesions.

A handful of HAM10000's images show the same lesion under two lesion ids (recolored or
re-photographed copies). Left apart, they leak from training into test. Perceptual hashes
propose pairs; the correlation of their fine detail confirms them, because small lesions in the
same dark frame have alike hashes without being the same photograph.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from dermlens.data.images import load_image

MAX_HASH_DISTANCE = 72
MIN_DETAIL_CORRELATION = 0.2
_THUMBNAIL = (120, 160)
_DETAIL_SHAPE = (_THUMBNAIL[0] - 16, _THUMBNAIL[1] - 24)
_MAX_SHIFT = 6


def near_duplicates(data: Path, table: pd.DataFrame, checks: pd.DataFrame) -> pd.DataFrame:
    """Find pairs of near-duplicate images that carry different lesion ids.

    Args:
        data: Prepared data set.
        table: Manifest.
        checks: ``images.csv``, with ``image_id`` and ``perceptual_hash``.

    Returns:
        Columns image_a, image_b, hash_distance (bits of 256), detail_correlation (-1..1),
        sorted by image_a and image_b.
    """
    hashes = dict(zip(checks.image_id, checks.perceptual_hash, strict=True))
    lesions = table.lesion_id.to_numpy()
    first, second, distance = hash_pairs([hashes[i] for i in table.image_id], MAX_HASH_DISTANCE)
    apart = lesions[first] != lesions[second]
    first, second, distance = first[apart], second[apart], distance[apart]
    involved = np.unique(np.concatenate([first, second])) if len(first) else np.zeros(0, int)
    paths = table.path.to_numpy()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        details = pool.map(lambda i: _detail(data / paths[i]), involved)
        detail_of = dict(zip(involved.tolist(), details, strict=True))
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    correlation = np.array([_detail_correlation(detail_of[a], detail_of[b]) for a, b in pairs])
    sure: np.ndarray = np.flatnonzero(correlation >= MIN_DETAIL_CORRELATION)
    ids = table.image_id.to_numpy()
    found = [
        (*sorted((ids[first[k]], ids[second[k]])), int(distance[k]), round(correlation[k], 4))
        for k in sure
    ]
    columns = ["image_a", "image_b", "hash_distance", "detail_correlation"]
    return pd.DataFrame(sorted(found), columns=columns)


def hash_pairs(
    hashes: list[str], max_distance: int, block: int = 1024
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all pairs of hashes within a Hamming distance, by matrix products of signs.

    Args:
        hashes: Hexadecimal hashes of equal length.
        max_distance: Largest distance in bits, inclusive.
        block: Rows compared at a time; bounds memory.

    Returns:
        first, second, distance: int arrays with first < second.

    Example:
        >>> first, second, distance = hash_pairs(["00", "01", "ff"], 1)
        >>> first.tolist(), second.tolist(), distance.tolist()
        ([0], [1], [1])
    """
    packed = np.array([np.frombuffer(bytes.fromhex(text), np.uint8) for text in hashes])
    signs = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1
    bits = signs.shape[1]
    firsts, seconds, distances = [], [], []
    for start in range(0, len(signs), block):
        distance = (bits - signs[start : start + block] @ signs.T) / 2
        row, column = np.nonzero(distance <= max_distance)
        upper = row + start < column
        row, column = row[upper], column[upper]
        firsts.append(row + start)
        seconds.append(column)
        distances.append(distance[row, column])
    return (
        np.concatenate(firsts),
        np.concatenate(seconds),
        np.concatenate(distances).astype(int),
    )


def hash_distances(hashes: np.ndarray, others: np.ndarray, block: int = 1024) -> np.ndarray:
    """Return how far each hash is from the nearest of others, in bits.

    Args:
        hashes: uint8 (N, bytes).
        others: uint8 (M, bytes), at least one.
        block: Rows compared at a time; bounds memory.

    Example:
        >>> hash_distances(np.array([[3]], np.uint8), np.array([[0], [7]], np.uint8)).tolist()
        [1]
    """
    signs = np.unpackbits(others, axis=1).astype(np.float32) * 2 - 1
    nearest = np.zeros(len(hashes), int)
    for start in range(0, len(hashes), block):
        mine = np.unpackbits(hashes[start : start + block], axis=1).astype(np.float32) * 2 - 1
        closest = (mine @ signs.T).max(axis=1)
        nearest[start : start + block] = (signs.shape[1] - closest) / 2
    return nearest


def turned_hashes(hashes: np.ndarray) -> np.ndarray:
    """Return the hashes that photographs have when mirrored or turned by quarters, nearly.

    Mirroring changes the sign of every second coefficient, turning by a quarter swaps rows and
    columns too. Nearly, as the median that signs are relative to is not quite zero.

    Args:
        hashes: uint8 (N, 32), as ``images.perceptual_hash`` makes them.

    Returns:
        uint8 (8, N, 32), the unchanged ones first.
    """
    bits = np.unpackbits(hashes, axis=1).reshape(-1, 16, 16)
    odd = (np.arange(16) % 2).astype(np.uint8)
    found = []
    for swapped in (bits, bits.transpose(0, 2, 1)):
        for flips in (0, odd, odd[:, None], odd ^ odd[:, None]):
            found.append(np.packbits((swapped ^ flips).reshape(len(bits), -1), axis=1))
    return np.stack(found)


def _detail(path: Path) -> np.ndarray:
    """Spectrum of an image's fine structure with local contrast evened out, unit energy.

    Color cast, vignette, shading and the outline of a small dark blob, which unrelated
    photographs share, count for little; hairs, network and skin marks count.
    """
    from scipy.ndimage import uniform_filter

    gray = load_image(path, _THUMBNAIL).mean(axis=2)
    fine = gray - uniform_filter(gray, 9, mode="nearest")
    contrast = np.sqrt(uniform_filter(fine**2, 15, mode="nearest"))
    even = (fine / (contrast + 2.0))[8:-8, 12:-12]
    even = even - even.mean()
    norm = np.linalg.norm(even)
    return np.fft.rfft2(even / norm if norm > 0 else even)


def _detail_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Largest correlation of two fine structures over shifts of up to ``_MAX_SHIFT`` pixels."""
    surface = np.fft.irfft2(first * np.conj(second), s=_DETAIL_SHAPE)
    near = np.roll(surface, (_MAX_SHIFT, _MAX_SHIFT), axis=(0, 1))
    return float(near[: 2 * _MAX_SHIFT + 1, : 2 * _MAX_SHIFT + 1].max())

"""Known cases by what the network makes of them: the index of training images of a bundle.

Features are the means of the network's last feature maps, whitened by a principal component
analysis of the training images: centered, turned onto their strongest directions, each direction
divided by its standard deviation. How alike two images are is the cosine of their whitened
features, 1 for the same, about 0 for strangers (Jegou & Chum, "Negative evidences and
co-occurences in image retrieval: the benefit of PCA and whitening", ECCV 2012; Babenko et al.,
"Neural codes for image retrieval", ECCV 2014).

The search is exact: one product of a matrix with a vector.

``BUNDLE/cases.npz`` holds the index. It names the file of weights that its features are of, and a
checksum over all of it; it is no part of the bundle's own checksum, so that a bundle with and one
without an index are the same model.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dermlens.data.duplicates import turned_hashes
from dermlens.errors import ModelError
from dermlens.files import written_beside
from dermlens.model.stored_arrays import pack_members, read_array, read_json_member
from dermlens.model.training_overlap import MAX_HASH_DISTANCE
from dermlens.schema import Code, Count, Section, checked

FILE = "cases.npz"
_FACTS = "cases.json"
FORMAT = 1
FAR_SHARE = 0.05
"""Share of validation images whose own diagnosis has no close case, by which "close" is set."""
VOTERS = 5
"""Nearest lesions that are asked whether they agree with the answer."""
_HASH_BYTES, _BLOCK = 32, 256
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Cosine = Annotated[float, Field(ge=-1, le=1)]
HOW_TO_BUILD = "Make one with 'dermlens cases {path} --build DATA', DATA being what it learned from"


@dataclass(frozen=True)
class Whitening:
    """Turns features into unit vectors whose cosine says how alike two images are.

    Attributes:
        mean: Of the features of training images, float32 (D,).
        projection: Strongest directions, each divided by its standard deviation, float32 (D, K).
    """

    mean: np.ndarray
    projection: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return whitened unit vectors, float32 (N, K), of features (N, D)."""
        turned = (np.asarray(features, np.float32) - self.mean) @ self.projection
        length = np.linalg.norm(turned, axis=1, keepdims=True)
        # What lies exactly at the mean is like nothing.
        return turned / np.where(length > 0, length, 1.0)

    def stored(self) -> "Whitening":
        """Return the whitening as it comes back from float16."""
        low = [values.astype(np.float16).astype(np.float32) for values in vars(self).values()]
        return Whitening(*low)


def fit_whitening(features: np.ndarray, dimensions: int) -> Whitening:
    """Fit a whitening to features of training images.

    Args:
        features: (N, D), finite.
        dimensions: Directions to keep; fewer where the features vary in fewer.

    Raises:
        ModelError: If there are fewer than two images, or a feature is not finite.

    Example:
        >>> points = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> fit_whitening(points, 2)(points).round(3).tolist()[0]
        [1.0, 0.0]
    """
    features = np.asarray(features, np.float64)
    if len(features) < 2 or not np.isfinite(features).all():
        raise ModelError("An index of cases needs at least two training images of finite features.")
    mean = features.mean(axis=0)
    centered = features - mean
    variances, directions = np.linalg.eigh(centered.T @ centered / len(features))
    deviations = np.sqrt(np.maximum(variances[::-1], 0.0))
    # Directions in which nothing varies would make any change infinite.
    varies = deviations > 1e-6 * max(float(deviations[0]), 1e-12)
    kept = min(dimensions, int(varies.sum()))
    if not kept:
        raise ModelError("All training images have the same features, so none is like another.")
    # Each direction so that its largest entry is positive: the same on every machine.
    chosen = directions.T[::-1][:kept]
    chosen = chosen * np.sign(chosen[np.arange(kept), np.abs(chosen).argmax(axis=1)])[:, None]
    projection = (chosen / deviations[:kept, None]).T
    return Whitening(mean.astype(np.float32), projection.astype(np.float32))


class Tally(Section):
    """How many images, and for how many of them the answer was right."""

    images: Count = 0
    right: Count = 0


class Measured(Section):
    """What the index was found to be worth on images that the network did not learn from.

    Attributes:
        split: Which images, such as ``"test"``; empty where nothing was measured.
        answers: All of them.
        agreeing: By how many of the ``VOTERS`` nearest lesions have the diagnosis answered, 0 and
            up.
        without_close: Those whose answered diagnosis has no close case.
        own_without_close: Images whose own diagnosis has no close case.
    """

    split: str = ""
    answers: Tally = Tally()
    agreeing: tuple[Tally, ...] = ()
    without_close: Tally = Tally()
    own_without_close: Count = 0


class _Facts(Section):
    """The content of ``cases.json``."""

    format: Annotated[int, Field(ge=1, le=FORMAT)]
    weights: Sha256
    threshold: Cosine
    images: tuple[Code, ...]
    lesions: tuple[Code, ...]
    diagnoses: tuple[Code, ...]
    grounds: tuple[str, ...]
    measured: Measured
    checksum: Sha256


@dataclass(frozen=True)
class Case:
    """A training lesion, by the image of it that is most like another image.

    Attributes:
        image_id: That image.
        lesion_id: The lesion.
        dx: Code of its diagnosis.
        dx_type: How the diagnosis was established, as the data set says; may be empty.
        similarity: Cosine of whitened features, -1..1.
    """

    image_id: str
    lesion_id: str
    dx: str
    dx_type: str
    similarity: float

    @property
    def distance(self) -> float:
        """1 minus the similarity, 0..2."""
        return 1.0 - self.similarity


@dataclass(frozen=True)
class CaseIndex:
    """Training images, by whitened features.

    Attributes:
        whitening: Of features as the network gives them.
        features: Whitened unit vectors, float16 (N, K).
        hashes: Perceptual hashes of the images, uint8 (N, 32).
        images: Ids, (N,) text.
        lesions: Likewise.
        diagnoses: Codes, likewise.
        grounds: How each diagnosis was established; empty where not known.
        threshold: Similarity from which a case is close.
        weights: SHA-256 of the file of weights that the features are of.
        measured: What it is worth.
    """

    whitening: Whitening
    features: np.ndarray
    hashes: np.ndarray
    images: np.ndarray
    lesions: np.ndarray
    diagnoses: np.ndarray
    grounds: np.ndarray
    threshold: float = 1.0
    weights: str = "0" * 64
    measured: Measured = field(default_factory=Measured)

    def similarities(self, features: np.ndarray) -> np.ndarray:
        """Return the similarity of images to every image of the index, float32 (M, N).

        Args:
            features: As the network gives them, (M, D).
        """
        return self.whitening(features) @ self.features.astype(np.float32).T

    def nearest(
        self,
        similarity: np.ndarray,
        count: int,
        *,
        dx: str | None = None,
        without: Sequence[str] = (),
    ) -> tuple[Case, ...]:
        """Return the most similar lesions, one image of each, the most similar first.

        Args:
            similarity: To every image of the index, (N,); of equal ones the earlier image counts
                first.
            count: Lesions, at most.
            dx: Only those of a diagnosis.
            without: Lesions that are left out, such as the one that is looked at.
        """
        found: dict[str, int] = {}
        kept = ~np.isin(self.lesions, np.asarray(list(without), dtype=str))
        rows = np.flatnonzero(kept if dx is None else kept & (self.diagnoses == dx))
        for row in rows[np.argsort(-similarity[rows], kind="stable")].tolist():
            found.setdefault(str(self.lesions[row]), row)
            if len(found) == count:
                break
        return tuple(self._case(row, similarity) for row in found.values())

    def _case(self, row: int, similarity: np.ndarray) -> Case:
        return Case(
            str(self.images[row]),
            str(self.lesions[row]),
            str(self.diagnoses[row]),
            str(self.grounds[row]),
            float(np.clip(similarity[row], -1, 1)),
        )

    def known(self, perceptual_hash: str) -> tuple[str, str] | None:
        """Return image and lesion if a photograph is itself in the index, perhaps turned."""
        mine = np.frombuffer(bytes.fromhex(perceptual_hash), np.uint8)[None]
        differing = np.bitwise_count(self.hashes[None] ^ turned_hashes(mine))
        distances = differing.sum(axis=2, dtype=int).min(axis=0)
        row = int(distances.argmin())
        if distances[row] > MAX_HASH_DISTANCE:
            return None
        return str(self.images[row]), str(self.lesions[row])

    def blocks(self, features: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield which images (M, D), some at a time, and their similarities; bounds memory."""
        for start in range(0, len(features), _BLOCK):
            rows = slice(start, min(start + _BLOCK, len(features)))
            yield rows, self.similarities(features[rows])

    def best_of(self, features: np.ndarray, diagnoses: np.ndarray) -> np.ndarray:
        """Return how similar the most similar case of a diagnosis is to each image, (M,).

        -1 where the index holds none. Features are (M, D), diagnoses (M,), one for each image.
        """
        found = [
            np.where(diagnoses[rows][:, None] == self.diagnoses[None], similarity, -1.0).max(axis=1)
            for rows, similarity in self.blocks(features)
        ]
        return np.concatenate(found)

    def with_threshold(
        self, features: np.ndarray, diagnoses: np.ndarray, far_share: float = FAR_SHARE
    ) -> "CaseIndex":
        """Return the index with the similarity from which a case is close.

        It is set so that a share of images has no close case of their own diagnosis.

        Args:
            features: Of validation images, as the network gives them, (M, D).
            diagnoses: Of these images, (M,).
            far_share: 0..1.
        """
        best = np.sort(self.best_of(features, diagnoses))
        return replace(self, threshold=float(best[int(np.floor(far_share * len(best) + 1e-9))]))


def write_index(path: Path, index: CaseIndex) -> Path:
    """Write an index as one file, atomically; the same index gives the same bytes."""
    arrays, facts = _arrays(index), _facts(index)
    facts["checksum"] = _checksum(arrays, facts)
    with written_beside(Path(path)) as temporary:
        temporary.write_bytes(pack_members(arrays, facts, _FACTS))
    return Path(path)


def _arrays(index: CaseIndex) -> dict[str, np.ndarray]:
    half = {"features": index.features, **vars(index.whitening)}
    stored = {name: np.ascontiguousarray(v.astype(np.float16)) for name, v in half.items()}
    return stored | {"hashes": np.ascontiguousarray(index.hashes)}


def _facts(index: CaseIndex) -> dict[str, Any]:
    columns = ("images", "lesions", "diagnoses", "grounds")
    return {
        "format": FORMAT,
        "weights": index.weights,
        "threshold": index.threshold,
        **{name: getattr(index, name).tolist() for name in columns},
        "measured": index.measured.model_dump(mode="json"),
    }


def _checksum(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 over arrays and facts, as hexadecimal text."""
    covered = {name: value for name, value in facts.items() if name != "checksum"}
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True, default=str).encode())
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].shape}{arrays[name].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def read_index(folder: Path, facts: Mapping[str, Any], classes: Sequence[str]) -> CaseIndex | None:
    """Read the index of a bundle; None where it has none.

    Args:
        folder: The bundle.
        facts: The content of its ``bundle.json``.
        classes: Its class codes.

    Raises:
        ModelError: If the index is damaged, cannot be true, or belongs to other weights.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    again = f"Remove it, or make it again: 'dermlens cases {folder} --build DATA'."
    try:
        with zipfile.ZipFile(path) as archive:
            dimensions = {"features": 2, "mean": 1, "projection": 2}
            arrays = {
                name: read_array(archive, f"{name}.npy", count)
                for name, count in dimensions.items()
            }
            arrays["hashes"] = read_array(archive, "hashes.npy", 2, kind="u")
            given = read_json_member(archive, _FACTS)
        told = checked(_Facts, given, lambda wrong: ModelError(f"{_FACTS}: {wrong}"))
        _belongs_together(arrays, told, classes)
        if told.checksum != _checksum(arrays, given):
            raise ValueError("it has changed since it was made")
    except Exception as error:  # Damaged archives make their reader fail in many ways.
        wrong = str(error) or type(error).__name__
        raise ModelError(f"The index of cases {path} cannot be used: {wrong}. {again}") from error
    if told.weights != weights_of(facts):
        raise ModelError(
            f"The index of cases {path} was made with other weights than this bundle's. {again}"
        )
    return CaseIndex(
        Whitening(arrays["mean"].astype(np.float32), arrays["projection"].astype(np.float32)),
        arrays["features"],
        arrays["hashes"],
        np.asarray(told.images),
        np.asarray(told.lesions),
        np.asarray(told.diagnoses),
        np.asarray(told.grounds),
        threshold=told.threshold,
        weights=told.weights,
        measured=told.measured,
    )


def _belongs_together(
    arrays: Mapping[str, np.ndarray], told: _Facts, classes: Sequence[str]
) -> None:
    """Raise ValueError unless arrays, columns and classes fit each other."""
    count, dimensions = arrays["features"].shape
    if arrays["projection"].shape != (len(arrays["mean"]), dimensions):
        raise ValueError("projection.npy does not fit features.npy and mean.npy")
    if arrays["hashes"].shape != (count, _HASH_BYTES) or arrays["hashes"].dtype != np.uint8:
        raise ValueError("hashes.npy does not fit features.npy")
    columns = (told.images, told.lesions, told.diagnoses, told.grounds)
    if not count or any(len(column) != count for column in columns):
        raise ValueError(f"{_FACTS} does not describe the {count:,} images of features.npy")
    if strange := sorted(set(told.diagnoses) - set(classes)):
        raise ValueError(f"{_FACTS} holds {strange[0]!r}, which is none of the model's classes")
    tallies = (*told.measured.agreeing, told.measured.answers, told.measured.without_close)
    if any(one.right > one.images for one in tallies):
        raise ValueError(f"{_FACTS} counts more right answers than answers")
    if len(told.measured.agreeing) not in (0, VOTERS + 1):
        raise ValueError(f"{_FACTS} does not count agreement from 0 to {VOTERS}")


def weights_of(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a bundle's file of weights, of the content of its ``bundle.json``."""
    sums = facts.get("sha256", {})
    return str(sums.get("weights.h5", sums.get("model.keras", "")))

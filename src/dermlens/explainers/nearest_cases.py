"""Explaining by examples: the training lesions that the network takes for most like an image.

One pass gives the answer and the features; the search is in ``model.case_index``. With a map, the
features are gathered only where the map marks the image: the last feature maps are averaged with
the map's positive values as weights, every cell weighed by what the map holds where the cell looks
(``explainers.registration``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dermlens.errors import ModelError, UsageError
from dermlens.explainers.layers import find_features
from dermlens.explainers.registration import Drawing
from dermlens.model.bundle import Bundle
from dermlens.model.case_index import (
    FILE,
    HOW_TO_BUILD,
    VOTERS,
    Case,
    CaseIndex,
    Measured,
    read_index,
)
from dermlens.model.image_classifier import ImageClassifier
from dermlens.progress import say

LEADING = 2
"""Diagnoses whose cases are looked for."""
EACH = 4
"""Lesions of each of them."""


@dataclass(frozen=True)
class CasesOf:
    """The most similar lesions of one diagnosis.

    Attributes:
        code: The diagnosis.
        probability: That the model gives to it.
        nearest: One image per lesion, the most similar first, close or not.
        close: How many of them are close.
    """

    code: str
    probability: float
    nearest: tuple[Case, ...]
    close: int


@dataclass(frozen=True)
class NearestCases:
    """The training lesions most like an image.

    Attributes:
        leading: Those of each of the two most probable diagnoses.
        nearest: The most similar lesions of any diagnosis.
        threshold: Similarity from which a case is close.
        measured: What agreement and closeness were worth on images the network did not learn from.
        known: Id of the training image that this photograph is itself; empty if it is none. Its
            lesion is left out.
        region: What marked the part of the image that was looked at; empty for the whole image.
    """

    leading: tuple[CasesOf, ...]
    nearest: tuple[Case, ...]
    threshold: float
    measured: Measured
    known: str = ""
    region: str = ""

    @property
    def answer(self) -> str:
        """Code of the most probable diagnosis."""
        return self.leading[0].code

    @property
    def agreeing(self) -> int:
        """How many of ``nearest`` have the diagnosis that is answered."""
        return sum(case.dx == self.answer for case in self.nearest)

    def to_json(self) -> dict[str, Any]:
        """Return everything but what was measured, as JSON types."""
        return {
            "leading": [
                {
                    "diagnosis": one.code,
                    "probability": one.probability,
                    "close": one.close,
                    "cases": [_told(case) for case in one.nearest],
                }
                for one in self.leading
            ],
            "nearest": [_told(case) for case in self.nearest],
            "agreeing": self.agreeing,
            "threshold": self.threshold,
            "known": self.known,
            "region": self.region,
        }


def _told(case: Case) -> dict[str, Any]:
    return {**vars(case), "distance": case.distance}


def index_of(bundle: Bundle) -> CaseIndex | None:
    """Return the index that a bundle brings along, None where it has none.

    Raises:
        ModelError: If it has one that cannot be used.
    """
    return read_index(bundle.path, bundle.facts, bundle.classes)


def no_index(bundle: Bundle) -> str:
    """Say that a bundle has no index, and how to make one."""
    return f"{bundle.path} has no index of cases. {HOW_TO_BUILD.format(path=bundle.path)}."


def finder_of(bundle: ImageClassifier) -> "CaseFinder | None":
    """Return what finds cases of a model; None where it has no index, or says why it has no use."""
    if not isinstance(bundle, Bundle):
        return None
    try:
        return CaseFinder(bundle) if (bundle.path / FILE).is_file() else None
    except ModelError as error:
        say(f"Without known cases. {error}")
        return None


class FeatureReader:
    """Gives logits and pooled features of images in one pass.

    Raises:
        ExplanationError: If the model has no feature maps.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.features = find_features(bundle.model)
        self._drawing = Drawing(self.features, [self.features.step])
        self._size, self._function = bundle.input_size, self._traced(bundle.input_size)

    def _traced(self, size: tuple[int, int]) -> Any:
        import tensorflow as tf

        def run(images: Any, cells: Any) -> tuple[Any, Any]:
            maps, logits = self.features.run(images)
            return logits, tf.einsum("nhwk,nhw->nk", tf.cast(maps, tf.float32), cells)

        pixels = tf.TensorSpec((None, *size, 3), tf.float32)
        signature = [pixels, tf.TensorSpec((None, None, None), tf.float32)]
        return tf.function(run, autograph=False, input_signature=signature)

    def __call__(
        self, images: np.ndarray, region: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (N, C) and pooled features (N, K), both float32.

        Args:
            images: (N, H, W, 3), RGB 0..255.
            region: A map (H, W); values above 0 mark the part to gather features from. Default the
                whole image.
        """
        cells = np.repeat(self.weights(region)[None], len(images), axis=0)
        logits, pooled = self._function(np.asarray(images, np.float32), cells)
        return logits.numpy(), pooled.numpy()

    def weights(self, region: np.ndarray | None) -> np.ndarray:
        """Return how much each cell of the feature maps counts, float32 (h, w), in sum 1.

        Raises:
            UsageError: If the map has another size than the network's input, or marks nothing.
        """
        rows, columns = self._drawing.weights(self._size)[0]
        if region is None:
            shape = (rows.shape[1], columns.shape[1])
            return np.full(shape, 1 / (shape[0] * shape[1]), np.float32)
        if np.shape(region) != self._size:
            raise UsageError(
                f"A map of {np.shape(region)} does not fit the model, which sees {self._size}."
            )
        marked = np.maximum(np.nan_to_num(np.asarray(region, np.float64)), 0.0)
        # The mean of the map where each cell looks, so that a constant map is the whole image.
        seen = np.outer(rows.sum(axis=0), columns.sum(axis=0))
        cells = (rows.T @ marked @ columns) / np.where(seen > 0, seen, 1.0)
        if not cells.sum() > 0:
            raise UsageError("The map marks no part of the image. Leave the region out.")
        return (cells / cells.sum()).astype(np.float32)

    def many(
        self,
        images: np.ndarray,
        *,
        batch_size: int = 32,
        advance: Callable[..., None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and features of many images, such as a memory map of a data set."""
        found = []
        for start in range(0, len(images), batch_size):
            found.append(self(np.asarray(images[start : start + batch_size])))
            if advance is not None:
                advance(len(found[-1][0]))
        logits, pooled = zip(*found, strict=True)
        return np.concatenate(logits), np.concatenate(pooled)


class CaseFinder:
    """Finds the training lesions most like an image, with one model loaded and traced once.

    Args:
        bundle: A bundle with an index of cases.

    Raises:
        ModelError: If it has no index, or one that cannot be used.
    """

    def __init__(self, bundle: Bundle) -> None:
        found = index_of(bundle)
        if found is None:
            raise ModelError(no_index(bundle))
        self.bundle, self.index = bundle, found

    @cached_property
    def reader(self) -> FeatureReader:
        """What gives the features that the index holds."""
        return FeatureReader(self.bundle)

    def find(
        self,
        image: np.ndarray,
        *,
        region: np.ndarray | None = None,
        named: str = "",
        photograph: np.ndarray | None = None,
        count: int = EACH,
    ) -> NearestCases:
        """Find cases of one image, in one pass.

        Args:
            image: RGB 0..255, (H, W, 3), at the model's input size.
            region: Map (H, W) that marks the part to look at; default the whole image.
            named: What to call the region.
            photograph: The whole photograph, uint8 RGB (h, w, 3), by which it is known whether the
                model learned from it; default the image.
            count: Lesions of each diagnosis.
        """
        logits, features = self.reader(image[None], region)
        probabilities = self.bundle.probabilities(logits)[0]
        whole = image if photograph is None else photograph
        named = named or ("a map" if region is not None else "")
        return self.of_features(probabilities, features[0], whole, region=named, count=count)

    def of_features(
        self,
        probabilities: np.ndarray,
        features: np.ndarray,
        photograph: np.ndarray,
        *,
        region: str = "",
        count: int = EACH,
    ) -> NearestCases:
        """Find cases where a pass was made already.

        Args:
            probabilities: (C,).
            features: Pooled, (K,).
            photograph: RGB 0..255, (h, w, 3).
            region: What marked the part that the features were gathered from.
            count: Lesions of each diagnosis.
        """
        from PIL import Image

        from dermlens.data.images import perceptual_hash

        index = self.index
        if len(features) != len(index.whitening.mean):
            raise ModelError(f"The index of cases of {self.bundle.path} is of another network.")
        similarity = index.similarities(features[None])[0]
        picture = Image.fromarray(np.clip(photograph, 0, 255).astype(np.uint8))
        itself = index.known(perceptual_hash(picture))
        without = () if itself is None else (itself[1],)
        leading = []
        for k in np.argsort(-probabilities, kind="stable")[:LEADING]:
            code = self.bundle.classes[k]
            cases = index.nearest(similarity, count, dx=code, without=without)
            close = sum(case.similarity >= index.threshold for case in cases)
            leading.append(CasesOf(code, float(probabilities[k]), cases, close))
        return NearestCases(
            tuple(leading),
            index.nearest(similarity, VOTERS, without=without),
            index.threshold,
            index.measured,
            known="" if itself is None else itself[0],
            region=region,
        )

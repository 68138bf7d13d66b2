"""Logits of many images, with test-time augmentation on request."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dermlens.errors import ModelError, UsageError

VIEWS: tuple[int, ...] = (1, 4, 8)
"""Views of test-time augmentation: none; mirrored both ways; the whole dihedral group."""


class Predictor:
    """Runs a model over images in batches of one fixed size, so that it is traced once.

    The model takes images (B, H, W, 3) to logits (B, C). ``transposed`` builds the same network for
    (W, H) images, for 8 views of what is no square. Raises UsageError if the batch size is below 1.
    """

    def __init__(
        self,
        model: Any,
        *,
        transposed: Callable[[], Any] | None = None,
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"The batch size must be at least 1, not {batch_size}.")
        self._model, self._make_transposed, self._batch_size = model, transposed, batch_size
        self._functions: dict[bool, Any] = {}

    def _function(self, turned: bool) -> Any:
        import tensorflow as tf

        if turned not in self._functions:
            model = self._model
            height, width = model.input_shape[1:3]
            if turned and height != width:
                if self._make_transposed is None:
                    raise ModelError(
                        "8 views turn the image by 90 degrees, which this model's input size "
                        "does not allow. Use 1 or 4 views."
                    )
                model = self._make_transposed()
            self._functions[turned] = tf.function(
                lambda images: tf.cast(
                    model(tf.cast(images, tf.float32), training=False), "float32"
                ),
                autograph=False,
            )
        return self._functions[turned]

    def logits(
        self,
        images: np.ndarray,
        rows: np.ndarray | None = None,
        *,
        tta_views: int = 1,
        advance: Callable[..., None] | None = None,
    ) -> np.ndarray:
        """Return the logits of images, averaged over views.

        Args:
            images: uint8 or float (M, H, W, 3), 0..255; a memory map is read batch by batch.
            rows: int (N,): which images, in which order; default all.
            tta_views: 1, 4 (identity, both mirrors, half turn) or 8 (and their transposes).
            advance: Called with the number of images done.

        Returns:
            float32 (N, C).

        Raises:
            ModelError: If ``tta_views`` is none of 1, 4, 8 or the model cannot take turned images.
        """
        check_views(tta_views)
        rows = np.arange(len(images)) if rows is None else np.asarray(rows)
        results = []
        for start in range(0, len(rows), self._batch_size):
            chosen = rows[start : start + self._batch_size]
            batch = np.asarray(images[chosen])
            missing = self._batch_size - len(batch)
            padded = np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)), "edge")
            results.append(self._views(padded, tta_views)[: len(batch)])
            if advance is not None:
                advance(len(batch))
        if not results:
            return np.zeros((0, self._model.output_shape[-1]), np.float32)
        return np.concatenate(results)

    def _views(self, batch: np.ndarray, tta_views: int) -> np.ndarray:
        total = self._function(False)(batch).numpy()
        for turned, mirror_y, mirror_x in _dihedral(tta_views)[1:]:
            view = batch.transpose(0, 2, 1, 3) if turned else batch
            view = view[:, :: -1 if mirror_y else 1, :: -1 if mirror_x else 1]
            total = total + self._function(turned)(np.ascontiguousarray(view)).numpy()
        return total / np.float32(tta_views)


def check_views(tta_views: int) -> None:
    """Raise ModelError for a number of views that there is not."""
    if tta_views not in VIEWS:
        raise ModelError(f"{tta_views} views are not possible. Use 1, 4 or 8.")


def _dihedral(tta_views: int) -> list[tuple[bool, bool, bool]]:
    mirrors = [(y, x) for y in (False, True) for x in (False, True)]
    turns = {1: [False], 4: [False], 8: [False, True]}[tta_views]
    return [(turned, y, x) for turned in turns for y, x in mirrors][:tta_views]


def with_features(model: Any) -> Any:
    """Return a classifier's network that puts its pooled features behind its logits, (N, C + D)."""
    import keras

    pooled = model.get_layer("pool").output
    joined = keras.layers.Concatenate(dtype="float32")([model.output, pooled])
    return keras.Model(model.input, joined)


def split_features(joined: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, C) and pooled features (N, D) of what ``with_features`` gives."""
    return joined[:, :classes], joined[:, classes:]

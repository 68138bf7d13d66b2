"""Which class is explained: the one place where what a user asks for becomes a class position.

A target is one of

* ``None`` or ``"predicted"``: the most probable class of each image;
* ``"runner_up"``: the second most probable one;
* ``"flagged"``: the most probable malignant one;
* a class code such as ``"mel"``, or a position;
* a sequence of these, one per image; or one-hot rows (N, C).

Temperature scaling keeps the order of the logits, so no calibration is needed to resolve any of
them.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from dermlens.errors import UsageError
from dermlens.labels import LabelSet

PREDICTED = "predicted"
RUNNER_UP = "runner_up"
FLAGGED = "flagged"
ALL = "all"
RELATIVE = (PREDICTED, RUNNER_UP, FLAGGED)
"""Targets that depend on what the model answers."""
PREDICTED_POSITION = -1
"""Stands for the most probable class where targets travel as whole numbers, as in exports."""

Target = None | str | int
Targets = Target | Sequence[Target] | np.ndarray
"""One target for all images, one per image, or ``"all"`` where every class is explained."""


def check_targets(targets: Targets, labels: LabelSet, count: int | None = None) -> None:
    """Find out early whether targets can be resolved.

    Args:
        targets: As in this module's description.
        labels: Classes in the order of the logits.
        count: Number of images, if it is known.

    Raises:
        UsageError: If a target is unknown, or there is not one per image.
    """
    for one in _listed(targets, count):
        _position(one, None, labels)


def resolve_targets(targets: Targets, logits: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Return the class position of each image's target, int32 (N,).

    Args:
        targets: As in this module's description.
        logits: float (N, C), or probabilities.
        labels: Classes in the order of the logits.

    Raises:
        UsageError: If a target is unknown or impossible, or there is not one per image.

    Example:
        >>> from dermlens.labels import label_set
        >>> logits = np.array([[0.0, 3.0], [2.0, 0.0]])
        >>> resolve_targets(None, logits, label_set("binary")).tolist()
        [1, 0]
        >>> resolve_targets(["runner_up", "flagged"], logits, label_set("binary")).tolist()
        [0, 1]
    """
    logits = np.asarray(logits)
    listed = _listed(targets, len(logits))
    found = [_position(one, row, labels) for one, row in zip(listed, logits, strict=True)]
    return np.array(found, np.int32).reshape(len(logits))


def class_position(target: str | int, labels: LabelSet) -> int:
    """Return the position of a class that does not depend on what the model answers.

    Raises:
        UsageError: If it does, or the class is unknown.
    """
    if depend_on_answer(target):
        raise UsageError(
            f"{target!r} depends on the image. Name a class: {', '.join(labels.codes)}."
        )
    return _position(target, None, labels)


def depend_on_answer(targets: Targets) -> bool:
    """Tell whether any of the targets depends on what the model answers."""
    return any(map(_is_relative, _listed(targets, None)))


def is_all(targets: Targets) -> bool:
    """Tell whether all classes are asked for."""
    return isinstance(targets, str) and targets == ALL


def part_of(targets: Targets, part: slice) -> Targets:
    """Return the targets of some of the images."""
    return targets if _is_one(targets) else _listed(targets, None)[part]


def _is_one(targets: Targets) -> bool:
    return targets is None or isinstance(targets, str) or np.ndim(cast(Any, targets)) == 0


def _is_relative(target: Target) -> bool:
    return target is None or (isinstance(target, str) and target in RELATIVE)


def _listed(targets: Targets, count: int | None) -> list[Target]:
    if _is_one(targets):
        return [cast(Target, targets)] * (1 if count is None else count)
    array = hasattr(targets, "shape")
    listed = _from_array(np.asarray(targets)) if array else list(cast(Any, targets))
    if count is not None and len(listed) != count:
        raise UsageError(
            f"{len(listed)} targets were given for {count} images. Give one per image, or one for "
            "all."
        )
    return listed


def _from_array(values: np.ndarray) -> list[Any]:
    """Return the entries of (N,), or the positions that one-hot rows (N, C) mark."""
    if values.ndim == 1:
        return list(values)
    if values.ndim == 2 and values.dtype.kind in "iufb":
        rows = values.astype(np.float64)
        if ((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) == 1).all():
            return [int(k) for k in rows.argmax(axis=1)]
    raise UsageError(
        f"Targets of shape {values.shape} are neither one per image, (N,), nor one-hot rows (N, C)."
    )


def _position(target: Target, logits: np.ndarray | None, labels: LabelSet) -> int:
    """Return one target's position; without logits 0 stands for what depends on them."""
    if _is_relative(target):
        return _relative(cast(str, target or PREDICTED), logits, labels)
    if isinstance(target, str) and target in labels.codes:
        return labels.codes.index(target)
    value = np.asarray(target)
    if value.ndim == 0 and value.dtype.kind in "iu" and 0 <= int(value) < len(labels):
        return int(value)
    raise UsageError(
        f"Unknown target class {target!r}. Use one of: {', '.join((*labels.codes, *RELATIVE))}; "
        f"or a position from 0 to {len(labels) - 1}."
    )


def _relative(target: str, logits: np.ndarray | None, labels: LabelSet) -> int:
    malignant = [labels.codes.index(code) for code in labels.malignant]
    if target == FLAGGED and not malignant:
        raise UsageError("No class of this model is known as malignant. Name the class to explain.")
    if logits is None:
        return 0
    if target == FLAGGED:
        return malignant[int(np.argmax(logits[malignant]))]
    others = np.array(logits, np.float64)
    if target == RUNNER_UP:
        others[int(np.argmax(logits))] = -np.inf
    return int(others.argmax())

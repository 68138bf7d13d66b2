"""Which class is explained: the one place where what a user asks for becomes a class position.

A target is one of

* ``None`` or ``"predicted"``: the most probable class of each image;
* ``"runner_up"``: the second most probable one;
* ``"flagged"``: the most probable malignant one;
* a class code such as ``"mel"``, or a position;
* a sequence of these, one per image.

Temperature scaling keeps the order of the logits, so no calibration is needed to resolve any of
them.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from dermlens.diagnoses import MALIGNANT_CODES
from dermlens.errors import UsageError

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


def check_targets(targets: Targets, classes: Sequence[str], count: int | None = None) -> None:
    """Find out early whether targets can be resolved.

    Args:
        targets: As in this module's description.
        classes: Codes in the order of the logits.
        count: Number of images, if it is known.

    Raises:
        UsageError: If a target is unknown, or there is not one per image.
    """
    for one in _listed(targets, count):
        _position(one, None, classes)


def resolve_targets(targets: Targets, logits: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the class position of each image's target, int32 (N,).

    Args:
        targets: As in this module's description.
        logits: float (N, C), or probabilities.
        classes: Codes in the order of the logits.

    Raises:
        UsageError: If a target is unknown or impossible, or there is not one per image.

    Example:
        >>> logits = np.array([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
        >>> resolve_targets(None, logits, ("bkl", "mel", "nv")).tolist()
        [1, 0]
        >>> resolve_targets(["runner_up", "flagged"], logits, ("bkl", "mel", "nv")).tolist()
        [2, 1]
    """
    logits = np.asarray(logits)
    listed = _listed(targets, len(logits))
    found = [_position(one, row, classes) for one, row in zip(listed, logits, strict=True)]
    return np.array(found, np.int32).reshape(len(logits))


def class_position(target: str | int, classes: Sequence[str]) -> int:
    """Return the position of a class that does not depend on what the model answers.

    Raises:
        UsageError: If it does, or the class is unknown.

    Example:
        >>> class_position("mel", ("bkl", "mel", "nv"))
        1
    """
    if depend_on_answer(target):
        raise UsageError(f"{target!r} depends on the image. Name a class: {', '.join(classes)}.")
    return _position(target, None, classes)


def depend_on_answer(targets: Targets) -> bool:
    """Tell whether any of the targets depends on what the model answers."""
    return any(
        one is None or (isinstance(one, str) and one in RELATIVE) for one in _listed(targets, None)
    )


def is_all(targets: Targets) -> bool:
    """Tell whether all classes are asked for."""
    return isinstance(targets, str) and targets == ALL


def per_image(targets: Targets) -> bool:
    """Tell whether there is one target per image, not one for all."""
    return not (targets is None or isinstance(targets, str) or np.ndim(cast(Any, targets)) == 0)


def part_of(targets: Targets, part: slice) -> Targets:
    """Return the targets of some of the images."""
    return list(cast(Any, targets))[part] if per_image(targets) else targets


def _listed(targets: Targets, count: int | None) -> list[Target]:
    if not per_image(targets):
        return [cast(Target, targets)] * (1 if count is None else count)
    listed: list[Target] = list(cast(Any, targets))
    if count is not None and len(listed) != count:
        raise UsageError(
            f"{len(listed)} targets were given for {count} images. Give one per image, or one for "
            "all."
        )
    return listed


def _position(target: Target, logits: np.ndarray | None, classes: Sequence[str]) -> int:
    """Return one target's position; without logits 0 stands for what depends on them."""
    if target is None or (isinstance(target, str) and target in RELATIVE):
        return _relative(target or PREDICTED, logits, classes)
    if isinstance(target, str) and target in classes:
        return list(classes).index(target)
    whole = np.ndim(target) == 0 and np.asarray(target).dtype.kind in "iu"
    if whole and 0 <= int(target) < len(classes):
        return int(target)
    raise UsageError(
        f"Unknown target class {target!r}. Use one of: {', '.join((*classes, *RELATIVE))}; or a "
        f"position from 0 to {len(classes) - 1}."
    )


def _relative(target: str, logits: np.ndarray | None, classes: Sequence[str]) -> int:
    if target == RUNNER_UP and len(classes) < 2:
        raise UsageError("A model with one class has no runner-up. Name the class to explain.")
    malignant = [k for k, code in enumerate(classes) if code in MALIGNANT_CODES]
    if target == FLAGGED and not malignant:
        raise UsageError("No class of this model is known as malignant. Name the class to explain.")
    if logits is None:
        return 0
    if target == FLAGGED:
        return malignant[int(np.argmax(np.asarray(logits)[malignant]))]
    if target == PREDICTED:
        return int(np.argmax(logits))
    others = np.array(logits, np.float64)
    others[int(np.argmax(logits))] = -np.inf
    return int(others.argmax())

"""What every method returns: maps, what they cost, and what is known about how good they are."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np


@dataclass
class Cost:
    """What was paid.

    Attributes:
        forward: Images sent through the network.
        backward: Images whose gradient was taken.
        seconds: Wall-clock time.
    """

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0

    def pay(self, forward: int, backward: int = 0) -> None:
        """Count passes here and in every call that this thread is in (``counted``)."""
        for cost in (self, *_calls.get()):
            cost.forward += forward
            cost.backward += backward


_calls: ContextVar[tuple[Cost, ...]] = ContextVar("calls", default=())


@contextmanager
def counted() -> Iterator[Cost]:
    """Count what is paid inside, and nothing that other threads pay meanwhile."""
    cost, start = Cost(), time.perf_counter()
    token = _calls.set((*_calls.get(), cost))
    try:
        yield cost
    finally:
        _calls.reset(token)
        cost.seconds = time.perf_counter() - start


PER_CLASS = {"axis": "class"}
"""Metadata of fields whose arrays are (N, ...) for one class each, (N, C, ...) for all classes."""
PER_IMAGE = {"axis": "image"}
"""Metadata of fields whose arrays are (N, ...), whatever is explained."""


@dataclass(kw_only=True)
class Attribution:
    """What a method returns; rendering is separate. Methods add what they know (subclasses).

    Attributes:
        maps: float32 (N, H, W) at the input's size, or (N, C, H, W) for all classes. Raw values:
            not normalized.
        method: Name in the registry.
        targets: int (N,): explained classes; empty for all classes.
        values: float32 (N,) or (N, C): value of the output on the unchanged images.
        output: Name of the output that is explained.
        signed: True if negative values speak against the target.
        cost: What was paid for the whole call.
    """

    maps: np.ndarray = field(metadata=PER_CLASS)
    method: str
    targets: np.ndarray = field(metadata=PER_IMAGE)
    values: np.ndarray = field(metadata=PER_CLASS)
    output: str
    signed: bool
    cost: Cost = field(default_factory=Cost)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, as ``np.savez`` takes them."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}

    def facts(self, position: int = 0) -> dict[str, Any]:
        """Return what is one value for an image or for the call, as JSON types.

        Args:
            position: Of the image.
        """
        found: dict[str, Any] = {
            "output": self.output,
            "output_value": float(np.ravel(self.values[position])[0]),
            "signed": self.signed,
            "forward_passes": self.cost.forward,
            "backward_passes": self.cost.backward,
            "seconds": round(self.cost.seconds, 3),
        }
        for one in fields(self)[len(fields(Attribution)) :]:
            value = getattr(self, one.name)
            if not isinstance(value, np.ndarray):
                found[one.name] = value
            elif one.metadata and value.ndim == 1:
                found[one.name] = value[position].item()
        return found

    def of_class(self: "Result", place: int, target: Any = None) -> "Result":
        """Return a result for all classes as a result for one of them.

        The cost stays what was paid for all: they come together.

        Args:
            place: On the second axis of ``maps``.
            target: Position of that class, one or one per image, where it is not the place.
        """
        chosen: dict[str, Any] = {
            one.name: getattr(self, one.name)[:, place]
            for one in fields(self)
            if one.metadata.get("axis") == "class"
        }
        targets = np.full(len(self.maps), place if target is None else target, np.int32)
        return replace(self, **chosen, targets=targets)


Result = TypeVar("Result", bound=Attribution)


def joined(parts: Sequence[Result]) -> Result:
    """Put results for some of the images each together; their last axes may differ in length."""
    named: dict[str, Any] = {
        one.name: _stacked([getattr(part, one.name) for part in parts])
        for one in fields(parts[0])
        if one.metadata.get("axis")
    }
    return replace(parts[0], **named)


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate along the first axis; what is missing in the last becomes NaN."""
    if len({a.shape[1:] for a in arrays}) == 1:
        return np.concatenate(arrays)
    width = max(a.shape[-1] for a in arrays)
    missing = [[(0, 0)] * (a.ndim - 1) + [(0, width - a.shape[-1])] for a in arrays]
    padded = zip(arrays, missing, strict=True)
    return np.concatenate(
        [np.pad(a.astype(np.float32), pad, constant_values=np.nan) for a, pad in padded]
    )


def of_unit_size(values: np.ndarray) -> np.ndarray:
    """Return a map divided by its root mean square, float64; unchanged where it is 0."""
    values = np.asarray(values, np.float64)
    largest = np.abs(values).max(initial=0.0)
    if largest == 0:
        return values
    # Divided by the largest first, so that squares neither vanish nor overflow.
    scaled = values / largest
    return np.divide(scaled, np.sqrt(np.mean(scaled**2)))

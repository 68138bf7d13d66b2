"""Which evaluator the methods use that only look at outputs of changed images.

``float32`` is the Keras model itself. ``int8`` is the bundle's int8 copy (``model.int8_copy``),
several times faster on processors with 8-bit instructions, and a little different.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dermlens.errors import ModelError, UsageError
from dermlens.explainers.perturbation import FLOAT32, Scorer
from dermlens.explainers.registry import METHODS
from dermlens.extras import installed
from dermlens.model.bundle import Bundle
from dermlens.model.image_classifier import ImageClassifier
from dermlens.progress import say

if TYPE_CHECKING:
    from dermlens.model.int8_copy import Int8Copy

SCORERS: tuple[str, ...] = (FLOAT32, "int8")
SUFFICIENT_CORRELATION = 0.99
"""The copy is the default only where its maps correlate at least so with the Keras model's."""
WORTH_A_COPY = 2500
"""Passes from which making the copy, some 20 s, takes less time than it saves."""


def choose_scorers(
    bundle: ImageClassifier,
    methods: Sequence[str],
    choice: str | None = None,
    *,
    images: int = 1,
    workers: int | None = None,
) -> dict[str, Scorer]:
    """Return the scorer of each method that is not to use the Keras model.

    Args:
        bundle: Trained model; without a bundle's folder there is no copy.
        methods: Keys of ``registry.METHODS``; only perturbation methods can have a scorer.
        choice: ``"float32"``; ``"int8"``: the copy is made if there is none; None: the copy where
            its measured agreement is sufficient for the method. Where a bundle brings such a
            measurement along but there is no copy yet, it is made if enough passes are expected.
        images: How many images are going to be explained, about.
        workers: Images that the copy evaluates at the same time; default one per core.

    Raises:
        UsageError: If the choice is unknown.
        ModelError: If the copy is asked for and cannot be made.
    """
    if choice is not None and choice not in SCORERS:
        raise UsageError(f"Unknown scorer {choice!r}. Use one of: {', '.join(SCORERS)}.")
    able = [name for name in methods if METHODS[name].family == "perturbation"]
    if choice == FLOAT32 or not able or (choice is None and not isinstance(bundle, Bundle)):
        return {}
    if choice is None and not installed("ai_edge_litert"):
        say(
            "The model itself is evaluated; its int8 copy would be several times faster: "
            "pip install 'dermlens[export]'."
        )
        return {}
    if not isinstance(bundle, Bundle):
        raise UsageError("Only a bundle has an int8 copy. Make one of the model: dermlens adopt.")
    from dermlens.model.int8_copy import int8_copy

    copy = int8_copy(bundle) if choice else _unasked(bundle, able, images)
    if copy is not None and choice is None:
        able = _sufficient(copy.agreement, able)
    return dict.fromkeys(able, copy.scorer(bundle.model, workers)) if copy and able else {}


def _sufficient(agreement: Mapping[str, Any] | None, methods: Sequence[str]) -> list[str]:
    """Return the methods whose mean correlation reaches ``SUFFICIENT_CORRELATION``."""
    measured = (agreement or {}).get("methods", {})
    return [
        name
        for name in methods
        if (measured.get(name, {}).get("pearson") or 0.0) >= SUFFICIENT_CORRELATION
    ]


def _unasked(bundle: Bundle, methods: Sequence[str], images: int) -> "Int8Copy | None":
    """Return the copy that is there, or one made because it is known to be good and pays."""
    from dermlens.model.int8_copy import carried_agreement, find_int8_copy, int8_copy

    found = find_int8_copy(bundle)
    good = _sufficient(carried_agreement(bundle), methods) if found is None else []
    if images * sum(METHODS[name].forward for name in good) < WORTH_A_COPY:
        return found
    say("Making the int8 copy of the model, once: some 20 s.")
    try:
        return int8_copy(bundle)
    except (ModelError, OSError) as error:
        say(f"There is no int8 copy ({error}); the model itself is evaluated.")
        return None


def scorers_named(bundle: ImageClassifier, names: Mapping[str, str]) -> dict[str, Scorer]:
    """Return scorers by method from their names by method, for a process that has one core.

    Raises:
        UsageError: As ``choose_scorers`` does.
    """
    found: dict[str, Scorer] = {}
    for choice in sorted(set(names.values())):
        chosen = [name for name, one in names.items() if one == choice]
        found |= choose_scorers(bundle, chosen, choice, workers=1)
    return found

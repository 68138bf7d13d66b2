"""Which evaluator the methods use that only look at scores of changed images.

``float32`` is the Keras model itself. ``int8`` is the bundle's int8 copy (``model.int8_copy``),
several times faster on processors with 8-bit instructions, and a little different.
"""

from collections.abc import Sequence

from dermlens.errors import UsageError
from dermlens.explain.perturbation import FLOAT32, Scorer
from dermlens.explain.registry import METHODS
from dermlens.model.bundle import Bundle

SCORERS: tuple[str, ...] = (FLOAT32, "int8")
SUFFICIENT_CORRELATION = 0.99
"""The copy is the default only where its maps correlate at least so with the Keras model's."""


def choose_scorers(
    bundle: Bundle, methods: Sequence[str], choice: str | None = None
) -> dict[str, Scorer]:
    """Return the scorer of each method that is not to use the Keras model.

    Args:
        bundle: Trained model.
        methods: Keys of ``registry.METHODS``; only perturbation methods can have a scorer.
        choice: ``"float32"``; ``"int8"``: the copy is made if there is none; None: the copy where
            there is one and its measured agreement is sufficient for the method.

    Raises:
        UsageError: If the choice is unknown.
        ModelError: If the copy cannot be made.
    """
    if choice is not None and choice not in SCORERS:
        raise UsageError(f"Unknown scorer {choice!r}. Use one of: {', '.join(SCORERS)}.")
    able = [name for name in methods if METHODS[name].family == "perturbation"]
    if choice == FLOAT32 or not able:
        return {}
    if choice is None:
        able = trusted_methods(bundle, able)
        if not able:
            return {}
    from dermlens.model.int8_copy import int8_copy

    scorer = int8_copy(bundle).scorer(bundle.model)
    return dict.fromkeys(able, scorer)


def trusted_methods(bundle: Bundle, methods: Sequence[str]) -> list[str]:
    """Return the methods whose maps the int8 copy was measured to keep.

    The mean Pearson correlation with the Keras model's maps must reach
    ``SUFFICIENT_CORRELATION``. Without a copy, or without a measurement, there is none.
    """
    from dermlens.model.int8_copy import find_int8_copy

    copy = find_int8_copy(bundle)
    measured = {} if copy is None else (copy.agreement or {}).get("methods", {})
    return [
        name
        for name in methods
        if (measured.get(name, {}).get("pearson") or 0.0) >= SUFFICIENT_CORRELATION
    ]

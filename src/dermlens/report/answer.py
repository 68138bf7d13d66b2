"""What a model says about an image, in words: the same on every surface.

Three parts: the most probable diagnosis, the diagnoses that cannot be excluded, the flags.
"""

from collections.abc import Mapping, Sequence

from dermlens.report.facts import diagnosis_name, percent

NO_SETS = (
    "this bundle carries no prediction sets, so what cannot be excluded is not known. "
    "'dermlens pack BUNDLE DATA' fits them."
)
FLAG_WORDS = {
    "malignant": "malignancy",
    "melanoma": "melanoma",
}


def answer_text(
    probabilities: Mapping[str, float],
    prediction_set: Sequence[str] | None,
    flags: Mapping[str, bool],
) -> str:
    """Return the answer in sentences.

    Args:
        probabilities: Calibrated, by code.
        prediction_set: Codes that cannot be excluded, or None if the bundle carries no sets.
        flags: Whether each operating point is reached, by its name.

    Example:
        >>> text = answer_text({"mel": 0.02, "nv": 0.98}, ["nv"], {"melanoma": False})
        >>> text.replace("\\u00a0", " ")
        'Most probable: melanocytic nevus (nv), 98 %. Cannot be excluded: nothing else.'
    """
    parts = [most_probable_text(probabilities), excluded_text(probabilities, prediction_set)]
    return " ".join(part for part in (*parts, flags_text(flags)) if part)


def most_probable_text(probabilities: Mapping[str, float]) -> str:
    """Return the most probable diagnosis with its probability, as a sentence."""
    code = max(probabilities, key=lambda one: probabilities[one])
    return f"Most probable: {diagnosis_name(code)}, {percent(probabilities[code])}."


def excluded_text(probabilities: Mapping[str, float], prediction_set: Sequence[str] | None) -> str:
    """Return what else cannot be excluded, as a sentence; nothing if that is not known."""
    if prediction_set is None:
        return ""
    first = max(probabilities, key=lambda one: probabilities[one])
    others = sorted(
        (code for code in prediction_set if code != first), key=lambda one: -probabilities[one]
    )
    named = ", ".join(f"{diagnosis_name(c)}, {percent(probabilities[c])}" for c in others)
    return f"Cannot be excluded: {named or 'nothing else'}."


def flags_text(flags: Mapping[str, bool]) -> str:
    """Return the flags that are raised, as a sentence; nothing if none is."""
    raised = [FLAG_WORDS.get(name, name) for name, up in flags.items() if up]
    return f"Flagged: {' and '.join(raised)}." if raised else ""

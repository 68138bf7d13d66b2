"""What a model says about an image, in words: the same on every surface.

Three parts: the most probable class, the classes that cannot be excluded, the flags.
"""

from collections.abc import Mapping, Sequence

from dermlens.labels import MALIGNANT, LabelSet
from dermlens.report.facts import NOT_CALIBRATED, class_name, percent

NO_SETS = (
    "this bundle carries no prediction sets, so what cannot be excluded is not known. "
    "'dermlens pack BUNDLE DATA' fits them."
)


def answer_text(
    labels: LabelSet,
    probabilities: Mapping[str, float],
    prediction_set: Sequence[str] | None,
    flags: Mapping[str, bool],
    *,
    calibrated: bool = True,
) -> str:
    """Return the answer in sentences.

    Args:
        labels: The classes.
        probabilities: By code.
        prediction_set: Codes that cannot be excluded, or None if the bundle carries no sets.
        flags: Whether each operating point is reached, by its name.
        calibrated: Whether the probabilities were calibrated.

    Example:
        >>> from dermlens.labels import HAM10000
        >>> text = answer_text(HAM10000, {"mel": 0.02, "nv": 0.98}, ["nv"], {"melanoma": False})
        >>> text.replace("\\u00a0", " ")
        'Most probable: melanocytic nevus (nv), 98 %. Cannot be excluded: nothing else.'
    """

    def said(code: str) -> str:
        return f"{class_name(labels, code)}, {percent(probabilities[code])}"

    order = sorted(probabilities, key=lambda code: -probabilities[code])
    note = "" if calibrated else f" ({NOT_CALIBRATED})"
    text = f"Most probable: {said(order[0])}{note}."
    if prediction_set is not None:
        others = ", ".join(said(code) for code in order[1:] if code in prediction_set)
        text += f" Cannot be excluded: {others or 'nothing else'}."
    raised = ["malignancy" if name == MALIGNANT else name for name, up in flags.items() if up]
    return f"{text} Flagged: {' and '.join(raised)}." if raised else text

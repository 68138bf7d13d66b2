"""A comparison as one self-contained HTML page."""

import numpy as np
import pandas as pd

from dermlens.explainers.registry import METHODS, method
from dermlens.model.bundle_description import model_label
from dermlens.report.comparison import Comparison
from dermlens.report.comparison_view import parts
from dermlens.report.facts import NOT_CALIBRATED, class_name, percent, words
from dermlens.report.html import Page
from dermlens.report.layers import Canvas, outlined

_PARTS = {
    "reading": "Reading the image",
    "scales": "Several scales, beyond what methods had computed",
    "discrimination": "Class discrimination, beyond what methods had computed",
}


def comparison_page(comparison: Comparison, name: str) -> str:
    """Return the page as HTML text; parts that are not ready yet are left out.

    The page loads nothing from elsewhere and runs no script.
    """
    reading, labels = comparison.reading, comparison.labels
    several = words(labels).several
    page = Page(
        f"{name}: why {class_name(labels, comparison.target)}?",
        "Four experiments on one image: methods side by side, how far they agree, several scales, "
        f"and this {words(labels).one} against other {several}.",
    )
    canvas = Canvas(reading.image, lesion=reading.lesion)
    drawn = parts(canvas, comparison)
    for part in drawn[: comparison.summary is not None]:
        page.section(part.title, part.text).markup(part.content)
    page.section("What the model says").markup(f'<div class="dl-picture">{outlined(canvas)}</div>')
    page.table(probabilities_table(comparison), _about_the_answer(comparison))
    for part in drawn[comparison.summary is not None :]:
        page.section(part.title, part.text).markup(part.content)
    caption = "Images sent through the network, gradients taken, and time."
    copied = [
        method(key).title
        for key, result in comparison.combined.items()
        if result.facts().get("scorer") == "int8"
    ]
    if copied:
        caption += f" The network's int8 copy was used for {', '.join(copied)}."
    return page.section("What it cost").table(costs_table(comparison), caption).html()


def _about_the_answer(comparison: Comparison) -> str:
    fitted = "calibrated on validation images"
    text = f"Probabilities, {fitted if comparison.reading.calibrated else NOT_CALIBRATED}"
    if comparison.reading.prediction_set is not None:
        text += ", and what cannot be excluded"
    return f"{text}. Model: {model_label(comparison.model)}." if comparison.model else f"{text}."


def probabilities_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row per class, most probable first."""
    reading, labels = comparison.reading, comparison.labels
    roles = {position: "compared" for position in reading.others} | {reading.target: "explained"}
    order = np.argsort(-reading.probabilities, kind="stable")
    columns = {
        words(labels).one: [class_name(labels, comparison.classes[k]) for k in order],
        "probability": [percent(reading.probabilities[k]) for k in order],
    }
    if reading.prediction_set is not None:
        columns["cannot be excluded"] = [
            "yes" if k in reading.prediction_set else "" for k in order
        ]
    return pd.DataFrame({**columns, "role": [roles.get(int(k), "") for k in order]})


def costs_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row per part and method, and the total."""
    rows = [
        (METHODS[name].title if name in METHODS else _PARTS[name], c.forward, c.backward, c.seconds)
        for name, c in comparison.costs().items()
    ]
    totals = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
    columns = ["part", "forward", "backward", "seconds"]
    return pd.DataFrame([*rows, ("total", *totals)], columns=columns)

"""A comparison as one self-contained HTML page."""

import numpy as np
import pandas as pd

from dermlens.explain.registry import METHODS, method
from dermlens.model.bundle_description import model_label
from dermlens.report.comparison import Comparison
from dermlens.report.comparison_figures import (
    agreement_figure,
    consensus_figure,
    contrast_figure,
    multiscale_figure,
)
from dermlens.report.facts import diagnosis_name, percent
from dermlens.report.figures import Panel, attribution_figure
from dermlens.report.html import Page

TITLES = {name: entry.title for name, entry in METHODS.items()}
_PARTS = {
    "reading": "Reading the image, Grad-CAM of all classes",
    "scales": "Several scales, beyond what methods had computed",
    "discrimination": "Class discrimination, beyond what methods had computed",
}


def comparison_page(comparison: Comparison, name: str) -> str:
    """Return the page as HTML text; parts that are not ready yet are left out.

    The page loads nothing from elsewhere and runs no script.

    Args:
        comparison: As ``Comparer`` gives it, complete or in progress.
        name: What the image is called.
    """
    reading = comparison.reading
    page = Page(
        f"{name}: why {diagnosis_name(comparison.target)}?",
        "Four experiments on one image: methods side by side, how far they agree, several scales, "
        "and this diagnosis against others.",
    )
    if comparison.summary is not None:
        _summary(page, comparison)
    says = "Calibrated probabilities, and what cannot be excluded."
    if comparison.model:
        says += f" Model: {model_label(comparison.model)}."
    page.section("What the model says").table(probabilities_table(comparison), says)
    if comparison.combined:
        _combined(page, comparison)
    if comparison.agreement is not None:
        _agreement(page, comparison)
    if comparison.scales is not None:
        page.section(
            "3. Several scales",
            "Does the explanation depend on how finely one looks? Rows: feature maps from the "
            "deepest to the shallowest stage (Layer-CAM), occlusion from large to small patches, "
            "Kernel SHAP from few to many pieces. Trust what is there at all scales. Shallow "
            "stages show edges and texture that may never reach the decision.",
        ).figure(
            multiscale_figure(reading.image, comparison.scales, lesion=reading.lesion),
            "Each map in its own units. The fused map weights the three kinds alike.",
        )
    if comparison.discrimination is not None:
        _discrimination(page, comparison)
    caption = "Images sent through the network, gradients taken, and time."
    copied = [
        method(name).title
        for name, result in comparison.combined.items()
        if result.facts().get("scorer") == "int8"
    ]
    if copied:
        caption += f" The network's int8 copy was used for {', '.join(copied)}."
    page.section("What it cost").table(costs_table(comparison), caption)
    return page.html()


def _summary(page: Page, comparison: Comparison) -> None:
    assert comparison.summary is not None
    page.section("Summary")
    for sentence in comparison.summary.sentences.values():
        page.paragraph(sentence)
    page.section("Can this explanation be trusted?", comparison.summary.verdict)
    for doubt in comparison.summary.doubts:
        page.paragraph(f"⚠ {doubt.text}")
    page.paragraph(
        "Thresholds are rules of thumb, explained in the documentation; they were not validated on "
        "patients. A map shows what moved this model, not what is true of the lesion."
    )


def _combined(page: Page, comparison: Comparison) -> None:
    panels = [
        Panel(method(name).title, result.maps[0], result.signed, method(name).cost)
        for name, result in comparison.combined.items()
    ]
    figure = attribution_figure(
        comparison.reading.image, panels, lesion=comparison.reading.lesion, opacity=0.55
    )
    page.section(
        "1. Methods side by side",
        "Each method answers its own question, so maps may differ and all be right. Two-sided "
        "color bars show evidence for (orange) and against (purple); one-sided ones show evidence "
        "for only.",
    ).figure(
        figure,
        "Maps over the image, each scaled to its own strongest values"
        + (", with the outline of the lesion." if comparison.reading.lesion is not None else "."),
    )
    for name in comparison.combined:
        page.paragraph(f"{method(name).title}: {method(name).question}")


def _agreement(page: Page, comparison: Comparison) -> None:
    assert comparison.agreement is not None
    agreement, reading = comparison.agreement, comparison.reading
    page.section(
        "2. How far they agree",
        "Maps are first smoothed to a common resolution. Rank correlation compares the order of "
        "all places (1 same, 0 unrelated, -1 opposite), structural similarity the look of the "
        "evidence, overlap the strongest fifth (0.11 is chance). Methods of one family agree by "
        "construction: Grad-CAM with Grad-CAM++, LIME with Kernel SHAP.",
    ).figure(
        agreement_figure(agreement, TITLES),
        "Agreement of every two methods.",
    ).figure(
        consensus_figure(
            reading.image, agreement.consensus, agreement.disagreement, lesion=reading.lesion
        ),
        "Bright in the consensus: places that all methods rank high. Bright in the disagreement: "
        "places that some rank high and others low; do not rely on a single map there.",
    )


def _discrimination(page: Page, comparison: Comparison) -> None:
    assert comparison.discrimination is not None
    reading, found = comparison.reading, comparison.discrimination
    page.section(
        "4. Why this diagnosis and not another",
        "The logit of one diagnosis minus that of another is explained. The discrimination score "
        "says how much of the evidence for the two lies in different places: 0 the same places, "
        "1 no place in common. Near 0 the maps do not show why one was preferred.",
    )
    for other, contrasts in found.contrasts.items():
        code = comparison.classes[other]
        if not contrasts:
            continue
        page.figure(
            contrast_figure(
                reading.image,
                contrasts,
                target=comparison.target,
                other=code,
                titles=TITLES,
                lesion=reading.lesion,
            ),
            f"Above: for {diagnosis_name(comparison.target)} (orange) or for "
            f"{diagnosis_name(code)} (purple). Below: only what would speak for "
            f"{diagnosis_name(code)}.",
        )
    if found.left_out:
        names = ", ".join(TITLES[name] for name in found.left_out)
        reasons = "; ".join(dict.fromkeys(found.left_out.values()))
        page.paragraph(f"Without a contrast: {names} ({reasons}).")


def probabilities_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row per diagnosis, most probable first."""
    reading = comparison.reading
    roles = {position: "compared" for position in reading.others}
    roles[reading.target] = "explained"
    order = np.argsort(-reading.probabilities, kind="stable")
    columns: dict[str, list[str]] = {}
    if reading.prediction_set is not None:
        columns["cannot be excluded"] = [
            "yes" if k in reading.prediction_set else "" for k in order
        ]
    return pd.DataFrame(
        {
            "diagnosis": [diagnosis_name(comparison.classes[k]) for k in order],
            "probability": [percent(reading.probabilities[k]) for k in order],
            **columns,
            "role": [roles.get(int(k), "") for k in order],
        }
    )


def costs_table(comparison: Comparison) -> pd.DataFrame:
    """Return one row per part and method, and the total."""
    paid = comparison.costs()
    names = [_PARTS.get(name, TITLES.get(name, name)) for name in paid]
    rows = [
        (name, c.forward, c.backward, c.seconds)
        for name, c in zip(names, paid.values(), strict=True)
    ]
    totals = [sum(column) for column in list(zip(*rows, strict=True))[1:]]
    return pd.DataFrame(
        [*rows, ("total", *totals)], columns=["part", "forward", "backward", "seconds"]
    )

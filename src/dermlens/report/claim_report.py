"""The page of an audited claim: questions and answers first, then what they rest on."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dermlens.report import charts
from dermlens.report.facts import counted
from dermlens.report.html import Page

_QUESTIONS = {
    "coverage": "Are all images known?",
    "lesions": "Were the lesions new to the model?",
    "patients": "Were the patients new to the model?",
    "prior": "Are the probabilities free of a correction for class frequencies?",
    "calibration": "Can the probabilities be read as such?",
    "support": "Is every class measured on enough images?",
}


def finding_lines(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for each finding, as the command line says it."""
    return [f"{'ok   ' if one['passed'] else 'LOOK '} {one['text']}" for one in findings]


def parts_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """Return images, lesions and class shares of every part of an audited split."""
    rows = []
    for part, one in result["parts"].items():
        shares = {code: f"{share:.1%}" for code, share in one["classes"].items()}
        rows.append({"split": part, "images": one["images"], "lesions": one["lesions"], **shares})
    return pd.DataFrame(rows)


def claim_page(result: Mapping[str, Any], table: pd.DataFrame, name: str) -> Page:
    """Compose the page.

    Args:
        result: As ``audit_claim`` returns it.
        table: The predictions, likewise.
        name: Of the file with the claim.
    """
    found = result["metrics"]
    open_ones = [one for one in result["findings"] if not one["passed"]]
    page = Page(
        f"Audit of {name}",
        f"{counted(found['n_images'], 'image')} of {counted(found['n_lesions'], 'lesion')}. "
        + (
            "Nothing here speaks against the claim."
            if not open_ones
            else f"Questions that need an answer from the authors: {len(open_ones)} of "
            f"{len(result['findings'])}."
        ),
    )
    page.section("Findings", "Intervals hold 95 % and resample lesions.")
    for one in result["findings"]:
        answer = "Yes." if one["passed"] else "Look here."
        page.paragraph(f"{_QUESTIONS[one['check']]} {answer} {one['text']}")
    page.section("Figures").table(
        _figures(found), "At the most probable class, and of the probabilities."
    )
    page.figure(charts.confusion_matrix(table), "Rows are diagnoses, columns the answers.")
    page.figure(
        charts.reliability_diagram(table), "On the diagonal, probabilities are frequencies."
    )
    page.section(
        "Correcting for class frequencies",
        "Balanced accuracy if probabilities are divided by the class frequencies to a power. A "
        "figure chosen at the top of this curve was chosen on the test images.",
    ).figure(charts.balanced_rule(found), "Left, the most probable class as claimed.")
    page.section("Subgroups").figure(charts.subgroups(found), "Small groups say little.")
    return page


def _figures(found: Mapping[str, Any]) -> pd.DataFrame:
    plain, spread = found["most_probable"], found["confidence_intervals"]
    rows = [
        ("balanced accuracy", plain["balanced_accuracy"],
         plain["confidence_intervals"]["balanced_accuracy"]),
        ("accuracy", plain["accuracy"], plain["confidence_intervals"]["accuracy"]),
        ("macro AUC", found["macro_auc"], spread["macro_auc"]),
        ("expected calibration error", found["ece"], spread["ece"]),
        ("Brier score", found["brier"], spread["brier"]),
        ("negative log-likelihood", found["nll"], spread["nll"]),
    ]  # fmt: skip
    return pd.DataFrame(
        {"figure": name, "value": value, "from": low, "to": high}
        for name, value, (low, high) in rows
    )

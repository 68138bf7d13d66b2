"""A benchmark for people: one HTML page, and the same in Markdown for documents."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.files import read_json, write_text
from dermlens.lesion.zones import ZONES
from dermlens.model.bundle_description import model_label
from dermlens.quality.controls import is_control, title
from dermlens.quality.metric import FAMILIES
from dermlens.quality.metrics import STRUCTURE_PREFIX, metric_table
from dermlens.quality.readings import AS_IT_IS, READINGS
from dermlens.report import benchmark_figures as figures
from dermlens.report.benchmark_figures import metric
from dermlens.report.facts import counted
from dermlens.report.html import Page

_FAMILY_TEXT = {
    "faithfulness": "Does the map name what the model uses? Measured by changing the image.",
    "localization": "Does attribution lie where the lesion is? A model may rightly use skin around "
    "it, and lesions are large and centered: compare with the controls.",
    "robustness": "Does the map stay under invisible noise and turn with the image? Maps that "
    "ignore the model win here, so this does not rank.",
    "complexity": "How concentrated is the map? Describes, and does not rank.",
    "randomization": "Does the map change when the network is destroyed, or another diagnosis is "
    "explained? High similarity is a warning.",
    "consistency": "Do two photographs of one lesion get the same explanation, more than "
    "photographs of different lesions?",
}


def write_benchmark_report(out: Path) -> dict[str, Path]:
    """Write ``benchmark.html`` and ``benchmark.md`` from the ``summary.json`` of a folder.

    Raises:
        DataError: If the folder holds no summary.
    """
    page = benchmark_page(read_json(Path(out) / "summary.json"))
    markdown = write_text(Path(out) / "benchmark.md", page.markdown())
    return {"html": page.write(Path(out) / "benchmark.html"), "markdown": markdown}


def benchmark_page(summary: dict[str, Any]) -> Page:
    """Return the report as a page; its Markdown holds all tables, to be put into a document."""
    page = Page("How good are the explanations?", describe(summary))
    page.section("Ranking", _ranking_text(summary))
    if "overall" in summary["ranking"]:
        caption = "Overall mean rank against cost. Squares are controls."
        page.figure(figures.quality_versus_cost(summary), caption)
    caption = "Mean ranks, 1 is best, overall with 95 % interval over lesions; controls are marked."
    page.table(ranking_table(summary), caption)
    _stability(page, summary)
    cost = "What a map costs, each method run alone: mean passes, median seconds."
    page.table(cost_table(summary), cost)
    for family in FAMILIES:
        _family(page, summary, family)
    _as_it_is(page, summary)
    _differences(page, summary)
    _lesions(page, summary)
    page.section("Metrics", "What each metric measures, and which direction is better.")
    known = metric_table([metric(name) for name in summary["metrics"]])
    return page.table(known, "Formulas and limits are in docs/metrics.md.")


def _family(page: Page, summary: dict[str, Any], family: str) -> None:
    names = figures.family_metrics(summary, family)
    if not names:
        return
    page.section(family.capitalize(), _FAMILY_TEXT[family])
    caption = f"Means with 95 % intervals over lesions: {family}."
    page.figure(figures.metric_intervals(summary, family), caption)
    if family == "randomization" and summary["randomization"]:
        caption = "Similarity with the intact network's map while stages are destroyed."
        page.figure(figures.randomization_curves(summary), caption)
    # Lesion masks and structure masks apart, so that tables stay narrow.
    for _, grouped in groupby(names, key=lambda name: name.startswith(STRUCTURE_PREFIX)):
        group = list(grouped)
        better = ", ".join(f"{metric(name).title} {metric(name).direction}" for name in group)
        caption = f"Better: {better}. {excluded_text(summary, group)}"
        page.table(interval_table(summary, group), caption)


def _stability(page: Page, summary: dict[str, Any]) -> None:
    """Add what the ranking becomes when any one metric is left out."""
    table = stability_table(summary)
    if len(table):
        page.table(
            table,
            "The ranking without one metric: Kendall's correlation with the whole ranking, and "
            "its first three. Metrics of one vote order methods alike and count once.",
        )


def _as_it_is(page: Page, summary: dict[str, Any]) -> None:
    """Add how maps score that are read in another way, as their methods give them."""
    unread = summary.get("as_it_is")
    if not unread:
        return
    told = next(r for r in READINGS.values() if r.name != AS_IT_IS)
    page.section(
        "Maps of pixels, as they are",
        "Methods that answer pixel by pixel give positive and negative values side by side, which "
        "no sorting metric can reward. All tables above read their maps alike: "
        f"{told.sentence[0].lower()}{told.sentence[1:]} Here are the same maps as they are. They "
        "do not rank.",
    )
    names = list(next(iter(unread.values())))
    for family in FAMILIES:
        columns = {
            metric(n).title: [interval_text(unread[n].get(one)) for one in names]
            for n in figures.family_metrics(summary, family)
            if n in unread
        }
        if columns:
            rows = pd.DataFrame({"method": list(map(title, names)), **columns})
            page.table(rows, f"Mean with 95 % interval: {family}.")


def stability_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Return a row for each metric left out of the ranking: its vote, and what it changes."""
    votes = summary.get("votes", {})
    rows = [
        {
            "without": metric(name).title,
            "votes with": ", ".join(
                metric(other).title
                for other, vote in votes.items()
                if vote == votes[name]
                and other != name
                and metric(other).family == metric(name).family
            )
            or "–",
            "correlation": one["tau"],
            "first three": ", ".join(title(method) for method in one["order"][:3]),
        }
        for name, one in summary.get("stability", {}).items()
    ]
    return pd.DataFrame(rows)


def _differences(page: Page, summary: dict[str, Any]) -> None:
    ranked = [name for name in summary["comparisons"] if metric(name).ranked]
    table = comparison_table(summary, ranked)
    total = sum(len(summary["comparisons"][name]) for name in ranked)
    page.section(
        "Significant differences",
        f"{len(table)} of {total} paired differences, between methods and between methods and "
        f"controls, are significant at 5 % after Holm's correction. Test: "
        f"{summary['statistics']['test']}. Those not listed are not shown to differ.",
    )
    if len(table):
        page.table(table, "Significant differences in the metrics that rank.")


def _lesions(page: Page, summary: dict[str, Any]) -> None:
    """Add what ``lesion.benchmark`` measured, as far as there was something to measure."""
    if summary.get("zones"):
        relations = relation_table(summary)
        page.section(
            "Lesion zones",
            "Where positive attribution lies: core of the lesion, band along its outline, skin "
            "around, and the ring along the image's edge. An automated proxy, not validated by "
            "clinicians. Relation of asymmetry, border irregularity and colors of a lesion with "
            f"where attribution lies, across images: {len(relations) or 'none'} significant after "
            "Holm's correction.",
        ).table(zone_table(summary), "Share of positive attribution in each zone.")
        if len(relations):
            page.table(relations, "Spearman correlations across images.")
    if summary.get("shortcuts"):
        page.section(
            "Shortcut probe",
            "Artifacts are pasted in, or the lesion is removed or isolated. Flips should be rare "
            "for artifacts; without the lesion the probability of the decision should fall.",
        ).figure(figures.shortcut_chart(summary), "Reaction of the decision to each probe.")
        page.table(shortcut_table(summary), "Means with 95 % intervals over lesions.")


def describe(summary: dict[str, Any]) -> str:
    """Return in one line what was measured."""
    classes = ", ".join(f"{code} {count}" for code, count in summary["per_class"].items())
    model = f" Model: {model_label(summary['model'])}." if "model" in summary else ""
    source = "drawn images" if summary.get("synthetic_model") else "the bundle's data set"
    trained = f", model trained on {source}" if "synthetic_model" in summary else ""
    return (
        f"{counted(summary['n_images'], 'image')} of {counted(summary['n_lesions'], 'lesion')} "
        f"({classes}), "
        f"{counted(len(summary['methods']), 'method')} and "
        f"{counted(len(summary['controls']), 'control')}{trained}."
        f"{model} {summary.get('note', '')}"
    ).strip()


def _ranking_text(summary: dict[str, Any]) -> str:
    overall = summary["ranking"].get("overall", [])
    if not overall:
        return "No metric has a value for every method, so nothing is ranked."
    best = next((row for row in overall if not row["control"]), None)
    name = title(overall[0]["method"])
    wins = _significant_wins(summary, overall[0]["method"])
    first = f"Lowest mean rank: {name}. "
    if wins:
        first += f"It is significantly better in {wins} paired differences with others."
    else:
        first += "None of its differences with others is significant, so no best one is known."
    if best is not None and overall[0]["control"]:
        first += f" No method ranks above this control; the best method is {title(best['method'])}."
    return (
        f"{first} On every image and metric, methods are ranked; ranks are averaged over images, "
        "then metrics that order methods alike and share a vote, then votes, then faithfulness and "
        "localization. Metrics that a map without content can win do not count. Where intervals of "
        "mean ranks overlap, the order is not shown."
    )


def _significant_wins(summary: dict[str, Any], name: str) -> int:
    """Return in how many paired differences of ranked metrics one is significantly better."""
    pairs = (
        pair
        for key, found in summary["comparisons"].items()
        if metric(key).ranked
        for pair in found
    )
    return sum(pair["better"] == name for pair in pairs)


def ranking_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Return mean ranks: a row per method, lowest overall first, a column per family."""
    ranking = summary["ranking"]
    columns = ["overall", *(family for family in FAMILIES if family in ranking)]
    rows = {c: {row["method"]: row for row in ranking.get(c, [])} for c in columns}
    ranks = {c: {name: row["mean_rank"] for name, row in of.items()} for c, of in rows.items()}
    names = figures.methods_of(summary)
    order = sorted(names, key=lambda name: ranks["overall"].get(name, np.inf))
    about = {
        "method": map(title, order),
        "control": ["yes" if is_control(n) else "" for n in order],
    }
    means: dict[str, list[Any]] = {
        column: [ranks[column].get(name, np.nan) for name in order] for column in columns
    }
    overall = [rows["overall"].get(name, {}) for name in order]
    limits = [(one.get("low"), one.get("high")) for one in overall]
    means["interval"] = [
        "–" if None in both else "{:.2f} to {:.2f}".format(*both) for both in limits
    ]
    families = {f"mean rank, {family}": means[family] for family in columns[1:]}
    whole = {name: means[name] for name in ("overall", "interval")}
    return pd.DataFrame({**about, **whole, **families})


def cost_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Return mean forward and backward passes and median seconds per image of each method."""
    rows = [
        {"method": title(name), **summary["cost"]["per_image"][name]}
        for name in figures.methods_of(summary)
    ]
    table = pd.DataFrame(rows).round({"seconds": 3, "forward": 0, "backward": 0})
    return table.astype({"forward": int, "backward": int})


def interval_table(summary: dict[str, Any], names: Sequence[str]) -> pd.DataFrame:
    """Return ``mean (low to high)`` of every method, a column for each metric."""
    methods, found = figures.methods_of(summary), summary["metrics"]
    columns = {metric(n).title: [interval_text(found[n].get(m)) for m in methods] for n in names}
    return pd.DataFrame({"method": [title(name) for name in methods], **columns})


def interval_text(one: dict[str, Any] | None) -> str:
    """Write a mean with its interval.

    Example:
        >>> interval_text({"mean": 0.51234, "low": 0.4, "high": 0.625})
        '0.512 (0.400 to 0.625)'
    """
    if one is None or one["mean"] is None:
        return "–"
    if one["low"] is None or one["high"] is None:
        return f"{one['mean']:.3f}"
    return f"{one['mean']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def excluded_text(summary: dict[str, Any], names: Sequence[str]) -> str:
    """Return how many images or lesions have values, and how many are left out."""
    parts: dict[str, list[str]] = {}
    for name in names:
        known = [one for one in summary["metrics"][name].values() if one["count"]]
        most = max((one["count"] for one in known), default=0)
        left = max((one["excluded"] for one in known), default=0)
        text = f"{most} (up to {left} excluded)" if left else str(most)
        parts.setdefault(text, []).append(metric(name).title)
    counts = "; ".join(f"{', '.join(titles)}: {text}" for text, titles in parts.items())
    counts = next(iter(parts)) if len(parts) == 1 else counts
    return f"Mean with 95 % interval. Images or lesions measured: {counts}."


def comparison_table(summary: dict[str, Any], names: Sequence[str]) -> pd.DataFrame:
    """Return significant differences (Holm, 5 %), each metric's largest first by p-value."""
    rows = []
    for name in names:
        for one in summary["comparisons"][name]:
            if one["better"] is None:
                continue
            other = one["second"] if one["better"] == one["first"] else one["first"]
            labels = (metric(name).title, title(one["better"]), title(other))
            rows.append((*labels, abs(one["difference"]), one["p_holm"]))
    return pd.DataFrame(rows, columns=["metric", "better", "worse", "difference", "p (Holm)"])


def zone_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Return the share of positive attribution in each zone, the first row being the area."""
    rows: list[dict[str, Any]] = [
        {"method": "(share of the area)", **{z: summary["zones"]["areas"][z] for z in ZONES}}
    ]
    for name in figures.methods_of(summary):
        shares = summary["zones"]["shares"][name]
        rows.append({"method": title(name), **{z: shares[z]["mean"] for z in ZONES}})
    return pd.DataFrame(rows).astype({zone: np.float64 for zone in ZONES})


def relation_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Return correlations across images of lesion traits with attribution, p < 0.05 after Holm."""
    rows = [
        {"method": title(name), "relation": key, "rho": one["rho"], "p (Holm)": one["p_holm"]}
        for name, found in summary["relevance"].items()
        for key, one in found.items()
        if one["p_holm"] is not None and one["p_holm"] < 0.05
    ]
    return pd.DataFrame(rows, columns=["method", "relation", "rho", "p (Holm)"])


def shortcut_table(summary: dict[str, Any]) -> pd.DataFrame:
    """Return each probe's flips, changes of probabilities and moved attribution."""
    watched, rows = summary.get("watched"), []
    for name, found in summary["shortcuts"].items():
        row: dict[str, Any] = {"probe": name.replace("_", " ")}
        for column, one in found.items():
            if column == "change_of_watched" and watched is None:
                continue
            label = column.replace("change_of_watched", f"change of p({watched})")
            label = label.replace("change_of_target", "change of p(predicted)")
            if label.startswith("moved_"):
                label = f"moved: {title(label.removeprefix('moved_'))}"
            row[label] = interval_text(one)
        rows.append(row)
    return pd.DataFrame(rows)

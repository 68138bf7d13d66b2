"""The benchmark's page and tables carry the numbers of summary.json."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermlens.errors import DataError, UsageError
from dermlens.files import read_json, write_json
from dermlens.lesion.benchmark import LesionMeasures
from dermlens.lesion.zones import ZONES
from dermlens.quality.benchmark_summary import summarize
from dermlens.quality.benchmark_tables import Tables
from dermlens.report import benchmark_figures as figures
from dermlens.report.benchmark_report import (
    benchmark_page,
    comparison_table,
    describe,
    excluded_text,
    interval_text,
    ranking_table,
    write_benchmark_report,
    zone_table,
)
from dermlens.report.html import markdown_table

NAMES = ["grad_cam", "occlusion", "uniform", "untrained_grad_cam"]
LEVEL = {"grad_cam": 0.8, "occlusion": 0.6, "uniform": 0.3, "untrained_grad_cam": 0.4}
FORWARD = {"grad_cam": 1.0, "occlusion": 166.0, "uniform": 0.0, "untrained_grad_cam": 1.0}
AREAS = (0.1, 0.2, 0.6, 0.1)
IMAGES = 24


def tables() -> Tables:
    generator = np.random.default_rng(0)
    rows, cost = [], []
    for number in range(IMAGES):
        for name in NAMES:
            value = LEVEL[name] + generator.normal(0, 0.02)
            mass = np.nan if number == 3 else value
            measured = number < 4
            found = {
                "deletion": 1 - value,
                "insertion": value,
                "relevance_mass": mass,
                "structure_relevance_mass": value / 2,
                **({"max_sensitivity": value, "randomization_spearman": 0.1} if measured else {}),
                **{f"zone_{zone}": 0.25 for zone in ZONES},
                "asymmetry_relation": value,
                "color_relation": -value,
            }
            rows += [(f"I{number}", name, metric, one) for metric, one in found.items()]
            # The first image pays for tracing.
            costs = {"forward": FORWARD[name], "backward": 0.0, "seconds": 0.01 if number else 5.0}
            cost.append({"image_id": f"I{number}", "method": name, **costs})
    images = pd.DataFrame(
        {
            "image_id": [f"I{k}" for k in range(IMAGES)],
            "lesion_id": [f"L{k // 2}" for k in range(IMAGES)],
            "dx": [("mel", "nv")[k % 2] for k in range(IMAGES)],
            "predicted": "mel",
            "target": "mel",
            "probability": 0.9,
            "asymmetry": generator.random(IMAGES),
            "irregularity": generator.random(IMAGES),
            "color_spread": generator.random(IMAGES),
            "colors": 2.0,
            "area": 0.2,
            **{f"area_{zone}": share for zone, share in zip(ZONES, AREAS, strict=True)},
            "metric_passes": 592,
        }
    )  # fmt: skip
    steps = [
        {"order": order, "step": step, "stage": stage, "image_id": f"I{k}", "method": name,
         "spearman": 0.5 - 0.2 * step, "ssim": 0.4}
        for order in ("cascading", "independent")
        for step, stage in enumerate(("logits", "conv5"))
        for name in NAMES[:3]
        for k in range(4)
    ]  # fmt: skip
    pairs = [
        {"lesion_id": f"L{k}", "method": name, "photo_consistency": LEVEL[name] / 4,
         "zone_consistency": 0.9}
        for k in range(5)
        for name in NAMES
    ]  # fmt: skip
    probes = [
        {"image_id": f"I{k}", "lesion_id": f"L{k // 2}", "dx": "mel", "probe": probe,
         "flipped": float(k == 0), "change_of_target": -0.1, "change_of_watched": 0.05,
         "area": 0.1, "moved_grad_cam": 0.02}
        for k in range(4)
        for probe in ("ruler", "lesion_removed")
    ]  # fmt: skip
    long = pd.DataFrame(rows, columns=["image_id", "method", "metric", "value"])
    more = {"consistency": pd.DataFrame(pairs), "shortcuts": pd.DataFrame(probes)}
    return Tables(long, images, pd.DataFrame(cost), pd.DataFrame(steps), more)


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A summary that went through the file."""
    path = tmp_path_factory.mktemp("summary") / "summary.json"
    extension = LesionMeasures()
    extension.watched = "mel"
    content = summarize(tables(), NAMES, extension, resamples=300, flips=999)
    write_json(path, {"note": "Automated proxies.", "synthetic_model": True, **content})
    return read_json(path)


def test_summary_of_known_tables(summary: dict[str, Any]) -> None:
    assert (summary["n_images"], summary["n_lesions"]) == (24, 12)
    assert summary["per_class"] == {"mel": 12, "nv": 12}
    mass = summary["metrics"]["relevance_mass"]["grad_cam"]
    assert (mass["count"], mass["excluded"]) == (23, 1)
    sensitivity = summary["metrics"]["max_sensitivity"]["grad_cam"]
    assert (sensitivity["count"], sensitivity["excluded"]) == (4, 0)
    cost = summary["cost"]["per_image"]["occlusion"]
    assert cost == {"forward": 166.0, "backward": 0.0, "seconds": 0.01}
    order = [row["method"] for row in summary["ranking"]["overall"]]
    assert order == ["grad_cam", "occlusion", "untrained_grad_cam", "uniform"]
    assert summary["ranking"]["overall"][0]["mean_rank"] == 1.0
    pairs = {(p["first"], p["second"]): p for p in summary["comparisons"]["deletion"]}
    assert set(pairs) == {
        ("grad_cam", "occlusion"), ("grad_cam", "uniform"), ("grad_cam", "untrained_grad_cam"),
        ("occlusion", "uniform"), ("occlusion", "untrained_grad_cam"),
    }  # fmt: skip
    first = pairs["grad_cam", "occlusion"]
    assert first["better"] == "grad_cam" and first["difference"] == pytest.approx(-0.2, abs=0.02)
    assert summary["randomization"]["cascading"]["stages"] == ["logits", "conv5"]
    assert summary["randomization"]["cascading"]["methods"]["grad_cam"]["spearman"][1] == (
        pytest.approx(0.3)
    )
    assert summary["shortcuts"]["ruler"]["flipped"]["mean"] == 0.25


def test_page_is_self_contained_and_tells_what_was_measured(summary: dict[str, Any]) -> None:
    text = benchmark_page(summary).html()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "<script" not in text
    for words in (
        "24 images of 12 lesions (mel 12, nv 12)", "Lowest mean rank: Grad-CAM. ",
        "It is significantly better in", "Overall mean rank",
        "Automated proxies.", "drawn images", "Shortcut probe", "Grad-CAM, untrained",
        "Research and education only", "docs/metrics.md", "Petsiuk",
    ):  # fmt: skip
        assert words in text, words
    for family in ("Faithfulness", "Localization", "Robustness", "Randomization", "Consistency"):
        assert f">{family}<" in text
    assert ">Complexity<" not in text, "nothing of that family was measured"
    assert describe({**summary, "n_images": 1, "n_lesions": 1}).startswith("1 image of 1 lesion (")


def test_tables_hold_the_numbers(summary: dict[str, Any]) -> None:
    ranks = ranking_table(summary)
    assert ranks.method.tolist() == ["Grad-CAM", "Occlusion", "Grad-CAM, untrained", "Uniform"]
    assert ranks.control.tolist() == ["", "", "yes", "yes"] and ranks.overall[0] == 1.0
    assert "place on the body" not in markdown_table(ranks), "a family, not a column of metadata"
    found = comparison_table(summary, ["deletion"])
    assert len(found) == 5 and found.better.tolist()[:3] == ["Grad-CAM"] * 3
    zones = zone_table(summary)
    assert zones.iloc[0, 1:].tolist() == pytest.approx([0.1, 0.2, 0.6, 0.1])
    assert "23 (up to 1 excluded)" in excluded_text(summary, ["relevance_mass", "deletion"])
    assert excluded_text(summary, ["deletion", "insertion"]).endswith("measured: 24.")
    assert interval_text({"mean": None}) == interval_text(None) == "–"
    assert interval_text({"mean": 0.5, "low": None, "high": None}) == "0.500"


def test_markdown_has_well_formed_tables(summary: dict[str, Any]) -> None:
    text = benchmark_page(summary).markdown()
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {line.count("|") for line in block.strip().split("\n")}
        assert len(widths) == 1 and len(block.strip().split("\n")) > 2, block
    one = summary["metrics"]["insertion"]["occlusion"]
    assert interval_text(one) in text and "## Significant differences" in text
    assert markdown_table(pd.DataFrame({"a|b": ["x|y"]})).endswith("| x\\|y |")


def test_figures_draw_the_numbers(summary: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    cost = figures.quality_versus_cost(summary).axes[0]
    points = {tuple(line.get_xydata()[0]) for line in cost.lines if len(line.get_xydata()) == 1}
    ranks = {row["method"]: row["mean_rank"] for row in summary["ranking"]["overall"]}
    assert points == {(max(FORWARD[name], 0.1), ranks[name]) for name in NAMES}
    assert cost.yaxis_inverted() and cost.get_xscale() == "log"
    panels = figures.metric_intervals(summary, "faithfulness").axes
    drawn = [line.get_xdata()[0] for line in panels[0].lines if len(line.get_xdata()) == 1]
    expected = [summary["metrics"]["deletion"][name]["mean"] for name in NAMES]
    assert drawn == pytest.approx(expected) and panels[0].get_title(loc="left") == "Deletion AUC"
    curves = figures.randomization_curves(summary).axes[0]
    assert curves.lines[0].get_ydata().tolist() == pytest.approx([1.0, 0.5, 0.3])
    figures.shortcut_chart(summary)
    assert plt.get_fignums() == []
    empty = {**summary, "ranking": {}, "randomization": {}, "shortcuts": {}}
    for draw in (
        figures.quality_versus_cost, figures.randomization_curves, figures.shortcut_chart
    ):  # fmt: skip
        with pytest.raises(UsageError):
            draw(empty)
    with pytest.raises(UsageError, match="complexity"):
        figures.metric_intervals(summary, "complexity")


def test_files_are_written_and_a_missing_summary_is_said(
    summary: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"summary\.json is missing"):
        write_benchmark_report(tmp_path)
    write_json(tmp_path / "summary.json", summary)
    paths = write_benchmark_report(tmp_path)
    assert paths["html"].read_text().startswith("<!DOCTYPE html>")
    assert "## Ranking" in paths["markdown"].read_text()

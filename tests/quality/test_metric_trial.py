"""The trial of metrics: changes of maps by hand, verdicts on planted scores, shared votes."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermlens.quality.metric_trial import (
    DESTROYED,
    HARMLESS,
    ORIGINAL,
    OTHER_CLASS,
    changed_maps,
    correlations,
    shared_votes,
    truth_preferred,
    try_image,
    verdicts,
)
from dermlens.quality.metrics import METRICS

RANKED = [name for name, one in METRICS.items() if one.ranked]
LESIONS = ["L0", "L0", "L1", "L2"]


def test_changes_of_a_map_by_hand() -> None:
    generator = np.random.default_rng(0)
    map_ = generator.random((32, 48)).astype(np.float32)
    image = generator.random((32, 48, 3)).astype(np.float32)
    changed = changed_maps(map_, image, seed=1)
    assert set(changed) == {*HARMLESS, "shuffled", "shifted"}
    assert all(one.shape == map_.shape for one in changed.values())
    np.testing.assert_array_equal(changed["nudge"][1:, 1:], map_[:-1, :-1])
    assert 0.015 < (changed["noise"] - map_).std() / np.ptp(map_) < 0.025
    assert changed["shifted"][8, 12] == map_[0, 0] and changed["shifted"][0, 0] == map_[24, 36]
    shuffled = changed["shuffled"]
    np.testing.assert_array_equal(np.sort(shuffled, axis=None), np.sort(map_, axis=None))
    tiles = {map_[y : y + 4, x : x + 4].tobytes() for y in range(0, 32, 4) for x in range(0, 48, 4)}
    assert {
        shuffled[y : y + 4, x : x + 4].tobytes() for y in range(0, 32, 4) for x in range(0, 48, 4)
    } == tiles, "whole tiles move"
    assert (shuffled != map_).mean() > 0.8
    again = changed_maps(map_, image, seed=1)
    assert all(np.array_equal(again[name], one) for name, one in changed.items())
    assert not np.array_equal(changed_maps(map_, image, seed=2)["shuffled"], shuffled)


def planted(change: str, by: float, harmless: float) -> list[dict[str, Any]]:
    """Trials of two methods, 1 apart, in which one change moves every metric, for the worse."""
    trials = []
    for _ in LESIONS:
        rows: dict[str, Any] = {}
        for level, method in enumerate(("one", "two")):
            rows[method] = {}
            for name in (ORIGINAL, *HARMLESS, *DESTROYED, OTHER_CLASS):
                moved = by if name == change else harmless if name in HARMLESS else 0.0
                rows[method][name] = {m: level - METRICS[m].sign * moved for m in RANKED}
        trials.append(rows)
    return trials


def test_a_metric_that_notices_and_one_that_does_not() -> None:
    found = verdicts(planted("shuffled", 0.5, 0.0), LESIONS)
    assert set(found) == set(RANKED)
    one = found["deletion"]
    assert one.reacts["shuffled"].mean == 1.0
    assert one.reacts["shifted"].mean == one.reacts["untrained"].mean == 0.5, "ties count half"
    assert one.reaction == pytest.approx(2 / 3) and not one.kept
    assert verdicts(planted("shuffled", -0.5, 0.0), LESIONS)["road"].reacts["shuffled"].mean == 0
    trials = planted("shuffled", 0.5, 0.0)
    for rows in trials:
        for method in rows.values():
            method["shifted"] = method["untrained"] = method["shuffled"]
    assert verdicts(trials, LESIONS)["deletion"].kept


def test_a_metric_that_noise_moves_is_not_kept() -> None:
    trials = planted("shuffled", 0.5, 0.3)
    for rows in trials:
        for method in rows.values():
            method["shifted"] = method["untrained"] = method["shuffled"]
    one = verdicts(trials, LESIONS)["insertion"]
    assert one.moved == pytest.approx(0.3), "methods are 1 apart"
    assert one.reaction == 1.0 and not one.kept


def measured(better: bool) -> pd.DataFrame:
    rows = []
    for image_id in ("I0", "I1"):
        for name in RANKED:
            sign = METRICS[name].sign
            local = METRICS[name].family == "localization"
            for method, value in (("truth", 1.0 if better else 0.2), ("random", 0.5)):
                column = f"structure_{name}" if local else name
                rows.append((image_id, method, column, sign * value))
                if local:
                    rows.append((image_id, method, name, -sign * value))
    return pd.DataFrame(rows, columns=["image_id", "method", "metric", "value"])


def test_truth_is_judged_on_structures() -> None:
    lesions = {"I0": "L0", "I1": "L1"}
    good = truth_preferred(measured(True), lesions, "truth")
    assert set(good) == set(RANKED)
    assert all(one["random"].mean == 1.0 for one in good.values())
    bad = truth_preferred(measured(False), lesions, "truth")
    assert all(one["random"].mean == 0.0 for one in bad.values())
    trials = planted("shuffled", 0.5, 0.0)
    for rows in trials:
        for method in rows.values():
            method["shifted"] = method["untrained"] = method["shuffled"]
    assert all(one.kept for one in verdicts(trials, LESIONS, good).values())
    assert not any(one.kept for one in verdicts(trials, LESIONS, bad).values())
    assert truth_preferred(measured(True), lesions, "nobody") == {}


def test_metrics_of_one_mind_share_a_vote() -> None:
    order = np.arange(6.0)[None]
    other = np.array([[3.0, 0.0, 5.0, 1.0, 4.0, 2.0]])
    values = {
        "relevance_mass": (order, ["L0"]),
        "enrichment": (order * 2, ["L0"]),
        "pixel_auc": (other, ["L0"]),
        "deletion": (-order, ["L0"]),
    }
    table = correlations(values)
    assert table.loc["relevance_mass", "enrichment"] == pytest.approx(1.0)
    assert table.loc["relevance_mass", "deletion"] == pytest.approx(1.0), "lower is better there"
    groups = shared_votes(table)
    assert groups == [["relevance_mass", "enrichment"], ["pixel_auc"], ["deletion"]]
    assert shared_votes(table, least=-1.0)[0] == ["relevance_mass", "enrichment", "pixel_auc"]


def test_every_map_is_measured_as_it_is_and_changed() -> None:
    from pathlib import Path

    from dermlens.quality.benchmark_measure import Bench
    from dermlens.quality.benchmark_plan import BenchmarkPlan, Item, Loaded
    from explain_networks import smooth_images, trained_like

    image = smooth_images(1, (24, 32))[0].astype(np.float32)
    mask = np.zeros((24, 32), bool)
    mask[6:18, 8:24] = True
    item = Item("I0", "L0", "mel", Path("I0.png"), None, None)
    plan = BenchmarkPlan(
        ("grad_cam",), n=1, robustness=0, randomization=0, steps=3, squares=4, sets=4
    )
    bench = Bench(trained_like(size=(24, 32)), plan)
    rows = try_image(bench, Loaded(item, image, mask, None))
    assert list(rows) == ["grad_cam"]
    assert set(rows["grad_cam"]) == {ORIGINAL, *HARMLESS, *DESTROYED, OTHER_CLASS}
    assert all(set(one) == set(RANKED) for one in rows["grad_cam"].values())
    case, _ = bench.case(Loaded(item, image, mask, None))
    map_ = bench.explain("grad_cam", image[None], case.targets)
    mass = METRICS["relevance_mass"].measure(case.with_map(map_[0]))[0]
    assert rows["grad_cam"][ORIGINAL]["relevance_mass"] == mass
    assert rows["grad_cam"]["untrained"]["relevance_mass"] != mass

"""Rankings by hand: ranks, shared votes, intervals over lesions, and what hangs on one metric."""

from typing import Any

import numpy as np
import pytest

from dermlens.quality.metrics import METRICS
from dermlens.quality.ranking import OVERALL, VOTES, ranked_metrics, ranking, stability

NAMES = ["a", "b", "uniform"]


def on_lesions(columns: dict[str, Any]) -> dict[str, Any]:
    """Every image of a lesion of its own."""
    return {n: (np.array(c, float), [f"L{k}" for k in range(len(c))]) for n, c in columns.items()}


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["method"]: row["mean_rank"] for row in rows}


def test_ranks_by_hand() -> None:
    values = on_lesions(
        {
            "deletion": [[0.1, 0.5, 0.5], [0.2, 0.1, 0.9], [np.nan, 0.0, 0.0]],
            "relevance_mass": [[0.9, 0.1, 0.5]],
            "sparseness": [[0.0, 1.0, 0.5]],
        }
    )
    found = ranking(values, NAMES, resamples=50)
    assert means(found["faithfulness"]) == {"a": 1.5, "b": 1.75, "uniform": 2.75}
    assert [row["method"] for row in found["localization"]] == ["a", "uniform", "b"]
    assert "complexity" not in found, "a map without content must not win"
    assert means(found["overall"]) == {"a": 1.25, "b": 2.375, "uniform": 2.375}
    assert found["overall"][-1]["control"] or found["overall"][-2]["control"]


def test_metrics_of_one_vote_count_once() -> None:
    first, last = [[1.0, 0.5, 0.0]], [[0.0, 0.5, 1.0]]
    overlap = ["relevance_rank", "pixel_auc", "best_iou", "equal_area_iou"]
    values = on_lesions({"pointing_game": last, **dict.fromkeys(overlap, first)})
    found = means(ranking(values, NAMES, resamples=0)["localization"])
    assert found == {"a": 2.0, "b": 2.0, "uniform": 2.0}, "four of one mind are one vote"


def test_structures_replace_masks_and_share_votes_alike() -> None:
    first, last = [[1.0, 0.5, 0.0]], [[0.0, 0.5, 1.0]]
    names = ["structure_relevance_mass", "structure_enrichment", "structure_pointing_game"]
    values = on_lesions({"pixel_auc": last} | dict(zip(names, (first, first, last), strict=True)))
    assert ranked_metrics(values) == ["pixel_auc", *names], "not measured on both"
    values |= on_lesions({"pointing_game": first})
    assert "pointing_game" not in ranked_metrics(values)
    values.pop("pixel_auc")
    found = means(ranking(values, NAMES, resamples=0)["localization"])
    assert found == {"a": 2.0, "b": 2.0, "uniform": 2.0}


def test_intervals_resample_lesions() -> None:
    """One lesion with many images moves the mean rank as a whole."""
    column = np.array([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    together = {"deletion": (column, ["L0"] * 9 + ["L1"])}
    rows = ranking(together, ["a", "b"], resamples=400)["overall"]
    by_name = {row["method"]: row for row in rows}
    assert by_name["b"]["mean_rank"] == pytest.approx(1.1)
    # Both lesions drawn, or one of them twice: 1.1, 1.0 and 2.0 are all that can come.
    assert (by_name["b"]["low"], by_name["b"]["high"]) == (1.0, 2.0)
    assert by_name["a"]["low"] == 1.0 and by_name["a"]["high"] == 2.0
    alone = ranking({"deletion": (column, ["L0"] * 10)}, ["a", "b"], resamples=400)["overall"]
    assert np.isnan(alone[0]["low"]), "one lesion has no interval"


def test_stability_names_the_metric_that_decides() -> None:
    values = on_lesions(
        {
            "deletion": [[0.1, 0.2, 0.3]],
            "road": [[0.3, 0.2, 0.1]],
            "insertion": [[0.0, 0.1, 0.3]],
        }
    )
    found = stability(values, NAMES)
    assert set(found) == {"deletion", "road", "insertion"}
    assert found["insertion"] == {"tau": pytest.approx(1.0), "order": ["a", "b", "uniform"]}
    # Without deletion, ROAD and insertion cancel each other.
    assert not found["deletion"]["tau"] > 0.5
    assert stability(on_lesions({"deletion": [[1.0, 2.0]]}), ["a", "b"]) == {}


def test_votes_join_metrics_of_one_family_that_rank() -> None:
    for vote in set(VOTES.values()):
        members = [METRICS[name] for name, one in VOTES.items() if one == vote]
        assert len(members) > 1 and all(one.ranked for one in members)
        assert len({one.family for one in members}) == 1 and members[0].family in OVERALL

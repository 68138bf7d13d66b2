"""What metrics declare about themselves."""

import pytest

from dermlens.errors import UsageError
from dermlens.lesion.consistency import CONSISTENCY
from dermlens.quality import metrics
from dermlens.quality.metric import FAMILIES
from dermlens.quality.metrics import METRICS, metric, metric_table

KNOWN = {**METRICS, **CONSISTENCY}


def test_every_metric_says_what_it_is() -> None:
    for name, one in KNOWN.items():
        assert one.name == name and one.family in FAMILIES
        assert one.low < one.high and one.sign == {"higher": 1, "lower": -1}[one.direction]
        assert one.sentence.endswith(".") and one.citation and one.title
    assert {one.family for one in KNOWN.values()} == set(FAMILIES)
    assert all(getattr(metrics, name) is one for name, one in METRICS.items())


def test_the_table_has_a_row_for_each_and_structure_metrics_are_localization() -> None:
    table = metric_table()
    assert table.metric.tolist() == list(METRICS) and not table.isna().any().any()
    assert table.set_index("metric").loc["enrichment", "range"] == "0 or more"
    structure = metric("structure_enrichment")
    assert structure.family == "localization" and "structure" in structure.title
    assert "the mask" not in structure.sentence
    for unknown in ("deletions", "structure_deletion"):
        with pytest.raises(UsageError, match="Unknown metric"):
            metric(unknown)


def test_every_metric_is_documented() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for name in KNOWN:
        assert f"`{name}`" in text, f"{name} is missing in docs/metrics.md"

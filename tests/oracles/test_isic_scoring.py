"""The challenge's own scorer agrees with our balanced accuracy."""

import numpy as np
import pandas as pd
import pytest

from isic_support import COLUMNS, isic_balanced_accuracy


def test_official_scorer_agrees(tmp_path, monkeypatch):
    # The scorer calls a method that pandas 3 has renamed.
    monkeypatch.setattr(pd.DataFrame, "applymap", pd.DataFrame.map, raising=False)
    scoring = pytest.importorskip("isic_challenge_scoring.classification")
    generator = np.random.default_rng(0)
    names = [f"ISIC_{k:07d}" for k in range(60)]
    truth = pd.DataFrame(np.eye(7)[generator.integers(0, 7, 60)], columns=COLUMNS)
    submission = pd.DataFrame(generator.dirichlet(np.ones(7), 60) * 0.99, columns=COLUMNS)
    for table, name in ((truth, "truth.csv"), (submission, "submission.csv")):
        table.insert(0, "image", names)
        table.to_csv(tmp_path / name, index=False)
    score = scoring.ClassificationScore.from_file(
        tmp_path / "truth.csv",
        tmp_path / "submission.csv",
        scoring.ClassificationMetric.BALANCED_ACCURACY,
    )
    assert isic_balanced_accuracy(submission, truth) == pytest.approx(score.overall, abs=1e-12)

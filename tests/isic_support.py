"""The figure of the ISIC 2018 challenge, as its scorer computes it."""

import numpy as np
import pandas as pd

COLUMNS = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


def isic_balanced_accuracy(submission: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Return the mean recall over classes with images; rows without answer are left out."""
    joined = truth.merge(submission, on="image", suffixes=("_truth", "_prediction"))
    actual = joined[[f"{c}_truth" for c in COLUMNS]].to_numpy().argmax(axis=1)
    predicted = joined[[f"{c}_prediction" for c in COLUMNS]].to_numpy().argmax(axis=1)
    recalls = [(predicted[actual == c] == c).mean() for c in np.unique(actual)]
    return float(np.mean(recalls))

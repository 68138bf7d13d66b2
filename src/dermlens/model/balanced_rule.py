"""The balanced rule: a decision that aims at balanced accuracy instead of being right most often.

The class with the largest calibrated logit minus tau times the log of its frequency in training
(logit adjustment; Menon et al., "Long-tail learning via logit adjustment", ICLR 2021). tau = 0 is
the most probable class; tau = 1 is the best rule for balanced accuracy if the logits are perfectly
calibrated. It answers what challenges score, not what a person asks: a rare diagnosis of low
probability can win. Probabilities are left untouched by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field

from dermlens.model.metrics import divide, lesion_resamples
from dermlens.schema import STRICT

TAUS = np.round(np.arange(0.0, 1.51, 0.05), 2)
LARGEST_TAU = 1.0
"""What theory gives for calibrated logits: more would fit the noise of rare classes."""
_RESAMPLES = 1000


@dataclass(frozen=True)
class RulePoint:
    """Balanced accuracy of one strength, 0..1, and its 95 % interval over resampled lesions."""

    __pydantic_config__ = STRICT
    tau: float
    balanced_accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class BalancedRule:
    """A fitted rule.

    Attributes:
        tau: Strength of the prior correction, 0 or more.
        log_prior: Log frequency of each class in training, in class order; may be left out where
            tau is 0.
        curve: Balanced accuracy over tau on validation; empty in bundles that do not hold it.
    """

    # Files say it in words too.
    __pydantic_config__ = ConfigDict(**{**STRICT, "extra": "ignore"})
    tau: Annotated[float, Field(ge=0)]
    log_prior: tuple[float, ...]
    curve: tuple[RulePoint, ...] = ()

    def adjusted(self, scaled: np.ndarray) -> np.ndarray:
        """Return calibrated logits (N, C) minus tau times the log prior, float64 (N, C)."""
        scaled = np.asarray(scaled, np.float64)
        return scaled - self.tau * np.asarray(self.log_prior) if self.tau else scaled

    def decide(self, scaled: np.ndarray) -> np.ndarray:
        """Return the class positions chosen from calibrated logits (N, C), int (N,)."""
        return self.adjusted(scaled).argmax(axis=1)


NO_RULE = BalancedRule(0.0, ())
"""The most probable class."""


def rule_curve(
    scaled: np.ndarray,
    labels: np.ndarray,
    log_prior: np.ndarray | Sequence[float],
    groups: np.ndarray,
    *,
    seed: int = 0,
) -> tuple[tuple[RulePoint, ...], np.ndarray]:
    """Measure the balanced accuracy over the strength of the rule.

    Returns a point for each of ``TAUS``, and the balanced accuracy of every resample of lesions,
    float64 (T, R): the same resamples for every tau. Arguments as ``fit_balanced_rule`` takes them.
    """
    weights = np.vstack([np.ones(len(labels)), lesion_resamples(groups, _RESAMPLES, seed)])
    truth = np.eye(np.shape(scaled)[1])[labels]
    support = weights @ truth
    points, resampled = [], []
    for tau in TAUS:
        right = (scaled - tau * np.asarray(log_prior)).argmax(axis=1) == labels
        recalls = divide(weights @ (truth * right[:, None]), support)
        whole, *parts = np.nanmean(recalls, axis=1)
        low, high = np.quantile(parts, [0.025, 0.975])
        points.append(RulePoint(float(tau), float(whole), float(low), float(high)))
        resampled.append(parts)
    return tuple(points), np.array(resampled)


def fit_balanced_rule(
    scaled: np.ndarray,
    labels: np.ndarray,
    log_prior: np.ndarray,
    groups: np.ndarray,
    *,
    seed: int = 0,
) -> BalancedRule:
    """Choose 1, or the largest smaller strength that is within one standard error of the best.

    Rare classes have few validation images, so the best strength on them alone is mostly noise:
    they overrule theory, which says 1, only where they speak against it by more than one standard
    error. That is of the difference to the best strength over the same resamples of lesions
    (Breiman et al., "Classification and regression trees", 1984, for paired figures).

    Args:
        scaled: Calibrated logits (N, C); log_prior (C,).
        labels: Class positions, int (N,); groups: lesion of each image, (N,).
        seed: Of the resampling.
    """
    curve, resampled = rule_curve(scaled, labels, log_prior, groups, seed=seed)
    allowed = np.flatnonzero(TAUS <= LARGEST_TAU)
    best = allowed[int(resampled[allowed].mean(axis=1).argmax())]
    behind = resampled[best] - resampled[allowed]
    close = behind.mean(axis=1) <= behind.std(axis=1)
    tau = float(TAUS[allowed[int(np.flatnonzero(close)[-1])]])
    return BalancedRule(tau, tuple(float(v) for v in log_prior), curve)

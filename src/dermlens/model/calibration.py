"""From logits to an answer: honest probabilities, prediction sets, flags, and the balanced rule.

All are fitted on the validation split and stored with the bundle.

* Temperature: Guo et al., "On calibration of modern neural networks", ICML 2017. It keeps the
  order of the classes, so the most probable class is that of the largest logit.
* Prediction sets: ``model.conformal``.
* Operating points: thresholds on the summed probability of malignant diagnoses and on that of
  melanoma, independent of the other two.
* Balanced rule: ``model.balanced_rule``, for challenges and for comparing models.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, Field, model_validator

from dermlens.errors import ModelError
from dermlens.labels import HAM10000, LabelSet
from dermlens.model.balanced_rule import NO_RULE, BalancedRule, fit_balanced_rule
from dermlens.model.conformal import PredictionSets, fit_prediction_sets
from dermlens.schema import STRICT, Code, Count, Positive, Section, Share, ShareOrNaN, checked

DEFAULT_SENSITIVITY = 0.95
Link = Literal["softmax", "sigmoid"]
"""What turns logits into probabilities: classes that exclude each other, or each for itself."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on a score, and what it reached on validation.

    Attributes:
        name: ``"malignant"`` or ``"melanoma"``.
        codes: Diagnoses whose probabilities are summed; they are the positives.
        threshold: Flagged where the sum is at least this.
        target_sensitivity: What was asked for.
        sensitivity: Reached on validation; NaN without positives.
        specificity: Reached on validation; NaN without negatives.
        positives: Positive images in validation.
        negatives: Negative images in validation.
    """

    __pydantic_config__ = STRICT
    name: str
    codes: Annotated[tuple[str, ...], Field(min_length=1)]
    # A sum of probabilities, which rounding can bring just above 1.
    threshold: Annotated[float, Field(ge=0, le=1 + 1e-6)]
    target_sensitivity: Share
    sensitivity: ShareOrNaN
    specificity: ShareOrNaN
    positives: Count
    negatives: Count

    def score(self, probabilities: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Return the summed probability of the positives, (N,), from (N, C)."""
        return probabilities[:, [list(classes).index(code) for code in self.codes]].sum(axis=1)


@dataclass(frozen=True)
class Calibration:
    """What turns logits into probabilities, prediction sets and flags.

    Attributes:
        temperature: Divides the logits; above 1 softens.
        balanced_rule: For balanced accuracy; no part of the answer to a person.
        operating_points: By name.
        classes: Codes in the order of the logits.
        prediction_sets: None in bundles that carry none.
        link: ``"softmax"``, or ``"sigmoid"`` for a model whose classes do not exclude each other.
        fitted: False where nothing was fitted: probabilities are the model's own.
    """

    temperature: float = 1.0
    balanced_rule: BalancedRule = NO_RULE
    operating_points: dict[str, OperatingPoint] = field(default_factory=dict)
    classes: tuple[str, ...] = HAM10000.codes
    prediction_sets: PredictionSets | None = None
    link: Link = "softmax"
    fitted: bool = True

    @property
    def rule(self) -> str:
        """The balanced rule in words."""
        tau = self.balanced_rule.tau
        return f"argmax(logit / {self.temperature:.4g} - {tau:.4g} * log prior)"

    def scaled(self, logits: np.ndarray) -> np.ndarray:
        """Return the calibrated logits, float64 (N, C).

        Raises:
            ModelError: If one is not finite: that is no answer.
        """
        scaled = np.asarray(logits, np.float64) / self.temperature
        if not np.isfinite(scaled).all():
            raise ModelError(
                "The model's answer is not finite. Its weights are damaged or its "
                "training diverged: use another bundle."
            )
        return scaled

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities, float64 (N, C); rows sum to 1 under a softmax."""
        return probabilities(self.scaled(logits), self.link)

    def balanced(self, logits: np.ndarray) -> np.ndarray:
        """Return the class positions chosen by the balanced rule, int (N,)."""
        return self.balanced_rule.decide(self.scaled(logits))

    def flags(self, probabilities: np.ndarray) -> dict[str, np.ndarray]:
        """Return which images each operating point flags, bool (N,), by its name."""
        return {
            name: point.score(probabilities, self.classes) >= point.threshold
            for name, point in self.operating_points.items()
        }

    def set_of(self, probabilities: np.ndarray) -> tuple[int, ...] | None:
        """Return the class positions that cannot be excluded in one image, most probable first.

        ``probabilities`` are calibrated, (C,); None if the bundle carries no sets.
        """
        if self.prediction_sets is None:
            return None
        inside = self.prediction_sets.contain(probabilities[None])[0]
        order = np.argsort(-probabilities, kind="stable")
        return tuple(int(k) for k in order if inside[k])

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        content = asdict(self)
        content["balanced_rule"]["text"] = self.rule
        return content

    @classmethod
    def from_json(cls, content: Any) -> "Calibration":
        """Build from what ``to_json`` returned, now or in earlier versions.

        Raises:
            ModelError: If a field is missing, or holds what cannot be true.
        """

        def refuse(problem: str) -> ModelError:
            return ModelError(f"The calibration cannot be used: {problem}. Copy it again.")

        return checked(StoredCalibration, content, refuse).calibration()


class StoredCalibration(Section):
    """A calibration as ``bundle.json`` holds it.

    Format 1 calls the rule otherwise and carries no sets; later fields have their value of then.
    """

    temperature: Positive
    balanced_rule: Annotated[
        BalancedRule, Field(validation_alias=AliasChoices("balanced_rule", "decision_rule"))
    ]
    operating_points: dict[str, OperatingPoint]
    prediction_sets: PredictionSets | None = None
    classes: Annotated[tuple[Code, ...], Field(min_length=2)]
    link: Link = "softmax"
    fitted: bool = True

    @model_validator(mode="after")
    def _of_these_classes(self) -> "StoredCalibration":
        known = set(self.classes)
        rule, sets = self.balanced_rule, self.prediction_sets
        if len(known) < len(self.classes):
            raise ValueError("classes hold a code twice")
        if len(rule.log_prior) != len(known) and (rule.tau or rule.log_prior):
            raise ValueError(
                f"balanced_rule.log_prior must have a number for each of {len(known)} classes, not "
                f"{len(rule.log_prior)}"
            )
        for name, point in self.operating_points.items():
            if strangers := set(point.codes) - known:
                stranger = min(strangers)
                raise ValueError(
                    f"operating_points.{name}.codes hold {stranger!r}, which is no class"
                )
        if sets is not None and set(sets.true_probabilities) != known:
            raise ValueError("prediction_sets.true_probabilities must be of each class")
        return self

    def calibration(self) -> Calibration:
        """Return what is computed with."""
        fields, sets = dict(self), self.prediction_sets
        if sets is not None:
            known = {code: tuple(sorted(sets.true_probabilities[code])) for code in self.classes}
            fields["prediction_sets"] = PredictionSets(known, sets.level)
        return Calibration(**fields)


def probabilities(logits: np.ndarray, link: Link = "softmax") -> np.ndarray:
    """Return the probabilities of logits (N, C), float64 (N, C).

    Example:
        >>> probabilities(np.array([[0.0, 0.0]])).tolist()
        [[0.5, 0.5]]
    """
    from scipy.special import expit, softmax

    values = np.asarray(logits, np.float64)
    found: np.ndarray = softmax(values, axis=-1) if link == "softmax" else expit(values)
    return found


def negative_log_likelihood(
    logits: np.ndarray, labels: np.ndarray, link: Link = "softmax"
) -> float:
    """Return the mean negative log-likelihood of class positions (N,) under logits (N, C)."""
    from scipy.special import log_expit, log_softmax

    values, rows = np.asarray(logits, np.float64), np.arange(len(labels))
    if link == "softmax":
        return float(-log_softmax(values, axis=-1)[rows, labels].mean())
    against = log_expit(-values)
    right = log_expit(values)[rows, labels] + against.sum(axis=1) - against[rows, labels]
    return float(-right.mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray, link: Link = "softmax") -> float:
    """Return the temperature, 0.05 to 20, that minimizes the negative log-likelihood."""
    from scipy.optimize import minimize_scalar

    logits = np.asarray(logits, np.float64)
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits / np.exp(log_t), labels, link),
        bounds=(np.log(0.05), np.log(20.0)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def choose_operating_point(
    name: str,
    codes: Sequence[str],
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    sensitivity: float,
    classes: Sequence[str],
) -> OperatingPoint:
    """Choose the highest threshold that flags the wanted share of positives on validation.

    ``codes`` are the positive diagnoses, ``probabilities`` calibrated (N, C), ``labels`` class
    positions int (N,). Without positives the threshold is 0: everything is flagged.
    """
    positions = [list(classes).index(code) for code in codes]
    score = probabilities[:, positions].sum(axis=1)
    positive = np.isin(labels, positions)
    threshold = 0.0
    if positive.any():
        ranked = np.sort(score[positive])[::-1]
        needed = int(np.ceil(sensitivity * len(ranked) - 1e-9))
        threshold = float(ranked[max(needed, 1) - 1])
    flagged = score >= threshold
    return OperatingPoint(
        name=name,
        codes=tuple(codes),
        threshold=threshold,
        target_sensitivity=sensitivity,
        sensitivity=float(flagged[positive].mean()) if positive.any() else math.nan,
        specificity=float((~flagged[~positive]).mean()) if (~positive).any() else math.nan,
        positives=int(positive.sum()),
        negatives=int((~positive).sum()),
    )


def fit_calibration(
    logits: np.ndarray,
    labels: np.ndarray,
    training_counts: np.ndarray,
    groups: np.ndarray,
    *,
    seed: int = 0,
    sensitivity: dict[str, float] | None = None,
    classes: LabelSet = HAM10000,
    link: Link = "softmax",
    temperature: float | None = None,
) -> Calibration:
    """Fit temperature, prediction sets, operating points and balanced rule on validation logits.

    Args:
        logits: Of the validation images, (N, C).
        labels: int (N,), class positions.
        training_counts: Images per class in training, (C,).
        groups: Lesion of each validation image, (N,).
        seed: Seed of the resampling behind the balanced rule.
        sensitivity: Wanted sensitivity of each flag, such as ``malignant`` and ``melanoma``.
        classes: In the order of the logits; an operating point is chosen for each of its flags.
        link: What turns logits into probabilities.
        temperature: Where it is fixed; default fitted.

    Raises:
        ModelError: If there is no validation image, or a logit is not finite.
    """
    if len(labels) == 0 or not np.isfinite(logits).all():
        raise ModelError(
            "Calibration needs validation images with finite logits. Lower the learning rate if "
            "training diverged."
        )
    wanted = sensitivity or {}
    temperature = fit_temperature(logits, labels, link) if temperature is None else temperature
    counts = np.maximum(np.asarray(training_counts, np.float64), 1.0)
    log_prior = np.log(counts / counts.sum())
    scaled = np.asarray(logits, np.float64) / temperature
    rule = fit_balanced_rule(scaled, labels, log_prior, groups, seed=seed)
    shares = probabilities(scaled, link)
    points = {
        name: choose_operating_point(
            name,
            codes,
            shares,
            labels,
            sensitivity=wanted.get(name, DEFAULT_SENSITIVITY),
            classes=classes.codes,
        )
        for name, codes in classes.flags.items()
    }
    return Calibration(
        temperature=temperature,
        balanced_rule=rule,
        operating_points=points,
        classes=classes.codes,
        prediction_sets=fit_prediction_sets(shares, labels, classes.codes),
        link=link,
    )

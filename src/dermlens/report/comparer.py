"""The four experiments on one image: side by side, compared, at several scales, by class.

Everything that can be shared is: all classes come from one set of perturbed images, LIME and
Shapley values from one set of masks, the scales take over what the methods have computed, and every
network function is traced once and serves all images.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from dermlens.errors import ExplanationError, UsageError
from dermlens.explainers.base import Attribution, Cost, Explainer, Network
from dermlens.explainers.contrast import SignedCAM, strongest_other
from dermlens.explainers.layers import find_features
from dermlens.explainers.multiscale import MultiScale
from dermlens.explainers.nearest_cases import finder_of
from dermlens.explainers.output import Logit
from dermlens.explainers.perturbation import Scorer
from dermlens.explainers.registry import SIX, create_several, method, parse_methods, shared_bank
from dermlens.explainers.target import check_targets, resolve_targets
from dermlens.model.image_classifier import ImageClassifier
from dermlens.model.scorers import choose_scorers
from dermlens.progress import say
from dermlens.report.cases_view import CasePictures
from dermlens.report.comparison import (
    Comparison,
    Discrimination,
    Reading,
    compare_methods,
    contrast_by_area,
    facts_of,
)
from dermlens.report.facts import answer_of
from dermlens.report.summary import summarize

_NO_CONTRAST = "only evidence for a class is shown, none against it"


@lru_cache(maxsize=2)
def no_activation_maps(bundle: ImageClassifier) -> str:
    """Return why class activation maps cannot be drawn of a model; empty if they can."""
    try:
        find_features(bundle.model)
    except ExplanationError as error:
        return str(error)
    return ""


def available(bundle: ImageClassifier, methods: Sequence[str]) -> list[str]:
    """Return those of some methods that a model can be explained by."""
    if not no_activation_maps(bundle):
        return list(methods)
    return [name for name in methods if method(name).family != "activation"]


def chosen_methods(bundle: ImageClassifier, text: str) -> list[str]:
    """Return the methods that a text names; of ``six`` and ``all`` those that the model allows."""
    names = parse_methods(text)
    kept = available(bundle, names) if text in ("six", "all") else names
    if kept != names:
        say(f"Without class activation maps. {no_activation_maps(bundle)}")
    return kept


class Comparer:
    """Runs the four experiments with one model that is loaded and traced once.

    ``scorer`` is what evaluates changed images: ``"float32"``, ``"int8"``, or None for int8 where
    it was measured to give the same maps; ``scorers``, from ``choose_scorers``, stand instead.
    Other scales than the methods' own are evaluated by the model, and take most of the time;
    without ``scales`` they are left out. About ``images`` are compared. ``pictures`` shows known
    cases, where the model has an index of them.

    Raises:
        UsageError: If no method is given, or one or the scorer is unknown.
        ExplanationError: If the model cannot be explained by one of them.
    """

    def __init__(
        self,
        bundle: ImageClassifier,
        methods: Sequence[str] = SIX,
        *,
        batch_size: int = 16,
        scorer: str | None = None,
        images: int = 1,
        scorers: Mapping[str, Scorer] | None = None,
        scales: bool = True,
        pictures: CasePictures | None = None,
    ) -> None:
        self.bundle, self.batch_size, self.with_scales = bundle, batch_size, scales
        self.methods = tuple(method(name).name for name in dict.fromkeys(methods))
        if not self.methods:
            raise UsageError("No method is chosen. Name at least one.")
        if scorers is None:
            scorers = choose_scorers(bundle, self.methods, scorer, images=images)
        bank = shared_bank(bundle, self.methods, scorers)
        self.explainers: dict[str, Explainer] = create_several(
            self.methods, bundle, scorers=scorers, bank=bank
        )
        # It may take a hash over all weights.
        self._identity = bundle.identity
        self._missing = no_activation_maps(bundle)
        self.cam = None if self._missing else SignedCAM(bundle)
        self._scales = None if self._missing else MultiScale(bundle, bank=bank)
        self._network = Network(bundle.model)
        self._cases, self._pictures = finder_of(bundle), pictures or CasePictures()

    @property
    def pieces(self) -> tuple[str, ...]:
        """Names of the pieces of work in the order in which ``steps`` finishes them."""
        scales = ("scales",) if self.with_scales else ()
        return ("reading", *self.methods, "agreement", *scales, "discrimination")

    def compare(self, image: np.ndarray, **options: Any) -> Comparison:
        """Run all experiments on one image; arguments as in ``steps``."""
        *_, last = self.steps(image, **options)
        return last

    def steps(
        self,
        image: np.ndarray,
        *,
        target: str | int | None = None,
        against: str | int | None = None,
        lesion: np.ndarray | None = None,
        photograph: np.ndarray | None = None,
        seed: int = 0,
    ) -> Iterator[Comparison]:
        """Run the experiments one after the other.

        Args:
            image: uint8 RGB (H, W, 3) at the model's input size.
            target: Class to explain; None for the most probable one, or another target of
                ``explainers.target``.
            against: A class to contrast it with, beside the most probable other one of the
                prediction set; of no effect where it is the most probable one itself.
            lesion: Outline of the lesion, bool (H, W), or None.
            photograph: The whole photograph, uint8 RGB (h, w, 3), by which it is known whether the
                model learned from it; default the image.
            seed: Sets everything random.

        Yields:
            The comparison after each of ``pieces``; the last one is complete and has the summary.

        Raises:
            UsageError: If a class is unknown, a given target is contrasted with itself, or the
                outline does not fit the image.
            ExplanationError: If the image does not fit the model.
        """
        known, reading = self._read(image, target, against, lesion)
        run = _Run(self, reading, known, {"batch_size": self.batch_size, "seed": seed})
        missing = {"scales": self._missing} if self._missing else {}
        state = Comparison(self.bundle.labels, reading, model=self._identity, missing=missing)
        if self._cases is not None:
            found = self._cases.find(reading.image, photograph=photograph)
            reading.cost.forward += 1
            state = replace(state, cases=found, pictures=self._pictures.of(found))
        yield state
        for name in self.methods:
            state = replace(state, combined={**state.combined, name: run.explain(name)})
            yield state
        state = replace(state, agreement=compare_methods(state.combined))
        yield state
        if self._scales is not None and self.with_scales:
            patches = state.combined.get("occlusion")
            scales = self._scales.explain(
                reading.image, reading.target, known=patches, **run.options
            )
            state = replace(state, scales=scales)
        if self.with_scales:
            yield state
        state = replace(state, discrimination=run.discriminate())
        yield replace(state, summary=summarize(facts_of(state, synthetic=self.bundle.synthetic)))

    def _read(
        self,
        image: np.ndarray,
        target: str | int | None,
        against: str | int | None,
        lesion: np.ndarray | None,
    ) -> tuple[dict[tuple[str, int], np.ndarray], Reading]:
        """Return signed CAMs by method and class, where one pass gives all, and the reading."""
        classes = self.bundle.classes
        if lesion is not None and np.shape(lesion) != np.shape(image)[:2]:
            raise UsageError(
                f"An outline of {np.shape(lesion)} does not fit an image of "
                f"{np.shape(image)[:2]}. Fit both to the model's input size."
            )
        check_targets([target, against], self.bundle.labels)
        known: dict[tuple[str, int], np.ndarray] = {}
        start = time.perf_counter()
        if self.cam is not None and self.cam.closed(Logit()):
            result = self.cam.attribute(image[None], "all")
            logits = result.values[0]
            known = {("grad_cam", goal): one for goal, one in enumerate(result.maps[0])}
        else:
            logits = np.asarray(self._network.logits(np.asarray(image[None], np.float32)))[0]
        cost = Cost(1, 0, time.perf_counter() - start)
        goal, chosen = resolve_targets(
            [target, against], np.stack([logits] * 2), self.bundle.labels
        ).tolist()
        if target is not None and against is not None and chosen == goal:
            raise UsageError(
                f"{classes[goal]} cannot be contrasted with itself. Choose another class."
            )
        answer = answer_of(self.bundle, logits)
        second = strongest_other(answer.probabilities, goal, answer.prediction_set)
        # What was to be contrasted with may itself be explained; the runner-up is left then.
        more = () if against is None or chosen in (goal, second) else (chosen,)
        outline = None if lesion is None else np.asarray(lesion, bool)
        others = (second, *more)
        return known, Reading(
            **vars(answer),
            image=np.asarray(image),
            lesion=outline,
            target=goal,
            others=others,
            cost=cost,
        )


@dataclass
class _Run:
    """One image: signed maps (H, W) are kept by method and class as they come."""

    comparer: Comparer
    reading: Reading
    known: dict[tuple[str, int], np.ndarray]
    options: dict[str, Any]

    def explain(self, name: str) -> Attribution:
        """Explain the target; maps of other classes that come for free are kept."""
        explainer, image = self.comparer.explainers[name], self.reading.image[None]
        if method(name).family == "perturbation":
            every = explainer.attribute(image, "all", **self.options)
            self.known |= {(name, goal): one for goal, one in enumerate(every.maps[0])}
            return every.of_class(self.reading.target)
        result = explainer.attribute(image, self.reading.target, **self.options)
        if name != "grad_cam":
            self.known[name, self.reading.target] = result.maps[0]
        return result

    def discriminate(self) -> Discrimination:
        """Contrast target and others by the methods that are linear in the logit."""
        methods, target, cost = self.comparer.methods, self.reading.target, Cost()
        free = ("grad_cam",) if ("grad_cam", target) in self.known else ()
        names = [
            name
            for name in dict.fromkeys((*free, *methods))
            if name == "grad_cam" or self.comparer.explainers[name].signed
        ]
        without = {name: _NO_CONTRAST for name in methods if name not in names}
        contrasts = {}
        for other in self.reading.others:
            pairs = [
                [self._signed_map(name, goal, cost) for name in names] for goal in (target, other)
            ]
            contrasts[other] = tuple(map(contrast_by_area, names, *pairs))
        return Discrimination(contrasts, without, cost)

    def _signed_map(self, name: str, goal: int, cost: Cost) -> np.ndarray:
        if (name, goal) not in self.known:
            cam = self.comparer.cam if name == "grad_cam" else None
            explainer: Explainer = cam or self.comparer.explainers[name]
            result = explainer.attribute(self.reading.image[None], goal, **self.options)
            cost.forward += result.cost.forward
            cost.backward += result.cost.backward
            cost.seconds += result.cost.seconds
            self.known[name, goal] = result.maps[0]
        return self.known[name, goal]

"""Measuring one image, or one piece of a benchmark, with every method."""

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dermlens.explainers.base import Explainer
from dermlens.explainers.perturbation import Scorer
from dermlens.explainers.registry import (
    create,
    create_several,
    method,
    shared_bank,
    sharing_methods,
)
from dermlens.explainers.superpixel_explainer import DEFAULT_SUPERPIXELS
from dermlens.explainers.target import PREDICTED, class_position, resolve_targets
from dermlens.model.image_classifier import as_classifier
from dermlens.quality.benchmark_plan import BenchmarkPlan, Extension, Loaded, Tick
from dermlens.quality.controls import UNTRAINED_PREFIX, control_names, create_controls
from dermlens.quality.evaluations import Evaluations
from dermlens.quality.metric import Case, Explain, own_range
from dermlens.quality.metrics import LOCALIZATION, METRICS, STRUCTURE_PREFIX
from dermlens.quality.randomization import other_targets, randomization_curves
from dermlens.quality.readings import AS_IT_IS, READINGS, Reading, as_it_is, reading_of

_OF_EVERY_IMAGE = [one for one in METRICS.values() if "explainer" not in one.needs]
_OF_SOME = [one for one in METRICS.values() if one.needs == {"model", "explainer"}]


class Bench:
    """Explainers, controls and evaluations of one classifier, each traced once.

    Args:
        classifier: ``ImageClassifier``, or a Keras model that it takes without more.
        plan: What to measure.
        extra: More explainers by name, measured like methods.
        scorers: What evaluates changed images in place of the model, by method. Metrics and
            networks with random weights always use the model.
        extension: What is measured besides.
    """

    def __init__(
        self,
        classifier: Any,
        plan: BenchmarkPlan,
        extra: Mapping[str, Explainer] | None = None,
        scorers: Mapping[str, Scorer] | None = None,
        extension: Extension | None = None,
    ) -> None:
        self.classifier, self.plan = as_classifier(classifier), plan
        self.extension, scorers = extension or Extension(), dict(scorers or {})
        # About ten masks per superpixel, so that fewer masks mean larger pieces, not noise.
        pieces = max(2, min(DEFAULT_SUPERPIXELS, plan.n_samples // 10))
        sizes: dict[str, Any] = {"superpixels": pieces, "n_samples": plan.n_samples}
        sizes["keep"] = max(32, plan.batch_size)
        self.sharing = sharing_methods(plan.methods)
        self.bank = shared_bank(self.classifier, plan.methods, scorers, **sizes)
        self.explainers: dict[str, Explainer] = create_several(
            plan.methods, self.classifier, scorers=scorers, bank=self.bank
        )
        # On a network with random weights the logits hardly change along a path, and accuracy
        # relative to that change would cost the most where there is least to see; and the int8
        # copy is one of the intact network.
        plain = self.bank
        if plain is not None and plain.scorer is not None:
            plain = shared_bank(self.classifier, plan.methods, **sizes)
        banks = {name: {"bank": plain} for name in self.sharing}
        self.fixed = {
            name: create(name, self.classifier, **method(name).fixed, **banks.get(name, {}))
            for name in plan.methods
            if method(name).fixed or name in scorers
        }
        self.scorers = {name: one.name for name, one in scorers.items()}
        self.extra = dict(extra or {})
        self.explainers |= self.extra
        if plan.controls:
            names = control_names(plan.methods)
            self.explainers |= create_controls(names, self.classifier, seed=plan.seed)
        effort = {name: getattr(plan, name) for name in ("steps", "squares", "sets", "batch_size")}
        self.evaluations = Evaluations(self.classifier, **effort)
        self.readings = {name: reading_of(name).name for name in self.explainers}
        self.cheap = [name for name in plan.methods if method(name).family != "perturbation"]
        self._intact_of, self._intact = np.zeros(0), dict[str, np.ndarray]()

    @property
    def names(self) -> list[str]:
        """Methods, extra explainers and controls, in the order of the tables."""
        return list(self.explainers)

    @property
    def appendix(self) -> list[str]:
        """Methods of which maps are read in another way and measured as they are besides."""
        return [one for one in self.plan.methods if self.readings[one] != AS_IT_IS]

    def explain(
        self, name: str, images: np.ndarray, targets: np.ndarray, *, fixed: bool = False
    ) -> np.ndarray:
        """Return maps float32 (n, H, W) of photographs (n, H, W, 3) for class positions (n,).

        They are read as the benchmark reads the method's. ``fixed``: spend the same passes on
        every image, whatever the accuracy reached.
        """
        explainer = self.fixed.get(name, self.explainers[name]) if fixed else self.explainers[name]
        return reading_of(name).read(self._attribution(explainer, images, targets).maps)

    def _attribution(self, explainer: Explainer, images: np.ndarray, targets: Any) -> Any:
        size, seed = self.plan.batch_size, self.plan.seed
        pixels = own_range(explainer.classifier, images)
        return explainer.attribute(pixels, targets, batch_size=size, seed=seed)

    def finite(self, name: str, images: np.ndarray, targets: np.ndarray, **how: Any) -> np.ndarray:
        """Return maps as ``explain`` does, 0 where a value is not finite."""
        return np.nan_to_num(self.explain(name, images, targets, **how), posinf=0.0, neginf=0.0)

    def decide(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (n, C) and most probable classes (n,) of photographs."""
        logits = self.evaluations.network.logits(np.asarray(images, np.float32)).numpy()
        predicted = resolve_targets(None, logits, self.classifier.labels)
        return self.classifier.probabilities(logits), predicted

    def case(self, loaded: Loaded) -> tuple[Case, int]:
        """Return an image for metrics, its map still to come, and its most probable class."""
        labels, images = self.classifier.labels, loaded.image[None]
        evaluated = self.evaluations.of(images, self.plan.seed)
        predicted = int(resolve_targets(None, evaluated[0].ends["image"][None], labels)[0])
        truth = self.plan.target != PREDICTED
        target = class_position(loaded.item.dx, labels) if truth else predicted
        case = Case(np.zeros((1, *loaded.mask.shape)), self.plan.seed, self.classifier, evaluated)
        case.targets, case.masks = np.array([target], np.int32), loaded.mask[None]
        case.images = images
        return case, predicted

    def measure_image(self, loaded: Loaded, tick: Tick | None = None) -> dict[str, Any]:
        """Return everything that is measured on every image; ``tick`` hears of each method."""
        # What other pieces asked for this image must not change what this one costs.
        self.evaluations.forget()
        before = self.evaluations.cost.forward
        case, predicted = self.case(loaded)
        target = int(case.targets[0])
        logits = case.evaluated[0].ends["image"][None]
        shared = self._shared_seconds(loaded.image)
        rows: dict[str, Any] = {}
        maps = {}
        for name in self.names:
            result = self._attribution(self.explainers[name], loaded.image[None], case.targets)
            maps[name] = reading_of(name).read(result.maps)[0]
            rows[name] = {"cost": self._alone(name, result.cost, shared)}
            rows[name]["values"] = self._values(case.with_map(maps[name]), loaded.structure)
            if name in self.appendix:
                unread = self._values(case.with_map(result.maps[0]), loaded.structure)
                rows[as_it_is(name)] = {"values": unread}
            if tick is not None:
                tick(name)
        spent = self.evaluations.cost.forward - before
        finite = {name: map_ for name, map_ in maps.items() if np.isfinite(map_).all()}
        facts, values = self.extension.of_image(loaded, finite)
        for name, found in values.items():
            rows[name]["values"] |= found
        classes = self.classifier.classes
        decision: dict[str, Any] = {"predicted": classes[predicted], "target": classes[target]}
        decision["probability"] = float(self.classifier.probabilities(logits)[0, target])
        return {**decision, "metric_passes": spent, "facts": facts, "rows": rows}

    def _shared_seconds(self, image: np.ndarray) -> float:
        """Evaluate the masked superpixels that methods share, and return the seconds it took."""
        if self.bank is None:
            return 0.0
        start = time.perf_counter()
        self.bank.evaluations(image, self.plan.seed, self.plan.batch_size)
        return time.perf_counter() - start

    def _alone(self, name: str, cost: Any, shared: float) -> dict[str, float]:
        """Return what a map costs when its method is run alone."""
        more = (self.plan.n_samples, shared) if name in self.sharing else (0, 0.0)
        return {
            "forward": float(cost.forward + more[0]),
            "backward": float(cost.backward),
            "seconds": cost.seconds + more[1],
        }

    def _values(self, case: Case, structure: np.ndarray | None) -> dict[str, float]:
        """Return every metric of one map; NaN for a map that is not finite."""
        finite = np.isfinite(case.maps).all()
        jobs = {one.name: (one, case) for one in _OF_EVERY_IMAGE}
        if structure is not None:
            on_structure = replace(case, masks=structure[None])
            jobs |= {STRUCTURE_PREFIX + n: (METRICS[n], on_structure) for n in LOCALIZATION}
        return {
            name: float(one.measure(of)[0]) if finite else float("nan")
            for name, (one, of) in jobs.items()
        }

    def measure_robustness(self, loaded: Loaded) -> dict[str, dict[str, float]]:
        """Return what takes maps of changed images or for other classes, by method.

        Maps that are read in another way are measured as they are besides, at no more passes.
        """
        of_image, _ = self.case(loaded)
        drawn = zlib.crc32(f"{self.plan.seed} {loaded.item.image_id}".encode())
        of_image.others = other_targets(of_image.targets, len(self.classifier.classes), [drawn])
        rows = {}
        for name in self.names:
            unread = self._remembered(self.explainers[name])
            readings = {name: reading_of(name)}
            if name in self.appendix:
                readings[as_it_is(name)] = READINGS[AS_IT_IS]
            for shown, reading in readings.items():
                remake = partial(_finite, reading, unread)
                case = of_image.with_map(remake(loaded.image[None], of_image.targets)[0])
                case.remake = remake
                rows[shown] = {one.name: float(one.measure(case)[0]) for one in _OF_SOME}
        return rows

    def _remembered(self, explainer: Explainer) -> Explain:
        """Return what makes an explainer's maps as they are, the same ones only once."""
        known: dict[bytes, np.ndarray] = {}

        def explain(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
            key = images.tobytes() + targets.tobytes()
            if key not in known:
                known[key] = self._attribution(explainer, images, targets).maps
            return known[key]

        return explain

    def measure_randomization(
        self, images: np.ndarray, targets: np.ndarray, step: tuple[str, Sequence[Any]]
    ) -> dict[str, dict[str, list[float]]]:
        """Return how much each method's maps resemble those of the intact network after a step.

        Those on an untrained copy are left out: they cannot follow the weights. Maps by the intact
        network are kept until other images come.
        """
        if not np.array_equal(images, self._intact_of):
            self._intact_of, self._intact = images, {}
        rows = {}
        for name in self.names:
            if name.startswith(UNTRAINED_PREFIX):
                continue
            explain = partial(self.finite, name, images, targets, fixed=True)
            if name not in self._intact:
                self._intact[name] = explain()
            before, model = self._intact[name], self.classifier.model
            curves = randomization_curves(model, explain, [step], before, self.plan.seed)
            rows[name] = {measure: values[0].tolist() for measure, values in curves.items()}
        return rows


def _finite(
    reading: Reading, explain: Explain, images: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Return maps as they are read, 0 where a value is not finite."""
    return np.nan_to_num(reading.read(explain(images, targets)), posinf=0.0, neginf=0.0)

"""Measuring one image, or one piece of a benchmark, with every method."""

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from dermlens.explain.base import Explainer
from dermlens.explain.registry import create, method
from dermlens.model.scorers import choose_scorers
from dermlens.explain.superpixel_bank import DEFAULT_SUPERPIXELS, SuperpixelBank
from dermlens.explain.target import PREDICTED, class_position, resolve_targets
from dermlens.model.bundle import Bundle
from dermlens.quality.agreement import structural_similarity
from dermlens.quality.baselines import (
    UNTRAINED_PREFIX,
    baseline_names,
    create_baselines,
    is_baseline,
)
from dermlens.quality.benchmark_plan import BenchmarkPlan, Loaded
from dermlens.quality.complexity import entropy, gini
from dermlens.quality.consistency import frame
from dermlens.quality.localization import LOCALIZATION
from dermlens.quality.metric import STRUCTURE_PREFIX
from dermlens.quality.randomization import other_targets, randomization_curves
from dermlens.quality.relevance import (
    asymmetry_map,
    color_variety_map,
    lesion_traits,
    relation_inside,
    zone_profile,
)
from dermlens.quality.removal import RemovalCurves, area_under, removal_places
from dermlens.quality.robustness import equivariance, sensitivity
from dermlens.quality.shortcuts import probe
from dermlens.quality.subsets import (
    Reactions,
    SubsetReactions,
    box_sums,
    cell_sums,
    infidelity,
    mufidelity,
)
from dermlens.quality.zones import ZONES, lesion_zones, zone_areas

WATCHED = "mel"
"""The diagnosis whose probability the shortcut probe follows."""


class Bench:
    """Explainers, baselines and metrics of one bundle, each traced once.

    Args:
        bundle: Trained model.
        plan: What to measure.
        extra: More explainers by name, measured like methods.
    """

    def __init__(
        self, bundle: Bundle, plan: BenchmarkPlan, extra: Mapping[str, Explainer] | None = None
    ) -> None:
        self.bundle, self.plan = bundle, plan
        model = bundle.model
        keep = max(32, plan.randomization)
        # About ten masks per superpixel, so that fewer masks mean larger pieces, not noise.
        segments = max(2, min(DEFAULT_SUPERPIXELS, plan.samples // 10))
        scorers = choose_scorers(bundle, plan.methods, plan.scorer, images=plan.n)
        shared = [name for name in ("lime", "gp_shap") if name in plan.methods]
        both = scorers.get(shared[0]) if shared and all(one in scorers for one in shared) else None
        sizes: dict[str, Any] = {"superpixels": segments, "n_samples": plan.samples, "keep": keep}
        self.bank = SuperpixelBank(model, scorer=both, **sizes)
        options: dict[str, dict[str, Any]] = {
            name: {"scorer": one} for name, one in scorers.items()
        }
        options |= {name: {"bank": self.bank} for name in shared}
        self.explainers: dict[str, Explainer] = {
            name: create(name, bundle, **options.get(name, {})) for name in plan.methods
        }
        # On a network with random weights the score hardly changes along a path, and accuracy
        # relative to that change would cost the most where there is least to see; and the int8
        # copy is one of the intact network.
        plain: dict[str, dict[str, Any]] = {name: {} for name in scorers}
        if both is not None:
            plain_bank = SuperpixelBank(model, **sizes)
            plain |= {name: {"bank": plain_bank} for name in shared}
        self.fixed = {
            name: create(name, bundle, **method(name).fixed, **plain.get(name, {}))
            for name in plan.methods
            if method(name).fixed or name in plain
        }
        self.scorers = {name: one.name for name, one in scorers.items()}
        self.explainers |= dict(extra or {})
        if plan.baselines:
            names = baseline_names(plan.methods)
            made = create_baselines(names, bundle, seed=plan.seed)
            self.explainers |= made
        self.curves = RemovalCurves(
            bundle,
            steps=plan.steps,
            batch_size=plan.batch_size,
        )
        self.reactions = SubsetReactions(
            model, squares=plan.squares, sets=plan.sets, batch_size=plan.batch_size
        )

    @property
    def names(self) -> list[str]:
        """Methods, extra explainers and baselines, in the order of the tables."""
        return list(self.explainers)

    def explain(
        self, name: str, images: np.ndarray, targets: np.ndarray, *, fixed: bool = False
    ) -> np.ndarray:
        """Return maps float32 (n, H, W) of images (n, H, W, 3) for targets (n,).

        Args:
            name: Of ``names``.
            images: RGB 0..255.
            targets: Class positions.
            fixed: Spend the same passes on every image, whatever the accuracy reached.
        """
        explainer = self.fixed.get(name, self.explainers[name]) if fixed else self.explainers[name]
        result = explainer.attribute(
            images, targets, batch_size=self.plan.batch_size, seed=self.plan.seed
        )
        return result.maps

    def target(self, loaded: Loaded) -> tuple[int, int, np.ndarray]:
        """Return the class to explain, the most probable one, and the probabilities (C,)."""
        logits = self.curves.ends(loaded.image)["image"][None]
        classes = self.bundle.classes
        predicted = int(resolve_targets(None, logits, self.bundle.labels)[0])
        truth = class_position(loaded.item.dx, self.bundle.labels)
        target = predicted if self.plan.target == PREDICTED else truth
        return target, predicted, self.bundle.calibration.probabilities(logits)[0]

    # ---- one image, every method ------------------------------------------------------------

    def measure_image(
        self, loaded: Loaded, tick: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Return everything that is measured on every image.

        Args:
            loaded: The image.
            tick: Called with the name of each method when it is done.
        """
        before = self.curves.cost.forward + self.reactions.cost.forward
        target, predicted, probabilities = self.target(loaded)
        reactions = self.reactions.measure(loaded.image, self.plan.seed)
        features = (
            asymmetry_map(loaded.image, loaded.mask),
            color_variety_map(loaded.image, loaded.mask),
        )
        shared = self._shared_evaluations(loaded.image)
        rows = {}
        for name in self.names:
            map_, cost = self._timed(name, loaded.image, target, shared)
            values = self._values(map_, loaded, target, reactions, features)
            rows[name] = {"values": values, "cost": cost}
            if tick is not None:
                tick(name)
        areas = zone_areas(lesion_zones(loaded.mask))
        return {
            "target": self.bundle.classes[target],
            "predicted": self.bundle.classes[predicted],
            "probability": float(probabilities[target]),
            "traits": lesion_traits(loaded.image, loaded.mask).to_json(),
            "zone_areas": dict(zip(ZONES, areas.tolist(), strict=True)),
            "metric_passes": self.curves.cost.forward + self.reactions.cost.forward - before,
            "rows": rows,
        }

    def _shared_evaluations(self, image: np.ndarray) -> float:
        """Evaluate what LIME and Kernel SHAP share, and return the seconds it took."""
        if not {"lime", "gp_shap"} & set(self.plan.methods):
            return 0.0
        start = time.perf_counter()
        self.bank.evaluations(image, self.plan.seed, self.plan.batch_size)
        return time.perf_counter() - start

    def _timed(
        self, name: str, image: np.ndarray, target: int, shared: float
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Return a method's map and what it costs when it is run alone."""
        result = self.explainers[name].attribute(
            image[None], [target], batch_size=self.plan.batch_size, seed=self.plan.seed
        )
        cost = {
            "forward": float(result.cost.forward),
            "backward": float(result.cost.backward),
            "seconds": result.cost.seconds,
        }
        if name in ("lime", "gp_shap"):
            cost["forward"] += self.bank.n_samples
            cost["seconds"] += shared
        return result.maps[0], cost

    def _values(
        self,
        map_: np.ndarray,
        loaded: Loaded,
        target: int,
        reactions: Reactions,
        features: tuple[np.ndarray, np.ndarray],
    ) -> dict[str, float]:
        """Return every metric of one map; nothing for a map that is not finite."""
        if not np.isfinite(map_).all():
            return {}
        places = removal_places(map_, self.plan.seed)
        image = loaded.image
        imputed = self.curves.imputed(image, places, target, self.plan.seed)
        values = {
            "deletion": area_under(self.curves.deletion(image, places, target)),
            "insertion": area_under(self.curves.insertion(image, places, target)),
            "road": float((imputed[1] - imputed[0]).mean() / 2),
            "infidelity": infidelity(
                box_sums(map_, reactions.boxes), reactions.box_drops[:, target]
            ),
            "mufidelity": mufidelity(
                cell_sums(map_, reactions.labels, reactions.sets), reactions.set_drops[:, target]
            ),
        }
        for name, measure in LOCALIZATION.items():
            values[name] = float(measure(map_[None], loaded.mask[None])[0])
            if loaded.structure is not None:
                found = measure(map_[None], loaded.structure[None])[0]
                values[STRUCTURE_PREFIX + name] = float(found)
        values["sparseness"] = float(gini(map_[None])[0])
        values["entropy"] = float(entropy(map_[None])[0])
        shares = zone_profile(map_[None], loaded.mask)[0]
        values |= {f"zone_{z}": float(s) for z, s in zip(ZONES, shares, strict=True)}
        values["asymmetry_relation"] = relation_inside(map_, features[0], loaded.mask)
        values["color_relation"] = relation_inside(map_, features[1], loaded.mask)
        return values

    # ---- expensive pieces, on fewer images --------------------------------------------------

    def measure_robustness(self, loaded: Loaded) -> dict[str, dict[str, float]]:
        """Return sensitivity, equivariance and random logit of every method on one image."""
        target, _, _ = self.target(loaded)
        image, seed = loaded.image, self.plan.seed
        drawn = zlib.crc32(f"{seed} {loaded.item.image_id}".encode())
        other = other_targets(np.array([target]), len(self.bundle.classes), [drawn])
        rows: dict[str, dict[str, float]] = {}
        for name in self.names:

            def explain(images: np.ndarray, goals: np.ndarray, name: str = name) -> np.ndarray:
                return np.nan_to_num(self.explain(name, images, goals), posinf=0.0, neginf=0.0)

            map_ = explain(image[None], np.array([target]))[0]
            largest, mean = sensitivity(explain, image, target, map_, seed=seed)
            elsewhere = explain(image[None], other)
            rows[name] = {
                "max_sensitivity": largest,
                "average_sensitivity": mean,
                "equivariance": equivariance(explain, image, target, map_),
                "random_logit": float(structural_similarity(map_[None], elsewhere)[0]),
            }
        return rows

    def randomizable(self) -> list[str]:
        """Return whose maps can follow the weights: all but those on an untrained copy."""
        return [name for name in self.names if not name.startswith(UNTRAINED_PREFIX)]

    def measure_randomization(
        self, images: np.ndarray, targets: np.ndarray, step: tuple[str, Sequence[Any]]
    ) -> dict[str, dict[str, list[float]]]:
        """Return how much each method's maps resemble those of the intact network after a step."""
        rows = {}
        for name in self.randomizable():

            def explain(name: str = name) -> np.ndarray:
                maps = self.explain(name, images, targets, fixed=True)
                return np.nan_to_num(maps, posinf=0.0, neginf=0.0)

            reference = self._intact(name, images, targets)
            curves = randomization_curves(
                self.bundle.model, explain, [step], reference=reference, seed=self.plan.seed
            )
            rows[name] = {measure: values[0].tolist() for measure, values in curves.items()}
        return rows

    def _intact(self, name: str, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the maps of the intact network, made once."""
        if not hasattr(self, "_references"):
            self._references: dict[str, np.ndarray] = {}
        if name not in self._references:
            maps = self.explain(name, images, targets, fixed=True)
            self._references[name] = np.nan_to_num(maps, posinf=0.0, neginf=0.0)
        return self._references[name]

    def measure_pair(self, first: Loaded, second: Loaded) -> dict[str, np.ndarray]:
        """Return both photographs of a lesion with all maps in the lesion's frame, and zones."""
        arrays: dict[str, np.ndarray] = {}
        for number, loaded in enumerate((first, second)):
            target, _, _ = self.target(loaded)
            maps = np.stack(
                [self.explain(n, loaded.image[None], np.array([target]))[0] for n in self.names]
            )
            maps = np.nan_to_num(maps, posinf=0.0, neginf=0.0)
            framed = frame(loaded.image, loaded.mask, maps)
            arrays |= {
                f"picture{number}": framed.picture,
                f"maps{number}": framed.maps,
                f"valid{number}": framed.valid,
                f"zones{number}": zone_profile(maps, loaded.mask),
            }
        return arrays

    def measure_shortcuts(self, loaded: Loaded) -> list[dict[str, Any]]:
        """Return how prediction and attribution of cheap methods react to pasted artifacts."""

        def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logits = self.curves.network.logits(images.astype(np.float32)).numpy()
            predicted = resolve_targets(None, logits, self.bundle.labels)
            return self.bundle.calibration.probabilities(logits), predicted

        explainers = {name: partial(self.explain, name) for name in self.cheap()}
        classes = self.bundle.classes
        return probe(
            loaded.image,
            loaded.mask,
            predict,
            explainers=explainers,
            watched=classes.index(WATCHED) if WATCHED in classes else None,
            seed=self.plan.seed,
        )

    def cheap(self) -> list[str]:
        """Return the methods that the shortcut probe explains with: those that need few passes."""
        return [
            name
            for name in self.plan.methods
            if not is_baseline(name) and method(name).family != "perturbation"
        ]

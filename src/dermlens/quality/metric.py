"""What a metric is: what it declares about itself, and the one way in which it is called."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.base import Explainer
from dermlens.explainers.target import Targets, depend_on_answer, resolve_targets
from dermlens.model.image_classifier import ImageClassifier, as_classifier
from dermlens.model.lite import weights_checksum
from dermlens.model.standard_network import PHOTOGRAPH
from dermlens.quality.evaluations import Evaluated, Evaluations
from dermlens.quality.inputs import checked_maps, checked_masks

Family = Literal[
    "faithfulness", "localization", "robustness", "complexity", "randomization", "consistency"
]
Direction = Literal["higher", "lower"]
Explain = Callable[[np.ndarray, np.ndarray], Any]
"""Images (n, H, W, 3) in the classifier's range, and targets int (n,), to maps (n, H, W)."""

FAMILIES: tuple[Family, ...] = get_args(Family)
Found = TypeVar("Found")


@dataclass
class Case:
    """Checked inputs of metrics: N images and one map of each; only what some metric needs.

    Attributes:
        maps: (N, H, W), finite.
        seed: Sets everything random.
        classifier: The model.
        evaluated: The images, and what the model says of them.
        targets: int32 (N,): explained classes.
        masks: bool (N, H, W).
        images: float32 (N, H, W, 3), RGB 0..255.
        groups: What each image shows: images of one object bear one name.
        others: int (N,): classes for the random logit; None to draw them.
        remake: Makes maps of changed photographs RGB 0..255.
    """

    maps: np.ndarray
    seed: int = 0
    classifier: ImageClassifier | None = None
    evaluated: Sequence[Evaluated] = ()
    targets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    masks: np.ndarray | None = None
    images: np.ndarray | None = None
    groups: Sequence[object] | None = None
    others: np.ndarray | None = None
    remake: Explain | None = None
    _found: dict[Any, Any] = field(default_factory=dict)

    def once(self, ask: Callable[["Case"], Found]) -> Found:
        """Return ``ask(self)``, remembered: what several metrics need is done once."""
        if ask not in self._found:
            self._found[ask] = ask(self)
        found: Found = self._found[ask]
        return found

    def each(self) -> list[tuple[Evaluated, np.ndarray, int]]:
        """Return what the model says of each image, its map and its target."""
        targets = self.targets.tolist()
        return list(zip(self.evaluated, self.maps, targets, strict=True))

    def with_map(self, map_: np.ndarray) -> "Case":
        """Return the case of another map (H, W) of the same single image."""
        return replace(self, maps=map_[None], _found={})

    def explain(self, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return finite maps (n, H, W) of changed photographs for targets (n,)."""
        assert self.remake is not None
        return checked_maps(self.remake(images, targets))


@dataclass(frozen=True)
class Metric:
    """One metric of explanations, called alike whatever made the maps.

    Attributes:
        name: Column in tables and files.
        title: Name for people.
        family: What kind of quality it measures.
        direction: Whether higher or lower values are better.
        low: Lowest possible value.
        high: Highest possible value; infinity where there is none.
        citation: Where it was published.
        sentence: What it measures, in one plain sentence.
        measure: From checked inputs to float64 (N,).
        needs: What it takes beside maps: ``"model"`` (with images), ``"images"``, ``"masks"``,
            ``"groups"``, ``"explainer"`` (it makes maps again), ``"weights"`` (it destroys the
            network and puts it back).
        ranked: Whether it takes part in rankings. Metrics that a map without any content can
            win (a uniform map is perfectly robust) are reported but do not rank.
    """

    name: str
    title: str
    family: Family
    direction: Direction
    low: float
    high: float
    citation: str
    sentence: str
    measure: Callable[[Case], np.ndarray]
    needs: frozenset[str] = frozenset()
    ranked: bool = True

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is."""
        return 1 if self.direction == "higher" else -1

    def __call__(
        self, classifier: Any, images: Any, maps: Any, targets: Targets = None, **options: Any
    ) -> np.ndarray:
        """Measure maps.

        Args:
            classifier: ``ImageClassifier``, or a Keras model that it takes without more; None
                where the metric asks no model.
            images: (N, H, W, 3) as ``ImageClassifier.photographs`` takes them, or None.
            maps: (N, H, W), finite, made by any tool.
            targets: Explained classes as in ``explainers.target``; None for the most probable.
            **options: As ``case_of`` takes them: ``masks``, ``explainer``, ``groups``, ``others``,
                ``evaluations``, ``seed``, ``batch_size``.

        Returns:
            float64 (N,); NaN where the metric has no value, such as for an empty mask.

        Raises:
            UsageError: If something is missing or does not fit, or a value is not finite.

        Example:
            >>> from dermlens.quality import metrics
            >>> masks = np.array([[[True, False, False]]])
            >>> metrics.relevance_mass(None, None, [[[3.0, 1.0, -2.0]]], masks=masks).tolist()
            [0.75]
        """
        return self.measure(case_of([self], classifier, images, maps, targets, **options))


def case_of(
    metrics: Sequence[Metric],
    classifier: Any,
    images: Any,
    maps: Any,
    targets: Targets = None,
    *,
    masks: Any = None,
    explainer: "Explainer | Explain | None" = None,
    groups: Sequence[object] | None = None,
    others: Targets = None,
    evaluations: Evaluations | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Case:
    """Check what some metrics need, so that they can measure it; see ``Metric.__call__``.

    Args:
        metrics: That are going to measure; what follows up to ``targets`` is described there.
        masks: (N, H, W): bool, or numbers of exactly two values, the higher being inside.
        explainer: Makes maps again, for robustness and randomization: an ``Explainer``, or a
            function from images and targets to maps that asks the same model.
        groups: (N,): which images show the same object, for consistency.
        others: Other classes for the random logit; default drawn by seed and image.
        evaluations: Of the same classifier, to share between calls what does not depend on maps.
        seed: Sets everything random.
        batch_size: Images per pass; bounds memory.
    """
    needs = frozenset[str]().union(*(one.needs for one in metrics))
    wanted = needs | ({"images"} if "model" in needs else set())
    given = {"model": classifier, "images": images, "masks": masks, "explainer": explainer}
    for name, one in {**given, "groups": groups}.items():
        if name in wanted and one is None:
            title = next(one.title for one in metrics if name in one.needs or name == "images")
            raise UsageError(f"{title} {_MISSING[name]}.")
    case = Case(checked_maps(maps), seed)
    if "masks" in needs:
        case.masks = checked_masks(masks, case.maps.shape)
    if "groups" in needs:
        case.groups = list(groups or ())
        if len(case.groups) != len(case.maps):
            raise UsageError(
                f"{len(case.groups)} groups were given for {len(case.maps)} maps. Give one for "
                "each."
            )
    if "images" in wanted:
        model = None if classifier is None else as_classifier(classifier)
        pixels = np.asarray(images) if model is None else model.photographs(images)
        case.images, case.classifier = pixels.astype(np.float32), model
        if case.images.shape != (*case.maps.shape, 3):
            raise UsageError(
                f"Images {case.images.shape} and maps {case.maps.shape} must be (N, H, W, 3) and "
                "(N, H, W) of the same size. Enlarge the maps first."
            )
    if "model" in needs:
        assert case.images is not None and case.classifier is not None
        if evaluations is None:
            evaluations = Evaluations(case.classifier, batch_size=batch_size)
        elif weights_checksum(evaluations.classifier.model) != weights_checksum(
            case.classifier.model
        ):
            raise UsageError("The evaluations are of another model. Make some of this one.")
        case.evaluated = evaluations.of(case.images, seed)
        case.targets = _resolved(targets, case)
        case.others = None if others is None else _resolved(others, case)
        case.remake = None if explainer is None else _remake(case, explainer, batch_size)
    return case


_MISSING = {
    "model": "asks the model. Give the classifier",
    "images": "looks at the images. Give them",
    "masks": "looks at a region. Give masks=",
    "explainer": "makes maps again. Give explainer=, an Explainer or a function from images and "
    "targets to maps",
    "groups": "compares images of one object. Give groups=, a name for each image",
}


def _resolved(targets: Targets, case: Case) -> np.ndarray:
    """Return class positions; the model is only asked where they depend on its answer."""
    assert case.classifier is not None
    labels = case.classifier.labels
    logits = np.zeros((len(case.maps), len(labels)))
    if depend_on_answer(targets):
        logits = np.stack([one.ends["image"] for one in case.evaluated])
    return resolve_targets(targets, logits, labels)


def _remake(case: Case, explainer: "Explainer | Explain", batch_size: int) -> Explain:
    if not isinstance(explainer, Explainer):
        return lambda images, targets: explainer(own_range(case.classifier, images), targets)

    def explain(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
        pixels = own_range(explainer.classifier, images)
        return explainer.attribute(pixels, targets, batch_size=batch_size, seed=case.seed).maps

    return explain


def own_range(classifier: Any, photographs: np.ndarray) -> np.ndarray:
    """Return float photographs, RGB 0..255, in the range of values that a classifier takes."""
    if classifier.value_range == PHOTOGRAPH:
        return photographs
    low, high = classifier.value_range
    return np.float32(low) + photographs * np.float32((high - low) / 255.0)

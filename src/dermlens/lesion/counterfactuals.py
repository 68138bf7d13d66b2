"""What would have to be different in a picture for the network to answer something else.

Four changes of the picture, each with the probabilities before and after:

* the lesion erased: filled in from the skin around it (``lesion.shortcuts.ablate``);
* the smallest *necessary* region found: erasing it alone changes the answer;
* the smallest *sufficient* region found: kept alone, with all else erased, it keeps the answer;
* the colors of the lesion brought to those of the average lesion of the runner-up.

Erased means: replaced by plain skin, the picture with its lesion filled in and blurred until no
structure is left. These are changes of the *picture*. A picture with a hole filled in is none of a
lesion that could exist, so nothing here says what would happen to the skin.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dermlens.errors import ExplanationError, UsageError
from dermlens.explainers.attribution import Cost
from dermlens.explainers.baselines import baseline_image
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.minimal_regions import BATCH, Found, smallest_set
from dermlens.explainers.perturbation import FLOAT32, MaskedModel, Scorer
from dermlens.explainers.superpixel_explainer import superpixel_masks
from dermlens.explainers.superpixels import superpixels
from dermlens.lesion.recoloring import LesionColors, recolored
from dermlens.lesion.shortcuts import ablate
from dermlens.model.image_classifier import as_classifier

ERASED, NECESSARY, SUFFICIENT, COLOR = "lesion_erased", "necessary", "sufficient", "color"
KINDS: tuple[str, ...] = (ERASED, NECESSARY, SUFFICIENT, COLOR)
MOST_PASSES = 150
"""Of all changes of one image together."""
PASSES = 66
"""Of each of the two searches."""
PIECES = 32
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""How far colors are moved; the least that changes the answer is shown."""
_CONFIRMED = 3
"""Sets found with a scorer that are shown to the network itself at most, smallest first: where a
scorer is a little off, the smallest one may only just miss the goal."""


@dataclass(frozen=True)
class Change:
    """One change of a picture and what the network answers then.

    Attributes:
        kind: One of ``KINDS``.
        image: Changed picture, float32 RGB 0..255, (H, W, 3); None if none was found.
        where: bool (H, W): what was changed; for the sufficient region what was *kept*.
        probabilities: float64 (C,), after the change; None if no change was found.
        changed: Whether the answer is another one.
        passes: Images sent through the network for it.
        strength: Of the change of color, 0..1.
        irreducible: For regions: no single piece of it can be left out.
        note: What else is to be said, a sentence; empty where nothing is.
    """

    kind: str
    image: np.ndarray | None
    where: np.ndarray
    probabilities: np.ndarray | None
    changed: bool
    passes: int
    strength: float = 1.0
    irreducible: bool = False
    note: str = ""

    @property
    def area(self) -> float:
        """Share of the picture that ``where`` covers."""
        return float(self.where.mean())


@dataclass(frozen=True)
class Changes:
    """The changes of one picture.

    Attributes:
        image: The picture as the network saw it, uint8 (H, W, 3).
        outline: Of the lesion, bool (H, W), or None.
        answer: Position of the most probable class, unchanged.
        runner_up: Position of the second.
        probabilities: float64 (C,), unchanged.
        plain: float64 (C,): what the network answers when everything is erased.
        found: By kind; only what could be tried.
        passes: Images sent through the network altogether.
        scorer: What evaluated pictures during the searches; the network confirmed the result.
        missing: Why a kind could not be tried.
    """

    image: np.ndarray
    outline: np.ndarray | None
    answer: int
    runner_up: int
    probabilities: np.ndarray
    plain: np.ndarray
    found: Mapping[str, Change]
    passes: int
    scorer: str
    missing: Mapping[str, str]

    def inside(self, kind: str) -> float:
        """Return which share of a change's region lies in the outline; NaN if not known."""
        where = self.found[kind].where
        if self.outline is None or not where.any():
            return float("nan")
        return float((where & self.outline).sum() / where.sum())


def plain_skin(image: np.ndarray, outline: np.ndarray | None) -> np.ndarray:
    """Return what stands for erased places, float32 (H, W, 3): the skin without structure.

    Without an outline (H, W) it is the color of the picture's border.
    """
    if outline is None or not np.any(outline) or np.all(outline):
        return baseline_image(image, "border")
    return baseline_image(ablate(image, outline, "lesion_removed").image, "blur")


class ChangeFinder:
    """Finds changes of pictures that change the answer of a classifier.

    Args:
        model: ``ImageClassifier``, or a Keras model that it takes without more.
        scorer: Evaluates pictures during the searches in place of the network, which confirms.
        pieces: About how many pieces a picture is cut into (``explainers.superpixels``), or the
            piece of each pixel, int (H, W), numbered from 0 without gaps.
        passes: Of each of the two searches.
        colors: Average lesion colors by class code, for the change of color.

    Raises:
        UsageError: If the changes of an image could take more than ``MOST_PASSES``.
    """

    def __init__(
        self,
        model: Any,
        *,
        scorer: Scorer | None = None,
        pieces: int | np.ndarray = PIECES,
        passes: int = PASSES,
        colors: Mapping[str, LesionColors] | None = None,
    ) -> None:
        others = 6 + len(STRENGTHS) + (2 * _CONFIRMED if scorer is not None else 0)
        if not 1 <= passes <= (MOST_PASSES - others) // 2:
            raise UsageError(
                f"Each search may take 1 to {(MOST_PASSES - others) // 2} passes, not {passes}."
            )
        self.classifier = as_classifier(model)
        self.scorer, self.pieces, self.passes = scorer, pieces, passes
        self.colors = dict(colors or {})
        self.cost = Cost()
        self._masked = MaskedModel(self.classifier.model, superpixel_masks, self.cost, scorer)
        self._cam: GradCAM | None = None
        self._exact = self._masked
        if scorer is not None:
            self._exact = MaskedModel(self.classifier.model, superpixel_masks, self.cost)

    def changes(
        self,
        image: np.ndarray,
        outline: np.ndarray | None = None,
        *,
        kinds: Collection[str] = KINDS,
        orders: Sequence[np.ndarray] | None = None,
    ) -> Changes:
        """Return the changes of an image.

        Args:
            image: (H, W, 3) at the model's input size, as ``ImageClassifier.photographs`` takes.
            outline: Of the lesion, bool (H, W); without it regions alone are looked for.
            kinds: Which changes to look for.
            orders: Maps, float (H, W), whose order of places is tried alone, without growing
                greedily; for comparison.

        Raises:
            UsageError: If sizes do not fit.
            ExplanationError: If the scorer stands for other weights.
        """
        picture = self.classifier.photographs(np.asarray(image)[None])[0].astype(np.float32)
        outline = self._checked(outline, picture)
        if self.scorer is not None:
            self.scorer.check(self.classifier.model)
        paid = self.cost.forward
        skin = plain_skin(picture, outline)
        logits = self._logits(np.stack([picture, skin]))
        ranked = np.argsort(-logits[0], kind="stable")
        task = _Task(picture, skin, outline, int(ranked[0]), int(ranked[1]), logits)
        found = self._regions(task, [k for k in (NECESSARY, SUFFICIENT) if k in kinds], orders)
        missing: dict[str, str] = {}
        for kind in (ERASED, COLOR):
            if kind in kinds:
                made = self._of_lesion(task, kind)
                if isinstance(made, Change):
                    found[kind] = made
                else:
                    missing[kind] = made
        probabilities = self.classifier.probabilities(logits)
        return Changes(
            np.clip(np.rint(picture), 0, 255).astype(np.uint8),
            outline,
            task.answer,
            task.runner_up,
            probabilities[0],
            probabilities[1],
            {kind: found[kind] for kind in KINDS if kind in found},
            self.cost.forward - paid,
            FLOAT32 if self.scorer is None else self.scorer.name,
            missing,
        )

    def _labels(self, picture: np.ndarray) -> np.ndarray:
        if isinstance(self.pieces, int):
            return superpixels(picture, self.pieces)
        if self.pieces.shape != picture.shape[:2]:
            raise UsageError(
                f"Pieces of shape {self.pieces.shape} do not fit a picture of {picture.shape[:2]}."
            )
        return self.pieces.astype(np.int32)

    def _checked(self, outline: np.ndarray | None, picture: np.ndarray) -> np.ndarray | None:
        if outline is None:
            return None
        outline = np.asarray(outline, bool)
        if outline.shape != picture.shape[:2] or not outline.any():
            raise UsageError(
                f"The outline must be (H, W) = {picture.shape[:2]} with something inside, not "
                f"{outline.shape} with {int(outline.sum())} pixels."
            )
        return outline

    def _logits(self, images: np.ndarray) -> np.ndarray:
        """Return the network's own logits of whole pictures (n, H, W, 3)."""
        whole = np.zeros(images.shape[1:3], np.int32)
        rows = [
            self._exact.logits(image, image, whole, np.ones((1, 1), np.float32), 1)
            for image in images
        ]
        return np.concatenate(rows)

    def _after(
        self, task: "_Task", kind: str, image: np.ndarray, where: np.ndarray, **more: Any
    ) -> Change:
        logits = self._logits(image[None])
        return Change(
            kind,
            image,
            where,
            self.classifier.probabilities(logits)[0],
            int(logits[0].argmax()) != task.answer,
            1,
            **more,
        )

    def _evidence(self, picture: np.ndarray, answer: int) -> list[np.ndarray] | None:
        """Return the Grad-CAM of the answer, to begin with; None where a model has none."""
        try:
            if self._cam is None:
                self._cam = GradCAM(self.classifier)
            result = self._cam.attribute(picture[None], answer)
        except ExplanationError:
            return None
        self.cost.pay(result.cost.forward)
        return [result.maps[0]]

    def _of_lesion(self, task: "_Task", kind: str) -> Change | str:
        """Return a change of the whole lesion, or why there is none."""
        if task.outline is None:
            return "it takes an outline of the lesion"
        if kind == ERASED:
            made = ablate(task.picture, task.outline, "lesion_removed")
            return self._after(task, ERASED, made.image, made.where)
        code = self.classifier.classes[task.runner_up]
        if code not in self.colors:
            return f"the average lesion colors of {code} are not known"
        return self._color(task, task.outline, self.colors[code])

    def _regions(
        self, task: "_Task", kinds: Sequence[str], orders: Sequence[np.ndarray] | None
    ) -> dict[str, Change]:
        labels, grow = self._labels(task.picture), orders is None
        maps = self._evidence(task.picture, task.answer) if orders is None and kinds else orders
        return {kind: self._region(task, kind, labels, maps, grow) for kind in kinds}

    def _color(self, task: "_Task", outline: np.ndarray, goal: LesionColors) -> Change:
        tried = []
        for strength in STRENGTHS:
            image = recolored(task.picture, outline, goal, strength)
            tried.append(self._after(task, COLOR, image, outline, strength=strength))
            if tried[-1].changed:
                break
        return replace(tried[-1], passes=len(tried))

    def _region(
        self,
        task: "_Task",
        kind: str,
        labels: np.ndarray,
        maps: Sequence[np.ndarray] | None,
        grow: bool,
    ) -> Change:
        """Look for a region; a set found with a scorer counts once the network confirms it."""
        sizes = np.bincount(labels.ravel()).astype(np.float64)
        empty = task.margins(kind, task.logits[int(kind == SUFFICIENT)][None])[0]
        if empty > 0:
            # Everything erased already gives the answer, so no region is needed for it.
            probabilities = self.classifier.probabilities(task.logits[1:])[0]
            nothing = np.zeros(labels.shape, bool)
            note = "Plain skin alone gets this answer, so no part of the picture is needed for it."
            return Change(kind, task.skin, nothing, probabilities, False, 0, 1.0, True, note)

        def margins(masked: MaskedModel, sets: np.ndarray) -> np.ndarray:
            kept = (sets if kind == SUFFICIENT else ~sets).astype(np.float32)
            made = masked.logits(task.picture, task.skin, labels, kept, BATCH)
            return task.margins(kind, made)

        before = self.cost.forward
        result = smallest_set(
            lambda sets: margins(self._masked, sets),
            sizes,
            self.passes,
            orders=None if maps is None else [_piece_order(one, labels, sizes) for one in maps],
            grow=grow,
            start=float(empty),
        )
        chosen = self._confirmed(result, lambda sets: margins(self._exact, sets))
        paid = self.cost.forward - before
        return self._shown(task, kind, labels, chosen, result, paid)

    def _confirmed(self, result: Found, margins: Any) -> np.ndarray | None:
        if self.scorer is None or result.chosen is None:
            return result.chosen
        tried = [result.chosen, *result.safer][:_CONFIRMED]
        good = margins(np.stack(tried)) > 0
        return tried[int(good.argmax())] if good.any() else None

    def _shown(
        self,
        task: "_Task",
        kind: str,
        labels: np.ndarray,
        chosen: np.ndarray | None,
        result: Found,
        paid: int,
    ) -> Change:
        if chosen is None:
            nothing = np.zeros(labels.shape, bool)
            note = f"No change found within {paid} passes."
            if result.chosen is not None:
                note += " What the scorer found the network did not confirm."
            return Change(kind, None, nothing, None, False, paid, note=note)
        region = chosen[labels]
        kept = region if kind == SUFFICIENT else ~region
        image = np.where(kept[..., None], task.picture, task.skin)
        shown = self._after(task, kind, image, region)
        irreducible = result.irreducible and chosen is result.chosen
        return replace(shown, passes=paid + 1, irreducible=irreducible)


@dataclass(frozen=True)
class _Task:
    """One picture: itself, plain skin, outline, answer, runner-up, and logits of both pictures."""

    picture: np.ndarray
    skin: np.ndarray
    outline: np.ndarray | None
    answer: int
    runner_up: int
    logits: np.ndarray

    def margins(self, kind: str, logits: np.ndarray) -> np.ndarray:
        """Return how far logits (n, C) are beyond a goal: another answer, or the same."""
        others = np.delete(logits, self.answer, axis=1).max(axis=1)
        gap = logits[:, self.answer].astype(np.float64) - others
        return gap if kind == SUFFICIENT else -gap


def _piece_order(values: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return pieces by their mean value, the largest first."""
    means = np.bincount(labels.ravel(), np.asarray(values, np.float64).ravel()) / sizes
    return np.argsort(-means, kind="stable")

"""What metrics ask a model that does not depend on any map: evaluated once for each image.

The logits of the image, of its border color and of its blurred copy, and the reactions to covered
squares and cells serve every map of the image. They are remembered by the image's pixels and by a
checksum of the weights, so that a model that was trained on, or destroyed, is asked again.
"""

import zlib
from collections import OrderedDict
from functools import cached_property
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.base import Cost, Network, batches, even_batch
from dermlens.explainers.baselines import baseline_image
from dermlens.explainers.perturbation import MaskedModel
from dermlens.model.image_classifier import as_classifier
from dermlens.model.lite import weights_checksum
from dermlens.quality.removal import ROAD_LEVELS, STEPS, keep_masks
from dermlens.quality.subsets import SETS, SQUARES, Reactions, covering_masks, draw_covers


class Evaluations:
    """Evaluates images for metrics, every function being traced once.

    Per image 3 passes and squares + sets + 1, whatever the number of maps; then per map
    2 * (steps - 1) for deletion and insertion together, and 18 for ROAD. Every removal step takes
    an equal share of the pixels; squares are for infidelity, sets of cells for MuFidelity; ``keep``
    images are remembered.
    """

    def __init__(
        self,
        model: Any,
        *,
        steps: int = STEPS,
        squares: int = SQUARES,
        sets: int = SETS,
        batch_size: int = 16,
        keep: int = 32,
    ) -> None:
        if steps < 1:
            raise UsageError(f"At least 1 removal step is needed, not {steps}.")
        if squares < 2 or sets < 3:
            raise UsageError(f"At least 2 squares and 3 sets are needed, not {squares} and {sets}.")
        self.classifier, self.steps, self.batch_size = as_classifier(model), steps, batch_size
        self.squares, self.sets, self.keep = squares, sets, keep
        self.network = Network(self.classifier.model)
        cost, network = self.network.cost, self.classifier.model
        self.removing = MaskedModel(network, keep_masks, cost)
        self.covering = MaskedModel(network, covering_masks, cost)
        self._kept: OrderedDict[tuple[int, int, int], Evaluated] = OrderedDict()

    @property
    def cost(self) -> Cost:
        """Passes made so far."""
        return self.network.cost

    @property
    def traces(self) -> int:
        """How often functions were traced."""
        return self.removing.traces + self.covering.traces + self.network.traces

    def of(self, images: np.ndarray, seed: int = 0) -> list["Evaluated"]:
        """Return what is known of each of some photographs RGB 0..255, (N, H, W, 3).

        Hold the result only while the weights stay: it does not look at them again.
        """
        weights = weights_checksum(self.classifier.model)
        found = []
        for image in np.ascontiguousarray(images, np.float32):
            key = (seed, weights, zlib.crc32(image.data))
            one = self._kept.pop(key, None) or Evaluated(self, image, seed)
            self._kept[key] = one
            found.append(one)
        while len(self._kept) > self.keep:
            self._kept.popitem(last=False)
        return found

    def forget(self) -> None:
        """Ask the model again for every image from now on."""
        self._kept.clear()


class Evaluated:
    """One image (H, W, 3), and what a model says of it and of changed copies of it."""

    def __init__(self, by: Evaluations, image: np.ndarray, seed: int) -> None:
        self.by, self.image, self.seed = by, image, seed

    @cached_property
    def ends(self) -> dict[str, np.ndarray]:
        """Logits (C,) of the image, of its border color and of the blurred image, by name."""
        pictures = {name: baseline_image(self.image, name) for name in ("border", "blur")}
        pictures = {"image": self.image, **pictures}
        logits = self.by.network.logits(np.stack(list(pictures.values()))).numpy()
        return dict(zip(pictures, logits, strict=True))

    @cached_property
    def reactions(self) -> Reactions:
        """How the logits react to covered squares and sets of cells."""
        squares = self.by.squares
        labels, boxes, chosen = draw_covers(self.image, squares, self.by.sets, self.seed)
        jobs = np.zeros((1 + squares + self.by.sets, 4 + chosen.shape[1]), np.float32)
        jobs[1 : 1 + squares, :4] = boxes
        jobs[1 + squares :, 4:] = chosen
        baseline = baseline_image(self.image, "border")
        size = even_batch(len(jobs), self.by.batch_size)
        logits = self.by.covering.logits(self.image, baseline, labels, jobs, size)
        drops = logits[:1].astype(np.float64) - logits[1:]
        return Reactions(boxes, drops[:squares], labels, chosen, drops[squares:])

    def deletion(self, places: np.ndarray, target: int) -> np.ndarray:
        """Return the probability after each share 0, 1/steps, ..., 1 was removed: (steps + 1,)."""
        return self._curve("border", places, target, 0.0, ("image", "border"))

    def insertion(self, places: np.ndarray, target: int) -> np.ndarray:
        """Return the probability after each share was revealed: (steps + 1,)."""
        return self._curve("blur", places, target, 1.0, ("blur", "image"))

    def _curve(
        self, baseline: str, places: np.ndarray, target: int, first: float, ends: tuple[str, str]
    ) -> np.ndarray:
        rows = [self.ends[name][None] for name in ends]
        steps = self.by.steps
        if steps > 1:
            shares = np.arange(1, steps, dtype=np.float32) / steps
            jobs = np.stack([shares, np.full_like(shares, first)], axis=1)
            absent = baseline_image(self.image, baseline)
            size = even_batch(len(jobs), self.by.batch_size)
            rows.insert(1, self.by.removing.logits(self.image, absent, places, jobs, size))
        curve: np.ndarray = self.by.classifier.probabilities(np.concatenate(rows))[:, target]
        return curve

    def imputed(self, places: np.ndarray, target: int) -> np.ndarray:
        """Return probabilities, (2, levels), the most and the least important pixels imputed."""
        from dermlens.quality.imputation import impute

        half = 0.5 / places.size
        most = [places + half < level for level in ROAD_LEVELS]
        least = [places + half > 1 - level for level in ROAD_LEVELS]
        logits = []
        jobs = np.stack(most + least)
        for part in batches(len(jobs), self.by.batch_size):
            repeated = np.broadcast_to(self.image, (len(jobs[part]), *self.image.shape))
            made = impute(repeated, jobs[part], seed=self.seed)
            logits.append(self.by.network.logits(made).numpy())
        values = self.by.classifier.probabilities(np.concatenate(logits))[:, target]
        return values.reshape(2, len(ROAD_LEVELS))

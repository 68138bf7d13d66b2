"""Maps that know nothing of the decision: what every explanation must beat.

Controls are explainers like any other and run through the same code. What photographs show is
often large, dark and in the middle, so a centered Gaussian localizes well. Gradient and activation
methods on a network with shuffled weights show what architecture and image alone give.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dermlens.errors import UsageError
from dermlens.explainers.base import Attribution, Explainer, Request, image_generator
from dermlens.model.image_classifier import ImageClassifier, as_classifier
from dermlens.progress import say
from dermlens.quality.randomization import randomized, weighted_layers

UNTRAINED_PREFIX = "untrained_"
SPREAD = 0.25
"""Standard deviation of the bell in the middle, as a share of each side."""


def _uniform(image: np.ndarray, seed: int) -> np.ndarray:
    return np.ones(image.shape[:2], np.float32)


def _random(image: np.ndarray, seed: int) -> np.ndarray:
    return image_generator(seed, image).random(image.shape[:2], dtype=np.float32)


def _centered_gaussian(image: np.ndarray, seed: int) -> np.ndarray:
    rows, columns = (((np.arange(side) + 0.5) / side - 0.5) / SPREAD for side in image.shape[:2])
    bell = np.exp(-0.5 * (rows[:, None] ** 2 + columns[None] ** 2))
    return bell.astype(np.float32)


def _darkness(image: np.ndarray, seed: int) -> np.ndarray:
    return 255.0 - image.mean(axis=-1)


CONTROLS: dict[str, tuple[str, Callable[[np.ndarray, int], np.ndarray]]] = {
    "uniform": ("Uniform", _uniform),
    "random": ("Random", _random),
    "centered_gaussian": ("Centered Gaussian", _centered_gaussian),
    "darkness": ("Darkness", _darkness),
}
"""Title, and map of an image under a seed, of every control that needs no network."""


class ModelFreeMap(Explainer):
    """A map from the image or from nothing, not from the model: of ``CONTROLS``, or a subclass."""

    signed = False

    def __init__(self, model: Any, name: str = "") -> None:
        super().__init__(model)
        self.name = name or self.name

    def draw(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return the map (H, W) of one float32 image (H, W, 3)."""
        return CONTROLS[self.name][1](image, seed)

    def _parts(self, asked: Request) -> Iterator[Attribution]:
        if asked.every:
            raise UsageError(f"The control {self.name} knows no classes. Name one target.")
        for batch in asked.batches(len(asked.images)):
            goals = batch.goals(self._answers(batch))
            for image, goal in zip(batch.images, goals, strict=True):
                map_ = self.draw(image, asked.seed)[None, None]
                asked.finished()
                yield self._part(asked, map_, goal[None], np.full((1, 1), np.nan))


def untrained_copy(classifier: ImageClassifier, seed: int = 0) -> ImageClassifier | None:
    """Return a copy of a classifier in which the values of every weight are in random order.

    None where the network cannot be copied, as one may be that was subclassed.
    """
    import keras

    network = classifier.model
    try:
        copy = keras.models.clone_model(network)
        copy.set_weights(network.get_weights())
        probe = np.linspace(0, 255, np.prod(network.input_shape[1:]), dtype=np.float32)
        probe = probe.reshape(1, *network.input_shape[1:])
        same = np.allclose(copy(probe), network(probe), rtol=1e-3, atol=1e-3, equal_nan=True)
    except Exception:  # Any code of a foreign layer may run here, and fail in any way.
        return None
    if not same:
        return None
    with randomized(copy, weighted_layers(copy), seed):
        shuffled = copy.get_weights()
    copy.set_weights(shuffled)
    copy.trainable = False
    return ImageClassifier(copy, classifier.labels, calibration=classifier.calibration)


def control_names(methods: Sequence[str]) -> list[str]:
    """Return the controls that belong beside some methods, in the order of the tables."""
    from dermlens.explainers.registry import method

    reading = [name for name in methods if method(name).family != "perturbation"]
    return [*CONTROLS, *(UNTRAINED_PREFIX + name for name in reading)]


def is_control(name: str) -> bool:
    """Tell whether a name is that of a control."""
    return name in CONTROLS or name.startswith(UNTRAINED_PREFIX)


def title(name: str) -> str:
    """Return the name for people of a method or control."""
    from dermlens.explainers.registry import METHODS, method

    if name in CONTROLS:
        return CONTROLS[name][0]
    if name.startswith(UNTRAINED_PREFIX):
        return f"{method(name.removeprefix(UNTRAINED_PREFIX)).title}, untrained"
    whole, _, how = name.partition(": ")
    if how and whole in METHODS:
        return f"{METHODS[whole].title}, {how}"
    return METHODS[name].title if name in METHODS else name


def create_controls(names: Sequence[str], model: Any, *, seed: int = 0) -> dict[str, Explainer]:
    """Build controls by name; those called ``untrained_METHOD`` share one copy of the network.

    These are left out, and it is said, where there can be no copy.

    Raises:
        UsageError: If a name is unknown.
    """
    from dermlens.explainers.registry import create, method

    for name in names:
        if not is_control(name):
            raise UsageError(f"Unknown control {name!r}. Use some of: {', '.join(CONTROLS)}.")
    classifier = as_classifier(model)
    made: dict[str, Explainer] = {n: ModelFreeMap(classifier, n) for n in names if n in CONTROLS}
    untrained = [name for name in names if name not in CONTROLS]
    copy = untrained_copy(classifier, seed) if untrained else None
    if untrained and copy is None:
        say("The network cannot be copied, so the controls on an untrained copy are left out.")
        return made
    for name in untrained:
        kind = name.removeprefix(UNTRAINED_PREFIX)
        # The logits of such a network hardly change: accuracy relative to that costs much.
        made[name] = create(kind, copy, **method(kind).fixed)
    return {name: made[name] for name in names}

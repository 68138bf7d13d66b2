"""Class activation maps at every depth of a network, in one forward and one backward pass.

A convolutional network works in stages: each halves the resolution of its feature maps and sees
further. The stages are found by themselves in any backbone: the last feature maps of each
resolution that the whole image passes through (what only a side branch sees is left out).

Layer-CAM (Jiang et al., "LayerCAM: Exploring hierarchical class activation maps for localization",
IEEE TIP 2021) is used at every depth: relu(sum_k A_k relu(dY/dA_k)). It weights each place by its
own gradient; Grad-CAM's mean over places says little about one place at shallow stages. Networks
that read every second place only (the strided 1x1 convolutions of ResNet) give the others no
gradient, which leaves a grid of dots; so maps of all stages but the last are averaged with their
neighbors by weights 1, 2, 1, which turns such a grid into an even surface.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermlens.explainers.attribution import Cost
from dermlens.explainers.base import batches
from dermlens.explainers.layers import Features, Step, find_features, run_catching
from dermlens.explainers.output import Output, chosen_output
from dermlens.explainers.registration import Drawing, Registration, registered
from dermlens.explainers.tracing import Traced, traced_once
from dermlens.model.image_classifier import as_classifier


@dataclass(frozen=True)
class Stage:
    """Feature maps at the end of a stage: path, (height, width) and position of the operation."""

    layer: str
    size: tuple[int, int]
    step: int


def stages_of(features: Features) -> tuple[Stage, ...]:
    """Return the stages of a network from shallow to deep; the last is what the head reads."""
    model, steps = features.model, features.steps[: features.step + 1]
    last = steps[-1].shape[1:3]
    found: dict[tuple[int, int], Stage] = {}
    full = smallest = _sides(model.input_shape[1:3], (64, 64))
    for position in _passages(steps):
        height, width = _sides(steps[position].shape[1:3], (0, 0))
        # Padding makes maps a little larger for a moment; that is no stage.
        if not 0 < height <= smallest[0] or not 0 < width <= smallest[1]:
            continue
        smallest = (height, width)
        found[smallest] = Stage(steps[position].path, smallest, position)
    kept = [stage for size, stage in found.items() if size != full and size != last]
    return (*kept, Stage(features.layer, _sides(last, (1, 1)), features.step))


def _sides(shape: Sequence[int | None], unknown: tuple[int, int]) -> tuple[int, int]:
    height, width = (side or other for side, other in zip(shape, unknown, strict=True))
    return int(height), int(width)


def _passages(steps: list[Step]) -> list[int]:
    """Return the feature maps that everything passes through: nothing older is read later."""
    made = {step.writes: position for position, step in enumerate(steps)}
    last_use: dict[int, int] = {}
    for position, step in enumerate(steps):
        for read in step.reads:
            made.setdefault(read, -1)
            last_use[read] = position
    pending: dict[int, int] = {}
    for value, use in last_use.items():
        pending[made[value]] = max(use, pending.get(made[value], -1))
    passages, needed_until = [], pending.get(-1, -1)
    for position, step in enumerate(steps):
        if needed_until <= position and len(step.shape) == 4:
            passages.append(position)
        needed_until = max(needed_until, pending.get(position, -1))
    return passages


class StageCAM:
    """Layer-CAM at every stage; ``registration`` as in ``explainers.registration``.

    Raises:
        ExplanationError: If the model has no feature maps.
    """

    def __init__(self, model: Any, *, registration: Registration = "receptive_field") -> None:
        self.classifier = as_classifier(model)
        self.model, self.classes = self.classifier.model, self.classifier.classes
        features = find_features(self.model)
        self.stages = stages_of(features)
        self.drawing = Drawing(features, [stage.step for stage in self.stages], registration)
        self.cost = Cost()
        self._functions: dict[str, Traced] = {}

    @property
    def traces(self) -> int:
        """How often the maps were traced."""
        return sum(one.traces for one in self._functions.values())

    def maps(
        self,
        images: np.ndarray,
        goals: np.ndarray,
        *,
        output: Output | None = None,
        batch_size: int = 16,
    ) -> list[np.ndarray]:
        """Return one stack of maps per stage, shallow to deep, float32 (N, H, W), 0 or more.

        Images (N, H, W, 3) are RGB 0..255; class positions are int (N,); the logit is the default
        output.
        """
        function = self._function(chosen_output(output, self.classifier))
        goals = np.asarray(goals, np.int32)
        sides = self.drawing.weights(np.shape(images)[1:3])
        parts = []
        for part in batches(len(images), batch_size):
            drawn = function(np.asarray(images[part], np.float32), goals[part], sides)
            parts.append([np.asarray(one) for one in drawn])
            self.cost.pay(len(goals[part]), len(goals[part]))
        return [np.concatenate(stage) for stage in zip(*parts, strict=True)]

    def _function(self, output: Output) -> Any:
        import tensorflow as tf

        if repr(output) not in self._functions:
            model, wanted = self.model, {stage.step for stage in self.stages}

            def drawn(images: Any, goals: Any, sides: Any) -> Any:
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    caught, logits = run_catching(model, images, wanted, tape.watch)
                    value = tf.gather(output.values(logits), goals, axis=1, batch_dims=1)
                found = zip(caught, tape.gradient(value, caught), sides, strict=True)
                return [
                    registered(_layer_cam(maps, slopes, even=maps is not caught[-1]), *weights)
                    for maps, slopes, weights in found
                ]

            pixels = tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32)
            side = tf.TensorSpec((None, None), tf.float32)
            signature = [pixels, tf.TensorSpec((None,), tf.int32), [(side, side)] * len(wanted)]
            key = ("stages", repr(output), *sorted(wanted))
            self._functions[repr(output)] = traced_once(model, key, drawn, signature)
        return self._functions[repr(output)]


def _layer_cam(activations: Any, gradients: Any, *, even: bool) -> Any:
    """Return maps (n, h, w) from activations and gradients (n, h, w, K)."""
    import tensorflow as tf

    positive = tf.nn.relu(tf.cast(gradients, tf.float32))
    drawn = tf.nn.relu(tf.reduce_sum(tf.cast(activations, tf.float32) * positive, -1, True))
    if even:
        drawn = _without_grid(drawn)
    return drawn[..., 0]


def _without_grid(maps: Any) -> Any:
    """Average maps (n, h, w, 1) with their neighbors by 1, 2, 1 along both sides."""
    import tensorflow as tf

    if any(side is not None and side < 2 for side in maps.shape[1:3]):
        return maps
    weights = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32)[..., None, None] / 16
    # Reflected about the outermost places, so that a grid goes on beyond the border.
    padded = tf.pad(maps, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="REFLECT")
    return tf.nn.conv2d(padded, weights, strides=1, padding="VALID")

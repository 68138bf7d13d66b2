"""The loss, the schedule, the optimizer with two learning rates, and the running average."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dermlens.model.configuration import TrainingConfiguration


def classification_loss(
    truth: Any, logits: Any, weights: Any, *, smoothing: float = 0.0, focal_gamma: float = 0.0
) -> Any:
    """Return the weighted cross-entropy with label smoothing and focal modulation, a scalar.

    Args:
        truth: float32 tensor (B, C): one-hot labels, or shares of classes in mixed images.
        logits: float32 tensor (B, C).
        weights: float32 tensor (B,); the weighted losses are summed and divided by B.
        smoothing: Share of the target spread evenly over all classes (Szegedy et al. 2016).
        focal_gamma: Exponent of (1 - p_target) (Lin et al. 2017); 0 is plain cross-entropy.
    """
    import tensorflow as tf

    log_p = tf.nn.log_softmax(logits)
    target = truth * (1.0 - smoothing) + smoothing / logits.shape[-1]
    loss = -tf.reduce_sum(target * log_p, axis=-1)
    if focal_gamma > 0:
        p_target = tf.exp(tf.reduce_sum(truth * log_p, axis=-1))
        loss *= (1.0 - p_target) ** focal_gamma
    return tf.reduce_mean(loss * weights)


def loss_settings(configuration: TrainingConfiguration) -> dict[str, float]:
    """Return what of a configuration ``classification_loss`` takes."""
    return {
        "smoothing": configuration.label_smoothing,
        "focal_gamma": configuration.focal_gamma,
    }


def distillation_loss(teacher_logits: Any, logits: Any, weights: Any, *, temperature: float) -> Any:
    """Return the divergence of softened probabilities from a teacher's (Hinton et al. 2015).

    The weighted (B,) Kullback-Leibler divergences of float32 logits (B, C), both divided by the
    temperature, summed and divided by B; times its square, so that gradients keep their size.
    """
    import tensorflow as tf

    log_q = tf.nn.log_softmax(teacher_logits / temperature)
    log_p = tf.nn.log_softmax(logits / temperature)
    divergence = tf.reduce_sum(tf.exp(log_q) * (log_q - log_p), axis=-1)
    return tf.reduce_mean(divergence * weights) * temperature**2


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov & Hutter 2017), as a factor 0..1.

    Example:
        >>> [round(learning_rate_factor(step, 10, 110), 3) for step in (0, 9, 60)]
        [0.1, 1.0, 0.5]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return float(0.5 * (1 + np.cos(np.pi * min(done, 1.0))))


class TwoRateOptimizer:
    """AdamW with one rate for pretrained and another for fresh variables, clipped together.

    Biases and normalization parameters are not decayed.
    """

    def __init__(
        self,
        pretrained: Sequence[Any],
        fresh: Sequence[Any],
        *,
        pretrained_rate: float,
        fresh_rate: float,
        weight_decay: float,
        clip_norm: float,
    ) -> None:
        import keras

        self.clip_norm = clip_norm
        self._parts: list[tuple[Any, list[Any], float]] = []
        for variables, rate in ((list(pretrained), pretrained_rate), (list(fresh), fresh_rate)):
            if not variables:
                continue
            part = keras.optimizers.AdamW(rate, weight_decay=weight_decay)
            plain = [variable for variable in variables if len(variable.shape) < 2]
            if plain:
                part.exclude_from_weight_decay(var_list=plain)
            part.build(variables)
            self._parts.append((part, variables, rate))

    @property
    def trained(self) -> list[Any]:
        """The variables this optimizer changes, in the order gradients are expected."""
        return [variable for _, variables, _ in self._parts for variable in variables]

    @property
    def variables(self) -> list[Any]:
        """Slots and counters, for checkpoints."""
        return [variable for part, _, _ in self._parts for variable in part.variables]

    def scale_rates(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times its peak."""
        for part, _, rate in self._parts:
            part.learning_rate.assign(rate * factor)

    @property
    def rate(self) -> float:
        """The current rate of the last (fresh) group."""
        return float(self._parts[-1][0].learning_rate)

    def apply(self, gradients: Sequence[Any]) -> Any:
        """Clip by global norm and take one step; return the norm before clipping."""
        import tensorflow as tf

        clipped, norm = tf.clip_by_global_norm(list(gradients), self.clip_norm)
        start = 0
        for part, variables, _ in self._parts:
            part.apply(clipped[start : start + len(variables)], variables)
            start += len(variables)
        return norm


class RunningAverage:
    """Exponential moving average of variables (Polyak & Juditsky 1992), warmed up.

    Of the old average the share ``decay`` is kept per step.
    """

    def __init__(self, variables: Sequence[Any], decay: float) -> None:
        import tensorflow as tf

        self.decay = decay
        self._variables = list(variables)
        self.averages = [
            tf.Variable(v.value, trainable=False, dtype=v.dtype) for v in self._variables
        ]

    def update(self, step: Any) -> None:
        """Move the averages towards the variables; ``step`` counts from 0."""
        import tensorflow as tf

        step = tf.cast(step, tf.float32)
        decay = tf.minimum(self.decay, (1.0 + step) / (10.0 + step))
        for average, variable in zip(self.averages, self._variables, strict=True):
            value = tf.cast(variable.value, average.dtype)
            average.assign_sub((average - value) * (1.0 - decay))

    def swap(self) -> None:
        """Exchange variables and averages; call again to exchange them back."""
        for average, variable in zip(self.averages, self._variables, strict=True):
            value = variable.numpy()
            variable.assign(average.numpy())
            average.assign(value)

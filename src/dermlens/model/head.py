"""Phase one: the last layer trained on cached backbone features.

A frozen backbone gives the same features in every epoch, so they are computed once; each further
epoch costs next to nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dermlens.data.pipeline import epoch_order, sample_weights
from dermlens.files import written_beside
from dermlens.model.calibration import negative_log_likelihood
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.optimization import (
    TwoRateOptimizer,
    classification_loss,
    learning_rate_factor,
    loss_settings,
)
from dermlens.model.prediction import Predictor


def cached_features(
    model: Any, images: np.ndarray, path: Path, key: str, batch_size: int, advance: Any = None
) -> np.ndarray:
    """Return the pooled backbone features of all images, float32 (N, D); computed only once.

    Args:
        model: Classifier with a frozen backbone.
        images: uint8 (N, H, W, 3).
        path: ``.npz`` file of the cache.
        key: What the features depend on; another key makes them again.
        batch_size: Images per pass.
        advance: Called with the number of images done.
    """
    import keras

    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                return stored["features"]
    extractor = keras.Model(model.input, model.get_layer("pool").output)
    features = Predictor(extractor, batch_size=batch_size).logits(images, advance=advance)
    with written_beside(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, features=features, key=np.array(key))
    return features


def train_head(
    model: Any,
    features: np.ndarray,
    labels: np.ndarray,
    rows: dict[str, np.ndarray],
    configuration: TrainingConfiguration,
    report: Callable[[int, dict[str, float], np.ndarray], None],
) -> None:
    """Train the last layer on cached features; leaves the best epoch's weights in the model.

    Args:
        model: Classifier; only its last layer changes.
        features: float32 (N, D), of all images.
        labels: int (N,).
        rows: Rows of ``"train"`` and ``"validation"``.
        configuration: Rates, epochs, imbalance handling.
        report: Called after each epoch with its number, training figures and validation logits.
    """
    layer, how = model.get_layer("logits"), configuration.imbalance
    train, held, seed = rows["train"], rows["validation"], configuration.seed
    classes = len(configuration.architecture.classes)
    weights = sample_weights(labels[train], how, classes)
    batch = min(configuration.batch_size, len(train))
    steps = len(train) // batch
    step, optimizer = _step(layer, configuration)
    lowest, kept = np.inf, layer.get_weights()
    for epoch in range(configuration.head_epochs):
        order = epoch_order(labels[train], how, classes, seed + 7919, epoch)
        sums = np.zeros(2)
        for number in range(steps):
            chosen = order[number * batch : (number + 1) * batch]
            done = epoch * steps + number
            total = steps * configuration.head_epochs
            optimizer.scale_rates(learning_rate_factor(done, steps, total))
            x, y = features[train[chosen]], labels[train[chosen]].astype(np.int32)
            sums += [float(v) for v in step(x, y, weights[chosen], np.array([seed, done], "i4"))]
        kernel, bias = layer.get_weights()
        logits, truth = features[held] @ kernel + bias, labels[held]
        loss = negative_log_likelihood(logits, truth)
        if loss < lowest:
            lowest, kept = loss, layer.get_weights()
        report(epoch, {"train_loss": sums[0] / steps, "train_accuracy": sums[1] / steps}, logits)
    layer.set_weights(kept)


def _step(layer: Any, configuration: TrainingConfiguration) -> tuple[Any, TwoRateOptimizer]:
    """Return a traced training step of the last layer, and its optimizer."""
    import tensorflow as tf

    optimizer = TwoRateOptimizer(
        [],
        layer.trainable_variables,
        pretrained_rate=0.0,
        fresh_rate=configuration.head_rate,
        weight_decay=configuration.weight_decay,
        clip_norm=configuration.clip_norm,
    )
    dropout, how = configuration.architecture.dropout, loss_settings(configuration)

    @tf.function(autograph=False)
    def step(x: Any, y: Any, w: Any, seed: Any) -> Any:
        keep = tf.random.stateless_uniform(tf.shape(x), seed) >= dropout
        x = tf.where(keep, x / (1.0 - dropout), 0.0)
        with tf.GradientTape() as tape:
            logits = tf.matmul(x, layer.kernel.value) + layer.bias.value
            loss = classification_loss(tf.one_hot(y, layer.units), logits, w, **how)
        optimizer.apply(tape.gradient(loss, [v.value for v in optimizer.trained]))
        right = tf.argmax(logits, 1) == tf.cast(y, tf.int64)
        return loss, tf.reduce_mean(tf.cast(right, "float32"))

    return step, optimizer

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
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.optimization import classification_loss, learning_rate_factor
from dermlens.model.prediction import Predictor


def cached_features(
    model: Any, images: np.ndarray, path: Path, key: str, batch_size: int, advance: Any = None
) -> np.ndarray:
    """Return the pooled backbone features of all images, computing them only once.

    Args:
        model: Classifier with a frozen backbone.
        images: uint8 (N, H, W, 3).
        path: ``.npz`` file of the cache.
        key: What the features depend on; another key makes them again.
        batch_size: Images per pass.
        advance: Called with the number of images done.

    Returns:
        float32 (N, channels).
    """
    import keras

    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                return stored["features"]
    extractor = keras.Model(model.input, model.get_layer("pool").output)
    extractor_size = images.shape[1:3]
    predictor = Predictor(extractor, batch_size=batch_size)
    assert len(extractor_size) == 2
    features = predictor.logits(images, advance=advance)
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
        features: float32 (N, channels), of all images.
        labels: int (N,).
        rows: Rows of ``"train"`` and ``"validation"``.
        configuration: Rates, epochs, imbalance handling.
        report: Called after each epoch with its number, training figures and the validation
            logits.
    """
    import tensorflow as tf

    from dermlens.model.optimization import TwoRateOptimizer

    layer = model.get_layer("logits")
    optimizer = TwoRateOptimizer(
        [],
        layer.trainable_variables,
        pretrained_rate=0.0,
        fresh_rate=configuration.head_rate,
        weight_decay=configuration.weight_decay,
        clip_norm=configuration.clip_norm,
    )
    train = rows["train"]
    classes = len(configuration.architecture.classes)
    weights = sample_weights(labels[train], configuration.imbalance, classes)
    batch = min(configuration.batch_size, len(train))
    steps = len(train) // batch
    dropout = configuration.architecture.dropout

    @tf.function
    def step(x: Any, y: Any, w: Any, seed: Any) -> Any:
        keep = tf.random.stateless_uniform(tf.shape(x), seed) >= dropout
        x = tf.where(keep, x / (1.0 - dropout), 0.0)
        with tf.GradientTape() as tape:
            logits = tf.matmul(x, layer.kernel.value) + layer.bias.value
            loss = classification_loss(
                tf.one_hot(y, classes),
                logits,
                w,
                smoothing=configuration.label_smoothing,
                focal_gamma=configuration.focal_gamma,
            )
        optimizer.apply(tape.gradient(loss, [v.value for v in optimizer.trained]))
        return loss, tf.reduce_mean(
            tf.cast(tf.argmax(logits, 1) == tf.cast(y, tf.int64), "float32")
        )

    best, kept = -1.0, layer.get_weights()
    for epoch in range(configuration.head_epochs):
        order = epoch_order(
            labels[train], configuration.imbalance, classes, configuration.seed + 7919, epoch
        )
        sums = np.zeros(2)
        for number in range(steps):
            chosen = order[number * batch : (number + 1) * batch]
            done = epoch * steps + number
            optimizer.scale_rates(
                learning_rate_factor(done, steps, steps * configuration.head_epochs)
            )
            x, y = features[train[chosen]], labels[train[chosen]].astype(np.int32)
            seed = np.array([configuration.seed, done], np.int32)
            sums += [float(v) for v in step(x, y, weights[chosen], seed)]
        kernel, bias = layer.get_weights()
        logits = features[rows["validation"]] @ kernel + bias
        truth = labels[rows["validation"]]
        recalls = [np.mean(logits[truth == c].argmax(1) == c) for c in np.unique(truth)]
        if np.mean(recalls) > best:
            best, kept = float(np.mean(recalls)), layer.get_weights()
        report(epoch, {"train_loss": sums[0] / steps, "train_accuracy": sums[1] / steps}, logits)
    layer.set_weights(kept)

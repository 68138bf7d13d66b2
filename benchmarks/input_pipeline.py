"""Images per second of the input pipeline alone against what the training step takes.

Run ``python benchmarks/input_pipeline.py [--size 144x192]``. The pipeline must be at least three
times as fast as the step, or training waits for images.
"""

import argparse
import time

import numpy as np

from dermlens.cli_options import parse_size
from dermlens.data.augmentation import Augmentation
from dermlens.data.pipeline import TrainingSet, training_batches
from dermlens.labels import HAM10000
from dermlens.model.classifier import Architecture, build_classifier
from dermlens.model.optimization import classification_loss

BATCH, IMAGES, STEPS = 32, 1600, 6


def training_images(size: tuple[int, int]) -> TrainingSet:
    """Return random images; their content does not change the work."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (IMAGES, *size, 3), dtype=np.uint8)
    labels = generator.integers(0, 7, IMAGES).astype(np.int32)
    return TrainingSet(images, np.arange(IMAGES), labels, np.ones(IMAGES, np.float32))


def pipeline_rate(training: TrainingSet) -> float:
    """Return images per second of one epoch with the default augmentation."""
    rates = []
    for epoch in range(3):
        batches = training_batches(
            training,
            np.arange(IMAGES),
            batch_size=BATCH,
            augmentation=Augmentation(),
            epoch=epoch,
        )
        start = time.perf_counter()
        for _ in batches:
            pass
        rates.append(IMAGES / (time.perf_counter() - start))
    return float(np.median(rates))


def step_rate(size: tuple[int, int], precision: str) -> float:
    """Return images per second of a ResNet50 training step, all layers trained."""
    import keras
    import tensorflow as tf

    model = build_classifier(Architecture("resnet50", size), precision=precision)
    optimizer = keras.optimizers.AdamW(1e-4)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            truth = tf.one_hot(labels, len(HAM10000.codes))
            loss = classification_loss(truth, model(images, training=True), weights)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    images = tf.random.uniform((BATCH, *size, 3), 0, 255)
    labels, weights = tf.zeros(BATCH, tf.int32), tf.ones(BATCH)
    step(images, labels, weights)
    start = time.perf_counter()
    for _ in range(STEPS):
        step(images, labels, weights)
    return BATCH * STEPS / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="144x192", help="HxW")
    size = parse_size(parser.parse_args().size)
    alone = pipeline_rate(training_images(size))
    print(f"pipeline with augmentation at {size[0]}x{size[1]}: {alone:.0f} images/s")
    for precision in ("float32", "mixed_bfloat16"):
        appetite = step_rate(size, precision)
        print(f"training step, {precision}: {appetite:.1f} images/s; ratio {alone / appetite:.1f}")


if __name__ == "__main__":
    main()

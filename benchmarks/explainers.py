"""Seconds per image and efficiency of every method on ResNet50.

Run ``python benchmarks/explainers.py [--size 192x256] [--batch-size 16] [--images 1]``.
Efficiency is (passes x time of a bare pass in the same batch) / time of the method; 1 would mean
that nothing but the network costs time.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from bench_tools import PAGE, machine, markdown, write_section

from dermlens.cli_options import parse_size
from dermlens.explainers.registry import METHODS, create
from dermlens.model.classifier import Architecture, build_classifier


def drawn_images(count: int, size: tuple[int, int]) -> np.ndarray:
    """Return drawn lesions, uint8 (N, H, W, 3)."""
    from dermlens.data.synthetic import draw
    from dermlens.labels import HAM10000

    return np.stack([draw(HAM10000.codes[i % 7], i, size)[0] for i in range(count)])


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Return the fastest of some runs after a first one that traces."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def raw_passes(model: Any, size: tuple[int, int], batch: int) -> tuple[float, float]:
    """Return seconds per image of a bare forward, and of forward plus input gradient."""
    import tensorflow as tf

    images = tf.random.uniform((batch, *size, 3), 0, 255)

    @tf.function(autograph=False)
    def forward(pixels: tf.Tensor) -> tf.Tensor:
        return model(pixels, training=False)

    @tf.function(autograph=False)
    def both(pixels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            value = model(pixels, training=False)[:, 4]
        return tape.gradient(value, pixels)

    return (
        seconds(lambda: forward(images).numpy()) / batch,
        seconds(lambda: both(images).numpy()) / batch,
    )


def measure(name: str, model: Any, images: np.ndarray, batch: int) -> dict[str, Any]:
    """Time one method; its first image is only for tracing."""
    explainer = create(name, model)
    explainer.attribute(images[:1], 4, batch_size=batch, seed=1)
    family = METHODS[name].family
    work = images[:batch] if family == "activation" else images[1:2]
    result = explainer.attribute(work, 4, batch_size=batch, seed=0)
    return {
        "method": name,
        "forward": result.cost.forward / len(work),
        "backward": result.cost.backward / len(work),
        "seconds": result.cost.seconds / len(work),
    }


def main() -> None:
    """Measure every method and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="192x256", help="HxW")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md")
    given = parser.parse_args()
    size, batch = parse_size(given.size), given.batch_size
    model = build_classifier(Architecture("resnet50", size))
    images = drawn_images(batch, size)
    forward, both = raw_passes(model, size, batch)
    print(f"bare pass in batches of {batch}: F {forward:.4f} s, F+B {both:.4f} s per image")
    rows = [measure(name, model, images, batch) for name in given.methods.split(",")]
    table = pd.DataFrame(rows)
    limit = (table.forward - table.backward) * forward + table.backward * both
    table["efficiency"] = limit / table.seconds
    print(table.round(3).to_string(index=False))
    if given.publish:
        intro = f"{machine()} {given.size}, batches of {batch}, untrained ResNet50; a bare pass "
        intro += f"takes {forward:.4f} s, with gradient {both:.4f} s."
        write_section(PAGE, "efficiency", f"{intro}\n\n{markdown(table.round(3))}")


if __name__ == "__main__":
    main()

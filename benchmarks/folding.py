"""What a pass of ResNet50 costs, with and without normalizations folded into the convolutions.

Run ``python benchmarks/folding.py [--bundle BUNDLE] [--data DATA] [--publish]``. The two are timed
in turn, with and without the gradient with respect to the pixels; beside the times stands how far
their logits differ.
"""

from typing import Any

import numpy as np
import pandas as pd
from bench_tools import (
    PAGE,
    alternating,
    arguments,
    given_images,
    given_model,
    machine,
    markdown,
    write_section,
)

from dermlens.cli_options import parse_size
from dermlens.explainers.folding import folded_logits

BATCHES = (1, 8, 16, 32)


def passes(model: Any) -> dict[str, Any]:
    """Return compiled functions of images (n, H, W, 3) by name."""
    import tensorflow as tf

    def plain(images: Any) -> Any:
        return model(images, training=False)

    def folded(images: Any) -> Any:
        return folded_logits(model, images)

    def with_gradient(run: Any) -> Any:
        def both(images: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                value = run(images)[:, 4]
            return tape.gradient(value, images)

        return both

    made = {"plain": plain, "folded": folded}
    made |= {"plain, gradient": with_gradient(plain), "folded, gradient": with_gradient(folded)}
    return {name: tf.function(run, autograph=False) for name, run in made.items()}


def measure(model: Any, images: np.ndarray, repeats: int) -> dict[str, Any]:
    """Return milliseconds per image of every kind of pass in one batch."""
    import tensorflow as tf

    pixels = tf.constant(images.astype(np.float32))
    functions = passes(model)
    works = [lambda run=run: run(pixels).numpy() for run in functions.values()]
    medians = np.median(alternating(works, repeats), axis=0) / len(images) * 1000
    times = dict(zip(functions, medians.round(1), strict=True))
    difference = np.abs(functions["plain"](pixels) - functions["folded"](pixels)).max()
    return {"batch": len(images), **times, "largest difference of logits": f"{difference:.1e}"}


def main() -> None:
    """Print, and publish if asked, milliseconds per image."""
    parser = arguments(__doc__)
    parser.add_argument("--size", default="192x256", help="HxW")
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md")
    given = parser.parse_args()
    size = parse_size(given.size)
    model = given_model(given.bundle, size)
    images = given_images(given.data, max(BATCHES), size)
    repeats = 1 if given.quick else 7
    table = pd.DataFrame(measure(model, images[:batch], repeats) for batch in BATCHES)
    text = f"{machine()} {given.size}; milliseconds per image, medians of {repeats}.\n\n"
    text += markdown(table)
    print(text)
    if given.publish:
        write_section(PAGE, "folding", text)


if __name__ == "__main__":
    main()

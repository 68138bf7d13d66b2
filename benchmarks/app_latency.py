"""From the upload to the first probabilities and Grad-CAM on the page, against a bare pass.

Run ``python benchmarks/app_latency.py [BUNDLE] [--repeats 20]``. The page is driven as a browser
drives it: upload, then one event; the time of the upload is counted. The goal is at most 1.5
passes and 300 ms; probabilities and Grad-CAM arrive in one answer from one pass.
"""

import argparse
import io
import time
from pathlib import Path
from typing import Any

import numpy as np


def drawn_file(size: tuple[int, int] = (450, 600)) -> bytes:
    """Return a drawn lesion as the bytes of a JPEG file."""
    from PIL import Image

    from dermlens.data.synthetic import draw

    stream = io.BytesIO()
    Image.fromarray(draw("mel", 3, size)[0]).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def pass_seconds(bundle: Any, repeats: int) -> list[float]:
    """Return the durations of a traced forward pass of one image, without anything else."""
    import tensorflow as tf

    forward = tf.function(lambda images: bundle.model(images, training=False))
    image = tf.random.uniform((1, *bundle.input_size, 3), 0, 255)
    forward(image)
    return [timed(lambda: forward(image).numpy()) for _ in range(repeats)]


def timed(work: Any) -> float:
    """Return how many seconds some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def visit(client: Any, address: str, content: bytes) -> None:
    """Upload an image over plain HTTP and wait for the answer of ``/analyze``."""
    sent = client.post(f"{address}gradio_api/upload", files={"files": ("lesion.jpg", content)})
    file = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}
    began = client.post(
        f"{address}gradio_api/call/analyze", json={"data": [file, "viridis", "automatic"]}
    )
    event = began.json()["event_id"]
    with client.stream("GET", f"{address}gradio_api/call/analyze/{event}") as answer:
        lines = list(answer.iter_lines())
    assert "event: complete" in lines, lines[:4]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()

    import httpx

    from dermlens.model.bundle import find_bundle, load_bundle
    from dermlens.serve.app import launch

    path = find_bundle(options.bundle)
    page = launch(path, block=False)
    content = drawn_file()
    with httpx.Client(timeout=60) as client:
        visit(client, page.local_url, content)
        bare = pass_seconds(load_bundle(path), options.repeats)
        visits = [
            timed(lambda: visit(client, page.local_url, content)) for _ in range(options.repeats)
        ]
    page.close()
    for name, seconds in (("bare pass", bare), ("upload to answer", visits)):
        low, middle, high = 1000 * np.quantile(seconds, [0.1, 0.5, 0.9])
        print(f"{name}: median {middle:.0f} ms (10th to 90th percentile {low:.0f} to {high:.0f})")
    goal = 1.5 * np.median(bare) + 0.3
    print(f"goal, 1.5 passes and 300 ms: {1000 * goal:.0f} ms")
    raise SystemExit(bool(np.median(visits) > goal))


if __name__ == "__main__":
    main()

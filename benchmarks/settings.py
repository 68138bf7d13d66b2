"""What was tried to make a pass of ResNet50 cheaper by settings of TensorFlow alone.

Run ``python benchmarks/settings.py [--bundle BUNDLE] [--data DATA] [--publish]``. Every variant
runs in a process of its own, since most settings count only before TensorFlow starts. The default
is measured first and last: how far the two differ is what the machine's own unrest makes.
``--variant NAME`` measures one variant and prints JSON.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
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
from dermlens.progress import say

QUICK_SIZE = "64x64"
TARGET = 4
"""Class whose logit's gradient is taken; which one makes no difference to the time."""
TIME_LIMIT = 1800
MARK = "RESULT "
ERROR_LENGTH = 160


@dataclass(frozen=True)
class Variant:
    """One way to run a pass.

    Attributes:
        name: In the table.
        environment: Variables set before TensorFlow starts.
        intra: Threads within an operation; 0 for TensorFlow's choice.
        inter: Operations at a time; 0 for TensorFlow's choice.
        batch: Images per pass; 0 for what the command line says.
        compiled: Whether XLA compiles the pass.
        layout: ``"NHWC"``, or ``"NCHW"``: a Keras model of that layout, pixels transposed.
        precision: Of the Keras model.
        rewritten: Whether TensorFlow's graph rewriting puts bfloat16 where it sees fit.
    """

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    intra: int = 0
    inter: int = 0
    batch: int = 0
    compiled: bool = False
    layout: str = "NHWC"
    precision: str = "float32"
    rewritten: bool = False


def variants() -> list[Variant]:
    """Return everything that is tried, the default first and last."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = sorted({1, 2, cores or 1})
    return [
        Variant("default"),
        Variant("XLA", compiled=True),
        *[Variant(f"{n} intra-op threads", intra=n) for n in threads],
        *[Variant(f"{n} inter-op threads", inter=n) for n in (1, 2)],
        Variant("NCHW", layout="NCHW"),
        *[Variant(f"batches of {n}", batch=n) for n in (1, 4, 8, 16, 32, 64)],
        Variant("oneDNN off", {"TF_ENABLE_ONEDNN_OPTS": "0"}),
        Variant("oneDNN off, NCHW", {"TF_ENABLE_ONEDNN_OPTS": "0"}, layout="NCHW"),
        Variant("bfloat16 by ONEDNN_DEFAULT_FPMATH_MODE", {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}),
        Variant("bfloat16 by TF_SET_ONEDNN_FPMATH_MODE", {"TF_SET_ONEDNN_FPMATH_MODE": "BF16"}),
        Variant("bfloat16 by graph rewriting", rewritten=True),
        Variant("bfloat16 by Keras' mixed_bfloat16", precision="mixed_bfloat16"),
        Variant("default, again"),
    ]


def channels_first(model: Any) -> Callable[[Any], Any]:
    """Return a pass through the same network built for NCHW, pixels transposed before it."""
    import keras
    import tensorflow as tf

    from dermlens.model.classifier import backbone_layers

    height, width = model.input_shape[1:3]
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        backbone = keras.applications.ResNet50(
            include_top=False, weights=None, input_shape=(3, height, width)
        )
    finally:
        keras.config.set_image_data_format(before)
    for layer in backbone_layers(model):
        backbone.get_layer(layer.name).set_weights(layer.get_weights())
    center, last = model.get_layer("center"), model.get_layer("logits")

    def run(images: Any) -> Any:
        pixels = tf.transpose(center(images[..., ::-1]), (0, 3, 1, 2))
        return last(tf.reduce_mean(backbone(pixels, training=False), axis=(2, 3)))

    return run


def in_precision(model: Any, precision: str, given: argparse.Namespace) -> Any:
    """Return the same network in another precision."""
    from dermlens.model.bundle import load_bundle
    from dermlens.model.classifier import Architecture, build_classifier

    architecture = load_bundle(given.bundle).architecture if given.bundle else Architecture()
    architecture = replace(architecture, input_size=parse_size(given.size))
    other = build_classifier(architecture, precision=precision)
    other.set_weights(model.get_weights())
    return other


def prepared(variant: Variant, given: argparse.Namespace) -> tuple[Any, Callable[[Any], Any]]:
    """Return pixels, float32 (n, H, W, 3), and a variant's pass, TensorFlow set up for it."""
    import tensorflow as tf

    from dermlens.explainers.base import call

    # Before anything runs: threads cannot be changed afterwards.
    if variant.intra:
        tf.config.threading.set_intra_op_parallelism_threads(variant.intra)
    if variant.inter:
        tf.config.threading.set_inter_op_parallelism_threads(variant.inter)
    if variant.rewritten:
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})
    size = parse_size(given.size)
    model = given_model(given.bundle, size)
    images = given_images(given.data, variant.batch or given.batch_size, size)
    pixels = tf.constant(images.astype(np.float32))
    if variant.layout == "NCHW":
        return pixels, channels_first(model)
    if variant.precision != "float32":
        model = in_precision(model, variant.precision, given)
    return pixels, lambda batch: call(model, batch)


def measure(variant: Variant, given: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds per image and logits of a variant, in this process."""
    import tensorflow as tf

    pixels, network = prepared(variant, given)

    def both(images: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            value = network(images)[:, TARGET]
        return tape.gradient(value, images)

    compiled = True if variant.compiled else None
    result: dict[str, Any] = {}
    for name, run in (("forward", network), ("gradient", both)):
        function = tf.function(run, autograph=False, jit_compile=compiled)
        try:
            if name == "forward":
                result["logits"] = function(pixels).numpy().tolist()
            seconds = alternating([partial(_run, function, pixels)], given.repeats)
            result[name] = float(np.median(seconds)) / len(pixels) * 1000
        except (tf.errors.OpError, ValueError, NotImplementedError) as error:
            result[f"{name} error"] = in_words(str(error))
    return result


def _run(function: Any, pixels: Any) -> np.ndarray:
    return function(pixels).numpy()


def in_words(message: str) -> str:
    """Return the sentence of an error that says what is wrong, fit for a table."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # Most lines say where in the graph, not what.
    telling = [line for line in lines if re.search(r"support|not |only |fail|Error: ", line)]
    chosen = re.sub(r"\[\[.*|\{\{.*?\}\}", "", (telling or lines or ["no message"])[0])
    chosen = " ".join(chosen.replace("|", "/").split())
    return chosen if len(chosen) <= ERROR_LENGTH else f"{chosen[:ERROR_LENGTH]}…"


def in_own_process(variant: Variant, given: argparse.Namespace) -> dict[str, Any]:
    """Return what ``measure`` returns, from a new process with the variant's environment."""
    command = [sys.executable, __file__, "--variant", variant.name, "--size", given.size]
    command += ["--batch-size", str(given.batch_size), "--repeats", str(given.repeats)]
    for name in ("bundle", "data"):
        if getattr(given, name) is not None:
            command += [f"--{name}", str(getattr(given, name))]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **variant.environment}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
        )
    except subprocess.TimeoutExpired:
        return {"forward error": f"not done after {TIME_LIMIT // 60} minutes"}
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if found:
        return json.loads(found[-1].removeprefix(MARK))
    last = done.stderr.strip().splitlines()[-1:] or [f"ended with code {done.returncode}"]
    return {"forward error": in_words(last[0])}


def row(variant: Variant, result: dict[str, Any], reference: dict[str, Any]) -> dict[str, str]:
    """Return a variant's row of the table; ``reference`` is the default's result."""
    difference = ""
    if "logits" in result and "logits" in reference:
        mine, other = np.array(result["logits"]), np.array(reference["logits"])
        common = min(len(mine), len(other))
        difference = f"{np.abs(mine[:common] - other[:common]).max():.1e}"
    values = [
        f"{result[name]:.1f}" if name in result else result.get(f"{name} error", "")
        for name in ("forward", "gradient")
    ]
    return {
        "variant": variant.name,
        "ms per image": values[0],
        "with gradient": values[1],
        "largest difference of logits": difference,
    }


def report(given: argparse.Namespace) -> str:
    """Measure every variant and return the section."""
    first = machine()
    rows: list[dict[str, str]] = []
    reference: dict[str, Any] = {}
    for variant in variants():
        result = in_own_process(variant, given)
        reference = reference or result
        rows.append(row(variant, result, reference))
        say(", ".join(f"{name} {value}" for name, value in rows[-1].items()))
    scale = np.abs(reference.get("logits", [0.0])).max()
    return (
        f"{first} {given.size}, batches of {given.batch_size} unless said otherwise, "
        f"normalizations folded; medians of {given.repeats}, each variant in a process of its "
        f"own. The largest logit is {scale:.2g}.\n\n{markdown(pd.DataFrame(rows))}"
    )


def main() -> None:
    """Print, and publish if asked, milliseconds per image of every variant."""
    parser = arguments(__doc__)
    parser.add_argument("--size", default="192x256", help="HxW; with --quick 64x64")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--variant", help="measure this one alone and print JSON")
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md")
    given = parser.parse_args()
    if given.quick:
        given.size, given.repeats = QUICK_SIZE, 1
    if given.variant:
        chosen = {variant.name: variant for variant in variants()}
        print(MARK + json.dumps(measure(chosen[given.variant], given)))
        return
    text = report(given)
    print(text)
    if given.publish:
        write_section(PAGE, "settings", text)


if __name__ == "__main__":
    main()

"""This package against public ones: same network, same images, same budgets, in one run.

For every contest both sides get the same compiled network, the same superpixels or patches, the
same fill and the same number of passes; works are timed in turn. Beside every ratio stands how far
the maps agree, and, where a method draws masks at random, how far each side agrees with itself
under another seed: a faster wrong map does not count. With a bundle, methods that only look at
scores run twice, evaluating the network and its int8 copy, which is what they do by default where
it was measured to give the same maps.

Run ``python benchmarks/peers.py [--bundle BUNDLE] [--data DATA] [--quick]``. ``xplique`` refuses
TensorFlow 2.21 unless installed by ``pip install --no-deps xplique==2.0.2``; without it, its rows
say so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench_tools import (
    alternating,
    arguments,
    correlation,
    given_images,
    machine,
    markdown,
    model_and_scorer,
    publish,
)

from dermlens.cli_options import parse_size
from dermlens.explainers.baselines import baseline_image
from dermlens.explainers.layers import find_features
from dermlens.explainers.registry import METHODS, create
from dermlens.explainers.superpixels import painted, superpixels

TARGET = 4
Maps = Callable[[int], np.ndarray]
"""From a seed to maps (N, H, W)."""


@dataclass(frozen=True)
class Budgets:
    """How much every method may spend.

    Attributes:
        images: Images of the class activation maps, which are explained together.
        samples: Masks of LIME and Kernel SHAP.
        points: Points of Integrated Gradients, and samples of GradientSHAP.
        repeats: How often each side is timed.
    """

    images: int = 8
    samples: int = 500
    points: int = 50
    repeats: int = 5


QUICK = Budgets(images=2, samples=120, points=4, repeats=1)


@dataclass(frozen=True)
class Contest:
    """One method of ours against one peer's.

    Attributes:
        method: Name in the registry.
        peer: Package and class.
        budget: In words.
        ours: Make the maps; by name of the scorer, the default one last.
        theirs: Make the peer's.
        random: True if the peer's maps depend on a seed.
    """

    method: str
    peer: str
    budget: str
    ours: dict[str, Maps]
    theirs: Maps
    random: bool = False


class Ring:
    """The network, the images and the calls that all contests share."""

    def __init__(
        self,
        model: Any,
        images: np.ndarray,
        batch: int,
        budgets: Budgets,
        scorer: Any | None = None,
    ) -> None:
        import tensorflow as tf

        self.model, self.batch, self.budgets, self.scorer = model, batch, budgets, scorer
        self.images = images.astype(np.float32)
        self.image = self.images[0]
        self.baseline = baseline_image(self.image, "border")
        self.labels = superpixels(self.image, 50)
        shape = (None, *model.input_shape[1:])
        self.forward = tf.function(
            lambda pixels: model(pixels, training=False),
            input_signature=[tf.TensorSpec(shape, tf.float32)],
        )

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Return logits of any number of images, in batches."""
        pixels = np.asarray(pixels, np.float32)
        parts = range(0, len(pixels), self.batch)
        return np.concatenate([self.forward(pixels[i : i + self.batch]).numpy() for i in parts])

    def game(self, kept: np.ndarray) -> np.ndarray:
        """Return the target's logit with superpixels kept (n, M), made batch by batch."""
        rows = []
        for start in range(0, len(kept), self.batch):
            keep = np.asarray(kept[start : start + self.batch])[:, self.labels][..., None] > 0.5
            rows.append(self.logits(np.where(keep, self.image, self.baseline))[:, TARGET])
        return np.concatenate(rows)

    def ours(self, name: str, *, one: bool = True, **options: Any) -> dict[str, Maps]:
        """Return calls of a method of this package by scorer, built once."""
        images = self.image[None] if one else self.images
        copied = self.scorer is not None and METHODS[name].family == "perturbation"
        scorers: dict[str, Any] = {"float32": {}}
        scorers |= {"int8": {"scorer": self.scorer}} if copied else {}

        def maps(explainer: Any) -> Maps:
            return lambda seed: (
                explainer.attribute(images, TARGET, batch_size=self.batch, seed=seed).maps
            )

        return {
            key: maps(create(name, self.model, **options, **chosen))
            for key, chosen in scorers.items()
        }


def cam_contests(ring: Ring) -> Iterator[Contest]:
    """Class activation maps against tf-keras-vis."""
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
    from tf_keras_vis.utils.scores import CategoricalScore

    layer, together = find_features(ring.model).layer, len(ring.images)
    for name, kind in (("grad_cam", Gradcam), ("grad_cam_plus_plus", GradcamPlusPlus)):
        peer = kind(ring.model, clone=False)

        def theirs(seed: int, peer: Any = peer) -> np.ndarray:
            import tensorflow as tf

            options: dict[str, Any] = {"seek_penultimate_conv_layer": False, "expand_cam": False}
            made = peer(
                CategoricalScore([TARGET] * together),
                ring.images,
                penultimate_layer=layer,
                normalize_cam=False,
                **options,
            )
            return tf.image.resize(np.asarray(made)[..., None], ring.image.shape[:2]).numpy()[
                ..., 0
            ]

        budget = f"{together} images together"
        # Drawn as the peer draws, so that the agreement is that of the maps.
        ours = ring.ours(name, one=False, registration="tiles")
        yield Contest(name, f"tf-keras-vis {kind.__name__}", budget, ours, theirs)


def shap_contests(ring: Ring) -> Iterator[Contest]:
    """Kernel SHAP, the partition explainer and expected gradients against shap."""
    import shap

    pieces, samples, points = ring.labels.max() + 1, ring.budgets.samples, ring.budgets.points
    ours = ring.ours("kernel_shap", superpixels=ring.labels, n_samples=samples)

    def kernel(seed: int) -> np.ndarray:
        np.random.seed(seed)  # noqa: NPY002 - the peer draws from the global generator
        explainer = shap.KernelExplainer(ring.game, np.zeros((1, pieces)))
        values = explainer.shap_values(
            np.ones((1, pieces)), nsamples=samples - 2, l1_reg=0, silent=True
        )
        return painted(np.ravel(values)[None], ring.labels)

    yield Contest("kernel_shap", "shap KernelExplainer", f"{samples} passes", ours, kernel, True)

    def partition(seed: int) -> np.ndarray:
        masker = shap.maskers.Image(ring.baseline, ring.image.shape)
        explainer = shap.PartitionExplainer(lambda x: ring.logits(x)[:, [TARGET]], masker)
        values = explainer(
            ring.image[None], max_evals=samples, batch_size=ring.batch, silent=True
        ).values
        return np.asarray(values).reshape(1, *ring.image.shape).sum(axis=-1)

    # An explainer of its own: the one above remembers its evaluations.
    again = ring.ours("gp_shap", superpixels=ring.labels, n_samples=samples)
    yield Contest("gp_shap", "shap PartitionExplainer", f"{samples} passes", again, partition)

    import keras

    # Its cost grows with the classes, so it gets a network of the one class that is explained.
    pick = keras.layers.Dense(1, use_bias=False, trainable=False)
    single = keras.Model(ring.model.input, pick(ring.model.output))
    pick.set_weights([np.eye(ring.model.output_shape[-1], dtype=np.float32)[:, [TARGET]]])

    def gradient(seed: int) -> np.ndarray:
        explainer = shap.GradientExplainer(single, ring.baseline[None], batch_size=ring.batch)
        values = explainer.shap_values(ring.image[None], nsamples=points, rseed=seed)
        return np.asarray(values).reshape(1, *ring.image.shape).sum(axis=-1)

    expected = ring.ours("gradient_shap", n_samples=points, baseline=["border"], noise=0.0)
    budget = f"{points} points, one background"
    yield Contest("gradient_shap", "shap GradientExplainer", budget, expected, gradient, True)


def lime_contests(ring: Ring) -> Iterator[Contest]:
    """LIME against lime."""
    from lime.lime_image import LimeImageExplainer

    samples = ring.budgets.samples

    def theirs(seed: int) -> np.ndarray:
        explanation = LimeImageExplainer(random_state=seed).explain_instance(
            ring.image.astype(np.double),
            ring.logits,
            labels=(TARGET,),
            hide_color=tuple(ring.baseline[0, 0]),
            top_labels=None,
            num_features=1000,
            num_samples=samples,
            batch_size=ring.batch,
            segmentation_fn=lambda _: ring.labels,
        )
        weights = np.array([weight for _, weight in sorted(explanation.local_exp[TARGET])])
        return painted(weights[None], ring.labels)

    ours = ring.ours("lime", superpixels=ring.labels, n_samples=samples)
    yield Contest("lime", "lime LimeImageExplainer", f"{samples} passes", ours, theirs, True)


def loop_contests(ring: Ring) -> Iterator[Contest]:
    """Occlusion and Integrated Gradients against loops as one writes them by hand."""
    import tensorflow as tf

    from dermlens.explainers.occlusion import Occlusion, spread_over_boxes

    size = (ring.image.shape[0], ring.image.shape[1])
    boxes = Occlusion(ring.model).boxes(size)

    def occlusion(seed: int) -> np.ndarray:
        pixels = np.repeat(ring.image[None], len(boxes) + 1, axis=0)
        for position, (top, left, bottom, right) in enumerate(boxes, start=1):
            pixels[position, top:bottom, left:right] = ring.baseline[top:bottom, left:right]
        scores = ring.model.predict(pixels, batch_size=ring.batch, verbose=0)[:, TARGET]
        return spread_over_boxes((scores[0] - scores[1:])[None], boxes, size)

    yield Contest(
        "occlusion",
        "loop, model.predict",
        f"{len(boxes) + 1} passes",
        ring.ours("occlusion"),
        occlusion,
    )
    points = ring.budgets.points

    def integrated(seed: int) -> np.ndarray:
        total = np.zeros_like(ring.image)
        places = (np.arange(points, dtype=np.float32) + 0.5) / points
        for start in range(0, points, ring.batch):
            place = places[start : start + ring.batch, None, None, None]
            pixels = tf.constant(ring.baseline + place * (ring.image - ring.baseline))
            with tf.GradientTape() as tape:
                tape.watch(pixels)
                score = ring.model(pixels, training=False)[:, TARGET]
            total += tape.gradient(score, pixels).numpy().sum(axis=0)
        return ((ring.image - ring.baseline) * total / points).sum(axis=-1)[None]

    ours = ring.ours("integrated_gradients", n_steps=points, tolerance=None)
    yield Contest(
        "integrated_gradients", "loop, GradientTape", f"{points} points", ours, integrated
    )


def xplique_attributions() -> Any:
    """Return xplique's methods; it cannot be imported as it is beside this TensorFlow."""
    import sys
    from importlib import import_module
    from unittest.mock import MagicMock

    # It imports these for methods that are not measured here; they need an older TensorFlow.
    for name in ("tensorflow_probability", "einops"):
        sys.modules.setdefault(name, MagicMock())
    return import_module("xplique.attributions")


def xplique_contests(ring: Ring) -> Iterator[Contest]:
    """Integrated Gradients, occlusion, LIME and Kernel SHAP against xplique."""
    import tensorflow as tf

    peer = xplique_attributions()
    goal = tf.one_hot([TARGET], ring.model.output_shape[-1])
    samples, points, batch = ring.budgets.samples, ring.budgets.points, ring.batch
    # Divides the default sizes. A border left over is covered by ours and not by this peer.
    side = 32
    segments = tf.constant(ring.labels)

    def call(explainer: Any) -> Maps:
        return lambda seed: np.asarray(explainer(ring.image[None], goal)).reshape(
            1, *ring.image.shape[:2]
        )

    yield Contest(
        "integrated_gradients",
        "xplique IntegratedGradients",
        f"{points} points, black",
        ring.ours("integrated_gradients", n_steps=points, tolerance=None, baseline="black"),
        call(peer.IntegratedGradients(ring.model, batch_size=batch, steps=points, reducer="sum")),
    )
    yield Contest(
        "occlusion",
        "xplique Occlusion",
        f"patch {side} stride {side}, black",
        ring.ours("occlusion", patch_size=side, stride=side, baseline="black"),
        call(
            peer.Occlusion(
                ring.model,
                batch_size=batch,
                patch_size=side,
                patch_stride=side,
                occlusion_value=0.0,
            )
        ),
    )
    shared: dict[str, Any] = {
        "batch_size": batch,
        "nb_samples": samples,
        "map_to_interpret_space": lambda _: segments,
        "ref_value": ring.baseline[0, 0],
    }
    # Its LIME measures distances between pixels of 0..255, so that all similarities vanish and it
    # weighs all masks alike; the same here, so that both sides answer the same question.
    same = {"kernel_width": 1e3, "ridge": 2.0}
    for name, kind, options in (("lime", peer.Lime, same), ("kernel_shap", peer.KernelShap, {})):
        ours = ring.ours(name, superpixels=ring.labels, n_samples=samples, **options)
        theirs = call(kind(ring.model, **shared))
        yield Contest(name, f"xplique {kind.__name__}", f"{samples} passes", ours, theirs, True)


COLUMNS = [
    "method", "peer", "budget", "scorer", "float32_s", "int8_s", "theirs_s", "ratio_float32",
    "ratio", "lowest", "highest", "agreement_float32", "agreement", "ours_itself", "peer_itself",
]  # fmt: skip

GROUPS: dict[str, Callable[[Ring], Iterator[Contest]]] = {
    "tf-keras-vis": cam_contests,
    "shap": shap_contests,
    "lime": lime_contests,
    "loop": loop_contests,
    "xplique": xplique_contests,
}


def hold(contest: Contest, repeats: int) -> dict[str, Any]:
    """Return one row: times, ratios with their spread, agreement, and what is noise of a side."""
    default = list(contest.ours)[-1]
    draws = (0, 1) if contest.random else (0,)
    first = {key: maps(0) for key, maps in contest.ours.items()}
    ours = [first[default], *(contest.ours[default](seed) for seed in draws[1:])]
    theirs = [contest.theirs(seed) for seed in draws]
    row: dict[str, Any] = {
        "method": contest.method,
        "peer": contest.peer,
        "budget": contest.budget,
        "scorer": default,
        "agreement_float32": np.mean([correlation(first["float32"], b) for b in theirs]),
        "agreement": np.mean([correlation(a, b) for a in ours for b in theirs]),
    }
    if contest.random:
        row["ours_itself"], row["peer_itself"] = correlation(*ours), correlation(*theirs)
    # A new seed every time: evaluations of a known image and seed would be remembered.
    seeds = count(2)
    sides = [*contest.ours.values(), contest.theirs]
    works = [lambda side=side: side(next(seeds)) for side in sides]
    seconds = alternating(works, repeats)
    ratios = seconds[:, -1:] / seconds[:, :-1]
    middle = np.median(seconds, axis=0)
    return row | {
        "float32_s": float(middle[0]),
        "int8_s": float(middle[1]) if default == "int8" else float("nan"),
        "theirs_s": float(middle[-1]),
        "ratio_float32": float(np.median(ratios[:, 0])),
        "ratio": float(np.median(ratios[:, -1])),
        "lowest": float(ratios[:, -1].min()),
        "highest": float(ratios[:, -1].max()),
    }


def run(ring: Ring, groups: list[str]) -> pd.DataFrame:
    """Hold the contests of some groups; a peer that does not run gets a row that says why."""
    rows, budgets = [], ring.budgets
    for name in groups:
        group = GROUPS[name]
        try:
            for contest in group(ring):
                try:
                    rows.append(hold(contest, budgets.repeats))
                except Exception as error:
                    rows.append(_failed(contest.method, contest.peer, error))
                print(rows[-1], flush=True)
        except ImportError as error:
            rows.append(_failed("", name, error))
    return pd.DataFrame(rows)


def _failed(method: str, peer: str, error: Exception) -> dict[str, Any]:
    lines = str(error).splitlines() or [type(error).__name__]
    return {"method": method, "peer": peer, "budget": f"does not run: {lines[0][:80]}"}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table for people."""

    def number(value: float, digits: int) -> str:
        return "" if pd.isna(value) else f"{value:.{digits}f}"

    rows = []
    for row in table.to_dict("records"):
        spread = f"{number(row['lowest'], 1)}–{number(row['highest'], 1)}"
        rows.append(
            {
                "method": row["method"],
                "peer": row["peer"],
                "budget": row["budget"],
                "float32 (s)": number(row["float32_s"], 2),
                "int8 (s)": number(row["int8_s"], 2),
                "theirs (s)": number(row["theirs_s"], 2),
                "times faster, float32": number(row["ratio_float32"], 2),
                "times faster": number(row["ratio"], 2),
                "spread": "" if pd.isna(row["ratio"]) else spread,
                "r, float32": number(row["agreement_float32"], 3),
                "r": number(row["agreement"], 3),
                "ours with itself": number(row["ours_itself"], 3),
                "peer with itself": number(row["peer_itself"], 3),
            }
        )
    return pd.DataFrame(rows)


def figure(tables: dict[str, pd.DataFrame]) -> Any:
    """Draw the ratios with their spread, one color per input size."""
    from matplotlib.figure import Figure

    names = list(
        dict.fromkeys(f"{r.method} / {r.peer}" for t in tables.values() for r in t.itertuples())
    )
    drawn = Figure(figsize=(9, 1 + 0.4 * len(names)), layout="constrained")
    axes = drawn.subplots()
    for shift, (size, table) in enumerate(tables.items()):
        known = table.dropna(subset=["ratio"])
        height = [names.index(f"{r.method} / {r.peer}") + 0.25 * shift for r in known.itertuples()]
        spread = [known.ratio - known.lowest, known.highest - known.ratio]
        axes.errorbar(known.ratio, height, xerr=spread, fmt="o", label=size)
    axes.axvline(1.0, color="0.5", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 3, 5, 10, 20, 50], ["½", "1", "2", "3", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_xlabel("times faster than the peer (median and range over repeats)")
    axes.legend()
    return drawn


def main() -> None:
    """Hold the contests at every size and write table and figure."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", default="192x256,224x224", help="HxW, separated by commas")
    parser.add_argument("--peers", default=",".join(GROUPS), help="separated by commas")
    parser.add_argument("--repeats", type=int, help="how often each side is timed; default 5")
    given = parser.parse_args()
    budgets, text = QUICK if given.quick else Budgets(), [machine()]
    budgets = replace(budgets, repeats=given.repeats or budgets.repeats)
    tables: dict[str, pd.DataFrame] = {}
    out: Path | None = given.out or (Path("bench-quick") if given.quick else None)
    for size in given.sizes.split(","):
        choice = "int8" if given.bundle else "float32"
        model, scorer = model_and_scorer(given.bundle, parse_size(size), choice)
        images = given_images(given.data, budgets.images, parse_size(size))
        ring = Ring(model, images, given.batch_size, budgets, scorer)
        table = run(ring, given.peers.split(","))
        tables[size] = table.reindex(columns=COLUMNS)
        median = tables[size].ratio.median()
        text += [f"### {size}, batches of {given.batch_size}", markdown(readable(tables[size]))]
        plain = tables[size].ratio_float32
        text += [
            f"Median ratio {median:.2f}, lowest {tables[size].ratio.min():.2f}; all in float32 "
            f"{plain.median():.2f} and {plain.min():.2f}."
        ]
    publish(out, "peers", "\n\n".join(text), figure(tables))


if __name__ == "__main__":
    main()

"""Six explanations of an image with default settings, here and with public packages.

What they cost: passes in units of a forward pass, and seconds, on one image. What they are worth:
areas under the deletion and insertion curves and localization of the lesion, on many images, as
differences of pairs. Public packages run with *their* defaults (``PEERS``), so that budgets differ;
``peers.py`` compares at equal budgets.

    python benchmarks/defaults.py --data DATA [--bundle BUNDLE] [--images 100] [--pieces FOLDER]

Every explained image is kept as a small file in ``--pieces``: run again, and it goes on. On the
images of the second part, ``--scorer int8`` lets both sides' LIME, Kernel SHAP and occlusion
evaluate the bundle's int8 copy, since 8,600 passes an image would take hours otherwise.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench_tools import arguments, machine, markdown, publish
from peers import xplique_attributions

from dermlens.data.images import load_image, load_mask
from dermlens.data.manifest import read_manifest, sample_in_proportion, select_split
from dermlens.errors import UsageError
from dermlens.explainers.base import Explainer
from dermlens.explainers.layers import find_features
from dermlens.explainers.occlusion import Occlusion
from dermlens.explainers.registry import METHODS, SIX, create_several
from dermlens.explainers.superpixels import painted
from dermlens.files import read_json, write_json
from dermlens.model.bundle import Bundle, find_bundle, load_bundle
from dermlens.model.scorers import choose_scorers
from dermlens.quality import metrics
from dermlens.quality.evaluations import Evaluations
from dermlens.quality.statistics import cluster_intervals
from explainers import raw_passes

PEERS = {
    "grad_cam": "tf-keras-vis Gradcam",
    "grad_cam_plus_plus": "tf-keras-vis GradcamPlusPlus",
    "integrated_gradients": "xplique IntegratedGradients: 50 steps from black",
    "occlusion": "xplique Occlusion: patch 3, stride 3, black",
    "lime": "lime LimeImageExplainer: quickshift, 1,000 samples in batches of 10, mean color",
    "gp_shap": "shap KernelExplainer: 2 M + 2,048 samples; 50 SLIC pieces, mean color",
}
FAITHFUL = ("deletion", "insertion")
LOCALIZATION = {
    "relevance mass": "relevance_mass",
    "relevance rank": "relevance_rank",
    "pixel AUC": "pixel_auc",
    "pointing game": "pointing_game",
}
LOWER_IS_BETTER = ("deletion",)
XPLIQUE_PATCH = 3
SMALLEST_SHOWN = 0.0005
Logits = Callable[[np.ndarray], np.ndarray]


@dataclass
class Counter:
    """Logits in batches, and how many images went through.

    Attributes:
        evaluate: From float32 images (n, H, W, 3) to logits (n, C).
        batch: Images per pass.
        seen: Images so far.
    """

    evaluate: Logits
    batch: int
    seen: int = 0

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return logits of any number of images."""
        pixels = np.asarray(pixels, np.float32)
        self.seen += len(pixels)
        parts = range(0, len(pixels), self.batch)
        return np.concatenate([self.evaluate(pixels[i : i + self.batch]) for i in parts])


class Peers:
    """The six methods of public packages with their defaults.

    Args:
        bundle: Trained model.
        batch: Images per pass where a package lets one choose.
        scorer: Evaluates what LIME, Kernel SHAP and occlusion ask for; None for the model.
    """

    def __init__(self, bundle: Bundle, batch: int, scorer: Any | None = None) -> None:
        import tensorflow as tf

        self.model, self.batch, self.scorer = bundle.model, batch, scorer
        traced = tf.function(
            lambda pixels: bundle.model(pixels, training=False),
            input_signature=[tf.TensorSpec((None, *bundle.model.input_shape[1:]), tf.float32)],
        )
        plain: Logits = lambda pixels: traced(pixels).numpy()  # noqa: E731
        self.logits = Counter(plain if scorer is None else scorer.logits, batch)
        self.layer = find_features(bundle.model).layer

    def explain(self, name: str, image: np.ndarray, goal: int) -> tuple[np.ndarray, float, float]:
        """Return a map (H, W), and the forward and backward passes it took."""
        before = self.logits.seen
        made, forward, backward = getattr(self, f"_{name}")(image, goal)
        return np.asarray(made, np.float32), forward + self.logits.seen - before, backward

    def _cam(self, kind: Any, image: np.ndarray, goal: int) -> tuple[np.ndarray, float, float]:
        import tensorflow as tf
        from tf_keras_vis.utils.scores import CategoricalScore

        made = kind(self.model, clone=False)(
            CategoricalScore([goal]),
            image[None],
            penultimate_layer=self.layer,
            seek_penultimate_conv_layer=False,
            expand_cam=False,
        )
        large = tf.image.resize(np.asarray(made)[..., None], image.shape[:2])
        return large.numpy()[0, ..., 0], 1, 1

    def _grad_cam(self, image: np.ndarray, goal: int) -> tuple[np.ndarray, float, float]:
        from tf_keras_vis.gradcam import Gradcam

        return self._cam(Gradcam, image, goal)

    def _grad_cam_plus_plus(self, image: np.ndarray, goal: int) -> tuple[np.ndarray, float, float]:
        from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus

        return self._cam(GradcamPlusPlus, image, goal)

    def _xplique(self, explainer: Any, image: np.ndarray, goal: int) -> np.ndarray:
        import tensorflow as tf

        truth = tf.one_hot([goal], self.model.output_shape[-1])
        return np.asarray(explainer(image[None], truth)).reshape(image.shape[:2])

    def _integrated_gradients(
        self, image: np.ndarray, goal: int
    ) -> tuple[np.ndarray, float, float]:
        explainer = xplique_attributions().IntegratedGradients(self.model, batch_size=self.batch)
        return self._xplique(explainer, image, goal), explainer.steps, explainer.steps

    def _occlusion(self, image: np.ndarray, goal: int) -> tuple[np.ndarray, float, float]:
        if self.scorer is None:
            explainer = xplique_attributions().Occlusion(self.model, batch_size=self.batch)
            side = XPLIQUE_PATCH
            passes = (image.shape[0] // side) * (image.shape[1] // side) + 1
            return self._xplique(explainer, image, goal), passes, 0
        # That package takes no other evaluator. Patches without overlap: the same map.
        same = Occlusion(
            self.model,
            patch_size=XPLIQUE_PATCH,
            stride=XPLIQUE_PATCH,
            baseline="black",
            scorer=self.scorer,
        )
        result = same.attribute(image[None], goal, batch_size=self.batch)
        return result.maps[0], result.cost.forward, 0

    def _lime(self, image: np.ndarray, goal: int) -> tuple[np.ndarray, float, float]:
        from lime.lime_image import LimeImageExplainer

        explanation = LimeImageExplainer(random_state=0).explain_instance(
            image.astype(np.uint8), self.logits, labels=(goal,), top_labels=None
        )
        weights = np.zeros(explanation.segments.max() + 1)
        for segment, weight in explanation.local_exp[goal]:
            weights[segment] = weight
        return weights[explanation.segments], 0, 0

    def _gp_shap(self, image: np.ndarray, goal: int) -> tuple[np.ndarray, float, float]:
        import shap
        from skimage.segmentation import slic

        labels = slic(image.astype(np.uint8), n_segments=50, compactness=30, sigma=3, start_label=0)
        pieces, fill = int(labels.max()) + 1, image.mean(axis=(0, 1))

        def game(kept: np.ndarray) -> np.ndarray:
            rows = []
            for start in range(0, len(kept), self.batch):
                keep = kept[start : start + self.batch][:, labels][..., None] > 0.5
                rows.append(self.logits(np.where(keep, image, fill))[:, goal])
            return np.concatenate(rows)

        np.random.seed(0)  # noqa: NPY002 - the peer draws from the global generator
        explainer = shap.KernelExplainer(game, np.zeros((1, pieces)))
        values = np.ravel(explainer.shap_values(np.ones((1, pieces)), silent=True))
        return painted(values[None], labels)[0], 0, 0


class Ours:
    """The six methods of this package with the defaults of the command line."""

    def __init__(self, bundle: Bundle, batch: int, scorer: str | None) -> None:
        self.batch = batch
        scorers = choose_scorers(bundle, SIX, scorer)
        self.explainers: dict[str, Explainer] = create_several(
            SIX, bundle.model, classes=bundle.classes, scorers=scorers
        )

    def explain(self, name: str, image: np.ndarray, goal: int) -> tuple[np.ndarray, float, float]:
        """Return a map (H, W), and the forward and backward passes it took."""
        result = self.explainers[name].attribute(image[None], goal, batch_size=self.batch)
        return result.maps[0], result.cost.forward, result.cost.backward

    def scorer(self, name: str) -> str:
        """Return what evaluates changed images."""
        return getattr(getattr(self.explainers[name], "scorer", None), "name", "float32")


def costs(bundle: Bundle, rows: pd.DataFrame, data: Path, batch: int) -> pd.DataFrame:
    """Return passes and seconds of both sides on the second image; the first one warms up."""
    pixels = [load_image(data / path, bundle.input_size) for path in rows.path[:2]]
    images = np.stack(pixels).astype(np.float32)
    goals = bundle.logits(images).argmax(axis=1)
    ours, theirs = Ours(bundle, batch, None), Peers(bundle, batch)
    alone, with_gradient = raw_passes(bundle.model, bundle.input_size, batch)
    # How many forward passes a gradient costs on top of its own.
    share = with_gradient / alone - 1.0
    table = []
    for name in SIX:
        line: dict[str, Any] = {"method": name, "scorer": ours.scorer(name), "peer": PEERS[name]}
        for side, explain in (("ours", ours.explain), ("theirs", theirs.explain)):
            if side == "ours" or name not in ("occlusion", "gp_shap"):
                explain(name, images[0], int(goals[0]))
            start = time.perf_counter()
            _, forward, backward = explain(name, images[1], int(goals[1]))
            line[f"{side}_s"] = time.perf_counter() - start
            line[f"{side}_passes"] = forward + share * backward
        print(line, flush=True)
        table.append(line)
    return pd.DataFrame(table)


def pieces(
    bundle: Bundle,
    rows: pd.DataFrame,
    data: Path,
    folder: Path,
    batch: int,
    scorer: str | None,
    stored: bool,
) -> Iterator[dict[str, Any]]:
    """Yield a measured row for every image, method and side, stored ones first looked for.

    With ``stored``, nothing is measured.

    Images come in random order, so that those of an interrupted run are a fair sample.
    """
    ours: Any = None
    for item in rows.sample(frac=1.0, random_state=0).itertuples():
        for name in SIX:
            for side in ("ours", "theirs"):
                path = folder / f"{item.image_id}_{name}_{side}.json"
                if not path.is_file():
                    if stored:
                        continue
                    if ours is None:
                        ours, theirs, evaluations = _sides(bundle, batch, scorer)
                    explain = (ours if side == "ours" else theirs).explain
                    found = judged(bundle, item, data, evaluations, name, explain)
                    facts = {"image": item.image_id, "lesion": item.lesion_id}
                    write_json(path, {**facts, "method": name, "side": side, **found})
                yield read_json(path)


def _sides(bundle: Bundle, batch: int, scorer: str | None) -> tuple[Ours, Peers, Evaluations]:
    copied = choose_scorers(bundle, ["lime"], scorer).get("lime")
    return (
        Ours(bundle, batch, scorer),
        Peers(bundle, batch, copied),
        Evaluations(bundle.model, batch_size=batch),
    )


def judged(
    bundle: Bundle, item: Any, data: Path, evaluations: Evaluations, name: str, explain: Any
) -> dict[str, float]:
    """Return what the map of an image (a row of the manifest) is worth, and its seconds."""
    image = load_image(data / item.path, bundle.input_size)
    mask = load_mask(data / item.mask_path, bundle.input_size)[None]
    goal = int(evaluations.of(image[None])[0].ends["image"].argmax())
    start = time.perf_counter()
    made, *_ = explain(name, image.astype(np.float32), goal)
    seconds = time.perf_counter() - start
    found = metrics.measure(
        [*FAITHFUL, *LOCALIZATION.values()], bundle, image[None], made[None], goal, masks=mask,
        evaluations=evaluations,
    )  # fmt: skip
    named = {**{name: name for name in FAITHFUL}, **LOCALIZATION}
    return {**{k: float(found[name][0]) for k, name in named.items()}, "seconds": seconds}


def paired(measured: pd.DataFrame) -> pd.DataFrame:
    """Return mean differences of the pairs, positive where ours are better, with intervals."""
    titles = [*FAITHFUL, *LOCALIZATION]
    signs = pd.Series({name: -1.0 if name in LOWER_IS_BETTER else 1.0 for name in titles})
    keys = ["method", "image", "lesion"]
    sides = [measured[measured.side == side].set_index(keys)[titles] for side in ("ours", "theirs")]
    better = ((sides[0] - sides[1]) * signs).dropna(how="all").astype(float)
    # All six together: the mean of an image's six differences, of images that have all six.
    complete = better.groupby(["image", "lesion"]).filter(lambda part: len(part) == len(SIX))
    table = []
    for name in (*SIX, "all six"):
        if name == "all six":
            part = complete.groupby(["image", "lesion"]).mean()
        else:
            part = better[better.index.get_level_values("method") == name]
        if part.empty:
            continue
        lesions = list(part.index.get_level_values("lesion"))
        found = cluster_intervals(part[titles].to_numpy(), lesions)
        title = METHODS[name].title if name in METHODS else name
        line: dict[str, Any] = {"method": title, "images": len(part)}
        for metric, one in zip(titles, found, strict=True):
            seen = (one.low > 0 or one.high < 0) and abs(one.mean) >= SMALLEST_SHOWN
            bold = "**" if seen else ""
            line[metric] = f"{bold}{one.mean:+.3f}{bold} [{one.low:+.3f}, {one.high:+.3f}]"
        table.append(line)
    return pd.DataFrame(table)


def cost_text(table: pd.DataFrame) -> str:
    """Return the first part for people."""
    total = table[["ours_passes", "theirs_passes", "ours_s", "theirs_s"]].sum()
    shown = [
        {
            "method": METHODS[row.method].title,
            "ours": f"{row.ours_passes:,.0f}",
            "scorer": row.scorer,
            "theirs": f"{row.theirs_passes:,.0f}",
            "ours (s)": f"{row.ours_s:.2f}",
            "theirs (s)": f"{row.theirs_s:.2f}",
            "defaults of": row.peer,
        }
        for row in table.itertuples()
    ]
    return (
        f"{markdown(pd.DataFrame(shown))}\n\nAll six: {total.ours_passes:,.0f} against "
        f"{total.theirs_passes:,.0f} forward passes, "
        f"{total.theirs_passes / total.ours_passes:.1f} times fewer; {total.ours_s:.1f} s against "
        f"{total.theirs_s:.1f} s, {total.theirs_s / total.ours_s:.1f} times faster."
    )


def figure(measured: pd.DataFrame) -> Any:
    """Draw insertion minus deletion of both sides, image by image."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 6), layout="constrained")
    for axes, name in zip(drawn.subplots(2, 3).ravel(), SIX, strict=True):
        part = measured[measured.method == name]
        sides = {
            side: (rows.set_index("image").insertion - rows.set_index("image").deletion)
            for side, rows in part.groupby("side")
        }
        if len(sides) == 2:
            both = pd.DataFrame(sides).dropna()
            axes.plot(both.theirs, both.ours, ".", alpha=0.6)
            low, high = float(both.min().min()), float(both.max().max())
            axes.plot([low, high], [low, high], color="0.5", linewidth=1)
        axes.set_title(METHODS[name].title)
    drawn.supxlabel("insertion minus deletion, the peer with its defaults")
    drawn.supylabel("here with ours")
    return drawn


def _sampled(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return rows in the proportions of the diagnoses, filled up where shares were rounded down."""
    rows = sample_in_proportion(table, count)
    left = table.drop(rows.index)
    return pd.concat([rows, left.sample(min(len(left), max(0, count - len(rows))), random_state=0)])


def main() -> None:
    """Measure costs and quality and write tables and figure."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--pieces", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--scorer", choices=("float32", "int8"), default="int8")
    parser.add_argument("--stored", action="store_true", help="tell what is stored so far")
    parser.add_argument("--part", choices=("costs", "quality", "both"), default="both")
    given = parser.parse_args()
    if given.data is None:
        raise UsageError("Localization needs outlined lesions. Give --data.")
    bundle, count = load_bundle(find_bundle(given.bundle)), 2 if given.quick else given.images
    test = select_split(read_manifest(given.data), "test")
    rows = _sampled(test[test.mask_path.notna()], count)
    costs_path = given.pieces / "costs.json"
    if given.part != "quality" and not given.stored:
        found = costs(bundle, rows, given.data, given.batch_size)
        write_json(costs_path, {"machine": machine(), "rows": found.to_dict("records")})
    if given.part == "costs":
        return
    each = pieces(
        bundle, rows, given.data, given.pieces, given.batch_size, given.scorer, given.stored
    )
    measured = []
    for one in each:
        measured.append(one)
        if len(measured) % 20 == 0:
            print(f"{len(measured)} of {2 * len(SIX) * len(rows)}", flush=True)
    known, table = read_json(costs_path), pd.DataFrame(measured)
    text = [
        known["machine"],
        cost_text(pd.DataFrame(known["rows"])),
        f"Quality on {table.image.nunique()} test images: mean difference of pairs with its 95 % "
        "interval over lesions, positive where ours are better, **bold** where the interval leaves "
        f"out 0. Perturbation methods of both sides evaluated by the {given.scorer} scorer.",
        markdown(paired(table)),
    ]
    publish(
        given.out or (Path("bench-quick") if given.quick else None),
        "defaults",
        "\n\n".join(text),
        figure(table),
    )


if __name__ == "__main__":
    main()

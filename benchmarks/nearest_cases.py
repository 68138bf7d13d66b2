"""What are known cases like an image worth? Retrieval, agreement, and "no close case", in tables.

    python benchmarks/nearest_cases.py DATA --out run/cases [--bundle BUNDLE]

DATA is the prepared and split data set that the bundle learned from. Features of all images are
kept in OUT, part by part, so a run that was killed goes on where it was; the tables take a minute
then. Everything is chosen on validation images and told on test images; intervals hold 95 % and
resample lesions. Writes tables.md and prints it.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.images import load_image
from dermlens.data.splits import read_checks
from dermlens.data.synthetic import draw
from dermlens.explainers.case_building import DIMENSIONS, index_of_features
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.nearest_cases import CaseFinder, FeatureReader
from dermlens.files import write_text, written_beside
from dermlens.labels import HAM10000
from dermlens.model.baseline import color_histogram
from dermlens.model.bundle import Bundle, find_bundle, load_bundle
from dermlens.model.case_index import VOTERS, CaseIndex, fit_whitening, weights_of
from dermlens.model.metrics import (
    confusion_matrices,
    divide,
    interval,
    label_metrics,
    lesion_resamples,
    roc_auc,
)
from dermlens.model.training_data import TrainingData, load_training_data
from dermlens.report.html import markdown_table

KS = (1, 5, 10)
TRIED = (16, 32, 64, 128, 256)
PART = 512
RESAMPLES = 2000


@dataclass(frozen=True)
class Study:
    """A data set with what a bundle makes of it; arrays have a row per image of the manifest."""

    bundle: Bundle
    data: TrainingData
    logits: np.ndarray
    features: np.ndarray
    colors: np.ndarray

    def rows(self, split: str) -> np.ndarray:
        """Rows of the manifest."""
        return self.data.rows[split]

    def lesions(self, split: str) -> np.ndarray:
        """Lesion of each image."""
        return self.data.table.lesion_id.to_numpy()[self.rows(split)]

    def labels(self, split: str) -> np.ndarray:
        """Class position of each image."""
        return self.data.labels[self.rows(split)]


def kept(folder: Path, name: str, total: int, make: Callable[[slice], Mapping[str, Any]]) -> Any:
    """Return arrays over all images, made part by part; parts that are there are not made again."""
    parts = []
    for start in range(0, total, PART):
        path = folder / f"{name}_{start:06d}.npz"
        if not path.is_file():
            made = make(slice(start, min(start + PART, total)))
            with written_beside(path) as building:
                np.savez(building, **made)
            print(f"{name}: {min(start + PART, total):,} of {total:,}", flush=True)
        with np.load(path, allow_pickle=False) as stored:
            parts.append(dict(stored))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def study(bundle: Bundle, data: Path, out: Path) -> Study:
    """Read a data set; features and color histograms come from OUT or are made."""
    known = load_training_data(data)
    images, reader = known.images(bundle.input_size), FeatureReader(bundle)
    paths = known.table.path.to_numpy()
    folder = out / bundle.identity["fingerprint"][:12] / known.fingerprint[:12]

    def network(rows: slice) -> dict[str, np.ndarray]:
        logits, features = reader.many(np.asarray(images[rows]))
        return {"logits": logits, "features": features}

    def colors(rows: slice) -> dict[str, np.ndarray]:
        found = [color_histogram(load_image(data / path, (48, 64))) for path in paths[rows]]
        return {"colors": np.stack(found)}

    made = kept(folder, "network", len(images), network)
    return Study(bundle, known, **made, **kept(folder, "colors", len(images), colors))


def unit(values: np.ndarray) -> np.ndarray:
    """Rows at unit length."""
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def nearest(similarity: np.ndarray, lesions: np.ndarray, count: int = KS[-1]) -> np.ndarray:
    """Columns of the most similar images, one of each lesion, int (M, count)."""
    found = []
    for one in similarity:
        rows: dict[str, int] = {}
        for row in np.argsort(-one, kind="stable"):
            rows.setdefault(lesions[row], row)
            if len(rows) == count:
                break
        found.append(list(rows.values()))
    return np.array(found)


def votes(similarity: np.ndarray, columns: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Most frequent class among k neighbors, of equally frequent ones the more similar."""
    found = []
    for one, chosen in zip(similarity, columns[:, :k], strict=True):
        weights = 1 + 1e-3 * one[chosen]
        found.append(np.bincount(labels[chosen], weights=weights).argmax())
    return np.array(found)


def siblings(queries: np.ndarray, known: np.ndarray, lesions: np.ndarray, own: np.ndarray) -> Any:
    """For each pair of photographs of one lesion: how many other lesions are more similar; first.

    The lesion's other photograph competes with all training lesions.
    """
    similarity, found, pairs = queries @ known.T, [], []
    for k, lesion in enumerate(own):
        for other in np.flatnonzero(own == lesion):
            if other != k:
                better = similarity[k] > queries[k] @ queries[other]
                found.append(len(set(lesions[better])))
                pairs.append(k)
    return np.array(found), np.array(pairs)


def representations(one: Study) -> dict[str, tuple[Callable[[np.ndarray], np.ndarray], bool]]:
    """What turns features into unit vectors, by name; True where it takes color histograms."""
    mean = one.features[one.rows("train")].mean(axis=0)
    found: dict[str, Any] = {
        "color histogram, cosine": (unit, True),
        "color histogram, cosine of roots": (lambda values: unit(np.sqrt(values)), True),
        "network, cosine": (unit, False),
        "network, centered": (lambda values: unit(values - mean), False),
    }
    for dimensions in TRIED:
        whitening = fit_whitening(one.features[one.rows("train")], dimensions).stored()
        found[f"network, whitened to {dimensions}"] = (whitening, False)
    return found


def choice(one: Study) -> pd.DataFrame:
    """What each way of comparing is worth on validation images."""
    rows, known = [], one.lesions("train")
    train, held = one.labels("train"), one.labels("validation")
    for name, (turn, colored) in representations(one).items():
        values = one.colors if colored else one.features
        queries, others = (turn(values[one.rows(split)]) for split in ("validation", "train"))
        same = train[nearest(queries @ others.T, known)] == held[:, None]
        classes = [same[held == c][:, :VOTERS].mean() for c in np.unique(held)]
        ranks, _ = siblings(queries, others, known, one.lesions("validation"))
        rows.append(
            {
                "compared by": name,
                **{f"precision@{k}": same[:, :k].mean() for k in KS},
                f"precision@{VOTERS}, mean over diagnoses": np.mean(classes),
                "same lesion first": (ranks < 1).mean(),
                "same lesion in first 5": (ranks < 5).mean(),
            }
        )
    return pd.DataFrame(rows)


def told(value: float, drawn: np.ndarray, *, signed: bool = False) -> str:
    """A figure with its interval."""
    low, high = interval(drawn)
    sign = "+" if signed else ""
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def retrieval(one: Study, seed: int = 0) -> pd.DataFrame:
    """Precision@k and balanced accuracy of votes on test images, against color and chance."""
    train, labels, lesions = one.labels("train"), one.labels("test"), one.lesions("test")
    drawn = np.vstack([np.ones(len(labels)), lesion_resamples(lesions, RESAMPLES, seed)])
    classes = len(one.bundle.classes)
    known = representations(one)
    rows, kept_figures = [], {}
    chosen = f"network, whitened to {DIMENSIONS}"
    for name in (chosen, "network, cosine", "color histogram, cosine of roots"):
        turn, colored = known[name]
        values = one.colors if colored else one.features
        queries, others = (turn(values[one.rows(split)]) for split in ("test", "train"))
        similarity = queries @ others.T
        columns = nearest(similarity, one.lesions("train"))
        figures = {}
        for k in KS:
            same = (train[columns[:, :k]] == labels[:, None]).mean(axis=1)
            figures[f"precision@{k}"] = divide(drawn @ same, drawn.sum(axis=1))
        for k in KS:
            voted = votes(similarity, columns, train, k)
            confusion = confusion_matrices(labels, voted, classes, drawn)
            figures[f"balanced accuracy, k = {k}"] = label_metrics(confusion)["balanced_accuracy"]
        ranks, pairs = siblings(queries, others, one.lesions("train"), lesions)
        weights = drawn[:, pairs]
        figures["same lesion first"] = divide(weights @ (ranks < 1), weights.sum(axis=1))
        kept_figures[name] = figures
        row = {"compared by": name}
        rows.append(row | {key: told(v[0], v[1:]) for key, v in figures.items()})
    for name in ("network, cosine", "color histogram, cosine of roots"):
        gains = {k: kept_figures[chosen][k] - v for k, v in kept_figures[name].items()}
        row = {"compared by": f"whitened minus {name}"}
        rows.append(row | {k: told(v[0], v[1:], signed=True) for k, v in gains.items()})
    rows.append({"compared by": "chance"} | _chance(one))
    predicted = one.logits[one.rows("test")].argmax(axis=1)
    confusion = confusion_matrices(labels, predicted, classes, drawn)
    accuracy = label_metrics(confusion)["balanced_accuracy"]
    text = told(accuracy[0], accuracy[1:])
    return pd.DataFrame([*rows, {"compared by": "the network's own answer",
                                 "balanced accuracy, k = 1": text}])  # fmt: skip


def _chance(one: Study) -> dict[str, str]:
    """What lesions drawn at random would reach; of votes, always the most frequent diagnosis."""
    table = one.data.table.iloc[one.rows("train")]
    shares = table.drop_duplicates("lesion_id").dx.value_counts(normalize=True)
    by_image = one.data.table.iloc[one.rows("test")].dx.map(shares)
    random = {f"precision@{k}": f"{by_image.mean():.3f}" for k in KS}
    return random | {
        f"balanced accuracy, k = {k}": f"{1 / len(one.bundle.classes):.3f}" for k in KS
    }


def built(one: Study) -> CaseIndex:
    """The index as ``dermlens cases --build`` makes it, of features that are known."""
    hashes = read_checks(one.data.folder).set_index("image_id").perceptual_hash
    table = one.data.table.assign(perceptual_hash=one.data.table.image_id.map(hashes))
    predicted = np.asarray(one.bundle.classes)[one.logits.argmax(axis=1)]
    weights = weights_of(one.bundle.facts)
    return index_of_features(one.features, predicted, table, one.bundle.classes, weights)


def signals(one: Study, index: CaseIndex, split: str) -> dict[str, np.ndarray]:
    """What may foretell whether an answer is right, by image: confidence and neighbors."""
    rows = one.rows(split)
    probabilities = one.bundle.probabilities(one.logits[rows])
    confidence = probabilities.max(axis=1)
    answers = np.asarray(one.bundle.classes)[one.logits[rows].argmax(axis=1)]
    agreeing, best = [], []
    for similarity, code in zip(index.similarities(one.features[rows]), answers, strict=True):
        cases = index.nearest(similarity, VOTERS)
        agreeing.append(sum(case.dx == code for case in cases))
        best.append(cases[0].similarity)
    return {
        "right": one.logits[rows].argmax(axis=1) == one.labels(split),
        "confidence": confidence,
        "agreeing": np.array(agreeing, float),
        "best": np.array(best),
        "log-odds": np.log(confidence / np.maximum(1 - confidence, 1e-9)),
        "margin": confidence - np.sort(probabilities, axis=1)[:, -2],
        "entropy": -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1),
    }


def foretelling(held: Mapping[str, Any], test: Mapping[str, Any], lesions: Sequence[Any]) -> Any:
    """AUC of telling right from wrong answers on test images; combinations fitted on validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    combined = {
        "probabilities alone: confidence, lead and entropy": ("log-odds", "margin", "entropy"),
        "neighbors: how many agree, and how similar the nearest is": ("agreeing", "best"),
        "confidence and how many agree": ("log-odds", "agreeing"),
        "confidence and both of neighbors": ("log-odds", "agreeing", "best"),
        "confidence, lead, entropy and how many agree": (
            *("log-odds", "margin", "entropy"),
            "agreeing",
        ),
    }
    scores = {
        "confidence (calibrated probability)": test["confidence"],
        f"how many of {VOTERS} neighbors agree": test["agreeing"],
        "how similar the nearest is": test["best"],
    }
    for name, parts in combined.items():
        model = make_pipeline(StandardScaler(), LogisticRegression())
        model.fit(np.column_stack([held[part] for part in parts]), held["right"])
        scores[name] = model.decision_function(np.column_stack([test[part] for part in parts]))
    drawn = np.vstack([np.ones(len(lesions)), lesion_resamples(lesions, RESAMPLES, 0)])
    areas = {name: roc_auc(score, test["right"], drawn) for name, score in scores.items()}
    first = next(iter(areas.values()))
    rows = [
        {
            "foretold by": name,
            "AUC": told(area[0], area[1:]),
            "minus confidence": told(
                *((area - first)[:1].item(), (area - first)[1:]), signed=True
            ) if area is not first else "",
        }
        for name, area in areas.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def by_agreement(test: Mapping[str, Any], lesions: Sequence[Any]) -> pd.DataFrame:
    """How often answers were right, by how many neighbors agree, and what confidence said."""
    drawn = lesion_resamples(lesions, RESAMPLES, 0)
    rows = []
    for count in range(VOTERS + 1):
        which = test["agreeing"] == count
        shares = divide(drawn[:, which] @ test["right"][which], drawn[:, which].sum(axis=1))
        rows.append(
            {
                "agreeing": count,
                "images": int(which.sum()),
                "right": told(test["right"][which].mean(), shares),
                "mean confidence": test["confidence"][which].mean(),
            }
        )
    return pd.DataFrame(rows)


def closeness(one: Study, index: CaseIndex) -> pd.DataFrame:
    """Share of images without a close case, of test images and of drawn ones."""
    rows, codes = one.rows("test"), np.asarray(one.bundle.classes)
    order = np.argsort(-one.logits[rows], axis=1, kind="stable")
    right = order[:, 0] == one.labels("test")
    truth = codes[one.labels("test")]
    features = one.features[rows]
    far = {
        name: index.best_of(features, wanted) < index.threshold
        for name, wanted in {
            "own": truth, "answer": codes[order[:, 0]], "second": codes[order[:, 1]]
        }.items()
    }  # fmt: skip
    lesions = one.lesions("test")
    drawn = lesion_resamples(lesions, RESAMPLES, 0)

    def share(which: np.ndarray, among: np.ndarray) -> str:
        sums = divide(drawn[:, among] @ which[among], drawn[:, among].sum(axis=1))
        return told(which[among].mean(), sums)

    everything = np.ones(len(rows), bool)
    images = [draw(HAM10000.codes[k % 7], k, (300, 400))[0] for k in range(210)]
    fitted = np.stack([_fitted(image, one.bundle.input_size) for image in images])
    logits, drawings = FeatureReader(one.bundle).many(fitted)
    best = index.best_of(drawings, codes[logits.argmax(axis=1)])
    drawings_far = (best < index.threshold).mean()
    table = [
        ("test images without a close case of their diagnosis", share(far["own"], everything)),
        ("… of the diagnosis answered", share(far["answer"], everything)),
        ("… of the diagnosis answered, where the answer is right", share(far["answer"], right)),
        ("… of the diagnosis answered, where it is wrong", share(far["answer"], ~right)),
        ("… of the second diagnosis, where the answer is right", share(far["second"], right)),
        ("… of the second diagnosis, where the answer is wrong", share(far["second"], ~right)),
        ("right answers where the answer has a close case", share(right, ~far["answer"])),
        ("right answers where it has none", share(right, far["answer"])),
        ("drawn images (210) without a close case of the answer", f"{drawings_far:.3f}"),
    ]  # fmt: skip
    return pd.DataFrame(table, columns=["share", "value"])


def _fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    from dermlens.data.images import fit_image

    return fit_image(Image.fromarray(image), size)


def regions(one: Study, index: CaseIndex, count: int) -> pd.DataFrame:
    """Looking only where Grad-CAM of the answer marks the image, on validation images."""
    rows = one.rows("validation")
    some = np.sort(np.random.default_rng(0).permutation(len(rows))[:count])
    images = one.data.images(one.bundle.input_size)
    reader, explainer = FeatureReader(one.bundle), GradCAM(one.bundle)
    marked = []
    for row in rows[some]:
        image = np.asarray(images[row])[None]
        marked.append(reader(image, explainer.attribute(image).maps[0])[1][0])
    labels = one.labels("validation")[some]
    codes = np.asarray(one.bundle.classes)[labels]
    known, train = one.lesions("train"), one.labels("train")
    table = []
    ways = {"whole image": one.features[rows[some]], "where Grad-CAM marks it": np.stack(marked)}
    for name, features in ways.items():
        same = train[nearest(index.similarities(features), known)] == labels[:, None]
        best = index.best_of(features, codes)
        table.append(
            {
                "looked at": name,
                **{f"precision@{k}": same[:, :k].mean() for k in KS},
                "similarity to the nearest case of the own diagnosis, median": np.median(best),
                "without a close case of it": (best < index.threshold).mean(),
            }
        )
    return pd.DataFrame(table)


def clock(bundle: Bundle, repeats: int = 30) -> pd.DataFrame:
    """Median seconds for an image once everything is loaded; the bundle must bring its index."""
    image = draw("mel", 1)[0]
    start = time.perf_counter()
    finder = CaseFinder(bundle)
    loading = time.perf_counter() - start
    finder.find(image)
    logits, features = finder.reader(image[None])
    probabilities = bundle.probabilities(logits)[0]
    works = {
        "one pass and the search": lambda: finder.find(image),
        "one pass and the search, with a region": lambda: finder.find(
            image, region=np.ones(bundle.input_size)
        ),
        "the search alone": lambda: finder.of_features(probabilities, features[0], image),
    }
    rows = [{"what": "reading the index", "seconds": loading}]
    for name, work in works.items():
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
        rows.append({"what": name, "seconds": float(np.median(taken)), "fastest": min(taken)})
    return pd.DataFrame(rows)


def tables(one: Study, region_images: int = 300) -> dict[str, pd.DataFrame]:
    """Everything but the clock, by heading."""
    index = built(one)
    held, test = (signals(one, index, split) for split in ("validation", "test"))
    lesions = one.lesions("test")
    return {
        "Ways of comparing, on validation images": choice(one),
        "Neighbors on test images": retrieval(one),
        "Telling right from wrong answers, on test images": foretelling(held, test, lesions),
        "Right answers by agreement, on test images": by_agreement(test, lesions),
        f"Close cases (similarity of at least {index.threshold:.3f})": closeness(one, index),
        "Part of the image, on validation images": regions(one, index, region_images),
    }


def main() -> None:
    """Write and print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("run/cases"))
    parser.add_argument("--region-images", type=int, default=300)
    parser.add_argument("--clock", action="store_true", help="time the bundle's own index, too")
    options = parser.parse_args()
    bundle = load_bundle(find_bundle(options.bundle))
    found = tables(study(bundle, options.data, options.out), options.region_images)
    if options.clock:
        found["Time for an image"] = clock(bundle)
    parts = [f"### {heading}\n\n{markdown_table(table)}" for heading, table in found.items()]
    write_text(options.out / "tables.md", "\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()

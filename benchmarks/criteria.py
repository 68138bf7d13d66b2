"""Does the network's answer follow the measurable criteria, and how good are automatic outlines?

    python benchmarks/criteria.py DATA [--bundle BUNDLE] [--out criteria]

DATA is a prepared and split data set with outlines. Criteria are measured on every image, what the
network makes of it on training and test images; then the reference table, partial rank correlations
and concept sensitivity are written. Can be interrupted; the same command goes on.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench_tools import markdown

from dermlens.data.images import load_image, load_mask, opened_rgb, read_bytes
from dermlens.data.manifest import data_labels, read_manifest, select_split
from dermlens.files import write_csv, write_json, written_beside
from dermlens.lesion.criteria import CRITERIA, measure_criteria
from dermlens.lesion.outline import examine_outline
from dermlens.lesion.relevance import lab_colors
from dermlens.model.bundle import find_bundle, load_bundle
from dermlens.model.image_classifier import ImageClassifier
from dermlens.model.metrics import roc_auc
from dermlens.quality.benchmark_plan import Item, select_items
from dermlens.quality.concepts import (
    LayerReader,
    LayerReadings,
    concept_changes,
    concept_direction,
    concept_scores,
    concept_step,
    concept_test,
    partial_spearman,
    random_directions,
    rank_residuals,
)
from dermlens.quality.statistics import cluster_intervals, holm

SIZE = (192, 256)
CHUNK = 100
LAB = ("L", "a", "b")
QUANTILE = 0.15
"""Share of images with most, and with least, of a criterion that define its concept."""
BAD = 0.7
"""Dice below which an outline is called bad."""


def in_chunks(
    table: pd.DataFrame, folder: Path, row: Callable[[Any], dict[str, Any]]
) -> pd.DataFrame:
    """Return a row of measurements for each image; chunks that are on the disk are read."""
    parts = []
    for start in range(0, len(table), CHUNK):
        path = folder / f"{start:05d}.csv"
        if not path.is_file():
            rows = [row(one) for one in table.iloc[start : start + CHUNK].itertuples()]
            write_csv(path, pd.DataFrame(rows))
            print(f"{folder.name}: {start + len(rows)} of {len(table)}", flush=True)
        parts.append(pd.read_csv(path))
    return pd.concat(parts, ignore_index=True)


def criteria_row(data: Path, one: Any) -> dict[str, Any]:
    """Return criteria and colors of an image within its expert outline."""
    image, mask = load_image(data / one.path, SIZE), load_mask(data / one.mask_path, SIZE)
    about = {"image_id": one.image_id, "lesion_id": one.lesion_id, "dx": one.dx}
    if not mask.any():
        return about
    found, lab = measure_criteria(image, mask), lab_colors(image)[mask]
    colors = {f"mean_{n}": float(v) for n, v in zip(LAB, lab.mean(axis=0), strict=True)}
    colors |= {f"std_{n}": float(v) for n, v in zip(LAB, lab.std(axis=0), strict=True)}
    return {**about, **found.values, "cut_off": found.cut_off, **colors}


def log_odds(classifier: ImageClassifier) -> Callable[[Any], Any]:
    """Return what makes log-odds of every class, and of malignancy, of logits (n, C)."""
    import tensorflow as tf

    groups = [[k] for k in range(len(classifier.classes))]
    groups += [list(classifier.malignant)] if classifier.malignant else []

    def of(logits: Any) -> Any:
        columns = []
        for group in groups:
            others = [k for k in range(logits.shape[1]) if k not in group]
            inside = tf.reduce_logsumexp(tf.gather(logits, group, axis=1), axis=1)
            columns.append(inside - tf.reduce_logsumexp(tf.gather(logits, others, axis=1), axis=1))
        return tf.stack(columns, axis=1)

    return of


def readings(reader: LayerReader, data: Path, items: Sequence[Item], folder: Path) -> LayerReadings:
    """Return what the last stage but one reads of images; chunks on the disk are read."""
    parts = []
    for start in range(0, len(items), CHUNK):
        path = folder / f"{start:05d}.npz"
        if not path.is_file():
            images = [load_image(one.image, SIZE) for one in items[start : start + CHUNK]]
            made = reader.read(np.stack(images))
            with written_beside(path) as building, building.open("wb") as stream:
                np.savez(stream, **vars(made))
            print(f"{folder.name}: {start + len(images)} of {len(items)}", flush=True)
        with np.load(path) as stored:
            parts.append({name: stored[name] for name in stored.files})
    joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0] if k != "layer"}
    return LayerReadings(layer=str(parts[0]["layer"]), **joined)


def follow(outputs: pd.DataFrame, measured: pd.DataFrame, resamples: int) -> pd.DataFrame:
    """Return partial rank correlations of outputs with criteria, corrected together."""
    rows = []
    for key in CRITERIA:
        held = None if key == "size" else measured[["size"]].to_numpy()
        found = partial_spearman(
            outputs.to_numpy(),
            measured[key].to_numpy(),
            measured.dx,
            measured.lesion_id,
            others=held,
            resamples=resamples,
        )
        rows += [
            {"output": name, "criterion": key, **vars(one)}
            for name, one in zip(outputs, found, strict=True)
        ]
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table.p.to_numpy()))


def concepts(
    train: LayerReadings,
    measured_train: pd.DataFrame,
    test: LayerReadings,
    measured_test: pd.DataFrame,
    outputs: Sequence[str],
    malignant: Sequence[str],
    randoms: int,
) -> pd.DataFrame:
    """Return the TCAV score of each criterion and output, on test images of that class."""
    size = round(QUANTILE * len(measured_train))
    chance = random_directions(train.features, size, randoms)
    chance_steps = random_directions(train.features, size, randoms, between=concept_step)
    rows = []
    for key in CRITERIA:
        rest, held_out = (
            rank_residuals(
                table[key].to_numpy(),
                table.dx,
                None if key == "size" else table[["size"]].to_numpy(),
            )
            for table in (measured_train, measured_test)
        )
        order = np.argsort(rest, kind="stable")
        high, low = train.features[order[-size:]], train.features[order[:size]]
        direction, step = concept_direction(high, low), concept_step(high, low)
        ends = np.argsort(held_out, kind="stable")
        few = round(QUANTILE * len(ends))
        along = test.features @ direction
        told = np.concatenate([along[ends[-few:]], along[ends[:few]]])
        auc = roc_auc(told, np.arange(2 * few) < few, np.ones((1, 2 * few)))[0]
        for position, name in enumerate(outputs):
            codes = malignant if name == "malignant" else [name]
            chosen = measured_test.dx.isin(codes).to_numpy()
            slopes = test.gradients[chosen, position]
            positive = (slopes.astype(np.float64) @ direction > 0).astype(np.float64)
            spread = cluster_intervals(positive[:, None], measured_test.lesion_id[chosen])[0]
            score = float(concept_scores(slopes, direction[None])[0])
            p = concept_test(score, concept_scores(slopes, chance), 0.5)
            changes = concept_changes(slopes, step[None])
            moved = cluster_intervals(changes, measured_test.lesion_id[chosen])[0]
            by_chance = concept_changes(slopes, chance_steps).mean(axis=0)
            rows.append({"output": name, "criterion": key, "images": int(chosen.sum()),
                         "tcav": score, "low": spread.low, "high": spread.high, "p": p,
                         "concept_auc": float(auc), "step": moved.mean, "step_low": moved.low,
                         "step_high": moved.high, "step_p": concept_test(moved.mean, by_chance),
                         "step_random": float(by_chance.std())})  # fmt: skip
    table = pd.DataFrame(rows)
    corrected = {name: holm(table[name].to_numpy()) for name in ("p", "step_p")}
    return table.assign(p_holm=corrected["p"], step_p_holm=corrected["step_p"])


def outline_row(data: Path, one: Any) -> dict[str, Any]:
    """Return how far the automatic outline of an image overlaps with the expert's."""
    with opened_rgb(read_bytes(data / one.path), str(one.path)) as picture:
        found = examine_outline(picture)
    row = {"image_id": one.image_id, "lesion_id": one.lesion_id, "dx": one.dx}
    if found is None:
        return {**row, "dice": 0.0, "expected_dice": 0.0, "sure": False}
    drawn = load_mask(data / one.mask_path, found.mask.shape)
    dice = 2 * float((found.mask & drawn).sum()) / float(found.mask.sum() + drawn.sum())
    return {**row, "dice": dice, "expected_dice": found.expected_dice, "sure": found.sure}


def outline_summary(table: pd.DataFrame) -> dict[str, Any]:
    """Return Dice of all and of accepted outlines, with intervals over lesions."""
    sure = table.sure.astype(bool).to_numpy()
    columns = {
        "dice": table.dice,
        "dice_accepted": table.dice.where(sure),
        "dice_refused": table.dice.where(~sure),
        "refused": (~sure).astype(float),
        "bad": (table.dice < BAD).astype(float),
        "bad_accepted": (table.dice < BAD).astype(float).where(sure),
        "bad_refused": (table.dice < BAD).astype(float).where(~sure),
    }
    spread = cluster_intervals(np.column_stack(list(columns.values())), table.lesion_id)
    found: dict[str, Any] = {
        name: {"mean": one.mean, "low": one.low, "high": one.high, "images": one.count}
        for name, one in zip(columns, spread, strict=True)
    }
    found["median_dice"] = float(table.dice.median())
    found["median_dice_accepted"] = float(table.dice[sure].median())
    bad = (table.dice >= BAD).to_numpy()
    found["auc_expected_dice"] = float(
        roc_auc(table.expected_dice.to_numpy(), bad, np.ones((1, len(table))))[0]
    )
    found["refused_by_class"] = table.assign(refused=~sure).groupby("dx").refused.mean().to_dict()
    return found


def reference(
    measured: pd.DataFrame, benign: Sequence[str], malignant: Sequence[str], source: str
) -> dict[str, Any]:
    """Return percentiles of criteria and lesion colors by class."""
    groups = {code: [code] for code in sorted(measured.dx.unique())}
    groups |= {"benign": list(benign), "malignant": list(malignant)}
    steps = np.linspace(0, 100, 21)
    rows, colors = {}, {}
    for name, codes in groups.items():
        of = measured[measured.dx.isin(codes)]
        if of.empty:
            continue
        quantiles = {k: [round(float(v), 4) for v in np.percentile(of[k], steps)] for k in CRITERIA}
        rows[name] = {"images": len(of), "percentiles": quantiles}
        if name == codes[0]:
            colors[name] = {
                part: [round(float(of[f"{short}_{n}"].mean()), 2) for n in LAB]
                for part, short in (("mean", "mean"), ("spread", "std"))
            }
    return {"source": source, "groups": rows, "colors": colors}


def with_network(
    content: dict[str, Any], classifier: ImageClassifier, outputs: Sequence[str],
    followed: pd.DataFrame, sensed: pd.DataFrame, layer: str,
) -> dict[str, Any]:  # fmt: skip
    """Add what the network does with each criterion."""
    found: dict[str, Any] = {}
    for name in outputs:
        found[name] = {}
        for key in CRITERIA:
            one = followed[(followed.output == name) & (followed.criterion == key)].iloc[0]
            two = sensed[(sensed.output == name) & (sensed.criterion == key)].iloc[0]
            numbers = {
                "correlation": one.correlation, "low": one.low, "high": one.high,
                "p": one.p_holm, "tcav": two.tcav, "tcav_p": two.p_holm,
                "step": two.step, "step_p": two.step_p_holm,
            }  # fmt: skip
            found[name][key] = {k: round(float(v), 4) for k, v in numbers.items()}
    about = {"fingerprint": classifier.identity["fingerprint"], "layer": layer, "outputs": found}
    return {**content, "network": about}


def ranges(mean: float, low: float, high: float, digits: int = 2) -> str:
    """Write a value with its interval.

    Example:
        >>> ranges(0.2, -0.1, 0.3)
        '0.20 (-0.10 to 0.30)'
    """
    # Adding zero turns a rounded -0.00 into 0.00.
    one, two, three = (round(value, digits) + 0.0 for value in (mean, low, high))
    return f"{one:.{digits}f} ({two:.{digits}f} to {three:.{digits}f})"


def medians(measured: pd.DataFrame, malignant: Sequence[str]) -> str:
    """Return medians by class, and how well each criterion alone tells classes apart."""
    rows = []
    pair = measured[measured.dx.isin(["mel", "nv"])]
    for key, criterion in CRITERIA.items():
        row: dict[str, Any] = {"criterion": criterion.name}
        for code in sorted(measured.dx.unique()):
            row[code] = f"{measured[measured.dx == code][key].median():.{criterion.digits}f}"
        row["AUC mel or nv"] = f"{area(pair[key], pair.dx == 'mel'):.2f}"
        row["AUC malignant"] = f"{area(measured[key], measured.dx.isin(malignant)):.2f}"
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def area(values: pd.Series, positive: pd.Series) -> float:
    """Return the area under the ROC curve."""
    weights = np.ones((1, len(values)))
    return float(roc_auc(values.to_numpy(), positive.to_numpy(bool), weights)[0])


def tables(
    followed: pd.DataFrame, sensed: pd.DataFrame, train: pd.DataFrame, malignant: Sequence[str]
) -> str:
    """Return what the page on criteria shows, as Markdown."""
    rows, concept = [], []
    for key, criterion in CRITERIA.items():
        row: dict[str, Any] = {"criterion": criterion.name}
        other: dict[str, Any] = {"criterion": criterion.name}
        for name in ("mel", "malignant"):
            one = followed[(followed.output == name) & (followed.criterion == key)].iloc[0]
            two = sensed[(sensed.output == name) & (sensed.criterion == key)].iloc[0]
            row[name] = ranges(one.correlation, one.low, one.high)
            row[f"p, {name}"] = f"{one.p_holm:.3f}"
            other["told apart"] = f"{two.concept_auc:.2f}"
            other[f"step, {name}"] = ranges(two.step, two.step_low, two.step_high)
            other[f"p of step, {name}"] = f"{two.step_p_holm:.3f}"
            other[f"TCAV, {name}"] = ranges(two.tcav, two.low, two.high)
            other[f"p of TCAV, {name}"] = f"{two.p_holm:.2f}"
        rows.append(row)
        concept.append(other)
    wide = followed.pivot(index="criterion", columns="output", values="correlation")
    significant = followed.pivot(index="criterion", columns="output", values="p_holm") < 0.05
    written = wide.map(lambda value: f"{value:.2f}")
    shown = written.where(~significant, written + "*")
    shown = shown.loc[list(CRITERIA)].rename(index=lambda key: CRITERIA[key].name).reset_index()
    return "\n\n".join(
        [
            medians(train, malignant),
            markdown(pd.DataFrame(rows)),
            markdown(shown),
            markdown(pd.DataFrame(concept)),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="prepared and split data set with outlines")
    parser.add_argument("--bundle", type=Path, help="default: the model that comes with dermlens")
    parser.add_argument("--out", type=Path, default=Path("criteria"), help="folder to write")
    parser.add_argument("--source", default="", help="what the reference table says of its origin")
    parser.add_argument("--concept-images", type=int, default=2000)
    parser.add_argument("--randoms", type=int, default=2000, help="random concepts")
    parser.add_argument("--resamples", type=int, default=2000)
    given = parser.parse_args()
    data, out = given.data, given.out
    classifier = load_bundle(find_bundle(given.bundle))
    manifest, labels = read_manifest(data), data_labels(data)
    measured_by, items = {}, {}
    for split in ("test", "train"):
        table = select_split(manifest, split)
        folder = out / f"measured_{split}"
        measured_by[split] = in_chunks(table, folder, lambda o: criteria_row(data, o))
    found = in_chunks(
        select_split(manifest, "test"), out / "outlines", lambda o: outline_row(data, o)
    )
    write_json(out / "outlines.json", outline_summary(found))
    for split, count in (("test", len(manifest)), ("train", given.concept_images)):
        rows = select_split(manifest, split)
        usable = measured_by[split].dropna().image_id
        items[split] = select_items(
            rows[rows.image_id.isin(usable)], data, classifier.classes, count, 0
        )
    seen = readings(
        LayerReader(classifier.model, log_odds(classifier)), data, items["test"], out / "read_test"
    )
    pool = readings(LayerReader(classifier.model), data, items["train"], out / "read_train")
    measured = {
        split: measured_by[split].set_index("image_id").loc[[o.image_id for o in items[split]]]
        for split in items
    }
    names = [*classifier.classes, *(["malignant"] if classifier.malignant else [])]
    outputs = pd.DataFrame(seen.outputs, columns=names)
    malignant = [classifier.classes[k] for k in classifier.malignant]
    benign = [code for code in classifier.classes if code not in malignant]
    followed = follow(outputs, measured["test"], given.resamples)
    sensed = concepts(
        pool, measured["train"], seen, measured["test"], names, malignant, given.randoms
    )
    write_csv(out / "following.csv", followed)
    write_csv(out / "concepts.csv", sensed)
    source = given.source or labels.name
    content = reference(measured_by["train"].dropna(), benign, malignant, source)
    content = with_network(content, classifier, names, followed, sensed, seen.layer)
    write_json(out / "criteria_reference.json", content)
    with written_beside(out / "tables.md") as building:
        building.write_text(tables(followed, sensed, measured_by["train"].dropna(), malignant))
    print(followed.round(3).to_string(), sensed.round(3).to_string(), sep="\n\n")


if __name__ == "__main__":
    main()

"""Does a classifier tell images of two sources apart, and does its answer follow? In one table.

    python benchmarks/source_probe.py DATA EXTRA [--bundle BUNDLE] [--split train] [--images 1500]

EXTRA is a data set of smaller photographs that the bundle was trained on besides DATA. As many
training images of both are drawn, class by class alike. (For a bundle that was not, --split
validation: else what is found could be that it knows its training images.) A linear probe learns to
tell the sources by the network's pooled features, and is asked about lesions that it has not seen:
0.5 is chance. The same with the photographs of DATA reduced to the size of those of EXTRA and
enlarged again, and then saved as JPEG with the tables of EXTRA besides: what is left is neither
sharpness nor compression. Last, what that reduction does to the answers
for validation images: if sharpness had become a cue, they would move.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermlens.data.images import opened_rgb, read_bytes
from dermlens.lesion.worse_photographs import CHANGES, Change, changed
from dermlens.model.bundle import Bundle, find_bundle, load_bundle
from dermlens.model.metrics import roc_auc
from dermlens.model.prediction import Predictor, split_features, with_features
from dermlens.model.training_data import load_training_data
from dermlens.progress import progress
from dermlens.report.html import markdown_table

REDUCED = next(one for one in CHANGES if one.name == "small")
FOLDS = 5


def looked_at(
    bundle: Bundle, files: list[Path], change: Change | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and pooled features of files, after a change if one is given."""
    predictor, found = Predictor(with_features(bundle.model)), []
    with progress("Looking", len(files)) as advance:
        for start in range(0, len(files), 256):
            images = []
            for path in files[start : start + 256]:
                with opened_rgb(read_bytes(path), str(path)) as photograph:
                    images.append(changed(photograph, change, bundle.input_size))
            found.append(predictor.logits(np.stack(images)))
            advance(len(images))
    return split_features(np.concatenate(found), len(bundle.classes))


def alike(table: pd.DataFrame, counts: pd.Series, seed: int) -> pd.DataFrame:
    """Draw as many rows of each class as are asked for."""
    parts = [
        table[table.dx == code].sample(count, random_state=seed) for code, count in counts.items()
    ]
    return pd.concat(parts)


def saved_like(path: Path) -> Change:
    """Return the change that gives photographs the size and the JPEG tables of another one."""
    from PIL import Image

    with Image.open(path) as model:
        size, tables = model.size, model.quantization

    def save(photograph: Any, scale: float) -> Any:
        stream = io.BytesIO()
        photograph.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", qtables=tables)
        return Image.open(stream).convert("RGB")

    return Change("saved_like", "saved like another one", True, save)


def told_apart(first: np.ndarray, second: np.ndarray, lesions: np.ndarray, seed: int) -> float:
    """Return the AUC with which a linear probe tells features apart, lesions kept together."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features = np.concatenate([first, second])
    source = np.repeat([0, 1], [len(first), len(second)])
    scores = np.zeros(len(features))
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(features, source, lesions):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=500))
        probe.fit(features[train], source[train])
        scores[test] = probe.decision_function(features[test])
    return float(roc_auc(scores, source == 1, np.ones((1, len(source))))[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("extra", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--split", choices=("train", "validation"), default="train")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    bundle = load_bundle(find_bundle(given.bundle))
    data = load_training_data(given.data, [given.extra])
    (more,) = data.extras
    share = min(1.0, given.images / len(more.rows))
    mine = data.table.iloc[data.rows[given.split]]
    both = pd.concat([more.chosen.dx.value_counts() * share, mine.dx.value_counts()], axis=1)
    counts = both.min(axis=1).astype(int)
    ours = alike(mine, counts, given.seed)
    theirs = alike(more.chosen, counts, given.seed)
    lesions = np.concatenate([ours.lesion_id, theirs.lesion_id])
    files = [data.folder / path for path in ours.path]
    _, of_theirs = looked_at(bundle, [more.folder / path for path in theirs.path], None)
    alike_saved = saved_like(more.folder / more.chosen.path.iloc[0])
    rows = []
    for words, change in (
        ("as they are", None),
        ("reduced like the extra ones", REDUCED),
        ("reduced and compressed like them", alike_saved),
    ):
        _, of_ours = looked_at(bundle, files, change)
        area = told_apart(of_ours, of_theirs, lesions, given.seed)
        rows.append(
            {"photographs of the data set": words, "sources told apart, AUC": f"{area:.3f}"}
        )
    print(f"{bundle.label}; {len(ours):,} images of each source.\n")
    print(markdown_table(pd.DataFrame(rows)))
    held = data.table.iloc[data.rows["validation"]]
    before, after = (
        looked_at(bundle, [data.folder / path for path in held.path], change)[0]
        for change in (None, REDUCED)
    )
    moved = bundle.probabilities(after) - bundle.probabilities(before)
    same = (before.argmax(axis=1) == after.argmax(axis=1)).mean()
    print(
        f"\nValidation images reduced and enlarged: {100 * same:.1f} % of the answers stay; "
        "mean change of probability:\n"
    )
    mean = {
        code: f"{change:+.4f}"
        for code, change in zip(bundle.classes, moved.mean(axis=0), strict=True)
    }
    print(markdown_table(pd.DataFrame([mean])))


if __name__ == "__main__":
    main()

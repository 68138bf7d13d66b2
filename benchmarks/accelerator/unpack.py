"""Make a run of dermlens out of what an accelerator trained: a bundle, calibrated on validation.

    python benchmarks/accelerator/unpack.py DATA --extra EXTRA --trained OUT --start BUNDLE \
        --stage student --out RUN
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from dermlens.data.augmentation import STRONG_AUGMENTATION
from dermlens.data.degradation import degradation_named
from dermlens.model.classifier import Architecture, build_classifier
from dermlens.model.configuration import HAM10000
from dermlens.model.history import History
from dermlens.model.training import claim_folder, finish
from dermlens.model.training_data import load_training_data
from dermlens.model.weights import full_coverage


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--extra", type=Path, action="append", default=[])
    parser.add_argument("--trained", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="bundle it started from")
    parser.add_argument("--stage", default="student")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = load_training_data(options.data, options.extra)
    facts = json.loads((options.trained / f"{options.stage}.json").read_text())
    architecture = Architecture(facts["backbone"], tuple(facts["size"]))
    model = build_classifier(architecture)
    with np.load(options.trained / f"{options.stage}.npz") as stored:
        for layer in model.layers:
            names = [f"{layer.name}__{weight.name}" for weight in layer.weights]
            if names and names[0] in stored:
                layer.set_weights([stored[name] for name in names])
    shared = ("epochs", "seed", "batch_size", "mixup", "teacher_share")
    shared += ("pretrained_rate", "fresh_rate", "average_decay")
    how = replace(
        HAM10000,
        architecture=architecture,
        weights=str(options.start / "weights.h5"),
        precision="mixed_bfloat16",
        head_epochs=0,
        train_from="conv3",
        label_smoothing=0.0,
        early_size=None,
        early_epochs=0,
        augmentation=STRONG_AUGMENTATION,
        degradation=degradation_named("strong" if facts["worse"] else "none"),
        **{name: facts[name] for name in shared},
    )
    claim_folder(options.out, how, data)
    history = History(options.out, data, keep=False)
    history.rows = [{"phase": "finetuning", **row} for row in facts["history"]]
    finish(
        options.out,
        model.get_weights(),
        facts["best_epoch"],
        None,
        full_coverage(model),
        how,
        data,
        history,
    )


if __name__ == "__main__":
    main()

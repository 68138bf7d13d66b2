"""Transfer: a new last layer on a pretrained backbone, which itself stays as it is."""

from pathlib import Path

import numpy as np
import pytest

from dermlens.errors import ModelError, UsageError
from dermlens.labels import HAM10000, named_classes
from dermlens.model import training
from dermlens.model.bundle import SHIPPED
from dermlens.model.calibration import negative_log_likelihood
from dermlens.model.classifier import Architecture, build_classifier, head_layers
from dermlens.model.head import train_head
from dermlens.model.out_of_distribution import fit_ood_detector
from dermlens.model.prediction import Predictor, split_features, with_features
from dermlens.model.training import train
from dermlens.model.training_data import load_training_data
from dermlens.model.weights import load_by_name, save_by_name
from tests_support import register_tiny_backbone
from tests_support import tiny_configuration as configuration


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in place of the shipped bundle: a tiny network that tells three classes apart."""
    register_tiny_backbone()
    folder = tmp_path_factory.mktemp("shipped")
    three = Architecture("tiny", (32, 40), classes=named_classes(["a", "b", "c"]).codes)
    save_by_name(build_classifier(three, seed=5), folder / "weights.h5")
    return folder


@pytest.fixture(scope="module")
def transferred(shipped: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SHIPPED", shipped)
        setup = configuration(weights="shipped", epochs=0, head_epochs=4, head_rate=0.02)
        return train(prepared, out, setup), out


def test_the_backbone_is_the_shipped_one_and_the_last_layer_is_new(
    transferred, shipped: Path
) -> None:
    bundle, _ = transferred
    reference = build_classifier(bundle.architecture, seed=9)
    load_by_name(reference, shipped / "weights.h5", backbone_only=True)
    own = {id(layer) for layer in head_layers(reference)}
    pairs = list(zip(bundle.model.layers, reference.layers, strict=True))
    for mine, theirs in pairs:
        if id(theirs) not in own:
            for left, right in zip(mine.get_weights(), theirs.get_weights(), strict=True):
                assert np.array_equal(left, right)
    assert bundle.labels.codes == HAM10000.codes
    assert bundle.model.output_shape == (None, 7)


def test_history_and_facts_say_what_was_done(transferred) -> None:
    bundle, out = transferred
    assert list(bundle.history.phase) == ["head"] * 4
    assert bundle.history.train_loss.iloc[-1] < bundle.history.train_loss.iloc[0]
    training_facts = bundle.facts["training"]
    assert training_facts["weights"] == "shipped" and training_facts["best_epoch"] is None
    assert not (out / "checkpoint").exists()


def test_calibration_and_detector_are_fitted_as_if_all_were_evaluated_again(
    transferred, prepared: Path
) -> None:
    bundle, _ = transferred
    data = load_training_data(prepared)
    rows = np.concatenate([data.rows["train"], data.rows["validation"]])
    joined = Predictor(with_features(bundle.model)).logits(data.images((32, 40)), rows)
    logits, features = split_features(joined, 7)
    known = len(data.rows["train"])
    labels = data.labels[data.rows["train"]]
    expected = fit_ood_detector(features[:known], labels, features[known:], classes=7)
    assert bundle.ood_detector.threshold == pytest.approx(expected.threshold, rel=1e-3)
    kept = bundle.history.validation_balanced_accuracy.max()
    truth = data.labels[data.rows["validation"]]
    recalls = [(logits[known:][truth == c].argmax(1) == c).mean() for c in np.unique(truth)]
    assert np.mean(recalls) == pytest.approx(kept)


def test_a_backbone_that_is_not_pretrained_needs_epochs(prepared: Path, tmp_path: Path) -> None:
    register_tiny_backbone()
    for changes in ({"weights": "none", "epochs": 0}, {"weights": "shipped", "head_epochs": 0}):
        with pytest.raises(UsageError, match="Without fine-tuning epochs"):
            configuration(**{"epochs": 0, **changes})
    partial = tmp_path / "part.h5"
    network = build_classifier(Architecture("tiny", (32, 40)), seed=0)
    save_by_name(network, partial)
    import h5py

    with h5py.File(partial, "r+") as file:
        names = [name for name in file.attrs["layer_names"] if "conv2" not in str(name)]
        file.attrs["layer_names"] = names
    with pytest.raises(ModelError, match="Training the last layer alone would leave them so"):
        train(prepared, tmp_path / "run", configuration(weights=str(partial), epochs=0))
    assert not (tmp_path / "run").exists()


def test_shipped_weights_fit_the_network_they_are_offered_for() -> None:
    """Layer names and shapes alone; nothing is copied from another backbone."""
    assert (SHIPPED / "weights.h5").is_file()
    register_tiny_backbone()
    with pytest.raises(ModelError, match="the weights of another network"):
        load_by_name(
            build_classifier(Architecture("tiny", (32, 40))),
            SHIPPED / "weights.h5",
            backbone_only=True,
        )


def test_the_epoch_of_the_lowest_validation_loss_is_kept() -> None:
    """Not the one that is right most often by class, nor the last."""
    register_tiny_backbone()
    setup = configuration(weights="shipped", epochs=0, head_epochs=12, head_rate=0.3)
    model = build_classifier(setup.architecture, seed=2)
    layer, generator = model.get_layer("logits"), np.random.default_rng(1)
    labels = np.tile(np.arange(7), 16)
    features = generator.normal(size=(len(labels), layer.kernel.shape[0])).astype(np.float32)
    features[np.arange(len(labels)), labels] += 1.0
    rows = {"train": np.arange(56), "validation": np.arange(56, 112)}
    seen: list[np.ndarray] = []
    train_head(model, features, labels, rows, setup, lambda *told: seen.append(told[2]))
    truth = labels[rows["validation"]]
    losses = [negative_log_likelihood(one, truth) for one in seen]
    right = [np.mean(one.argmax(axis=1) == truth) for one in seen]
    assert np.argmin(losses) not in (np.argmax(right), len(seen) - 1)
    kernel, bias = layer.get_weights()
    np.testing.assert_array_equal(
        features[rows["validation"]] @ kernel + bias, seen[np.argmin(losses)]
    )

"""Bundles of foreign models: from a .keras file to every command, without running its code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dermlens.cli import main
from dermlens.data.splits import split_data_set
from dermlens.data.synthetic import make_synthetic
from dermlens.errors import DataError, ModelError
from dermlens.labels import label_set
from dermlens.model.bundle import load_bundle
from dermlens.model.foreign import adopt, load_keras_model

SIZE = (32, 48)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)


def small(units: int = 2, activation: str = "softmax", extra: Any = None) -> Any:
    import keras
    from keras import layers

    stack = [keras.Input((*SIZE, 3)), layers.Conv2D(4, 3, 2), *([extra] if extra else [])]
    head = layers.Dense(units, activation=activation)
    return keras.Sequential([*stack, layers.GlobalAveragePooling2D(), head])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("drawn") / "data"
    labels = label_set("binary")
    make_synthetic(data, images=24, size=SIZE, seed=1, labels=labels, workers=1)
    split_data_set(data)
    return data


def test_an_adopted_model_answers_as_it_did(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / "m.keras")
    settings = {"value_range": (0.0, 1.0)}
    bundle = adopt(tmp_path / "m.keras", label_set("binary"), tmp_path / "b", **settings)
    again = load_bundle(tmp_path / "b")
    expected = np.asarray(model(IMAGES.astype(np.float32) / 255, training=False))
    for one in (bundle, again):
        assert np.allclose(one.probabilities(one.logits(IMAGES)), expected, atol=1e-6)
        assert one.adopted and not one.calibrated and one.classes == ("benign", "malignant")
        assert one.ood_detector is None and one.history.empty and one.malignant == (1,)
    assert again.identity["fingerprint"] == bundle.identity["fingerprint"]
    assert (tmp_path / "b" / "model.keras").read_bytes() == (tmp_path / "m.keras").read_bytes()


def test_calibration_is_fitted_on_validation_images(tmp_path: Path, drawn: Path) -> None:
    small(1, "sigmoid").save(tmp_path / "m.keras")
    labels = label_set("binary")
    bundle = adopt(tmp_path / "m.keras", labels, tmp_path / "b", data=drawn, value_range=(-1, 1))
    calibration = load_bundle(tmp_path / "b").calibration
    assert bundle.calibrated and calibration.fitted and calibration.link == "sigmoid"
    assert calibration.prediction_sets is not None
    assert list(calibration.operating_points) == ["malignant"]
    assert bundle.facts["data"]["source"] == "synthetic" and bundle.synthetic


def test_classes_that_the_model_does_not_know_are_refused(tmp_path: Path, drawn: Path) -> None:
    small(3).save(tmp_path / "m.keras")
    with pytest.raises(DataError, match="has the class 'benign', which the model does not know"):
        adopt(tmp_path / "m.keras", label_set("a,b,c"), tmp_path / "b", data=drawn)
    with pytest.raises(ModelError, match=r"2 class names .* 3 outputs"):
        adopt(tmp_path / "m.keras", label_set("binary"), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    import keras

    with_code = small(extra=keras.layers.Lambda(lambda x: x * 2))
    with_code.save(tmp_path / "lambda.keras")
    with pytest.raises(ModelError, match="Lambda layers hold code"):
        load_keras_model(tmp_path / "lambda.keras")
    (tmp_path / "m.h5").write_bytes(b"")
    with pytest.raises(ModelError, match=r"is not a \.keras file"):
        load_keras_model(tmp_path / "m.h5")
    (tmp_path / "damaged.keras").write_bytes(b"PK")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_keras_model(tmp_path / "damaged.keras")


OWN = """
import keras

@keras.saving.register_keras_serializable("mine")
class Twice(keras.layers.Layer):
    def call(self, inputs):
        return inputs * 2.0
"""


def test_layers_of_the_users_own_are_named_explicitly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib
    import sys

    (tmp_path / "own_layers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("own_layers")
    small(extra=module.Twice()).save("m.keras")
    # As in a process in which nobody has imported it yet.
    import keras

    keras.saving.get_custom_objects().clear()
    del sys.modules["own_layers"]
    with pytest.raises(ModelError, match="--custom"):
        adopt(Path("m.keras"), label_set("binary"), Path("b"))
    custom = ["own_layers:Twice"]
    adopt(Path("m.keras"), label_set("binary"), Path("b"), custom=custom)
    keras.saving.get_custom_objects().clear()
    sys.modules.pop("own_layers")
    with pytest.raises(ModelError, match="If you trust that code, name it: --custom own_layers"):
        load_bundle(Path("b"))
    assert load_bundle(Path("b"), custom=custom).classes == ("benign", "malignant")
    with pytest.raises(ModelError, match="'own_layers:Thrice' was not found"):
        load_keras_model(Path("m.keras"), ["own_layers:Thrice"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small().save(tmp_path / "m.keras")
    place = str(tmp_path / "b")
    names = ["--classes", "benign,malignant", "--value-range", "0,1"]
    with pytest.raises(SystemExit) as stop:
        main(["adopt", str(tmp_path / "m.keras"), *names, "--out", place])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "classes benign, malignant" in said and "Not calibrated" in said
    facts = json.loads((tmp_path / "b" / "bundle.json").read_text())
    assert facts["labels"]["name"] == "binary" and facts["adopted"]["value_range"] == [0.0, 1.0]
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(tmp_path / "m.keras"), str(tmp_path)])
    assert stop.value.code == 2 and "dermlens adopt" in capsys.readouterr().err

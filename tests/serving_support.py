"""A tiny untrained classifier and pictures for the tests of export, inference and web page."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from dermlens.labels import HAM10000, LabelSet, named_classes
from dermlens.model.balanced_rule import BalancedRule
from dermlens.model.bundle import Bundle, save_bundle
from dermlens.model.calibration import Calibration, OperatingPoint
from dermlens.model.classifier import Architecture, build_classifier
from dermlens.model.conformal import PredictionSets
from dermlens.model.image_classifier import ImageClassifier
from tests_support import register_tiny_backbone

SIZE = (32, 48)


def picture(seed: int, height: int = 60, width: int = 80) -> Image.Image:
    """A smooth random picture with some noise."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int32)
    noisy = smooth + generator.integers(-20, 21, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def untrained_bundle() -> Bundle:
    """A bundle, not on disk, whose balanced rule is not always the most probable class."""
    register_tiny_backbone()
    architecture = Architecture("tiny", SIZE)
    model = build_classifier(architecture, seed=3)
    weights = np.random.default_rng(0).normal(size=(8, 7)) * 3
    model.get_layer("logits").kernel.assign(weights)
    codes = {"malignant": ("akiec", "bcc", "mel"), "melanoma": ("mel",)}
    points = {
        name: OperatingPoint(name, positives, threshold, 0.95, 0.9, 0.5, 9, 11)
        for (name, positives), threshold in zip(codes.items(), (0.4, 0.1), strict=True)
    }
    rule = BalancedRule(0.8, tuple(np.log([0.005, 0.05, 0.1, 0.005, 0.1, 0.72, 0.02])))
    # At 90 % the lowest of nine validation images sets the threshold; vasc has too few of them.
    known = {
        code: tuple(np.linspace(0.02 + 0.05 * k, 0.9, 9)) for k, code in enumerate(HAM10000.codes)
    }
    sets = PredictionSets(known | {"vasc": (0.5, 0.6)})
    calibration = Calibration(1.7, rule, points, prediction_sets=sets)
    facts: dict[str, Any] = {"data": {"synthetic": True}, "license": "MIT"}
    return Bundle(Path("bundle"), architecture, calibration, facts, model)


def save_untrained(folder: Path, calibration: Calibration | None = None) -> Path:
    """Write the bundle to a folder, with another calibration if one is given, and return it."""
    bundle = untrained_bundle()
    save_bundle(
        folder,
        model=bundle.model,
        architecture=bundle.architecture,
        calibration=calibration or bundle.calibration,
        training={},
        data=bundle.facts["data"],
        history=pd.DataFrame({"epoch": [0]}),
        split=pd.DataFrame({"image_id": ["a"], "split": ["train"]}),
        labels=bundle.labels,
    )
    return folder


def text_of(html: str) -> str:
    """The text of a piece of HTML, which must be well formed."""
    parts: list[str] = []
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: Any) -> None:
            if tag != "img":
                opened.append(tag)
            else:
                assert dict(attributes)["alt"]

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

        def handle_data(self, data: str) -> None:
            parts.append(data)

    Reader(convert_charrefs=True).feed(html)
    assert opened == []
    return " ".join(" ".join(parts).replace("\N{NO-BREAK SPACE}", " ").split())


def foreign_network(
    classes: int = 2, activation: str = "softmax", *, subclassed: bool = False
) -> Any:
    """A Keras model of somebody else: values 0..1, a nested backbone, another head than here."""
    import keras

    keras.utils.set_random_seed(7)
    height, width = SIZE
    inner = keras.Input((height // 2, width // 2, 8))
    features = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(inner)
    backbone = keras.Model(inner, features, name="backbone")
    body = [
        keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
        backbone,
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(6, activation="relu"),
        keras.layers.Dense(classes, activation=activation),
    ]
    if not subclassed:
        return keras.Sequential([keras.Input((*SIZE, 3)), *body])

    class Foreign(keras.Model):
        """Layers called in Python code, so that nobody sees a graph."""

        def __init__(self) -> None:
            super().__init__(name="foreign")
            self.parts = body

        def call(self, values: Any, training: Any = None) -> Any:
            for part in self.parts:
                values = part(values)
            return values

    model = Foreign()
    model(np.zeros((1, *SIZE, 3), np.float32))
    return model


def adopted_bundle(
    codes: tuple[str, ...] = ("cat", "golden retriever"),
    activation: str = "softmax",
    *,
    subclassed: bool = False,
    labels: LabelSet | None = None,
) -> Bundle:
    """A bundle of a foreign model: no calibration, detector, history or training."""
    labels = labels or named_classes(codes)
    model = foreign_network(len(labels), activation, subclassed=subclassed)
    settings: dict[str, Any] = {"value_range": (0.0, 1.0), "output": activation}
    classifier = ImageClassifier(model, labels, input_size=SIZE, **settings)
    facts: dict[str, Any] = {
        "adopted": {**settings, "file": "model.keras", "note": classifier.note},
        "training": {},
        "data": {"source": "unknown", "synthetic": False},
        "checksum": "0" * 64,
    }
    return Bundle(
        Path("adopted"),
        Architecture("keras", SIZE, labels.codes),
        classifier.calibration,
        facts,
        model,
        labels=labels,
        **settings,
    )

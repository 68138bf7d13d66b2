"""A network that is quick to build and train, for tests and the processes they start."""

import os
from typing import Any

_SPARED = "DERMLENS_TESTS_SPARE_OPTIMIZATION"


def tiny_backbone(
    include_top: bool = False, weights: str | None = None, input_tensor: Any = None
) -> Any:
    """Two convolutions with batch normalization: traces in a second."""
    import keras

    x = keras.layers.Conv2D(6, 3, strides=2, padding="same", name="conv1_conv")(input_tensor)
    x = keras.layers.BatchNormalization(name="conv1_bn")(x)
    x = keras.layers.ReLU(name="conv1_relu")(x)
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name="conv2_conv")(x)
    x = keras.layers.BatchNormalization(name="conv2_bn")(x)
    x = keras.layers.ReLU(name="conv2_relu")(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


def spare_optimization() -> None:
    """Leave most optimization of graphs out, in this process and those that train for it."""
    import tensorflow as tf

    spared = ("arithmetic_optimization", "dependency_optimization", "function_optimization",
              "layout_optimizer", "loop_optimization", "shape_optimization")  # fmt: skip
    tf.config.optimizer.set_experimental_options(dict.fromkeys(spared, False))
    os.environ[_SPARED] = "1"


def register_tiny_backbone() -> None:
    """Make the tiny backbone known as ``tiny``."""
    import keras

    if _SPARED in os.environ:
        spare_optimization()

    from dermlens.model.classifier import BACKBONES

    keras.applications.TinyNet = tiny_backbone
    BACKBONES["tiny"] = ("TinyNet", "tf")


def tiny_configuration(**changes: Any) -> Any:
    """How to train the tiny backbone in seconds."""
    from dataclasses import replace

    from dermlens.data.pipeline import ImbalanceHandling
    from dermlens.model.classifier import Architecture
    from dermlens.model.configuration import TrainingConfiguration

    base = TrainingConfiguration(
        architecture=Architecture("tiny", (32, 40), dropout=0.2),
        epochs=3,
        batch_size=8,
        train_from="all",
        fresh_rate=5e-3,
        average_decay=0.9,
        imbalance=ImbalanceHandling("none"),
    )
    return replace(base, **changes)

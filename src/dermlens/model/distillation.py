"""Learning from other networks' outputs beside the labels (Hinton et al. 2015).

Teachers look at the very images the student is trained on, varied and mixed as they are
("function matching", Beyer et al. 2022), so that they are never asked about what they have
memorized. Of several the logits are averaged.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dermlens.errors import ModelError
from dermlens.model.bundle import load_bundle
from dermlens.model.classifier import build_classifier
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.training_data import TrainingData, require_same_data
from dermlens.model.weights import set_weights

Teach = Callable[[Any], Any]
"""Images of any size, (B, H, W, 3), to the logits to learn from, float32 (B, C)."""


def load_teachers(configuration: TrainingConfiguration, data: TrainingData) -> Teach | None:
    """Return what the teachers of a run say of images, the mean of their logits; None without any.

    They must have been trained on the same split: one that saw the validation images would make
    validation figures too good.

    Raises:
        ModelError: If a bundle cannot be loaded or tells other diagnoses apart.
        DataError: If one was trained on other data.
    """
    if not configuration.teachers:
        return None
    networks = [_load(Path(path), configuration, data) for path in configuration.teachers]

    def teach(images: Any) -> Any:
        import tensorflow as tf

        said = [tf.cast(network(images, training=False), tf.float32) for network in networks]
        return tf.add_n(said) / len(said)

    return teach


def _load(path: Path, configuration: TrainingConfiguration, data: TrainingData) -> Any:
    """Return a teacher, a frozen network that takes images of any size."""
    bundle = load_bundle(path)
    if bundle.adopted:
        raise ModelError(f"The teacher {path} is an adopted model. Use one trained with dermlens.")
    if bundle.classes != configuration.architecture.classes:
        raise ModelError(
            f"The teacher {path} tells {', '.join(bundle.classes)} apart, the network to train "
            f"{', '.join(configuration.architecture.classes)}. Use a teacher of the same classes."
        )
    require_same_data(path, bundle.facts["data"].get("fingerprint"), data)
    teacher = build_classifier(
        bundle.architecture, precision=configuration.precision, any_size=True
    )
    set_weights(teacher, bundle.model.get_weights())
    teacher.trainable = False
    return teacher


def teacher_facts(configuration: TrainingConfiguration) -> list[dict[str, Any]]:
    """Say in a bundle what taught it: backbone, kept epoch and terms of each teacher."""
    bundles = [load_bundle(Path(path)) for path in configuration.teachers]
    return [
        {
            "backbone": one.architecture.backbone,
            "best_epoch": one.best_epoch,
            "license": one.facts.get("license"),
        }
        for one in bundles
    ]

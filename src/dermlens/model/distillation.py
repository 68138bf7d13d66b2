"""Learning from other networks' outputs beside the labels (Hinton et al. 2015).

Teachers look at the very images the student is trained on, varied and mixed as they are
("function matching", Beyer et al. 2022), so that they are never asked about what they have
memorized. Of several the logits are averaged. A teacher that takes images of another size gets the
same pictures, varied and mixed alike, in its own size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermlens.errors import ModelError
from dermlens.model.bundle import load_bundle
from dermlens.model.classifier import build_classifier
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.training_data import TrainingData, require_same_data
from dermlens.model.weights import set_weights


@dataclass(frozen=True)
class Teachers:
    """What a run learns from, frozen networks that take images of any size.

    Attributes:
        networks: Each with the place in ``sizes`` of what it looks at; None for the images of the
            student, whatever size they have at the time.
        sizes: (height, width) of what is needed beside the images of the student.
    """

    networks: tuple[tuple[Any, int | None], ...]
    sizes: tuple[tuple[int, int], ...]

    def __call__(self, images: Any, others: Sequence[Any]) -> Any:
        """Return the mean of their logits, float32 (B, C).

        Args:
            images: Of the student, (B, H, W, 3).
            others: The same images in each of ``sizes``.
        """
        import tensorflow as tf

        seen = [images if place is None else others[place] for _, place in self.networks]
        said = [
            tf.cast(network(one, training=False), tf.float32)
            for (network, _), one in zip(self.networks, seen, strict=True)
        ]
        return tf.add_n(said) / len(said)


def load_teachers(configuration: TrainingConfiguration, data: TrainingData) -> Teachers | None:
    """Return the teachers of a run, or None without any.

    They must have been trained on the same split: one that saw the validation images would make
    validation figures too good.

    Raises:
        ModelError: If a bundle cannot be loaded or tells other diagnoses apart.
        DataError: If one was trained on other data.
    """
    if not configuration.teachers:
        return None
    loaded = [_load(Path(path), configuration, data) for path in configuration.teachers]
    own = configuration.architecture.input_size
    sizes = tuple(dict.fromkeys(size for _, size in loaded if size != own))
    places = [None if size == own else sizes.index(size) for _, size in loaded]
    networks = (network for network, _ in loaded)
    return Teachers(tuple(zip(networks, places, strict=True)), sizes)


def _load(
    path: Path, configuration: TrainingConfiguration, data: TrainingData
) -> tuple[Any, tuple[int, int]]:
    """Return a teacher, a frozen network that takes images of any size, and its own size."""
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
    return teacher, bundle.architecture.input_size


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

"""Learning from another network's outputs beside the labels (Hinton et al. 2015).

The teacher looks at the very images the student is trained on, varied and mixed as they are
("function matching", Beyer et al. 2022), so that it is never asked about what it has memorized.
"""

from pathlib import Path
from typing import Any

from dermlens.errors import ModelError
from dermlens.model.bundle import load_bundle
from dermlens.model.classifier import build_classifier
from dermlens.model.configuration import TrainingConfiguration
from dermlens.model.training_data import TrainingData, require_same_data
from dermlens.model.weights import set_weights

NO_TEACHER = "none"


def load_teacher(configuration: TrainingConfiguration, data: TrainingData) -> Any | None:
    """Return the teacher of a run: a frozen network that takes images of any size, or None.

    It must have been trained on the same split: one that saw the validation images would make
    validation figures too good.

    Raises:
        ModelError: If the bundle cannot be loaded or tells other diagnoses apart.
        DataError: If it was trained on other data.
    """
    if configuration.teacher == NO_TEACHER:
        return None
    path = Path(configuration.teacher)
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


def teacher_facts(configuration: TrainingConfiguration) -> dict[str, Any] | None:
    """Say in a bundle what taught it: backbone and kept epoch, or None."""
    if configuration.teacher == NO_TEACHER:
        return None
    bundle = load_bundle(Path(configuration.teacher))
    return {"backbone": bundle.architecture.backbone, "best_epoch": bundle.best_epoch}

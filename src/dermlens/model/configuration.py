"""Everything a training run depends on, as one value that is stored with its result."""

from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from dermlens.data.augmentation import Augmentation
from dermlens.data.degradation import Degradation
from dermlens.data.pipeline import ImbalanceHandling
from dermlens.errors import UsageError
from dermlens.model.classifier import Architecture
from dermlens.schema import Count, Positive, Section, Share, settings

LEAST_EARLY_SIDE = 64
"""Pixels below which smaller early images would save nothing and show nothing."""
NotNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
AtLeastOne = Annotated[int, Field(ge=1)]


@settings
class TrainingConfiguration:
    """How to train.

    Attributes:
        architecture: Network and input size.
        weights: ``"none"``, ``"imagenet"`` (download), ``"shipped"`` (the backbone of the trained
            model that comes with dermlens, ResNet50 only; non-commercial use) or the path of an
            ``.h5`` file.
        seed: Sets initialization, order, augmentation and dropout.
        precision: ``"float32"`` or ``"mixed_bfloat16"``.
        batch_size: Images per step.
        head_epochs: Epochs of the first phase (the last layer on cached features); skipped
            where the backbone is not wholly pretrained, since its features mean nothing then.
        head_rate: Peak learning rate of the first phase.
        epochs: Epochs of the second phase (fine-tuning); 0 for the first phase alone.
        train_from: First backbone stage to fine-tune, a prefix of layer names; ``"all"`` or
            ``"none"``. Layers without pretrained weights are always trained.
        pretrained_rate: Peak learning rate of pretrained layers.
        fresh_rate: Peak learning rate of layers that start at their initializer.
        weight_decay: Of AdamW; biases and normalization are left out.
        warmup_epochs: Epochs of linear warm-up before the cosine.
        clip_norm: Largest global gradient norm.
        average_decay: Of the exponential moving average of weights; 0 for none.
        label_smoothing: Share of the target spread over all classes, 0..1.
        focal_gamma: Exponent of the focal loss; 0 for cross-entropy.
        imbalance: Handling of rare classes.
        augmentation: Strength of online augmentation.
        mixup: Parameter alpha of mixing pairs of images; 0 for none.
        degradation: How images are made worse for the network, after its teachers have looked.
        teachers: Folders of bundles whose outputs are learned beside the labels (distillation); the
            mean of their logits counts.
        teacher_share: Share of the loss that the teachers set, 0..1.
        teacher_temperature: Softens both networks' outputs in that share.
        patience: Epochs without a lower validation loss before stopping; 0: never.
        early_size: Smaller (height, width) for the first ``early_epochs`` epochs, or None.
        early_epochs: Epochs at ``early_size``.
    """

    architecture: Architecture = field(default_factory=Architecture)
    weights: str = "none"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    batch_size: AtLeastOne = 32
    head_epochs: Count = 10
    head_rate: NotNegative = 3e-3
    epochs: Count = 20
    train_from: str = "conv4"
    pretrained_rate: NotNegative = 1.2e-4
    fresh_rate: NotNegative = 8e-4
    weight_decay: NotNegative = 0.02
    warmup_epochs: NotNegative = 1.0
    clip_norm: Positive = 1.0
    average_decay: BelowOne = 0.998
    label_smoothing: BelowOne = 0.0
    focal_gamma: NotNegative = 0.0
    imbalance: ImbalanceHandling = field(default_factory=ImbalanceHandling)
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixup: NotNegative = 0.0
    degradation: Degradation = field(default_factory=Degradation)
    teachers: tuple[str, ...] = ()
    teacher_share: Share = 0.7
    teacher_temperature: Positive = 2.0
    patience: Count = 0
    early_size: tuple[int, int] | None = None
    early_epochs: Count = 0

    def __post_init__(self) -> None:
        if not self.epochs and (not self.head_epochs or self.weights == "none"):
            raise UsageError(
                "Without fine-tuning epochs only the last layer is trained, which needs pretrained "
                "weights and head_epochs. Give epochs of at least 1, or both."
            )
        if self.early_epochs and self.early_size is None:
            raise UsageError("early_epochs has no effect without early_size. Give both.")
        if self.early_size is not None and self.early_epochs >= self.epochs:
            raise UsageError("early_epochs must leave at least one epoch at the full size.")

    def size_at(self, epoch: int) -> tuple[int, int]:
        """Return the training size of an epoch (0 is the first)."""
        if self.early_size is not None and epoch < self.early_epochs:
            return self.early_size
        return self.architecture.input_size

    def differences(self, other: "TrainingConfiguration") -> list[str]:
        """Name the fields in which two configurations differ."""
        return [name for name, value in vars(self).items() if value != getattr(other, name)]


class StoredRun(Section):
    """The content of a run's ``configuration.json``."""

    training: TrainingConfiguration
    data_fingerprint: str


DEMO = TrainingConfiguration(
    architecture=Architecture("resnet50", (96, 128), dropout=0.1),
    weights="shipped",
    head_epochs=12,
    epochs=0,
)
"""Small: the last layer alone, on features of the shipped network; seconds on two cores."""

SCRATCH = TrainingConfiguration(
    architecture=Architecture("resnet50", (96, 128), dropout=0.1),
    weights="none",
    train_from="all",
    epochs=8,
    fresh_rate=1e-3,
    average_decay=0.98,
)
"""Small and from nothing: minutes on two cores, on the embedded data set."""

HAM10000 = TrainingConfiguration(
    weights="imagenet",
    epochs=26,
    train_from="conv4",
    label_smoothing=0.05,
    early_size=(144, 192),
    early_epochs=17,
)
"""Stage one of the shipped model (docs/results.md has all): two thirds of the epochs at three
quarters of the size."""

PRESETS: dict[str, TrainingConfiguration] = {
    "demo": DEMO,
    "scratch": SCRATCH,
    "ham10000": HAM10000,
}


def preset(name: str, **changes: Any) -> TrainingConfiguration:
    """Return a preset with some fields changed.

    Progressive resizing follows other epochs and another input size in proportion, unless it is
    changed too.

    Raises:
        UsageError: If there is no such preset, or a value is out of its range.
    """
    if name not in PRESETS:
        raise UsageError(f"Unknown preset {name!r}. Use one of: {', '.join(PRESETS)}.")
    base = PRESETS[name]
    if base.early_size is not None and not {"early_size", "early_epochs"} & set(changes):
        changes = {**_resizing(base, base.early_size, changes), **changes}
    return replace(base, **changes)


def _resizing(
    base: TrainingConfiguration, early: tuple[int, int], changes: dict[str, Any]
) -> dict[str, Any]:
    """Return early size and early epochs in proportion to what is changed."""
    full = base.architecture.input_size
    size = changes.get("architecture", base.architecture).input_size
    epochs = changes.get("epochs", base.epochs)
    count = min(base.early_epochs * epochs // base.epochs, epochs - 1)
    smaller = [
        round(side * small / whole / 16) * 16
        for side, small, whole in zip(size, early, full, strict=True)
    ]
    if count < 1 or min(smaller) < LEAST_EARLY_SIDE:
        return {"early_size": None, "early_epochs": 0}
    return {"early_size": (smaller[0], smaller[1]), "early_epochs": count}

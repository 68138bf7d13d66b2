"""Building the classifier: a flat Keras model from raw pixels to logits.

The model takes raw RGB 0..255, holds its preprocessing, and returns float32 logits. It is flat
(the backbone's layers are the model's layers), so that any layer can be explained.
"""

from dataclasses import dataclass, replace
from typing import Any

from dermlens.errors import ModelError
from dermlens.labels import HAM10000
from dermlens.schema import STRICT

_CAFFE, _TORCH, _TF, _INSIDE = "caffe", "torch", "tf", "inside"

BACKBONES: dict[str, tuple[str, str]] = {
    "resnet50": ("ResNet50", _CAFFE),
    "resnet50v2": ("ResNet50V2", _TF),
    "densenet121": ("DenseNet121", _TORCH),
    "densenet169": ("DenseNet169", _TORCH),
    "efficientnetb0": ("EfficientNetB0", _INSIDE),
    "efficientnetv2b0": ("EfficientNetV2B0", _INSIDE),
    "mobilenetv2": ("MobileNetV2", _TF),
    "mobilenetv3small": ("MobileNetV3Small", _INSIDE),
    "mobilenetv3large": ("MobileNetV3Large", _INSIDE),
    "convnexttiny": ("ConvNeXtTiny", _INSIDE),
}
"""Name on the command line: name in ``keras.applications``, and its preprocessing."""

PRECISIONS: tuple[str, ...] = ("float32", "mixed_bfloat16")
MIN_SIDE, MAX_SIDE = 32, 2048
"""Of an input, in pixels."""


@dataclass(frozen=True)
class Architecture:
    """Everything that is needed to build the same network again.

    Attributes:
        backbone: Key of ``BACKBONES``.
        input_size: (height, width) in pixels.
        classes: Codes in the order of the logits.
        dropout: Rate before the last layer, 0..1.
    """

    __pydantic_config__ = STRICT
    backbone: str = "resnet50"
    input_size: tuple[int, int] = (192, 256)
    classes: tuple[str, ...] = HAM10000.codes
    dropout: float = 0.3

    def transposed(self) -> "Architecture":
        """The same network for images turned by 90 degrees."""
        return replace(self, input_size=self.input_size[::-1])


def build_classifier(
    architecture: Architecture | None = None,
    *,
    precision: str = "float32",
    seed: int = 0,
    imagenet: bool = False,
    any_size: bool = False,
) -> Any:
    """Build a flat classifier.

    Args:
        architecture: What to build; default ResNet50 at 192x256.
        precision: ``"float32"``, or ``"mixed_bfloat16"`` to compute in bfloat16 (variables and
            logits stay float32).
        seed: Seed of the random initialization.
        imagenet: Download complete ImageNet weights for the backbone (needs the internet).
        any_size: Take images of any size instead of the architecture's (for training at
            several sizes).

    Returns:
        ``keras.Model``: input (N, height, width, 3), RGB 0..255, float32; output logits
        (N, classes), float32.

    Raises:
        ModelError: If the backbone or precision is unknown, the size is too small, or the
            weights cannot be downloaded.

    Example:
        >>> model = build_classifier(Architecture("mobilenetv3small", (32, 48)))
        >>> model.input_shape, model.output_shape
        ((None, 32, 48, 3), (None, 7))
    """
    import keras

    architecture = architecture or Architecture()
    _check(architecture, precision)
    before = keras.config.dtype_policy()
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)
    try:
        return _build(architecture, imagenet, any_size)
    finally:
        keras.config.set_dtype_policy(before)


def _check(architecture: Architecture, precision: str) -> None:
    if architecture.backbone not in BACKBONES:
        raise ModelError(
            f"Unknown backbone {architecture.backbone!r}. Use one of: {', '.join(BACKBONES)}."
        )
    if precision not in PRECISIONS:
        raise ModelError(f"Unknown precision {precision!r}. Use one of: {', '.join(PRECISIONS)}.")
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in architecture.input_size):
        height, width = architecture.input_size
        raise ModelError(
            f"The input size {height}x{width} is too small or too large. Both sides need "
            f"{MIN_SIDE} to {MAX_SIDE} pixels."
        )


def _build(architecture: Architecture, imagenet: bool, any_size: bool) -> Any:
    import keras

    application, preprocessing = BACKBONES[architecture.backbone]
    size = (None, None) if any_size else architecture.input_size
    pixels = keras.Input((*size, 3), name="image")
    backbone = getattr(keras.applications, application)
    options = {"include_top": False, "weights": "imagenet" if imagenet else None}
    try:
        features = backbone(**options, input_tensor=preprocess(pixels, preprocessing)).output
    except Exception as error:
        if not imagenet:
            raise
        raise ModelError(
            f"The ImageNet weights of {architecture.backbone} could not be downloaded ({error}). "
            "Check the connection, or give a file with --weights FILE.h5."
        ) from error
    pooled = keras.layers.GlobalAveragePooling2D(name="pool", dtype="float32")(features)
    dropped = keras.layers.Dropout(architecture.dropout, name="dropout", dtype="float32")(pooled)
    classes = len(architecture.classes)
    logits = keras.layers.Dense(classes, name="logits", dtype="float32")(dropped)
    return keras.Model(pixels, logits, name=f"dermlens_{architecture.backbone}")


def preprocess(pixels: Any, mode: str) -> Any:
    """Apply the preprocessing that a backbone's ImageNet weights were trained with.

    As ``keras.applications.imagenet_utils.preprocess_input``: caffe is BGR minus the mean
    color; torch scales to unit deviation per channel; tf scales to -1..1.
    """
    from keras import layers, ops

    if mode == _INSIDE:
        return pixels
    if mode == _CAFFE:
        mean = [103.939, 116.779, 123.68]
        bgr = ops.flip(pixels, axis=-1)
        return layers.Rescaling(1.0, [-value for value in mean], name="center", dtype="float32")(
            bgr
        )
    if mode == _TORCH:
        mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        scale = [1 / (255 * d) for d in deviation]
        offset = [-m / d for m, d in zip(mean, deviation, strict=True)]
        return layers.Rescaling(scale, offset, name="standardize", dtype="float32")(pixels)
    return layers.Rescaling(1 / 127.5, -1.0, name="center", dtype="float32")(pixels)


def head_layers(model: Any) -> list[Any]:
    """Return the layers after the backbone: pool, dropout, logits."""
    return [model.get_layer(name) for name in ("pool", "dropout", "logits")]


def backbone_layers(model: Any) -> list[Any]:
    """Return the layers of the backbone that hold weights, from input to output."""
    head = {layer.name for layer in head_layers(model)}
    return [layer for layer in model.layers if layer.weights and layer.name not in head]


def stage_start(model: Any, stage: str) -> int:
    """Return the position in ``backbone_layers`` of the first layer whose name starts with a stage.

    ``"all"`` is the first layer and ``"none"`` no layer. Raises ModelError if no name starts so.
    """
    layers = backbone_layers(model)
    if stage == "all":
        return 0
    if stage == "none":
        return len(layers)
    for position, layer in enumerate(layers):
        if layer.name.startswith(stage):
            return position
    stages = list(dict.fromkeys(layer.name.split("_")[0] for layer in layers))
    raise ModelError(
        f"No layer of {model.name} starts with {stage!r}. Use 'all', 'none', or the beginning of "
        f"a layer's name, such as {', '.join(stages[:8])}."
    )

"""What everything downstream takes: a Keras model with all that is needed to understand it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermlens.errors import ModelError, UsageError
from dermlens.labels import LabelSet, label_set, named_classes, numbered_classes
from dermlens.model.calibration import Calibration, Link
from dermlens.model.prediction import Predictor
from dermlens.model.standard_network import PHOTOGRAPH, standard_network

if TYPE_CHECKING:
    import keras

    from dermlens.model.out_of_distribution import OODDetector


class ImageClassifier:
    """A Keras model with class names, input size, range of values, kind of output and calibration.

    Args:
        model: Keras model with one image as input and one value per class as output: functional,
            sequential or subclassed, with any preprocessing, augmentation or nested backbone
            inside. Its layers are used, not copied: train first, then wrap.
        class_names: A ``LabelSet``, the name of one (``"ham10000"``), or names in the order of the
            outputs; default "class 0", "class 1", ….
        input_size: (height, width) in pixels; needed where the model takes any size.
        value_range: What black and white are for the model: (0, 255), (0, 1), (-1, 1) or any other
            pair. (0, 255) also where preprocessing is a part of the model.
        preprocessing: ``"inside"``; or ``"caffe"`` or ``"torch"`` for what ``preprocess_input`` of
            ``keras.applications`` does outside of a model under these names.
        output: ``"logits"``, ``"softmax"``, ``"sigmoid"`` or ``"auto"``. The last activation is
            left out, so that logits are explained, exactly. One output becomes two classes, whose
            logits are the log-odds against and for it.
        calibration: Fitted on validation images; default none.

    Raises:
        ModelError: If the model is no image classifier, or a setting does not fit it.

    Attributes:
        ood_detector: Tells images apart that are unlike the training images; None for most models.
        synthetic: True if the model was trained on drawn images only.
        model: The network in its standard form: photographs RGB 0..255, float32, to logits.
        labels: The classes.
        link: ``"softmax"`` or ``"sigmoid"``: what turns logits into probabilities.
        note: What is not exact about the logits; empty where nothing is.

    Example:
        >>> import keras
        >>> body = [keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
        >>> layers = [keras.Input((32, 48, 3)), *body, keras.layers.Dense(2, activation="softmax")]
        >>> model = keras.Sequential(layers)
        >>> classifier = ImageClassifier(model, ["cat", "dog"], value_range=(0, 1))
        >>> classifier.probabilities(classifier.logits(np.zeros((1, 32, 48, 3)))).shape
        (1, 2)
    """

    def __init__(
        self,
        model: Any,
        class_names: LabelSet | str | Sequence[str] | None = None,
        *,
        input_size: tuple[int, int] | None = None,
        value_range: tuple[float, float] = PHOTOGRAPH,
        preprocessing: str = "inside",
        output: str = "auto",
        calibration: Calibration | None = None,
    ) -> None:
        standard = standard_network(
            model,
            input_size=input_size,
            value_range=value_range,
            preprocessing=preprocessing,
            output=output,
        )
        self.model: keras.Model = standard.network
        self.note = standard.note
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.labels = _labels(class_names, int(self.model.output_shape[-1]))
        self.ood_detector: OODDetector | None = None
        self.synthetic = False
        self.calibration = calibration or Calibration(
            classes=self.labels.codes, link=standard.link, fitted=False
        )

    @property
    def link(self) -> Link:
        """``"softmax"`` or ``"sigmoid"``: what turns logits into probabilities."""
        return self.calibration.link

    @property
    def classes(self) -> tuple[str, ...]:
        """Codes in the order of the logits."""
        return self.labels.codes

    @property
    def malignant(self) -> tuple[int, ...]:
        """Positions of the classes that are declared malignant."""
        return tuple(map(self.labels.position, self.labels.malignant))

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.model.input_shape[1:3]
        return int(height), int(width)

    @property
    def calibrated(self) -> bool:
        """True if probabilities were calibrated on validation images."""
        return self.calibration.fitted

    @property
    def name(self) -> str:
        """What people call it."""
        return str(self.model.name)

    @property
    def identity(self) -> dict[str, str]:
        """What tells this model from every other, for everything that is written with it."""
        from dermlens.model.lite import weights_checksum

        return {
            "name": self.name,
            "backbone": "keras",
            "fingerprint": f"{weights_checksum(self.model):016x}",
        }

    @property
    def label(self) -> str:
        """The identity in short, for people."""
        from dermlens.model.bundle_description import model_label

        return model_label(self.identity)

    def photographs(self, images: Any) -> np.ndarray:
        """Return images as the standard network takes them.

        Args:
            images: (N, H, W, 3) at ``input_size``: uint8, a photograph 0..255; or any other type,
                in the model's ``value_range``.

        Returns:
            uint8 or float32 (N, H, W, 3), RGB 0..255.

        Raises:
            UsageError: If the shape does not fit, or a value is not finite.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != (*self.input_size, 3) or not len(images):
            height, width = self.input_size
            raise UsageError(
                f"Images of shape {images.shape} do not fit the model, which takes (N, {height}, "
                f"{width}, 3) with at least one image. Scale them first (data.images.fit_image)."
            )
        if images.dtype == np.uint8:
            return images
        if images.dtype.kind not in "fiu":
            raise UsageError(f"Images hold numbers, not {images.dtype}.")
        values = images.astype(np.float32)
        if not np.isfinite(values).all():
            raise UsageError("The images hold values that are not finite. Mend or leave them out.")
        if self.value_range == PHOTOGRAPH:
            return values
        low, high = self.value_range
        return (values - np.float32(low)) * np.float32(255.0 / (high - low))

    def predictor(self, batch_size: int = 32) -> Predictor:
        """Return what gives the logits of many photographs, with test-time augmentation."""
        return Predictor(self.model, batch_size=batch_size)

    def logits_and_ood_scores(
        self,
        images: np.ndarray,
        rows: np.ndarray | None = None,
        *,
        batch_size: int = 32,
        **how: Any,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return logits and, where the classifier has a detector, out-of-distribution scores.

        Args:
            images: uint8 or float (M, H, W, 3), 0..255; a memory map is read batch by batch.
            rows: int (N,): which images, in which order; default all.
            batch_size: Images per pass.
            **how: ``tta_views`` and ``advance``, as ``Predictor.logits`` takes them.

        Returns:
            float32 (N, C), and float64 (N,) or None.
        """
        return self.predictor(batch_size).logits(images, rows, **how), None

    def logits(self, images: np.ndarray, *, tta_views: int = 1, batch_size: int = 32) -> np.ndarray:
        """Return logits, float32 (N, C), of images as ``photographs`` takes them."""
        return self.predictor(batch_size).logits(self.photographs(images), tta_views=tta_views)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities, float64 (N, C), of logits (N, C), calibrated if fitted."""
        return self.calibration.probabilities(logits)


def as_classifier(model: Any) -> ImageClassifier:
    """Return a classifier as it is, and a Keras model as a classifier of numbered classes."""
    return model if isinstance(model, ImageClassifier) else ImageClassifier(model)


def _labels(given: LabelSet | str | Path | Sequence[str] | None, count: int) -> LabelSet:
    if given is None:
        return numbered_classes(count)
    if isinstance(given, str | Path):
        given = label_set(given)
    labels = given if isinstance(given, LabelSet) else named_classes(given)
    if len(labels) != count:
        raise ModelError(
            f"{len(labels)} class names ({', '.join(labels.codes)}) were given for a model with "
            f"{count} outputs. Give one for each, in the order of the outputs."
        )
    return labels

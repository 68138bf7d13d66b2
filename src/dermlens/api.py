"""What ``import dermlens as dl`` offers as functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dermlens.errors import UsageError
from dermlens.labels import LabelSet
from dermlens.model.image_classifier import ImageClassifier, as_classifier

if TYPE_CHECKING:
    from dermlens.explainers.base import Attribution
    from dermlens.explainers.nearest_cases import NearestCases
    from dermlens.explainers.output import Output
    from dermlens.explainers.target import Targets
    from dermlens.lesion.counterfactuals import Changes
    from dermlens.report.comparison import Comparison

Images = np.ndarray | str | Path | Sequence[str | Path]
"""Arrays (N, H, W, 3) or (H, W, 3) at the model's input size, or files, which are fitted to it."""


def load(
    path: str | Path | None = None,
    class_names: LabelSet | str | Sequence[str] | None = None,
    *,
    custom: Sequence[str] = (),
    **settings: Any,
) -> ImageClassifier:
    """Load a classifier.

    Args:
        path: Folder of a bundle; a ``.keras`` file; None for the model that comes with the package.
        class_names: For a ``.keras`` file: what its outputs stand for; see ``ImageClassifier``.
        custom: Layers of your own that the file holds, as ``module:Name``; their module is run.
        **settings: For a ``.keras`` file: ``value_range``, ``preprocessing``, ``output`` and
            ``input_size``; see ``ImageClassifier``.

    Raises:
        ModelError: If there is no such model, or it is no image classifier.
        UsageError: If names or settings are given for a bundle, which has its own.

    Example:
        >>> load().classes
        ('akiec', 'bcc', 'bkl', 'df', 'mel', 'nv', 'vasc')
    """
    from dermlens.model.bundle import find_bundle, load_bundle
    from dermlens.model.foreign import load_keras_model

    if path is not None and Path(path).suffix == ".keras" and not Path(path).is_dir():
        return ImageClassifier(load_keras_model(Path(path), custom), class_names, **settings)
    if class_names is not None or settings:
        raise UsageError("A bundle brings its class names and settings along. Leave them out.")
    return load_bundle(find_bundle(None if path is None else Path(path)), custom=custom)


def explain(
    model: Any,
    images: Images,
    targets: "Targets" = None,
    methods: str | Sequence[str] = "grad_cam",
    *,
    output: "Output | None" = None,
    batch_size: int = 16,
    seed: int = 0,
) -> "dict[str, Attribution]":
    """Explain images by one or several methods.

    Args:
        model: ``ImageClassifier``, or a Keras model that it takes without more.
        images: Files; or arrays (N, H, W, 3) or (H, W, 3) at the model's input size: uint8
            photographs, or float in its range of values.
        targets: Class to explain: None for the most probable one; ``"runner_up"``, ``"flagged"``, a
            code or a position; one of these per image; or ``"all"``.
        methods: Names, or ``"six"``, ``"all"``, or names separated by commas.
        output: What is explained: ``Logit()`` by default, ``Probability()`` or ``Contrast(other)``.
        batch_size: Images per pass; bounds memory.
        seed: Sets everything random.

    Returns:
        The attribution of each method by its name, maps float32 (N, H, W).

    Raises:
        UsageError: If a method or target is unknown, or the images do not fit.
        DataError: If a file cannot be read.
        ExplanationError: If a method cannot explain this model.

    Example:
        >>> from dermlens.data.synthetic import draw
        >>> image, _, _ = draw("mel", seed=1)
        >>> explain(load(), image, "mel")["grad_cam"].maps.shape
        (1, 192, 256)
    """
    from dermlens.explainers.registry import create_several, parse_methods

    classifier = as_classifier(model)
    names = parse_methods(methods if isinstance(methods, str) else ",".join(methods))
    pictures = _pictures(classifier, images)
    return {
        name: explainer.attribute(
            pictures, targets, output=output, batch_size=batch_size, seed=seed
        )
        for name, explainer in create_several(names, classifier).items()
    }


def compare(
    model: Any,
    image: np.ndarray | str | Path,
    target: str | int | None = None,
    against: str | int | None = None,
    *,
    lesion: np.ndarray | None = None,
    methods: str | Sequence[str] = "six",
    batch_size: int = 16,
    seed: int = 0,
) -> "Comparison":
    """Put methods, depths, scales and classes side by side on one image.

    Args:
        model: ``ImageClassifier``, or a Keras model that it takes without more.
        image: A file, or an array (H, W, 3).
        target: Class to explain; default the most probable one.
        against: Class to contrast it with; default the strongest other.
        lesion: Outline, bool (H, W), at the model's input size.
        methods: Names, or ``"six"``.
        batch_size: Images per pass; bounds memory.
        seed: Sets everything random.

    Returns:
        Maps, agreement, contrasts and depths; ``report.comparison`` says what each is.
    """
    from dermlens.explainers.registry import parse_methods
    from dermlens.report.comparer import Comparer

    classifier = as_classifier(model)
    names = parse_methods(methods if isinstance(methods, str) else ",".join(methods))
    picture = classifier.photographs(_pictures(classifier, image))[0]
    comparer = Comparer(classifier, names, batch_size=batch_size)
    return comparer.compare(picture, target=target, against=against, lesion=lesion, seed=seed)


def nearest_cases(
    model: Any,
    image: np.ndarray | str | Path,
    *,
    region: str | np.ndarray | None = None,
    count: int = 4,
    seed: int = 0,
) -> "NearestCases":
    """Find the training lesions most like an image, of the two most probable classes.

    Args:
        model: A bundle with an index of cases (``dermlens cases BUNDLE --build DATA``).
        image: A file, or an array (H, W, 3) at the model's input size.
        region: Look only where a map marks the image: the name of a method, explaining the most
            probable class, or a map (H, W); default the whole image.
        count: Lesions of each class.
        seed: Of the method.

    Returns:
        Cases with similarity, distance, class and ground of the label; how many of the nearest
        agree with the answer, and what that was worth on test images.

    Raises:
        UsageError: If the model is no bundle, or the region marks nothing.
        ModelError: If the bundle has no index, or one that cannot be used.
    """
    from dermlens.data.images import load_image
    from dermlens.explainers.nearest_cases import CaseFinder
    from dermlens.explainers.registry import method
    from dermlens.model.bundle import Bundle

    if not isinstance(model, Bundle):
        raise UsageError("Cases belong to a bundle. Load one, or make one of the model by adopt().")
    picture = model.photographs(_pictures(model, image))[0]
    options: dict[str, Any] = {"region": region, "count": count}
    if isinstance(region, str):
        known = method(region)
        results = explain(model, image, methods=known.name, seed=seed)
        options |= {"region": results[known.name].maps[0], "named": known.title}
    if isinstance(image, str | Path):
        options["photograph"] = load_image(Path(image))
    return CaseFinder(model).find(picture, **options)


@dataclass(frozen=True)
class Evaluation:
    """What a classifier reaches on a data set.

    Attributes:
        metrics: The content of ``metrics.json``.
        predictions: A row per image.
    """

    metrics: dict[str, Any]
    predictions: pd.DataFrame


def evaluate(
    model: Any,
    data: str | Path,
    *,
    split: str = "test",
    allow_training_images: bool = False,
    patient_facts: bool = False,
    tta_views: int = 1,
    resamples: int = 2000,
    batch_size: int = 32,
    seed: int = 0,
) -> Evaluation:
    """Measure a classifier on a prepared and split data set.

    Args:
        model: ``ImageClassifier``, or a Keras model that it takes without more.
        data: Folder of the data set; its classes must be among the model's.
        split: ``train``, ``validation``, ``test`` or ``all``.
        allow_training_images: Whether to score images that the model was trained on; else they are
            left out, and the metrics tell how many they are.
        patient_facts: Whether age, sex and place on the body are to count, where the data set tells
            them; the model must be a bundle that knows what they add.
        tta_views: Test-time tta_views: 1, 4 or 8.
        resamples: Bootstrap resamples over lesions.
        batch_size: Images per pass.
        seed: Of the bootstrap.

    Raises:
        DataError: If the data set is not split, or has a class that the model does not know.
        UsageError: If patient facts are to count and the model does not know what they add.
    """
    from dermlens.model.evaluation import metrics_from_predictions
    from dermlens.model.patient_facts import facts_of
    from dermlens.model.training_overlap import training_overlap
    from dermlens.serve.prediction import calibration_of, predict_split

    classifier = as_classifier(model)
    facts = facts_of(classifier) if patient_facts else None
    overlap = training_overlap(classifier, Path(data), split)
    table = predict_split(
        classifier,
        Path(data),
        split,
        leave_out=overlap.to_leave_out(allow_training_images),
        facts=facts,
        tta_views=tta_views,
        batch_size=batch_size,
    )
    metrics = metrics_from_predictions(
        table, calibration_of(classifier, facts), resamples=resamples, seed=seed
    )
    about = {"model": classifier.identity, "training_overlap": overlap.counts()}
    if facts is not None:
        about["patient_facts"] = facts.summary(table, classifier.calibration)
    return Evaluation({**metrics, **about}, table)


def stress(
    model: Any,
    data: str | Path,
    out: str | Path,
    *,
    split: str = "test",
    allow_training_images: bool = False,
    batch_size: int = 32,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure a classifier on photographs made worse: compression, blur, light, color, size, hair.

    Args:
        model: ``ImageClassifier``, or a Keras model that it takes without more.
        data: Prepared and split data set.
        out: Folder to write, or to go on in.
        split: ``train``, ``validation``, ``test`` or ``all``.
        allow_training_images: Whether to keep images that the model was trained on.
        batch_size: Images per pass.
        resamples: Bootstrap resamples over lesions.
        seed: Of the bootstrap.

    Returns:
        A row per change and figure: ``name``, ``figure``, ``value``, ``difference`` to the
        unchanged photographs and its 95 % interval ``low``, ``high``.

    Raises:
        DataError: If the data set is not split, or has a class that the model does not know.
        UsageError: If ``out`` holds results of another model, data set or split.
    """
    from dermlens.model.training_overlap import training_overlap
    from dermlens.serve.stress import stress_test

    classifier = as_classifier(model)
    overlap = training_overlap(classifier, Path(data), split)
    return stress_test(
        classifier,
        Path(data),
        Path(out),
        split,
        leave_out=overlap.to_leave_out(allow_training_images),
        batch_size=batch_size,
        resamples=resamples,
        seed=seed,
    ).table


def benchmark(
    model: Any,
    data: str | Path,
    out: str | Path,
    *,
    pairs: int = 0,
    probes: int = 0,
    allow_training_images: bool = False,
    **plan: Any,
) -> dict[str, Any]:
    """Measure explanation methods and controls on a data set; resumes what is there.

    Args:
        model: ``ImageClassifier``, or a Keras model that it takes without more.
        data: Prepared and split data set.
        out: Folder to write tables into.
        pairs: Lesions photographed twice, for consistency.
        probes: Images for the shortcut probe.
        allow_training_images: Whether to measure images that the model was trained on.
        **plan: Fields of ``BenchmarkPlan``: ``methods``, ``n``, ``split``, ``seed``, ….

    Returns:
        The content of ``summary.json``.
    """
    from dermlens.data.manifest import data_labels
    from dermlens.files import read_json
    from dermlens.lesion.benchmark import LesionMeasures
    from dermlens.model.training_overlap import training_overlap
    from dermlens.quality.benchmark import run_benchmark
    from dermlens.quality.benchmark_plan import BenchmarkPlan

    classifier, settings = as_classifier(model), BenchmarkPlan(**plan)
    overlap = training_overlap(classifier, Path(data), settings.split)
    paths = run_benchmark(
        classifier,
        Path(data),
        Path(out),
        settings,
        labels=data_labels(Path(data)),
        extension=LesionMeasures(pairs, probes),
        about={"training_overlap": overlap.counts()},
        leave_out=overlap.to_leave_out(allow_training_images),
    )
    summary: dict[str, Any] = read_json(paths["summary"])
    return summary


def changes(
    model: Any,
    image: np.ndarray | str | Path,
    outline: np.ndarray | None = None,
    *,
    scorer: str | None = None,
) -> "Changes":
    """Find what would have to be different in a picture for the answer to be another one.

    Changes of the picture, not of the skin; at most 150 passes through the network.

    Args:
        model: ``ImageClassifier``, or a Keras model that it takes without more.
        image: A file, or an array (H, W, 3) at the model's input size.
        outline: Of the lesion, bool (H, W), at the model's input size; found where that is sure if
            left out.
        scorer: What evaluates pictures during searches: ``"float32"``, ``"int8"``, or None for
            int8 where it was measured to agree; the network itself confirms what is found.

    Returns:
        Each change with its picture, probabilities, area and passes.

    Raises:
        UsageError: If sizes do not fit.
        DataError: If a file cannot be read.
    """
    from dermlens.lesion.criteria_reference import read_reference
    from dermlens.report.evidence_files import change_finder

    classifier = as_classifier(model)
    pixels = _pictures(classifier, image)
    if outline is None:
        outline = _sure_outline(classifier.photographs(pixels)[0])
    finder = change_finder(classifier, read_reference(), scorer)
    return finder.changes(pixels[0], outline)


def criteria(
    image: np.ndarray | str | Path, outline: np.ndarray | None = None, model: Any = None
) -> pd.DataFrame:
    """Measure asymmetry, border, colors and size of a lesion.

    Args:
        image: A file, or a photograph uint8 (H, W, 3).
        outline: Of the lesion, bool (H, W), on the whole photograph; found if left out.
        model: Whose following of the criteria is told; default the model that comes with the
            package.

    Returns:
        A row for each criterion: ``criterion``, ``name``, ``meaning``, ``value``, ``text``,
        percentiles among training images of ``benign`` classes and of melanoma (``watched``), and
        ``follows``: what the network does with it, by output.

    Raises:
        UsageError: If no outline is given and none is found surely, or sizes do not fit.
        DataError: If a file cannot be read.
    """
    from dermlens.data.images import load_image
    from dermlens.lesion.criteria import measure_criteria
    from dermlens.lesion.criteria_reference import criteria_rows, read_reference

    picture = load_image(Path(image)) if isinstance(image, str | Path) else np.asarray(image)
    if outline is None:
        outline = _sure_outline(picture)
    if outline is None:
        raise UsageError("No outline of the lesion was found that is sure enough. Give one.")
    measured = measure_criteria(picture, outline)
    fingerprint = (load() if model is None else as_classifier(model)).identity["fingerprint"]
    return pd.DataFrame(criteria_rows(measured, read_reference(), fingerprint))


def _sure_outline(picture: np.ndarray) -> np.ndarray | None:
    """Return the outline of a photograph (H, W, 3) at its size, or None where it is not sure."""
    from PIL import Image

    from dermlens.lesion.outline import examine_outline, fit_outline

    pixels = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    found = examine_outline(Image.fromarray(pixels))
    if found is None or not found.sure:
        return None
    height, width = picture.shape[:2]
    return fit_outline(found.mask, (height, width))


def _pictures(classifier: ImageClassifier, images: Images) -> np.ndarray:
    """Return images (N, H, W, 3) at the classifier's size; files are read and fitted."""
    from dermlens.data.images import load_image

    if isinstance(images, str | Path):
        images = [images]
    if isinstance(images, np.ndarray) or not all(isinstance(i, str | Path) for i in images):
        array = np.asarray(images)
        return array[None] if array.ndim == 3 else array
    return np.stack([load_image(Path(path), classifier.input_size) for path in images])

"""What a user asks to have explained becomes one class position, the same everywhere."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dermlens
from dermlens.errors import ModelError, UsageError
from dermlens.explainers.grad_cam import GradCAM
from dermlens.explainers.registry import METHODS, create
from dermlens.explainers.target import (
    check_targets,
    class_position,
    depend_on_answer,
    resolve_targets,
)
from dermlens.labels import HAM10000, chosen, named_classes
from dermlens.model.image_classifier import ImageClassifier
from explain_networks import smooth_images, trained_like

CLASSES = chosen(HAM10000, ("akiec", "bkl", "mel", "nv"))
LOGITS = np.array([[0.0, 3.0, 2.0, 1.0], [5.0, 1.0, 4.0, 4.5], [1.0, 0.0, 0.0, 9.0]])
SOURCE = Path(dermlens.__file__).parent


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (None, [1, 0, 3]),
        ("predicted", [1, 0, 3]),
        ("runner_up", [2, 3, 0]),
        ("flagged", [2, 0, 0]),
        ("mel", [2, 2, 2]),
        (3, [3, 3, 3]),
        (np.int64(1), [1, 1, 1]),
        (np.array(2), [2, 2, 2]),
        (["nv", None, "runner_up"], [3, 0, 0]),
        (np.array([0, 1, 2]), [0, 1, 2]),
        ((0, 1, 2), [0, 1, 2]),
        ([np.int32(2), np.uint8(0), np.int64(3)], [2, 0, 3]),
        (np.eye(4)[[3, 0, 1]], [3, 0, 1]),
        (np.eye(4, dtype=np.int64)[[3, 0, 1]], [3, 0, 1]),
    ],
)
def test_every_kind_of_target(targets: Any, expected: list[int]) -> None:
    found = resolve_targets(targets, LOGITS, CLASSES)
    assert found.dtype == np.int32 and found.tolist() == expected
    check_targets(targets, CLASSES, 3)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("flu", "Unknown target class 'flu'"),
        (4, "a position from 0 to 3"),
        (-1, "a position from 0 to 3"),
        (1.7, "Unknown target class 1.7"),
        (True, "Unknown target class True"),
        (["mel", "nv"], "2 targets were given for 3 images"),
        (["mel"] * 5, "5 targets were given for 3 images"),
        (4.7, "Unknown target class 4.7"),
        (np.full((3, 4), 0.25), "neither one per image"),
        (np.zeros((3, 4), int), "neither one per image"),
    ],
)
def test_wrong_targets_are_sentences(targets: Any, words: str) -> None:
    for find in (
        lambda: resolve_targets(targets, LOGITS, CLASSES),
        lambda: check_targets(targets, CLASSES, 3),
    ):
        with pytest.raises(UsageError, match=words):
            find()


def test_tensors_are_targets_too() -> None:
    import tensorflow as tf

    for target in (tf.constant(3), tf.constant([3, 3, 3]), tf.one_hot([3, 3, 3], 4)):
        assert resolve_targets(target, LOGITS, CLASSES).tolist() == [3, 3, 3]


def test_what_a_model_cannot_answer() -> None:
    with pytest.raises(UsageError, match="known as malignant"):
        resolve_targets("flagged", np.zeros((1, 2)), named_classes(["nv", "bkl"]))
    with pytest.raises(UsageError, match="depends on the image"):
        class_position("predicted", CLASSES)
    assert depend_on_answer(["mel", None]) and not depend_on_answer(["mel", 2])


def test_as_many_names_as_outputs() -> None:
    with pytest.raises(ModelError, match=r"4 class names .* were given for a model with 7 outputs"):
        ImageClassifier(trained_like((24, 36)), CLASSES)


@pytest.mark.parametrize("name", list(METHODS))
def test_no_target_is_the_most_probable_class_of_every_method(name: str) -> None:
    model, images = trained_like((24, 36)), smooth_images(3, (24, 36))
    logits = model.predict(images.astype(np.float32), verbose=0)
    options = {"lime": {"superpixels": 4}, "gp_shap": {"superpixels": 4}, "rise": {"n_samples": 8}}
    explainer = create(name, model, **options.get(name, {}))
    found = {
        target: explainer.attribute(images, target) for target in (None, "predicted", "runner_up")
    }
    order = np.argsort(-logits, axis=1)
    assert found[None].targets.tolist() == order[:, 0].tolist()
    np.testing.assert_array_equal(found["predicted"].maps, found[None].maps)
    assert found["runner_up"].targets.tolist() == order[:, 1].tolist()
    rows = np.arange(3)
    np.testing.assert_allclose(found["runner_up"].values, logits[rows, order[:, 1]], atol=1e-4)


def test_one_target_per_image_may_depend_on_the_answer() -> None:
    model, images = trained_like((24, 36)), smooth_images(3, (24, 36))
    model = ImageClassifier(model, HAM10000)
    together = GradCAM(model).attribute(images, ["mel", None, "runner_up"], batch_size=2)
    for position, target in enumerate(["mel", None, "runner_up"]):
        alone = GradCAM(model).attribute(images[position : position + 1], target)
        assert together.targets[position] == alone.targets[0]
        np.testing.assert_allclose(together.maps[position], alone.maps[0], atol=1e-5)


def test_one_function_turns_a_target_into_a_position() -> None:
    """Nothing else looks a class up by its code where a user has named it."""
    named = ("target", "against", "other", "wanted")
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if call and node.func.attr == "index" and node.args:
                asked = ast.unparse(node.args[0])
                if asked in named:
                    found.append(f"{path.relative_to(SOURCE).as_posix()}: {asked}")
    assert found == ["explainers/target.py: target"]

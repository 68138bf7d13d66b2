"""Figures of a run: the curves of its history, and what augmentation made of its images."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermlens.data.augmentation import Augmentation, augment
from dermlens.data.images import load_image
from dermlens.data.manifest import read_manifest
from dermlens.errors import DataError, ModelError
from dermlens.labels import HAM10000
from dermlens.model.bundle import Bundle, save_bundle
from dermlens.model.calibration import Calibration
from dermlens.model.classifier import Architecture, build_classifier
from dermlens.report.evaluation_report import augmentation_preview, write_training_figures
from tests_support import register_tiny_backbone

CODES = HAM10000.codes

SIZE = (32, 40)
NO_CHANGE = Augmentation(False, *([0.0] * 9))
HOW = Augmentation(erasing=1.0)


def run_folder(folder: Path, how: Augmentation) -> Bundle:
    """A finished run of an untrained network."""
    register_tiny_backbone()
    architecture = Architecture("tiny", SIZE)
    scores = [0.3, 0.5, 0.4]
    history = pd.DataFrame(
        {
            "phase": ["finetuning"] * 3,
            "epoch": [1, 2, 3],
            "train_loss": [2.0, 1.5, 1.2],
            "validation_loss": [2.1, 1.6, 1.7],
            "validation_accuracy": scores,
            "validation_balanced_accuracy": scores,
            "validation_macro_auc": scores,
        }
    )
    return save_bundle(
        folder / "bundle",
        model=build_classifier(architecture),
        architecture=architecture,
        calibration=Calibration(),
        training={"augmentation": how.to_json(), "best_epoch": 2},
        data={},
        history=history,
        split=pd.DataFrame({"image_id": ["a"]}),
        labels=HAM10000,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    folder = tmp_path_factory.mktemp("run")
    return folder, run_folder(folder, HOW)


def firsts(data: Path) -> list[np.ndarray]:
    """The first training image of each class, at the network's size."""
    table = read_manifest(data)
    train = table[table.split == "train"]
    return [load_image(data / train.path[train.dx == code].iloc[0], SIZE) for code in CODES]


def test_preview_has_one_row_per_class_original_first(
    run: tuple[Path, Bundle], prepared: Path
) -> None:
    figure = augmentation_preview(run[1], prepared, seed=3)
    grid = np.array(figure.axes, dtype=object).reshape(7, 7)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == list(CODES)
    assert grid[0, 0].get_title(loc="left") == "original"
    assert grid[0, 1].get_title(loc="left") == "as trained on"
    for row, original in enumerate(firsts(prepared)):
        shown = [np.asarray(axes.images[0].get_array()) for axes in grid[row]]
        assert np.array_equal(shown[0], original)
        varied = augment(np.repeat(original[None], 6, axis=0), np.array([3, row], np.int32), HOW)
        for image, expected in zip(shown[1:], varied.numpy(), strict=True):
            assert np.array_equal(image, expected.astype(np.uint8))
            assert not np.array_equal(image, original)
    assert plt.get_fignums() == []


def test_preview_shows_the_augmentation_stored_with_the_run(tmp_path: Path, prepared: Path) -> None:
    figure = augmentation_preview(run_folder(tmp_path, NO_CHANGE), prepared)
    for row, original in enumerate(firsts(prepared)):
        for axes in figure.axes[7 * row : 7 * row + 7]:
            assert np.array_equal(axes.images[0].get_array(), original)


def test_figures_are_written_into_the_run(run: tuple[Path, Bundle], prepared: Path) -> None:
    folder, _ = run
    paths = write_training_figures(folder, prepared)
    assert paths == [folder / "training_curves.png", folder / "augmentation.png"]
    assert {path.name for path in folder.iterdir()} == {"bundle", *(path.name for path in paths)}
    for path in paths:
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.width > 800
            assert np.ptp(np.asarray(picture.convert("L"))) > 100


def test_unfinished_runs_and_unsplit_data_are_refused(
    run: tuple[Path, Bundle], prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="is not a bundle"):
        write_training_figures(tmp_path, prepared)
    with pytest.raises(DataError, match="not a prepared data set"):
        augmentation_preview(run[1], tmp_path)
    assert list(tmp_path.iterdir()) == []

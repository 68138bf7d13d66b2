from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermlens.data.manifest import COLUMNS, write_manifest
from dermlens.errors import DataError
from dermlens.labels import HAM10000
from dermlens.model.baseline import color_histogram, color_histogram_baseline


def data_set(folder: Path, colors: dict[str, tuple[int, int, int]], split: bool = True) -> Path:
    """Twelve plain noisy images per class, six in train, three each in the other splits."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for code, color in colors.items():
        for k in range(12):
            name = f"{code}_{k}"
            noise = generator.integers(-12, 13, (24, 32, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
            part = "train" if k < 6 else "test" if k < 9 else "validation"
            rows.append(
                dict.fromkeys(COLUMNS, np.nan)
                | {"image_id": name, "path": f"images/{name}.png", "lesion_id": name}
                | {"dx": code, "split": part if split else np.nan}
            )
    write_manifest(folder, pd.DataFrame(rows), HAM10000)
    return folder


def test_histogram_counts_shares_in_joint_bins() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = (255, 128, 31)
    histogram = color_histogram(image)
    assert histogram.shape == (512,) and histogram.dtype == np.float32
    assert histogram[0] == 0.75 and histogram[7 * 64 + 4 * 8 + 0] == 0.25
    assert histogram.sum() == 1


def test_classes_of_different_color_are_told_apart(tmp_path: Path) -> None:
    colors = {code: (30 * k + 30, 220 - 30 * k, 120) for k, code in enumerate(HAM10000.codes)}
    assert color_histogram_baseline(data_set(tmp_path / "d", colors)) == 1.0


def test_classes_of_the_same_color_are_not(tmp_path: Path) -> None:
    same = dict.fromkeys(HAM10000.codes, (128, 128, 128))
    score = color_histogram_baseline(data_set(tmp_path / "d", same))
    assert score < 0.5


def test_only_half_of_the_classes_have_a_color(tmp_path: Path) -> None:
    """Two classes told apart, two alike: balanced accuracy is 1/2 plus at most what luck adds."""
    colors = {"akiec": (20, 20, 200), "bcc": (200, 20, 20), "mel": (90, 90, 90), "nv": (90, 90, 90)}
    data = data_set(tmp_path / "d", colors)
    score = color_histogram_baseline(data)
    assert 0.5 <= score < 1
    assert color_histogram_baseline(data) == score


def test_an_unsplit_data_set_is_refused(tmp_path: Path) -> None:
    data = data_set(tmp_path / "d", {"nv": (1, 2, 3)}, split=False)
    with pytest.raises(DataError, match="not split yet"):
        color_histogram_baseline(data)

"""``import dermlens as dl``: everything is there, cheap to import, and written down."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dermlens as dl
from dermlens.data.splits import split_data_set
from dermlens.data.synthetic import make_synthetic
from dermlens.errors import UsageError

SIZE = (32, 48)


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, dermlens as dl; dir(dl); heavy = 'numpy pydantic tensorflow keras gradio'; "
        "print([name for name in heavy.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_is_there_and_stands_in_the_page() -> None:
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    for name in dl.__all__:
        found = getattr(dl, name)
        assert found is not None and f"{name}" in page
        assert name in ("HAM10000",) or (found.__doc__ or "").strip()
    # A package of that name must not come to stand where the function stood.
    import dermlens.explainers.grad_cam  # noqa: F401

    assert callable(dl.explain) and callable(dl.compare)
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        _ = dl.explian  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def classifier() -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    stack = [keras.Input((*SIZE, 3)), layers.Conv2D(4, 3, 2, activation="relu")]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax")]
    model = keras.Sequential([*stack, *head])
    return dl.ImageClassifier(model, "binary", value_range=(0, 1))


def test_explaining_arrays_and_files(classifier: Any, tmp_path: Path) -> None:
    from PIL import Image

    photograph = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(tmp_path / "a.png")
    unit = (photograph / 255).astype(np.float32)
    maps = [
        dl.explain(classifier, given, "malignant", "grad_cam,occlusion")["occlusion"].maps
        for given in (photograph, photograph[None], unit, tmp_path / "a.png")
    ]
    assert all(one.shape == (1, *SIZE) for one in maps)
    assert all(np.allclose(one, maps[0], atol=1e-4) for one in maps)
    both = dl.explain(classifier, [tmp_path / "a.png", str(tmp_path / "a.png")], methods=["lime"])
    assert both["lime"].maps.shape == (2, *SIZE)
    assert np.array_equal(both["lime"].maps[0], both["lime"].maps[1])


def test_loading(tmp_path: Path, classifier: Any) -> None:
    import keras
    from keras import layers

    head = [layers.GlobalAveragePooling2D(), layers.Dense(3)]
    keras.Sequential([keras.Input((*SIZE, 3)), *head]).save(tmp_path / "m.keras")
    loaded = dl.load(tmp_path / "m.keras", ["a", "b", "c"], value_range=(-1, 1))
    assert loaded.classes == ("a", "b", "c") and loaded.value_range == (-1.0, 1.0)
    assert dl.load(tmp_path / "m.keras").classes == ("class 0", "class 1", "class 2")
    dl.adopt(tmp_path / "m.keras", dl.label_set("a,b,c"), tmp_path / "bundle")
    assert dl.load(tmp_path / "bundle").classes == ("a", "b", "c")
    with pytest.raises(UsageError, match="brings its class names"):
        dl.load(tmp_path / "bundle", ["a", "b", "c"])


def test_comparing_evaluating_and_measuring(classifier: Any, tmp_path: Path) -> None:
    labels = dl.label_set("binary")
    make_synthetic(tmp_path / "data", images=24, size=SIZE, labels=labels, workers=1)
    split_data_set(tmp_path / "data")
    image = sorted((tmp_path / "data" / "images").iterdir())[0]
    comparison = dl.compare(classifier, image, methods="grad_cam,integrated_gradients")
    assert set(comparison.combined) == {"grad_cam", "integrated_gradients"}
    found = dl.evaluate(classifier, tmp_path / "data", split="all", resamples=10)
    assert found.metrics["n_images"] == len(found.predictions) == 24
    shares = found.predictions[["probability_benign", "probability_malignant"]].to_numpy()
    assert np.allclose(shares.sum(axis=1), 1)
    plan: dict[str, Any] = {"robustness": 0, "randomization": 0}
    plan |= {"steps": 3, "squares": 4, "sets": 4, "split": "all", "methods": ("grad_cam",)}
    summary = dl.benchmark(classifier, tmp_path / "data", tmp_path / "benchmark", n=4, **plan)
    assert summary["n_images"] == 4


def test_metrics_take_maps_of_any_tool(classifier: Any) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    maps = np.random.default_rng(2).normal(size=(2, *SIZE))
    masks = np.zeros((2, *SIZE), bool)
    masks[:, 8:20, 10:30] = True
    assert dl.metrics.insertion(classifier, images, maps, "malignant").shape == (2,)
    found = dl.metrics.pixel_auc(None, None, maps, None, masks=masks)
    assert found.shape == (2,) and np.all((found > 0.4) & (found < 0.6))

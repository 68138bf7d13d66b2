"""The example of docs/metrics.md, run as it stands: metrics on a map of another package."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dermlens.explainers.sampled_gradients import SmoothGrad
from dermlens.quality import metrics
from explain_networks import smooth_images, trained_like

SIZE = (24, 36)
PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def model() -> Any:
    return trained_like(SIZE)


def test_the_example_of_the_page(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert found is not None
    images = smooth_images(2, SIZE).astype(np.float32)
    masks = np.zeros((2, *SIZE), bool)
    masks[:, 6:18, 9:27] = True
    names: dict[str, Any] = {"model": model, "images": images, "masks": masks}
    exec(found[1], names)
    ours = SmoothGrad(model, n_samples=1, noise=0.0).attribute(images, 1).maps
    expected = metrics.insertion(model, images, ours, 1)
    np.testing.assert_allclose(
        metrics.insertion(model, images, names["maps"], 1), expected, atol=1e-3
    )
    insertion, mass = capsys.readouterr().out.strip().split("\n")
    assert len(insertion.strip("[]").split()) == len(mass.strip("[]").split()) == 2


def test_numbers_of_shap_on_superpixels(model: Any) -> None:
    """Another package's numbers for pieces of an image, painted on them, as a plain array."""
    import shap

    image = smooth_images(1, SIZE)[0].astype(np.float32)
    labels = (np.indices(SIZE)[0] // 12) * 3 + np.indices(SIZE)[1] // 12
    color = np.median(image.reshape(-1, 3), axis=0)

    def logits(kept: np.ndarray) -> np.ndarray:
        pictures = np.where(np.asarray(kept)[:, labels][..., None] > 0.5, image, color)
        return np.asarray(model(pictures.astype(np.float32)))[:, 1]

    oracle = shap.explainers.ExactExplainer(logits, shap.maskers.Independent(np.zeros((1, 6))))
    values = oracle(np.ones((1, 6))).values[0]
    maps = values[labels][None]
    truth, inverted = (
        metrics.measure(["mufidelity", "infidelity"], model, image[None], sign * maps, 1)
        for sign in (1, -1)
    )
    assert truth["mufidelity"][0] > 0.1 > inverted["mufidelity"][0]
    assert truth["infidelity"][0] < 0.9 < inverted["infidelity"][0]

"""What color alone can do: the figure a model must beat to claim that it sees structures."""

from pathlib import Path

import numpy as np
import pandas as pd

from dermlens.data.images import load_image
from dermlens.data.manifest import class_indices, data_labels, read_manifest, select_split
from dermlens.progress import track

_SIZE = (48, 64)
_BINS = 8


def color_histogram_baseline(data: Path, *, seed: int = 0) -> float:
    """Classify by color histogram alone and return the balanced accuracy on the test split.

    Joint RGB histograms of 8x8x8 bins of every image at 48x64 pixels, standardized over the
    training split, into a class-balanced logistic regression, whose solver ``seed`` sets. The
    figure, 0 to 1, is the mean recall over the classes present in the test split.

    Raises:
        DataError: If the data set is not split, or an image is missing or damaged.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = Path(data)
    table = read_manifest(data)
    train, test = select_split(table, "train"), select_split(table, "test")
    regression = LogisticRegression(class_weight="balanced", max_iter=500, random_state=seed)
    model = make_pipeline(StandardScaler(), regression)
    labels = data_labels(data)
    model.fit(_histograms(data, train), class_indices(train, labels))
    predicted = model.predict(_histograms(data, test))
    return float(balanced_accuracy_score(class_indices(test, labels), predicted))


def color_histogram(image: np.ndarray) -> np.ndarray:
    """Return the share of a uint8 image's pixels in each of 8x8x8 RGB bins, float32 (512,).

    Example:
        >>> histogram = color_histogram(np.full((2, 2, 3), (255, 0, 32), np.uint8))
        >>> int(histogram.argmax()) == 7 * 64 + 0 * 8 + 1, float(histogram.max())
        (True, 1.0)
    """
    pixels = image.reshape(-1, 3)
    counts, _ = np.histogramdd(pixels, bins=_BINS, range=[(0, 256)] * 3)
    return (counts.ravel() / len(pixels)).astype(np.float32)


def _histograms(data: Path, table: pd.DataFrame) -> np.ndarray:
    paths = track(table.path, "reading colors", len(table))
    return np.stack([color_histogram(load_image(data / path, _SIZE)) for path in paths])

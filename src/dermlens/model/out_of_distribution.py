"""Is an image like those the model was trained on? A distance in feature space.

The score is the Mahalanobis distance of the pooled features to the nearest class mean, with one
covariance shared by all classes (Lee et al., "A simple unified framework for detecting
out-of-distribution samples and adversarial attacks", NeurIPS 2018). The covariance is shrunk
(Ledoit & Wolf, 2004) and stored as its strongest directions and one variance for all the others
(probabilistic PCA; Tipping & Bishop, 1999), which keeps it small and well conditioned.

The threshold is chosen on validation images, which the network was not fitted to, so that a given
share of ordinary images is turned away; what it turns away elsewhere is measured by ``evaluate``.
"""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from dermlens.errors import ModelError
from dermlens.model.stored_arrays import read_array
from dermlens.schema import Count, Positive, Section, Share

FALSE_REJECTS = 0.02
"""Share of validation images that the threshold turns away."""
KIND: Final = "mahalanobis_nearest_class"
DIRECTIONS = 64
"""At most so many keep a variance of their own."""
_ARRAYS = ("means", "basis", "variances")


@dataclass(frozen=True)
class OODDetector:
    """Tells images apart that are unlike all training images.

    Attributes:
        means: Mean features of each class, float32 (C, D).
        basis: Orthonormal directions of the largest variance, float32 (D, K).
        variances: Variance along them, float32 (K,).
        rest: Variance along every other direction.
        threshold: Images with a larger score are unlike the training images.
        false_rejects: Share of validation images above the threshold.
        images: Training images the distance was fitted to.
    """

    means: np.ndarray
    basis: np.ndarray
    variances: np.ndarray
    rest: float
    threshold: float
    false_rejects: float
    images: int

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the distance to the nearest class, float64 (N,), about 1 for training images.

        Args:
            features: Pooled features, (N, D).
        """
        features = np.asarray(features, np.float64)
        basis = self.basis.astype(np.float64)
        distances = []
        for mean in self.means.astype(np.float64):
            difference = features - mean
            along = difference @ basis
            others = np.maximum((difference**2).sum(1) - (along**2).sum(1), 0.0)
            distances.append((along**2 / self.variances).sum(1) + others / self.rest)
        return np.sqrt(np.min(distances, axis=0) / features.shape[1])

    def rejected(self, features: np.ndarray) -> np.ndarray:
        """Return which images are unlike the training images, bool (N,)."""
        return self.scores(features) > self.threshold

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is stored as arrays."""
        return {name: getattr(self, name) for name in _ARRAYS}

    def stored_as(self, dtype: str) -> "OODDetector":
        """Return the detector as it comes back from arrays stored in a number type."""
        stored: dict[str, Any] = {
            name: values.astype(dtype).astype(np.float32) for name, values in self.arrays().items()
        }
        return replace(self, **stored)

    def to_json(self) -> dict[str, Any]:
        """Return what is stored as JSON types."""
        return StoredDetector(
            kind=KIND,
            rest=self.rest,
            threshold=self.threshold,
            false_rejects_on_validation=self.false_rejects,
            images=self.images,
        ).model_dump()


class StoredDetector(Section):
    """What ``bundle.json`` holds of a detector; ``outlier.npz`` holds its arrays."""

    kind: Literal["mahalanobis_nearest_class"]
    rest: Positive
    threshold: float
    false_rejects_on_validation: Share
    images: Count


def read_detector(path: Path, stored: StoredDetector, classes: int, features: int) -> OODDetector:
    """Put a detector together from what the bundle says of it and its ``.npz`` file.

    Raises:
        ModelError: If the file is damaged, or an array has another size, number type or range than
            a fit for this network, of so many classes and pooled features, gives.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            means, basis, variances = (
                read_array(archive, f"{name}.npy", dimensions).astype(np.float32)
                for name, dimensions in zip(_ARRAYS, (2, 2, 1), strict=True)
            )
        if means.shape[1] != features or not 1 <= len(means) <= classes:
            raise ValueError(f"means.npy is {means.shape}, of another network")
        if basis.shape != (features, len(variances)):
            raise ValueError(f"basis.npy is {basis.shape} and does not belong to variances.npy")
        if not (variances > 0).all():
            raise ValueError("variances.npy holds a variance that is not above 0")
    except Exception as error:  # Damaged archives make their reader fail in many ways.
        raise ModelError(
            f"{path} cannot be used for the out-of-distribution detector: "
            f"{error or type(error).__name__}. Copy the bundle again."
        ) from error
    _, *numbers = vars(stored).values()
    return OODDetector(means, basis, variances, *numbers)


def fit_ood_detector(
    features: np.ndarray,
    labels: np.ndarray,
    validation: np.ndarray,
    *,
    classes: int,
    false_rejects: float = FALSE_REJECTS,
) -> OODDetector:
    """Fit the distance on training features and its threshold on validation features.

    Args:
        features: Pooled features of training images, (N, D).
        labels: Their class positions, int (N,).
        validation: Pooled features of validation images, (M, D).
        classes: Number of classes; one without training images gets no mean.
        false_rejects: Share of validation images to turn away, 0..1.

    Raises:
        ModelError: If there are no images, or a feature is not finite.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> ordinary = generator.normal(size=(500, 8))
        >>> detector = fit_ood_detector(
        ...     ordinary[:400], np.zeros(400, int), ordinary[400:], classes=1, false_rejects=0.05
        ... )
        >>> detector.rejected(np.full((1, 8), 9.0)).tolist(), detector.false_rejects
        ([True], 0.05)
    """
    from sklearn.covariance import ledoit_wolf

    features = np.asarray(features, np.float64)
    if len(features) < 2 or len(validation) == 0 or not np.isfinite(features).all():
        raise ModelError(
            "The out-of-distribution detector needs training and validation images with finite "
            "features. Lower the learning rate if training diverged."
        )
    present = [c for c in range(classes) if (labels == c).any()]
    means = np.stack([features[labels == c].mean(axis=0) for c in present])
    within = features - means[np.searchsorted(present, labels)]
    covariance, _ = ledoit_wolf(within, assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    # A feature that never varies would make any change of it infinitely far.
    values = np.maximum(values[::-1], 1e-6 * max(float(values.max()), 1e-12))
    kept = min(DIRECTIONS, len(values) - 1)
    detector = OODDetector(
        means=means.astype(np.float32),
        basis=vectors[:, ::-1][:, :kept].astype(np.float32),
        variances=values[:kept].astype(np.float32),
        rest=float(values[kept:].mean()),
        threshold=np.inf,
        false_rejects=0.0,
        images=len(features),
    )
    return with_threshold(detector, validation, false_rejects)


def with_threshold(
    detector: OODDetector, validation: np.ndarray, false_rejects: float = FALSE_REJECTS
) -> OODDetector:
    """Return the detector with the threshold that turns away a share of validation images."""
    scores = np.sort(detector.scores(validation))
    allowed = int(np.floor(false_rejects * len(scores) + 1e-9))
    threshold = float(scores[len(scores) - 1 - allowed])
    share = float((scores > threshold).mean())
    return replace(detector, threshold=threshold, false_rejects=share)

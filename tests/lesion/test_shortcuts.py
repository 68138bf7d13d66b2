"""Pasted artifacts, removed lesions, and models whose reaction is known."""

from typing import Any

import numpy as np
import pytest

from dermlens.errors import UsageError
from dermlens.lesion.shortcuts import ABLATIONS, ARTIFACTS, ablate, paste, probe, probe_images

SIZE = (48, 64)


def picture() -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.indices(SIZE)
    mask = np.hypot(rows - 24, columns - 32) < 11
    image = np.full((*SIZE, 3), (205, 165, 150), np.float32)
    image[mask] = (110, 70, 55)
    return image, mask


@pytest.mark.parametrize("name", ARTIFACTS)
def test_artifacts_are_visible_local_and_set_by_the_seed(name: str) -> None:
    image, _ = picture()
    made = paste(image, name, seed=1)
    assert 0.002 < made.where.mean() < 0.45
    assert made.image.dtype == np.float32 and made.image.min() >= 0 and made.image.max() <= 255
    assert np.abs(made.image - image)[~made.where].max() < 8
    np.testing.assert_array_equal(made.image, paste(image, name, seed=1).image)
    if name != "dark_corner":
        looks = {paste(image, name, seed=seed).image.tobytes() for seed in range(6)}
        assert len(looks) > 1


def test_dark_corners_leave_the_middle_and_dim_every_corner() -> None:
    image, _ = picture()
    made = paste(image, "dark_corner")
    assert all(made.where[r, c] for r in (0, -1) for c in (0, -1))
    assert not made.where[12:-12, 16:-16].any()


def test_lesion_is_removed_or_left_alone() -> None:
    image, mask = picture()
    removed = ablate(image, mask, "lesion_removed")
    assert removed.where[mask].all() and removed.where.mean() < 2 * mask.mean()
    # Within three deviations of the noise of the skin around it.
    assert np.abs(removed.image[mask].mean(axis=0) - image[0, 0]).max() < 3
    isolated = ablate(image + 0.0, mask, "lesion_isolated")
    np.testing.assert_array_equal(isolated.image[mask], image[mask])
    assert np.ptp(isolated.image[~mask].reshape(-1, 3), axis=0).max() == 0
    full = ablate(image, np.ones(SIZE, bool), "lesion_removed")
    assert np.isfinite(full.image).all()


def test_without_a_lesion_only_artifacts_are_probed() -> None:
    image, mask = picture()
    assert [p.name for p in probe_images(image, mask)] == [*ARTIFACTS, *ABLATIONS]
    for nothing in (None, np.zeros(SIZE, bool)):
        assert [p.name for p in probe_images(image, nothing)] == list(ARTIFACTS)
    for bad in (lambda: paste(image, "glitter"), lambda: ablate(image, mask, "skin_removed")):
        with pytest.raises(UsageError, match="Unknown"):
            bad()


def darkness_model(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class 1 if the image's corner is dark: the shortcut itself."""
    dark = (images[:, 0, 0].mean(axis=-1) < 60).astype(float)
    probabilities = np.stack([0.9 - 0.8 * dark, 0.1 + 0.8 * dark], axis=1)
    return probabilities, probabilities.argmax(axis=1)


def darkness_map(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    assert (targets == 0).all(), "the class decided on the unchanged image is explained"
    return 255.0 - images.mean(axis=-1)


def steady_map(images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.ones(images.shape[:3])


def test_flips_changes_and_moved_attribution() -> None:
    image, mask = picture()
    methods: dict[str, Any] = {"darkness": darkness_map, "steady": steady_map}
    rows = {
        r["probe"]: r for r in probe(image, mask, darkness_model, explainers=methods, watched=1)
    }
    corner = rows["dark_corner"]
    assert corner["flipped"] == 1.0
    assert corner["change_of_target"] == pytest.approx(-0.8)
    assert corner["change_of_watched"] == pytest.approx(0.8)
    assert corner["moved_darkness"] > 0.05 and corner["moved_steady"] == pytest.approx(0.0)
    assert corner["area"] == pytest.approx(paste(image, "dark_corner").where.mean())
    for name in ("gel_bubble", "lesion_removed"):
        assert rows[name]["flipped"] == 0.0 and rows[name]["change_of_target"] == 0.0
    assert np.isnan(rows["lesion_removed"]["moved_darkness"])
    bare = probe(image, None, darkness_model)
    assert len(bare) == len(ARTIFACTS) and np.isnan(bare[0]["change_of_watched"])

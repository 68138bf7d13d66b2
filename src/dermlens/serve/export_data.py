"""Images of a prepared data set, or of a folder, for measuring an export."""

from pathlib import Path

from dermlens.data.images import load_image
from dermlens.data.manifest import (
    class_indices,
    data_labels,
    read_manifest,
    sample_in_proportion,
    select_split,
)
from dermlens.serve.export import ExportImages, drawn_export_images
from dermlens.serve.prediction import find_images

REPRESENTATIVE = 200


def images_of_data_set(data: Path, limit: int, *, seed: int = 0) -> ExportImages:
    """Return test images with their diagnoses to compare on, and training images for ranges."""
    table = read_manifest(data)
    test = sample_in_proportion(select_split(table, "test"), limit, seed)
    train = sample_in_proportion(select_split(table, "train"), REPRESENTATIVE, seed)
    return ExportImages(
        [load_image(Path(data) / path) for path in test.path],
        class_indices(test, data_labels(data)),
        [load_image(Path(data) / path) for path in train.path],
        f"{len(test)} test images",
    )


def images_of_folder(folder: Path, limit: int) -> ExportImages:
    """Return images of a folder to compare on; ranges are set by the same images."""
    images = [load_image(path) for path in find_images([folder])[:limit]]
    return ExportImages(images, None, images, f"{len(images)} given images")


def export_images(data: Path | None, folder: Path | None, limit: int) -> ExportImages:
    """Return the images of a data set, of a folder, or drawn ones."""
    if data is not None:
        return images_of_data_set(data, limit)
    return drawn_export_images() if folder is None else images_of_folder(folder, limit)

"""Small archives, data sets and networks that tests make themselves."""

import gc
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests_support import register_tiny_backbone, spare_optimization

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Test files run side by side, and networks are tiny: threads would only wait for each other.
for _name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def pytest_sessionstart() -> None:
    """Spare tiny networks most optimization of their graphs, which takes longer than they do.

    Only where files run side by side: a single one should start at once. Modules and graphs that
    live to the end are looked through for garbage less often: it took a twentieth of the time.
    """
    gc.set_threshold(50_000, 20, 50)
    if "PYTEST_XDIST_WORKER" in os.environ:
        spare_optimization()


CODES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def jpeg_bytes(seed: int, size: tuple[int, int] = (30, 40), shade: int | None = None) -> bytes:
    """A smooth random picture, as the bytes of a JPEG file."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    if shade is not None:
        coarse = np.clip(coarse // 8 + shade, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    picture = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    picture.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def mask_bytes(size: tuple[int, int] = (30, 40)) -> bytes:
    """A centered rectangle, as the bytes of a PNG file."""
    from PIL import Image

    mask = np.zeros(size, np.uint8)
    mask[size[0] // 4 : -size[0] // 4, size[1] // 4 : -size[1] // 4] = 255
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return stream.getvalue()


def metadata(per_class: int = 6) -> pd.DataFrame:
    """Metadata of ``per_class`` lesions per class, every third photographed twice."""
    rows = []
    for code in CODES:
        for number in range(per_class):
            for _ in range(2 if number % 3 == 0 else 1):
                rows.append(
                    {
                        "lesion_id": f"HAM_{code}{number:03d}",
                        "image_id": f"ISIC_{len(rows):07d}",
                        "dx": code,
                        "dx_type": "histo",
                        "age": 40.0 + number,
                        "sex": ("male", "female")[number % 2],
                        "localization": "back",
                    }
                )
    return pd.DataFrame(rows)


class HamSource:
    """A folder in the layout of the official archives, small, for tests to bend."""

    def __init__(self, folder: Path, table: pd.DataFrame) -> None:
        self.folder = folder
        self.table = table
        folder.mkdir(parents=True, exist_ok=True)

    def images(self) -> dict[str, bytes]:
        """The bytes of every image, by id; shade depends on the class."""
        return {
            row.image_id: jpeg_bytes(index, shade=20 + 30 * CODES.index(row.dx))
            for index, row in enumerate(self.table.itertuples())
        }

    def write_archives(self) -> "HamSource":
        """Two image archives, one mask archive, comma separated metadata."""
        images = list(self.images().items())
        half = len(images) // 2
        for name, part in (("part_1", images[:half]), ("part_2", images[half:])):
            with zipfile.ZipFile(self.folder / f"HAM10000_images_{name}.zip", "w") as archive:
                for image_id, content in part:
                    archive.writestr(f"{image_id}.jpg", content)
        with zipfile.ZipFile(self.folder / "HAM10000_segmentations.zip", "w") as archive:
            for image_id in self.table.image_id:
                archive.writestr(f"masks/{image_id}_segmentation.png", mask_bytes())
        return self.write_metadata()

    def write_metadata(self, name: str = "HAM10000_metadata.csv", sep: str = ",") -> "HamSource":
        """The metadata file."""
        self.table.to_csv(self.folder / name, index=False, sep=sep)
        return self


@pytest.fixture
def ham_source(tmp_path: Path) -> HamSource:
    """An empty source folder with metadata in memory."""
    return HamSource(tmp_path / "source", metadata())


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared and split data set; treat it as read-only."""
    from dermlens.data.preparation import prepare
    from dermlens.data.splits import split_data_set

    folder = tmp_path_factory.mktemp("ham")
    source = HamSource(folder / "source", metadata(per_class=9)).write_archives()
    data = prepare(source.folder, folder / "data").data
    split_data_set(data)
    return data


@pytest.fixture
def tiny() -> str:
    """The name of a backbone that is quick to build and train."""
    register_tiny_backbone()
    return "tiny"

"""HEIC, AVIF, JPEG 2000 and the rarer endings of JPEG."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermlens import extras
from dermlens.data.images import load_image
from dermlens.data.sources import photographs_in
from dermlens.errors import UsageError
from dermlens.serve.prediction import find_images
from pictures_support import HEIC, heic_picture


def test_heic_is_read_upright(tmp_path: Path) -> None:
    path = tmp_path / "phone.heic"
    path.write_bytes(HEIC)
    assert np.abs(load_image(path).astype(int) - heic_picture()).mean() < 4


def test_without_its_package_heic_is_a_sentence_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "phone.heic"
    path.write_bytes(HEIC)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"HEIC photographs needs pi-heif.*dermlens\[heic\]"):
        load_image(path)


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("JPEG", ".jfif"), ("JPEG", ".jpe"), ("JPEG2000", ".jp2"), ("AVIF", ".avif")],
)
def test_rarer_formats_are_found_and_read(tmp_path: Path, kind: str, ending: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(heic_picture()).save(stream, kind, quality=95)
    path = tmp_path / f"lesion{ending}"
    path.write_bytes(stream.getvalue())
    assert photographs_in(tmp_path) == ([path], [])
    assert np.abs(load_image(path).astype(int) - heic_picture()).mean() < 4


def test_damaged_heic_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.heic"
    for length in (20, 200, 600, len(HEIC) - 40):
        path.write_bytes(HEIC[:length])
        with pytest.raises(Exception, match="cannot be decoded") as told:
            load_image(path)
        assert type(told.value).__name__ == "DataError"


def test_a_folder_says_what_it_skipped_by_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(heic_picture()).save(tmp_path / "a.png")
    for name in ("notes.txt", "more.TXT", "film.mov", "README", ".hidden.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert find_images([tmp_path]) == [tmp_path / "a.png"]
    assert "by type: 1 .mov, 2 .txt, 1 without ending." in capsys.readouterr().out

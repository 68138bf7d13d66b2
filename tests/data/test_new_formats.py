"""HEIC, AVIF, JPEG 2000 and the rarer endings of JPEG."""

import base64
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

# A drawn picture of 32x24, red to the right, green downwards, to be turned by 90 degrees: what
# pillow-heif wrote; the reader used here cannot write.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAcdtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAA"
    "AAAAAAAAAAAAAAAAADRpbG9jAAAAAERAAAIAAQAAAAAB6wABAAAAAAAAAXUAAgAAAAADYAABAAAAAAAAACQA"
    "AAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRt"
    "AAAAAAABAAABBmlwcnAAAADlaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH/"
    "/wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAAD"
    "AIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAA"
    "IAAAAAEAAAAYAAAAAf///+AAAAAC////2AAAAAIAAAAQcGl4aQAAAAADCAgIAAAACWlyb3QDAAAAGWlwbWEA"
    "AAAAAAAAAQABBoECAwWEhgAAABppcmVmAAAAAAAAAA5jZHNjAAIAAQABAAABoW1kYXQAAAFxKAGvBjIf53hQ"
    "iQXCnUzP5Dj0bk+RGIuRz5AaQXXWicc9d2IvrXYf/fN5VL7D1/gHcbdbeydR9yLn1aWp5ARMa6YgIyO3fL14"
    "yuMbssbJMKQ5Kfo9WSbkRTQeDD0GacRME1ZLtZe4YjqW/pSyNWoP0YIE8Vrm/D14TGkevJP/s7H/SnZlx/Q7"
    "n5iMxQFYE6WsXBjaQzo5rRcN2jAL3cjvX+z5AMnZdOG78kfyXFIx6bvAYWQdWscV/o6GHfh/jqDSzBe7krYX"
    "4ICRoeEfepZ2FjHx/Y/gi+CR4Wkw++rkdGOcmRyWwJ3DcbWZEMEX4v/C6oH2EmXD/l/Wm51c/+imeiLhAdjc"
    "MospIaVcNrXGcpZdyHHKwih8O6L/hdOj0pSoJ4n9e+QxhBV4tk6eBctaLqp3k2SiE2fkdIWcKlh9GSWg4zzy"
    "v274UIN1Q1g1FeF4XRtjHGbOBtvwlrdXc15Gn0zoGL4QKszXLEGvr71iyKRcAAAABkV4aWYAAE1NACoAAAAI"
    "AAEBEgADAAAAAQAGAAAAAAAA"
)


def picture() -> np.ndarray:
    """What the HEIC file shows, upright: uint8 (32, 24, 3)."""
    rows, columns = np.mgrid[0:24, 0:32]
    red, green = 255 * columns / 31, 255 * rows / 23
    lying = np.stack([red, green, np.full((24, 32), 40.0)], axis=-1).astype(np.uint8)
    return np.rot90(lying, -1)


def test_heic_is_read_upright(tmp_path: Path) -> None:
    path = tmp_path / "phone.heic"
    path.write_bytes(HEIC)
    assert np.abs(load_image(path).astype(int) - picture()).mean() < 4


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
    Image.fromarray(picture()).save(stream, kind, quality=95)
    path = tmp_path / f"lesion{ending}"
    path.write_bytes(stream.getvalue())
    assert photographs_in(tmp_path) == ([path], [])
    assert np.abs(load_image(path).astype(int) - picture()).mean() < 4


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
    Image.fromarray(picture()).save(tmp_path / "a.png")
    for name in ("notes.txt", "more.TXT", "film.mov", "README", ".hidden.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert find_images([tmp_path]) == [tmp_path / "a.png"]
    assert "by type: 1 .mov, 2 .txt, 1 without ending." in capsys.readouterr().out

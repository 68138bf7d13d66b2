"""What is offered to begin with."""

from pathlib import Path

import pytest

from dermlens.data.manifest import read_manifest
from dermlens.errors import DataError
from dermlens.labels import HAM10000
from dermlens.model.bundle import Bundle
from dermlens.serve.app_examples import DRAWN, EACH, offered
from serving_support import untrained_bundle


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "examples"
    path.mkdir()
    return path


def real_bundle() -> Bundle:
    bundle = untrained_bundle()
    bundle.synthetic = False
    return bundle


def test_drawings_are_offered_only_to_a_model_of_drawings(folder: Path) -> None:
    drawn = offered(untrained_bundle(), None, folder)
    assert len(drawn) == len(DRAWN) and all(one.path.is_file() for one in drawn)
    assert drawn[0].truth == "Melanoma"
    assert offered(real_bundle(), None, folder) == []


def test_test_images_of_a_data_set_are_offered_with_their_truth_and_remembered(
    prepared: Path, folder: Path, tmp_path: Path
) -> None:
    table = read_manifest(prepared)
    found = offered(real_bundle(), prepared, folder)
    test = set(table[table.split == "test"].image_id)
    assert 1 <= len(found) <= EACH * 7 and len({one.sha256 for one in found}) == len(found)
    for one in found:
        code, image_id = one.path.stem.split("_", 1)
        assert image_id in test and HAM10000.of(code).name == one.truth
    # Without a name the last one is offered again; one that is gone is no error.
    assert [one.truth for one in offered(real_bundle(), None, folder)] == [
        one.truth for one in found
    ]
    (tmp_path / "cache" / "dermlens" / "examples.txt").write_text(str(tmp_path / "gone"))
    assert offered(real_bundle(), None, folder) == []
    with pytest.raises(DataError):
        offered(real_bundle(), tmp_path / "gone", folder)

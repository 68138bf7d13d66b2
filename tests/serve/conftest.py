"""The page behind a real server, started once for all tests of it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dermlens.serve.app_actions import Actions
from dermlens.serve.app_desk import Desk
from serving_support import picture, save_untrained, untrained_bundle


@dataclass(frozen=True)
class Served:
    """A running page: its address, the folder of uploads, and Gradio's object."""

    url: str
    uploads: Path
    page: Any


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from dermlens.serve.app import launch

    names = (
        "GRADIO_TEMP_DIR",
        "GRADIO_EXAMPLES_CACHE",
        "GRADIO_ANALYTICS_ENABLED",
        "GRADIO_HEARTBEAT_INTERVAL",
        "XDG_CACHE_HOME",
    )
    before = {name: os.environ.get(name) for name in names}
    # Seconds until the end of a session is noticed.
    os.environ["GRADIO_HEARTBEAT_INTERVAL"] = "0.3"
    # Where the last data set of examples is remembered.
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    page = launch(save_untrained(tmp_path_factory.mktemp("served") / "bundle"), block=False)
    yield Served(page.local_url, Path(os.environ["GRADIO_TEMP_DIR"]), page)
    page.close()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def desk() -> Desk:
    """A desk without a server, traced once for all tests of what it does."""
    return Desk(untrained_bundle())


@pytest.fixture(scope="session")
def actions(desk: Desk) -> Actions:
    return desk.actions


@pytest.fixture(scope="session")
def lesion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph that is sharp, large enough and shows something."""
    path = tmp_path_factory.mktemp("lesions") / "lesion.png"
    picture(1, 240, 320).save(path)
    return path


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory: pytest.TempPathFactory, lesion: Path) -> dict[str, Path]:
    """Files that must be refused, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("bad")
    script = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    contents = {
        "text": ("text.jpg", b"not an image"),
        "empty": ("empty.png", b""),
        "cut": ("cut.png", lesion.read_bytes()[:3000]),
        "svg": ("script.svg", script),
    }
    files = {}
    for kind, (name, content) in contents.items():
        files[kind] = folder / name
        files[kind].write_bytes(content)
    files["bomb"] = folder / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(files["bomb"])
    return files

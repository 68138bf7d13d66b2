"""Which bundle a command uses, and what stands where one was meant.

A bundle may be left out, and then the shipped one is used. A path that was meant as a bundle but is
none must therefore never be taken for something else.
"""

from collections.abc import Sequence
from pathlib import Path

from dermlens.data.images import PHOTOGRAPH_SUFFIXES
from dermlens.errors import ModelError, UsageError
from dermlens.model.bundle_description import NAME

SHIPPED = Path(__file__).parents[1] / "pretrained" / "ham10000"
"""The bundle that comes with the package."""
MODEL_SUFFIXES = (".keras", ".h5", ".hdf5", ".tflite", ".onnx", ".pb", ".pt", ".pth", ".ckpt")
_ELSE = "Give the folder that 'dermlens train' wrote as RUN/bundle"


def is_bundle(path: Path) -> bool:
    """Tell whether a folder holds the description of a bundle."""
    return (Path(path) / NAME).is_file()


def find_bundle(given: Path | None = None, folder: Path = Path()) -> Path:
    """Return the bundle to use: the given one, else the shipped one, else the newest made here.

    Args:
        given: Folder of a bundle, or None.
        folder: Where ``demo/run/bundle`` and ``runs/*/bundle`` are looked for.

    Raises:
        ModelError: If none is given and none is found.
    """
    if given is not None:
        return Path(given)
    if is_bundle(SHIPPED):
        return SHIPPED
    candidates = [folder / "demo" / "run" / "bundle", *folder.glob("runs/*/bundle")]
    facts = [path / NAME for path in candidates if is_bundle(path)]
    if not facts:
        raise ModelError(
            "No trained model was found in the package, demo/run/bundle or runs/*/bundle. Run "
            "'make demo' to train one in minutes, or name a bundle."
        )
    return max(facts, key=lambda path: path.stat().st_mtime).parent


def bundle_and_rest(paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Split what a command was given into a bundle and the rest.

    A first path that is a bundle is taken; otherwise the bundle is left out and found.

    Raises:
        ModelError: If the first path was meant as a bundle and is none.
        UsageError: If a bundle stands behind other paths.
    """
    paths = [Path(path) for path in paths]
    bundle = None
    if paths and is_bundle(paths[0]):
        bundle, paths = paths[0], paths[1:]
    elif paths and (found := meant_as_model(paths[0]) or _without_images(paths[0])):
        raise ModelError(found)
    for path in paths:
        if is_bundle(path):
            raise UsageError(
                f"{path} is a bundle. Give one bundle at most, before everything else."
            )
        if found := meant_as_model(path):
            raise ModelError(found)
    return find_bundle(bundle), paths


def no_bundle(path: Path) -> str:
    """Say what stands at a path instead of a bundle, and what to give."""
    known = meant_as_model(path) or _without_images(path)
    return known or f"{path} is not a bundle: it holds no {NAME}. {_ELSE}."


def meant_as_model(path: Path) -> str | None:
    """Return what is wrong with a path that can only be meant as a model, else None."""
    if is_bundle(path):
        return None
    if path.suffix.lower() == ".keras":
        return (
            f"{path} is a Keras model, not a bundle. Make one of it first: dermlens adopt "
            f"{path} --classes NAME,NAME --out mine."
        )
    if path.suffix.lower() in MODEL_SUFFIXES:
        return f"{path} is not a bundle but a file or folder of a model. {_ELSE}."
    patterns = (NAME, f"*/{NAME}", f"*/bundle/{NAME}")
    inside = sorted(entry.parent for pattern in patterns for entry in path.glob(pattern))
    own = path / "bundle"
    if inside == [own] or (_is_run(path) and own in inside):
        return f"{path} is a run folder; its bundle is {own}. Give that."
    if _is_run(path):
        return (
            f"{path} is a run folder without a bundle: its training has not finished. Finish it "
            "with 'dermlens train --resume'."
        )
    if inside:
        some = ", ".join(map(str, inside[:3])) + (", …" if len(inside) > 3 else "")
        return f"{path} is not a bundle but holds {some}. Give the one that is meant."
    if any((path / name).is_file() for name in ("weights.h5", "model.keras", "outlier.npz")):
        return f"{path} is an incomplete bundle: {NAME} is missing. Copy it again."
    if any(path.glob("saved_model.pb")) or any(path.glob("*.tflite")):
        return (
            f"{path} was written by 'dermlens export'; inference.py runs it. Here, give the bundle "
            "it was made from."
        )
    return None


def _is_run(path: Path) -> bool:
    """Tell whether 'dermlens train' has begun a run in a folder."""
    try:
        return "data_fingerprint" in (path / "configuration.json").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _without_images(path: Path) -> str | None:
    """Return that a folder holds neither a bundle nor an image, else None."""
    if not path.is_dir() or any(f.suffix.lower() in PHOTOGRAPH_SUFFIXES for f in path.rglob("*")):
        return None
    return f"{path} is not a bundle: it holds no {NAME}, and no image either. {_ELSE}."

"""Optional packages: what needs one says how to get it."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from dermlens.errors import UsageError

PACKAGES: dict[str, tuple[str, str]] = {
    "gradio": ("app", "The web page"),
    "ai_edge_litert": ("export", "Running LiteRT files"),
    "pydicom": ("dicom", "Reading DICOM files"),
    "highdicom": ("dicom", "Writing DICOM objects"),
    "pi_heif": ("heic", "Reading HEIC photographs"),
    "pyarrow": ("shards", "Writing and reading shards"),
    "ray": ("ray", "Working on several machines"),
}
"""By module: the extra of this package that installs it, and what needs it."""


def installed(module: str) -> bool:
    """Tell whether an optional package is there, without importing it."""
    return find_spec(module) is not None


def require(name: str) -> None:
    """Find out whether an optional package is there, without importing it.

    Args:
        name: As for ``optional``.

    Raises:
        UsageError: If the package is not installed; says which extra installs it.
    """
    module = name.partition(".")[0]
    extra, purpose = PACKAGES[module]
    if not installed(module):
        raise UsageError(
            f"{purpose} needs {module.replace('_', '-')}, which is not installed. Run "
            f"pip install 'dermlens[{extra}]'."
        )


def optional(name: str) -> Any:
    """Import a module of an optional package.

    Args:
        name: Such as ``"gradio"`` or ``"ai_edge_litert.interpreter"``.

    Raises:
        UsageError: If the package is not installed; says which extra installs it.
    """
    require(name)
    return import_module(name)

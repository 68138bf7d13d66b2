"""Arrays and JSON in a zip archive (``.npz``), read without trusting the archive.

Nothing is unpickled, and sizes are checked before memory is taken for them.
"""

import io
import json
import math
import zipfile
from typing import Any

import numpy as np

MAX_BYTES = 1 << 26
"""Of one member, unpacked."""
_WHEN = (1980, 1, 1, 0, 0, 0)
"""Of every member, so that the same content gives the same file."""


def read_array(
    archive: zipfile.ZipFile, name: str, dimensions: int, *, kind: str = "f"
) -> np.ndarray:
    """Read finite numbers.

    Args:
        archive: Opened for reading.
        name: Of the member, such as ``"means.npy"``.
        dimensions: That the array must have.
        kind: Of numbers, as numpy's ``dtype.kind``: ``"f"`` or ``"u"``.

    Raises:
        ValueError: If the member is missing, too large, or does not hold what it declares.
    """
    content = io.BytesIO(_member(archive, name))
    np.lib.format.read_magic(content)
    shape, _, dtype = np.lib.format.read_array_header_1_0(content)
    left = len(content.getbuffer()) - content.tell()
    if len(shape) != dimensions or dtype.kind != kind or math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"{name} does not hold the {shape} numbers that it declares")
    content.seek(0)
    values: np.ndarray = np.lib.format.read_array(content, allow_pickle=False)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds what is no finite number")
    return values


def read_json_member(archive: zipfile.ZipFile, name: str) -> Any:
    """Read a member that holds JSON; raises ValueError as ``read_array`` does."""
    return json.loads(_member(archive, name))


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if name not in archive.namelist():
        raise ValueError(f"{name} is missing")
    declared = archive.getinfo(name).file_size
    if declared > MAX_BYTES:
        raise ValueError(f"{name} has {declared:,} bytes")
    with archive.open(name) as member:
        return member.read(MAX_BYTES)


def pack_members(arrays: dict[str, np.ndarray], facts: Any, facts_name: str) -> bytes:
    """Return an archive of arrays (``NAME.npy``) and JSON facts, the same bytes every time."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, values, version=(1, 0), allow_pickle=False)
            archive.writestr(_entry(f"{name}.npy"), content.getvalue())
        text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
        archive.writestr(_entry(facts_name), text.encode())
    return stream.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _WHEN)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry

"""A folder of DICOM files as pictures and a table, without anything that names a patient."""

import csv
from pathlib import Path
from typing import Any

from dermlens.data import dicom
from dermlens.errors import DataError
from dermlens.folders import Kind, folder_beside
from dermlens.progress import printable, progress, say

TABLE = "dicom.csv"
KIND = Kind("pictures of DICOM files", TABLE, lambda _: (TABLE, "images/*"))
_COLUMNS = ("image", "patient", "frame", "row_spacing_mm", "column_spacing_mm")


def write_pictures(source: Path, out: Path, *, keep_names: bool = False) -> int:
    """Write every frame of the DICOM files below a folder as PNG, and a table of them.

    Files are numbered, since their names often hold those of patients; so are patients, who are
    told apart by their identifiers, for a split that keeps each on one side.

    Args:
        source: Folder to search through, or one file.
        out: Folder to write: ``images/``, and ``dicom.csv`` with a row per picture.
        keep_names: Name pictures like their files.

    Returns:
        How many pictures were written.

    Raises:
        UsageError: If pydicom is not installed.
        DataError: If there is no DICOM file that can be read, or two have one name to be kept.
    """
    files = [source] if source.is_file() else sorted(filter(_is_candidate, source.rglob("*")))
    if not files:
        raise DataError(f"There is no DICOM file below {source}. Check the path.")
    rows: list[dict[str, Any]] = []
    patients: dict[str, str] = {}
    with folder_beside(out, KIND) as building, progress("Reading", len(files)) as advance:
        (building / "images").mkdir()
        for number, path in enumerate(files, start=1):
            advance()
            try:
                frames = dicom.frame_paths(path)
                pictures = [dicom.picture_bytes(frame) for frame in frames]
            except DataError as error:
                say(f"Left out: {printable(str(error))}")
                continue
            patient = patients.setdefault(_patient(path), f"P{len(patients) + 1:05d}")
            spacing = dicom.pixel_spacing(path) or ("", "")
            for frame, picture in enumerate(pictures, start=1):
                name = path.stem if keep_names else f"D{number:06d}"
                name += f"@{frame}" if len(pictures) > 1 else ""
                file = building / "images" / f"{name}.png"
                if file.exists():
                    raise DataError(f"Two files are called {path.stem}. Leave out --keep-names.")
                file.write_bytes(picture)
                rows.append(dict(zip(_COLUMNS, (name, patient, frame, *spacing), strict=True)))
        if not rows:
            raise DataError(f"No DICOM file below {source} holds a picture that can be read.")
        with (building / TABLE).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, _COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    return len(rows)


def _is_candidate(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in dicom.SUFFIXES


def _patient(path: Path) -> str:
    """Return what tells patients apart; a file that names none is a patient of its own."""
    source = dicom.read_source(path)
    known = [str(source.get(name) or "") for name in ("PatientID", "IssuerOfPatientID")]
    return "\n".join(known) if known[0] else str(path)

"""DICOM photographs for tests: drawn pixels, and a marked name wherever a patient is named."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MARK = "ZZMARKED^PATIENT"
PHOTOGRAPHIC = "1.2.840.10008.5.1.4.1.1.77.1.4"


def picture(height: int = 24, width: int = 32, shift: int = 0) -> np.ndarray:
    """A smooth colored picture, uint8 (H, W, 3)."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = 255 * columns / (width - 1)
    green = 255 * rows / (height - 1)
    blue = np.full((height, width), 40.0 + shift)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def dicom(path: Path, **changes: Any) -> Path:
    """Write a photographic DICOM file; ``changes`` are elements, ``syntax`` or ``spacing``."""
    syntax = changes.pop("syntax", ExplicitVRLittleEndian)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = PHOTOGRAPHIC
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    one = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID = PHOTOGRAPHIC, meta.MediaStorageSOPInstanceUID
    one.StudyInstanceUID, one.SeriesInstanceUID = generate_uid(), generate_uid()
    one.PatientName, one.PatientID, one.PatientBirthDate = MARK, MARK, "19700102"
    one.PatientSex, one.AccessionNumber, one.ReferringPhysicianName = "F", MARK[:16], MARK
    one.StudyID, one.StudyDate, one.StudyTime = MARK[:16], "20240101", "120000"
    one.Modality, one.SeriesNumber, one.InstanceNumber = "XC", 1, 1
    one.StudyDescription, one.PatientComments, one.InstitutionName = MARK, MARK, MARK
    pixels = changes.pop("pixels", picture())
    one.Rows, one.Columns = pixels.shape[-3:-1] if pixels.shape[-1] == 3 else pixels.shape[-2:]
    one.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
    one.PhotometricInterpretation = "RGB" if one.SamplesPerPixel == 3 else "MONOCHROME2"
    if one.SamplesPerPixel == 3:
        one.PlanarConfiguration = 0
    one.BitsAllocated = one.BitsStored = 8 * pixels.dtype.itemsize
    one.HighBit, one.PixelRepresentation = one.BitsStored - 1, 0
    one.PixelData = pixels.tobytes()
    for name, value in changes.items():
        setattr(one, name, value)
    one.save_as(path, enforce_file_format=True)
    return path

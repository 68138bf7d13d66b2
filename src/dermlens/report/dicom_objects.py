"""An explanation as DICOM objects beside its source: heat map, region, structured report.

* a **Parametric Map** with the raw values of each map (float32),
* a **Segmentation** of the highest tenth of each map's pixels,
* a **Comprehensive SR** with the most probable diagnosis, probabilities, what cannot be excluded,
  the model, and which objects it refers to.

They belong to the source's study. **No patient data are copied** unless that is asked for: an
archive knows the patient by the study.

A dermoscopic photograph has no place in a patient's coordinate system, but a Parametric Map and a
Segmentation need one: position 0, axes along the picture, and the source's pixel spacing, or 1 mm
where it has none, say how pixels lie to each other, and no more.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermlens import __version__
from dermlens.data.dicom import pixel_spacing, read_source
from dermlens.data.images import fit_box
from dermlens.errors import DataError
from dermlens.extras import optional
from dermlens.files import written_beside
from dermlens.labels import LabelSet

DICOM_OBJECTS = ("maps.dcm", "regions.dcm", "report.dcm")
MARKED_SHARE = 0.1
"""Share of pixels in the segmented region of a map."""
_MAKER = {
    "manufacturer": "dermlens",
    "manufacturer_model_name": "dermlens",
    "software_versions": __version__,
    "device_serial_number": "none",
}
_SCHEME = "99DERMLENS"
# What a derived object needs of its source, all of it about the picture.
_OF_THE_PICTURE = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "Modality", "Rows", "Columns", "NumberOfFrames", "PixelSpacing",
)  # fmt: skip
_OF_THE_PATIENT = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber",
    "ReferringPhysicianName", "StudyID", "StudyDate", "StudyTime",
)  # fmt: skip


@dataclass(frozen=True)
class DicomAnswer:
    """What is said of one image.

    Attributes:
        model: Name and fingerprint of the model.
        probabilities: Of each diagnosis, by its name for people.
        predicted: Name of the most probable one.
        set_members: Names of those that cannot be excluded; empty where there is no such set.
        calibrated: Whether the probabilities are.
        explained: Name of the class that the maps explain.
    """

    model: str
    probabilities: Mapping[str, float]
    predicted: str
    set_members: Sequence[str]
    calibrated: bool
    explained: str


def answer_in_words(answer: Mapping[str, Any], labels: LabelSet, explained: str) -> DicomAnswer:
    """Return what ``explanation.json`` says with names in place of codes."""
    names = {one.code: one.name for one in labels.labels}
    model = answer["model"]
    return DicomAnswer(
        f"{model['name']} ({model['fingerprint']})",
        {names[code]: value for code, value in answer["probabilities"].items()},
        names[answer["predicted"]],
        [names[code] for code in answer["prediction_set"] or ()],
        answer["calibrated"],
        names[explained],
    )


def write_dicom_objects(
    out: Path,
    source: Path,
    maps: Mapping[str, np.ndarray],
    answer: DicomAnswer,
    *,
    keep_patient: bool = False,
) -> list[Path]:
    """Write ``maps.dcm``, ``regions.dcm`` and ``report.dcm`` into a folder.

    Args:
        out: Folder, there already.
        source: DICOM file that was explained; of several frames, a path as
            ``data.dicom.frame_paths`` returns it.
        maps: float32 (H, W) at the model's input size, by the method's name for people.
        answer: What the report says.
        keep_patient: Copy the patient's data from the source.

    Returns:
        The files written.

    Raises:
        UsageError: If highdicom is not installed.
        DataError: If the source lacks what derived objects must refer to.
    """
    original = _source(source, keep_patient)
    spacing = pixel_spacing(source) or (1.0, 1.0)
    placed = _placed(original, next(iter(maps.values())).shape, spacing)
    stack = np.stack([np.asarray(map_, np.float32) for map_ in maps.values()])
    names = list(maps)
    objects = {"maps.dcm": _parametric_map(placed, stack, names, answer)}
    objects["regions.dcm"] = _segmentation(placed, stack, names)
    evidence = [original, objects["maps.dcm"], objects["regions.dcm"]]
    objects["report.dcm"] = _report(original, evidence, answer)
    written = []
    for name, made in objects.items():
        if name == "maps.dcm" and "Laterality" not in made:
            made.Laterality = ""  # Unknown; the standard asks for it all the same.
        with written_beside(out / name) as temporary:
            made.save_as(temporary, enforce_file_format=True)
        written.append(out / name)
    return written


def _source(path: Path, keep_patient: bool) -> Any:
    """Return the source's data set with what derived objects copy, without the patient's data."""
    source = read_source(path)
    for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not source.get(name):
            raise DataError(f"{path} lacks {name}, so no DICOM object can refer to it.")
    if not keep_patient:
        kept = optional("pydicom").Dataset()
        kept.file_meta = source.file_meta
        for name in _OF_THE_PICTURE:
            if name in source:
                kept[name] = source[name]
        source = kept
    for name in _OF_THE_PATIENT:
        if name not in source:
            setattr(source, name, "")
    return source


def _placed(source: Any, shape: tuple[int, int], spacing: tuple[float, float]) -> Any:
    """Return the source as a picture of the maps' size with a frame of reference.

    Maps have the model's input size and show the part of the photograph that ``fit_box`` keeps, so
    pixels are larger and the first one lies further in.
    """
    uid = optional("pydicom.uid").generate_uid
    left, top, right, bottom = fit_box(int(source.Rows), int(source.Columns), shape)
    placed = deepcopy(source)
    steps = ((bottom - top) / shape[0] * spacing[0], (right - left) / shape[1] * spacing[1])
    placed.Rows, placed.Columns = shape
    placed.FrameOfReferenceUID = source.get("FrameOfReferenceUID") or uid(prefix=None)
    placed.PositionReferenceIndicator = ""
    placed.PixelSpacing = [float(f"{step:.8g}") for step in steps]
    placed.SliceThickness = 1.0
    first = (left * spacing[1] + (steps[1] - spacing[1]) / 2,
             top * spacing[0] + (steps[0] - spacing[0]) / 2)  # fmt: skip
    placed.ImagePositionPatient = [*(float(f"{value:.8g}") for value in first), 0.0]
    placed.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    placed.NumberOfFrames = 1
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if name in placed:
            delattr(placed, name)
    return placed


def _geometry(placed: Any) -> dict[str, Any]:
    content = optional("highdicom")
    return {
        "pixel_measures": content.PixelMeasuresSequence(
            pixel_spacing=placed.PixelSpacing, slice_thickness=placed.SliceThickness
        ),
        "plane_orientation": content.PlaneOrientationSequence(
            coordinate_system="PATIENT", image_orientation=placed.ImageOrientationPatient
        ),
        "plane_positions": [
            content.PlanePositionSequence(
                coordinate_system="PATIENT", image_position=placed.ImagePositionPatient
            )
        ],
    }


def _identity(number: int, title: str) -> dict[str, Any]:
    uid = optional("pydicom.uid").generate_uid
    return {
        "series_instance_uid": uid(prefix=None),
        "series_number": 900 + number,
        "sop_instance_uid": uid(prefix=None),
        "instance_number": 1,
        "series_description": title,
    }


def _code(meaning: str) -> Any:
    """Return a private code; no public scheme names these."""
    value = "".join(c if c.isalnum() else "_" for c in meaning.upper())[:16]
    return optional("highdicom.sr").CodedConcept(value, _SCHEME, meaning[:64])


def _parametric_map(placed: Any, stack: np.ndarray, names: list[str], answer: DicomAnswer) -> Any:
    pm = optional("highdicom.pm")
    unit = optional("highdicom.sr").CodedConcept("1", "UCUM", "no units")
    mappings = [
        pm.RealWorldValueMapping(
            lut_label=f"MAP{k + 1}",
            lut_explanation=f"{name}: evidence for {answer.explained}"[:64],
            unit=unit,
            value_range=(float(values.min()), float(max(values.max(), values.min() + 1e-6))),
            slope=1,
            intercept=0,
            quantity_definition=_code(name),
        )
        for k, (name, values) in enumerate(zip(names, stack, strict=True))
    ]
    low, high = float(stack.min()), float(stack.max())
    return pm.ParametricMap(
        [placed],
        # (planes, rows, columns, maps)
        np.moveaxis(stack, 0, -1)[None],
        real_world_value_mappings=[[mapping] for mapping in mappings],
        contains_recognizable_visual_features=False,
        voi_lut_transformations=[
            optional("highdicom").VOILUTTransformation(
                window_center=(low + high) / 2, window_width=max(high - low, 1e-6)
            )
        ],
        content_label="ATTRIBUTIONS",
        content_description="How much each place speaks for the class that is explained",
        **_geometry(placed),
        **_identity(1, "Explanation: attribution maps"),
        **_MAKER,
    )


def _segmentation(placed: Any, stack: np.ndarray, names: list[str]) -> Any:
    hd, seg = optional("highdicom"), optional("highdicom.seg")
    codes = optional("pydicom.sr.codedict").codes
    marked = np.stack([values > np.quantile(values, 1 - MARKED_SHARE) for values in stack], -1)
    algorithm = hd.AlgorithmIdentificationSequence(
        name="dermlens", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    segments = [
        seg.SegmentDescription(
            segment_number=k + 1,
            segment_label=f"{name}: highest tenth"[:64],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=_code("Region of evidence"),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for k, name in enumerate(names)
    ]
    return seg.Segmentation(
        [placed],
        marked[None].astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=segments,
        omit_empty_frames=False,
        content_label="EVIDENCE",
        content_description="Where the evidence is highest",
        **_geometry(placed),
        **_identity(2, "Explanation: regions"),
        **_MAKER,
    )


def _report(source: Any, evidence: list[Any], answer: DicomAnswer) -> Any:
    sr = optional("highdicom.sr")
    codes = optional("pydicom.sr.codedict").codes
    percent = sr.CodedConcept("%", "UCUM", "percent")
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=optional("pydicom.uid").generate_uid(prefix=None),
            name="dermlens", manufacturer_name="dermlens", model_name=answer.model[:64],
        ),
    )  # fmt: skip
    probability = "Calibrated probability" if answer.calibrated else "Probability, not calibrated"
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=optional("pydicom.uid").generate_uid(prefix=None), identifier="Image classification"
        ),
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(source)],
        measurements=[
            sr.Measurement(_code(f"{probability}: {name}"), 100 * value, percent)
            for name, value in answer.probabilities.items()
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(_code("Most probable"), _code(answer.predicted)),
            *(
                sr.QualitativeEvaluation(_code("Cannot be excluded"), _code(name))
                for name in answer.set_members
            ),
            sr.QualitativeEvaluation(_code("Class explained"), _code(answer.explained)),
            sr.QualitativeEvaluation(
                _code("Use"), _code("Research and education only, not a medical device")
            ),
        ],
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=_code("Dermoscopic photography"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    return sr.ComprehensiveSR(
        evidence,
        report[0],
        manufacturer=_MAKER["manufacturer"],
        is_complete=True,
        **_identity(3, "Explanation: report"),
    )

# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Frames of DICOM files: where each lies in the patient, how large its pixels are, and what tells it from others.

A classic file has one frame, described by its header.  An enhanced file has many, described by functional groups, some
per frame and some shared.  Nuclear medicine and doses give the first position and the steps from there.  Positions and
directions are DICOM's (LPS), in millimeters.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

__all__ = ["ALIKE_IN_STACK", "Frame", "frames_of", "number_of_frames", "numbers"]

_TELLING = {
    "StackID": "stack",
    "SegmentNumber": "segment",
    "ReferencedSegmentNumber": "segment",
    "EchoTime": "echo time",
    "EffectiveEchoTime": "echo time",
    "EchoNumbers": "echo number",
    "DiffusionBValue": "b-value",
    "DiffusionGradientOrientation": "direction of the diffusion gradient",
    "TemporalPositionIndex": "point in time",
    "TemporalPositionIdentifier": "point in time",
    "TimeSlotVector": "point in time",
    "TriggerTime": "trigger time",
    "NominalCardiacTriggerDelayTime": "trigger delay",
    "NominalPercentageOfCardiacPhase": "phase of the heart",
    "InversionTime": "inversion time",
    "InversionTimes": "inversion time",
    "RepetitionTime": "repetition time",
    "FlipAngle": "flip angle",
    "ComplexImageComponent": "component of complex images",
    "KVP": "tube voltage",
    "MonoenergeticEnergy": "energy",
    "ConvolutionKernel": "kernel",
    "ContrastBolusAgent": "contrast agent",
    "FrameType": "type of image",
    "ImageType": "type of image",
    "AcquisitionNumber": "acquisition number",
    "FrameAcquisitionNumber": "acquisition number",
    "SliceThickness": "slice thickness",
    "AcquisitionTime": "acquisition time",
    "FrameReferenceDateTime": "acquisition time",
    "ContentTime": "time",
    "PatientID": "patient",
    "FrameOfReferenceUID": "frame of reference",
}
"""Tags in which images at one position may differ, the likeliest first, and what they mean."""
ALIKE_IN_STACK = (
    *("patient (PatientID)", "frame of reference (FrameOfReferenceUID)", "stack (StackID)", "echo time (EchoTime)"),
    *("echo time (EffectiveEchoTime)", "echo number (EchoNumbers)", "b-value (DiffusionBValue)"),
    *("inversion time (InversionTime)", "component of complex images (ComplexImageComponent)"),
    *("tube voltage (KVP)", "energy (MonoenergeticEnergy)", "kernel (ConvolutionKernel)"),
    *("contrast agent (ContrastBolusAgent)", "point in time (TemporalPositionIdentifier)"),
    *("point in time (TemporalPositionIndex)", "type of image (ImageType)", "type of image (FrameType)"),
)
"""Tags, as in ``Frame.telling``, that are one and the same throughout an ordinary stack."""
_PRIVATE_B_VALUES = ((0x0019, 0x100C), (0x0043, 0x1039), (0x2001, 0x1003))  # Siemens, GE, Philips
_ALONG_BODY = 0.999
"""From which cosine on a normal counts as running along the body."""
_CENTIMETERS = 3
_TWO_DIMENSIONAL = 1


@dataclass(frozen=True)
class Frame:
    """A frame of a file.

    Attributes:
        file: the file.
        index: number of the frame in the file, from 0 on.
        size: rows and columns.
        position: center of the first pixel, (3); None where the file does not say it.
        directions: toward which the columns and the rows follow one another, (2, 3), of length 1; None likewise.
        spacing: size of a pixel along a column and along a row; None where it is unknown.
        rescale: slope and intercept.
        thickness: of the slice; None where it is unknown.
        step: distance between slices as the file states it, None where it does not.
        telling: tag -> its value, of the tags in which images at one position may differ.
        number: that people call the frame by: ``InstanceNumber``, or from 1 on in a file of several frames; None where
            the file says none.
        is_localizer: whether the file calls the frame a localizer.
    """

    file: Path
    index: int
    size: tuple[int, int]
    position: np.ndarray | None
    directions: np.ndarray | None
    spacing: tuple[float, float] | None
    rescale: tuple[float, float]
    thickness: float | None
    step: float | None
    telling: dict[str, str] = field(default_factory=dict)
    number: int | None = None
    is_localizer: bool = False

    @property
    def name(self) -> str:
        """Name the frame for a message: its file, and its number where the file has several."""
        return self.file.name if self.index == 0 else f"frame {self.index + 1} of {self.file.name}"


def numbers(header: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Give the finite numbers of an element; None where it is absent, broken or has another number of values.

    Args:
        header: the dataset.
        keyword: of the element.
        count: how many there must be; None takes any number but 0.
    """
    try:
        value = header.get(keyword)
        if value is None or isinstance(value, (str, bytes)):
            return None
        found = tuple(float(one) for one in (value if hasattr(value, "__iter__") else [value]))
    except Exception:  # pydicom raises many kinds for a broken value
        return None
    if not found or (count is not None and len(found) != count) or not all(map(math.isfinite, found)):
        return None
    return found


def _first(headers: Sequence[Dataset], keyword: str, count: int) -> tuple[float, ...] | None:
    """Give the numbers of the first header that has them."""
    return next((found for header in headers if (found := numbers(header, keyword, count)) is not None), None)


def _positive(headers: Sequence[Dataset], keyword: str, count: int = 1) -> tuple[float, ...] | None:
    """Give the numbers of the first header that has them, if all are above 0."""
    found = _first(headers, keyword, count)
    return found if found is not None and min(found) > 0 else None


def _pixel_spacing(headers: Sequence[Dataset]) -> tuple[float, float] | None:
    """Give the size of a pixel along a column and along a row, in the patient where the file knows it.

    Projections that have no ``PixelSpacing``, or one that repeats ``ImagerPixelSpacing`` and is not called calibrated,
    state the size on the detector, which is larger than that in the patient by the magnification.
    """
    found, detector = _positive(headers, "PixelSpacing", 2), _positive(headers, "ImagerPixelSpacing", 2)
    calibrated = any(_text(header, "PixelSpacingCalibrationType") for header in headers)
    if (found is None or (found == detector and not calibrated)) and detector is not None:
        magnification = (_positive(headers, "EstimatedRadiographicMagnificationFactor") or (1.0,))[0]
        found = tuple(side / magnification for side in detector)
    for keyword in ("NominalScannedPixelSpacing", "ImagePlanePixelSpacing"):
        found = found or _positive(headers, keyword, 2)
    found = found or _ultrasound_spacing(headers[-1])
    return None if found is None else (found[0], found[1])


def _ultrasound_spacing(header: Dataset) -> tuple[float, float] | None:
    """Give the size of a pixel in ultrasound, if all two-dimensional regions of the image agree on it."""
    found: set[tuple[float, float]] = set()
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        if numbers(region, "RegionSpatialFormat", 1) != (_TWO_DIMENSIONAL,):
            continue
        units = [numbers(region, f"PhysicalUnits{axis}Direction", 1) for axis in "YX"]
        rows, columns = (numbers(region, f"PhysicalDelta{axis}", 1) or (0.0,) for axis in "YX")
        if units != [(_CENTIMETERS,)] * 2 or rows[0] == 0 or columns[0] == 0:
            return None
        found.add((10 * abs(rows[0]), 10 * abs(columns[0])))
    return found.pop() if len(found) == 1 else None


def _directions(headers: Sequence[Dataset]) -> np.ndarray | None:
    """Give the directions of a row and of a column as unit vectors; None unless they are perpendicular."""
    found = _first(headers, "ImageOrientationPatient", 6)
    if found is None:
        return None
    row, column = np.asarray(found, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if any(abs(length - 1) > 0.01 for length in lengths) or abs(row @ column) > 0.01:
        return None
    return np.stack([row / lengths[0], column / lengths[1]])


def _members(group: Dataset) -> list[Dataset]:
    """Give the descriptions in a functional group: the item of each of its sequences, and what these contain."""
    found = []
    for element in group:
        if element.VR == "SQ" and element.value:
            item = element.value[0]
            found += [item, *(inner.value[0] for inner in item if inner.VR == "SQ" and inner.value)]
    return found


def _text(header: Dataset, tag: Any) -> str | None:
    """Give an element as text; None where it is absent, empty or broken."""
    try:
        value = header.get(tag)
        value = getattr(value, "value", value)
    except Exception:  # pydicom raises many kinds for a broken value
        return None
    if value is None or value == "":
        return None
    several = hasattr(value, "__iter__") and not isinstance(value, (str, bytes))
    return "\\".join(map(str, value)) if several else str(value)


def _telling(headers: Sequence[Dataset]) -> dict[str, str]:
    """Collect the tags in which images at one position may differ; a patient is told apart, but not named."""
    found: dict[str, str] = {}
    for keyword in _TELLING:
        value = next((text for header in headers if (text := _text(header, keyword)) is not None), None)
        if value is not None:
            shown = f"#{zlib.crc32(value.encode()):08x}" if keyword == "PatientID" else value
            found[f"{_TELLING[keyword]} ({keyword})"] = shown
    for tag in _PRIVATE_B_VALUES:
        value = _text(headers[-1], tag)
        if value is not None:
            found[f"b-value ({tag[0]:04x},{tag[1]:04x})"] = value
    return found


def number_of_frames(header: Dataset) -> int:
    """Give the number of frames of a file, 1 where it says nothing."""
    return max(int((numbers(header, "NumberOfFrames", 1) or (1,))[0]), 1)


def _groups_by_frame(header: Dataset, count: int) -> Iterator[list[Dataset]]:
    """Give what describes each frame: its own functional groups, the shared ones, and the header."""
    shared = [member for group in header.get("SharedFunctionalGroupsSequence") or () for member in _members(group)]
    own = list(header.get("PerFrameFunctionalGroupsSequence") or ())
    for index in range(count):
        yield [*(_members(own[index]) if index < len(own) else ()), *shared, header]


def _stepped_positions(header: Dataset, count: int) -> list[np.ndarray] | None:
    """Give the positions of frames that are stated as steps along the normal: doses, and slices of nuclear medicine."""
    offsets = numbers(header, "GridFrameOffsetVector", count)
    detector = (header.get("DetectorInformationSequence") or [Dataset()])[0]
    headers = [header, detector]
    start, directions = _first(headers, "ImagePositionPatient", 3), _directions(headers)
    if offsets is None and numbers(header, "NumberOfSlices", 1) == (count,):
        step = _first(headers, "SpacingBetweenSlices", 1) or _positive(headers, "SliceThickness")
        places = numbers(header, "SliceVector", count) or range(1, count + 1)
        offsets = None if step is None else tuple(step[0] * (place - 1) for place in places)
        first = 0.0
    else:
        first = offsets[0] if offsets else 0.0
    if offsets is None or start is None or directions is None:
        return None
    normal = np.cross(*directions)
    if first != 0 and abs(normal[2]) > _ALONG_BODY:  # planes of a dose by their own heights, not by their distances
        normal = np.abs(normal)
    return [np.asarray(start) + (offset - first) * normal for offset in offsets]


def frames_of(file: Path, header: Dataset) -> list[Frame]:
    """Describe the frames of a file.

    Args:
        file: its path.
        header: what it says; its pixels are not needed.
    """
    count = number_of_frames(header)
    positions = _stepped_positions(header, count) if count > 1 else None
    detector = list(header.get("DetectorInformationSequence") or ())[:1]
    size = (int(header.Rows), int(header.Columns))
    instance = numbers(header, "InstanceNumber", 1)
    frames = []
    for index, headers in enumerate(_groups_by_frame(header, count)):
        headers = [*headers[:-1], *detector, header]
        own = _first(headers if count == 1 else headers[: -1 - len(detector)], "ImagePositionPatient", 3)
        position = None if own is None else np.asarray(own, dtype=np.float64)
        kinds = " ".join(text for one in headers for key in ("ImageType", "FrameType") if (text := _text(one, key)))
        slope = _first(headers, "RescaleSlope", 1) or _first([header], "DoseGridScaling", 1) or (1.0,)
        intercept = _first(headers, "RescaleIntercept", 1) or (0.0,)
        frame = Frame(
            file=file,
            index=index,
            size=size,
            position=position if positions is None else positions[index],
            directions=_directions(headers),
            spacing=_pixel_spacing(headers),
            rescale=(slope[0], intercept[0]),
            thickness=(_positive(headers, "SliceThickness") or (None,))[0],
            step=(_positive(headers, "SpacingBetweenSlices") or (None,))[0],
            telling=_telling(headers),
            number=index + 1 if count > 1 else None if instance is None else int(instance[0]),
            is_localizer="LOCALIZER" in kinds.upper(),
        )
        frames.append(frame)
    return frames

# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Masks of DICOM series as DICOM segmentations, by highdicom: one segment per class, in the frame of reference."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
from monai.utils import optional_import

import monai_wsss
from monai_wsss._checks import DataError
from monai_wsss._files import atomic_path, make_directory

__all__ = ["has_highdicom", "write_dicom_segmentation"]

highdicom, _has_highdicom = optional_import("highdicom")
_ON_GRID = 0.01
_FINDING = ("49755003", "SCT", "Morphologically abnormal structure")
"""What a class without codes is said to be, by SNOMED CT: no more than is known."""


def has_highdicom() -> bool:
    """Tell whether highdicom is installed, the extra ``dicom``."""
    return bool(_has_highdicom)


def write_dicom_segmentation(
    path: Path,
    mask: np.ndarray,
    affine: np.ndarray,
    files: Sequence[Path],
    classes: Sequence[str],
    *,
    algorithm: str,
    codes: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> None:
    """Write the mask of a series as a DICOM segmentation, whole or not at all.

    Patient, study and frame of reference are those of the series, as DICOM asks for: the file belongs where the images
    belong.

    Args:
        path: ``….dcm``.
        mask: (x, y) or (x, y, z) with 0..K, on the grid on which the series was read.
        affine: (4, 4), indices to RAS millimeters.
        files: of the series, one image each.
        classes: names of the classes, (K).
        algorithm: name of what made the mask.
        codes: ``category`` and ``type`` of classes, each as value, scheme and meaning, as ``segment_codes`` in the
            metadata of a bundle has them; a class that is not named is an abnormal structure.

    Raises:
        DataError: the images of the series have no place in space, are not one per file, or highdicom refuses them.
    """
    sources = [pydicom.dcmread(file) for file in files]
    sources = [source for source in sources if "Rows" in source]
    volume = mask[..., None] if mask.ndim == 2 else mask
    if any(int(source.get("NumberOfFrames", 1)) > 1 for source in sources) or len(sources) != volume.shape[-1]:
        raise DataError("A DICOM segmentation needs a series of one image per file: the mask is NIfTI alone.")
    if any("ImagePositionPatient" not in source or "FrameOfReferenceUID" not in source for source in sources):
        raise DataError("A DICOM segmentation needs images with a place in space: the mask is NIfTI alone.")
    frames = np.zeros((len(sources), volume.shape[1], volume.shape[0]), dtype=np.uint8)
    to_index = np.linalg.inv(affine)
    for place, source in enumerate(sources):
        position = np.asarray([float(value) for value in source.ImagePositionPatient]) * (-1, -1, 1)
        index = to_index @ (*position, 1.0)
        if np.abs(index[:2]).max() > 0.5 or abs(index[2] - round(index[2])) > 0.5 - _ON_GRID:
            raise DataError("The images of the series do not lie on the grid of the mask: the mask is NIfTI alone.")
        frames[place] = volume[..., round(index[2])].T
    try:
        made = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=_segments(classes, algorithm, codes or {}),
            series_instance_uid=highdicom.UID(),
            series_number=_free_number(sources),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="monai_wsss contributors",
            manufacturer_model_name="monai_wsss",
            software_versions=monai_wsss.__version__,
            device_serial_number="0",
            content_label="RESEARCH",
            series_description="Research use only, not for diagnosis",
            omit_empty_frames=bool(frames.any()),
        )
    except Exception as error:  # highdicom raises many kinds for series that lack what a segmentation needs
        raise DataError(
            f"highdicom cannot make a segmentation of the series ({error}): the mask is NIfTI alone."
        ) from error
    make_directory(path.parent)
    with atomic_path(path) as temporary:
        made.save_as(temporary)


def _segments(classes: Sequence[str], algorithm: str, codes: Mapping[str, Mapping[str, Sequence[str]]]) -> list[object]:
    """Describe the segments 1..K by their codes."""
    family = highdicom.sr.CodedConcept("123109", "DCM", "Artificial Intelligence")
    by = highdicom.AlgorithmIdentificationSequence(name=algorithm, version=monai_wsss.__version__, family=family)
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=re.sub(r"[\\\x00-\x1f]", " ", name)[:64],
            segmented_property_category=highdicom.sr.CodedConcept(*codes.get(name, {}).get("category", _FINDING)),
            segmented_property_type=highdicom.sr.CodedConcept(*codes.get(name, {}).get("type", _FINDING)),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=by,
        )
        for number, name in enumerate(classes, start=1)
    ]


def _free_number(sources: Sequence[pydicom.Dataset]) -> int:
    """Give a number for the new series that that of the images does not have."""
    return 1000 + int(sources[0].get("SeriesNumber") or 0) % 1000

# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Which DICOM series a heap of files holds, and which sequence of MRI a series is; no name of a patient leaves this."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.uid import UID

from monai_wsss.data.modalities import SEQUENCES, canonical_modality

__all__ = ["DicomSeries", "find_series"]

_TAGS = ["SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesDescription", "Rows", "SOPClassUID"]
_NO_IMAGES = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "REG", "AU", "ECG", "DOC")
"""Modalities of objects that are no images to segment."""
_CONTRAST = re.compile(r"post|gd|gad|contrast|\+ ?c|(?<![a-z])ce(?![a-z])|(?<![a-z])km(?![a-z])|t1c", re.IGNORECASE)


@dataclass
class DicomSeries:
    """Files of one series.

    Attributes:
        uid: of the series.
        study: UID of its study.
        modality: as DICOM writes it, such as MR.
        sequence: T1, T1c, T2 or FLAIR by the name of its folder or its description; None where these do not tell.
        files: sorted.
    """

    uid: str
    study: str
    modality: str
    sequence: str | None
    files: list[Path] = field(default_factory=list)


def find_series(files: Iterable[Path]) -> tuple[list[DicomSeries], list[Path], int]:
    """Sort DICOM files into series, in the order of their first files.

    Args:
        files: DICOM files.

    Returns:
        The series; the files whose header cannot be read; the number of files without an image to segment, such as
        reports and segmentations.
    """
    series: dict[str, DicomSeries] = {}
    descriptions: dict[str, str] = {}
    broken, others = [], 0
    for file in sorted(files):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=True)
            uid = str(header.get("SeriesInstanceUID") or "")
        except Exception:  # pydicom raises many kinds for a broken file
            broken.append(file)
            continue
        modality = str(header.get("Modality") or "").strip()
        if "Rows" not in header or modality in _NO_IMAGES:
            if _is_cut_off(header):
                broken.append(file)
            else:
                others += 1
            continue
        study = str(header.get("StudyInstanceUID") or uid)
        found = series.setdefault(uid, DicomSeries(uid, study, modality, None))
        found.files.append(file)
        descriptions.setdefault(uid, str(header.get("SeriesDescription") or ""))
    for found in series.values():
        found.sequence = _sequence(found.files, descriptions[found.uid])
    return list(series.values()), broken, others


def _is_cut_off(header: pydicom.Dataset) -> bool:
    """Tell whether a header without rows is that of an image, or of nothing at all, so that its file is damaged."""
    kind = UID(str(header.get("SOPClassUID") or "")).name
    return "Rows" not in header and (not kind or "Image Storage" in kind)


def _sequence(files: Sequence[Path], description: str) -> str | None:
    """Tell the sequence of MRI by the folder that holds the files, by the name of a single file, or the description."""
    folders = {file.parent.name for file in files}
    names = [*(folders if len(folders) == 1 else ()), *(file.stem for file in files if len(files) == 1)]
    for name in map(canonical_modality, [*names, description]):
        if name in SEQUENCES:
            return name
    text = description.lower()
    if "flair" in text:
        return "FLAIR"
    if "t1" in text:
        return "T1c" if _CONTRAST.search(text) else "T1"
    return "T2" if re.search(r"t2(?!\*|star)", text) else None

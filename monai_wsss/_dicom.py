# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Read a DICOM file, or a folder with one series, as its header says: values, place in space, size of the pixels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from monai_wsss._checks import DataError
from monai_wsss._dicom_frames import Frame, frames_of, number_of_frames
from monai_wsss._dicom_pixels import meant_values
from monai_wsss._dicom_stack import affine_of_slice, common_frames, stacked
from monai_wsss._image_formats import image_format, is_hidden

__all__ = ["DicomImage", "modality_of", "read_dicom"]

_SERIES = "SeriesInstanceUID"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DicomImage:
    """An image in memory.

    Attributes:
        values: (C, x, y) or (C, x, y, z) float32; C is 3 for colors, else 1.
        affine: from indices to RAS millimeters, (4, 4).
        in_millimeters: whether the size of the pixels is known; if not, the affine counts pixels.
        numbers: that people call the slices by, in their order: ``InstanceNumber``, or from 1 on in a file of several
            frames; None where a file says none.
    """

    values: np.ndarray
    affine: np.ndarray
    in_millimeters: bool
    numbers: tuple[int | None, ...]


def _read(file: Path, *, pixels: bool) -> Dataset:
    """Read a file, also one without the preamble that files have had since 1993."""
    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=not pixels)
    except InvalidDicomError:
        dataset = pydicom.dcmread(file, stop_before_pixels=not pixels, force=True)
        if "Rows" not in dataset and "SOPClassUID" not in dataset:
            raise
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = _coding_of(dataset)
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _coding_of(dataset: Dataset) -> tuple[bool, bool]:
    """Tell whether a dataset was read as implicit, and as little-endian."""
    if hasattr(dataset, "original_encoding"):  # pydicom 3
        implicit, little = dataset.original_encoding
        return bool(implicit), bool(little)
    return bool(dataset.is_implicit_VR), bool(dataset.is_little_endian)


def _damaged(file: Path, error: Exception | str) -> DataError:
    lines = str(error).strip().splitlines()
    reason = lines[-1].strip(". ")[:200] if lines else type(error).__name__
    return DataError(
        f"Cannot read {file} as dicom ({reason}): the file is damaged or of another kind, so copy or export it again."
    )


def _header(file: Path) -> Dataset:
    try:
        return _read(file, pixels=False)
    except Exception as error:  # pydicom raises many kinds for a broken file
        raise _damaged(file, error) from error


def modality_of(file: Path) -> str:
    """Give the modality that a DICOM file states, such as CT; empty where it states none.

    Raises:
        DataError: the file cannot be read.
    """
    return str(_header(file).get("Modality") or "").strip()


def _headers(files: Sequence[Path]) -> dict[Path, Dataset]:
    """Read the headers of all files that hold an image; others, such as reports, are left out, and said."""
    headers = {file: _header(file) for file in files}
    images = {file: header for file, header in headers.items() if "Rows" in header and "Columns" in header}
    if not images:
        raise _damaged(files[0], "it holds no image")
    if len(images) < len(headers):
        others = [file for file in headers if file not in images]
        _logger.warning(
            "%s holds %d DICOM files without an image, first %s: they are passed over.",
            others[0].parent,
            len(others),
            others[0].name,
        )
    return images


def _refuse_mosaics(headers: dict[Path, Dataset]) -> None:
    """Refuse files that hold the slices of a volume as tiles of one image; files of several frames do not, if so named.

    Raises:
        DataError: there is such a file.
    """
    for file, header in headers.items():
        if "MOSAIC" in str(header.get("ImageType") or "").upper() and number_of_frames(header) == 1:
            raise DataError(
                f"{file} is a mosaic: it holds the slices of a volume as tiles of one image. Convert it to NIfTI with "
                "a program that takes it apart, such as dcm2niix."
            )


def _single_series(headers: dict[Path, Dataset], where: Path, leave_out_localizers: bool) -> list[Frame]:
    """Give all frames, if they are of one series."""
    _refuse_mosaics(headers)
    frames = {file: frames_of(file, header) for file, header in headers.items()}
    if leave_out_localizers:
        kept = {file: own for file, own in frames.items() if not all(frame.is_localizer for frame in own)}
        if kept and len(kept) < len(frames):
            _logger.warning(
                "%s holds %d localizers, first %s: they are left out, as asked.",
                where,
                len(frames) - len(kept),
                next(file.name for file in frames if file not in kept),
            )
            frames = kept
    by_series: dict[str, list[Path]] = {}
    for file in frames:
        by_series.setdefault(str(headers[file].get(_SERIES) or ""), []).append(file)
    if len(by_series) > 1:
        described = [
            f"{str(headers[files[0]].get('SeriesDescription') or 'without description')!r}: {len(files)}, first "
            f"{files[0].name}"
            for files in by_series.values()
        ]
        raise DataError(
            f"{where} holds {len(by_series)} DICOM series: keep one series in a folder (files of "
            f"{'; '.join(described[:4])})."
        )
    return [frame for own in frames.values() for frame in own]


def _values(frames: Sequence[Frame]) -> np.ndarray:
    """Read the pixels of frames of one size: (z, y, x), or (z, y, x, 3) in colors, float32."""
    places: dict[Path, list[int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(frame.file, []).append(place)
    volume: np.ndarray | None = None
    for file, own in places.items():
        try:
            dataset = _read(file, pixels=True)
            if not any(name in dataset for name in _PIXELS):
                raise ValueError("its pixels are missing")
            rescale = dict(enumerate([(1.0, 0.0)] * number_of_frames(dataset)))
            rescale |= {frames[place].index: frames[place].rescale for place in own}
            values = meant_values(dataset, list(rescale.values()))
        except Exception as error:  # pydicom, ITK and numpy raise many kinds for broken pixels
            raise _damaged(file, error) from error
        if volume is None:
            volume = np.empty((len(frames), *values.shape[1:]), dtype=np.float32)
        if values.shape[1:] != volume.shape[1:]:
            raise DataError(f"{file} and other images of its series are in color and gray: keep one kind in a folder.")
        for place in own:
            volume[place] = values[frames[place].index]
    return np.empty((0, 0, 0), dtype=np.float32) if volume is None else volume


def read_dicom(path: Path, *, leave_out_localizers: bool = False, series: Sequence[Path] | None = None) -> DicomImage:
    """Read a DICOM file or the series in a folder; hidden files are passed over.

    Slices are ordered by their positions.  Values are those that the header gives to the stored ones: modality LUT,
    signs and bits, palettes; MONOCHROME1 is inverted, so that bright means much.  Windows, VOI LUTs and overlays, which
    say how to show an image, are left out.

    Args:
        path: a file with one or more frames, or a folder with one series.
        leave_out_localizers: whether localizers in the folder, by their type or by another orientation or size than
            that of most images, are left out, and said; otherwise they are an error.
        series: the files of the series, where ``path`` is a folder that holds others, too.

    Returns:
        The image, 2D where there is one frame.

    Raises:
        DataError: a file is broken, there are several series, or the images make no even stack.
    """
    files = [path] if series is None else list(series)
    if path.is_dir() and series is None:
        files = sorted(
            file for file in path.iterdir() if file.is_file() and not is_hidden(file) and image_format(file) == "dicom"
        )
    frames = _single_series(_headers(files), path, leave_out_localizers)
    if len(frames) > 1:
        frames = common_frames(frames, path, leave_out_localizers)
    affine = affine_of_slice(frames[0])
    if len(frames) > 1:
        frames, affine = stacked(frames, path)
    values = _values(frames)
    if values.ndim == 4 and len(frames) > 1:
        raise DataError(f"The DICOM series {path} is a stack of {len(frames)} color images: give them one by one.")
    moved = values.T if values.ndim == 4 else values.T[None]  # (3, x, y, 1) or (1, x, y, z)
    moved = np.ascontiguousarray(moved[..., 0] if len(frames) == 1 else moved)
    numbers = tuple(frame.number for frame in frames)
    return DicomImage(moved, affine, in_millimeters=frames[0].spacing is not None, numbers=numbers)

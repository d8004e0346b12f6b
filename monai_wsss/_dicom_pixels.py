# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Values of a DICOM file as its header says they are meant, whatever coding the file has.

    stored bits                bits outside of BitsStored, such as overlays, are taken out
    modality LUT               rescale slope and intercept (of each frame), or the Modality LUT Sequence
    MONOCHROME1                inverted within the range of the stored bits, so that bright means much
    palettes, YBR              become RGB of 8 bits

What only says how to show an image is left alone: windows and VOI LUTs, overlays and shutters.  pydicom reads headers,
uncompressed and run-length coded pixels.  ITK's GDCM decodes JPEG, JPEG-LS and JPEG 2000, so a plain installation reads
them.
"""

from __future__ import annotations

import logging
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, MRImageStorage, SecondaryCaptureImageStorage

_told: set[Path] = set()
_logger = logging.getLogger(__name__)

__all__ = ["Rescale", "meant_values"]

Rescale = tuple[float, float]
"""Slope and intercept of a frame."""

_IS_PYDICOM_2 = not hasattr(Dataset, "pixel_array_options")
_processing: Any = import_module("pydicom.pixel_data_handlers" if _IS_PYDICOM_2 else "pydicom.pixels")
_DESCRIPTION = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
_BY_GDCM = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91))
"""Transfer syntaxes of JPEG, JPEG-LS and JPEG 2000; newer ones are left to the plug-ins of pydicom."""
_LONGEST_START = 4096
"""Bytes of a JPEG stream among which its markers of colors stand."""
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_WIDEST = 16
"""Bits up to which MONOCHROME1 is inverted within the range that can be stored; beyond it, values change their sign."""


def meant_values(dataset: Dataset, rescale: list[Rescale]) -> np.ndarray:
    """Give the values that the frames of a file are meant to have.

    Args:
        dataset: the whole file.
        rescale: slope and intercept per frame; a Modality LUT Sequence takes their place.

    Returns:
        (frames, rows, columns) float64 in gray, or (frames, rows, columns, 3) uint8 in RGB.

    Raises:
        ValueError: the coding or the meaning of the pixels is not known, or pixels are missing; in the words of
            pydicom or ITK, which raise other errors, too.
    """
    interpretation = str(dataset.get("PhotometricInterpretation", "")).strip()
    frames = int(dataset.get("NumberOfFrames") or 1)
    colors = int(dataset.get("SamplesPerPixel") or 1)
    shape = (frames, int(dataset.Rows), int(dataset.Columns), *((3,) if colors == 3 else ()))
    _check_number(dataset, shape)
    stored = _decoded(dataset).reshape(shape)
    if colors == 3:
        return _as_rgb(stored, interpretation, dataset)
    if interpretation == "PALETTE COLOR":
        colors = _processing.apply_color_lut(_within_bits(stored, dataset), dataset)
        return _eight_bits(colors, 16 if colors.max(initial=0) > 255 else 8)
    if interpretation not in _GRAY or colors != 1:
        raise ValueError(f"the photometric interpretation {interpretation or 'nothing'} is not known")
    within = _within_bits(stored, dataset)
    values = _gray(within, dataset, rescale, inverted=interpretation == "MONOCHROME1")
    _tell_of_padding(within, values, dataset)
    return values


def _check_number(dataset: Dataset, shape: tuple[int, ...]) -> None:
    """Refuse uncompressed pixels of more frames than the header says."""
    bits = int(dataset.get("BitsAllocated") or 0)
    if dataset.file_meta.TransferSyntaxUID.is_compressed or bits % 8 or bits == 0:
        return
    size = int(np.prod(shape[1:])) * bits // 8
    found = len(dataset.get("PixelData") or b"") // size
    if found > shape[0]:
        raise ValueError(f"it holds pixels of {found} frames, but NumberOfFrames says {shape[0]}")


def _decoded(dataset: Dataset) -> np.ndarray:
    """Give the stored values; compressed ones by GDCM."""
    if _is_coded_by_jpeg(dataset):
        return _decoded_by_gdcm(dataset)
    if not _IS_PYDICOM_2:  # it would convert colors
        dataset.pixel_array_options(raw=True)
    used, highest = dataset.get("BitsStored"), dataset.get("HighBit")
    if used is not None:  # it would cut bits, but always the upper ones
        dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    stored = np.asarray(dataset.pixel_array)
    if used is not None:
        dataset.BitsStored, dataset.HighBit = used, used - 1 if highest is None else highest
    return stored


def _decoded_by_gdcm(dataset: Dataset) -> np.ndarray:
    """Decode compressed pixels by ITK, from a file that says nothing else, so that ITK changes no values."""
    bare = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    gray = int(dataset.get("SamplesPerPixel") or 1) == 1
    bare.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    bare.file_meta.MediaStorageSOPClassUID = MRImageStorage if gray else SecondaryCaptureImageStorage
    bare.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    bare.SOPClassUID, bare.SOPInstanceUID = bare.file_meta.MediaStorageSOPClassUID, UID("1.2.3")
    for name in (*_DESCRIPTION, "PixelData"):
        if name in dataset:
            bare[name] = dataset[name]
    if gray:
        bare.PhotometricInterpretation = "MONOCHROME2"
    elif (colors := _colors_of_jpeg(dataset)) is not None:
        bare.PhotometricInterpretation = colors
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.dcm"
        _write(file, bare)
        return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))))


def _colors_of_jpeg(dataset: Dataset) -> str | None:
    """Give the colors that a JPEG stream itself says it has, whatever the header says; None where it says none."""
    start = bytes(dataset.PixelData[:_LONGEST_START])
    if dataset.file_meta.TransferSyntaxUID not in _BY_GDCM[:2]:
        return None
    if b"JFIF\0" in start:
        return "YBR_FULL_422"
    place = start.find(b"Adobe")
    return None if place < 0 else "RGB" if start[place + 11 : place + 12] == b"\0" else "YBR_FULL_422"


def _write(file: Path, dataset: Dataset) -> None:
    """Write a file with compressed pixels, which are always explicit and little-endian."""
    if not _IS_PYDICOM_2:
        dcmwrite(file, dataset, enforce_file_format=True)
        return
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dcmwrite(file, dataset, write_like_original=False)


def _within_bits(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Take out the bits above the highest one that is used, and below the lowest; signed values keep their sign."""
    allocated = stored.dtype.itemsize * 8
    used = int(dataset.get("BitsStored") or allocated)
    highest = int(dataset.get("HighBit") or used - 1)
    if stored.dtype.kind not in "iu" or used >= allocated or int(dataset.get("BitsAllocated") or 0) != allocated:
        return stored
    if highest < used - 1:
        raise ValueError(f"{used} bits are stored, but the highest one is bit {highest}")
    kind = np.dtype(f"{'i' if int(dataset.get('PixelRepresentation') or 0) else 'u'}{stored.dtype.itemsize}")
    values = stored.astype(np.dtype(f"u{stored.dtype.itemsize}"))
    return (values << (allocated - 1 - highest)).view(kind) >> (allocated - used)


def _gray(stored: np.ndarray, dataset: Dataset, rescale: list[Rescale], inverted: bool) -> np.ndarray:
    """Apply the modality LUT, and invert within the range of what it can give."""
    bits = int(dataset.get("BitsStored") or stored.dtype.itemsize * 8)
    ends = np.zeros(2)  # of values without a range that can be stored: files of a series are inverted alike
    if stored.dtype.kind in "iu" and bits <= _WIDEST:
        lowest = -(2 ** (bits - 1)) if stored.dtype.kind == "i" else 0
        ends = np.asarray([lowest, lowest + 2**bits - 1])
    if dataset.get("ModalityLUTSequence"):
        item = dataset.ModalityLUTSequence[0]
        values, highest = _looked_up(stored, item, dataset)
        return highest - values if inverted else values
    slopes, intercepts = np.asarray(rescale, dtype=np.float64).reshape(-1, 2, 1, 1).transpose(1, 0, 2, 3)
    values = stored * slopes + intercepts
    return (ends.sum() * slopes + 2 * intercepts) - values if inverted else values


def _tell_of_padding(stored: np.ndarray, values: np.ndarray, dataset: Dataset) -> None:
    """Log, once per folder, that pixels of padding have values as if they were measured, unless these are 0."""
    folder = Path(str(dataset.get("filename") or getattr(dataset, "filename", ""))).parent
    first = _number(dataset, "PixelPaddingValue")
    if first is None or stored.dtype.kind not in "iu" or folder in _told:
        return
    last = _number(dataset, "PixelPaddingRangeLimit")
    low, high = sorted(np.asarray([first, first if last is None else last]).astype(stored.dtype).tolist())
    padded = values[(stored >= low) & (stored <= high)]
    if padded.any():
        _told.add(folder)
        _logger.warning(
            "%s holds DICOM images with padding (PixelPaddingValue %d), which keeps its value, here %g: set it to that "
            "of air or background if it disturbs.",
            folder,
            first,
            padded[padded != 0][0],
        )


def _number(dataset: Dataset, keyword: str) -> int | None:
    """Give a whole number of an element; None where it is absent, or still bytes."""
    value = dataset.get(keyword)
    return int(value) if isinstance(value, int) else None


def _looked_up(stored: np.ndarray, item: Dataset, dataset: Dataset) -> tuple[np.ndarray, float]:
    """Apply a look-up table; give its values, and the highest one that its bits can hold."""
    little = dataset.file_meta.TransferSyntaxUID.is_little_endian
    entries, first, bits = (int(value) for value in _words(item.LUTDescriptor, 3, little))
    entries = entries or 2**16
    if stored.dtype.kind == "i" and first >= 2**15:
        first -= 2**16
    table = _words(item.LUTData, entries, little)
    if len(table) < entries:
        raise ValueError(f"its modality LUT has {len(table)} values instead of {entries}")
    places = np.clip(stored.astype(np.int64) - first, 0, entries - 1)
    return table[places].astype(np.float64), float(2**bits - 1)


def _words(value: Any, entries: int, little: bool) -> np.ndarray:
    """Give the numbers of an element, which may come as bytes: 16 bits each, or 8 where there are no more bytes."""
    if isinstance(value, bytes):
        kind = np.dtype("u1") if len(value) <= entries else np.dtype("<u2" if little else ">u2")
        return np.frombuffer(value[: len(value) // kind.itemsize * kind.itemsize], kind)
    return np.atleast_1d(np.asarray(value, dtype=np.int64)) & 0xFFFF


def _as_rgb(stored: np.ndarray, interpretation: str, dataset: Dataset) -> np.ndarray:
    """Give RGB of 8 bits; codecs have brought what they compress to RGB."""
    if interpretation in ("YBR_FULL", "YBR_FULL_422") and not _is_coded_by_jpeg(dataset):
        stored = np.stack([_processing.convert_color_space(frame, "YBR_FULL", "RGB") for frame in stored])
    elif interpretation not in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"):
        raise ValueError(f"the photometric interpretation {interpretation or 'nothing'} is not known")
    return _eight_bits(_within_bits(stored, dataset), int(dataset.get("BitsStored") or 8))


def _is_coded_by_jpeg(dataset: Dataset) -> bool:
    return dataset.file_meta.TransferSyntaxUID in _BY_GDCM


def _eight_bits(colors: np.ndarray, bits: int) -> np.ndarray:
    """Keep the upper eight bits of colors."""
    return (colors >> max(bits - 8, 0)).astype(np.uint8)

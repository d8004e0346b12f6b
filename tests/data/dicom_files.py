# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""DICOM files with any elements, for the tests of the data room and for the scripts in ``checks/``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid


def save_file(path: Path, pixels: np.ndarray, *, instance: str | None = None, **tags: Any) -> Path:
    """Write pixels (rows, columns), (frames, rows, columns) or (rows, columns, 3) as DICOM by pydicom.

    Args:
        path: the file.
        pixels: of any whole type; signed ones say so in the header.
        instance: UID of the file; None: a new one.
        tags: elements by their keywords, instead of the usual ones; None leaves one out.
    """
    color = pixels.ndim == 3 and pixels.shape[-1] == 3
    bits = 8 * pixels.dtype.itemsize
    syntax = tags.pop("syntax", ExplicitVRLittleEndian)
    usual: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
        "SOPInstanceUID": instance or generate_uid(),
        "SeriesInstanceUID": "1.2.3",
        "Modality": "MR",
        "SamplesPerPixel": 3 if color else 1,
        "PhotometricInterpretation": "RGB" if color else "MONOCHROME2",
        "Rows": pixels.shape[0 if color or pixels.ndim == 2 else 1],
        "Columns": pixels.shape[1 if color or pixels.ndim == 2 else 2],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": tags.get("BitsStored", bits) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelSpacing": [0.5, 0.7],
    }
    if color:
        usual["PlanarConfiguration"] = 0
    if pixels.ndim == 3 and not color:
        usual["NumberOfFrames"] = len(pixels)
    big, implicit = syntax == ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    coding = {"is_implicit_VR": implicit, "is_little_endian": not big}
    dataset = FileDataset(str(path), {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128, **coding)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = usual["SOPClassUID"]
    dataset.file_meta.MediaStorageSOPInstanceUID = usual["SOPInstanceUID"]
    with warnings.catch_warnings():  # some values are meant to be wrong
        warnings.simplefilter("ignore")
        for keyword, value in (usual | tags).items():
            if value is not None:
                setattr(dataset, keyword, value)
        if "PixelData" not in dataset:
            order = pixels.dtype.newbyteorder(">" if big else "<")
            dataset.PixelData = np.ascontiguousarray(pixels, dtype=order).tobytes()
            dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
        path.parent.mkdir(parents=True, exist_ok=True)
        if hasattr(dataset, "pixel_array_options"):  # pydicom 3
            dataset.save_as(path, enforce_file_format=True)
        else:
            dataset.save_as(path, write_like_original=False)
    return path

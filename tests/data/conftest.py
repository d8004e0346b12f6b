# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Files that the tests of the data room share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid


def write_slices(folder: Path, volume: np.ndarray, series: str = "1.2.3", modality: str = "CT") -> list[Path]:
    """Write one DICOM file per slice of volume[z, y, x] (uint16), 0.7 x 0.5 x 2 mm, with a name in the header."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    paths = []
    for z, plane in enumerate(volume):
        image = SimpleITK.GetImageFromArray(plane[None])
        image.SetSpacing([0.7, 0.5, 2.0])
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{z + 1}",
            "0008|0060": modality,
            "0010|0010": "Doe^Jane",
            "0010|0020": "secret-id",
            "0020|000d": "1.2",
            "0020|000e": series,
            "0020|0013": str(z + 1),
            "0020|0032": f"1\\2\\{2 * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        paths.append(folder / f"{z:03d}.dcm")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths


@pytest.fixture
def write_dicom() -> Callable[..., list[Path]]:
    """Give the function that writes DICOM files."""
    return write_slices


def save_tags(path: Path, pixels: np.ndarray, **tags: Any) -> Path:
    """Write pixels (rows, columns), (frames, rows, columns) or (rows, columns, 3) as DICOM by pydicom.

    Args:
        path: the file.
        pixels: of any whole type; signed ones say so in the header.
        tags: elements by their keywords, instead of the usual ones; None leaves one out.
    """
    color = pixels.ndim == 3 and pixels.shape[-1] == 3
    bits = 8 * pixels.dtype.itemsize
    syntax = tags.pop("syntax", ExplicitVRLittleEndian)
    usual: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
        "SOPInstanceUID": generate_uid(),
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


@pytest.fixture
def save_dicom() -> Callable[..., Path]:
    """Give the function that writes a DICOM file with given elements."""
    return save_tags

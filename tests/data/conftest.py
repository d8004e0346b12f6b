# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Files that the tests of the data room share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from dicom_files import save_file


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


@pytest.fixture
def save_dicom() -> Callable[..., Path]:
    """Give the function that writes a DICOM file with given elements."""
    return save_file

# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""MONAI readers of files with a place in space: DICOM and MetaImage; those of NIfTI are in ``_nifti``.

They give what MONAI's own readers give, and say in the metadata, under ``unit``, whether the size of pixels is known:
"mm", or "px" where the file does not say it.  MONAI's reader of these kinds is not used: it needs a second ITK, and
stacks the files of a series without asking where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import ensure_tuple

from monai_wsss._checks import DataError
from monai_wsss._dicom import read_dicom
from monai_wsss._image_formats import image_format
from monai_wsss._pictures import MILLIMETERS, PIXELS

__all__ = ["DicomReader", "MetaImageReader"]

_Placed = tuple[np.ndarray, np.ndarray, dict[str, Any]]
"""Values (C, *S) float32, affine (4, 4) to RAS millimeters, and the metadata ``unit``, perhaps more."""
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SIZE_KEYS = (b"elementspacing", b"elementsize")
_LONGEST_HEADER = 65536
_UNITS = {"?": 1.0, "unknown": 1.0, "um": 0.001, "mm": 1.0, "cm": 10.0}


class _PlacedReader(ImageReader):
    """Base of the readers: several files of one grid become channels."""

    kind: str

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Tell whether all files, or folders, are of the kind."""
        return all(image_format(name) == self.kind for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[_Placed]:
        """Read files."""
        return [self.read_one(Path(name)) for name in ensure_tuple(data)]

    def read_one(self, path: Path) -> _Placed:
        """Read one file, or the series in a folder."""
        raise NotImplementedError

    def get_data(self, img: list[_Placed]) -> tuple[np.ndarray, dict[str, Any]]:
        """Give the channels of all files, and the metadata of the first.

        Raises:
            DataError: the files lie on several grids.
        """
        (values, affine, entries), *others = img
        for other, other_affine, _ in others:
            if other.shape != values.shape or not np.allclose(other_affine, affine, atol=1e-3):
                raise DataError("The files of a case lie on several grids: register and resample them to one first.")
        shape = np.asarray(values.shape[1:])
        meta: dict[str, Any] = {"affine": affine, "original_affine": affine.copy(), "spatial_shape": shape}
        meta |= {"space": "RAS", "original_channel_dim": 0} | entries
        return np.concatenate([one for one, _, _ in img]), meta


class DicomReader(_PlacedReader):
    """Read DICOM files, and folders with a series, see :func:`monai_wsss._dicom.read_dicom`.

    Args:
        leave_out_localizers: whether localizers in a folder are left out.
        numbered: whether the metadata say, under ``image_numbers``, how people number the slices; batches of images
            need metadata of one length each, so they are not for training.
    """

    kind = "dicom"

    def __init__(self, *, leave_out_localizers: bool = False, numbered: bool = False) -> None:
        super().__init__()
        self.numbered = numbered
        self.leave_out_localizers = leave_out_localizers

    def read_one(self, path: Path) -> _Placed:
        """Read one file, or the series in a folder."""
        image = read_dicom(path, leave_out_localizers=self.leave_out_localizers)
        entries: dict[str, Any] = {"unit": MILLIMETERS if image.in_millimeters else PIXELS}
        return image.values, image.affine, entries | ({"image_numbers": image.numbers} if self.numbered else {})


class MetaImageReader(_PlacedReader):
    """Read MetaImage files; components, or a fourth axis, become channels."""

    kind = "metaimage"

    def read_one(self, path: Path) -> _Placed:
        """Read one file."""
        image = SimpleITK.ReadImage(str(path))
        values = SimpleITK.GetArrayFromImage(image).astype(np.float32)
        if image.GetNumberOfComponentsPerPixel() > 1:
            channels = np.moveaxis(values, -1, 0)
        else:
            channels = values if image.GetDimension() == 4 else values[None]
        count = min(image.GetDimension(), 3)
        directions = np.asarray(image.GetDirection()).reshape([image.GetDimension()] * 2)[:count, :count]
        affine = np.eye(4)
        affine[:count, :count] = directions * np.asarray(image.GetSpacing())[:count]
        affine[:count, 3] = np.asarray(image.GetOrigin())[:count]
        moved = channels.transpose(0, *range(channels.ndim - 1, 0, -1))
        says_size, unit = _stated_size(path)
        affine[:3] *= unit
        return np.ascontiguousarray(moved), _TO_RAS @ affine + 0.0, {"unit": MILLIMETERS if says_size else PIXELS}


def _stated_size(path: Path) -> tuple[bool, float]:
    """Read the header of a MetaImage, whose unit of length ITK passes over.

    Returns:
        Whether it says the size of pixels, for which ITK takes 1 if it does not, and its unit in millimeters.

    Raises:
        DataError: an unknown unit.
    """
    with open(path, "rb") as file:
        lines = file.read(_LONGEST_HEADER).split(b"\n")
    entries: dict[bytes, bytes] = {}
    for line in lines:
        key, _, value = line.partition(b"=")
        if key.strip().lower() == b"elementdatafile":
            break
        entries[key.strip().lower()] = value.strip().lower()
    unit = entries.get(b"distanceunits", b"mm").decode("latin-1")
    if unit not in _UNITS:
        raise DataError(f"{path} states lengths in {unit}, which is not known: write um, mm or cm as DistanceUnits.")
    return any(key in entries for key in _SIZE_KEYS), _UNITS[unit]

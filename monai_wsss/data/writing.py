# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""What the adapters write: pictures as PNG, everything else as NIfTI with its geometry, each file whole or absent.

Arrays are indexed [x, y(, z)], as MONAI reads them; the rows of a picture are y, so pictures are transposed on the way.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from monai_wsss._files import atomic_path, make_directory

__all__ = ["copy_file", "fits_picture", "write_nifti", "write_picture"]


def _compact(values: np.ndarray) -> np.ndarray:
    """The same values in the smallest of uint8, int16 and uint16 that holds them all exactly, else in float32."""
    if bool((values == np.round(values)).all()):
        for dtype in (np.uint8, np.int16, np.uint16):
            if np.iinfo(dtype).min <= values.min() and values.max() <= np.iinfo(dtype).max:
                return values.astype(dtype)
    return values.astype(np.float32)


def fits_picture(values: np.ndarray) -> bool:
    """Whether (C, x, y) can be stored as PNG without loss: whole numbers, up to 16 bits in gray and 8 bits in RGB.

    Example:
        >>> fits_picture(np.full((1, 2, 2), 700.0)), fits_picture(np.full((1, 2, 2), 0.5))
        (True, False)
    """
    dtype = _compact(values).dtype
    if values.ndim != 3 or dtype.kind == "f" or values.min() < 0:
        return False
    return values.shape[0] == 1 or (values.shape[0] == 3 and dtype == np.uint8)


def write_picture(path: str | os.PathLike[str], values: np.ndarray) -> None:
    """Write (1, x, y) as a gray PNG of 8 or 16 bits, or (3, x, y) as an RGB PNG.

    Raises:
        DataError: the disk is full, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "slice.png"
        >>> write_picture(file, np.zeros((1, 4, 2)))
        >>> with Image.open(file) as picture:
        ...     picture.size  # columns, rows
        (4, 2)
    """
    pixels = values[0].T if values.shape[0] == 1 else values.transpose(2, 1, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8 if values.max() <= 255 else np.uint16))
    make_directory(Path(path).parent)
    with atomic_path(path) as temporary:
        picture.save(temporary, compress_level=1)


def write_nifti(path: str | os.PathLike[str], values: np.ndarray, affine: np.ndarray) -> None:
    """Write (x, y[, z]) as NIfTI in millimeters, in the smallest data type that holds the values exactly.

    Args:
        path: ``….nii.gz``.
        values: (*S).
        affine: (4, 4), indices to RAS millimeters.

    Raises:
        DataError: the disk is full, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "volume.nii.gz"
        >>> write_nifti(file, np.full((2, 3, 4), 7.0), np.diag([1.0, 1.0, 5.0, 1.0]))
        >>> nibabel.load(file).get_data_dtype(), nibabel.load(file).affine.diagonal().tolist()
        (dtype('uint8'), [1.0, 1.0, 5.0, 1.0])
    """
    image = nibabel.Nifti1Image(_compact(values), np.asarray(affine, dtype=np.float64))
    image.header.set_xyzt_units("mm")
    make_directory(Path(path).parent)
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file's content, whole or not at all, making the target's folder.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    make_directory(Path(target).parent)
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)

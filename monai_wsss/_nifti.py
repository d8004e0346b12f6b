# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Units and forms of NIfTI headers: read in millimeters, written as the source has them.

A header says its unit of length by a code: 1 meters, 2 millimeters, 3 micrometers.  Code 0, which nibabel writes by
default, and codes without a meaning say nothing and count as millimeters by convention.  A header says the place of an
image twice, by a qform and an sform, which may differ, each with a code of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.config import PathLike
from monai.data import NibabelReader
from monai.data.utils import correct_nifti_header_if_necessary
from monai.utils import ensure_tuple
from nibabel.spatialimages import HeaderDataError

from monai_wsss._checks import DataError
from monai_wsss._image_formats import image_format, image_stem
from monai_wsss._pictures import PIXELS

__all__ = ["MillimeterNiftiReader", "as_nifti", "open_nifti", "says_no_unit", "unit_code"]

_MILLIMETERS = {1: 1000.0, 3: 0.001}
_LENGTH = 0b111
"""The bits of ``xyzt_units`` that say the unit of length."""
_FORMS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)

_GZIP = b"\x1f\x8b"
_HEADER_SIZES = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))
"""The first bytes of NIfTI-1 and NIfTI-2, of either byte order."""

_logger = logging.getLogger(__name__)


def unit_code(header: Mapping[str, Any]) -> int | None:
    """Give the code of the unit of length in a NIfTI header, or in the metadata of an image read from NIfTI.

    Returns:
        The code; None where the image was read from another kind of file.
    """
    if "xyzt_units" not in header:
        return None
    return int(np.asarray(header["xyzt_units"]).reshape(-1)[0]) & _LENGTH


def _is_mixed(path: str | os.PathLike[str]) -> bool:
    """Tell whether the suffix of a NIfTI file mixes small and capital letters, which nibabel does not find."""
    name = os.path.basename(path)
    suffix = name[len(image_stem(name)) :]
    return image_format(path) == "nifti" and any(part not in (part.lower(), part.upper()) for part in suffix.split("."))


def _check_compression(path: str | os.PathLike[str]) -> None:
    """Refuse a NIfTI file whose name ends as if it were compressed, and it is not, or the reverse."""
    with open(path, "rb") as file:
        start = file.read(4)
    name = os.fspath(path)
    if name.lower().endswith(".gz"):
        if start in _HEADER_SIZES:
            raise DataError(f"{name} is not compressed, though its name ends with .gz: give it a name without .gz.")
    elif start.startswith(_GZIP):
        raise DataError(f"{name} is compressed, though its name does not end with .gz: add .gz to its name.")


def open_nifti(path: str | os.PathLike[str]) -> Any:
    """Open a NIfTI file as nibabel does, whatever the case of its suffix.

    Raises:
        DataError: the name says that the file is compressed, and it is not, or the reverse.
    """
    _check_compression(path)
    if not _is_mixed(path):
        return nibabel.load(path)
    files = {"image": nibabel.FileHolder(filename=os.fspath(path))}
    try:
        return nibabel.Nifti1Image.from_file_map(files)
    except HeaderDataError:
        return nibabel.Nifti2Image.from_file_map(files)


class MillimeterNiftiReader(NibabelReader):
    """MONAI's reader of NIfTI, with affines in millimeters whatever the unit of the header is.

    The sform says the place where its code is not 0, else the qform.  Where both have a code and the header's
    ``pixdim`` confirms the voxel size of the qform alone, the qform does, as in MONAI's own reader.  The metadata keep
    the forms as the file has them, and say under ``unit`` "px" where neither a form nor ``pixdim`` says a size.
    """

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        self.filenames = ensure_tuple(data)
        images = [_placed(open_nifti(name), Path(name)) for name in self.filenames]
        self._stored = open_nifti(self.filenames[0]).header
        self._has_size = all(map(_says_size, images))
        return images[0] if len(images) == 1 else images

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        values, meta = super().get_data(img)
        if all(name in self._stored for name in _FORMS):
            meta.update({name: np.array(self._stored[name]) for name in _FORMS})
            meta["original_pixdim"] = np.array(self._stored["pixdim"])
        scale = _MILLIMETERS.get(unit_code(meta) or 0, 1.0)
        if scale != 1:
            for name in ("affine", "original_affine"):
                meta[name] = np.asarray(meta[name], dtype=np.float64)
                meta[name][:3] *= scale
        if not self._has_size:
            meta["unit"] = PIXELS
        return values, meta

    def _get_array_data(self, img: Any, filename: Any) -> np.ndarray:
        """Give the values of an image, with a fourth axis of length 1 before channels left out."""
        values = np.asanyarray(img.dataobj)
        if values.ndim == 5 and values.shape[3] == 1:
            values = values[:, :, :, 0]
        if values.size and not 2 <= values.ndim <= 4:
            raise DataError(f"{filename} has {values.ndim} dimensions: save one image, or one volume, per file.")
        if values.dtype.kind not in "iufb":
            kind = "complex numbers: save their magnitude" if values.dtype.kind == "c" else "colors: save gray channels"
            raise DataError(f"{filename} holds {kind}.")
        return values


def _placed(image: Any, path: Path) -> Any:
    """Take the form that says the place of an image; tell of what is guessed or contradicts it."""
    codes = [int(image.header[name]) for name in ("sform_code", "qform_code") if name in image.header]
    if len(codes) == 2 and not any(codes):
        _tell(path, "says no place (the codes of its forms are 0)", "its axes count as running to L, A and S")
    before = image.affine.copy()
    if len(codes) == 2 and all(codes):
        image = correct_nifti_header_if_necessary(image)
    if not np.allclose(before, image.affine, rtol=1e-3, atol=1e-3, equal_nan=True):
        _tell(path, "has two forms that differ in the size of voxels", "the qform counts, as pixdim confirms it")
    else:
        stated = np.asarray(image.header.get_zooms()[:3], dtype=np.float64)
        found = np.linalg.norm(image.affine[:3, : len(stated)], axis=0)
        if not np.allclose(stated, found, rtol=0.01, equal_nan=True):
            _tell(path, "has a pixdim that contradicts its sform", "the sform counts")
    return image


_told: set[tuple[Path, str]] = set()


def _tell(path: Path, what: str, consequence: str) -> None:
    """Log, once per folder, what a header says, and what follows."""
    if (path.parent, consequence) not in _told:
        _told.add((path.parent, consequence))
        _logger.warning(
            "The NIfTI file %s %s: %s, here and in other such files of its folder.", path, what, consequence
        )


def _says_size(image: Any) -> bool:
    """Tell whether a NIfTI file says the size of its voxels; nibabel puts 1 for a ``pixdim`` of 0."""
    header = image.header
    if "sform_code" not in header or int(header["sform_code"]):
        return True
    with image.file_map["image"].get_prepare_fileobj() as file:
        raw = type(header).from_fileobj(file, check=False)
    return bool((np.asarray(raw["pixdim"])[1 : 1 + min(int(raw["dim"][0]), 3)] != 0).all())


def says_no_unit(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is NIfTI and its header says no unit of length; whoever reads a broken one will say so."""
    if image_format(path) != "nifti":
        return False
    try:
        return unit_code(dict(open_nifti(path).header)) not in (*_MILLIMETERS, 2)
    except Exception:  # nibabel raises many kinds for a broken file
        return False


def as_nifti(values: np.ndarray, affine: np.ndarray, source: Mapping[str, Any] | None = None) -> nibabel.Nifti1Image:
    """Make a NIfTI image.

    Args:
        values: (*S).
        affine: (4, 4), indices to RAS millimeters.
        source: the metadata of the image, on whose grid the values lie, as MONAI's reader of NIfTI gives them.  Its
            unit is kept, and its two forms with their codes, unless the affine is another one than that of its file.
            None, and the metadata of other kinds of files, give millimeters and an sform.
    """
    affine = np.asarray(affine, dtype=np.float64)
    code = None if source is None else unit_code(source)
    if source is None or code is None:
        image = nibabel.Nifti1Image(values, affine)
        image.header.set_xyzt_units("mm")
        return image
    scale = _MILLIMETERS.get(code, 1.0)
    image = nibabel.Nifti1Image(values, np.diag([1 / scale] * 3 + [1.0]) @ affine)
    image.header["xyzt_units"] = code
    if not _has_place_of(source, affine):
        return image
    for name in _FORMS:
        image.header[name] = np.asarray(source[name]).reshape(image.header[name].shape)
    sides = np.asarray(source["original_pixdim" if "original_pixdim" in source else "pixdim"]).reshape(-1)[:4]
    image.header["pixdim"][:4] = sides
    return nibabel.Nifti1Image(values, None, image.header)  # with an affine, it would write one form over the other


def _has_place_of(source: Mapping[str, Any], affine: np.ndarray) -> bool:
    """Tell whether an affine is the one that the file of an image had."""
    if "original_affine" not in source or any(name not in source for name in _FORMS):
        return False
    original = np.asarray(source["original_affine"], dtype=np.float64)
    return original.shape == affine.shape and bool(np.allclose(original, affine, rtol=1e-6, atol=1e-6))

# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Kinds of image files, by their names and, where these say nothing, by their first bytes."""

from __future__ import annotations

import os
from pathlib import Path

from monai_wsss._pictures import PICTURE_SUFFIXES

__all__ = ["image_format", "image_stem", "is_hidden", "is_unread_image", "remedy_for", "stem_of_any"]

_SUFFIXES = {
    "picture": PICTURE_SUFFIXES,
    "nifti": (".nii", ".nii.gz"),
    "metaimage": (".mha", ".mhd"),
    "dicom": (".dcm", ".dicom", ".ima"),
}

_UNREAD_PICTURES: tuple[str, ...] = (
    ".webp",
    ".gif",
    ".jp2",
    ".j2k",
    ".jpf",
    ".jpx",
    ".jfif",
    ".heic",
    ".heif",
    ".avif",
    ".ppm",
    ".pgm",
)
_UNREAD_PICTURES += (".pnm", ".tga", ".psd", ".jxl", ".exr")
_UNREAD_SLIDES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".czi", ".lif", ".vsi")
_UNREAD_VOLUMES: tuple[str, ...] = (
    ".nrrd",
    ".nhdr",
    ".mgz",
    ".mgh",
    ".mnc",
    ".img.gz",
    ".img",
    ".hdr",
    ".par",
    ".rec",
    ".vtk",
    ".vti",
)
_UNREAD_VOLUMES += (".mhd.gz", ".gipl", ".npy", ".npz", ".h5", ".hdf5", ".mat", ".nii.bz2", ".nii.zst", ".nii.xz")
_START = 132
"""Bytes up to the end of the mark of a DICOM file."""
_UNREAD = _UNREAD_PICTURES + _UNREAD_SLIDES + _UNREAD_VOLUMES


def is_unread_image(path: str | os.PathLike[str]) -> bool:
    """Tell whether the suffix of a file is that of an image of a kind that is not read.

    Example:
        >>> is_unread_image("a.NRRD"), is_unread_image("a.png"), is_unread_image("notes.txt")
        (True, False, False)
    """
    return Path(path).name.lower().endswith(_UNREAD) and image_format(path) is None


def stem_of_any(path: str | os.PathLike[str]) -> str:
    """Give the name of a file without its suffix, be it of a kind that is read or not.

    Example:
        >>> stem_of_any("anna.v2.img.gz"), stem_of_any("a.NII.GZ")
        ('anna.v2', 'a')
    """
    name = Path(path).name
    found = [suffix for suffix in _UNREAD if name.lower().endswith(suffix)]
    return name[: -len(max(found, key=len))] if found else image_stem(path)


def remedy_for(path: str | os.PathLike[str]) -> str:
    """Say as what to save a file of a kind that is not read.

    Example:
        >>> remedy_for("a.nrrd"), remedy_for("b.webp")
        ('save it as NIfTI (.nii.gz)', 'save it as PNG')
    """
    name = Path(path).name.lower()
    if name.endswith(_UNREAD_VOLUMES):
        return "save it as NIfTI (.nii.gz)"
    if name.endswith(_UNREAD_SLIDES):
        return "cut tiles from the slide and save them as PNG"
    if name.endswith(_UNREAD_PICTURES):
        return "save it as PNG"
    return "give PNG, JPEG, TIFF, BMP, NIfTI, MetaImage or DICOM"


def is_hidden(path: Path) -> bool:
    """Tell whether a file is hidden, as those that macOS leaves beside others (``._001.dcm``) are."""
    return path.name.startswith(".")


def image_format(path: str | os.PathLike[str]) -> str | None:
    """Give the kind of an image file: "picture" (PNG, JPEG, TIFF, BMP), "nifti", "metaimage" or "dicom".

    The suffix decides.  A file without a known suffix is DICOM if it begins like one.  A folder is DICOM if it holds a
    DICOM file that is not hidden.

    Returns:
        The kind, or None if the path holds no image that can be read.

    Example:
        >>> image_format("case/flair.nii.gz"), image_format("scan.PNG"), image_format("notes.txt")
        ('nifti', 'picture', None)
    """
    file = Path(path)
    if file.is_dir():
        visible = (child for child in file.iterdir() if child.is_file() and not is_hidden(child))
        return "dicom" if any(image_format(child) == "dicom" for child in visible) else None
    name = file.name.lower()
    for kind, suffixes in _SUFFIXES.items():
        if name.endswith(suffixes):
            return kind
    return "dicom" if file.is_file() and _begins_like_dicom(file) else None


def image_stem(path: str | os.PathLike[str]) -> str:
    """Give the name of an image file without its suffix; unknown suffixes, as in a DICOM file ``1.2.840``, stay.

    Example:
        >>> image_stem("scans/anna.v2.nii.gz"), image_stem("scans/1.2.840")
        ('anna.v2', '1.2.840')
    """
    name = Path(path).name
    found = [suffix for suffixes in _SUFFIXES.values() for suffix in suffixes if name.lower().endswith(suffix)]
    return name[: -len(max(found, key=len))] if found else name


def _begins_like_dicom(file: Path) -> bool:
    try:
        with open(file, "rb") as stream:
            start = stream.read(_START)
            return file.name != "DICOMDIR" and (start[128:] == b"DICM" or _begins_like_old_dicom(start))
    except OSError:
        return False


def _begins_like_old_dicom(start: bytes) -> bool:
    """Tell whether a file begins with an element of group 8, as DICOM without a preamble does."""
    for order in ("little", "big"):
        group, element, length = (int.from_bytes(start[i : i + n], order) for i, n in ((0, 2), (2, 2), (4, 4)))
        explicit = start[4:6] in (b"UL", b"CS", b"UI", b"DA", b"LO")
        if (
            group == 8
            and element <= 0x18
            and len(start) == _START
            and (explicit or (order == "little" and length <= 64))
        ):
            return True
    return False

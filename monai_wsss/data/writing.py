# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Write pictures as PNG and everything else as NIfTI with its geometry, each file whole or not at all.

Arrays are indexed [x, y(, z)], as MONAI reads them.  The rows of a picture are y, so pictures are transposed.  Text in
headers, which may name the subject, is never written; copies are made without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from monai_wsss._files import atomic_path, make_directory
from monai_wsss._nifti import as_nifti, open_nifti

__all__ = ["copy_file", "fits_picture", "is_bare_nifti", "scale_to_16_bit", "write_nifti", "write_picture"]

_NIFTI_TEXTS = ("data_type", "db_name", "intent_name", "descrip", "aux_file")
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs")
_AFTER_JPEG_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a marker other than restarts and escaped data


def _compact(values: np.ndarray) -> np.ndarray:
    """Convert to the first of uint8, int16 and uint16 that holds all values exactly, else to float32."""
    if bool((values == np.round(values)).all()):
        for dtype in (np.uint8, np.int16, np.uint16):
            if np.iinfo(dtype).min <= values.min() and values.max() <= np.iinfo(dtype).max:
                return values.astype(dtype)
    return values.astype(np.float32)


def fits_picture(values: np.ndarray) -> bool:
    """Tell whether (C, x, y) can be stored as PNG without loss: whole numbers, up to 16 bits in gray, 8 bits in RGB.

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


def write_nifti(
    path: str | os.PathLike[str], values: np.ndarray, affine: np.ndarray, source: Mapping[str, Any] | None = None
) -> None:
    """Write (x, y[, z]) as NIfTI in the smallest data type that holds the values exactly.

    Args:
        path: ``….nii.gz``.
        values: (*S).
        affine: (4, 4), indices to RAS millimeters.
        source: the metadata of the image that is written, or on whose grid the values lie.  Where it was read from
            NIfTI, the file gets its unit of length, its two forms of the affine and their codes; otherwise it is in
            millimeters.

    Raises:
        DataError: the disk is full, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "volume.nii.gz"
        >>> write_nifti(file, np.full((2, 3, 4), 7.0), np.diag([1.0, 1.0, 5.0, 1.0]))
        >>> nibabel.load(file).get_data_dtype(), nibabel.load(file).affine.diagonal().tolist()
        (dtype('uint8'), [1.0, 1.0, 5.0, 1.0])
    """
    image = as_nifti(_compact(values), affine, source)
    make_directory(Path(path).parent)
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)


def _background(values: np.ndarray) -> float | None:
    """Give the most frequent value on the six faces of a volume (X, Y, Z) if no voxel is below it, else None."""
    faces = [face.ravel() for axis in range(3) for face in (values.take(0, axis), values.take(-1, axis))]
    found, counts = np.unique(np.concatenate(faces), return_counts=True)
    frequent = float(found[counts.argmax()])
    return frequent if frequent == values.min() else None


def _foreground(volume: np.ndarray) -> np.ndarray:
    """Tell where any sequence of (C, X, Y, Z) is above its background; everywhere if a sequence has none."""
    backgrounds = [_background(values) for values in volume]
    if any(background is None for background in backgrounds):
        return np.ones(volume.shape[1:], dtype=bool)
    return np.any([values > background for values, background in zip(volume, backgrounds, strict=True)], axis=0)


def scale_to_16_bit(
    volume: np.ndarray, percentiles: tuple[float, float] = (0.5, 99.5)
) -> tuple[np.ndarray, np.ndarray]:
    """Scale each sequence of a volume so that two percentiles of its foreground become 0 and 65535.

    The foreground, such as a skull-stripped brain, is where any sequence is above its background.  The background is
    the most frequent value at the border of the volume, where that is also the least of all values: so z-scored
    volumes, whose background is negative, are scaled as others.  Outside the foreground the result is 0.  A volume
    without such a background, as a CT cropped to an organ, is foreground throughout, and dark lesions stay visible.

    Args:
        volume: (C, X, Y, Z), any real type.
        percentiles: lower and upper, 0 to 100.

    Returns:
        The scaled volume (C, X, Y, Z) uint16, and the foreground (X, Y, Z) bool.

    Raises:
        ValueError: a sequence is constant in the foreground.

    Example:
        >>> volume = np.full((1, 4, 4, 4), -3.0)
        >>> volume[0, 1, 1, 1:3] = -1.0, 2.0
        >>> scaled, foreground = scale_to_16_bit(volume, percentiles=(0, 100))
        >>> scaled[0, 1, 1].tolist(), int(foreground.sum())
        ([0, 0, 65535, 0], 2)
    """
    foreground = _foreground(volume)
    scaled = np.zeros(volume.shape, dtype=np.uint16)
    for channel, values in enumerate(volume):
        low, high = np.percentile(values[foreground], percentiles) if foreground.any() else (0.0, 0.0)
        if low >= high:
            raise ValueError(
                f"Expected channel {channel} of `volume` to vary within the foreground, got {low:g} throughout."
            )
        share = np.clip((values[foreground].astype(np.float64) - low) / (high - low), 0.0, 1.0)
        scaled[channel][foreground] = np.rint(share * 65535).astype(np.uint16)
    return scaled, foreground


def is_bare_nifti(path: str | os.PathLike[str]) -> bool:
    """Tell whether a NIfTI file holds only an image and its geometry: no text in its header, extensions or file name.

    Description, auxiliary file and database name are free text, extensions may be whole DICOM headers, and gzip may
    store the original name of a file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "volume.nii.gz"
        >>> write_nifti(file, np.ones((2, 3, 4)), np.eye(4))
        >>> is_bare_nifti(file)
        True
    """
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] == b"\x1f\x8b" and start[3] & 0b11100:  # gzip's flags: extra field, name, comment
        return False
    image = open_nifti(path)
    if not isinstance(image, nibabel.Nifti1Image):
        return False
    header = image.header
    texts = [header[name].item() for name in _NIFTI_TEXTS if name in header]
    return not any(texts) and not len(header.extensions)


def _bare_png(content: bytes) -> bytes:
    """Remove text, EXIF, color profile, time, private chunks and all data after the end from a PNG."""
    kept, place = [content[:8]], 8
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        kind = content[place + 4 : place + 8]
        if kind in _PNG_CHUNKS:
            kept.append(content[place:end])
        place = len(content) if kind == b"IEND" else end
    return b"".join(kept)


def _is_jpeg_coding(marker: int, segment: bytes) -> bool:
    """Tell whether a segment is needed to decode the picture; of application data only plain JFIF and Adobe are."""
    if marker == 0xE0:
        return segment[4:9] == b"JFIF\0" and len(segment) == 18  # without a thumbnail
    if marker == 0xEE:
        return segment[4:9] == b"Adobe" and len(segment) == 16
    return marker != 0xFE and not 0xE0 <= marker <= 0xEF


def _bare_jpeg(content: bytes) -> bytes:
    """Remove EXIF, comments, other application data and all data after the end from a JPEG; pixels stay as coded."""
    kept, place = [content[:2]], 2
    while place + 4 <= len(content):
        marker = content[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker == 0xD9:
            break
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == 0xDA:
            after = _AFTER_JPEG_SCAN.search(content, end)
            end = after.start() if after else len(content)
        if _is_jpeg_coding(marker, content[place:end]):
            kept.append(content[place:end])
        place = end
    return b"".join([*kept, b"\xff\xd9"])


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy an image file, whole or not at all, and make the folder of the target.

    PNG and JPEG files lose all that is not needed to decode them (text, comments, EXIF with its preview); their pixels
    are not coded anew.  Other files are copied byte for byte: ask :func:`is_bare_nifti` first.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    make_directory(Path(target).parent)
    with atomic_path(target) as temporary:
        content = Path(source).read_bytes()
        if content.startswith(b"\x89PNG"):
            content = _bare_png(content)
        elif content.startswith(b"\xff\xd8"):
            content = _bare_jpeg(content)
        temporary.write_bytes(content)

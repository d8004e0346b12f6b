# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Read image files of any kind; any fault of a file becomes one sentence that names it.

This module chooses the reader, one of MONAI's kind, brings pictures to gray or RGB, and refuses files that would spoil
a training run later: truncated files, NaN and infinity, empty and constant images, and modalities that do
not match.  A *picture* is a file without geometry: PNG, JPEG, TIFF or BMP.  Pictures and masks whose EXIF entry turns
or mirrors them are read upright, as viewers show them.  A size of pixels that DICOM or MetaImage do not say stays
unknown, and distances are measured in pixels.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, PILReader
from monai.data.utils import to_affine_nd
from monai.transforms import EnsureChannelFirst
from PIL import Image

from monai_wsss._checks import DataError, plain_tensor
from monai_wsss._checksums import check_checksums
from monai_wsss._dicom import modality_of
from monai_wsss._image_formats import image_format, image_stem, remedy_for
from monai_wsss._image_readers import DicomReader, MetaImageReader
from monai_wsss._nifti import MillimeterNiftiReader
from monai_wsss._picture_values import (
    as_shown,
    check_values_kept,
    gamma_of,
    has_colors,
    has_transparency,
    mask_numbers,
    profile_is_unusual,
    refuse_unread_picture,
)
from monai_wsss._pictures import MILLIMETERS, PIXELS, is_turned

__all__ = [
    "affine_of",
    "check_alike",
    "check_mask_fits",
    "image_format",
    "image_stem",
    "is_color_picture",
    "is_radiograph",
    "read_image",
    "read_labels",
    "tell_if_inverted",
]

_FLAT = 1e-9
"""Least volume of a voxel, as a share of that of a cube."""
_ITK_SOURCE_LINE = re.compile(r"\.[ch]xx:\d+")
_ITK_PREFIX = re.compile(r"ITK ERROR: \w+\(0x[0-9a-f]+\): ")
_RADIOGRAPHS = ("CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA")
"""Modalities of DICOM whose files are projections by X-rays."""
_GRAY_MODES = ("L", "I", "F", "I;16", "I;16B", "I;16L")
_USUAL_GAMMA = (0.42, 0.5)
"""Gammas of PNG files for which viewers show what is stored; 1/2.2 is usual."""

_logger = logging.getLogger(__name__)


def _to_gray_or_rgb(picture: Image.Image) -> Image.Image:
    """Convert palette, CMYK, YCbCr and transparent pictures to RGB or gray without alpha; gray keeps its depth."""
    if picture.mode in _GRAY_MODES or picture.mode == "RGB":
        return picture
    if picture.mode in ("RGBa", "La"):
        picture = picture.convert("RGBA" if picture.mode == "RGBa" else "LA")
    return picture.convert("L" if picture.mode in ("1", "LA", "La") else "RGB")


def _to_opaque(picture: Image.Image) -> Image.Image:
    """Convert as :func:`_to_gray_or_rgb` does, but with white in place of transparent pixels, as on a lit slide."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture.convert("RGBA"))
        return page.convert("RGB")
    return _to_gray_or_rgb(picture)


def _opened(picture: Image.Image, file: Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Refuse several pages and values that would be lost, turn the picture upright, and convert it."""
    try:
        turned = _turned_upright(picture, file)
    except Exception:
        picture.close()
        raise
    gamma = gamma_of(picture)
    if gamma is not None and not _USUAL_GAMMA[0] <= gamma <= _USUAL_GAMMA[1]:
        _tell(file, f"of an unusual gamma ({gamma:g})", "their values are read as stored")
    if profile_is_unusual(picture):
        _tell(file, "with a color profile other than sRGB", "their values are read as stored, without the profile")
    if convert is _to_gray_or_rgb and has_transparency(turned):
        _tell(file, "with transparent pixels", "they keep the color that the file holds there")
    return convert(turned)


def _turned_upright(picture: Image.Image, file: Path) -> Image.Image:
    """Refuse several pages and values that would be lost; give the picture upright, with black as 0."""
    check_values_kept(picture, file)
    if is_turned(picture):
        _tell(
            file,
            "that viewers turn, as their EXIF entry says",
            "they are read and written upright, and masks count as drawn on the upright image",
        )
    return as_shown(picture)


_told: set[tuple[Path, str]] = set()


def _tell(file: Path, what: str, consequence: str) -> None:
    """Log, once per folder, that it holds images of a kind, and what becomes of them."""
    if (file.parent, consequence) not in _told:
        _told.add((file.parent, consequence))
        _logger.warning("%s holds images %s, first %s: %s.", file.parent, what, file.name, consequence)


def _reader_of(file: Path, kind: str, convert: Callable[[Image.Image], Image.Image], **series: Any) -> Any:
    """Give the reader for a kind of files; ``series`` are words of :class:`DicomReader`."""
    if kind == "picture":
        return PILReader(converter=partial(_opened, file=file, convert=convert))
    if kind == "dicom":
        return DicomReader(numbered=True, **series)
    return MillimeterNiftiReader() if kind == "nifti" else MetaImageReader()


def _load(
    file: Path,
    kind: str,
    convert: Callable[[Image.Image], Image.Image] = _to_gray_or_rgb,
    **series: Any,
) -> MetaTensor:
    """Read a file with the reader for its kind: (C, *S) float32; the metadata say the unit of length, "mm" or "px".

    ``LoadImage`` is not used: where the right reader refuses a truncated file, it tries other readers, which may accept
    the file.
    """
    reader = _reader_of(file, kind, convert, **series)
    values, meta = reader.get_data(reader.read(file))
    if meta.get("unit") == PIXELS:
        _tell(
            file,
            "that do not say the size of their pixels",
            "it stays unknown, and distances are measured in pixels",
        )
    meta.setdefault("unit", PIXELS if kind == "picture" else MILLIMETERS)
    tensor = MetaTensor.ensure_torch_and_prune_meta(values.astype(np.float32), meta)
    return EnsureChannelFirst()(tensor)


def _reason(error: Exception) -> str:
    """Give the first informative line of an error, cut to fit a sentence; lines that name ITK's source are skipped."""
    lines = [line for line in str(error).strip().splitlines() if not _ITK_SOURCE_LINE.search(line)]
    reason = _ITK_PREFIX.sub("", lines[0]) if lines else type(error).__name__
    return reason.strip(". ")[:200]


def read_image(
    path: str | os.PathLike[str],
    *,
    on_white: bool = False,
    leave_out_localizers: bool = False,
    series: Sequence[Path] | None = None,
) -> MetaTensor:
    """Read an image file, or a folder with one DICOM series.

    Pictures with a palette, with transparency or in CMYK become RGB, and pictures that an EXIF entry turns become
    upright.  Arrays are indexed (C, x, y[, z]), as by all MONAI readers; ``.affine`` maps indices to RAS millimeters.
    Networks may get 2D images in another order, see :class:`~monai_wsss.transforms.LoadImageOrderedd`.

    DICOM slices are ordered by their positions, a single one becomes 2D.  Values are as the header means them: modality
    LUT, bits and signs, palettes, and MONOCHROME1 inverted, so that bright means much.  Windows, VOI LUTs and overlays
    say how to show an image and are left out.  The metadata ``unit`` is "px" where no file says the size of the pixels,
    else "mm".

    Args:
        path: PNG, JPEG, TIFF, BMP, NIfTI, MetaImage or DICOM.
        on_white: whether transparent pixels of a picture become white, as is right for stained tissue.  Otherwise they
            keep the color that the file holds there.
        leave_out_localizers: whether localizers in a folder with a DICOM series, by their type or by another
            orientation or size than that of most images, are left out, and said; otherwise they are an error.
        series: the files of a DICOM series, where the folder ``path`` holds others, too.

    Returns:
        (C, *S), float32.

    Raises:
        DataError: the file is missing, of another kind, truncated or broken, or it has no values, NaN, infinite values
            or only one value, or the files of a DICOM series make no even stack.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "gray.png"
        >>> Image.fromarray(np.array([[0, 1, 2], [3, 4, 5]], dtype=np.uint8)).save(file)
        >>> read_image(file).shape  # three columns, two rows
        torch.Size([1, 3, 2])
    """
    file = Path(path)
    if not file.exists():
        raise DataError(f"The image {file} does not exist: check the path.")
    kind = "dicom" if series else image_format(file)
    if kind is None:
        raise DataError(f"{file} is of a kind that is not read: {remedy_for(file)}.")
    try:
        check_checksums(file)
        convert = _to_opaque if on_white else _to_gray_or_rgb
        image = _load(file, kind, convert, leave_out_localizers=leave_out_localizers, series=series)
    except DataError:
        raise
    except Exception as error:  # every reader has its own exceptions, down to bare RuntimeError and EOFError
        refuse_unread_picture(error, file)
        raise DataError(
            f"Cannot read {file} as {kind} ({_reason(error)}): the file is damaged or of another kind, "
            "so copy or export it again."
        ) from error
    _check_values(image, file, color=kind == "picture" or (kind == "dicom" and image.shape[0] == 3))
    if kind != "picture":
        _check_place(image, file)
    return image


def _check_place(image: MetaTensor, file: Path) -> None:
    """Refuse an affine with which no place can be told."""
    axes = affine_of(image)[:3, :3]
    if not np.isfinite(axes).all() or abs(np.linalg.det(axes)) < _FLAT * np.abs(axes).max() ** 3:
        raise DataError(
            f"{file} has an affine that is flat or not finite, so its place is unknown: correct its header."
        )


def _check_values(image: torch.Tensor, file: Path, color: bool) -> None:
    """Refuse values that would spoil training; single channels of a color picture may be constant."""
    remedy = "export it again or leave the case out"
    if image.numel() == 0:
        raise DataError(f"{file} is empty, it has no pixels: {remedy}.")
    for low, high in (map(float, channel.aminmax()) for channel in plain_tensor(image[None] if color else image)):
        if not np.isfinite(high - low):
            raise DataError(f"{file} holds NaN or infinite values: {remedy}.")
        if low == high:
            raise DataError(f"{file} is constant (every value is {low:g}): {remedy}.")


def is_color_picture(path: Path) -> bool:
    """Tell whether a file is a picture with colors; False for a broken file, since reading it will say why."""
    if image_format(path) != "picture":
        return False
    try:
        with Image.open(path) as picture:
            return has_colors(picture)
    except Exception:  # whatever Pillow raises: OSError, SyntaxError, DecompressionBombError
        return False


def read_labels(path: str | os.PathLike[str], *, palette: str = "shown") -> MetaTensor:
    """Read a mask: whole numbers from 0 on, one channel.

    A picture is read as viewers show it: upright, 0 where it shows black or nothing.  A palette gives its indices where
    entry 0 is background; where it is not, as after some paint programs and optimizers, whatever is not black counts.
    Colors give one number, the brightest of their channels.  Unlike an image, a mask may be constant.

    Args:
        path: the mask.
        palette: how a picture with a palette is read: "shown", as said above; "indices", as formats such as VOC's
            define them; "gray", by the brightness of its colors.

    Returns:
        (1, *S), int64.

    Raises:
        DataError: the file cannot be read, has several channels, holds values other than whole numbers from 0 on, or
            is a picture whose foreground is not clear.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "mask.png"
        >>> Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).save(file)
        >>> read_labels(file).tolist()
        [[[0], [255]]]
    """
    file = Path(path)
    kind = image_format(file) if file.exists() else None
    if kind is None:
        raise DataError(f"The mask {file} does not exist or is of a kind that is not read: {remedy_for(file)}.")
    try:
        check_checksums(file)
        if kind == "picture":
            with Image.open(file) as opened:
                values = mask_numbers(_turned_upright(opened, file), opened, file, palette)
            mask = MetaTensor(torch.from_numpy(values.T.astype(np.float64))[None])
        else:
            mask = _load(file, kind)
    except DataError:
        raise
    except Exception as error:
        refuse_unread_picture(error, file)
        raise DataError(f"Cannot read the mask {file} ({_reason(error)}): copy or export it again.") from error
    if mask.shape[0] != 1:
        raise DataError(f"The mask {file} has {mask.shape[0]} channels: give one channel with 0 for background.")
    if not bool(((mask >= 0) & (mask == mask.round())).all()):
        raise DataError(f"The mask {file} holds values other than whole numbers from 0 on: export it as labels.")
    return mask.long()


def tell_if_inverted(mask: np.ndarray, path: Path) -> None:
    """Log, once per folder, that a mask (1, *S) of 0 and 1 is foreground at all corners and not everywhere."""
    corners = mask[np.ix_([0], *([0, -1] for _ in mask.shape[1:]))]
    if corners.all() and not mask.all():
        _tell(
            path,
            "that are foreground at all corners",
            "if black marks the object in them, invert them, since black is background",
        )


def is_radiograph(path: str | os.PathLike[str]) -> bool:
    """Tell whether a DICOM file is an X-ray, which is a picture by nature, unlike a slice of a volume."""
    if Path(path).is_dir() or image_format(path) != "dicom":
        return False
    return modality_of(Path(path)) in _RADIOGRAPHS


def affine_of(image: MetaTensor) -> np.ndarray:
    """Give the affine of a 2D or 3D image as (4, 4) float64, from indices to RAS millimeters.

    Example:
        >>> image = MetaTensor(torch.zeros(1, 4, 4), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0])))
        >>> affine_of(image).diagonal().tolist()
        [2.0, 3.0, 1.0, 1.0]
    """
    return np.asarray(to_affine_nd(3, torch.as_tensor(image.affine).numpy().astype(np.float64)))


def check_alike(images: Mapping[str, MetaTensor], *, tolerance_mm: float = 1e-3) -> None:
    """Check that the modalities of a case lie on one grid: equal spatial shapes and affines.

    Args:
        images: file name -> (C, *S); the message names the files.
        tolerance_mm: the largest difference between the entries of two affines, in millimeters.

    Raises:
        DataError: two files differ.

    Example:
        >>> check_alike({"t1": MetaTensor(torch.zeros(1, 4, 4)), "t2": MetaTensor(torch.zeros(1, 4, 4))})
    """
    (first_name, first), *others = images.items()
    for name, image in others:
        if image.shape[1:] != first.shape[1:]:
            sizes = [" x ".join(map(str, one.shape[1:])) for one in (first, image)]
            raise DataError(
                f"{first_name} is of size {sizes[0]} but {name} of {sizes[1]}: register and resample the files "
                "of a case to one grid first."
            )
        difference = float(np.abs(affine_of(first) - affine_of(image)).max())
        if difference > tolerance_mm:
            raise DataError(
                f"The affines of {first_name} and {name} differ by up to {difference:.3g} mm: register and resample "
                "the files of a case to one grid first."
            )


def check_mask_fits(mask: MetaTensor, path: Path, image: MetaTensor) -> None:
    """Check that a mask lies on the grid of its image; of pictures only the sizes are compared, as viewers show them.

    Args:
        mask: (1, *S); a picture takes over the affine of the image, since it has none.
        path: the file of the mask.
        image: (C, *S).

    Raises:
        DataError: the sizes or the affines differ.
    """
    grid = image[:1]
    if image_format(path) == "picture":
        mask.affine = grid.affine
        columns, rows = mask.shape[1:]
        if columns != rows and grid.shape[1:] == (rows, columns):
            raise DataError(
                f"The mask {path} is of size {columns} x {rows} but its image of {rows} x {columns}, as viewers show "
                "it: turn the mask as the image is shown; an EXIF entry may turn either of them."
            )
        if mask.shape[1:] != grid.shape[1:]:
            wanted = " x ".join(map(str, grid.shape[1:]))
            raise DataError(
                f"The mask {path} is of size {columns} x {rows} but its image of {wanted}: take the mask that was "
                "drawn on this image, or bring it to the size of the image, without values between its own."
            )
    check_alike({f"the image of {path.name}": grid, str(path): mask})

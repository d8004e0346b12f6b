# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Read image files of any kind; any fault of a file becomes one sentence that names it.

MONAI's readers read the files.  This module chooses the reader, brings pictures to gray or RGB, and refuses files that
would spoil a training run later: truncated files, NaN and infinity, empty and constant images, and modalities that do
not match.  A *picture* is a file without geometry: PNG, JPEG, TIFF or BMP.  Pictures and masks whose EXIF entry turns
or mirrors them are read upright, as viewers show them.

X-rays in DICOM often are negatives (MONOCHROME1: low is white).  ITK inverts them within the range of their stored
bits, so that what absorbs more is brighter in all images.  Where a DICOM file does not say the size of its pixels, ITK
would take 1 mm; it stays unknown instead, and distances are measured in pixels.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from monai.data import ITKReader, MetaTensor, NibabelReader, PILReader
from monai.data.utils import to_affine_nd
from monai.transforms import EnsureChannelFirst
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss._pictures import PICTURE_SUFFIXES, is_turned, upright

__all__ = [
    "affine_of",
    "check_alike",
    "check_mask_fits",
    "image_format",
    "image_stem",
    "is_radiograph",
    "lacks_pixel_size",
    "read_image",
    "read_labels",
]

_SUFFIXES = {
    "picture": PICTURE_SUFFIXES,
    "nifti": (".nii", ".nii.gz"),
    "metaimage": (".mha", ".mhd"),
    "dicom": (".dcm", ".dicom", ".ima"),
}
_MODALITY = "0008|0060"
_PIXEL_SIZES = ("0028|0030", "0018|1164", "0018|2010")
"""Tags of DICOM with the size of pixels: PixelSpacing, ImagerPixelSpacing, NominalScannedPixelSpacing."""
_ITK_SOURCE_LINE = re.compile(r"\.[ch]xx:\d+")
_ITK_PREFIX = re.compile(r"ITK ERROR: \w+\(0x[0-9a-f]+\): ")
_RADIOGRAPHS = ("CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA")
"""Modalities of DICOM whose files are projections by X-rays."""
_GRAY_MODES = ("L", "I", "F", "I;16", "I;16B", "I;16L")

_logger = logging.getLogger(__name__)


def image_format(path: str | os.PathLike[str]) -> str | None:
    """Give the kind of an image file: "picture" (PNG, JPEG, TIFF, BMP), "nifti", "metaimage" or "dicom".

    The suffix decides.  A file without a known suffix is DICOM if it begins like one.  A folder is DICOM if it holds a
    DICOM file.

    Returns:
        The kind, or None if the path holds no image that can be read.

    Example:
        >>> image_format("case/flair.nii.gz"), image_format("scan.PNG"), image_format("notes.txt")
        ('nifti', 'picture', None)
    """
    file = Path(path)
    if file.is_dir():
        return "dicom" if any(child.is_file() and image_format(child) == "dicom" for child in file.iterdir()) else None
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
            return stream.read(132)[128:] == b"DICM" and file.name != "DICOMDIR"
    except OSError:
        return False


def _to_gray_or_rgb(picture: Image.Image) -> Image.Image:
    """Convert palette, CMYK, YCbCr and transparent pictures to RGB or gray without alpha; gray keeps its depth."""
    if picture.mode in _GRAY_MODES or picture.mode == "RGB":
        return picture
    return picture.convert("L" if picture.mode in ("1", "LA", "La") else "RGB")


def _to_opaque(picture: Image.Image) -> Image.Image:
    """Convert as :func:`_to_gray_or_rgb` does, but with white in place of transparent pixels, as on a lit slide."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture.convert("RGBA"))
        return page.convert("RGB")
    return _to_gray_or_rgb(picture)


def _opened(picture: Image.Image, file: Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Refuse several pages, turn the picture upright, and convert it."""
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise DataError(f"{file} holds {pages} pages: save each page as a picture, or the stack as NIfTI.")
    if is_turned(picture):
        _tell_of_turned(file.parent, file.name)
    return convert(upright(picture))


_told: set[Path] = set()
_told_of_size: set[Path] = set()


def _pixel_size(meta: Mapping[str, Any]) -> tuple[float, float] | None:
    """Give the size of a pixel along x and y in millimeters, as the tags of a DICOM file say it; None: unknown."""
    for tag in _PIXEL_SIZES:
        try:
            along_y, along_x = (float(number) for number in str(meta[tag]).strip(" \0").split("\\"))
        except (KeyError, ValueError):
            continue
        if min(along_x, along_y) > 0 and max(along_x, along_y) < np.inf:
            return along_x, along_y
    return None


def _with_pixel_size(image: MetaTensor, meta: Mapping[str, Any], file: Path) -> MetaTensor:
    """Give the affine the size of pixels that the file tells, where ITK overlooked it; mark and tell an unknown one."""
    size = _pixel_size(meta)
    if size is not None:
        if tuple(np.asarray(meta["spacing"])[:2]) == (1.0, 1.0):
            image.affine = torch.as_tensor(image.affine) @ torch.diag(torch.tensor([*size, 1.0, 1.0]).double())
        return image
    image.meta["unit"] = "px"
    if file.parent not in _told_of_size:
        _told_of_size.add(file.parent)
        _logger.warning(
            "%s holds DICOM images that do not say the size of their pixels, first %s: it stays unknown, and distances "
            "are measured in pixels.",
            file.parent,
            file.name,
        )
    return image


def lacks_pixel_size(image: MetaTensor) -> bool:
    """Tell whether an image of :func:`read_image` is from a DICOM file that does not say the size of its pixels."""
    return bool(image.meta.get("unit") == "px")


def _tell_of_turned(folder: Path, name: str) -> None:
    """Log, once per folder, that it holds pictures that are turned."""
    if folder not in _told:
        _told.add(folder)
        _logger.warning(
            "%s holds images that viewers turn, as their EXIF entry says, first %s: they are read and written upright, "
            "and masks count as drawn on the upright image.",
            folder,
            name,
        )


def _check_single_series(folder: Path) -> None:
    """Refuse several DICOM series in a folder, of which ITK would take one, and broken files, which ITK would skip."""
    series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) > 1:
        raise DataError(f"{folder} holds {len(series)} DICOM series: keep one series in a folder.")
    read = {Path(name).name for name in SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), *series)}
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and image_format(path) == "dicom"]
    broken = [path for path in files if path.name not in read]
    if broken:
        raise DataError(f"Cannot read {broken[0]} as dicom: the file is damaged, so copy or export it again.")


def _load(file: Path, kind: str, convert: Callable[[Image.Image], Image.Image] = _to_gray_or_rgb) -> MetaTensor:
    """Read a file with MONAI's reader for its kind: (C, *S) float32.

    ``LoadImage`` is not used: where the right reader refuses a truncated file, it tries other readers, which may accept
    the file.
    """
    if file.is_dir():
        _check_single_series(file)
    reader: Any = ITKReader()
    if kind == "picture":
        reader = PILReader(converter=partial(_opened, file=file, convert=convert))
    elif kind == "nifti":
        reader = NibabelReader()
    values, meta = reader.get_data(reader.read(file))
    tensor = MetaTensor.ensure_torch_and_prune_meta(values.astype(np.float32), meta)
    image = EnsureChannelFirst()(tensor)
    if kind == "dicom" and image.ndim == 4 and image.shape[-1] == 1:
        image = image[..., 0]
        if file.is_file():
            image = _with_pixel_size(image, meta, file)
    return image


def _reason(error: Exception) -> str:
    """Give the first informative line of an error, cut to fit a sentence; lines that name ITK's source are skipped."""
    lines = [line for line in str(error).strip().splitlines() if not _ITK_SOURCE_LINE.search(line)]
    reason = _ITK_PREFIX.sub("", lines[0]) if lines else type(error).__name__
    return reason.strip(". ")[:200]


def read_image(path: str | os.PathLike[str], *, on_white: bool = False) -> MetaTensor:
    """Read an image file, or a folder with one DICOM series.

    Pictures with a palette, with transparency or in CMYK become RGB, and pictures that an EXIF entry turns become
    upright.  A DICOM file with one slice becomes 2D; a negative (MONOCHROME1) is inverted.  Arrays are indexed
    (C, x, y[, z]), as by all MONAI readers; ``.affine`` maps indices to RAS millimeters.  Where a DICOM file does not
    say the size of its pixels, one sentence tells it, and the metadata have the entry ``unit``, "px".  Networks may get
    2D images in another order, see :class:`~monai_wsss.transforms.LoadOrderedd`.

    Args:
        path: PNG, JPEG, TIFF, BMP, NIfTI, MetaImage or DICOM.
        on_white: whether transparent pixels of a picture become white, as is right for stained tissue.  Otherwise they
            keep the color that the file holds there.

    Returns:
        (C, *S), float32.

    Raises:
        DataError: the file is missing, of another kind, truncated or broken, or it has no values, NaN, infinite values
            or only one value.

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
    kind = image_format(file)
    if kind is None:
        raise DataError(f"{file} is no image that can be read: give PNG, JPEG, TIFF, NIfTI, MetaImage or DICOM.")
    try:
        image = _load(file, kind, _to_opaque if on_white else _to_gray_or_rgb)
    except DataError:
        raise
    except Exception as error:  # every reader has its own exceptions, down to bare RuntimeError and EOFError
        raise DataError(
            f"Cannot read {file} as {kind} ({_reason(error)}): the file is damaged or of another kind, "
            "so copy or export it again."
        ) from error
    _check_values(image, file, color=kind == "picture")
    return image


def _check_values(image: torch.Tensor, file: Path, color: bool) -> None:
    """Refuse values that would spoil training; single channels of a color picture may be constant."""
    remedy = "export it again or leave the case out"
    if image.numel() == 0:
        raise DataError(f"{file} is empty, it has no pixels: {remedy}.")
    if not bool(torch.isfinite(image).all()):
        raise DataError(f"{file} holds NaN or infinite values: {remedy}.")
    for channel in image[None] if color else image:
        if bool((channel == channel.flatten()[0]).all()):
            raise DataError(f"{file} is constant (every value is {channel.flatten()[0].item():g}): {remedy}.")


def read_labels(path: str | os.PathLike[str], *, palette_as_gray: bool = False) -> MetaTensor:
    """Read a mask: whole numbers from 0 on, one channel.

    A picture with a palette gives its palette indices; one that an EXIF entry turns is read upright.  Unlike an image,
    a mask may be constant (nothing is drawn).

    Args:
        path: the mask.
        palette_as_gray: whether a picture with a palette gives the brightness of its colors in place of its indices,
            which may begin with the white of the lesion.

    Returns:
        (1, *S), int64.

    Raises:
        DataError: the file cannot be read, has several channels, or holds values other than whole numbers from 0 on.

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
        raise DataError(f"The mask {file} does not exist or is no image: give PNG, TIFF, NIfTI, MetaImage or DICOM.")
    try:
        if kind == "picture":
            with Image.open(file) as opened:
                picture = upright(opened)
                colored = ("1", "RGB", "RGBA", "LA", *(("P", "PA") if palette_as_gray else ()))
                values = np.asarray(picture.convert("L") if picture.mode in colored else picture)
            mask = MetaTensor(torch.from_numpy(values.T.astype(np.float64))[None])
        else:
            mask = _load(file, kind)
    except Exception as error:
        raise DataError(f"Cannot read the mask {file} ({_reason(error)}): copy or export it again.") from error
    if mask.shape[0] != 1:
        raise DataError(f"The mask {file} has {mask.shape[0]} channels: give one channel with 0 for background.")
    if not bool(((mask >= 0) & (mask == mask.round())).all()):
        raise DataError(f"The mask {file} holds values other than whole numbers from 0 on: export it as labels.")
    return mask.long()


def is_radiograph(path: str | os.PathLike[str]) -> bool:
    """Tell whether a DICOM file is an X-ray, which is a picture by nature, unlike a slice of a volume."""
    if Path(path).is_dir() or image_format(path) != "dicom":
        return False
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader.HasMetaDataKey(_MODALITY) and reader.GetMetaData(_MODALITY).strip() in _RADIOGRAPHS


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
    check_alike({f"the image of {path.name}": grid, str(path): mask})

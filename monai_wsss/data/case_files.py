# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One case on its way into a prepared folder: its files are read, checked against each other, and copied or converted.

Gray and RGB pictures (PNG, JPEG) and NIfTI files are copied.  Everything else is converted: to PNG where that loses
nothing, else to NIfTI.  DICOM images with pixels of unknown size become PNG, too, unless it would change their values.
Pictures that an EXIF entry turns are written upright.  Text that may name the subject is left out: DICOM and MetaImage
headers, and text, comments and EXIF in pictures.  NIfTI files with text in their headers are written anew in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss._image_formats import image_format, image_stem
from monai_wsss._nifti import unit_code
from monai_wsss._pictures import MILLIMETERS, PIXELS, is_turned
from monai_wsss.data.label_table import WHOLE, LabeledRow
from monai_wsss.data.modalities import COLORS, canonical_modality, sort_modalities
from monai_wsss.data.reading import (
    affine_of,
    check_alike,
    check_mask_fits,
    read_image,
    read_labels,
    tell_if_inverted,
)
from monai_wsss.data.writing import (
    copy_file,
    fits_picture,
    is_bare_nifti,
    write_nifti,
    write_picture,
)

__all__ = [
    "UNNAMED",
    "ImageCase",
    "image_name",
    "labels_to_classes",
    "mask_shows",
    "name_channels",
    "read_case",
    "read_mask",
    "write_case",
    "write_slice",
]

UNNAMED = ""
"""The modality of a file that is named by the id of its case alone."""

_COPIED_MODES = ("L", "RGB", "I;16")
_JPEG_SUFFIXES = (".jpg", ".jpeg")


@dataclass(frozen=True)
class ImageCase:
    """The images of a case in memory.

    Attributes:
        names: names of the channels, (C).
        images: one (1, *S) per channel, or a single (3, x, y) for a color image.
        sources: per image, the file that may be copied in its place; None where it must be written.
        is_picture: whether all files are pictures (PNG, JPEG, TIFF, BMP).
    """

    names: list[str]
    images: list[MetaTensor]
    sources: list[Path | None]
    is_picture: bool

    @property
    def is_color(self) -> bool:
        """Tell whether the case is one color image."""
        return self.names == list(COLORS)

    @property
    def unit(self) -> str:
        """Give the unit of lengths: "mm", or "px" where a file does not say the size of its pixels."""
        units = {str(image.meta.get("unit", MILLIMETERS)) for image in self.images}
        return MILLIMETERS if units == {MILLIMETERS} else PIXELS

    @property
    def volume(self) -> np.ndarray:
        """Give all channels in one array (C, *S)."""
        return torch.cat([image.as_tensor() for image in self.images]).numpy()


def _copyable(path: Path) -> Path | None:
    """Give the path, if the file may be copied, else None."""
    if image_format(path) == "picture":
        with Image.open(path) as picture:
            as_shown = picture.mode in _COPIED_MODES and not is_turned(picture)
            return path if picture.format in ("PNG", "JPEG") and as_shown else None
    return path if image_format(path) == "nifti" and is_bare_nifti(path) else None


def read_case(
    files: Mapping[str, Path], *, channel_names: Sequence[str] | None, color: bool, **reading: bool
) -> ImageCase:
    """Read all files of a case and check that they lie on one grid.

    Args:
        files: modality -> file, in the wanted order; a single file may have the modality :data:`UNNAMED`.
        channel_names: names of the channels of an unnamed file; None calls them "image" or "channel 0", ….
        color: whether an unnamed gray image becomes a color image, because other cases have colors.
        reading: ``on_white`` and ``leave_out_localizers``, see :func:`~monai_wsss.data.reading.read_image`.

    Returns:
        The case, with its channels in the order T1, T1c, T2, FLAIR, others.

    Raises:
        DataError: a file cannot be read, the files differ in shape or affine, or the channels do not fit their names.
    """
    images = {name: read_image(path, **reading) for name, path in files.items()}
    check_alike({str(files[name]): image for name, image in images.items()})
    is_picture = all(image_format(path) == "picture" for path in files.values())
    if list(images) == [UNNAMED]:
        return _split_channels(images[UNNAMED], files[UNNAMED], channel_names, color, is_picture)
    for name, image in images.items():
        if image.shape[0] != 1:
            raise DataError(f"{files[name]} has {image.shape[0]} channels: save each modality as one gray image.")
    return ImageCase(list(images), list(images.values()), [_copyable(path) for path in files.values()], is_picture)


def name_channels(channels: int, wanted: Sequence[str] | None, where: str) -> list[str]:
    """Name the channels of one file: as wanted, else "image" for one and "channel 0", … for several.

    Raises:
        DataError: the number of names is not the number of channels.

    Example:
        >>> name_channels(1, None, "a.png"), name_channels(2, ["t1ce", "flair"], "b.nii.gz")
        (['image'], ['T1c', 'FLAIR'])
    """
    if wanted is None:
        return ["image"] if channels == 1 else [f"channel {index}" for index in range(channels)]
    if len(wanted) != channels:
        raise DataError(
            f"{where} has {channels} channel{'s' * (channels > 1)}, but {len(wanted)} modalities are named "
            f"({', '.join(wanted)}): name one for each channel, in the order of the file."
        )
    return [canonical_modality(name) for name in wanted]


def _split_channels(
    image: MetaTensor, path: Path, channel_names: Sequence[str] | None, color: bool, is_picture: bool
) -> ImageCase:
    """Make the case of a single file: a color image stays whole, any other channel becomes an image."""
    channels = image.shape[0]
    if channel_names is None and image.ndim == 3 and (color or channels == 3):
        source = _copyable(path) if channels == 3 else None
        return ImageCase(list(COLORS), [image.expand(3, *image.shape[1:])], [source], is_picture)
    names = name_channels(channels, channel_names, str(path))
    order = [names.index(name) for name in sort_modalities(names)]
    sources = [_copyable(path) if channels == 1 else None] * channels
    return ImageCase([names[i] for i in order], [image[i : i + 1] for i in order], sources, is_picture)


def image_name(row: LabeledRow, channel: str, channels: int) -> str:
    """Give the path of a channel's image in a prepared folder, without suffix; one of several channels adds its name.

    Characters other than letters, digits and ``_.-~+`` are escaped, not left out, so that two names never become one.

    Example:
        >>> row = LabeledRow("row 2", "scan1", "anna", [1], None, {})
        >>> image_name(row, "channel 0", 2), image_name(row, "FLAIR", 1)
        ('images/anna/scan1_channel%200', 'images/anna/scan1')
    """
    return f"images/{row.subject}/{row.id}" + ("_" + quote(channel, safe="+") if channels > 1 else "")


def labels_to_classes(values: np.ndarray, classes: Sequence[str], where: str) -> np.ndarray:
    """Convert mask values to 0..K.

    With one class every value above 0 becomes 1; with several classes the values must be 0..K already.  A single class
    with a name other than :data:`~monai_wsss.data.label_table.WHOLE` may be one of several in the mask, so its values
    above 0 must all be the same.

    Args:
        values: whole numbers, any shape.
        classes: names of the classes, (K).
        where: name of the mask, for the message.

    Returns:
        uint8, of the same shape.

    Raises:
        DataError: a value is above K > 1, there are several values where one class is named, or several and no 0.

    Example:
        >>> labels_to_classes(np.array([0, 255]), ["tumor"], "mask.png").tolist()
        [0, 1]
    """
    num_classes = len(classes)
    if num_classes == 1:
        found = np.unique(values[values > 0]).tolist()
        if len(found) > 1 and classes[0] != WHOLE:
            raise DataError(
                f'{where} holds the values {", ".join(map(str, found[:5]))}, but "{classes[0]}" is the only class: '
                "name the label columns of all classes, in the order of the values, call the column `label` to count "
                "every value above 0, or save gray edges as 0 and 255."
            )
        if len(found) > 1 and not (values == 0).any():
            raise DataError(
                f"{where} holds the values {', '.join(map(str, found[:5]))} and no 0, so it is not clear what its "
                "foreground is: write 0 for background."
            )
        return (values > 0).astype(np.uint8)
    if values.max(initial=0) > num_classes:
        raise DataError(
            f"{where} holds the value {values.max()}, but there are {num_classes} classes: "
            f"use 0 for background and 1 to {num_classes} for the classes, in the order of their columns."
        )
    return values.astype(np.uint8)


def _cut_jpeg(values: np.ndarray, num_classes: int, where: str) -> np.ndarray:
    """Restore a mask of two levels that JPEG has blurred: 1 above half of the maximum, 0 below."""
    top = values.max(initial=0)
    high, middle = values > 0.75 * top, (values > 0.25 * top) & (values <= 0.75 * top)
    if num_classes > 1 or np.count_nonzero(middle) > np.count_nonzero(high):
        raise DataError(f"{where} is a JPEG with more than two levels, which JPEG blurs: export the mask as PNG.")
    return np.asarray(values > 0.5 * top, dtype=np.int64)


def read_mask(path: Path, like: MetaTensor, classes: Sequence[str]) -> np.ndarray:
    """Read a mask as (1, *S) uint8 with values 0..K, on the grid of the image.

    Args:
        path: the mask.
        like: the image, (C, *S).
        classes: names of the classes, (K); see :func:`labels_to_classes`.

    Raises:
        DataError: the mask cannot be read, differs from the image in size, or holds other values.
    """
    mask = read_labels(path)
    check_mask_fits(mask, path, like)
    values = mask.as_tensor().numpy()
    if path.name.lower().endswith(_JPEG_SUFFIXES):
        values = _cut_jpeg(values, len(classes), str(path))
    shown = labels_to_classes(values, classes, str(path))
    if len(classes) == 1:
        tell_if_inverted(shown, path)
    return shown


def write_case(
    out: Path, row: LabeledRow, case: ImageCase, mask: Path | None, classes: Sequence[str]
) -> tuple[dict[str, Any], bool]:
    """Write the images and the mask of a case to ``out/images`` and ``out/masks``.

    All files get the affine of the first image, since MONAI refuses files whose affines differ by more than rounding.
    An image with another affine, or another unit in its NIfTI header, is written anew.  Images of unknown size become
    pictures where that loses nothing; where it would, the item says that its unit is pixels.

    Args:
        out: the prepared folder.
        row: the row of the case in the table.
        case: the images.
        mask: the mask, or None.
        classes: names of the classes, (K).

    Returns:
        ``image``, optionally ``mask``, relative to ``out``, and ``unit``, and whether the mask agrees with the label.

    Raises:
        DataError: the mask cannot be read or does not fit the image, or the folder cannot be written.
    """
    arrays = [image.as_tensor().numpy() for image in case.images]
    plain = case.is_picture or case.is_color or case.unit == PIXELS
    as_picture = plain and all(fits_picture(values) for values in arrays)
    if case.is_color and not as_picture:
        raise DataError(f"{row.where}: the color image of {row.id} has no whole values up to 255: save it as RGB PNG.")
    first = case.images[0]
    affine, code = affine_of(first), unit_code(first.meta)
    paths = []
    for name, image, values, source in zip(case.names, case.images, arrays, case.sources, strict=False):
        stem = image_name(row, name, len(arrays))
        in_place = (image_format(source) == "picture") == as_picture if source else False
        same_place = np.array_equal(affine_of(image), affine) and unit_code(image.meta) == code
        if source is not None and in_place and same_place:
            paths.append(stem + source.name[len(image_stem(source)) :].lower())
            copy_file(source, out / paths[-1])
        else:
            paths.append(stem + (".png" if as_picture else ".nii.gz"))
            _write(out / paths[-1], values, first)
    item: dict[str, Any] = {"image": paths if len(paths) > 1 else paths[0]}
    if case.unit == PIXELS and not as_picture:
        item["unit"] = PIXELS
    if mask is None:
        return item, True
    shown = read_mask(mask, first, classes)
    item["mask"] = f"masks/{row.subject}/{row.id}" + (".png" if as_picture else ".nii.gz")
    _write(out / item["mask"], shown, first)
    return item, mask_shows(shown, row.label)


def write_slice(
    out: Path, row: LabeledRow, channels: Sequence[str], pixels: np.ndarray, shown: np.ndarray | None
) -> tuple[dict[str, Any], bool]:
    """Write a slice as PNG files, one per channel, and its mask.

    Args:
        out: the prepared folder.
        row: the row of the slice in the table.
        channels: names of the channels, (C).
        pixels: (C, x, y), uint8 or uint16.
        shown: the mask (1, x, y) with values 0..K, or None.

    Returns:
        ``image`` and optionally ``mask``, relative to ``out``, and whether the mask agrees with the label.
    """
    paths = []
    for name, channel in zip(channels, pixels, strict=True):
        paths.append(image_name(row, name, len(channels)) + ".png")
        write_picture(out / paths[-1], channel[None])
    item: dict[str, Any] = {"image": paths if len(paths) > 1 else paths[0]}
    if shown is None:
        return item, True
    item["mask"] = f"masks/{row.subject}/{row.id}.png"
    write_picture(out / item["mask"], shown)
    return item, mask_shows(shown, row.label)


def _write(path: Path, values: np.ndarray, like: MetaTensor) -> None:
    """Write (C, *S) as PNG or as NIfTI in the place of an image; the suffix decides."""
    if path.suffix == ".png":
        write_picture(path, values)
    else:
        write_nifti(path, values[0], affine_of(like), like.meta)


def mask_shows(classes: np.ndarray, label: Sequence[int]) -> bool:
    """Tell whether exactly the classes of the label occur in a mask with values 0..K.

    Example:
        >>> mask_shows(np.array([0, 2]), [0, 1]), mask_shows(np.array([0, 2]), [1, 0])
        (True, False)
    """
    return [int((classes == number).any()) for number in range(1, len(label) + 1)] == list(label)

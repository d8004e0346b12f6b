# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""One case on its way into a prepared folder: its files are read, checked against each other, and copied or converted.

Gray and RGB pictures (PNG, JPEG) and NIfTI files are copied as they are.  Everything else is converted: to PNG where
that loses nothing, else to NIfTI; so DICOM and MetaImage headers, which may name the patient, stay behind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_wsss._checks import DataError
from monai_wsss.data.datalist import canonical_modality, sort_modalities
from monai_wsss.data.label_table import LabeledRow
from monai_wsss.data.reading import affine_of, check_alike, image_format, read_image, read_labels
from monai_wsss.data.writing import copy_file, fits_picture, write_nifti, write_picture

__all__ = [
    "UNNAMED",
    "ImageCase",
    "image_name",
    "is_color_picture",
    "labels_to_classes",
    "mask_shows",
    "name_channels",
    "read_case",
    "write_case",
]

UNNAMED = ""
"""The modality of a file that is named by its case's id alone."""

_RGB = ["red", "green", "blue"]
_COPIED_MODES = ("L", "RGB", "I;16")
_GRAY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class ImageCase:
    """The images of a case in memory.

    Attributes:
        names: names of the channels, (C).
        images: one (1, *S) for each channel, or a single (3, x, y) for a color picture.
        sources: for each image, the file that may be copied in its place; None where it must be written.
        is_picture: whether all files are pictures (PNG, JPEG, TIFF, …).
    """

    names: list[str]
    images: list[MetaTensor]
    sources: list[Path | None]
    is_picture: bool

    @property
    def is_color(self) -> bool:
        """Whether the case is one color picture."""
        return self.names == _RGB

    @property
    def volume(self) -> np.ndarray:
        """All channels as one array (C, *S)."""
        return torch.cat([image.as_tensor() for image in self.images]).numpy()


def is_color_picture(path: Path) -> bool:
    """Whether a file is a picture with colors; a broken file is none, reading it will say why."""
    if image_format(path) != "picture":
        return False
    try:
        with Image.open(path) as picture:
            return picture.mode not in _GRAY_MODES
    except OSError:
        return False


def _copyable(path: Path) -> Path | None:
    """The path, if the file may be copied as it is."""
    if image_format(path) == "picture":
        with Image.open(path) as picture:
            return path if picture.format in ("PNG", "JPEG") and picture.mode in _COPIED_MODES else None
    return path if image_format(path) == "nifti" else None


def read_case(files: Mapping[str, Path], *, channel_names: Sequence[str] | None, color: bool) -> ImageCase:
    """Read all files of a case and check that they lie on one grid.

    Args:
        files: modality -> file, in the order wanted; a single file may have the modality :data:`UNNAMED`.
        channel_names: names for the channels of an unnamed file; None calls them "image" or "channel 0", ….
        color: whether an unnamed gray picture is to become a color one, because other cases have colors.

    Returns:
        The case, with its channels in the order T1, T1c, T2, FLAIR.

    Raises:
        DataError: a file cannot be read, the files differ in shape or affine, or the channels are not as named.
    """
    images = {name: read_image(path) for name, path in files.items()}
    check_alike({str(files[name]): image for name, image in images.items()})
    is_picture = all(image_format(path) == "picture" for path in files.values())
    if list(images) == [UNNAMED]:
        return _split_channels(images[UNNAMED], files[UNNAMED], channel_names, color, is_picture)
    for name, image in images.items():
        if image.shape[0] != 1:
            raise DataError(f"{files[name]} has {image.shape[0]} channels: save each modality as one gray image.")
    return ImageCase(list(images), list(images.values()), [_copyable(path) for path in files.values()], is_picture)


def name_channels(channels: int, wanted: Sequence[str] | None, where: str) -> list[str]:
    """Names for the channels of one file: those wanted, else "image" for one and "channel 0", … for several.

    Raises:
        DataError: another number of names is wanted than there are channels.

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
    """The case of a single file: color pictures stay whole, other channels become an image each."""
    channels = image.shape[0]
    if channel_names is None and image.ndim == 3 and (color or channels == 3):
        source = _copyable(path) if channels == 3 else None
        return ImageCase(_RGB, [image.expand(3, *image.shape[1:])], [source], is_picture)
    names = name_channels(channels, channel_names, str(path))
    order = [names.index(name) for name in sort_modalities(names)]
    sources = [_copyable(path) if channels == 1 else None] * channels
    return ImageCase([names[i] for i in order], [image[i : i + 1] for i in order], sources, is_picture)


def image_name(row: LabeledRow, channel: str, channels: int) -> str:
    """Where the image of a channel goes in a prepared folder, without its suffix; one of several bears its name.

    Example:
        >>> row = LabeledRow("row 2", "scan1", "anna", [1], None, {})
        >>> image_name(row, "channel 0", 2), image_name(row, "FLAIR", 1)
        ('images/anna/scan1_channel0', 'images/anna/scan1')
    """
    return f"images/{row.subject}/{row.id}" + ("_" + re.sub(r"\W+", "", channel) if channels > 1 else "")


def labels_to_classes(values: np.ndarray, num_classes: int, where: str) -> np.ndarray:
    """Mask values as 0..K: with one class everything above 0 is 1, with more the values must be 0..K already.

    Args:
        values: whole numbers, any shape.
        num_classes: K.
        where: the mask's name, for the message.

    Returns:
        The same shape, uint8.

    Raises:
        DataError: a value above K > 1.

    Example:
        >>> labels_to_classes(np.array([0, 255]), 1, "mask.png").tolist()
        [0, 1]
    """
    if num_classes == 1:
        return (values > 0).astype(np.uint8)
    if values.max(initial=0) > num_classes:
        raise DataError(
            f"{where} holds the value {values.max()}, but there are {num_classes} classes: "
            f"use 0 for background and 1 to {num_classes} for the classes, in the order of their columns."
        )
    return values.astype(np.uint8)


def _read_mask(path: Path, like: MetaTensor, num_classes: int) -> np.ndarray:
    """A mask as (1, *S) with values 0..K, on the grid of the image."""
    mask = read_labels(path)
    grid = like[:1]
    if image_format(path) == "picture":
        mask.affine = grid.affine  # a picture knows no geometry, so its size alone can be compared
    check_alike({f"the image of {path.name}": grid, str(path): mask})
    return labels_to_classes(mask.as_tensor().numpy(), num_classes, str(path))


def write_case(
    out: Path, row: LabeledRow, case: ImageCase, mask: Path | None, num_classes: int
) -> tuple[dict[str, Any], bool]:
    """Write the images and the mask of a case to ``out/images`` and ``out/masks``.

    Args:
        out: the prepared folder.
        row: the case's row in the table.
        case: its images.
        mask: its mask, or None.
        num_classes: K.

    Returns:
        ``image`` and perhaps ``mask``, relative to ``out``; and whether the mask shows what the label says.

    Raises:
        DataError: the mask cannot be read or does not fit the image, or the folder cannot be written.
    """
    arrays = [image.as_tensor().numpy() for image in case.images]
    as_picture = (case.is_picture or case.is_color) and all(fits_picture(values) for values in arrays)
    if case.is_color and not as_picture:
        raise DataError(f"{row.where}: the color image of {row.id} has no whole values up to 255: save it as RGB PNG.")
    affine = affine_of(case.images[0])
    paths = []
    for name, values, source in zip(case.names, arrays, case.sources, strict=False):
        stem = image_name(row, name, len(arrays))
        if source is not None and (image_format(source) == "picture") == as_picture:
            paths.append(stem + "".join(re.findall(r"(?:\.nii)?\.[A-Za-z]+$", source.name)).lower())
            copy_file(source, out / paths[-1])
        else:
            paths.append(stem + (".png" if as_picture else ".nii.gz"))
            _write(out / paths[-1], values, affine)
    item: dict[str, Any] = {"image": paths if len(paths) > 1 else paths[0]}
    if mask is None:
        return item, True
    classes = _read_mask(mask, case.images[0], num_classes)
    item["mask"] = f"masks/{row.subject}/{row.id}" + (".png" if as_picture else ".nii.gz")
    _write(out / item["mask"], classes, affine)
    return item, mask_shows(classes, row.label)


def _write(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write (C, *S) as the suffix says."""
    if path.suffix == ".png":
        write_picture(path, values)
    else:
        write_nifti(path, values[0], affine)


def mask_shows(classes: np.ndarray, label: Sequence[int]) -> bool:
    """Whether exactly the classes of the label occur in a mask with values 0..K.

    Example:
        >>> mask_shows(np.array([0, 2]), [0, 1]), mask_shows(np.array([0, 2]), [1, 0])
        (True, False)
    """
    return [int((classes == number).any()) for number in range(1, len(label) + 1)] == list(label)

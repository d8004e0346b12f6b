# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Image files to tensors: pictures upright, 2D images with their axes in the order that the datalist names."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor, PILReader
from monai.transforms import LoadImage, MapTransform
from monai.utils import MetaKeys, ensure_tuple
from PIL import Image

from monai_wsss._checks import DataError, check_choice
from monai_wsss._image_readers import DicomReader, MetaImageReader
from monai_wsss._nifti import MillimeterNiftiReader
from monai_wsss._picture_values import as_shown, begins_with_black, check_values_kept, refuse_unread_picture
from monai_wsss._pictures import ORDERS, PICTURE_SUFFIXES, PIXELS, XY, in_order, unit_of

__all__ = ["LoadImageOrderedd"]

_decoder_log = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")


class LoadImageOrderedd(MapTransform):
    """Read image files as MONAI's ``LoadImaged`` does, channel first, and bring 2D images to one order of their axes.

    In the order ``"rows_columns"`` a 2D image is (C, rows, columns), so that its last axis runs from left to right.
    In the order ``"xy"`` it is (C, x, y), as MONAI's readers give it.  Volumes are (C, x, y, z) in both.  Pictures are
    turned as their EXIF entry says, masks among them, so that their pixels lie as viewers show them, TIFFs that
    store white as 0 are inverted, and CMYK becomes RGB.  A palette that begins with black or a transparent entry, as
    that of a mask, is read as its numbers.  DICOM is read as :func:`~monai_wsss.data.read_image` reads it, and affines
    are in millimeters whatever the unit of a NIfTI file is.
    The metadata ``unit`` is "px" where the size of the pixels is unknown: of pictures, of files that do not say it, and
    where the item has an entry ``unit`` that says so.

    Args:
        keys: paths of files; a list of paths per key becomes channels.  A MetaTensor (C, x, y) or (C, x, y, z) counts
            as read already, by :func:`~monai_wsss.data.read_image` or a reader of MONAI.
        order: the order; None takes the entry ``order`` of the item, which
            :func:`~monai_wsss.data.load_datalist` copies from the datalist.  Items without this entry are read in the
            order "xy".  Give the order of its training to a network that was trained in another order than the
            datalist names.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: an unknown order.
        DataError: when called, a picture of which a part alone would be read: colors or transparency of more than 8
            bits, several pages, unnamed channels, a palette that begins with another color.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> file = tempfile.mkdtemp() + "/a.png"
        >>> Image.new("RGB", (3, 2)).save(file)  # three columns, two rows
        >>> LoadImageOrderedd("image")({"image": file, "order": "rows_columns"})["image"].shape
        torch.Size([3, 2, 3])
        >>> LoadImageOrderedd("image", order="xy")({"image": file, "order": "rows_columns"})["image"].shape
        torch.Size([3, 3, 2])
    """

    def __init__(self, keys: KeysCollection, order: str | None = None, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if order is not None:
            check_choice("order", order, ORDERS)
        self.order = order
        with warnings.catch_warnings():  # MONAI warns of a decoder for GPUs that it does not find beside pydicom
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            _decoder_log.disabled, before = True, _decoder_log.disabled
            self._load = LoadImage(ensure_channel_first=True)
            _decoder_log.disabled = before
        for reader in (MetaImageReader(), DicomReader(), MillimeterNiftiReader(), _UprightReader(converter=_as_shown)):
            self._load.register(reader)  # the last one registered is asked first

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        order = self.order or item.get("order") or XY
        check_choice("order", order, ORDERS)
        for key in self.key_iterator(item):
            image = item[key]
            if not isinstance(image, MetaTensor):  # one that was read already is only brought to the order
                try:
                    for path in ensure_tuple(image):
                        _check_whole(path)
                    image = self._load(image)
                except FileNotFoundError as error:
                    raise DataError(
                        f"{image} is no image file or folder of DICOM files: give one for `{key}`."
                    ) from error
            if isinstance(image, MetaTensor):
                image.meta["unit"] = PIXELS if item.get("unit") == PIXELS else unit_of(image)
                image.meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = 0  # for MONAI's EnsureChannelFirstd behind this one
            item[key] = in_order(image, order)
        return item


class _UprightReader(PILReader):
    """Pillow's reader, also of TIFFs, which MONAI leaves to ITK: it would not turn them as their EXIF entry says."""

    def verify_suffix(self, filename: Any) -> bool:
        return super().verify_suffix(filename) or all(map(_is_tiff, ensure_tuple(filename)))


def _as_shown(picture: Image.Image) -> Image.Image:
    """Give a picture upright, with black as 0, and colors as red, green and blue."""
    shown = as_shown(picture)
    return shown.convert("RGB") if shown.mode in ("CMYK", "YCbCr", "HSV") else shown


def _check_whole(path: Any) -> None:
    """Refuse a picture of which Pillow would read a part: MONAI passes errors of a reader over and tries others."""
    if not Path(path).exists() or (Path(path).is_dir() and not any(Path(path).iterdir())):
        raise FileNotFoundError(path)
    if not str(path).lower().endswith(PICTURE_SUFFIXES):
        return
    try:
        with Image.open(path) as picture:
            check_values_kept(picture, Path(path))
            unclear = picture.mode == "P" and not begins_with_black(picture) and picture.info.get("transparency") != 0
    except DataError:
        raise
    except Exception as error:  # whoever reads it next says so
        if Path(path).is_file():
            refuse_unread_picture(error, Path(path))
        return
    if unclear:
        raise DataError(
            f"{path} has a palette that does not begin with black, so its numbers are no brightness: save an image as "
            "RGB or gray, a mask as gray with 0 for background."
        )


def _is_tiff(path: Any) -> bool:
    return str(path).lower().endswith((".tif", ".tiff"))

# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Pictures (PNG, JPEG, TIFF, BMP) as viewers show them, and the two orders in which the axes of 2D images may stand.

    "rows_columns"    (C, rows, columns)    photographs, tiles and X-rays; the last axis runs from left to right
    "xy"              (C, x, y)             slices cut from volumes, whose x runs along the columns of their picture

Volumes are indexed (C, x, y, z) in either case.  A datalist says the order of its images; the metadata of an image says
the order in which it was read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from PIL import Image

__all__ = [
    "MILLIMETERS",
    "ORDERS",
    "PICTURE_SUFFIXES",
    "PIXELS",
    "ROWS_COLUMNS",
    "XY",
    "as_stored",
    "has_geometry",
    "in_order",
    "is_sheared",
    "is_turned",
    "order_of",
    "pixel_area",
    "unit_of",
    "upright",
    "voxel_volume",
]

ROWS_COLUMNS = "rows_columns"
XY = "xy"
ORDERS = (ROWS_COLUMNS, XY)

MILLIMETERS, PIXELS = "mm", "px"
"""Units of length of an image; pixels are of unknown size."""

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

_PERPENDICULAR = 1e-3
"""Up to which cosine two axes count as perpendicular."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turn_of(picture: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken entry, of which Pillow raises many kinds, is as good as none
        return None


def is_turned(picture: Image.Image) -> bool:
    """Tell whether the EXIF entry of a picture has viewers show it turned or mirrored."""
    return _turn_of(picture) is not None


def upright(picture: Image.Image) -> Image.Image:
    """Turn or mirror a picture as its EXIF entry says, so that its pixels lie as viewers show them.

    Example:
        >>> picture = Image.new("L", (3, 2))
        >>> picture.getexif()[0x0112] = 6  # show it a quarter turn clockwise
        >>> upright(picture).size
        (2, 3)
    """
    # Pillow itself turns a TIFF as it loads it, and takes its entry out.  Without a file name it does not map the file
    # into memory, which scrambles uncompressed gray TIFFs with a quarter turn (Pillow 13.0).
    name = getattr(picture, "filename", "")
    picture.filename = ""  # type: ignore[attr-defined]
    picture.load()
    picture.filename = name  # type: ignore[attr-defined]
    turn = _turn_of(picture)
    return picture if turn is None else picture.transpose(turn)


def has_geometry(image: Any) -> bool:
    """Tell whether MONAI read a position in space with an image; PNG, JPEG, TIFF and plain tensors have none."""
    name = str(image.meta.get("filename_or_obj", "")).lower() if isinstance(image, MetaTensor) else ""
    return bool(name) and not name.endswith(PICTURE_SUFFIXES)


def unit_of(image: Any) -> str:
    """Tell whether lengths in an image are in "mm", or in "px" because nobody knows the size of its pixels.

    The metadata ``unit`` say it.  Without them, a file with a place in space counts as measured.
    """
    return str(image.meta.get("unit", MILLIMETERS)) if has_geometry(image) else PIXELS


def is_sheared(image: MetaTensor) -> bool:
    """Tell whether axes of an image (C, *S) are not perpendicular, as those of a CT with a tilted gantry."""
    axes = np.asarray(torch.as_tensor(image.affine), dtype=np.float64)[:-1, : image.ndim - 1]
    axes = axes / np.linalg.norm(axes, axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(len(axes.T))).max() > _PERPENDICULAR)


def voxel_volume(image: Any) -> float | None:
    """Give the volume of a voxel of a volume (C, x, y, z) in cubic millimeters; None where nobody knows it."""
    if unit_of(image) == PIXELS or image.ndim != 4:
        return None
    return abs(float(np.linalg.det(np.asarray(torch.as_tensor(image.affine), dtype=np.float64)[:3, :3])))


def pixel_area(image: Any) -> float | None:
    """Give the area of a pixel of a 2D image (C, *S) in square millimeters; None where nobody knows it."""
    if unit_of(image) == PIXELS or image.ndim != 3:
        return None
    first, second = np.asarray(torch.as_tensor(image.affine), dtype=np.float64)[:-1, :2].T
    return float(np.sqrt(max((first @ first) * (second @ second) - (first @ second) ** 2, 0.0)))


def order_of(image: Any) -> str:
    """Give the order in which an image (C, *S) was read; "xy" for plain tensors and MONAI's own readers."""
    return str(image.meta.get("order", XY)) if isinstance(image, MetaTensor) else XY


def in_order(image: MetaTensor, order: str) -> MetaTensor:
    """Bring an image as MONAI's readers give it, (C, x, y) or (C, x, y, z), to an order; its metadata say which.

    Args:
        image: the image; a volume stays as it is.
        order: "rows_columns" or "xy".
    """
    if image.ndim != 3 or order == XY:
        return image
    placed = has_geometry(image)
    image = image.transpose(1, 2).contiguous()
    if placed:
        image.affine = _exchanged(torch.as_tensor(image.affine))
    image.meta["order"] = order
    return image


def as_stored(mask: torch.Tensor, image: Any) -> tuple[torch.Tensor, np.ndarray | None]:
    """Give a mask in the order of files, and its affine.

    Args:
        mask: (1, *S), on the grid of the image.
        image: the image (C, *S) as it was read.

    Returns:
        The mask, (1, x, y) or (1, x, y, z), and the affine (4, 4) of the image's file, or None where it has none.
    """
    exchanged = mask.ndim == 3 and order_of(image) == ROWS_COLUMNS
    mask = mask.transpose(1, 2) if exchanged else mask
    if not has_geometry(image):
        return mask, None
    affine = torch.as_tensor(image.affine)
    return mask, np.asarray(_exchanged(affine) if exchanged else affine, dtype=np.float64)


def _exchanged(affine: torch.Tensor) -> torch.Tensor:
    """Exchange the first two axes of the grid to which an affine belongs."""
    return affine[:, [1, 0, *range(2, affine.shape[1])]]

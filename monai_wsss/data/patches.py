# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Patches of large images: their places, their tags, and which of them are bare glass.

In a data set without background every pixel of a mask is 1..K, the number of the class plus 1; 0 is not annotated.  A
patch is tagged with a class if *more* than a share of its pixels belongs to it (5 % in OEEM, whose rule Feng et al.,
AAAI 2025, follow).  Such tags come from masks: they simulate the judgment of a pathologist, and the datalist says so.

=============  =====================================================================================================
origin (x, y)  column and row of the first pixel of a patch; arrays are indexed (C, x, y), as MONAI's readers give them
patch, stride  size of the square patches, and step from one to the next, in pixels
presence       the share of pixels above which a class counts as present
=============  =====================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["contradicting_pairs", "is_white_patch", "patch_origins", "presence_tags", "white_pixels", "window_starts"]

_OVERLAP_OF_DOUBT = 0.1
"""Overlaps up to this share of a patch prove nothing: two tags at 5 % each may leave out the class of the overlap."""


def window_starts(size: int, patch: int, stride: int, *, align: bool = True) -> list[int]:
    """Give the starts of the windows along one axis.

    With ``align`` the last window ends at the border, so that every pixel is covered
    (``monai.data.utils.dense_patch_slices`` gives the same starts).  Without ``align``, pixels behind the last whole
    window are left out.

    Args:
        size: length of the axis.
        patch: length of a window.
        stride: step from one window to the next.
        align: whether the last window is moved to the border.

    Returns:
        The starts, ascending, from 0 on.

    Raises:
        ValueError: a patch or stride is below 1, or the axis is shorter than a patch.

    Example:
        >>> window_starts(430, 112, 56), window_starts(1500, 224, 224, align=False)
        ([0, 56, 112, 168, 224, 280, 318], [0, 224, 448, 672, 896, 1120])
    """
    if patch < 1 or stride < 1:
        raise ValueError(f"Expected `patch` and `stride` of at least 1 pixel, got {patch} and {stride}.")
    if size < patch:
        raise ValueError(f"Expected an axis of at least `patch` = {patch} pixels, got {size}: choose smaller patches.")
    starts = list(range(0, size - patch + 1, stride))
    if align and starts[-1] != size - patch:
        starts.append(size - patch)
    return starts


def patch_origins(shape: Sequence[int], patch: int, stride: int, *, align: bool = True) -> list[tuple[int, int]]:
    """Give the origins (x, y) of the square patches of an image, row by row.

    Args:
        shape: spatial shape of the image, (x, y): columns, then rows.
        patch: size of a patch.
        stride: step from one patch to the next.
        align: see :func:`window_starts`.

    Returns:
        (x, y) of every patch; x runs fastest.

    Raises:
        ValueError: see :func:`window_starts`.

    Example:
        >>> patch_origins((5, 4), 3, 2)
        [(0, 0), (2, 0), (0, 1), (2, 1)]
    """
    columns, rows = (window_starts(size, patch, stride, align=align) for size in shape)
    return [(x, y) for y in rows for x in columns]


def presence_tags(mask: np.ndarray, num_classes: int, *, presence: float = 0.05) -> list[int]:
    """Tag the classes that cover more than a share of a mask.

    ``tag_k = [ #(mask = k) / #(mask > 0) > presence ]``, k = 1..K (OEEM, Li et al., MICCAI 2022: 5 %).

    Args:
        mask: values 1..K, any shape; pixels with 0 are not annotated and do not count.
        num_classes: K.
        presence: the share, from 0 (any pixel) to below 1/K, so that annotated pixels always give a tag.

    Returns:
        0 or 1 per class, (K); all zeros only for a mask without annotated pixels.

    Raises:
        ValueError: the presence is outside of [0, 1/K), or a mask value is above K.

    Example:
        >>> presence_tags(np.array([[1, 1, 2, 2], [2, 2, 2, 2]]), 2, presence=0.25)
        [0, 1]
    """
    if not 0 <= presence < 1 / num_classes:
        raise ValueError(
            f"Expected `presence` from 0 to below 1/{num_classes} (a share of the pixels), got {presence}."
        )
    counts = np.bincount(mask.ravel().astype(np.int64), minlength=num_classes + 1)
    if len(counts) > num_classes + 1:
        raise ValueError(f"Expected `mask` to hold values from 0 to {num_classes}, got {len(counts) - 1}.")
    return [int(count > presence * counts[1:].sum()) for count in counts[1:]]


def white_pixels(pixels: np.ndarray, *, max_saturation: float = 0.05, min_value: float = 0.9) -> np.ndarray:
    """Find the pixels of an RGB image that are bare glass: hardly any color, and bright.

    ``saturation = (max - min) / max`` and ``value = max / 255`` over the three channels, as in HSV.

    Args:
        pixels: (3, x, y), 0 to 255.
        max_saturation: white pixels are below this saturation.
        min_value: white pixels are above this value.

    Returns:
        (x, y) bool.

    Raises:
        ValueError: the image does not have three channels.

    Example:
        >>> white_pixels(np.array([[[240, 240, 200]], [[235, 200, 199]], [[238, 235, 200]]])).tolist()
        [[True, False, False]]
    """
    if pixels.shape[0] != 3:
        raise ValueError(f"Expected `pixels` of shape (3, x, y), got {pixels.shape}.")
    top = np.maximum(np.maximum(pixels[0], pixels[1]), pixels[2]).astype(np.float32)
    bottom = np.minimum(np.minimum(pixels[0], pixels[1]), pixels[2])
    white: np.ndarray = (top - bottom < max_saturation * top) & (top > min_value * 255)
    return white


def is_white_patch(pixels: np.ndarray, *, share: float = 0.8) -> bool:
    """Tell whether more than a share of an RGB patch is bare glass, by :func:`white_pixels`.

    The paper (Feng et al., AAAI 2025) leaves out patches of white background and gives no rule; share and thresholds
    are ours.

    Args:
        pixels: (3, x, y), 0 to 255.
        share: the share of white pixels above which a patch is white; with 1 no patch is.

    Example:
        >>> glass = np.full((3, 8, 8), 244, dtype=np.uint8)
        >>> glass[1, :, 0] = 120  # one column of pink
        >>> is_white_patch(glass), is_white_patch(glass, share=0.9)
        (True, False)
    """
    return bool(white_pixels(pixels).mean() > share)


def contradicting_pairs(
    origins: Sequence[tuple[int, int]], shapes: Sequence[tuple[int, int]], labels: Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    """Find pairs of overlapping patches of one image whose tags have no class in common.

    Where two patches share more than a tenth of the smaller one, the tags "gland alone" and "other tissue alone" cannot
    both be right.  Smaller overlaps are not reported, since tags leave out classes of up to 5 % of the pixels.

    Args:
        origins: (x, y) of every patch, (N).
        shapes: columns and rows of every patch, (N).
        labels: 0/1 tags, (N, K).

    Returns:
        Pairs of indices, the smaller first, in ascending order.

    Example:
        >>> contradicting_pairs([(0, 0), (4, 0), (8, 0)], [(8, 8)] * 3, [[1, 0], [0, 1], [0, 1]])
        [(0, 1)]
    """
    first = np.asarray(origins, dtype=np.int64).reshape(-1, 2)
    shape = np.asarray(shapes, dtype=np.int64).reshape(-1, 2)
    tags = np.asarray(labels, dtype=bool)
    area = shape.prod(axis=1)
    pairs = []
    for index in range(len(first) - 1):
        rest = slice(index + 1, None)
        last = np.minimum(first[index] + shape[index], first[rest] + shape[rest])
        shared = np.maximum(last - np.maximum(first[index], first[rest]), 0).prod(axis=1)
        doubtful = shared <= _OVERLAP_OF_DOUBT * np.minimum(area[index], area[rest])
        apart = ~(tags[index] & tags[rest]).any(axis=1)
        pairs += [(index, int(other)) for other in index + 1 + np.flatnonzero(apart & ~doubtful)]
    return pairs

# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Color images from 0 to ``white``: refused where they are none, and changed as plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_dst_type, convert_to_tensor

__all__ = ["SeenPictures", "change_picture", "check_color_picture"]

Mean = torch.Tensor | np.ndarray | Sequence[float] | None

_ROUNDING = 1e-4  # of white, by which a resampled image may exceed its range
_AS_BRIGHT = 0.25  # share of the mean of its whole image that a crop of it has at least, but for dark corners
_NEARLY_BLACK = 0.05  # largest value of an image from 0 to 1 in which nothing can be seen
_DOUBTS = 8  # so many doubtful images, with no brighter one among them, are refused
_NEVER_SCALED = 2.0  # resampling takes no image from 0 to 1 above this


class SeenPictures:
    """What a random change has seen of its images, which tells dark crops from images that were scaled to 1.

    A crop of a fluorescence image, or the black corner of a photograph, holds nothing but fractions of 1 once it was
    resampled or jittered.  Images that were scaled to 1 hold nothing else.  So where the datalist's mean is one of 0 to
    ``white``, seven images that seem to be scaled pass.  Further ones pass where another image was brighter.  The
    worker processes of a loader count together.

    Example:
        >>> seen, mean = SeenPictures(), [11.0, 12.0, 10.0]
        >>> [seen.allow(mean) for _ in range(8)].count(True)
        7
        >>> seen.remember(torch.full((3, 8, 8), 100.0))
        >>> seen.allow(mean)
        True
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(2, dtype=torch.int64).share_memory_()  # in doubt, brighter

    def remember(self, picture: torch.Tensor) -> None:
        """Remember an image (3, H, W) that did not seem to be scaled."""
        if bool(picture.max() > _NEVER_SCALED):
            self._counts[1] = 1

    def allow(self, mean: Mean) -> bool:
        """Tell whether an image that seems to be scaled to 1 may be a dark crop, by the mean of the datalist."""
        self._counts[0] += 1
        told = mean is not None and float(torch.as_tensor(mean).max()) > 1
        return told and (bool(self._counts[1]) or int(self._counts[0]) < _DOUBTS)


def check_color_picture(
    name: str, picture: torch.Tensor, white: float, mean: Mean = None, seen: SeenPictures | None = None
) -> None:
    """Check that this is a color image with values from 0 to ``white``.

    Fractions up to 1 where 255 is white are an image from 0 to 1, or a nearly black crop.  The mean that the datalist
    holds tells which: an image that was scaled to 1 meanwhile is about as bright as that mean, scaled likewise.
    Without it, only a crop that is nearly black by either reading passes.

    Args:
        name: the image's key, for the message.
        picture: the image.
        white: the value of white, 255 or 1.
        mean: the mean of the whole image or of its subject, (3), as the datalist holds it (``intensity_mean``), if any.
        seen: what a random change has seen before; None judges the image by itself.

    Raises:
        ValueError: another shape than (3, H, W), values outside of [0, white] by more than rounding, or values from 0
            to 1 although 255 is white.

    Example:
        >>> check_color_picture("image", torch.rand(3, 8, 8), white=1.0)
    """
    if picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(
            f"Expected `{name}` to be a color picture (3, H, W), got {tuple(picture.shape)}: read it in RGB; "
            "gray pictures have no stains and no hue."
        )
    low, high = float(picture.min()), float(picture.max())
    rounding = _ROUNDING * white
    if not (low >= -rounding and high <= white + rounding):
        raise ValueError(
            f"Expected `{name}` to hold values from 0 to {white:g}, got {low:.4g} to {high:.4g}: put transforms of "
            "color before those that normalize, and give the value of white as `white`."
        )
    if not _seems_scaled(picture, white, mean):
        if seen is not None:
            seen.remember(picture)
    elif seen is None or not seen.allow(mean):
        raise ValueError(f"Expected `{name}` to hold values from 0 to {white:g}, got 0 to 1: give `white=1`.")


def _seems_scaled(picture: torch.Tensor, white: float, mean: Mean) -> bool:
    """Tell whether this seems to be an image from 0 to 1 although white is more."""
    high = float(picture.max())
    if not white > 1 or not 0 < high <= 1 or bool((picture == picture.round()).all()):
        return False
    if mean is None:
        return high > _NEARLY_BLACK
    told = torch.as_tensor(mean).float()
    return float(picture.mean()) > _AS_BRIGHT * float(told.mean()) / white or float(told.max()) <= 1


def change_picture(
    function: Callable[[torch.Tensor], torch.Tensor],
    key: Hashable,
    item: Mapping[Hashable, Any],
    white: float,
    seen: SeenPictures | None = None,
) -> torch.Tensor | np.ndarray:
    """Check a color image of an item and apply a function of plain tensors to it.

    Type and metadata stay, values are float32.

    Args:
        function: what to apply.
        key: the image's key.
        item: the item.
        white: the value of white, 255 or 1.
        seen: see :func:`check_color_picture`.
    """
    picture: torch.Tensor | np.ndarray = item[key]
    plain = convert_to_tensor(picture, dtype=torch.float32, track_meta=False)
    check_color_picture(str(key), plain, white, item.get("intensity_mean"), seen)
    return convert_to_dst_type(function(plain.clamp(0, white)), picture, dtype=torch.float32)[0]

# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The in-plane grid of a 2D network: training and inference bring slices of any size to it in the same way."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform

__all__ = ["ResizeInPlaned", "resize_in_plane"]


def resize_in_plane(images: torch.Tensor, grid: Sequence[int] | torch.Size) -> torch.Tensor:
    """Resample images bilinearly, with a low-pass filter where they shrink: ``(B, C, H, W) -> (B, C, *grid)``.

    Example:
        >>> resize_in_plane(torch.ones(1, 1, 240, 240), (64, 64)).shape
        torch.Size([1, 1, 64, 64])
    """
    if tuple(images.shape[2:]) == tuple(grid):
        return images
    return F.interpolate(images, size=tuple(grid), mode="bilinear", align_corners=False, antialias=True)


class ResizeInPlaned(MapTransform):
    """Application of :func:`resize_in_plane` to 2D images (C, H, W) of an item.

    Args:
        keys: images to resize.
        grid: height and width; None: images keep their size.
        allow_missing_keys: skip keys that an item lacks.

    Raises:
        ValueError: an image that is not 2D.
    """

    def __init__(self, keys: KeysCollection, grid: Sequence[int] | None, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.grid = None if grid is None else tuple(grid)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            if item[key].ndim != 3:
                raise ValueError(
                    f"Expected `{key}` to be a 2D image (C, H, W) for a 2D network, got {tuple(item[key].shape)}: "
                    "prepare volumes as slices for training."
                )
            if self.grid is not None:
                item[key] = resize_in_plane(item[key][None], self.grid)[0]
        return item

# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""Linear interpolation between pixel centers, in 2D and 3D, under the names that torch gives it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

__all__ = ["linear_mode", "resize_linear", "resize_nearest"]

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def linear_mode(spatial_dims: int) -> str:
    """Name torch's linear interpolation over one, two or three spatial axes.

    Example:
        >>> linear_mode(3)
        'trilinear'
    """
    return _MODES[spatial_dims]


def resize_linear(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bring maps ``(B, C, *s)`` to another spatial size, linearly, half-pixel centers: ``(B, C, *size)``.

    Example:
        >>> resize_linear(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).flatten().tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    return F.interpolate(maps, size=tuple(size), mode=linear_mode(maps.ndim - 2), align_corners=False)


def resize_nearest(labels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bring labels ``(B, 1, *s)`` of any dtype to another spatial size; each pixel takes the nearest label.

    Example:
        >>> resize_nearest(torch.tensor([[[[0, 1, 2, 255]]]]), (1, 2)).flatten().tolist()
        [0, 2]
    """
    return F.interpolate(labels.float(), size=tuple(size), mode="nearest").to(labels.dtype)

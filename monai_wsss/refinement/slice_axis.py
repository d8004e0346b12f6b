# Copyright (c) monai_wsss contributors.
# Licensed under the Apache License, Version 2.0: see the file LICENSE.
"""The array axis along which the slices of a volume follow one another, for what is decided slice by slice."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from nibabel.orientations import io_orientation
from torch import nn

__all__ = ["slice_axis_of", "slicing_axis_of"]


def slicing_axis_of(network: Any) -> int:
    """Give the anatomical axis along which the slices that trained a network were cut; 0 without a record of it.

    1 runs from left to right, 2 from back to front, 3 from feet to head.
    """
    buffers = dict(network.named_buffers()) if isinstance(network, nn.Module) else {}
    records = [name for name in buffers if name.rpartition(".")[2] == "reading_axes"]
    return abs(int(buffers[min(records, key=len)][-1])) if records else 0


def slice_axis_of(image: torch.Tensor, network: nn.Module | int | None) -> int:
    """Give the array axis of a volume along which a network's training slices were cut.

    Args:
        image: a volume (C, *S) or batch of alike ones (B, C, *S), with its affine where it has one.
        network: records along which anatomical axis slices were cut; or that axis, as :func:`slicing_axis_of` gives it.

    Returns:
        0..2; -1, the last axis, where the network has no record of it or the volume no affine.
    """
    along = network if isinstance(network, int) else slicing_axis_of(network)
    affine = image.affine.reshape(-1, *image.affine.shape[-2:])[0].cpu() if isinstance(image, MetaTensor) else None
    if not along or affine is None or affine.shape != (4, 4):
        return -1
    order = io_orientation(affine.numpy())[:, 0].tolist()
    return order.index(along - 1) if along - 1 in order else -1
